//! The run's log: a line an epoch.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::preprocess::Preprocessing;

/// A line of the run's log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EpochRecord {
    /// From 1.
    pub epoch: usize,
    /// Learning rate at its start.
    pub learning_rate: f32,
    /// Mean loss of its steps.
    pub loss: f64,
    /// Validation Dice by foreground label; empty when not validated.
    pub dice: Vec<Option<f64>>,
    /// Mean over labels.
    pub mean_dice: Option<f64>,
    /// Seconds of its steps.
    pub train_seconds: f64,
    /// Seconds of its validation.
    pub validation_seconds: f64,
    /// Standard deviation of each OBELISK layer's offsets at its end, by parameter; see [`crate::offsets::sigmas`].
    #[serde(default)]
    pub offset_sigma: BTreeMap<String, f64>,
}

pub(super) fn log_csv(log: &[EpochRecord], preprocessing: &Preprocessing) -> String {
    let number = |v: Option<f64>| v.map(|v| format!("{v:.5}")).unwrap_or_default();
    let names = preprocessing
        .labels
        .iter()
        .skip(1)
        .map(|l| format!("dice_{}", l.name.replace([',', '"', '\n'], "_")));
    let offsets: BTreeSet<&String> = log.iter().flat_map(|line| line.offset_sigma.keys()).collect();
    let columns: Vec<String> = [
        "epoch",
        "learning_rate",
        "loss",
        "train_seconds",
        "validation_seconds",
        "dice_mean",
    ]
    .map(String::from)
    .into_iter()
    .chain(names)
    .chain(offsets.iter().map(|name| format!("{name}_sigma")))
    .collect();
    let mut text = columns.join(",") + "\n";
    for line in log {
        let dice = (0..preprocessing.labels.len() - 1).map(|i| number(line.dice.get(i).copied().flatten()));
        let sigma = offsets
            .iter()
            .map(|name| number(line.offset_sigma.get(*name).copied()));
        let numbers: Vec<String> = std::iter::once(number(line.mean_dice))
            .chain(dice)
            .chain(sigma)
            .collect();
        text += &format!(
            "{},{:.7},{:.6},{:.2},{:.2},{}\n",
            line.epoch,
            line.learning_rate,
            line.loss,
            line.train_seconds,
            line.validation_seconds,
            numbers.join(",")
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::find;

    #[test]
    fn a_run_from_before_the_offsets_were_logged_goes_on() {
        let old = r#"{"epoch":1,"learning_rate":0.002,"loss":1.5,"dice":[null,0.25],"mean_dice":0.25,
            "train_seconds":2.0,"validation_seconds":1.0}"#;
        let first: EpochRecord = serde_json::from_str(old).unwrap();
        let second = EpochRecord {
            epoch: 2,
            dice: Vec::new(),
            mean_dice: None,
            offset_sigma: BTreeMap::from([("offset2".into(), 0.0625), ("offset1".into(), 0.05)]),
            ..first.clone()
        };
        let read_back: EpochRecord = serde_json::from_str(&serde_json::to_string(&second).unwrap()).unwrap();
        assert_eq!(read_back, second);
        let mut preprocessing = find("obeliskhybrid_tcia").unwrap().published.unwrap()();
        preprocessing.labels.truncate(3);
        let expected = "epoch,learning_rate,loss,train_seconds,validation_seconds,dice_mean,dice_spleen,\
            dice_pancreas,offset1_sigma,offset2_sigma\n\
            1,0.0020000,1.500000,2.00,1.00,0.25000,,0.25000,,\n\
            2,0.0020000,1.500000,2.00,1.00,,,,0.05000,0.06250\n";
        assert_eq!(log_csv(&[first.clone(), second], &preprocessing), expected);
        assert!(!log_csv(&[first], &preprocessing).contains("sigma"));
    }
}

//! The run's log: a line an epoch.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::dataset::Label;
use crate::metrics::{self, METRICS};
use crate::preprocess::Preprocessing;

/// A line of the run's log.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct EpochRecord {
    /// From 1.
    pub epoch: usize,
    /// Learning rate at its start.
    pub learning_rate: f32,
    /// Mean loss of its steps.
    pub loss: f64,
    /// Validation scores by metric, then by foreground label; nothing for a metric when not validated.
    #[serde(flatten, with = "metrics::by_name")]
    pub scores: Vec<Vec<Option<f64>>>,
    /// By metric: the mean over labels.
    #[serde(flatten, with = "metrics::mean_by_name")]
    pub means: Vec<Option<f64>>,
    /// Seconds of its steps.
    pub train_seconds: f64,
    /// Seconds of its validation.
    pub validation_seconds: f64,
    /// Standard deviation of each OBELISK layer's offsets at its end, by parameter; see [`crate::offsets::sigmas`].
    pub offset_sigma: BTreeMap<String, f64>,
}

/// The best score of the first metric in a log, the first of equals, and its epoch.
pub fn best_epoch(log: &[EpochRecord]) -> Option<(f64, usize)> {
    let scores = log
        .iter()
        .filter_map(|line| Some((line.means.first().copied().flatten()?, line.epoch)));
    scores.reduce(|best, next| match METRICS[0].is_better(next.0, best.0) {
        true => next,
        false => best,
    })
}

pub(super) fn log_csv(log: &[EpochRecord], preprocessing: &Preprocessing) -> String {
    let number = |v: Option<f64>| v.map(|v| format!("{v:.5}")).unwrap_or_default();
    let labels = || preprocessing.labels.iter().skip(1);
    // a training's validation takes few of the metrics
    let metrics: Vec<usize> = (0..METRICS.len())
        .filter(|i| {
            *i == 0
                || log
                    .iter()
                    .any(|line| line.scores.get(*i).is_some_and(|s| !s.is_empty()))
        })
        .collect();
    let scores = metrics.iter().flat_map(|i| {
        let metric = &METRICS[*i];
        let label = |l: &Label| format!("{}_{}", metric.name, l.name.replace([',', '"', '\n'], "_"));
        std::iter::once(format!("{}_mean", metric.name)).chain(labels().map(label))
    });
    let offsets: BTreeSet<&String> = log.iter().flat_map(|line| line.offset_sigma.keys()).collect();
    let columns: Vec<String> = [
        "epoch",
        "learning_rate",
        "loss",
        "train_seconds",
        "validation_seconds",
    ]
    .map(String::from)
    .into_iter()
    .chain(scores)
    .chain(offsets.iter().map(|name| format!("{name}_sigma")))
    .collect();
    let mut text = columns.join(",") + "\n";
    for line in log {
        let scores = metrics.iter().flat_map(|&metric| {
            let mean = line.means.get(metric).copied().flatten();
            let score = move |i: usize| line.scores.get(metric)?.get(i).copied().flatten();
            std::iter::once(mean).chain((0..labels().count()).map(score))
        });
        let sigma = offsets
            .iter()
            .map(|name| number(line.offset_sigma.get(*name).copied()));
        let numbers: Vec<String> = scores.map(number).chain(sigma).collect();
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

    /// For the first two metrics.
    fn by_metric<T: Default + Clone>(first: T, second: T) -> Vec<T> {
        let mut values = vec![T::default(); METRICS.len()];
        (values[0], values[1]) = (first, second);
        values
    }

    #[test]
    fn a_run_from_before_the_offsets_were_logged_goes_on() {
        let old = r#"{"epoch":1,"learning_rate":0.002,"loss":1.5,"dice":[null,0.25],"mean_dice":0.25,
            "train_seconds":2.0,"validation_seconds":1.0}"#;
        let first: EpochRecord = serde_json::from_str(old).unwrap();
        let second = EpochRecord {
            epoch: 2,
            scores: by_metric(Vec::new(), vec![Some(1.5)]),
            means: by_metric(None, Some(1.5)),
            offset_sigma: BTreeMap::from([("offset2".into(), 0.0625), ("offset1".into(), 0.05)]),
            ..first.clone()
        };
        let read_back: EpochRecord = serde_json::from_str(&serde_json::to_string(&second).unwrap()).unwrap();
        assert_eq!(read_back, second);
        let mut preprocessing = find("obeliskhybrid_tcia").unwrap().published.unwrap()();
        preprocessing.labels.truncate(3);
        let expected = "epoch,learning_rate,loss,train_seconds,validation_seconds,dice_mean,dice_spleen,\
            dice_pancreas,jaccard_mean,jaccard_spleen,jaccard_pancreas,offset1_sigma,offset2_sigma\n\
            1,0.0020000,1.500000,2.00,1.00,0.25000,,0.25000,,,,,\n\
            2,0.0020000,1.500000,2.00,1.00,,,,1.50000,1.50000,,0.05000,0.06250\n";
        assert_eq!(log_csv(&[first.clone(), second], &preprocessing), expected);
        assert!(!log_csv(&[first], &preprocessing).contains("sigma"));
    }
}

//! The run's log: a line an epoch.

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
}

pub(super) fn log_csv(log: &[EpochRecord], preprocessing: &Preprocessing) -> String {
    let number = |v: Option<f64>| v.map(|v| format!("{v:.5}")).unwrap_or_default();
    let names = preprocessing
        .labels
        .iter()
        .skip(1)
        .map(|l| format!("dice_{}", l.name.replace([',', '"', '\n'], "_")));
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
    .collect();
    let mut text = columns.join(",") + "\n";
    for line in log {
        let dice = (0..preprocessing.labels.len() - 1).map(|i| number(line.dice.get(i).copied().flatten()));
        let dice: Vec<String> = std::iter::once(number(line.mean_dice)).chain(dice).collect();
        text += &format!(
            "{},{:.7},{:.6},{:.2},{:.2},{}\n",
            line.epoch,
            line.learning_rate,
            line.loss,
            line.train_seconds,
            line.validation_seconds,
            dice.join(",")
        );
    }
    text
}

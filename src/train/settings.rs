//! What a training run is told; the run's `config.toml`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::dataset::Folds;

/// What is minimised.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Loss {
    /// Softmax cross-entropy over all voxels.
    CrossEntropy,
    /// Cross-entropy plus soft Dice over foreground labels.
    CrossEntropyDice,
    /// Class-weighted cross-entropy of the hardest quarter of the voxels (the paper's, for OBELISK networks).
    HardMining,
}

/// How the learning rate falls.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Schedule {
    /// Half a cosine from the first epoch's rate to zero, step by step.
    Cosine,
    /// × 0.99 after each epoch (the paper's).
    Exponential,
}

/// Settings of a training run; written as `config.toml` into the run and read back by `--config`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Folder with dataset.json.
    pub dataset: PathBuf,
    /// Network.
    pub arch: String,
    /// Validation fold; absent to train on every case.
    pub fold: Option<usize>,
    /// Which folds there are; absent for the dataset's own, or five.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub folds: Option<Folds>,
    /// Passes over the training cases.
    pub epochs: usize,
    /// Scans in a step.
    pub batch: usize,
    /// Seed of all random streams.
    pub seed: u64,
    /// Adam's learning rate at the start.
    pub learning_rate: f32,
    /// How it falls.
    pub schedule: Schedule,
    /// L2 penalty added to the gradient.
    pub weight_decay: f32,
    /// What is minimised.
    pub loss: Loss,
    /// Standard deviation of the affine augmentation's twelve entries, in normalised coordinates.
    pub affine: f32,
    /// Epochs between validations; the last epoch is always validated.
    pub validate_every: usize,
    /// Target orientation, such as `RAS`; absent to take the dataset's most common.
    pub orientation: Option<String>,
    /// Target spacing in mm (D, H, W); absent to take the dataset's median.
    pub spacing: Option<[f64; 3]>,
    /// Target grid in voxels (D, H, W); absent to cover the dataset's scans.
    pub size: Option<[usize; 3]>,
}

impl Settings {
    /// The defaults for a dataset and network.
    pub fn new(dataset: PathBuf, arch: &str) -> Self {
        Settings {
            dataset,
            arch: arch.to_owned(),
            fold: None,
            folds: None,
            epochs: 44,
            batch: 2,
            seed: 1,
            learning_rate: 0.002,
            schedule: Schedule::Cosine,
            weight_decay: 1e-5,
            loss: Loss::CrossEntropyDice,
            affine: 0.075,
            validate_every: 1,
            orientation: None,
            spacing: None,
            size: None,
        }
    }

    /// Learning rate at step `step` of `steps` an epoch.
    pub(super) fn rate(&self, step: usize, steps: usize) -> f32 {
        let epoch = step / steps;
        match self.schedule {
            Schedule::Exponential => self.learning_rate * 0.99f32.powi(epoch as i32),
            Schedule::Cosine => {
                let done = step as f64 / (steps * self.epochs) as f64;
                (self.learning_rate as f64 * 0.5 * (1.0 + (std::f64::consts::PI * done).cos())) as f32
            }
        }
    }
}

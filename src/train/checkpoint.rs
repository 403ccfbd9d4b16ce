//! What a training goes on from. A run keeps its last two checkpoints, so that one that is damaged costs an epoch.

use std::collections::{BTreeMap, HashMap};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{EpochRecord, Settings};
use crate::file::{write_beside, write_beside_keeping};
use crate::tensor::Tensor;
use crate::weights::{self, Record, WeightsError};

const NEWEST: &str = "checkpoint.safetensors";
const BEFORE: &str = "checkpoint-before.safetensors";

/// Whether a run has a checkpoint to go on from.
pub fn has_checkpoint(run: &Path) -> bool {
    [NEWEST, BEFORE].iter().any(|name| run.join(name).exists())
}

/// What a resumed training would go on from: the settings of a run's checkpoint and the epochs done; `None` where there is
/// no checkpoint.
///
/// # Errors
/// Checkpoints that can't be read, or none that is whole; one of a newer version of this program.
pub fn checkpointed(run: &Path) -> Result<Option<(Settings, usize)>, WeightsError> {
    let found = Checkpoints::of(run).load()?;
    Ok(found.map(|(record, _)| (record.settings, record.epochs_done)))
}

/// Removes a run's checkpoints, so that its training begins anew.
///
/// # Errors
/// The operating system's refusal.
pub fn remove_checkpoints(run: &Path) -> Result<(), WeightsError> {
    [NEWEST, BEFORE]
        .iter()
        .try_for_each(|name| remove(run.join(name)))
}

fn remove(path: PathBuf) -> Result<(), WeightsError> {
    match std::fs::remove_file(&path) {
        Err(cause) if cause.kind() != ErrorKind::NotFound => Err(WeightsError::Io { path, cause }),
        _ => Ok(()),
    }
}

/// What a checkpoint says beside its tensors: parameters, states, and Adam's moments.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct CheckpointRecord {
    pub settings: Settings,
    pub epochs_done: usize,
    #[serde(default)]
    pub best: Option<f64>,
    #[serde(default)]
    pub log: Vec<EpochRecord>,
}

/// A checkpoint's record and tensors.
pub(super) type Checkpoint = (CheckpointRecord, HashMap<String, Tensor>);

impl Record for CheckpointRecord {
    /// The log of a thousand epochs with a hundred labels has 6 MB.
    const MOST_BYTES: usize = 14 << 20;

    fn check(&self) -> Result<(), String> {
        if self.epochs_done == 0 || self.log.len() > self.epochs_done {
            let lines = self.log.len();
            return Err(format!(
                "{} epochs are done, and {lines} are in the log",
                self.epochs_done
            ));
        }
        self.settings.check()
    }
}

/// A run's checkpoints.
pub(super) struct Checkpoints {
    newest: PathBuf,
    before: PathBuf,
    state: State,
}

/// What the next checkpoint does with those that are there.
enum State {
    /// They are of an earlier training in the folder, and go.
    Foreign,
    /// The newest is good and is kept as the one before.
    Good,
    /// The newest is damaged and is replaced; the one before stays.
    Damaged,
}

impl Checkpoints {
    pub fn of(run: &Path) -> Self {
        Checkpoints {
            newest: run.join(NEWEST),
            before: run.join(BEFORE),
            state: State::Foreign,
        }
    }

    /// The newest checkpoint or, where it is damaged or gone, the one before, with a warning; `None` where the run has
    /// none.
    ///
    /// # Errors
    /// Checkpoints that can't be read, or none that is whole; one of a newer version of this program.
    pub fn load(&mut self) -> Result<Option<Checkpoint>, WeightsError> {
        let is_gone = |error: &WeightsError| matches!(error, WeightsError::Io { cause, .. } if cause.kind() == ErrorKind::NotFound);
        let newest = match weights::load(&self.newest) {
            Ok(found) => {
                self.state = State::Good;
                return Ok(Some(found));
            }
            Err(error @ WeightsError::Format { .. }) => error,
            Err(error) if is_gone(&error) => error,
            Err(error) => return Err(error),
        };
        match weights::load::<CheckpointRecord>(&self.before) {
            Ok(found) => {
                tracing::warn!(
                    "{newest}; going on from the checkpoint before, of epoch {}",
                    found.0.epochs_done
                );
                self.state = State::Damaged;
                Ok(Some(found))
            }
            Err(before) if is_gone(&before) && is_gone(&newest) => Ok(None),
            Err(before) if is_gone(&newest) => Err(before),
            Err(before) => {
                if !is_gone(&before) {
                    tracing::warn!("{before}");
                }
                Err(newest)
            }
        }
    }

    /// Writes a checkpoint; until it is whole, the newest stays.
    ///
    /// # Errors
    /// Numbers that are not finite, and the operating system's refusal.
    pub fn save(
        &mut self,
        record: &CheckpointRecord,
        tensors: &HashMap<String, Tensor>,
    ) -> Result<(), WeightsError> {
        let bytes = weights::encode(&self.newest, record, tensors, &BTreeMap::new())?;
        let written = match self.state {
            State::Good => write_beside_keeping(&self.newest, &self.before, &bytes),
            State::Foreign | State::Damaged => write_beside(&self.newest, &bytes, true),
        };
        written.map_err(|cause| WeightsError::Io {
            path: self.newest.clone(),
            cause,
        })?;
        if matches!(self.state, State::Foreign) {
            remove(self.before.clone())?;
        }
        self.state = State::Good;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn places(value: &Value, at: String, found: &mut Vec<String>) {
        match value {
            Value::Object(fields) => fields
                .iter()
                .for_each(|(k, v)| places(v, format!("{at}/{k}"), found)),
            Value::Array(items) => {
                (items.iter().enumerate()).for_each(|(i, v)| places(v, format!("{at}/{i}"), found))
            }
            _ => {}
        }
        found.push(at);
    }

    #[test]
    fn any_value_anywhere_in_a_record_gives_a_checkpoint_or_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let mut checkpoints = Checkpoints::of(folder.path());
        let line = EpochRecord {
            epoch: 1,
            offset_sigma: BTreeMap::from([("offset1".into(), 0.05)]),
            ..Default::default()
        };
        let record = CheckpointRecord {
            settings: Settings {
                spacing: Some([1.0; 3]),
                ..Settings::new("data".into(), "obelisk")
            },
            epochs_done: 1,
            best: Some(0.5),
            log: vec![line],
        };
        let tensors = HashMap::from([("a".to_owned(), Tensor::zeros(&[2]))]);
        checkpoints.save(&record, &tensors).unwrap();
        let whole = serde_json::to_value(&record).unwrap();
        let mut found = Vec::new();
        places(&whole, String::new(), &mut found);
        let mut outcomes = [0, 0];
        for place in &found {
            for value in [
                json!(null),
                json!(-1),
                json!(0),
                json!(0.5),
                json!(1e308),
                json!(u64::MAX),
                json!(""),
                json!([]),
                json!([1, 1, 1, 1]),
                json!({}),
            ] {
                let mut changed = whole.clone();
                *changed.pointer_mut(place).unwrap() = value;
                let metadata = HashMap::from([("obelisk".to_owned(), changed.to_string())]);
                let views: [(&str, safetensors::tensor::TensorView); 0] = [];
                let bytes = safetensors::serialize(views, Some(metadata)).unwrap();
                std::fs::write(&checkpoints.newest, bytes).unwrap();
                outcomes[usize::from(checkpoints.load().is_err())] += 1;
            }
        }
        assert!(
            found.len() > 20 && outcomes[0] > 50 && outcomes[1] > 100,
            "{outcomes:?}"
        );
    }
}

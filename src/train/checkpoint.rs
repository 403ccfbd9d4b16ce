//! What a training goes on from. A run keeps its last two checkpoints, so that one that is damaged costs an epoch.

use std::collections::{BTreeMap, HashMap};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{EpochRecord, Settings};
use crate::file::{self, write_beside, write_beside_keeping};
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

/// The log of the epochs that a run's checkpoint has done; `None` where there is no checkpoint.
///
/// # Errors
/// As [`checkpointed`].
pub fn logged(run: &Path) -> Result<Option<Vec<EpochRecord>>, WeightsError> {
    let found = Checkpoints::of(run).load()?;
    Ok(found.map(|(record, _)| record.log))
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
    file::remove(&path).map_err(|cause| WeightsError::Io { path, cause })
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
    /// What is done of the epoch after those, where the training was stopped within.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub begun: Option<Begun>,
}

/// The part of an epoch that is done.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Begun {
    /// Steps; all of them, where the validation is missing.
    pub steps: usize,
    /// Sum of their losses.
    pub loss_sum: f64,
    /// Seconds that they took.
    pub seconds: f64,
}

/// A checkpoint's record and tensors.
pub(super) type Checkpoint = (CheckpointRecord, HashMap<String, Tensor>);

impl Record for CheckpointRecord {
    /// The log of a thousand epochs with a hundred labels has 6 MB.
    const MOST_BYTES: usize = 14 << 20;

    fn check(&self) -> Result<(), String> {
        let begun = self.begun.as_ref().map_or(0, |begun| begun.steps);
        if (self.epochs_done == 0 && begun == 0) || self.log.len() > self.epochs_done {
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
    use crate::faults::{self, Fault};
    use crate::model::find;
    use crate::train::{RunFolder, TrainError, Trained};
    use crate::weights::{Model, ModelInfo};
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
            begun: Some(Begun {
                steps: 3,
                loss_sum: 1.5,
                seconds: 2.0,
            }),
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

    /// What a run's folder has by name, without what a crash left unfinished.
    fn files(run: &Path) -> BTreeMap<String, Vec<u8>> {
        let entries = std::fs::read_dir(run).unwrap().map(|entry| entry.unwrap().path());
        let named = entries.map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), path));
        let finished = named.filter(|(name, _)| !name.ends_with(".tmp"));
        let read = finished.map(|(name, path)| (name, std::fs::read(path).unwrap()));
        read.collect()
    }

    /// Writes what a training of three epochs does, from where the folder's checkpoint is, with numbers that tell the epoch.
    /// It is stopped in each epoch, and goes on. `saved` hears how far it is: twice the epochs, and one for half of one.
    fn write_training(run: &Path, mut saved: impl FnMut(usize)) -> Result<(), TrainError> {
        let _lock = RunFolder::lock(run)?;
        crate::train::write(&run.join("config.toml"), b"settings")?;
        let mut checkpoints = Checkpoints::of(run);
        let found = checkpoints.load()?;
        let done = found.map_or(0, |(record, _)| {
            2 * record.epochs_done + usize::from(record.begun.is_some())
        });
        for half in done + 1..=6 {
            let numbers = |name: &str| (name.to_owned(), Tensor::from_fn(&[9], |i| (half * i) as f32));
            let record = CheckpointRecord {
                settings: Settings::new("data".into(), "obelisk"),
                epochs_done: half / 2,
                best: None,
                log: (1..=half / 2)
                    .map(|epoch| EpochRecord {
                        epoch,
                        ..Default::default()
                    })
                    .collect(),
                begun: (half % 2 == 1).then_some(Begun {
                    steps: 1,
                    loss_sum: 0.1 * half as f64,
                    seconds: 1.0,
                }),
            };
            if half % 2 == 1 {
                checkpoints.save(
                    &record,
                    &HashMap::from([numbers("weight"), numbers("adam.0.weight")]),
                )?;
            } else {
                let model = Model {
                    info: ModelInfo {
                        arch: "obelisk".into(),
                        preprocessing: find("obeliskhybrid_tcia").unwrap().published.unwrap()(),
                        training: None,
                        source: None,
                    },
                    tensors: HashMap::from([numbers("weight")]),
                    batches: Default::default(),
                };
                let moments = vec![numbers("adam.0.weight")];
                let better = half != 4;
                Trained {
                    model,
                    weights: None,
                    moments,
                    better,
                }
                .write(run, &record, &mut checkpoints)?;
            }
            saved(half);
        }
        Ok(())
    }

    #[test]
    fn a_disk_that_fails_at_any_operation_of_a_training_leaves_whole_files_and_a_way_on() {
        // Thousands of files, which a disk would take a minute to sync.
        let memory = Path::new("/dev/shm");
        let folder = match memory.is_dir() {
            true => tempfile::tempdir_in(memory),
            false => tempfile::tempdir(),
        };
        let folder = folder.unwrap();
        let run = |name: String| folder.path().join(name);
        let mut versions: BTreeMap<String, Vec<Vec<u8>>> = BTreeMap::new();
        let path = run("whole".into());
        let (written, counts) = faults::with(None, || {
            write_training(&path, |_| {
                for (name, bytes) in files(&path) {
                    versions.entry(name).or_default().push(bytes);
                }
            })
        });
        written.unwrap();
        let whole = files(&path);
        let operations = counts.operations;
        assert!(operations > 70, "{operations}");
        let newest = versions[NEWEST].clone();
        versions.entry(BEFORE.into()).or_default().extend(newest);
        let mut failed = 0;
        for fault in (1..=operations).flat_map(|n| [Fault::Full(n), Fault::Crash(n)]) {
            let path = run(format!("{fault:?}"));
            let mut done = 0;
            let (written, _) = faults::with(Some(fault), || write_training(&path, |half| done = half));
            if let Err(error) = written {
                failed += 1;
                let error = error.to_string();
                assert!(error.contains(path.to_str().unwrap()), "{fault:?}: {error}");
            } else {
                assert_eq!(done, 6, "{fault:?}");
            }
            if path.exists() {
                for (name, bytes) in files(&path) {
                    // The lock is empty from the first.
                    let is_whole = name == "lock" || versions[&name].contains(&bytes);
                    assert!(is_whole, "{fault:?}: {name} is {} bytes", bytes.len());
                }
                let found = Checkpoints::of(&path).load().unwrap();
                let found = found.map_or(0, |(r, _)| 2 * r.epochs_done + usize::from(r.begun.is_some()));
                assert!(found >= done, "{fault:?}: {found} of {done} halves of epochs");
            }
            write_training(&path, |_| {}).unwrap();
            assert!(files(&path) == whole, "{fault:?}");
        }
        let told = format!(
            "{failed} of {operations} operations of a training failed, by a full disk and by a crash\n"
        );
        std::io::Write::write_all(&mut std::io::stderr(), told.as_bytes()).unwrap();
        assert!(failed > operations, "{failed}");
    }
}

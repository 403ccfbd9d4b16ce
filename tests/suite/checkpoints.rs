//! Checkpoints: a damaged one costs an epoch and is told, those of other versions are gone on from, and a training that
//! diverges leaves what was good.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::Path;

use crate::common::*;
use obelisk::gpu::Device;
use obelisk::preprocess::{Overrides, Preprocessing};
use obelisk::tensor::Tensor;
use obelisk::train::{
    Event, Schedule, Settings, TrainError, TrainingData, has_checkpoint, remove_checkpoints, train,
    train_in_memory,
};
use obelisk::weights::{Model, WeightsError};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;

/// Four cases and a small network on a small grid, in two steps an epoch.
fn setup() -> (Settings, TrainingData) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/data");
    let dataset = obelisk::dataset::Dataset::open(&folder).unwrap();
    let overrides = Overrides {
        grid: Some([16, 16, 16]),
        spacing: Some([3.0; 3]),
        ..Default::default()
    };
    let preprocessing = Preprocessing::derive(&dataset, overrides).unwrap();
    let mut data = TrainingData::load(&dataset, preprocessing, None).unwrap();
    data.training.truncate(4);
    let mut settings = Settings::dense(folder, crate::program::TINY);
    (settings.epochs, settings.schedule) = (3, Schedule::Exponential);
    (settings, data)
}

fn with(settings: &Settings, change: impl FnOnce(&mut Settings)) -> Settings {
    let mut settings = settings.clone();
    change(&mut settings);
    settings
}

fn run(
    device: &Device,
    settings: &Settings,
    data: &TrainingData,
    run: &Path,
    resume: bool,
    mut report: impl FnMut(Event),
) -> Result<Vec<usize>, TrainError> {
    let report = |event: Event| {
        report(event);
        ControlFlow::Continue(())
    };
    let log = pollster::block_on(train(device, settings, data, run, resume, report))?;
    Ok(log.iter().map(|line| line.epoch).collect())
}

/// A run's files by name.
fn files(run: &Path) -> HashMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(run).unwrap().map(|entry| entry.unwrap());
    entries
        .map(|e| {
            (
                e.file_name().into_string().unwrap(),
                std::fs::read(e.path()).unwrap(),
            )
        })
        .collect()
}

fn write(run: &Path, files: &HashMap<String, Vec<u8>>) {
    for (name, bytes) in files {
        std::fs::write(run.join(name), bytes).unwrap();
    }
}

const NEWEST: &str = "checkpoint.safetensors";
const BEFORE: &str = "checkpoint-before.safetensors";

/// A run, and what its folder had when each epoch was done.
fn run_and_history(
    device: &Device,
    settings: &Settings,
    data: &TrainingData,
) -> (tempfile::TempDir, Vec<HashMap<String, Vec<u8>>>) {
    let folder = tempfile::tempdir().unwrap();
    let mut history = Vec::new();
    let report = |event: Event| {
        if let Event::Epoch(_) = event {
            history.push(files(folder.path()));
        }
    };
    assert_eq!(
        run(device, settings, data, folder.path(), false, report).unwrap(),
        [1, 2, 3]
    );
    (folder, history)
}

/// A checkpoint without a checksum, as earlier versions wrote them, its record changed.
fn rewritten(bytes: &[u8], change: impl Fn(&mut serde_json::Value)) -> Vec<u8> {
    let (_, header) = SafeTensors::read_metadata(bytes).unwrap();
    let mut record = serde_json::from_str(&header.metadata().as_ref().unwrap()["obelisk"]).unwrap();
    change(&mut record);
    let file = SafeTensors::deserialize(bytes).unwrap();
    let views: Vec<(String, TensorView)> = file.iter().map(|(name, view)| (name.to_owned(), view)).collect();
    let metadata = HashMap::from([("obelisk".to_owned(), record.to_string())]);
    safetensors::serialize(views, Some(metadata)).unwrap()
}

#[test]
fn a_damaged_checkpoint_costs_an_epoch_and_two_are_an_error() {
    let Some(device) = devices().get(1) else { return };
    let (settings, data) = setup();
    let (folder, history) = run_and_history(device, &settings, &data);
    assert_eq!(history.len(), 3);
    assert!(!history[0].contains_key(BEFORE));
    assert_eq!(history[1][BEFORE], history[0][NEWEST]);
    assert_eq!(history[2][BEFORE], history[1][NEWEST]);
    let finished = files(folder.path());
    let weights = |files: &HashMap<String, Vec<u8>>| files["last.safetensors"].clone();

    // Begun again where the second epoch was done, with one kind of damage after the other.
    let newest = &history[1][NEWEST];
    let flipped = |at: usize| {
        let mut bytes = newest.clone();
        bytes[at] ^= 0x10;
        Some(bytes)
    };
    let damages = [
        ("a number", flipped(newest.len() - 1000)),
        ("the record", flipped(700)),
        ("the header's length", flipped(1)),
        ("half of it", Some(newest[..newest.len() / 2].to_vec())),
        ("all of it", Some(Vec::new())),
        ("gone, after a crash between two renames", None),
    ];
    for (what, damaged) in damages {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), &history[1]);
        match damaged {
            Some(bytes) => std::fs::write(folder.path().join(NEWEST), bytes).unwrap(),
            None => std::fs::remove_file(folder.path().join(NEWEST)).unwrap(),
        }
        assert!(has_checkpoint(folder.path()), "{what}");
        let mut epochs = Vec::new();
        let report = |event: Event| {
            if let Event::Epoch(line) = event {
                epochs.push(line.epoch);
            }
        };
        assert_eq!(
            run(device, &settings, &data, folder.path(), true, report).unwrap(),
            [1, 2, 3],
            "{what}"
        );
        assert_eq!(epochs, [2, 3], "{what}");
        let again = files(folder.path());
        assert_eq!(weights(&again), weights(&finished), "{what}");
        // The one before is a good one again, not the damaged.
        assert!(obelisk::weights::Model::load(&folder.path().join("last.safetensors")).is_ok());
        std::fs::remove_file(folder.path().join(NEWEST)).unwrap();
        assert_eq!(
            run(device, &settings, &data, folder.path(), true, |_| {}).unwrap(),
            [1, 2, 3],
            "{what}"
        );
        assert_eq!(weights(&files(folder.path())), weights(&finished), "{what}");
    }

    // Both damaged: an error, and the files stay.
    let folder = tempfile::tempdir().unwrap();
    let mut both = history[1].clone();
    both.insert(NEWEST.into(), flipped(5000).unwrap());
    both.insert(BEFORE.into(), flipped(5000).unwrap());
    write(folder.path(), &both);
    let error = run(device, &settings, &data, folder.path(), true, |_| {})
        .unwrap_err()
        .to_string();
    assert!(error.contains(NEWEST) && error.contains("damaged"), "{error}");
    assert!(files(folder.path()) == both);

    // A newer version's is no damage: the one before must not be taken for it.
    let mut newer = history[1].clone();
    newer.insert(
        NEWEST.into(),
        rewritten(newest, |record| record["format"] = 3.into()),
    );
    write(folder.path(), &newer);
    let error = run(device, &settings, &data, folder.path(), true, |_| {}).unwrap_err();
    assert!(
        matches!(error, TrainError::Weights(WeightsError::Newer { .. })),
        "{error}"
    );
    assert!(files(folder.path()) == newer);

    // Of an earlier training in the folder nothing is left that a resumed one could fall back to.
    write(folder.path(), &history[2]);
    let one = with(&settings, |s| s.epochs = 1);
    assert_eq!(
        run(device, &one, &data, folder.path(), false, |_| {}).unwrap(),
        [1]
    );
    assert!(!files(folder.path()).contains_key(BEFORE));
    remove_checkpoints(folder.path()).unwrap();
    assert!(!has_checkpoint(folder.path()));
}

#[test]
fn checkpoints_of_other_versions_are_gone_on_from() {
    let Some(device) = devices().get(1) else { return };
    let (settings, data) = setup();
    let (finished, history) = run_and_history(device, &settings, &data);
    let expected = files(finished.path())["last.safetensors"].clone();
    let resume = |checkpoint: Vec<u8>, settings: &Settings| {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(NEWEST), checkpoint).unwrap();
        let epochs = run(device, settings, &data, folder.path(), true, |_| {})?;
        Ok::<_, TrainError>((epochs, files(folder.path())["last.safetensors"].clone()))
    };
    let newest = &history[1][NEWEST];
    let older = rewritten(newest, |record| {
        let record = record.as_object_mut().unwrap();
        record.remove("checksum");
        record.remove("format");
        record["settings"].as_object_mut().unwrap().remove("forms");
    });
    assert_eq!(
        resume(older, &settings).unwrap(),
        (vec![1, 2, 3], expected.clone())
    );
    let newer = rewritten(newest, |record| {
        record["format"] = 1.into();
        record["settings"]["lookahead"] = 0.9.into();
        record["settings"]["forms"]["lanes"] = 8.into();
        record["scheduler"] = serde_json::json!({"kind": "plateau", "patience": 3});
        record["log"][0]["gradient_norm"] = 0.1.into();
        record["log"][1]
            .as_object_mut()
            .unwrap()
            .remove("validation_seconds");
    });
    assert_eq!(
        resume(newer, &settings).unwrap(),
        (vec![1, 2, 3], expected.clone())
    );
    let without_log = rewritten(newest, |record| {
        record["format"] = 1.into();
        record.as_object_mut().unwrap().remove("log");
    });
    assert_eq!(resume(without_log, &settings).unwrap(), (vec![3], expected));

    // What can't be is refused, and other settings are named.
    for (field, value) in [
        ("epochs_done", serde_json::json!(0)),
        ("epochs_done", serde_json::json!(null)),
        ("settings", serde_json::json!(null)),
        ("log", serde_json::json!([{}, {}, {}, {}])),
    ] {
        let wrong = rewritten(newest, |record| {
            record["format"] = 1.into();
            record[field] = value.clone();
        });
        let error = resume(wrong, &settings).unwrap_err();
        assert!(
            matches!(error, TrainError::Weights(WeightsError::Format { .. })),
            "{field}: {error}"
        );
    }
    let other = with(&settings, |s| s.batch = 4);
    let error = resume(newest.clone(), &other).unwrap_err().to_string();
    assert!(error.contains("`batch` is 2 and not 4"), "{error}");
}

#[test]
fn a_training_that_diverges_leaves_what_was_good() {
    let Some(device) = devices().get(1) else { return };
    let (settings, data) = setup();
    let (finished, history) = run_and_history(device, &settings, &data);
    let fast = with(&settings, |s| s.learning_rate = 1e30);
    let check = |error: TrainError, at: (usize, usize)| match error {
        TrainError::Diverged {
            epoch,
            step,
            ref cases,
            ref what,
        } => {
            assert_eq!((epoch, step), at, "{error}");
            assert!(
                what.contains("first in the layer `") || what.starts_with("tensor"),
                "{error}"
            );
            assert!(!cases.is_empty() && cases.iter().all(|c| data.training.iter().any(|t| t.id == *c)));
            assert!(!error.to_string().contains("--"), "{error}");
        }
        other => panic!("{other}"),
    };
    let nothing = |_: Event| {};

    // From the start: nothing is written; the next training needs nobody's leave, and resuming begins it.
    let folder = tempfile::tempdir().unwrap();
    check(
        run(device, &fast, &data, folder.path(), false, nothing).unwrap_err(),
        (1, 2),
    );
    assert!(files(folder.path()).is_empty());
    assert_eq!(
        run(device, &settings, &data, folder.path(), true, nothing).unwrap(),
        [1, 2, 3]
    );
    assert!(files(folder.path())["last.safetensors"] == files(finished.path())["last.safetensors"]);

    // The last update of all, after which there is no loss.
    let folder = tempfile::tempdir().unwrap();
    let single = with(&fast, |s| (s.epochs, s.batch) = (1, 4));
    check(
        run(device, &single, &data, folder.path(), false, nothing).unwrap_err(),
        (1, 1),
    );
    assert!(files(folder.path()).is_empty());
    let in_memory = train_in_memory(device, &single, &data, |_| ControlFlow::Continue(()));
    check(pollster::block_on(in_memory).unwrap_err(), (1, 1));

    // Later: the files of the epoch before stay, and a lower rate goes on from them.
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &history[1]);
    check(
        run(device, &fast, &data, folder.path(), true, nothing).unwrap_err(),
        (3, 2),
    );
    assert!(files(folder.path()) == history[1]);
    assert_eq!(
        run(device, &settings, &data, folder.path(), true, nothing).unwrap(),
        [1, 2, 3]
    );
    assert!(files(folder.path())["last.safetensors"] == files(finished.path())["last.safetensors"]);
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &history[1]);
    let slow = with(&settings, |s| s.learning_rate /= 10.0);
    assert_eq!(
        run(device, &slow, &data, folder.path(), true, nothing).unwrap(),
        [1, 2, 3]
    );
    let last = Model::load(&folder.path().join("last.safetensors")).unwrap();
    assert!(
        last.tensors
            .values()
            .all(|t: &Tensor| t.data.iter().all(|v| v.is_finite()))
    );
    assert!(files(folder.path())["last.safetensors"] != files(finished.path())["last.safetensors"]);
    let log = String::from_utf8(files(folder.path())["log.csv"].clone()).unwrap();
    assert!(
        log.contains("\n3,0.000196"),
        "the rate that it was trained with is in the log: {log}"
    );
}

//! Disks that fail at any operation, and kills: what was there stays whole, errors name the file, and whoever goes on gets the
//! bytes of a run that nothing happened to. `src/train/checkpoint.rs` has the files of a training by themselves, and
//! `src/cli/device.rs` devices that are lost.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use crate::common::{devices, samples};
use obelisk::crossval::{Epoch, Job, prediction};
use obelisk::dataset::Dataset;
use obelisk::faults::{self, Fault};
use obelisk::file::write_beside;
use obelisk::gpu::Device;
use obelisk::model::find;
use obelisk::predict::Predictor;
use obelisk::tensor::Tensor;
use obelisk::train::{
    Event, Preset, Rule, RunFolder, Settings, TrainError, TrainingData, has_checkpoint, train,
    train_in_memory,
};
use obelisk::volume::{self, write_labels};
use obelisk::weights::Model;

/// Says something that is seen of a test that passes.
fn tell(told: String) {
    let _ = writeln!(std::io::stderr(), "{told}");
}

/// A folder in memory, where the system has that: a disk would take minutes to sync thousands of files.
fn folder() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    match memory.is_dir() {
        true => tempfile::tempdir_in(memory).unwrap(),
        false => tempfile::tempdir().unwrap(),
    }
}

/// Two cases to train on and two that are held out, at 8 mm: a training takes milliseconds.
fn setup() -> (Dataset, TrainingData, Settings) {
    let (dataset, data) = samples(8, &[0, 1], &[2, 3]);
    let mut settings = Settings::new(dataset.folder.clone(), "obelisk");
    (settings.epochs, settings.batch, settings.validate_every) = (2, 1, 2);
    (settings.samples, settings.steps) = (Some(32), Some(2));
    (dataset, data, settings)
}

/// What `obelisk train` does in a run's folder, but for pictures.
fn run(
    device: &Device,
    settings: &Settings,
    data: &TrainingData,
    folder: &Path,
    resume: bool,
) -> Result<(), TrainError> {
    let _lock = RunFolder::lock(folder)?;
    let report = |_: Event| ControlFlow::Continue(());
    pollster::block_on(train(device, settings, data, folder, resume, report)).map(drop)
}

/// Every file below by its path from there, without what a crash left unfinished.
fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(inner) = folders.pop() {
        for entry in std::fs::read_dir(inner).into_iter().flatten() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false if path.extension().is_some_and(|e| e == "tmp") => {}
                false => {
                    let name = path.strip_prefix(folder).unwrap().to_owned();
                    found.insert(name, std::fs::read(path).unwrap());
                }
            }
        }
    }
    found
}

/// Trains until `report` says enough: epoch and steps of a training that was stopped.
fn stopped(
    device: &Device,
    settings: &Settings,
    data: &TrainingData,
    run: &Path,
    resume: bool,
    report: impl FnMut(Event) -> ControlFlow<()>,
) -> Option<(usize, usize)> {
    std::fs::create_dir_all(run).unwrap();
    match pollster::block_on(train(device, settings, data, run, resume, report)) {
        Ok(_) => None,
        Err(TrainError::Stopped { epoch, done, steps }) => {
            assert!(done > 0 && done <= steps, "{done} of {steps}");
            Some((epoch, done))
        }
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn a_training_stopped_anywhere_resumes_to_the_same_bytes() {
    let Some(device) = devices().get(1) else { return };
    let (_, data, mut sparse) = setup();
    (sparse.steps, sparse.validate_every) = (Some(3), 1);
    let mut dense = sparse.clone();
    (dense.steps, dense.samples) = (None, None);
    // With all that a step may carry to the next.
    (_, dense.augment) = Preset::Strong.parts();
    (dense.optimiser, dense.clip, dense.ema, dense.warm_up) = (Rule::Sgd, Some(1.0), Some(0.9), 1);
    for (settings, every, steps) in [(sparse, 1, 3), (dense, 3, 2)] {
        let folder = folder();
        let path = |run: &str| folder.path().join(run);
        let mut events = 0;
        let count = |event: Event| {
            events += usize::from(!matches!(event, Event::Resident(_)));
            ControlFlow::Continue(())
        };
        assert_eq!(
            stopped(device, &settings, &data, &path("whole"), false, count),
            None
        );
        let whole = files(&path("whole"));
        // The last event is the last epoch's end.
        assert_eq!(events, 2 * (steps + 2 + 1));
        let after = |most: usize| {
            let mut seen = 0;
            move |event: Event| {
                seen += usize::from(!matches!(event, Event::Resident(_)));
                match seen < most {
                    true => ControlFlow::Continue(()),
                    false => ControlFlow::Break(()),
                }
            }
        };
        let mut stops = BTreeSet::new();
        for event in (1..events).step_by(every) {
            let run = path(&event.to_string());
            let at = stopped(device, &settings, &data, &run, false, after(event));
            stops.extend(at);
            assert!(has_checkpoint(&run), "{event}: {at:?}");
            // Once more, soon after.
            stopped(device, &settings, &data, &run, true, after(1));
            let to_the_end = |_: Event| ControlFlow::Continue(());
            assert_eq!(stopped(device, &settings, &data, &run, true, to_the_end), None);
            let again = files(&run);
            for file in ["last.safetensors", "best.safetensors"].map(Path::new) {
                assert!(
                    again[file] == whole[file],
                    "stopped after event {event}, {at:?}: {file:?} differs"
                );
            }
            let losses = |files: &BTreeMap<PathBuf, Vec<u8>>| -> Vec<String> {
                let log = String::from_utf8(files[Path::new("log.csv")].clone()).unwrap();
                let column = |line: &str| line.split(',').nth(2).unwrap().to_owned();
                log.lines().map(column).collect()
            };
            assert_eq!(
                losses(&again),
                losses(&whole),
                "stopped after event {event}, {at:?}"
            );
        }
        // The step under way is finished first, so none stops after the first step.
        if every == 1 {
            assert_eq!(stops, BTreeSet::from([(1, 2), (1, 3), (2, 2), (2, 3)]));
        }
    }
}

#[test]
fn a_training_that_crashes_at_any_operation_goes_on_to_the_same_bytes() {
    let Some(device) = devices().get(1) else { return };
    let (_, data, settings) = setup();
    let folder = folder();
    let path = |name: &str| folder.path().join(name);
    let (whole, counts) = faults::with(None, || run(device, &settings, &data, &path("whole"), false));
    whole.unwrap();
    let whole = files(&path("whole"));
    let mut epochs_left = BTreeSet::new();
    for n in 1..=counts.operations {
        let crashed = path(&n.to_string());
        let (ended, _) = faults::with(Some(Fault::Crash(n)), || {
            run(device, &settings, &data, &crashed, false)
        });
        // What comes last is the folder's entry of the last file, which is there without it.
        assert_eq!(ended.is_ok(), n == counts.operations, "{n}: {ended:?}");
        let ended = ended.map_or_else(|e| e.to_string(), |()| String::new());
        assert!(
            ended.is_empty() || ended.contains(crashed.to_str().unwrap()),
            "{n}: {ended}"
        );
        for file in ["last.safetensors", "best.safetensors"] {
            if crashed.join(file).exists() {
                let model = Model::load(&crashed.join(file)).unwrap();
                epochs_left.insert(model.info.training.unwrap().epochs);
            }
        }
        run(device, &settings, &data, &crashed, true).unwrap();
        let again = files(&crashed);
        for file in ["last.safetensors", "best.safetensors"] {
            assert!(
                again[Path::new(file)] == whole[Path::new(file)],
                "{n}: {file} differs"
            );
        }
    }
    assert_eq!(epochs_left, BTreeSet::from([1, 2]));
    tell(format!(
        "{} crashes of a training, one at each operation, resumed to the same bytes",
        counts.operations
    ));
}

#[test]
fn a_fold_whose_disk_fails_at_any_operation_is_finished_by_the_same_call() {
    let Some(device) = devices().get(1) else { return };
    let (dataset, data, mut settings) = setup();
    (settings.fold, settings.epochs) = (Some(0), 1);
    let folder = folder();
    let job = Job {
        name: "row".into(),
        title: "row".into(),
        settings,
        folds: 2,
        weights: Epoch::Last,
        scoring: obelisk::metrics::Scoring::first(),
    };
    let run_fold = |out: &Path, anew: bool| {
        let report = |_: Event| ControlFlow::Continue(());
        let fold = job.run_fold(device, &dataset, &data, out, anew, report);
        pollster::block_on(fold).map(|(result, _)| result)
    };
    let scores = |result: &obelisk::crossval::FoldResult| -> Vec<_> {
        result
            .cases
            .iter()
            .map(|c| (c.case.clone(), c.scores.clone()))
            .collect()
    };
    let path = |name: &str| folder.path().join(name);
    let whole = path("whole");
    let (result, counts) = faults::with(None, || run_fold(&whole, false));
    let expected = result.unwrap();
    let mut failed = 0;
    for n in 1..=counts.operations {
        // Both at every operation would tell no more: their difference is what is left of the file at hand.
        let fault = if n % 2 == 0 {
            Fault::Full(n)
        } else {
            Fault::Crash(n)
        };
        let out = path(&n.to_string());
        let (ended, _) = faults::with(Some(fault), || run_fold(&out, false));
        if let Err(error) = ended {
            failed += 1;
            let error = error.to_string();
            assert!(error.contains(out.to_str().unwrap()), "{fault:?}: {error}");
        }
        for case in &expected.cases {
            let labels = prediction(&out, "row", &case.case);
            if labels.exists() {
                assert!(
                    std::fs::read(&labels).unwrap()
                        == std::fs::read(prediction(&whole, "row", &case.case)).unwrap(),
                    "{fault:?}"
                );
                volume::read(&labels).unwrap().labels().unwrap();
            }
        }
        assert_eq!(
            scores(&run_fold(&out, false).unwrap()),
            scores(&expected),
            "{fault:?}"
        );
    }
    assert!(failed > counts.operations / 2);
    tell(format!(
        "{failed} of {} operations of a cross-validation's fold failed",
        counts.operations
    ));

    // Whoever trains it anew, while another does, takes nothing away.
    let before = files(&whole);
    let _lock = RunFolder::lock(&job.run(&whole)).unwrap();
    let refused = run_fold(&whole, true).unwrap_err().to_string();
    assert!(refused.contains("another training"), "{refused}");
    assert!(files(&whole) == before);
    drop(_lock);
    assert_eq!(scores(&run_fold(&whole, true).unwrap()), scores(&expected));
    assert!(files(&whole) != before, "it took other seconds");
}

#[test]
fn results_stay_whole_where_the_disk_fails_at_any_operation() {
    let (dataset, _, _) = setup();
    let scan = dataset.image(&dataset.cases[0]).unwrap();
    let voxels = scan.geometry.shape.iter().product::<usize>();
    let weights = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/weights/hippocampus.safetensors");
    let model = Model::load(&weights).unwrap();
    // As `predict` writes them; `label` tells the new ones from the old.
    type Write<'a> = Box<dyn Fn(&Path, i32, bool) -> Result<(), Box<dyn std::error::Error>> + 'a>;
    let labels = |label: i32| vec![label; voxels];
    let writes: Vec<(&str, Write)> = vec![
        (
            "labels.nii.gz",
            Box::new(|path, label, force| Ok(write_labels(path, &labels(label), &scan.geometry, force)?)),
        ),
        (
            "logits.safetensors",
            Box::new(|path, label, force| {
                let logits = Tensor::from_fn(&[3, 4, 5, 6], |_| label as f32);
                let logits = [("logits".to_owned(), logits)].into();
                Ok(obelisk::weights::save(path, &model.info, &logits, force)?)
            }),
        ),
        (
            "points.csv",
            Box::new(|path, label, force| {
                let named = |e: std::io::Error| format!("{}: {e}", path.display());
                Ok(write_beside(path, label.to_string().as_bytes(), force).map_err(named)?)
            }),
        ),
        #[cfg(feature = "cli")]
        (
            "labels.png",
            Box::new(|path, label, force| {
                let names = &model.info.preprocessing.labels;
                Ok(obelisk::picture::overlay(
                    path,
                    &scan,
                    &labels(label),
                    None,
                    names,
                    force,
                )?)
            }),
        ),
    ];
    let folder = folder();
    let (mut operations, mut failed) = (0, 0);
    for (name, write) in &writes {
        let path = folder.path().join(name);
        let [(old, _), (new, counts)] = [0, 1].map(|label| {
            let (written, counts) = faults::with(None, || write(&path, label, true));
            written.unwrap();
            (std::fs::read(&path).unwrap(), counts)
        });
        assert!(old != new && counts.operations > 3, "{name}");
        operations += counts.operations;
        for n in 1..=counts.operations {
            for (fault, before) in [(Fault::Full(n), Some(&old)), (Fault::Crash(n), None)] {
                let inner = folder.path().join(format!("{fault:?} {name}"));
                std::fs::create_dir(&inner).unwrap();
                let path = inner.join(name);
                if let Some(before) = before {
                    std::fs::write(&path, before).unwrap();
                }
                let (written, _) = faults::with(Some(fault), || write(&path, 1, before.is_some()));
                if let Err(error) = written {
                    failed += 1;
                    assert!(
                        error.to_string().contains(path.to_str().unwrap()),
                        "{fault:?}: {error}"
                    );
                    // Whole, old or new.
                    let found = std::fs::read(&path).ok();
                    assert!(
                        found.as_ref() == before || found.as_ref() == Some(&new),
                        "{fault:?}: {name}"
                    );
                    write(&path, 1, true).unwrap();
                }
                assert!(std::fs::read(&path).unwrap() == new, "{fault:?}: {name}");
            }
        }
    }
    assert!(failed > operations);
    tell(format!(
        "{failed} failures at the {operations} operations of a prediction's files"
    ));
}

#[test]
fn logits_that_are_not_finite_are_an_error_that_names_the_layer() {
    let Some(device) = devices().get(1) else { return };
    let (dataset, data, settings) = setup();
    let network = find("obelisk").unwrap();
    let model = pollster::block_on(train_in_memory(device, &settings, &data, |_| {
        ControlFlow::Continue(())
    }))
    .unwrap();
    let scan = dataset.image(&dataset.cases[4]).unwrap();
    let mut small = scan.clone();
    (small.geometry.shape, small.geometry.spacing) = ([8; 3], [8.0; 3]);
    small.data.truncate(512);
    let (mut layers, mut of_small) = (BTreeSet::new(), 0);
    let weights: Vec<&String> = model
        .tensors
        .keys()
        .filter(|name| name.ends_with(".weight"))
        .collect();
    for name in &weights {
        let mut tensors = model.tensors.clone();
        tensors.get_mut(*name).unwrap().data.fill(1e38);
        // Where nothing is resampled logits stay on the device, whose labels tell.
        let outcomes = pollster::block_on(async {
            let mut predictor = Predictor::with_weights(device, &network, &data.preprocessing, &tensors)
                .await
                .unwrap();
            [
                predictor.labels(device, &scan).await,
                predictor.labels(device, &small).await,
                predictor.segment(device, &small).await.map(|(labels, _)| labels),
            ]
        });
        let [error, of_labels, of_logits] =
            outcomes.map(|outcome| outcome.err().map(|error| error.to_string()));
        assert_eq!(of_labels, of_logits, "{name}");
        of_small += usize::from(of_labels.is_some());
        // A layer may still give finite numbers from which the next makes others.
        let Some(error) = error else { continue };
        assert!(
            error.contains("the logits are not finite, first in the layer `"),
            "{name}: {error}"
        );
        if error.contains(&format!("`{}`", name.strip_suffix(".weight").unwrap())) {
            layers.insert(error);
        }
    }
    assert!(layers.len() > 2 && of_small > 2, "{layers:?} of {weights:?}");
}

#[cfg(feature = "cli")]
mod kills {
    use std::io::BufRead;
    use std::process::{Child, Command, Stdio};
    use std::time::{Duration, Instant};

    use super::*;
    use crate::program::{adapter, command, data, done};

    const EPOCHS: usize = 8;

    fn training(run: &Path, resume: bool) -> Command {
        let mut command = command();
        command.arg("train");
        match resume {
            true => command.arg("--resume"),
            false => command
                .arg(data())
                .args(["--arch", "obelisk", "--size", "8,8,8", "--spacing", "8,8,8"]),
        };
        if !resume {
            let epochs = EPOCHS.to_string();
            command.args([
                "--epochs",
                &epochs,
                "--steps",
                "3",
                "--batch",
                "1",
                "--samples",
                "32",
            ]);
        }
        command
            .arg("--out")
            .arg(run)
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        command
    }

    /// Seconds of a program until it ends by itself, or `None` where it is killed after so many.
    fn seconds(mut command: Command, most: f64) -> Option<f64> {
        let start = Instant::now();
        let mut child: Child = command.stderr(Stdio::null()).spawn().unwrap();
        loop {
            let seconds = start.elapsed().as_secs_f64();
            if let Some(status) = child.try_wait().unwrap() {
                assert!(status.success(), "{status}");
                return Some(seconds);
            }
            if seconds >= most {
                child.kill().unwrap();
                child.wait().unwrap();
                return None;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn weights(run: &Path) -> [Vec<u8>; 2] {
        ["last.safetensors", "best.safetensors"].map(|name| std::fs::read(run.join(name)).unwrap())
    }

    /// Numbers in [0, 1), the same for the same seed.
    fn random(state: &mut u64) -> f64 {
        *state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (*state >> 11) as f64 / (1u64 << 53) as f64
    }

    fn killed(kills: usize, seed: u64) {
        if !adapter() {
            return;
        }
        let folder = folder();
        let path = |run: usize| folder.path().join(run.to_string());
        // The first compiles the kernels, the second is what a kill is a part of.
        done(&training(&path(0), false).output().unwrap());
        let whole = seconds(training(&path(1), false), f64::INFINITY).unwrap();
        assert!(weights(&path(1)) == weights(&path(0)));
        let (mut state, mut run, mut done, mut finished) = (seed, 2, 0, 0);
        let resume = |run: usize| path(run).join("config.toml").exists();
        while done < kills {
            let most = whole * random(&mut state);
            match seconds(training(&path(run), resume(run)), most) {
                None => done += 1,
                Some(_) => {
                    assert!(weights(&path(run)) == weights(&path(0)), "seed {seed}, run {run}");
                    (run, finished) = (run + 1, finished + 1);
                }
            }
        }
        seconds(training(&path(run), resume(run)), f64::INFINITY).unwrap();
        assert!(weights(&path(run)) == weights(&path(0)), "seed {seed}, run {run}");
        tell(format!(
            "{kills} kills (seed {seed}) within {whole:.1} s of a training, which was resumed to the same bytes {} times",
            finished + 1
        ));
    }

    #[test]
    fn a_training_killed_at_random_moments_is_resumed_to_the_same_bytes() {
        killed(5, 1);
    }

    /// `cargo test --release --test suite -- --ignored kills::`
    #[test]
    #[ignore = "a minute; five kills are made anyway"]
    fn a_training_killed_twenty_times_is_resumed_to_the_same_bytes() {
        killed(20, 2);
    }

    #[cfg(unix)]
    #[test]
    fn a_training_that_hears_a_signal_saves_and_is_resumed_to_the_same_bytes() {
        if !adapter() {
            return;
        }
        let folder = folder();
        let path = |run: &str| folder.path().join(run);
        done(&training(&path("whole"), false).output().unwrap());
        for (signal, code) in [("-INT", 130), ("-TERM", 143)] {
            let run = path(signal);
            let mut child = training(&run, false).spawn().unwrap();
            let mut told = std::io::BufReader::new(child.stderr.take().unwrap())
                .lines()
                .map(Result::unwrap);
            told.find(|line| line.starts_with("epoch 3/"))
                .expect("three epochs");
            let kill = Command::new("kill")
                .args([signal, &child.id().to_string()])
                .status();
            assert!(kill.unwrap().success());
            let told: Vec<String> = told.collect();
            assert_eq!(child.wait().unwrap().code(), Some(code), "{told:?}");
            let last = told.last().unwrap();
            assert!(
                last.contains("stopped in epoch") && last.contains("--resume"),
                "{told:?}"
            );
            done(&training(&run, true).output().unwrap());
            assert!(weights(&run) == weights(&path("whole")), "{signal}");
        }
    }
}

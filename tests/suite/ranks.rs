//! Steps over several batches, on one process and on several. Threads stand for the processes, channels for what carries their
//! messages; `mpi.rs` has real ones.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};

use crate::common::*;

use obelisk::gpu::{Device, Executable, Weights};
use obelisk::model::find;
use obelisk::op::StepScalars;
use obelisk::plan::Plan;

use obelisk::tensor::Tensor;
use obelisk::train::{
    Alone, Event, Exchange, ExchangeError, Preset, Schedule, Settings, TrainError, TrainingData, train,
    train_in_memory, train_on_ranks, training_graph,
};
use obelisk::weights::{Model, initialise};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

/// A thread's end of the channels from and to all others.
struct Channels {
    rank: usize,
    to: Vec<Sender<Vec<u8>>>,
    from: Vec<Receiver<Vec<u8>>>,
    /// After so many exchanges it ends as a killed process does: without a word.
    lives: Option<usize>,
}

impl Exchange for Channels {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.to.len()
    }

    fn exchange(&mut self, parts: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>, ExchangeError> {
        let gone = |rank| ExchangeError {
            rank,
            what: "has ended".into(),
        };
        if let Some(lives) = &mut self.lives {
            *lives = lives.checked_sub(1).ok_or_else(|| gone(self.rank))?;
        }
        for (rank, part) in parts.into_iter().enumerate() {
            self.to[rank].send(part).map_err(|_| gone(rank))?;
        }
        let received = self.from.iter().enumerate();
        received
            .map(|(rank, from)| from.recv().map_err(|_| gone(rank)))
            .collect()
    }
}

/// What `work` gives on each of so many threads that are connected.
fn on_ranks<T: Send>(size: usize, work: impl Fn(Channels) -> T + Sync) -> Vec<T> {
    let mut ends: Vec<Channels> = (0..size)
        .map(|rank| Channels {
            rank,
            to: Vec::new(),
            from: Vec::new(),
            lives: None,
        })
        .collect();
    for sender in 0..size {
        for receiver in 0..size {
            let (to, from) = channel();
            ends[sender].to.push(to);
            ends[receiver].from.push(from);
        }
    }
    std::thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = ends
            .into_iter()
            .map(|end| scope.spawn(move || work(end)))
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// Six cases to train on and three that are held out, on a cube of so many voxels a side: a step takes milliseconds.
fn data(side: usize) -> TrainingData {
    samples(side, &[0, 1, 2, 3, 4, 5], &[6, 7, 8]).1
}

/// Two epochs of a step of four batches, sparse, and of three steps of two, dense.
fn settings() -> [Settings; 2] {
    let mut sparse = Settings::new(examples(), "obelisk");
    (sparse.epochs, sparse.batch, sparse.accumulate) = (2, 1, 4);
    (sparse.samples, sparse.steps) = (Some(32), Some(9));
    let mut dense = Settings::dense(examples(), "obelisk-hybrid");
    (dense.epochs, dense.batch, dense.accumulate) = (2, 1, 2);
    (_, dense.augment) = Preset::Nnunet.parts();
    (dense.clip, dense.ema) = (Some(1.0), Some(0.9));
    [sparse, dense]
}

fn go_on(_: Event) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// Trains on so many ranks; `report` hears of each with its number.
fn run_on(
    device: &Device,
    settings: &Settings,
    data: &TrainingData,
    run: &Path,
    resume: bool,
    size: usize,
    report: impl Fn(usize, Event) -> ControlFlow<()> + Sync,
) -> Vec<Result<(), TrainError>> {
    on_ranks(size, |mut end| {
        let rank = end.rank;
        let report = |event: Event| report(rank, event);
        let trained = train_on_ranks(device, settings, data, run, resume, &mut end, report);
        pollster::block_on(trained).map(drop)
    })
}

fn weights(run: &Path) -> [Vec<u8>; 2] {
    ["last", "best"].map(|name| std::fs::read(run.join(format!("{name}.safetensors"))).unwrap())
}

#[test]
fn any_number_of_ranks_gives_the_bytes_of_one_process() {
    let Some(device) = devices().get(1) else { return };
    for settings in settings() {
        let data = data(if settings.samples.is_some() { 8 } else { 24 });
        let arch = &settings.arch;
        let alone = tempfile::tempdir().unwrap();
        let log = pollster::block_on(train(device, &settings, &data, alone.path(), false, go_on)).unwrap();
        assert_eq!(log.len(), 2);
        for size in [2, 4] {
            if !settings.accumulate.is_multiple_of(size) {
                continue;
            }
            let run = tempfile::tempdir().unwrap();
            let trained = run_on(device, &settings, &data, run.path(), false, size, |_, e| go_on(e));
            trained.into_iter().for_each(|rank| rank.unwrap());
            assert!(
                weights(run.path()) == weights(alone.path()),
                "{arch} on {size} ranks"
            );

            // One rank wants to stop in the second epoch; another number of ranks goes on from there.
            let run = tempfile::tempdir().unwrap();
            let stop = |rank: usize, event: Event| match event {
                Event::Step { epoch: 2, .. } if rank == 1 => ControlFlow::Break(()),
                _ => ControlFlow::Continue(()),
            };
            let stopped = run_on(device, &settings, &data, run.path(), false, size, stop);
            for rank in stopped {
                let stopped =
                    matches!(rank, Err(TrainError::Stopped { epoch: 2, done, steps }) if done <= steps);
                assert!(stopped, "{arch} on {size} ranks: {rank:?}");
            }
            let resumed = run_on(device, &settings, &data, run.path(), true, size / 2, |_, e| {
                go_on(e)
            });
            resumed.into_iter().for_each(|rank| rank.unwrap());
            assert!(weights(run.path()) == weights(alone.path()), "{arch} resumed");
        }
        let memory = pollster::block_on(train_in_memory(device, &settings, &data, go_on)).unwrap();
        let last = Model::load(&alone.path().join("last.safetensors")).unwrap();
        assert!(memory.tensors == last.tensors, "{arch} in memory");
    }
}

#[test]
fn a_step_takes_the_mean_of_what_its_batches_give() {
    let Some(device) = devices().get(1) else { return };
    let mut data = data(24);
    data.training.truncate(3);
    let mut settings = Settings::dense(examples(), "obelisk-hybrid");
    (settings.epochs, settings.batch, settings.accumulate) = (1, 1, 3);
    (settings.affine, settings.schedule, settings.weight_decay) = (0.0, Schedule::Exponential, 0.0);
    let run = tempfile::tempdir().unwrap();
    let mut losses = Vec::new();
    let report = |event: Event| {
        if let Event::Step { loss, steps, .. } = event {
            losses.push((loss, steps));
        }
        ControlFlow::Continue(())
    };
    pollster::block_on(train(device, &settings, &data, run.path(), false, report)).unwrap();
    let checkpoint = read_tensors(&run.path().join("checkpoint.safetensors"));

    // Each case by itself from the same weights, without changing them.
    let network = find(&settings.arch).unwrap();
    let [channels, d, h, w] = data.training[0].image.shape[..] else {
        panic!()
    };
    let grid = data.preprocessing.grid.unwrap();
    assert!(
        [d, h, w].iter().zip(grid).all(|(n, g)| *n <= g),
        "a case fits the grid"
    );
    let classes = data.preprocessing.labels.len();
    let shape = [1, channels, grid[0], grid[1], grid[2]];
    let graph = training_graph(&network, shape, classes, settings.loss, false).unwrap();
    let start = initialise(&graph, settings.seed);
    let mut found: Vec<HashMap<String, Tensor>> = Vec::new();
    let mut mean_loss = 0.0;
    for case in &data.training {
        let plan = Plan::new(&graph, device.caps()).unwrap();
        let step = StepScalars {
            learning_rate: 0.0,
            ..StepScalars::default()
        };
        let (image, labels) = case.crop(grid, &mut ChaCha8Rng::seed_from_u64(0));
        let tensors = pollster::block_on(async {
            let weights = Weights::new(device, &plan, true).await.unwrap();
            weights.upload(device, &start).unwrap();
            let executable = Executable::new(device, plan, &weights).await.unwrap();
            let image = Tensor::new(&shape, image.data);
            executable.upload(device, "image", &image).unwrap();
            let labels = Tensor::new(&[1, 1, grid[0], grid[1], grid[2]], labels.data);
            executable.upload(device, "labels", &labels).unwrap();
            executable.submit(device, &step).unwrap();
            mean_loss += executable.read(device, "loss").await.unwrap().data[0] / 3.0;
            let mut tensors = weights.download(device).await.unwrap();
            let gradients = weights.download_gradients(device).await.unwrap();
            tensors.extend(gradients.into_iter().map(|(name, t)| (format!("d {name}"), t)));
            tensors
        });
        found.push(tensors.into_iter().collect());
    }
    let mean = |name: &str, i: usize| found.iter().map(|t| f64::from(t[name].data[i])).sum::<f64>() / 3.0;
    let (mut moments, mut statistics) = (0, 0);
    for (name, tensor) in &checkpoint {
        let (of, scale) = match name.strip_prefix("adam.0.") {
            Some(parameter) => (format!("d {parameter}"), 0.1),
            None if name.contains("running_") => (name.clone(), 1.0),
            None => continue,
        };
        let largest = found[0][&of].data.iter().fold(0f32, |m, v| m.max(v.abs()));
        for (i, value) in tensor.data.iter().enumerate() {
            let expected = scale * mean(&of, i);
            let error = (f64::from(*value) - expected).abs();
            assert!(
                error <= 1e-6 * f64::from(largest),
                "{name}[{i}]: {value}, not {expected}"
            );
        }
        *if scale < 1.0 {
            &mut moments
        } else {
            &mut statistics
        } += 1;
    }
    assert!(moments > 10 && statistics > 10, "{moments} and {statistics}");
    assert_eq!(losses.len(), 1);
    assert!(
        losses[0].1 == 1 && (losses[0].0 - mean_loss).abs() < 1e-5,
        "{losses:?}, {mean_loss}"
    );
}

#[test]
fn equal_batches_make_the_step_of_one() {
    let Some(device) = devices().get(1) else { return };
    let mut data = data(24);
    let case = data.training.remove(0);
    let cases = |count: usize| TrainingData {
        training: vec![case.clone(); count],
        ..data.clone()
    };
    let mut settings = Settings::dense(examples(), "obelisk-hybrid");
    (settings.epochs, settings.batch, settings.affine) = (2, 1, 0.0);
    let train = |settings: &Settings, data: &TrainingData| {
        let model = train_in_memory(device, settings, data, go_on);
        pollster::block_on(model).unwrap().tensors
    };
    let one = train(&settings, &cases(1));
    settings.accumulate = 4;
    assert!(train(&settings, &cases(4)) == one);
    // What does not fill a step is left out.
    assert!(train(&settings, &cases(7)) == one);
    let few = pollster::block_on(train_in_memory(device, &settings, &cases(3), go_on)).unwrap_err();
    assert_eq!(few.to_string(), "3 training cases don't fill a step of 4");
}

#[test]
fn a_training_on_ranks_that_diverges_names_the_batch() {
    let Some(device) = devices().get(1) else { return };
    let mut data = data(8);
    let [mut sparse, _] = settings();
    let bad = data.training[2].id.clone();
    data.training[2].image.data.fill(f32::NAN);
    sparse.batch = 2;
    for size in [1, 2, 4] {
        let run = tempfile::tempdir().unwrap();
        for rank in run_on(device, &sparse, &data, run.path(), false, size, |_, e| go_on(e)) {
            let Err(TrainError::Diverged {
                step, cases, what, ..
            }) = rank
            else {
                panic!("{rank:?}")
            };
            assert!(
                step == 1 && cases.len() == 2 && cases.contains(&bad),
                "{step} {cases:?}"
            );
            assert!(what.starts_with("the loss is NaN, first in "), "{what}");
        }
        assert_eq!(std::fs::read_dir(run.path()).unwrap().count(), 0);
    }
}

#[test]
fn what_a_rank_leaves_goes_on_to_the_same_bytes() {
    let Some(device) = devices().get(1) else { return };
    let data = data(8);
    let [sparse, _] = settings();
    let alone = tempfile::tempdir().unwrap();
    pollster::block_on(train(device, &sparse, &data, alone.path(), false, go_on)).unwrap();
    // The start; in an epoch two steps of two rounds and their means, a comparison and a validation.
    let epoch = 2 * 3 + 2;
    for lives in [
        0,
        1,
        3,
        epoch - 1,
        epoch,
        epoch + 1,
        epoch + 4,
        2 * epoch,
        2 * epoch + 1,
    ] {
        let run = tempfile::tempdir().unwrap();
        let ranks = on_ranks(2, |mut end| {
            let rank = end.rank;
            end.lives = (rank == 1).then_some(lives);
            let trained = train_on_ranks(device, &sparse, &data, run.path(), false, &mut end, go_on);
            pollster::block_on(trained).map(drop)
        });
        let is_done = lives == 2 * epoch + 1;
        assert!(
            ranks.iter().all(|rank| rank.is_ok() == is_done),
            "{lives}: {ranks:?}"
        );
        match &ranks[0] {
            Err(error @ TrainError::Exchange(gone)) => {
                assert_eq!(gone.rank, 1);
                assert_eq!(error.to_string(), "rank 1 has ended");
            }
            other => assert!(is_done, "{other:?}"),
        }
        // Rank 0 goes on alone.
        pollster::block_on(train(device, &sparse, &data, run.path(), true, go_on)).unwrap();
        assert!(
            weights(run.path()) == weights(alone.path()),
            "after {lives} exchanges"
        );
    }
}

#[test]
fn ranks_that_don_t_fit_together_are_refused() {
    let Some(device) = devices().get(1) else { return };
    let data = data(8);
    let [sparse, _] = settings();
    let run = tempfile::tempdir().unwrap();
    for rank in run_on(device, &sparse, &data, run.path(), false, 3, |_, e| go_on(e)) {
        let refusal = rank.unwrap_err().to_string();
        assert_eq!(
            refusal,
            "a step takes 4 batches, which 3 ranks can't divide evenly"
        );
    }
    // A rank that starts from other weights, as if its adapter computed differently.
    let differing = on_ranks(2, |mut end| {
        let mut own = sparse.clone();
        own.seed += end.rank as u64;
        let trained = train_on_ranks(device, &own, &data, run.path(), false, &mut end, go_on);
        pollster::block_on(trained).map(drop)
    });
    for rank in differing {
        let refusal = rank.unwrap_err();
        assert!(
            matches!(refusal, TrainError::Differs { rank: 1, .. }),
            "{refusal}"
        );
        assert!(refusal.to_string().contains("after epoch 1"), "{refusal}");
    }
    // A rank that sees no checkpoint where the others do.
    let seen = tempfile::tempdir().unwrap();
    pollster::block_on(train(device, &sparse, &data, seen.path(), false, go_on)).unwrap();
    let differing = on_ranks(2, |mut end| {
        let folder = [seen.path(), run.path()][end.rank];
        let trained = train_on_ranks(device, &sparse, &data, folder, true, &mut end, go_on);
        pollster::block_on(trained).map(drop)
    });
    for rank in differing {
        let refusal = rank.unwrap_err().to_string();
        assert!(refusal.contains("rank 1 has another checkpoint"), "{refusal}");
    }
    assert_eq!(Alone.gather(vec![7]).unwrap(), [[7]]);
}

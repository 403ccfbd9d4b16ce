//! Training: settings, the graph of one step, the loop over epochs, validation, checkpoints and resuming.

mod accumulate;
mod augment;
mod checkpoint;
mod data;
mod dense;
mod exchange;
mod graph;
mod lock;
mod log;
#[cfg(all(feature = "mpi", unix))]
pub mod mpi;
mod settings;
mod sparse;
mod start;
#[cfg(feature = "cli")]
pub mod tensorboard;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};
use std::pin::Pin;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use serde::{Deserialize, Serialize};
use web_time::Instant;

pub use self::augment::{Augment, Axes, Part, Preset};
pub use self::lock::RunFolder;
pub use self::log::{EpochRecord, best_epoch};
pub use checkpoint::{checkpointed, has_checkpoint, logged, remove_checkpoints};
pub use data::{TrainingCase, TrainingData, ValidationCase};
pub use exchange::{Alone, Exchange, ExchangeError};
pub use graph::{add_loss, training_graph};
pub use settings::{Loss, Rule, Schedule, Settings};
pub use sparse::{Residents, sparse_training_graph};

use self::log::log_csv;
use accumulate::{Ranks, mean};
use checkpoint::{Begun, CheckpointRecord, Checkpoints};
use data::label_counts;
use dense::Dense;
use graph::{Recipe, dense_graph};
use sparse::{Sparse, sparse_graph};
use start::initial;

use crate::evaluate::Report;
use crate::file::write_beside;
use crate::finite::{Search, first_in};
use crate::gpu::{Device, Executable, GpuError, Reading, Weights};
use crate::graph::{Graph, GraphError};
use crate::host_memory::{self, TooLarge};
use crate::metrics::{self, Comparison, LabelScores, METRICS, Scoring};
use crate::model;
use crate::offsets;
use crate::op::StepScalars;
use crate::op::cross_entropy::class_weights;
use crate::plan::Plan;
use crate::predict::{Keep, PredictError, Predictor, plan as plan_of};
use crate::preprocess::{Preprocessing, check_tiles, tiles};
use crate::tensor::Tensor;
use crate::weights::{self, Model, ModelInfo, TrainingRecord, WeightsError};

/// What can go wrong while training.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// The settings or the dataset don't allow it.
    #[error("{0}")]
    Settings(String),
    /// Nothing says on which grid to train.
    #[error("training needs a grid")]
    NoGrid,
    /// Fewer cases than a step takes.
    #[error("{cases} training cases don't fill a step of {step}")]
    FewCases {
        /// Cases to train on.
        cases: usize,
        /// Cases of a step.
        step: usize,
    },
    /// A loss, or what a step made of the weights, is not finite any more. No such weights have been written.
    #[error("the training diverged: {what} after step {step} of epoch {epoch}, on {}", .cases.join(", "))]
    Diverged {
        /// Epoch, from 1.
        epoch: usize,
        /// Step of the epoch, from 1.
        step: usize,
        /// Ids of the cases of that step.
        cases: Vec<String>,
        /// What is not finite.
        what: String,
    },
    /// The caller stopped the training. Its checkpoint has every step that was done.
    #[error("stopped in epoch {epoch} after {done} of {steps} steps")]
    Stopped {
        /// Epoch, from 1.
        epoch: usize,
        /// Steps of the epoch that are done.
        done: usize,
        /// Steps of an epoch.
        steps: usize,
    },
    /// Another process trains into the folder.
    #[error("another training is writing into {}", .run.display())]
    Locked {
        /// The folder.
        run: PathBuf,
    },
    /// A file of the run can't be read or written.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// A file of the run can't be written.
    #[error("{}: {cause}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: std::io::Error,
    },
    /// The network can't be built or planned.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// There is no memory for a step, with what stays on the device.
    #[error("there is no room for a training step: {cause}{}", fits.as_ref().map_or(String::new(), |f| format!("; {f} would fit")))]
    Memory {
        /// How much is needed, and how much there is.
        #[source]
        cause: TooLarge,
        /// A smaller step that there is memory for.
        fits: Option<String>,
    },
    /// Another rank is gone.
    #[error(transparent)]
    Exchange(#[from] ExchangeError),
    /// A rank has not what the others have.
    #[error("rank {rank} has {what}")]
    Differs {
        /// The first that differs from rank 0.
        rank: usize,
        /// What it has.
        what: String,
    },
    /// Validation failed.
    #[error(transparent)]
    Predict(#[from] PredictError),
    /// The device failed.
    #[error(transparent)]
    Gpu(#[from] GpuError),
}

/// The progress of a training, as its caller hears of it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// The scans of a sparse training are on the device.
    Resident(Residents),
    /// A step is done.
    Step {
        /// Epoch, from 1.
        epoch: usize,
        /// Steps of this epoch done.
        done: usize,
        /// Steps of an epoch.
        steps: usize,
        /// This step's loss.
        loss: f32,
        /// This step's learning rate.
        learning_rate: f32,
    },
    /// Cases of the validation done.
    Validation {
        /// Done so far.
        done: usize,
        /// In all.
        cases: usize,
    },
    /// An epoch is done and its files are written.
    Epoch(&'a EpochRecord),
}

/// What differs between dense and sparse training: a step's graph, and what is uploaded before it.
enum Feed<'a> {
    Dense(Dense<'a>),
    Sparse(Sparse<'a>),
}

impl<'a> Feed<'a> {
    /// Dense or sparse, as the settings say; with what stays on the device.
    async fn new(
        device: &Device,
        network: &model::Network,
        settings: &'a Settings,
        data: &'a TrainingData,
        grid: [usize; 3],
    ) -> Result<(Self, Option<Residents>), TrainError> {
        Ok(match settings.samples {
            None => (Feed::Dense(Dense::new(settings, data, grid)?), None),
            Some(samples) => {
                let (sparse, residents) = Sparse::new(device, network, settings, data, grid, samples).await?;
                (Feed::Sparse(sparse), Some(residents))
            }
        })
    }

    /// Batches of an epoch.
    fn batches(&self) -> usize {
        match self {
            Feed::Dense(dense) => dense.batches(),
            Feed::Sparse(sparse) => sparse.batches(),
        }
    }

    /// The cases of a batch.
    fn cases(&self, epoch: usize, position: usize) -> Vec<usize> {
        match self {
            Feed::Dense(dense) => dense.cases(epoch, position),
            Feed::Sparse(sparse) => sparse.cases(epoch * sparse.batches() + position),
        }
    }

    /// Uploads what a batch of an epoch sees; the same whatever ran before.
    async fn upload(
        &self,
        device: &Device,
        executable: &mut Executable,
        epoch: usize,
        position: usize,
    ) -> Result<(), TrainError> {
        match self {
            Feed::Dense(dense) => dense.upload(device, executable, epoch, position),
            Feed::Sparse(sparse) => {
                sparse
                    .upload(device, executable, epoch * sparse.batches() + position)
                    .await
            }
        }
    }
}

/// A step's loss: on its way, or there.
enum StepLoss {
    Read(Reading),
    Known(f32),
}

/// What every step of a training needs.
struct Steps<'a> {
    device: &'a Device,
    settings: &'a Settings,
    data: &'a TrainingData,
    feed: Feed<'a>,
    class_weights: Option<Tensor>,
}

impl Steps<'_> {
    /// Steps of an epoch; batches that don't fill one more are left out.
    fn steps(&self) -> usize {
        self.feed.batches() / self.settings.accumulate
    }

    /// The batches of a step, in their epoch.
    fn batches(&self, step: usize) -> Range<usize> {
        let count = self.settings.accumulate;
        step * count..(step + 1) * count
    }

    /// Whether a step is one submission; else its batches' gradients are added on the host.
    fn is_whole(&self) -> bool {
        self.settings.accumulate == 1
    }

    /// Uploads what a batch of an epoch sees.
    async fn upload(
        &self,
        executable: &mut Executable,
        (epoch, position): (usize, usize),
    ) -> Result<(), TrainError> {
        self.feed.upload(self.device, executable, epoch, position).await?;
        if let Some(weights) = &self.class_weights {
            // Every step: an input's memory serves other values once its readers are done.
            executable.upload(self.device, "class_weights", weights)?;
        }
        Ok(())
    }

    /// The numbers of a step's update; where it is one batch, of the whole step.
    fn scalars(&self, (epoch, position): (usize, usize)) -> StepScalars {
        let steps = self.steps();
        let step = epoch * steps + position;
        StepScalars {
            step: step as u32,
            seed: self.settings.seed as u32,
            learning_rate: self.settings.rate(step, steps),
            weight_decay: self.settings.weight_decay,
        }
    }

    /// The numbers of a batch, whose random streams are those that it has as a step of its own.
    fn batch_scalars(&self, (epoch, batch): (usize, usize)) -> StepScalars {
        StepScalars {
            step: (epoch * self.feed.batches() + batch) as u32,
            ..self.scalars((epoch, batch / self.settings.accumulate))
        }
    }

    /// The error of a batch whose loss is not finite; `tensors` are the weights before it, where they are known.
    async fn not_finite(
        &self,
        loss: f32,
        tensors: Option<&HashMap<String, Tensor>>,
        at: (usize, usize),
    ) -> TrainError {
        let layer = match tensors {
            Some(tensors) => self.first_not_finite(tensors, at).await,
            None => None,
        };
        let (epoch, batch) = at;
        let what = format!("the loss is {loss}{}", first_in(&layer));
        self.diverged(epoch, batch..batch + 1, what)
    }

    /// What is not finite first in a batch on these weights, in words; `None` where it is not found.
    async fn first_not_finite(
        &self,
        tensors: &HashMap<String, Tensor>,
        at: (usize, usize),
    ) -> Option<String> {
        let graph = step_graph(self.settings, &self.data.preprocessing).ok()?;
        let mut search = Search::new(self.device, &graph, tensors).await.ok()?;
        self.upload(search.executable(), at).await.ok()?;
        search.run(self.device, &self.batch_scalars(at)).await.ok()?
    }

    /// The weights before a step, from what they, and the moments, were before an earlier one of its epoch: the steps between
    /// are done again, with the same numbers.
    async fn weights_before(
        &self,
        executable: &mut Executable,
        weights: &Weights,
        (known, first): (HashMap<String, Tensor>, usize),
        (epoch, position): (usize, usize),
    ) -> Result<HashMap<String, Tensor>, TrainError> {
        tracing::warn!(
            "a loss is not finite; {} steps again, to find where",
            position - first
        );
        weights.upload(self.device, &known)?;
        weights.upload_moments(self.device, &known)?;
        for again in first..position {
            self.upload(executable, (epoch, again)).await?;
            executable.submit(self.device, &self.scalars((epoch, again)))?;
        }
        Ok(weights.download(self.device).await?.into_iter().collect())
    }

    /// The error of batches of a step at which `what` is not finite.
    fn diverged(&self, epoch: usize, batches: Range<usize>, what: String) -> TrainError {
        let step = batches.start / self.settings.accumulate + 1;
        let cases = batches.flat_map(|batch| self.feed.cases(epoch, batch));
        TrainError::Diverged {
            epoch: epoch + 1,
            step,
            cases: cases.map(|case| self.data.training[case].id.clone()).collect(),
            what,
        }
    }

    /// Uploads what a step sees, submits it with these numbers, and reads its loss, whatever it is.
    async fn run(
        &self,
        executable: &mut Executable,
        at: (usize, usize),
        scalars: &StepScalars,
    ) -> Result<f32, TrainError> {
        self.upload(executable, at).await?;
        executable.submit(self.device, scalars)?;
        Ok(executable.read(self.device, "loss").await?.data[0])
    }

    /// The loss of a step, after it; where a batch's is not finite, the error that says where.
    async fn accumulated(
        &self,
        executable: &mut Executable,
        weights: &Weights,
        ranks: &mut Ranks<'_>,
        at @ (epoch, step): (usize, usize),
        update: bool,
    ) -> Result<f32, TrainError> {
        let losses = self.accumulate(executable, weights, ranks, at, update).await?;
        let Some(bad) = losses.iter().position(|loss| !loss.is_finite()) else {
            return Ok(mean(&losses));
        };
        // Such a step changes nothing.
        let tensors = weights.download(self.device).await?.into_iter().collect();
        let batch = self.batches(step).start + bad;
        Err(self.not_finite(losses[bad], Some(&tensors), (epoch, batch)).await)
    }

    /// Whether the loss that the weights have after a step is finite: the step once more, without changing them. `tensors` are
    /// what they are.
    async fn check_loss(
        &self,
        executable: &mut Executable,
        weights: &Weights,
        ranks: &mut Ranks<'_>,
        tensors: &HashMap<String, Tensor>,
        at: (usize, usize),
    ) -> Result<(), TrainError> {
        if !self.is_whole() {
            self.accumulated(executable, weights, ranks, at, false).await?;
            return Ok(());
        }
        let still = StepScalars {
            learning_rate: 0.0,
            ..self.scalars(at)
        };
        let loss = self.run(executable, at, &still).await?;
        match loss.is_finite() {
            true => Ok(()),
            false => Err(self.not_finite(loss, Some(tensors), at).await),
        }
    }
}

/// What an epoch left, until it is known to be good: weights whose loss is finite replace older ones.
struct Trained {
    /// What is predicted with: the weights or, where a training keeps them, their averages.
    model: Model,
    /// The weights, where the model has averages.
    weights: Option<HashMap<String, Tensor>>,
    /// Of the optimiser, with the averages.
    moments: Vec<(String, Tensor)>,
    /// Whether no epoch before was better.
    better: bool,
}

impl Trained {
    /// Writes the run's files.
    fn write(
        self,
        run: &Path,
        record: &CheckpointRecord,
        checkpoints: &mut Checkpoints,
    ) -> Result<(), TrainError> {
        if self.better {
            self.model.save(&run.join("best.safetensors"), true)?;
        }
        self.model.save(&run.join("last.safetensors"), true)?;
        let log = log_csv(&record.log, &self.model.info.preprocessing);
        write(&run.join("log.csv"), log.as_bytes())?;
        // Last: whatever is interrupted before it is done again by the resumed run.
        Ok(checkpoints.save(record, &self.into_tensors())?)
    }

    /// The weights that the next step changes.
    fn weights(&self) -> &HashMap<String, Tensor> {
        self.weights.as_ref().unwrap_or(&self.model.tensors)
    }

    /// Weights and moments.
    fn into_tensors(self) -> HashMap<String, Tensor> {
        let mut tensors = self.weights.unwrap_or(self.model.tensors);
        tensors.extend(self.moments);
        tensors
    }
}

/// Trains a network and fills the run's folder: `log.csv`, `last.safetensors`, `best.safetensors`, and the last two
/// checkpoints, from which `resume` goes on (from the start where there is none, with a warning). Returns the log.
///
/// An epoch's files are written once the next step's loss has shown that its weights are good; after the last epoch, once
/// its validation has, or the loss of one more step that changes nothing. A training that diverges leaves the files of
/// the last good epoch, and may be resumed with a lower learning rate.
///
/// `report` hears of each step and of each validated case. `Break` ends the training after the step that is under way, with
/// a checkpoint: resumed, it gives the bytes of one that was never stopped. After a device that was lost
/// ([`Device::is_lost`]) it may be resumed on another from the last epoch that is done.
///
/// # Errors
/// Settings, data or files that don't fit, forms in the settings that are not the device's among them, the device's
/// failures, and [`TrainError::Stopped`].
pub async fn train(
    device: &Device,
    settings: &Settings,
    data: &TrainingData,
    run: &Path,
    resume: bool,
    report: impl FnMut(Event) -> ControlFlow<()>,
) -> Result<Vec<EpochRecord>, TrainError> {
    train_on_ranks(device, settings, data, run, resume, &mut Alone, report).await
}

/// [`train`] on several processes, each with a device of its own of the same kind: of a step's batches
/// ([`Settings::accumulate`], a multiple of the ranks), rank r of N computes every Nth from the rth on, and so it scores every
/// Nth held-out case. The weights are those of one process, byte for byte; therefore another number of ranks may resume.
///
/// The same settings and data are every rank's, and all see the run's folder, into which rank 0 writes. Each `report` hears of
/// what its rank does; where one breaks, all stop after the same step.
///
/// # Errors
/// As [`train`], with [`TrainError::Exchange`] where a rank is gone and [`TrainError::Differs`] where the ranks' weights do.
pub async fn train_on_ranks(
    device: &Device,
    settings: &Settings,
    data: &TrainingData,
    run: &Path,
    resume: bool,
    exchange: &mut dyn Exchange,
    mut report: impl FnMut(Event) -> ControlFlow<()>,
) -> Result<Vec<EpochRecord>, TrainError> {
    task_on_ranks(device, settings, data, (run, resume), exchange, &mut report).await
}

/// A caller's report, as trainings hear it.
type Listener<'r> = &'r mut dyn FnMut(Event) -> ControlFlow<()>;
type Task<'t, T> = Pin<Box<dyn Future<Output = Result<T, TrainError>> + 't>>;

/// Compiled here once, and not for every closure that a caller reports with.
#[inline(never)]
fn task_on_ranks<'t>(
    device: &'t Device,
    settings: &'t Settings,
    data: &'t TrainingData,
    (run, resume): (&'t Path, bool),
    exchange: &'t mut dyn Exchange,
    report: Listener<'t>,
) -> Task<'t, Vec<EpochRecord>> {
    Box::pin(run_on_ranks(
        device, settings, data, run, resume, exchange, report,
    ))
}

async fn run_on_ranks(
    device: &Device,
    settings: &Settings,
    data: &TrainingData,
    run: &Path,
    resume: bool,
    exchange: &mut dyn Exchange,
    report: Listener<'_>,
) -> Result<Vec<EpochRecord>, TrainError> {
    let size = exchange.size();
    if !settings.accumulate.is_multiple_of(size) {
        let message = format!(
            "a step takes {} batches, which {size} ranks can't divide evenly",
            settings.accumulate
        );
        return Err(TrainError::Settings(message));
    }
    let ranks = &mut Ranks::new(exchange);
    let forms = device.caps().forms;
    if let Some(recorded) = settings.forms.filter(|recorded| *recorded != forms) {
        let message = format!("the settings say forms {recorded}, the device was opened with {forms}");
        return Err(TrainError::Settings(message));
    }
    let network = &model::find(&settings.arch)?;
    let preprocessing = &data.preprocessing;
    let grid = training_grid(preprocessing)?;
    check_grid(data, grid)?;
    let graph = step_graph(settings, preprocessing)?;
    let plan = Plan::new(&graph, device.caps())?;
    tracing::debug!("training plan:\n{plan}");
    let validation = plan_of(device, network, preprocessing, grid, Keep::Logits)?;
    require(
        device,
        settings,
        data,
        &plan,
        validation.slot_bytes() + validation.texture_bytes(),
    )?;
    let (feed, residents) = Feed::new(device, network, settings, data, grid).await?;
    if let Some(residents) = residents {
        ranks.hear(report(Event::Resident(residents)));
    }
    let training = Steps {
        device,
        settings,
        data,
        feed,
        class_weights: weights_of_classes(settings, data),
    };
    let steps = training.steps();
    let weights = Weights::new(device, &plan, true).await?;

    let own = Settings {
        forms: Some(forms),
        ..settings.clone()
    };
    let mut checkpoints = Checkpoints::of(run);
    let found = if resume { checkpoints.load()? } else { None };
    let start = found.as_ref().map(|(record, tensors)| {
        let begun = record.begun.as_ref().map_or(0, |begun| begun.steps);
        (record.epochs_done, begun, fingerprint(tensors.iter()))
    });
    if let Some(rank) = ranks.differing(format!("{start:?} {forms}").into())? {
        let what = format!(
            "another checkpoint or other forms than rank 0; all ranks need to see the same files in {}",
            run.display()
        );
        return Err(TrainError::Differs { rank, what });
    }
    let mut record = match found {
        Some((found, tensors)) => {
            if let Some(difference) = found.settings.difference(&own) {
                let message = format!(
                    "{} was begun with other settings: {difference}; it goes on with its own",
                    run.display()
                );
                return Err(TrainError::Settings(message));
            }
            if let Some(begun) = found.begun.as_ref().filter(|begun| begun.steps > steps) {
                let message = format!(
                    "{} was begun with other cases: {} steps of an epoch are done, and now it has {steps}",
                    run.display(),
                    begun.steps
                );
                return Err(TrainError::Settings(message));
            }
            weights.upload(device, &tensors)?;
            weights.upload_moments(device, &tensors)?;
            // Other forms and another learning rate are the caller's decision.
            CheckpointRecord {
                settings: own,
                ..found
            }
        }
        None => {
            if resume && ranks.is_first() {
                tracing::warn!(
                    "{} has no checkpoint yet; the training begins at its start",
                    run.display()
                );
            }
            let start = initial(&graph, settings, preprocessing)?;
            weights.upload(device, &start)?;
            weights.upload_moments(device, &start)?;
            CheckpointRecord {
                settings: own,
                epochs_done: 0,
                best: None,
                log: Vec::new(),
                begun: None,
            }
        }
    };

    let mut executable = Executable::new(device, plan, &weights).await?;
    let averages = match settings.ema {
        Some(_) => Some(Weights::new(device, &validation, false).await?),
        None => None,
    };
    let judged = averages.as_ref().unwrap_or(&weights);
    let mut predictor = Predictor::planned(device, network, preprocessing, validation, judged).await?;
    let mut trained: Option<Trained> = None;

    for epoch in record.epochs_done..settings.epochs {
        if is_exhausted(settings, &record.log) {
            break;
        }
        let start = Instant::now();
        let begun = record.begun.take().unwrap_or_default();
        let (mut next, mut sum) = (begun.steps, begun.loss_sum);
        if next < steps && training.is_whole() {
            training.upload(&mut executable, (epoch, next)).await?;
        }
        // A step's loss is looked at when the next step is submitted, so that the device always has work.
        let mut in_flight = VecDeque::new();
        while (next < steps && !ranks.are_stopping()) || !in_flight.is_empty() {
            if next < steps && !ranks.are_stopping() {
                let at = (epoch, next);
                let scalars = training.scalars(at);
                let loss = match training.is_whole() {
                    true => {
                        executable.submit(device, &scalars)?;
                        StepLoss::Read(executable.begin_read(device, "loss").await?)
                    }
                    false => {
                        let step = training.accumulated(&mut executable, &weights, ranks, at, true);
                        StepLoss::Known(step.await?)
                    }
                };
                in_flight.push_back((next, scalars.learning_rate, loss));
                next += 1;
                if training.is_whole() {
                    if next < steps {
                        training.upload(&mut executable, (epoch, next)).await?;
                    }
                    if in_flight.len() == 1 {
                        continue;
                    }
                }
            }
            let (position, learning_rate, loss) = in_flight.pop_front().expect("a step ahead");
            let loss = match loss {
                StepLoss::Read(loss) => loss.finish(device).await?.data[0],
                StepLoss::Known(loss) => loss,
            };
            if !loss.is_finite() {
                let known = match trained.take() {
                    Some(trained) => Some((trained.into_tensors(), 0)),
                    None if epoch == 0 && begun.steps == 0 => {
                        Some((initial(&graph, settings, preprocessing)?, 0))
                    }
                    None => Checkpoints::of(run)
                        .load()?
                        .map(|(_, tensors)| (tensors, begun.steps)),
                };
                let at = (epoch, position);
                let tensors = match known {
                    Some(known) => Some(
                        training
                            .weights_before(&mut executable, &weights, known, at)
                            .await?,
                    ),
                    None => None,
                };
                return Err(training.not_finite(loss, tensors.as_ref(), at).await);
            }
            if let Some(trained) = trained.take() {
                if ranks.is_first() {
                    trained.write(run, &record, &mut checkpoints)?;
                }
                let line = record.log.last().expect("an epoch before");
                ranks.hear(report(Event::Epoch(line)));
            }
            sum += loss as f64;
            let step = Event::Step {
                epoch: epoch + 1,
                done: position + 1,
                steps,
                loss,
                learning_rate,
            };
            ranks.hear(report(step));
        }
        let train_seconds = begun.seconds + start.elapsed().as_secs_f64();
        if size > 1 && ranks.is_first() {
            let seconds = std::mem::take(&mut ranks.seconds);
            tracing::info!(
                "epoch {}: {train_seconds:.2} s of steps, {seconds:.2} s of them for the exchange with other ranks",
                epoch + 1
            );
        }
        let stopped = TrainError::Stopped {
            epoch: epoch + 1,
            done: next,
            steps,
        };
        if ranks.are_stopping() && next == begun.steps {
            return Err(stopped); // with nothing new to save
        }

        let mut tensors: HashMap<String, Tensor> = weights.download(device).await?.into_iter().collect();
        let moments = weights.download_moments(device).await?;
        let diverged = |what| training.diverged(epoch, training.batches(next - 1), what);
        weights::check_numbers(&tensors).map_err(diverged)?;
        weights::check_numbers(moments.iter().map(|(name, tensor)| (name, tensor))).map_err(diverged)?;
        let moved = moments.iter().map(|(name, tensor)| (name, tensor));
        let own = fingerprint(tensors.iter().chain(moved));
        if let Some(rank) = ranks.differing(own.to_le_bytes().to_vec())? {
            let what = format!(
                "other weights than rank 0 after epoch {}: the ranks' adapters or drivers compute differently",
                epoch + 1
            );
            return Err(TrainError::Differs { rank, what });
        }

        let start = Instant::now();
        let last = epoch + 1 == settings.epochs;
        let averaged = averages_of(&moments, settings);
        if let (Some(tensors), Some(on_device)) = (&averaged, &averages) {
            on_device.upload(device, tensors)?;
        }
        let judged = averaged.as_ref().unwrap_or(&tensors);
        let mut scores = vec![Vec::new(); METRICS.len()];
        let due = last || (epoch + 1).is_multiple_of(settings.validate_every);
        if due && !data.validation.is_empty() && !ranks.are_stopping() {
            let cases = &data.validation;
            match validate(device, &mut predictor, judged, cases, ranks, report).await? {
                Validation::Done(found) => scores = found,
                Validation::Stopped => ranks.stop(),
                Validation::NotFinite(what) => return Err(diverged(what)),
            }
        }
        if ranks.are_stopping() {
            training
                .check_loss(&mut executable, &weights, ranks, &tensors, (epoch, next - 1))
                .await?;
            record.begun = Some(Begun {
                steps: next,
                loss_sum: sum,
                seconds: train_seconds,
            });
            tensors.extend(moments);
            if ranks.is_first() {
                checkpoints.save(&record, &tensors)?;
            }
            return Err(stopped);
        }
        let means: Vec<Option<f64>> = scores.iter().map(|s| metrics::mean(s.iter().copied())).collect();
        let validation_seconds = start.elapsed().as_secs_f64();
        record.log.push(EpochRecord {
            epoch: epoch + 1,
            learning_rate: settings.rate(epoch * steps, steps),
            loss: sum / steps as f64,
            scores,
            means: means.clone(),
            train_seconds,
            validation_seconds,
            offset_sigma: offsets::sigmas(judged),
        });
        record.epochs_done = epoch + 1;

        let better = match (means[0], record.best) {
            (Some(new), Some(old)) => METRICS[0].is_better(new, old),
            (Some(_), None) => true,
            (None, _) => data.validation.is_empty(),
        };
        record.best = if better { means[0] } else { record.best };
        let info = model_info(settings, data, epoch + 1, means);
        let (tensors, weights) = match averaged {
            Some(averaged) => (averaged, Some(tensors)),
            None => (tensors, None),
        };
        trained = Some(Trained {
            model: Model {
                info,
                tensors,
                batches: Default::default(),
            },
            weights,
            moments,
            better,
        });
    }
    if let Some(trained) = trained {
        if data.validation.is_empty() {
            let last = (record.epochs_done - 1, steps - 1);
            training
                .check_loss(&mut executable, &weights, ranks, trained.weights(), last)
                .await?;
        }
        if ranks.is_first() {
            trained.write(run, &record, &mut checkpoints)?;
        }
        let _ = report(Event::Epoch(record.log.last().expect("an epoch before")));
    }
    Ok(record.log)
}

/// Trains from the start without a folder: no files, no validation, for callers that keep the weights themselves. After
/// each step `report` hears of it; `Break` ends the training there, with the weights that it reached.
///
/// # Errors
/// As [`train`], but for files.
pub async fn train_in_memory(
    device: &Device,
    settings: &Settings,
    data: &TrainingData,
    mut report: impl FnMut(Event) -> ControlFlow<()>,
) -> Result<Model, TrainError> {
    task_in_memory(device, settings, data, &mut report).await
}

#[inline(never)]
fn task_in_memory<'t>(
    device: &'t Device,
    settings: &'t Settings,
    data: &'t TrainingData,
    report: Listener<'t>,
) -> Task<'t, Model> {
    Box::pin(run_in_memory(device, settings, data, report))
}

async fn run_in_memory(
    device: &Device,
    settings: &Settings,
    data: &TrainingData,
    report: Listener<'_>,
) -> Result<Model, TrainError> {
    let network = &model::find(&settings.arch)?;
    let grid = training_grid(&data.preprocessing)?;
    let graph = step_graph(settings, &data.preprocessing)?;
    let plan = Plan::new(&graph, device.caps())?;
    require(device, settings, data, &plan, 0)?;
    let (feed, residents) = Feed::new(device, network, settings, data, grid).await?;
    if let Some(residents) = residents
        && report(Event::Resident(residents)).is_break()
    {
        return Err(TrainError::Settings("stopped before the first step".into()));
    }
    let weights = Weights::new(device, &plan, true).await?;
    let start = initial(&graph, settings, &data.preprocessing)?;
    weights.upload(device, &start)?;
    weights.upload_moments(device, &start)?;
    let mut executable = Executable::new(device, plan, &weights).await?;
    let training = Steps {
        device,
        settings,
        data,
        feed,
        class_weights: weights_of_classes(settings, data),
    };
    let steps = training.steps();
    let mut alone = Alone;
    let ranks = &mut Ranks::new(&mut alone);
    let mut done = 0;
    for index in 0..settings.epochs * steps {
        let at = (index / steps, index % steps);
        let scalars = training.scalars(at);
        let loss = match training.is_whole() {
            true => training.run(&mut executable, at, &scalars).await?,
            false => {
                training
                    .accumulated(&mut executable, &weights, ranks, at, true)
                    .await?
            }
        };
        if !loss.is_finite() {
            return Err(training.not_finite(loss, None, at).await);
        }
        done = index + 1;
        let event = Event::Step {
            epoch: at.0 + 1,
            done: at.1 + 1,
            steps,
            loss,
            learning_rate: scalars.learning_rate,
        };
        if report(event).is_break() {
            break;
        }
    }
    let mut tensors: HashMap<String, Tensor> = weights.download(device).await?.into_iter().collect();
    let moments = weights.download_moments(device).await?;
    if let Some(last) = done.checked_sub(1) {
        let at = (last / steps, last % steps);
        let (epoch, step) = at;
        weights::check_numbers(&tensors)
            .map_err(|what| training.diverged(epoch, training.batches(step), what))?;
        training
            .check_loss(&mut executable, &weights, ranks, &tensors, at)
            .await?;
    }
    tensors = averages_of(&moments, settings).unwrap_or(tensors);
    Ok(Model {
        info: model_info(settings, data, done / steps, Vec::new()),
        tensors,
        batches: Default::default(),
    })
}

fn weights_of_classes(settings: &Settings, data: &TrainingData) -> Option<Tensor> {
    let classes = data.preprocessing.labels.len();
    let weights = || class_weights(&label_counts(data, classes));
    settings
        .loss
        .has_class_weights()
        .then(|| Tensor::new(&[classes], weights()))
}

/// The graph of a run's step: [`training_graph`], or [`sparse_training_graph`] where the settings have samples, on the
/// preprocessing's grid.
///
/// # Errors
/// A preprocessing without a grid, and a network that can't be built on it.
pub fn step_graph(settings: &Settings, preprocessing: &Preprocessing) -> Result<Graph, TrainError> {
    let [d, h, w] = training_grid(preprocessing)?;
    let network = &model::find(&settings.arch)?;
    let (channels, classes) = (preprocessing.channels.len(), preprocessing.labels.len());
    let (batch, recipe) = (settings.batch, &Recipe::new(settings));
    Ok(match settings.samples {
        None => dense_graph(network, [batch, channels, d, h, w], classes, recipe)?,
        Some(samples) => sparse_graph(network, [channels, d, h, w], batch, samples, classes, recipe)?,
    })
}

/// The first batch of a dense training as its network gets it: images `[N, C, D, H, W]` and labels `[N, 1, D, H, W]` (class index,
/// −1 ignored), augmented.
///
/// # Errors
/// Settings of a sparse training, which has no such images; data that don't fit; the device's failures.
pub async fn first_batch(
    device: &Device,
    settings: &Settings,
    data: &TrainingData,
) -> Result<(Tensor, Tensor), TrainError> {
    if settings.samples.is_some() {
        let message = "a sparse training reads scans at random locations, so no batch of images can be shown";
        return Err(TrainError::Settings(message.into()));
    }
    let grid @ [d, h, w] = training_grid(&data.preprocessing)?;
    let dense = Dense::new(settings, data, grid)?;
    let (n, c) = (settings.batch, data.preprocessing.channels.len());
    let mut graph = Graph::new();
    let (image, labels) = settings.stages().add(&mut graph, [n, c, d, h, w])?;
    graph.keep("fed image", image);
    graph.keep("fed labels", labels);
    let plan = Plan::new(&graph, device.caps())?;
    let weights = Weights::new(device, &plan, false).await?;
    let executable = Executable::new(device, plan, &weights).await?;
    dense.upload(device, &executable, 0, 0)?;
    let scalars = StepScalars {
        seed: settings.seed as u32,
        ..StepScalars::default()
    };
    executable.submit(device, &scalars)?;
    let image = executable.read(device, "fed image").await?;
    Ok((image, executable.read(device, "fed labels").await?))
}

/// Whether there is memory for a training: a step, the scans that stay on the device, and what its caller has there besides.
///
/// # Errors
/// How much is missing, and what would fit.
fn require(
    device: &Device,
    settings: &Settings,
    data: &TrainingData,
    plan: &Plan,
    besides: u64,
) -> Result<(), TrainError> {
    let grid = training_grid(&data.preprocessing)?;
    let scans = match settings.samples {
        None => settings.batch, // on their way
        Some(_) => data
            .training
            .iter()
            .map(|case| {
                tiles(
                    [case.image.shape[1], case.image.shape[2], case.image.shape[3]],
                    grid,
                )
                .len()
            })
            .sum(),
    };
    let values = (data.preprocessing.channels.len() + 1) * grid.iter().product::<usize>();
    let scans = host_memory::bytes(&[scans, values], size_of::<f32>());
    let besides = besides.saturating_add(scans);
    // Gradients of two batches and their sum.
    let sums = if settings.accumulate > 1 { 3 } else { 0 };
    let sums = plan.parameters.bytes.saturating_mul(sums);
    device
        .require(plan.device_bytes().saturating_add(besides), sums)
        .map_err(|cause| TrainError::Memory {
            fits: fitting(
                device,
                settings,
                &data.preprocessing,
                cause.available.saturating_sub(besides),
            ),
            cause,
        })
}

/// A step that takes at most so many bytes: of a smaller batch, or on a smaller grid.
fn fitting(
    device: &Device,
    settings: &Settings,
    preprocessing: &Preprocessing,
    bytes: u64,
) -> Option<String> {
    let fits = |settings: &Settings, preprocessing: &Preprocessing| {
        let graph = step_graph(settings, preprocessing).ok()?;
        let plan = Plan::new(&graph, device.caps()).ok()?;
        (plan.device_bytes() <= bytes).then_some(())
    };
    let mut smaller = settings.clone();
    while smaller.batch > 1 {
        smaller.batch /= 2;
        if fits(&smaller, preprocessing).is_some() {
            return Some(format!("a batch of {}", smaller.batch));
        }
    }
    let grid = preprocessing.grid?;
    (1..10).rev().find_map(|tenths| {
        let less = grid.map(|n| (n * tenths / 10).next_multiple_of(8).min(n));
        let preprocessing = Preprocessing {
            grid: Some(less),
            ..preprocessing.clone()
        };
        fits(&smaller, &preprocessing)?;
        let [d, h, w] = less;
        Some(format!("a batch of 1 of {d} × {h} × {w} voxels"))
    })
}

/// Whether every scan can be cut into pieces of the grid: to validate, and to be predicted.
fn check_grid(data: &TrainingData, grid: [usize; 3]) -> Result<(), TrainError> {
    let training = data.training.iter().map(|c| (&c.id, &c.image.shape));
    let validation = data.validation.iter().map(|c| (&c.id, &c.prepared.image.shape));
    for (id, shape) in training.chain(validation) {
        check_tiles([shape[1], shape[2], shape[3]], grid)
            .map_err(|problem| TrainError::Settings(format!("{id}: {problem}")))?;
    }
    Ok(())
}

fn training_grid(preprocessing: &Preprocessing) -> Result<[usize; 3], TrainError> {
    preprocessing.grid.ok_or(TrainError::NoGrid)
}

/// What an epoch is judged by where a training keeps moving averages: those, by the names of what they are of.
fn averages_of(moments: &[(String, Tensor)], settings: &Settings) -> Option<HashMap<String, Tensor>> {
    settings.ema?;
    let averages = moments.iter().filter_map(|(name, tensor)| {
        let of = name.strip_prefix(crate::gpu::AVERAGE)?;
        Some((of.to_owned(), tensor.clone()))
    });
    Some(averages.collect())
}

/// Whether so many epochs as the settings have patience for have passed since the best one.
fn is_exhausted(settings: &Settings, log: &[EpochRecord]) -> bool {
    let Some(patience) = settings.patience else {
        return false;
    };
    let since = best_epoch(log).zip(log.last());
    since.is_some_and(|((_, epoch), last)| last.epoch - epoch >= patience)
}

/// How a validation ended.
enum Validation {
    /// With the mean of each metric by foreground label.
    Done(Vec<Vec<Option<f64>>>),
    /// The caller stopped it.
    Stopped,
    /// In words, what is not finite.
    NotFinite(String),
}

/// By label, the bits of a case's scores: JSON has no numbers that are not finite.
type ScoreBits = BTreeMap<i32, Vec<Option<u64>>>;

/// What a rank found in its share of the held-out cases.
#[derive(Default, Serialize, Deserialize)]
struct Share {
    /// By position of the case.
    scores: Vec<(usize, ScoreBits)>,
    stopped: bool,
    not_finite: Option<String>,
}

/// Scores held-out cases, of which each rank takes its share. The predictor shares its weights with the training; they are
/// `tensors`.
async fn validate(
    device: &Device,
    predictor: &mut Predictor,
    tensors: &HashMap<String, Tensor>,
    cases: &[ValidationCase],
    ranks: &mut Ranks<'_>,
    report: Listener<'_>,
) -> Result<Validation, TrainError> {
    let (rank, size) = (ranks.exchange.rank(), ranks.exchange.size());
    let preprocessing = predictor.preprocessing().clone();
    let mut own = Share::default();
    let share: Vec<usize> = (rank..cases.len()).step_by(size).collect();
    for (i, &position) in share.iter().enumerate() {
        let case = &cases[position];
        let logits = match predictor.logits(device, &case.prepared).await {
            Err(PredictError::NotFinite { .. }) => {
                let layer = predictor.first_not_finite(device, &case.prepared, tensors).await;
                own.not_finite = Some(format!(
                    "the logits of the held-out case {} are not finite{}",
                    case.id,
                    first_in(&layer)
                ));
                break;
            }
            logits => logits?,
        };
        let labels = preprocessing.restore_labels(&logits, &case.prepared.placement);
        let maps = Comparison::new(
            &labels,
            &case.labels,
            case.geometry.shape,
            case.geometry.spacing,
            preprocessing.ignore,
        );
        let bits = |scores: Vec<Option<f64>>| scores.into_iter().map(|s| s.map(f64::to_bits)).collect();
        let scores = maps.first_scores().into_iter();
        own.scores
            .push((position, scores.map(|(label, s)| (label, bits(s))).collect()));
        let event = Event::Validation {
            done: i + 1,
            cases: share.len(),
        };
        if report(event).is_break() {
            own.stopped = true;
            break;
        }
    }
    let own = serde_json::to_vec(&own).expect("numbers and text");
    let mut scores = Vec::new();
    let mut stopped = false;
    for share in ranks.exchange.gather(own)? {
        let share: Share = serde_json::from_slice(&share).expect("as a rank wrote it");
        if let Some(what) = share.not_finite {
            return Ok(Validation::NotFinite(what));
        }
        stopped |= share.stopped;
        scores.extend(share.scores);
    }
    if stopped {
        return Ok(Validation::Stopped);
    }
    scores.sort_by_key(|(position, _)| *position);
    let number = |bits: Vec<Option<u64>>| bits.into_iter().map(|b| b.map(f64::from_bits)).collect();
    let scores: Vec<(String, LabelScores)> = scores
        .into_iter()
        .map(|(position, scores)| {
            let scores = scores.into_iter().map(|(label, bits)| (label, number(bits)));
            (cases[position].id.clone(), scores.collect())
        })
        .collect();
    let report = Report::new(&preprocessing.labels, &scores, &Scoring::first());
    Ok(Validation::Done(report.label_means))
}

/// A number that is another where any bit of the tensors is: CRC-32 of names and numbers, by name.
fn fingerprint<'a>(tensors: impl Iterator<Item = (&'a String, &'a Tensor)>) -> u32 {
    let mut tensors: Vec<_> = tensors.collect();
    tensors.sort_by_key(|(name, _)| *name);
    let mut hasher = crc32fast::Hasher::new();
    for (name, tensor) in tensors {
        hasher.update(name.as_bytes());
        hasher.update(bytemuck::cast_slice(&tensor.data));
    }
    hasher.finalize()
}

fn model_info(
    settings: &Settings,
    data: &TrainingData,
    epochs: usize,
    scores: Vec<Option<f64>>,
) -> ModelInfo {
    ModelInfo {
        arch: settings.arch.clone(),
        preprocessing: data.preprocessing.clone(),
        training: Some(TrainingRecord {
            version: env!("CARGO_PKG_VERSION").into(),
            dataset: data.dataset.clone(),
            epochs,
            seed: settings.seed,
            fold: settings.fold,
            trained_on: data.training.iter().map(|c| c.id.clone()).collect(),
            held_out: data.validation.iter().map(|c| c.id.clone()).collect(),
            scores,
        }),
        source: None,
    }
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), TrainError> {
    write_beside(path, bytes, true).map_err(|cause| TrainError::Io {
        path: path.into(),
        cause,
    })
}

/// The random stream of one case in one step: the same whatever ran before, so that a resumed run draws the same.
fn stream(seed: u64, step: usize, slot: usize) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream((step as u64) << 16 | slot as u64);
    rng
}

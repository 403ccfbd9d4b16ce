//! Cross-validation: every fold of several networks is trained, its held-out cases are segmented and scored, and one
//! table compares the networks.
//!
//! ```text
//! OUT/NAME/fold_K/result.json     what the fold gave; written last, so it marks the fold as finished
//! OUT/NAME/fold_K/…               the training run's own files
//! OUT/NAME/predictions/CASE.nii.gz
//! OUT/table.md, table.csv, table.json, table.tex, cases.csv, scores.json, dice.png
//! ```
//!
//! Folds write nothing in common, so folders made on several machines merge by copying one into the other.

mod recipe;
mod table;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use recipe::{Row, rows};
pub use table::{Score, Table, TableRow};

use crate::dataset::{Dataset, DatasetError, Label};
use crate::evaluate::Report;
use crate::file::{self, write_beside};
use crate::gpu::Device;
use crate::graph::GraphError;
use crate::host_memory::TooLarge;
use crate::metrics::{self, Choice, Comparison, Scoring, Surfaces};
use crate::model;
use crate::plan::Plan;
use crate::predict::{PredictError, Predictor, inference_graph};
use crate::train::{
    EpochRecord, Event, RunFolder, Settings, TrainError, TrainingData, has_checkpoint, remove_checkpoints,
    step_graph, train,
};
use crate::volume::{self, VolumeError};
use crate::weights::{Model, WeightsError};

/// What can go wrong in a cross-validation.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CrossvalError {
    /// A recipe, or what was asked for beside it, makes no sense.
    #[error("{0}")]
    Recipe(String),
    /// Nothing says which networks are compared.
    #[error("no network is named; a recipe names them in tables [networks.NAME]")]
    NoNetworks,
    /// A file that is not what its name says.
    #[error("{}: {problem}", .path.display())]
    Folder {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A file that should hold a finished fold's result.
    #[error("{}: it is no fold's result ({problem})", .path.display())]
    Result {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A folder that holds another training than what is asked for.
    #[error("{}: its training has other {what}", .path.display())]
    OtherTraining {
        /// The run's folder.
        path: PathBuf,
        /// What differs: `settings` or `folds`.
        what: &'static str,
    },
    /// A file can't be read or written.
    #[error("{}: {source}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// There is no memory for the distances between surfaces.
    #[error("{case}: the distances between its surfaces: {cause}")]
    Memory {
        /// The case.
        case: String,
        /// How much is needed, and how much there is.
        #[source]
        cause: TooLarge,
    },
    /// The dataset can't be used.
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    /// A scan or label map can't be read or written.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// The training failed.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// Its weights can't be read.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The network can't be planned.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// The prediction failed.
    #[error(transparent)]
    Predict(#[from] PredictError),
    /// The caller stopped the prediction of the held-out cases, whose training is finished.
    #[error("stopped after {done} of {cases} held-out cases")]
    Stopped {
        /// Cases that are done.
        done: usize,
        /// Cases of the fold.
        cases: usize,
    },
}

/// Which of a run's weights segment the held-out cases.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Epoch {
    /// Those of the last epoch
    Last,
    /// Those that scored best on the held-out cases themselves, which flatters them
    Best,
}

impl Epoch {
    fn file(self) -> &'static str {
        match self {
            Epoch::Last => "last.safetensors",
            Epoch::Best => "best.safetensors",
        }
    }
}

/// What a fold gave; the fold's `result.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct FoldResult {
    /// The row's name: its folder.
    pub name: String,
    /// What the table calls it.
    pub title: String,
    /// The training's settings, with fold and network.
    pub settings: Settings,
    /// Name of the dataset's folder.
    pub dataset: String,
    /// Number of folds in all.
    pub folds: usize,
    /// Which weights segmented the cases.
    pub weights: Epoch,
    /// The epoch of those weights, from 1.
    pub epoch: usize,
    /// The adapter.
    pub adapter: String,
    /// The labels that are scored, without the background.
    pub labels: Vec<Label>,
    /// The held-out cases, by id.
    pub cases: Vec<HeldOut>,
    /// How surfaces were measured, where they were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub surfaces: Option<Surfaces>,
    /// Trained numbers of the network.
    pub parameters: usize,
    /// Planned device memory of a training step in bytes: activations, gradients, weights, moments.
    pub training_bytes: u64,
    /// Planned device memory of the inference in bytes.
    pub inference_bytes: u64,
    /// The most device memory that the training held in bytes, its validation included.
    pub training_peak: u64,
    /// The most device memory that the prediction held in bytes.
    pub inference_peak: u64,
    /// Seconds of all training steps, without validation.
    pub training_seconds: f64,
}

/// A case that its fold's network has not seen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct HeldOut {
    /// Its id.
    pub case: String,
    /// By metric, then by label: the score, `None` where neither map has the label.
    #[serde(flatten, with = "metrics::by_name")]
    pub scores: Vec<Vec<Option<f64>>>,
    /// By metric: the mean over the labels that have a score.
    #[serde(flatten, with = "metrics::mean_of_first")]
    pub means: Vec<Option<f64>>,
    /// Seconds from the scan in memory to its label map: preprocessing, network, back to the scan's grid.
    pub seconds: f64,
}

impl HeldOut {
    /// A label's score by a metric.
    fn score(&self, metric: usize, label: usize) -> Option<f64> {
        *self.scores.get(metric)?.get(label)?
    }
}

/// The folder of a row's fold, from 0.
pub fn fold_folder(out: &Path, name: &str, fold: usize) -> PathBuf {
    out.join(name).join(format!("fold_{fold}"))
}

/// Where a row's labels of a case go that the case's fold holds out.
pub fn prediction(out: &Path, name: &str, case: &str) -> PathBuf {
    out.join(name).join("predictions").join(format!("{case}.nii.gz"))
}

/// The fold's result, `None` where it is not finished.
///
/// # Errors
/// A file that can't be read.
pub fn fold_result(run: &Path) -> Result<Option<FoldResult>, CrossvalError> {
    let path = run.join("result.json");
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(CrossvalError::Io { path, source }),
    };
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|e| CrossvalError::Result {
            path,
            problem: e.to_string(),
        })
}

/// The results of every finished fold in a folder, by row (names in alphabetical order), folds ascending.
///
/// # Errors
/// A folder or result that can't be read.
pub fn finished(out: &Path) -> Result<Vec<Vec<FoldResult>>, CrossvalError> {
    let mut rows = Vec::new();
    for row in subfolders(out)? {
        let mut folds = Vec::new();
        for run in subfolders(&row)? {
            folds.extend(fold_result(&run)?);
        }
        folds.sort_by_key(|f| f.settings.fold);
        if !folds.is_empty() {
            rows.push(folds);
        }
    }
    Ok(rows)
}

/// Scores a finished fold by these metrics too, from its predictions in `out`, unless it has been. Writes and returns its result
/// then, with all metrics that it has.
///
/// # Errors
/// Predictions or references that can't be read, a case that the dataset does not have, no memory for surfaces.
pub fn score_again(
    out: &Path,
    dataset: &Dataset,
    result: &FoldResult,
    scoring: &Scoring,
) -> Result<Option<FoldResult>, CrossvalError> {
    let scored = |metric: usize| result.cases.iter().all(|case| !case.scores[metric].is_empty());
    let measured = scoring.measured_surfaces();
    let chosen = scoring.chosen();
    if chosen.metrics().all(scored) && measured.is_none_or(|_| measured == result.surfaces) {
        return Ok(None);
    }
    let scoring = Scoring::new(
        Choice::of(|metric| chosen.has(metric) || scored(metric)),
        measured.or(result.surfaces).unwrap_or_default(),
    );
    let mut scores = Vec::new();
    for held_out in &result.cases {
        let Some(case) = dataset.cases.iter().find(|case| case.id == held_out.case) else {
            return Err(CrossvalError::Recipe(format!(
                "{} has no case {}, which a fold of {} holds out",
                dataset.folder.display(),
                held_out.case,
                result.name
            )));
        };
        let predicted = volume::read(&prediction(out, &result.name, &held_out.case))?;
        let expected = dataset.label(case, &predicted.geometry)?.labels()?;
        let (labels, shape) = (predicted.labels()?, predicted.geometry.shape);
        let maps = Comparison::new(
            &labels,
            &expected,
            shape,
            predicted.geometry.spacing,
            dataset.ignore,
        );
        let of_case = maps.scores(&scoring, |_| true);
        let of_case = of_case.map_err(|cause| no_memory(&held_out.case, cause))?;
        scores.push((held_out.case.clone(), of_case));
    }
    let mut again = result.clone();
    let report = Report::new(&result.labels, &scores, &scoring);
    for (held_out, case) in again.cases.iter_mut().zip(report.cases) {
        (held_out.scores, held_out.means) = (case.scores, case.means);
    }
    again.surfaces = scoring.measured_surfaces();
    let run = fold_folder(out, &result.name, result.settings.fold.unwrap_or_default());
    save_result(&run, &again)?;
    Ok(Some(again))
}

fn save_result(run: &Path, result: &FoldResult) -> Result<(), CrossvalError> {
    let json = serde_json::to_string_pretty(result).map_err(|e| CrossvalError::Recipe(e.to_string()))?;
    write(&run.join("result.json"), json.as_bytes())
}

/// The trainings in a folder, begun or finished, by row and fold.
///
/// # Errors
/// A folder that can't be read.
pub fn begun(out: &Path) -> Result<Vec<PathBuf>, CrossvalError> {
    let mut runs = Vec::new();
    for row in subfolders(out)? {
        runs.extend(subfolders(&row)?);
    }
    runs.retain(|run| run.join("config.toml").exists());
    Ok(runs)
}

/// The settings of a training, its `config.toml`.
///
/// # Errors
/// A file that can't be read, or holds none.
pub fn run_settings(run: &Path) -> Result<Settings, CrossvalError> {
    let path = run.join("config.toml");
    let text = std::fs::read_to_string(&path).map_err(|source| CrossvalError::Io {
        path: path.clone(),
        source,
    })?;
    match Settings::parse(&text) {
        Ok((settings, unknown)) => {
            if !unknown.is_empty() {
                let names = unknown.join(", ");
                tracing::warn!("{}: {names}: of another version, not used", path.display());
            }
            Ok(settings)
        }
        Err(e) => Err(CrossvalError::Folder {
            path,
            problem: e.to_string(),
        }),
    }
}

fn subfolders(folder: &Path) -> Result<Vec<PathBuf>, CrossvalError> {
    let io = |source| CrossvalError::Io {
        path: folder.into(),
        source,
    };
    let entries = match std::fs::read_dir(folder) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(io)?,
    };
    let mut folders = Vec::new();
    for entry in entries {
        let path = entry.map_err(io)?.path();
        if path.is_dir() {
            folders.push(path);
        }
    }
    folders.sort();
    Ok(folders)
}

/// A fold of a row, ready to run.
#[derive(Clone, Debug)]
pub struct Job {
    /// The row's name.
    pub name: String,
    /// What the table calls it.
    pub title: String,
    /// The training's settings, with fold and network.
    pub settings: Settings,
    /// Number of folds in all.
    pub folds: usize,
    /// Which weights segment the held-out cases.
    pub weights: Epoch,
    /// How the held-out cases are scored.
    pub scoring: Scoring,
}

impl Job {
    /// Whether the fold is finished in `out`, with these settings, weights and held-out cases.
    ///
    /// # Errors
    /// A result of other settings or cases, which would make no table with this one.
    pub fn is_finished(&self, out: &Path, held_out: &[&str]) -> Result<bool, CrossvalError> {
        let run = self.run(out);
        let Some(result) = fold_result(&run)? else {
            return Ok(false);
        };
        let other = |what| CrossvalError::OtherTraining {
            path: run.clone(),
            what,
        };
        if result.folds != self.folds
            || result
                .cases
                .iter()
                .map(|c| c.case.as_str())
                .ne(held_out.iter().copied())
        {
            return Err(other("folds"));
        }
        // the dataset may lie elsewhere on another machine, whose adapter may take other forms
        let mut settings = result.settings;
        settings.dataset = self.settings.dataset.clone();
        settings.forms = self.settings.forms;
        match settings == self.settings {
            true => Ok(result.weights == self.weights),
            false => Err(other("settings")),
        }
    }

    /// The folder of the fold's training.
    pub fn run(&self, out: &Path) -> PathBuf {
        fold_folder(out, &self.name, self.settings.fold.unwrap_or_default())
    }

    /// Forgets what a fold has so far.
    fn forget(run: &Path) -> Result<(), CrossvalError> {
        // the result first: a fold without its checkpoint must not count as finished
        let path = run.join("result.json");
        file::remove(&path).map_err(|source| CrossvalError::Io { path, source })?;
        Ok(remove_checkpoints(run)?)
    }

    /// Trains the fold, from its checkpoint where there is one and it is not to be trained `anew`, segments and scores its
    /// held-out cases and writes the result. Returns it with the training's log. `data` are the fold's cases, preprocessed for
    /// this network. `report` hears of the held-out cases as of those of a validation, and stops them with `Break`.
    ///
    /// # Errors
    /// Those of [`train`] and of predictions, files that can't be written, and [`CrossvalError::Stopped`].
    pub async fn run_fold(
        &self,
        device: &Device,
        dataset: &Dataset,
        data: &TrainingData,
        out: &Path,
        anew: bool,
        mut report: impl FnMut(Event) -> ControlFlow<()>,
    ) -> Result<(FoldResult, Vec<EpochRecord>), CrossvalError> {
        let run = self.run(out);
        let predictions = out.join(&self.name).join("predictions");
        for folder in [&run, &predictions] {
            file::make_folder(folder).map_err(|source| CrossvalError::Io {
                path: folder.clone(),
                source,
            })?;
        }
        let _lock = RunFolder::lock(&run)?;
        if anew {
            Job::forget(&run)?;
        }
        let resume = has_checkpoint(&run);
        let mut settings = self.settings_for(&run, resume)?;
        settings.forms = Some(device.caps().forms);
        let text = toml::to_string(&settings).map_err(|e| CrossvalError::Recipe(e.to_string()))?;
        write(&run.join("config.toml"), text.as_bytes())?;
        device.reset_peak();
        let log = train(device, &settings, data, &run, resume, &mut report).await?;
        let training_peak = device.memory().peak;

        device.reset_peak();
        let model = Model::load(&run.join(self.weights.file()))?;
        let (cases, labels) = self.segment(device, dataset, data, &model, out, report).await?;
        let inference_peak = device.memory().peak;
        let network = &model::find(&settings.arch)?;
        let step = step_graph(&settings, &data.preprocessing)?;
        let grid = data.preprocessing.grid.unwrap_or_default();
        let inference = inference_graph(network, &data.preprocessing, grid)?;
        let result = FoldResult {
            name: self.name.clone(),
            title: self.title.clone(),
            settings,
            dataset: data.dataset.clone(),
            folds: self.folds,
            weights: self.weights,
            epoch: model.info.training.as_ref().map_or(0, |t| t.epochs),
            adapter: device.adapter().name.clone(),
            labels,
            cases,
            surfaces: self.scoring.measured_surfaces(),
            parameters: step
                .parameters()
                .map(|(_, p)| p.spec.shape.iter().product::<usize>())
                .sum(),
            training_bytes: Plan::new(&step, device.caps())?.device_bytes(),
            inference_bytes: Plan::new(&inference, device.caps())?.device_bytes(),
            training_peak,
            inference_peak,
            training_seconds: log.iter().map(|e| e.train_seconds).sum(),
        };
        save_result(&run, &result)?;
        Ok((result, log))
    }

    /// The settings, with the dataset's place as the run that is to be resumed has it.
    fn settings_for(&self, run: &Path, resume: bool) -> Result<Settings, CrossvalError> {
        let mut settings = self.settings.clone();
        if !resume {
            return Ok(settings);
        }
        let before = run_settings(run)?;
        settings.dataset = before.dataset.clone();
        settings.forms = before.forms;
        match settings == before {
            true => Ok(settings),
            false => Err(CrossvalError::OtherTraining {
                path: run.into(),
                what: "settings",
            }),
        }
    }

    /// Segments and scores the fold's held-out cases.
    async fn segment(
        &self,
        device: &Device,
        dataset: &Dataset,
        data: &TrainingData,
        model: &Model,
        out: &Path,
        mut report: impl FnMut(Event) -> ControlFlow<()>,
    ) -> Result<(Vec<HeldOut>, Vec<Label>), CrossvalError> {
        let preprocessing = &data.preprocessing;
        let network = &model::find(&model.info.arch)?;
        let mut predictor = Predictor::with_weights(device, network, preprocessing, &model.tensors).await?;
        let mut scores = Vec::new();
        let mut seconds = Vec::new();
        for held_out in &data.validation {
            let Some(case) = dataset.cases.iter().find(|c| c.id == held_out.id) else {
                continue;
            };
            let scan = dataset.image(case)?;
            if seconds.is_empty() {
                // the first submission compiles the kernels
                predictor.labels(device, &scan).await?;
            }
            let start = std::time::Instant::now();
            let labels = predictor.labels(device, &scan).await?;
            seconds.push(start.elapsed().as_secs_f64());
            volume::write_labels(
                &prediction(out, &self.name, &case.id),
                &labels,
                &scan.geometry,
                true,
            )?;
            let (shape, spacing) = (scan.geometry.shape, scan.geometry.spacing);
            let maps = Comparison::new(&labels, &held_out.labels, shape, spacing, preprocessing.ignore);
            let of_case = maps.scores(&self.scoring, |_| true);
            let of_case = of_case.map_err(|cause| no_memory(&case.id, cause))?;
            scores.push((case.id.clone(), of_case));
            let (done, cases) = (scores.len(), data.validation.len());
            if report(Event::Validation { done, cases }).is_break() {
                return Err(CrossvalError::Stopped { done, cases });
            }
        }
        let report = Report::new(&preprocessing.labels, &scores, &self.scoring);
        let cases = report.cases.into_iter().zip(seconds);
        let cases = cases.map(|(score, seconds)| HeldOut {
            case: score.case,
            scores: score.scores,
            means: score.means,
            seconds,
        });
        Ok((cases.collect(), report.labels))
    }
}

fn no_memory(case: &str, cause: TooLarge) -> CrossvalError {
    CrossvalError::Memory {
        case: case.into(),
        cause,
    }
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), CrossvalError> {
    write_beside(path, bytes, true).map_err(|source| CrossvalError::Io {
        path: path.into(),
        source,
    })
}

//! Weight files: safetensors with the network's name, labels, preprocessing, training record and a checksum in the
//! metadata, so that the file alone is enough to predict. Also files from elsewhere, and how parameters start.
//!
//! Tensors have the authors' names, so that a file written here loads into their PyTorch code:
//! `network.load_state_dict(safetensors.torch.load_file(path))`. Batch norms' `num_batches_tracked` (int64) are kept
//! with the file that has them and not invented for one that has none: PyTorch accepts both, since a dict without its
//! private `_metadata` counts as of before these counts, and no published network uses them.

pub mod brainchop;
mod file;
mod pickle;
pub mod pth;
mod recognise;
mod zip;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rand_distr::{Distribution, StandardNormal};
use serde::{Deserialize, Serialize};

use self::file::{Contents, parse_record};
pub(crate) use self::file::{encode, parse};
use crate::graph::{Graph, GraphError, Init, Source};
use crate::metrics;
use crate::preprocess::{Intensity, Preprocessing};
use crate::tensor::Tensor;

pub use self::file::{Record, load, save};

/// A weight file that can't be read, written or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WeightsError {
    /// The operating system refused.
    #[error("{}: {cause}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: std::io::Error,
    },
    /// Damaged, or not what it should be.
    #[error("{}: {reason}", .path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Written by a newer version of this program, in a format that this one does not know.
    #[error("{}: a newer version of this program wrote it (format {format}; this one reads up to {known})", .path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        format: u64,
        /// The newest format that is read.
        known: u64,
    },
    /// Weights from elsewhere whose network is known, and whose preprocessing was never published.
    #[error(
        "{}: its network is {arch}, but nothing says how scans are prepared for it; labels and preprocessing have to \
        come from the weights of a training run",
        .path.display()
    )]
    NoPreprocessing {
        /// The file.
        path: PathBuf,
        /// The network.
        arch: &'static str,
    },
    /// A network like brainchop's, whose files do not say how intensities are scaled.
    #[error(
        "{}: its files do not say how intensities are scaled, which is known by name of brainchop's own networks ({known})",
        .path.display()
    )]
    NoIntensity {
        /// The folder.
        path: PathBuf,
        /// The names.
        known: String,
    },
}

impl WeightsError {
    /// Makes the error of a file from what is wrong with it.
    pub(crate) fn format(path: &Path) -> impl Fn(String) -> WeightsError + Copy + '_ {
        move |reason| WeightsError::Format {
            path: path.into(),
            reason,
        }
    }

    pub(crate) fn io(path: &Path) -> impl Fn(std::io::Error) -> WeightsError + '_ {
        move |cause| WeightsError::Io {
            path: path.into(),
            cause,
        }
    }
}

/// What a weight file says of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelInfo {
    /// Network's name, as `--arch` has it.
    pub arch: String,
    /// How scans become tensors and labels become files.
    pub preprocessing: Preprocessing,
    /// How it was trained; `None` for weights from elsewhere, of which that is unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub training: Option<TrainingRecord>,
    /// Name of the file from elsewhere that the weights were in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
}

impl Record for ModelInfo {
    fn check(&self) -> Result<(), String> {
        if self.arch.is_empty() || self.arch.chars().any(char::is_control) {
            return Err(format!(
                "its network has the unusable name `{}`",
                self.arch.escape_debug()
            ));
        }
        self.preprocessing.validate()
    }
}

/// How weights came to be; no times or host names, so that the same training gives the same bytes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TrainingRecord {
    /// Version of the program that trained; empty in what older ones wrote.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub version: String,
    /// Name of the dataset's folder.
    pub dataset: String,
    /// Epochs done when the file was written.
    pub epochs: usize,
    /// Seed of all random streams.
    pub seed: u64,
    /// Validation fold; `None` when every case was trained on.
    pub fold: Option<usize>,
    /// Ids of the cases trained on.
    pub trained_on: Vec<String>,
    /// Ids of the cases held out.
    pub held_out: Vec<String>,
    /// By metric: the mean validation score when the file was written.
    #[serde(flatten, with = "metrics::by_name")]
    pub scores: Vec<Option<f64>>,
}

/// Weights with what the file says of them.
#[derive(Clone, Debug)]
pub struct Model {
    /// The record in the metadata.
    pub info: ModelInfo,
    /// Parameters and states by name.
    pub tensors: HashMap<String, Tensor>,
    /// Batch norms' counts of training batches, `….num_batches_tracked`, of a file that has them; nothing here uses
    /// them.
    pub batches: BTreeMap<String, i64>,
}

impl Model {
    /// Reads a weight file of this program.
    ///
    /// # Errors
    /// A file that can't be read, is damaged, or is no safetensors file with this program's record; values in the record
    /// that can't be; numbers that are not finite.
    pub fn load(path: &Path) -> Result<Model, WeightsError> {
        Model::with_record(Contents::read(path, &read(path)?)?, path)
    }

    fn with_record(contents: Contents, path: &Path) -> Result<Model, WeightsError> {
        Ok(Model {
            info: parse_record(path, contents.record.as_deref())?,
            tensors: contents.tensors,
            batches: contents.batches,
        })
    }

    /// Reads a weight file of this program, a safetensors file or PyTorch checkpoint from elsewhere, told apart by
    /// content, or a folder with a network of brainchop's. A file from elsewhere has its network recognised by the names
    /// and shapes of its tensors, and is preprocessed as the authors published it. `arch` names the network instead. Types
    /// other than float32 are converted with a warning in the log.
    ///
    /// # Errors
    /// A file that can't be read, is damaged, or would run code; tensors that fit no network (or not `arch`, or not the
    /// network of the file's record); a network from elsewhere whose preprocessing was never published (see
    /// [`Model::open_like`]); a record with values that can't be; weights that are not finite.
    pub fn open(path: &Path, arch: Option<&str>) -> Result<Model, WeightsError> {
        if arch.is_none() && brainchop::is_one(path) {
            return brainchop::open(path, None);
        }
        open(&read(path)?, path, arch, None)
    }

    /// Reads a network of brainchop's, a folder or its model.json, whose intensities are scaled so.
    ///
    /// # Errors
    /// Files that are missing, damaged or of another kind, and layers that are not run here.
    pub fn open_brainchop(path: &Path, intensity: Intensity) -> Result<Model, WeightsError> {
        brainchop::open(path, Some(intensity))
    }

    /// [`Model::open`] of a network of brainchop's from the bytes of its files by name; `name` is its folder's.
    ///
    /// # Errors
    /// As [`Model::open_brainchop`].
    pub fn from_brainchop(
        files: &BTreeMap<String, Vec<u8>>,
        name: &str,
        intensity: Option<Intensity>,
    ) -> Result<Model, WeightsError> {
        let path = Path::new(name);
        brainchop::from_files(path, name, intensity, |file| {
            let missing = || WeightsError::Format {
                path: path.join(file),
                reason: "is missing".into(),
            };
            files.get(file).cloned().ok_or_else(missing)
        })
    }

    /// [`Model::open`] of a file's bytes; `name` is for messages.
    ///
    /// # Errors
    /// As [`Model::open`], but for a file that can't be read.
    pub fn from_bytes(bytes: &[u8], name: &Path) -> Result<Model, WeightsError> {
        open(bytes, name, None, None)
    }

    /// [`Model::open`] for a file from elsewhere whose labels and preprocessing, and network unless `arch` names
    /// another, are those of `like`.
    ///
    /// # Errors
    /// As [`Model::open`], and a file that has a record of its own.
    pub fn open_like(path: &Path, arch: Option<&str>, like: &ModelInfo) -> Result<Model, WeightsError> {
        open(&read(path)?, path, arch, Some(like))
    }

    /// Number of trained numbers.
    ///
    /// # Errors
    /// A network that this program does not have, or that can't be built for the preprocessing.
    pub fn parameter_count(&self) -> Result<usize, GraphError> {
        let network = &crate::model::find(&self.info.arch)?;
        Ok(recognise::graph_for(network, &self.info.preprocessing)?.parameter_count())
    }

    /// Writes the weight file beside its place and renames it. The bytes depend on the contents alone.
    ///
    /// # Errors
    /// A file that exists (without `force`) or can't be written, and those of [`Model::to_bytes`]; the file that was
    /// there stays.
    pub fn save(&self, path: &Path, force: bool) -> Result<(), WeightsError> {
        file::write(path, &self.to_bytes(path)?, force)
    }

    /// The bytes that [`Model::save`] writes; `name` is for messages.
    ///
    /// # Errors
    /// Weights that are not finite, and a record with values that can't be.
    pub fn to_bytes(&self, name: &Path) -> Result<Vec<u8>, WeightsError> {
        encode(name, &self.info, &self.tensors, &self.batches)
    }
}

fn open(
    bytes: &[u8],
    path: &Path,
    arch: Option<&str>,
    like: Option<&ModelInfo>,
) -> Result<Model, WeightsError> {
    let format = WeightsError::format(path);
    let foreign = if pth::looks_like_one(bytes) {
        pth::Checkpoint::read(bytes).map_err(format)?
    } else {
        let contents = Contents::read(path, bytes)?;
        if contents.record.is_some() {
            if like.is_some() {
                return Err(format(
                    "it has a record of its network and preprocessing; another file's is only for one without".into(),
                ));
            }
            let mut model = Model::with_record(contents, path)?;
            if let Some(arch) = arch {
                model.info.arch = arch.into();
            }
            recognise::check(&model.info.arch, &model.info.preprocessing, &model.tensors).map_err(format)?;
            return Ok(model);
        }
        pth::Checkpoint {
            tensors: contents.tensors,
            batches: contents.batches,
            ..Default::default()
        }
    };
    for (element, count) in &foreign.converted {
        tracing::warn!(
            "{}: {count} tensors are {element}; they become float32",
            path.display()
        );
    }
    check_numbers(&foreign.tensors).map_err(format)?;
    let (network, preprocessing) = recognise::recognise(&foreign.tensors, arch, like).map_err(format)?;
    let preprocessing = preprocessing.ok_or_else(|| WeightsError::NoPreprocessing {
        path: path.into(),
        arch: network.name,
    })?;
    if let Some(name) = (foreign.batches.keys()).find(|name| !counts_a_norm(name, &foreign.tensors)) {
        return Err(format(format!(
            "`{name}` belongs to no batch norm of {}",
            network.name
        )));
    }
    Ok(Model {
        info: ModelInfo {
            arch: network.name.into(),
            preprocessing,
            training: None,
            source: path.file_name().map(|name| name.to_string_lossy().into_owned()),
        },
        tensors: foreign.tensors,
        batches: foreign.batches,
    })
}

/// That every number is finite, and no batch norm's running variance and no second moment of Adam's negative.
///
/// # Errors
/// The first tensor, in alphabetical order, with a number that can't be, in words for the user.
pub(crate) fn check_numbers<'a>(
    tensors: impl IntoIterator<Item = (&'a String, &'a Tensor)>,
) -> Result<(), String> {
    let wrong = tensors.into_iter().filter_map(|(name, tensor)| {
        let square = name.ends_with("running_var") || name.starts_with("adam.1.");
        let impossible = |v: &f32| !v.is_finite() || (square && *v < 0.0);
        Some((name, *tensor.data.iter().find(|v| impossible(v))?))
    });
    match wrong.min_by_key(|(name, _)| *name) {
        None => Ok(()),
        Some((name, value)) if value.is_finite() => Err(format!(
            "tensor `{name}` has the value {value}, where none can be negative"
        )),
        Some((name, value)) => Err(format!(
            "tensor `{name}` has values that are not finite ({value})"
        )),
    }
}

/// Whether a count's batch norm is among the tensors.
fn counts_a_norm(name: &str, tensors: &HashMap<String, Tensor>) -> bool {
    let norm = name.strip_suffix(pth::BATCHES).unwrap_or(name);
    tensors.contains_key(&format!("{norm}running_mean"))
}

fn read(path: &Path) -> Result<Vec<u8>, WeightsError> {
    std::fs::read(path).map_err(WeightsError::io(path))
}

/// Fresh parameters and states of a graph. Each tensor has a random stream of its own, by seed and name, so that adding
/// one changes no other.
pub fn initialise(graph: &Graph, seed: u64) -> HashMap<String, Tensor> {
    graph
        .values()
        .iter()
        .filter_map(|info| match info.source {
            Source::Parameter(init) | Source::State(init) => Some((
                info.name.clone(),
                initial(&info.name, &info.spec.shape, init, seed),
            )),
            _ => None,
        })
        .collect()
}

fn initial(name: &str, shape: &[usize], init: Init, seed: u64) -> Tensor {
    let sigma = match init {
        Init::Constant(value) => return Tensor::full(shape, value),
        Init::Normal(sigma) => sigma as f64,
        Init::XavierNormal { fan_in, fan_out } => (2.0 / (fan_in + fan_out) as f64).sqrt(),
    };
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(fnv1a(name));
    Tensor::from_fn(shape, |_| {
        let z: f64 = StandardNormal.sample(&mut rng);
        (sigma * z) as f32
    })
}

/// FNV-1a of a name: a stream number that no standard library's hasher may change.
fn fnv1a(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| {
        (h ^ b as u64).wrapping_mul(0x0100_0000_01b3)
    })
}

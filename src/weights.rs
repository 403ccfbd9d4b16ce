//! Weight files: safetensors with the network's name, labels, preprocessing and training record in the metadata, so
//! that the file alone is enough to predict. Also files from elsewhere, and how parameters start.
//!
//! Tensors have the authors' names, so that a file written here loads into their PyTorch code:
//! `network.load_state_dict(safetensors.torch.load_file(path))`. Batch norms' `num_batches_tracked` (int64) are kept
//! with the file that has them and not invented for one that has none: PyTorch accepts both, since a dict without its
//! private `_metadata` counts as of before these counts, and no published network uses them.

mod pickle;
pub mod pth;
mod recognise;
mod zip;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rand_distr::{Distribution, StandardNormal};
use safetensors::tensor::{Dtype, TensorView};
use serde::{Deserialize, Serialize};

use crate::file::write_beside;
use crate::graph::{Graph, GraphError, Init, Source};
use crate::metrics;
use crate::preprocess::Preprocessing;
use crate::tensor::Tensor;

/// The one metadata key of a weight file. One key, because the order of several would differ from run to run.
const KEY: &str = "obelisk";

/// A weight file that can't be read, written or used.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// The operating system refused.
    #[error("{}: {source}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not a safetensors file of this program.
    #[error("{}: {reason}", .path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong and what to do.
        reason: String,
    },
}

/// What a weight file says of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelInfo {
    /// Version of this record.
    pub format: u32,
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

/// How weights came to be; no times or host names, so that the same training gives the same bytes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TrainingRecord {
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
    /// A file that can't be read, or that is no safetensors file with this program's record.
    pub fn load(path: &Path) -> Result<Model, WeightsError> {
        let contents = safetensors_file(path, &read(path)?)?;
        Ok(Model {
            info: parse_record(path, contents.record.as_deref())?,
            tensors: contents.tensors,
            batches: contents.batches,
        })
    }

    /// Reads a weight file of this program, or a safetensors file or PyTorch checkpoint from elsewhere, told apart by
    /// content. A file from elsewhere has its network recognised by the names and shapes of its tensors, and is
    /// preprocessed as the authors published it. `arch` names the network instead. Types other than float32 are
    /// converted with a warning in the log.
    ///
    /// # Errors
    /// A file that can't be read, is damaged, or would run code; tensors that fit no network (or not `arch`); a
    /// network from elsewhere whose preprocessing was never published (see [`Model::open_like`]); weights that are
    /// not finite.
    pub fn open(path: &Path, arch: Option<&str>) -> Result<Model, WeightsError> {
        open(&read(path)?, path, arch, None)
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
        let network = crate::model::find(&self.info.arch)?;
        Ok(recognise::graph_for(network, &self.info.preprocessing)?.parameter_count())
    }

    /// Writes the weight file beside its place and renames it. The bytes depend on the contents alone.
    ///
    /// # Errors
    /// A file that exists (without `force`) or can't be written.
    pub fn save(&self, path: &Path, force: bool) -> Result<(), WeightsError> {
        write(path, &self.info, &self.tensors, &self.batches, force)
    }

    /// The bytes that [`Model::save`] writes; `name` is for messages.
    ///
    /// # Errors
    /// None for weights of this program's networks.
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
    let format = |reason: String| WeightsError::Format {
        path: path.into(),
        reason,
    };
    let foreign = if pth::looks_like_one(bytes) {
        pth::Checkpoint::read(bytes).map_err(format)?
    } else {
        let contents = safetensors_file(path, bytes)?;
        if contents.record.is_some() {
            let mut model = Model {
                info: parse_record(path, contents.record.as_deref())?,
                tensors: contents.tensors,
                batches: contents.batches,
            };
            if like.is_some() {
                return Err(format(
                    "it has a record of its network and preprocessing; another file's is only for one without".into(),
                ));
            }
            if let Some(arch) = arch {
                recognise::check(arch, &model.info.preprocessing, &model.tensors).map_err(format)?;
                model.info.arch = arch.into();
            }
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
    if let Some((name, _)) = (foreign.tensors.iter()).find(|(_, t)| t.data.iter().any(|v| !v.is_finite())) {
        return Err(format(format!("tensor `{name}` has values that are not finite")));
    }
    let (network, preprocessing) = recognise::recognise(&foreign.tensors, arch, like).map_err(format)?;
    if let Some(name) = (foreign.batches.keys()).find(|name| !counts_a_norm(name, &foreign.tensors)) {
        return Err(format(format!(
            "`{name}` belongs to no batch norm of {}",
            network.name
        )));
    }
    Ok(Model {
        info: ModelInfo {
            format: 1,
            arch: network.name.into(),
            preprocessing,
            training: None,
            source: path.file_name().map(|name| name.to_string_lossy().into_owned()),
        },
        tensors: foreign.tensors,
        batches: foreign.batches,
    })
}

/// Whether a count's batch norm is among the tensors.
fn counts_a_norm(name: &str, tensors: &HashMap<String, Tensor>) -> bool {
    let norm = name.strip_suffix(pth::BATCHES).unwrap_or(name);
    tensors.contains_key(&format!("{norm}running_mean"))
}

fn read(path: &Path) -> Result<Vec<u8>, WeightsError> {
    std::fs::read(path).map_err(|source| WeightsError::Io {
        path: path.into(),
        source,
    })
}

/// What a safetensors file has: this program's record, if it is there, and the tensors.
struct Contents {
    record: Option<String>,
    tensors: HashMap<String, Tensor>,
    batches: BTreeMap<String, i64>,
}

fn safetensors_file(path: &Path, bytes: &[u8]) -> Result<Contents, WeightsError> {
    let format = |reason: String| WeightsError::Format {
        path: path.into(),
        reason,
    };
    let not_weights = |e: safetensors::SafeTensorError| {
        format(format!(
            "this is no safetensors file ({e}) and no PyTorch checkpoint; give the `best.safetensors` of a training \
            run or a published network's weights"
        ))
    };
    let (_, header) = safetensors::SafeTensors::read_metadata(bytes).map_err(not_weights)?;
    let file = safetensors::SafeTensors::deserialize(bytes).map_err(not_weights)?;
    let mut contents = Contents {
        record: header.metadata().as_ref().and_then(|m| m.get(KEY)).cloned(),
        tensors: HashMap::new(),
        batches: BTreeMap::new(),
    };
    for (name, view) in file.iter() {
        match (view.dtype(), view.data()) {
            (Dtype::F32, data) => {
                let (numbers, _) = data.as_chunks();
                let data = numbers.iter().map(|b| f32::from_le_bytes(*b)).collect();
                contents
                    .tensors
                    .insert(name.to_owned(), Tensor::new(view.shape(), data));
            }
            (Dtype::I64, &[a, b, c, d, e, f, g, h]) if name.rsplit('.').next() == Some(pth::BATCHES) => {
                let count = i64::from_le_bytes([a, b, c, d, e, f, g, h]);
                contents.batches.insert(name.to_owned(), count);
            }
            (other, _) => return Err(format(format!("tensor `{name}` is {other:?}; only F32 is used"))),
        }
    }
    Ok(contents)
}

fn parse_record<R: for<'a> Deserialize<'a>>(path: &Path, record: Option<&str>) -> Result<R, WeightsError> {
    let format = |reason: String| WeightsError::Format {
        path: path.into(),
        reason,
    };
    let record = record.ok_or_else(|| {
        format(
            "the file's metadata has no `obelisk` record, so its network and preprocessing are unknown"
                .into(),
        )
    })?;
    serde_json::from_str(record).map_err(|e| format(format!("its `obelisk` record is unreadable: {e}")))
}

/// Reads a safetensors file of f32 tensors with a record of type `R` under this program's metadata key.
pub fn load<R: for<'a> Deserialize<'a>>(path: &Path) -> Result<(R, HashMap<String, Tensor>), WeightsError> {
    let contents = safetensors_file(path, &read(path)?)?;
    Ok((parse_record(path, contents.record.as_deref())?, contents.tensors))
}

/// Writes f32 tensors as safetensors with a record under this program's metadata key, beside its place, then renames.
pub fn save<R: Serialize>(
    path: &Path,
    record: &R,
    tensors: &HashMap<String, Tensor>,
    force: bool,
) -> Result<(), WeightsError> {
    write(path, record, tensors, &BTreeMap::new(), force)
}

fn write<R: Serialize>(
    path: &Path,
    record: &R,
    tensors: &HashMap<String, Tensor>,
    batches: &BTreeMap<String, i64>,
    force: bool,
) -> Result<(), WeightsError> {
    let bytes = encode(path, record, tensors, batches)?;
    write_beside(path, &bytes, force).map_err(|source| WeightsError::Io {
        path: path.into(),
        source,
    })
}

fn encode<R: Serialize>(
    path: &Path,
    record: &R,
    tensors: &HashMap<String, Tensor>,
    batches: &BTreeMap<String, i64>,
) -> Result<Vec<u8>, WeightsError> {
    let format = |reason: String| WeightsError::Format {
        path: path.into(),
        reason,
    };
    let record = serde_json::to_string(record).map_err(|e| format(e.to_string()))?;
    let mut views: BTreeMap<&str, TensorView> = BTreeMap::new();
    for (name, t) in tensors {
        let view = TensorView::new(Dtype::F32, t.shape.clone(), bytemuck::cast_slice(&t.data));
        views.insert(name, view.expect("a tensor's data fits its shape"));
    }
    for (name, count) in batches {
        let view = TensorView::new(Dtype::I64, Vec::new(), bytemuck::bytes_of(count));
        views.insert(name, view.expect("one number has no axes"));
    }
    safetensors::serialize(views, Some(HashMap::from([(KEY.to_owned(), record)])))
        .map_err(|e| format(e.to_string()))
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

//! Weight files: safetensors with the network's name, labels, preprocessing and training record in the metadata, so
//! that the file alone is enough to predict. Also how parameters start.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rand_distr::{Distribution, StandardNormal};
use safetensors::tensor::{Dtype, TensorView};
use serde::{Deserialize, Serialize};

use crate::file::write_beside;
use crate::graph::{Graph, Init, Source};
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
    /// How it was trained.
    pub training: TrainingRecord,
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
    /// Mean validation Dice when the file was written.
    pub dice: Option<f64>,
}

/// Weights with what the file says of them.
#[derive(Clone, Debug)]
pub struct Model {
    /// The record in the metadata.
    pub info: ModelInfo,
    /// Parameters and states by name.
    pub tensors: HashMap<String, Tensor>,
}

impl Model {
    /// Reads a weight file of this program.
    pub fn load(path: &Path) -> Result<Model, WeightsError> {
        let (record, tensors) = load(path)?;
        Ok(Model {
            info: record,
            tensors,
        })
    }

    /// Reads the bytes of a weight file; `name` is for messages.
    ///
    /// # Errors
    /// Bytes that are no weight file of this program.
    pub fn from_bytes(bytes: &[u8], name: &Path) -> Result<Model, WeightsError> {
        let (info, tensors) = decode(bytes, name)?;
        Ok(Model { info, tensors })
    }

    /// Writes the weight file beside its place and renames it. The bytes depend on the contents alone.
    pub fn save(&self, path: &Path, force: bool) -> Result<(), WeightsError> {
        save(path, &self.info, &self.tensors, force)
    }
}

/// Reads a safetensors file of f32 tensors with a record of type `R` under this program's metadata key.
pub fn load<R: for<'a> Deserialize<'a>>(path: &Path) -> Result<(R, HashMap<String, Tensor>), WeightsError> {
    let bytes = std::fs::read(path).map_err(|source| WeightsError::Io {
        path: path.into(),
        source,
    })?;
    decode(&bytes, path)
}

fn decode<R: for<'a> Deserialize<'a>>(
    bytes: &[u8],
    path: &Path,
) -> Result<(R, HashMap<String, Tensor>), WeightsError> {
    let format = |reason: String| WeightsError::Format {
        path: path.into(),
        reason,
    };
    let not_weights = |e: safetensors::SafeTensorError| {
        format(format!(
            "this is no safetensors file ({e}); give the `best.safetensors` of a training run"
        ))
    };
    let (_, header) = safetensors::SafeTensors::read_metadata(bytes).map_err(not_weights)?;
    let record = header
        .metadata()
        .as_ref()
        .and_then(|m| m.get(KEY))
        .ok_or_else(|| {
            format(
                "the file's metadata has no `obelisk` record, so its network and preprocessing are unknown"
                    .into(),
            )
        })?;
    let record = serde_json::from_str(record)
        .map_err(|e| format(format!("its `obelisk` record is unreadable: {e}")))?;
    let file = safetensors::SafeTensors::deserialize(bytes).map_err(not_weights)?;
    let mut tensors = HashMap::new();
    for (name, view) in file.iter() {
        if view.dtype() != Dtype::F32 {
            return Err(format(format!(
                "tensor `{name}` is {:?}; only F32 is used",
                view.dtype()
            )));
        }
        let data = view
            .data()
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect();
        tensors.insert(name.to_owned(), Tensor::new(view.shape(), data));
    }
    Ok((record, tensors))
}

/// Writes f32 tensors as safetensors with a record under this program's metadata key, beside its place, then renames.
pub fn save<R: Serialize>(
    path: &Path,
    record: &R,
    tensors: &HashMap<String, Tensor>,
    force: bool,
) -> Result<(), WeightsError> {
    let format = |reason: String| WeightsError::Format {
        path: path.into(),
        reason,
    };
    let record = serde_json::to_string(record).map_err(|e| format(e.to_string()))?;
    let sorted: BTreeMap<&str, &Tensor> = tensors.iter().map(|(n, t)| (n.as_str(), t)).collect();
    let views: Vec<(&str, TensorView)> = sorted
        .into_iter()
        .map(|(name, t)| {
            let view = TensorView::new(Dtype::F32, t.shape.clone(), bytemuck::cast_slice(&t.data));
            (name, view.expect("a tensor's data fits its shape"))
        })
        .collect();
    let bytes = safetensors::serialize(views, Some(HashMap::from([(KEY.to_owned(), record)])))
        .map_err(|e| format(e.to_string()))?;
    write_beside(path, &bytes, force).map_err(|source| WeightsError::Io {
        path: path.into(),
        source,
    })
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

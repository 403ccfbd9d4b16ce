//! nnU-Net v2 models: read from a results folder, its exported zip archive or one checkpoint, kept in a file of this program, and
//! run as nnU-Net runs them. docs/nnunet.md says what is the same. Nothing in a model is executed.

mod network;
mod plan;
mod predict;
mod prepare;
mod read;
mod resample;

use std::collections::HashMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::dataset::Label;
use crate::tensor::Tensor;
use crate::weights::{self, Record, WeightsError};

pub use crate::model::{Architecture, Class};
pub use network::graph;
pub use plan::{Channel, Description, Labels, Normalisation, Plan};
pub use predict::{Logits, NnunetError, STEP, Segmenter, tile_count};
pub use prepare::{Placement, PrepareError, Prepared, prepare};
pub use read::{Choice, is_model, is_model_bytes, planned_architecture};
pub use resample::{Resampling, resampled_size};

/// One configuration of a model with some of its folds.
#[derive(Clone, Debug)]
pub struct Model {
    /// What inference needs of the plans.
    pub plan: Plan,
    /// The folds' names, such as `0` or `all`.
    pub names: Vec<String>,
    /// The tensors of each fold.
    pub folds: Vec<HashMap<String, Tensor>>,
}

/// The record in a file of this program.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Stored {
    /// Marks the kind of the file.
    nnunet: Plan,
    folds: Vec<String>,
}

impl Record for Stored {
    fn check(&self) -> Result<(), String> {
        if self.folds.is_empty() || self.folds.iter().any(|name| name.contains('/')) {
            return Err(format!("its folds are {:?}", self.folds));
        }
        self.nnunet.check()
    }
}

impl Model {
    /// The scan's labels, the background first even where all outputs are regions.
    pub fn labels(&self) -> Vec<Label> {
        let mut labels = self.plan.labels.names().to_vec();
        if labels.iter().all(|label| label.value != 0) {
            let background = Label {
                value: 0,
                name: "background".into(),
            };
            labels.insert(0, background);
        }
        labels
    }

    /// Writes the model as one file beside its place and renames it.
    ///
    /// # Errors
    /// A file that exists (without `force`) or can't be written, and numbers that are not finite.
    pub fn save(&self, path: &Path, force: bool) -> Result<(), WeightsError> {
        let (record, tensors) = self.stored();
        weights::save(path, &record, &tensors, force)
    }

    /// The bytes that [`Model::save`] writes; `name` is for messages.
    ///
    /// # Errors
    /// Numbers that are not finite.
    pub fn to_bytes(&self, name: &Path) -> Result<Vec<u8>, WeightsError> {
        let (record, tensors) = self.stored();
        weights::encode(name, &record, &tensors, &Default::default())
    }

    /// The record of such a file, JSON: the plan under `nnunet`, and the names of the folds.
    #[cfg(feature = "onnx")]
    pub(crate) fn record(&self) -> String {
        let record = Stored {
            nnunet: self.plan.clone(),
            folds: self.names.clone(),
        };
        serde_json::to_string(&record).expect("a plan is JSON")
    }

    fn stored(&self) -> (Stored, HashMap<String, Tensor>) {
        let mut tensors = HashMap::new();
        for (name, fold) in self.names.iter().zip(&self.folds) {
            for (tensor, value) in fold {
                tensors.insert(format!("{name}/{tensor}"), value.clone());
            }
        }
        let record = Stored {
            nnunet: self.plan.clone(),
            folds: self.names.clone(),
        };
        (record, tensors)
    }

    /// Reads a file that [`Model::save`] wrote.
    ///
    /// # Errors
    /// A file that can't be read, is damaged or something else; tensors that don't fit the plan.
    pub fn load(path: &Path) -> Result<Model, WeightsError> {
        Model::parse(&std::fs::read(path).map_err(WeightsError::io(path))?, path)
    }

    fn parse(bytes: &[u8], path: &Path) -> Result<Model, WeightsError> {
        let (record, tensors) = weights::parse::<Stored>(bytes, path)?;
        let mut folds = vec![HashMap::new(); record.folds.len()];
        for (name, tensor) in tensors {
            let (fold, name) = name.split_once('/').unwrap_or_default();
            if let Some(at) = record.folds.iter().position(|n| n == fold) {
                folds[at].insert(name.to_owned(), tensor);
            }
        }
        let fitting = |tensors| read::fitting(&record.nnunet, tensors).map_err(WeightsError::format(path));
        Ok(Model {
            folds: folds.into_iter().map(fitting).collect::<Result<_, _>>()?,
            plan: record.nnunet,
            names: record.folds,
        })
    }
}

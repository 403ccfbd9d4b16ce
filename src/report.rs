//! A training, a cross-validation or scores as one HTML file that needs nothing else: curves, tables, box plots, the worst and the
//! best cases to look through, settings, hashes, and the command that repeats it.
//!
//! [`Source::open`] finds out what there is, [`Document`] is what a page shows, and its [`Document::html`] the page. The same input
//! gives the same bytes.

mod chart;
mod digest;
mod log;
mod page;
mod scores;
mod source;
mod view;

use std::path::{Path, PathBuf};

pub use digest::{of_file, of_list};
pub use log::{Log, Validation};
pub use source::{Run, Source};
pub use view::{Place, View, chosen, score_held_out, view};

use crate::crossval::{CrossvalError, TableRow};
use crate::dataset::DatasetError;
use crate::evaluate::Methods;
use crate::graph::GraphError;
use crate::host_memory::TooLarge;
use crate::predict::PredictError;
use crate::volume::VolumeError;
use crate::weights::WeightsError;

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReportError {
    /// A file or folder is not what a report is made of.
    #[error("{}: {problem}", path.display())]
    Invalid {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A case of a run that its dataset does not have.
    #[error("{} has no case {case}", folder.display())]
    NoCase {
        /// The dataset.
        folder: PathBuf,
        /// The case.
        case: String,
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
    /// Results can't be read, or make no table.
    #[error(transparent)]
    Crossval(#[from] CrossvalError),
    /// The dataset can't be used.
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    /// A scan or label map can't be read.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// Weights can't be read.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The network can't be built.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// A prediction failed.
    #[error(transparent)]
    Predict(#[from] PredictError),
}

fn invalid<T>(path: &Path, problem: impl Into<String>) -> Result<T, ReportError> {
    Err(ReportError::Invalid {
        path: path.into(),
        problem: problem.into(),
    })
}

/// A text of the report that can be saved as a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Attachment {
    /// What it is of.
    pub title: String,
    /// The file's name.
    pub file: String,
    /// Its contents.
    pub text: String,
}

/// Hashes of files that belong together.
#[derive(Clone, Debug, PartialEq)]
pub struct Hashes {
    /// What the files are.
    pub title: String,
    /// Each file's name and SHA-256.
    pub files: Vec<(String, String)>,
}

/// What a report shows. What is empty has no section.
#[derive(Clone, Debug, Default)]
pub struct Document {
    /// The heading.
    pub title: String,
    /// What it is about, by name.
    pub facts: Vec<(String, String)>,
    /// What a reader should know before looking at numbers.
    pub notes: Vec<String>,
    /// The trainings, for their curves.
    pub runs: Vec<Run>,
    /// The scores.
    pub scores: Option<Methods>,
    /// What the networks of a cross-validation cost.
    pub costs: Vec<TableRow>,
    /// Cases to look at.
    pub views: Vec<View>,
    /// Commands with what they do.
    pub commands: Vec<(String, String)>,
    /// Settings and recipes.
    pub attachments: Vec<Attachment>,
    /// Versions, by name of what has them.
    pub versions: Vec<(String, String)>,
    /// Hashes of weights and data.
    pub hashes: Vec<Hashes>,
}

impl Document {
    /// The page.
    pub fn html(&self) -> String {
        page::html(self)
    }
}

//! Folders of scans and labels, as the Medical Segmentation Decathlon and nnU-Net v2 lay them out, and their folds.

mod decathlon;
mod description;
mod files;
mod folds;
mod nnunet;
mod part;
mod synthesis;

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::host_memory::TooLarge;
use crate::volume::{self, Geometry, SAME_PLACE, Volume, VolumeError};

pub use files::{FoundScans, find_scans, read_channels, scans};
pub use folds::{Fold, Folds};
pub use part::Part;
pub use synthesis::{Intensities, Synthesis};

/// The ways to lay out a dataset, in the order in which they are tried. One more is a file, its `mod` above and its name here.
const CONVENTIONS: &[Convention] = &[synthesis::SYNTHETIC, decathlon::DECATHLON, nnunet::NNUNET];

/// A way to lay out a dataset.
struct Convention {
    /// Whose layout it is, and how it is recognised.
    name: &'static str,
    /// What a folder holds; `None` where it is of another convention.
    read: fn(&Path) -> Result<Option<Contents>, DatasetError>,
}

/// What a convention finds in a folder.
struct Contents {
    channels: Vec<String>,
    /// By ascending value, the first of them 0.
    labels: Vec<Label>,
    ignore: Option<i32>,
    /// In any order; their files need not exist.
    cases: Vec<Case>,
    /// Where the cases are label maps alone.
    synthesis: Option<Synthesis>,
}

/// A class of a segmentation: what a file's voxels of `value` are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Label {
    /// The number in label files.
    pub value: i32,
    /// What it is called.
    pub name: String,
}

impl std::fmt::Display for Label {
    /// Value and name: `1 liver`.
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "{} {}", self.value, self.name)
    }
}

/// Labels in a message: `0 background, 1 liver`.
pub fn listed(labels: &[Label]) -> String {
    let all: Vec<String> = labels.iter().map(Label::to_string).collect();
    all.join(", ")
}

/// The class of each voxel of a label map, its value's position among the labels; −1 where it is to be ignored.
///
/// # Errors
/// Values that no label has, and voxels that are no labels.
pub fn classes(map: &Volume, labels: &[Label], ignore: Option<i32>) -> Result<Vec<f32>, VolumeError> {
    let class = |value: i32| match labels.iter().position(|l| l.value == value) {
        Some(index) => Some(index as f32),
        None => (Some(value) == ignore).then_some(-1.0),
    };
    let values = map.labels()?;
    // runs of equal labels are long
    let mut last = (0, class(0));
    values
        .into_iter()
        .map(|value| {
            if value != last.0 {
                last = (value, class(value));
            }
            last.1.ok_or_else(|| VolumeError::Format {
                path: map.source.clone(),
                problem: format!(
                    "it holds the label {value}, which dataset.json does not declare (it has {})",
                    listed(labels)
                ),
            })
        })
        .collect()
}

/// One training scan and its label map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Case {
    /// The file name without its ending (and, for nnU-Net, without `_0000`).
    pub id: String,
    /// One file holding all channels, or one file a channel.
    pub images: Vec<PathBuf>,
    /// The label map.
    pub label: PathBuf,
}

/// The cases whose label maps are in `labelsTr`, each with the images of its id and label map.
fn labelled(folder: &Path, images: impl Fn(&str, &Path) -> Vec<PathBuf>) -> Result<Vec<Case>, DatasetError> {
    let maps = scans(&folder.join("labelsTr"), 0)?.into_iter();
    let case = |(id, mut files): (String, Vec<PathBuf>)| {
        let label = files.remove(0);
        Case {
            images: images(&id, &label),
            label,
            id,
        }
    };
    Ok(maps.map(case).collect())
}

/// A folder of scans with their label maps.
#[derive(Debug, Clone)]
pub struct Dataset {
    /// The folder.
    pub folder: PathBuf,
    /// Names of the channels, e.g. `MRI` or `CT`, in order.
    pub channels: Vec<String>,
    /// The classes by ascending file value; a class's index in the network is its position here. The first is
    /// value 0, the background.
    pub labels: Vec<Label>,
    /// The file value of voxels that count neither as background nor as anything else.
    pub ignore: Option<i32>,
    /// The training cases, sorted by id.
    pub cases: Vec<Case>,
    /// How images are made of the cases, where they are label maps alone: then a case's image is its label map.
    pub synthesis: Option<Synthesis>,
    /// From `splits_final.json`, if the folder has one.
    splits: Option<Vec<Fold>>,
}

/// Why a dataset cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    /// A file of the dataset is not as it must be.
    #[error("{}: {problem}", path.display())]
    Invalid {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong and what to do.
        problem: String,
    },
    /// A scan could not be read.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// There is no memory for the cases.
    #[error("{}: its {cases} prepared cases are too large: {cause}; about {} of them would fit", path.display(),
        *cases as u64 * cause.fits() / 100)]
    Memory {
        /// The dataset.
        path: PathBuf,
        /// How many there are.
        cases: usize,
        /// How much is needed, and how much there is.
        #[source]
        cause: TooLarge,
    },
}

fn invalid<T>(path: &Path, problem: impl Into<String>) -> Result<T, DatasetError> {
    Err(DatasetError::Invalid {
        path: path.into(),
        problem: problem.into(),
    })
}

/// A hundred thousand cases; a larger file is none. Read, JSON may take 44 times its bytes.
const MOST_JSON_BYTES: u64 = 16 << 20;

/// A JSON file that holds `what`.
fn json<T: DeserializeOwned>(path: &Path, what: &str) -> Result<T, DatasetError> {
    let read = std::fs::metadata(path).and_then(|metadata| match metadata.len() <= MOST_JSON_BYTES {
        true => std::fs::read(path),
        false => Err(std::io::Error::other(format!("it is larger than {what} can be"))),
    });
    let text = read.or_else(|e| invalid(path, format!("cannot be read: {e}")))?;
    serde_json::from_slice(&text).or_else(|e| match e.is_data() {
        true => invalid(path, format!("it is not {what}: {e}")),
        false => invalid(path, format!("it is not JSON: {e}")),
    })
}

impl Dataset {
    /// Reads a folder's description (and `splits_final.json`) by the first convention that it follows, and finds the
    /// training cases' files.
    ///
    /// # Errors
    /// A folder of no convention, region-based labels, or files that are missing; the scans themselves are not opened
    /// ([`Dataset::check`] does that).
    pub fn open(folder: &Path) -> Result<Dataset, DatasetError> {
        Dataset::open_as(CONVENTIONS, folder)
    }

    fn open_as(conventions: &[Convention], folder: &Path) -> Result<Dataset, DatasetError> {
        let (dataset, mut faults) = Dataset::survey_as(conventions, folder)?;
        let more = faults.len().saturating_sub(1);
        match faults.drain(..).next() {
            None => Ok(dataset),
            Some(DatasetError::Invalid { path, problem }) if more > 0 => {
                invalid(&path, format!("{problem}; there are {more} more faults"))
            }
            Some(fault) => Err(fault),
        }
    }

    /// [`Dataset::open`] of a folder in which not everything is as it must be: the cases whose files are there, and every fault of
    /// the others.
    ///
    /// # Errors
    /// A folder of no convention, or without cases.
    pub fn survey(folder: &Path) -> Result<(Dataset, Vec<DatasetError>), DatasetError> {
        Dataset::survey_as(CONVENTIONS, folder)
    }

    fn survey_as(
        conventions: &[Convention],
        folder: &Path,
    ) -> Result<(Dataset, Vec<DatasetError>), DatasetError> {
        let mut contents = None;
        for convention in conventions {
            contents = (convention.read)(folder)?;
            if contents.is_some() {
                break;
            }
        }
        let Some(contents) = contents else {
            let names: Vec<&str> = conventions.iter().map(|convention| convention.name).collect();
            let description = match folder.join("dataset.json").exists() {
                true => "its dataset.json is",
                false => "the folder has no dataset.json; it must be a dataset",
            };
            return invalid(
                folder,
                format!("{description} of no known layout: {}", names.join(" or ")),
            );
        };
        let Contents {
            channels,
            labels,
            ignore,
            mut cases,
            synthesis,
        } = contents;
        if cases.is_empty() {
            return invalid(folder, "the dataset has no training cases");
        }
        cases.sort_by(|a, b| a.id.cmp(&b.id));
        let fault = |path: &Path, problem: String| DatasetError::Invalid {
            path: path.into(),
            problem,
        };
        let mut faults = Vec::new();
        cases.dedup_by(|case, before| {
            let twice = case.id == before.id;
            if twice {
                faults.push(fault(folder, format!("the case {} is there twice", case.id)));
            }
            twice
        });
        let splits = folds::splits(&folder.join("splits_final.json"), &cases);
        let splits = splits.unwrap_or_else(|error| {
            faults.push(error);
            None
        });
        cases.retain(|case| {
            let files = case.images.iter().chain([&case.label]);
            let missing: Vec<&PathBuf> = files.filter(|file| !file.is_file()).collect();
            let problem = format!("the file of the case {} is missing", case.id);
            faults.extend(missing.iter().map(|file| fault(file, problem.clone())));
            missing.is_empty()
        });
        Ok((
            Dataset {
                folder: folder.into(),
                channels,
                labels,
                ignore,
                cases,
                synthesis,
                splits,
            },
            faults,
        ))
    }

    /// The folds to cross-validate with. Without `folds`: those of the folder's `splits_final.json` or, where there is
    /// none, `KFold(5, shuffle=True, random_state=12345)` over the sorted ids, which is nnU-Net's split.
    ///
    /// # Errors
    /// More folds than cases.
    pub fn folds(&self, folds: Option<Folds>) -> Result<Vec<Fold>, DatasetError> {
        match (folds, &self.splits) {
            (None | Some(Folds::Splits), Some(splits)) => return Ok(splits.clone()),
            (Some(Folds::Splits), None) => {
                let path = self.folder.join("splits_final.json");
                return invalid(&path, "the file is missing, and its folds were asked for");
            }
            _ => {}
        }
        let cases = self.cases.len();
        let count = match folds {
            None | Some(Folds::Splits) => folds::DEFAULT_FOLDS,
            Some(Folds::Count(count)) => count,
            Some(Folds::LeaveOneOut) if cases > 1 => {
                let others = |k| (0..cases).filter(|i| *i != k).collect();
                let fold = |k| Fold {
                    train: others(k),
                    validation: vec![k],
                };
                return Ok((0..cases).map(fold).collect());
            }
            Some(Folds::LeaveOneOut) => 2,
        };
        if count < 2 {
            return invalid(
                &self.folder,
                format!("{count} folds are too few to cross-validate with; take 2 or more"),
            );
        }
        if cases < count {
            let problem =
                format!("{cases} cases are too few for {count} folds; take fewer, or train on all of them");
            return invalid(&self.folder, problem);
        }
        Ok((0..count).map(|k| folds::k_fold(cases, count, k)).collect())
    }

    /// Fold `k`, from 0, of [`Dataset::folds`].
    ///
    /// # Errors
    /// A fold that does not exist, and those of [`Dataset::folds`].
    pub fn fold(&self, folds: Option<Folds>, k: usize) -> Result<Fold, DatasetError> {
        let mut all = self.folds(folds)?;
        if k < all.len() {
            return Ok(all.swap_remove(k));
        }
        let source = match (folds, &self.splits) {
            (None | Some(Folds::Splits), Some(_)) => self.folder.join("splits_final.json"),
            _ => self.folder.clone(),
        };
        invalid(
            &source,
            format!("there are folds 0 to {}, no fold {k}", all.len() - 1),
        )
    }

    /// Opens every header: each scan must have the channels that the dataset declares, on its label map's grid.
    ///
    /// # Errors
    /// The first file that cannot be read or does not fit.
    pub fn check(&self) -> Result<(), DatasetError> {
        for case in &self.cases {
            let mut channels = 0;
            let (label, _) = volume::read_geometry(&case.label)?;
            for image in &case.images {
                let (geometry, count) = volume::read_geometry(image)?;
                channels += count;
                same_grid(&case.label, &label, image, &geometry)?;
            }
            if channels != self.channels.len() {
                return invalid(&case.images[0], self.channels_problem(channels));
            }
        }
        Ok(())
    }

    fn channels_problem(&self, found: usize) -> String {
        format!(
            "the scan has {found} channels, the dataset declares {}: {:?}",
            self.channels.len(),
            self.channels
        )
    }

    /// Reads a case's scan with all its channels, `[C, X, Y, Z]`.
    ///
    /// # Errors
    /// A file that cannot be read, channels on different grids, or another number of channels than declared.
    pub fn image(&self, case: &Case) -> Result<Volume, DatasetError> {
        let volume = read_channels(&case.images)?;
        match volume.channels == self.channels.len() {
            true => Ok(volume),
            false => invalid(&case.images[0], self.channels_problem(volume.channels)),
        }
    }

    /// Reads a case's label map, which must lie on the grid of its scan; [`crate::preprocess::Preprocessing::prepare_labels`]
    /// turns its values into classes. Its geometry is the scan's, without what rounding makes of it in another file.
    ///
    /// # Errors
    /// A file that cannot be read, or that lies on another grid.
    pub fn label(&self, case: &Case, scan: &Geometry) -> Result<Volume, DatasetError> {
        let mut map = volume::read(&case.label)?;
        same_grid(&case.label, &map.geometry, &case.images[0], scan)?;
        map.geometry = scan.clone();
        Ok(map)
    }
}

/// Refuses a label map that lies on another grid than its scan: which of the two headers is right can't be known.
fn same_grid(label: &Path, map: &Geometry, image: &Path, scan: &Geometry) -> Result<(), DatasetError> {
    match map.difference(scan, SAME_PLACE) {
        None => Ok(()),
        Some(difference) => invalid(
            label,
            format!(
                "the label map is not on the grid of its scan {}: {difference}; resample it to the scan or, where its voxels \
                 are the scan's, give it the scan's header",
                image.display()
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn other(folder: &Path) -> Result<Option<Contents>, DatasetError> {
        if !folder.join("other.txt").exists() {
            return Ok(None);
        }
        Ok(Some(Contents {
            channels: vec!["CT".into()],
            labels: Vec::new(),
            ignore: None,
            cases: vec![Case {
                id: "a".into(),
                images: vec![folder.join("other.txt")],
                label: folder.join("other.txt"),
            }],
            synthesis: None,
        }))
    }

    #[test]
    fn conventions_are_tried_in_order_and_named_where_none_fits() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        let three = [
            decathlon::DECATHLON,
            nnunet::NNUNET,
            Convention {
                name: "another (other.txt)",
                read: other,
            },
        ];
        let message = Dataset::open_as(&three, path).unwrap_err().to_string();
        for part in ["no dataset.json", "Decathlon", "nnU-Net v2", "other.txt"] {
            assert!(message.contains(part), "`{part}` is not in {message}");
        }
        std::fs::write(path.join("other.txt"), "").unwrap();
        assert_eq!(Dataset::open_as(&three, path).unwrap().cases[0].id, "a");
        assert!(Dataset::open(path).is_err());
        // a folder of the first is never read by the last, even when it is broken
        std::fs::write(path.join("dataset.json"), "{").unwrap();
        let message = Dataset::open_as(&three, path).unwrap_err().to_string();
        assert!(message.contains("not JSON"), "{message}");
    }
}

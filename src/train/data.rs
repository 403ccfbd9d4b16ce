//! What training draws: the order of the cases and the augmentation of each.

use std::collections::BTreeMap;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use rand_distr::{Distribution, StandardNormal};

use crate::dataset::{Dataset, DatasetError, Fold, Synthesis};
use crate::host_memory;
use crate::preprocess::{Prepared, Preprocessing, centre, crop_or_pad};
use crate::tensor::Tensor;
use crate::volume::{self, Geometry};

/// A preprocessed case to train on, whole.
#[derive(Clone, Debug)]
pub struct TrainingCase {
    /// Its id.
    pub id: String,
    /// `[C, D, H, W]`, scaled.
    pub image: Tensor,
    /// `[1, D, H, W]`: class index, −1 where ignored.
    pub labels: Tensor,
}

impl TrainingCase {
    /// Image and labels on the training grid: centred along an axis that fits, at a random place along one that is longer.
    pub fn crop(&self, grid: [usize; 3], rng: &mut ChaCha8Rng) -> (Tensor, Tensor) {
        self.crop_about(grid, None, rng)
    }

    /// [`TrainingCase::crop`]; with `foreground` that share of the crops contains a voxel of a random one of the case's labels.
    pub(super) fn crop_about(
        &self,
        grid: [usize; 3],
        foreground: Option<(&Foreground, f32)>,
        rng: &mut ChaCha8Rng,
    ) -> (Tensor, Tensor) {
        let shape: [usize; 3] = std::array::from_fn(|a| self.image.shape[a + 1]);
        let mut origin = centre(shape, grid);
        let below = |rng: &mut ChaCha8Rng, n: usize| (rng.next_u64() % n as u64) as usize;
        let voxel = match foreground {
            Some((voxels, share)) if (0..3).any(|a| shape[a] > grid[a]) => {
                let is_chosen = (rng.next_u32() as f64) < share as f64 * u32::MAX as f64;
                voxels
                    .0
                    .get(below(rng, voxels.0.len().max(1)))
                    .filter(|_| is_chosen)
            }
            _ => None,
        };
        let voxel = voxel.map(|places| places[below(rng, places.len())] as usize);
        for a in 0..3 {
            if shape[a] > grid[a] {
                let inner: usize = shape[a + 1..].iter().product();
                let (least, most) = match voxel.map(|voxel| voxel / inner % shape[a]) {
                    Some(at) => ((at + 1).saturating_sub(grid[a]), at.min(shape[a] - grid[a])),
                    None => (0, shape[a] - grid[a]),
                };
                origin[a] = (least + below(rng, most - least + 1)) as isize;
            }
        }
        (
            crop_or_pad(&self.image, origin, grid, 0.0),
            crop_or_pad(&self.labels, origin, grid, 0.0),
        )
    }
}

/// Voxels of each label of a case but background: thousands of each at most, evenly taken.
#[derive(Clone, Debug)]
pub(super) struct Foreground(Vec<Vec<u32>>);

impl Foreground {
    const MOST: usize = 10_000;

    /// Of labels `[1, D, H, W]`; of what is learned, where images are made of them.
    pub fn of(labels: &Tensor, synthesis: Option<&Synthesis>) -> Foreground {
        let mut places = BTreeMap::<usize, Vec<u32>>::new();
        for (i, label) in labels.data.iter().enumerate().filter(|(_, label)| **label >= 1.0) {
            let label = *label as usize;
            let class = synthesis.map_or(label, |made| made.learned[label]);
            if class > 0 {
                places.entry(class).or_default().push(i as u32);
            }
        }
        let few = |all: Vec<u32>| {
            let step = all.len().div_ceil(Foreground::MOST);
            all.into_iter().step_by(step).collect()
        };
        Foreground(places.into_values().map(few).collect())
    }
}

/// A case to validate on, whole.
#[derive(Clone, Debug)]
pub struct ValidationCase {
    /// Its id.
    pub id: String,
    /// The preprocessed scan.
    pub prepared: Prepared,
    /// The scan's own grid.
    pub geometry: Geometry,
    /// File values on that grid.
    pub labels: Vec<i32>,
}

/// What images of held-out label maps are made by: no other image has these intensities.
const VALIDATION_SEED: u64 = 1 << 40;

/// Everything that training needs beside the settings.
#[derive(Clone, Debug)]
pub struct TrainingData {
    /// Name of the dataset's folder.
    pub dataset: String,
    /// How scans become tensors.
    pub preprocessing: Preprocessing,
    /// Cases trained on.
    pub training: Vec<TrainingCase>,
    /// Cases validated on.
    pub validation: Vec<ValidationCase>,
    /// How images are made of the training cases, whose own then have no channel, and whose labels are positions of
    /// [`Synthesis::values`].
    pub synthesis: Option<Synthesis>,
}

impl TrainingData {
    /// Reads and preprocesses a dataset: a fold's cases, or all of them to train on.
    ///
    /// # Errors
    /// Files that can't be read or don't fit; more cases than there is memory for, by their headers, before any is read.
    pub fn load(
        dataset: &Dataset,
        preprocessing: Preprocessing,
        fold: Option<&Fold>,
    ) -> Result<TrainingData, DatasetError> {
        let (train, validation) = match fold {
            Some(fold) => (fold.train.clone(), fold.validation.clone()),
            None => ((0..dataset.cases.len()).collect(), Vec::new()),
        };
        let needed = bytes(dataset, &preprocessing, &train, 1)?.saturating_add(bytes(
            dataset,
            &preprocessing,
            &validation,
            0,
        )?);
        host_memory::require(needed).map_err(|cause| DatasetError::Memory {
            path: dataset.folder.clone(),
            cases: train.len() + validation.len(),
            cause,
        })?;
        let training = train
            .into_iter()
            .map(|i| {
                let case = &dataset.cases[i];
                if let Some(synthesis) = &dataset.synthesis {
                    let made = Preprocessing {
                        labels: synthesis.labels(),
                        ..preprocessing.clone()
                    };
                    let labels = made.prepare_labels(&volume::read(&case.label)?)?;
                    let mut none = labels.shape.clone();
                    none[0] = 0;
                    return Ok(TrainingCase {
                        id: case.id.clone(),
                        image: Tensor::zeros(&none),
                        labels,
                    });
                }
                let scan = dataset.image(case)?;
                let image = preprocessing.prepare_image(&scan)?.image;
                let labels = preprocessing.prepare_labels(&dataset.label(case, &scan.geometry)?)?;
                Ok(TrainingCase {
                    id: case.id.clone(),
                    image,
                    labels,
                })
            })
            .collect::<Result<_, DatasetError>>()?;
        let validation = validation
            .into_iter()
            .map(|i| {
                let case = &dataset.cases[i];
                if let Some(synthesis) = &dataset.synthesis {
                    let map = volume::read(&case.label)?;
                    let (scan, labels) = synthesis.scan(&map, &dataset.labels, VALIDATION_SEED + i as u64)?;
                    return Ok(ValidationCase {
                        id: case.id.clone(),
                        prepared: preprocessing.prepare_image(&scan)?,
                        labels,
                        geometry: map.geometry,
                    });
                }
                let scan = dataset.image(case)?;
                Ok(ValidationCase {
                    id: case.id.clone(),
                    prepared: preprocessing.prepare_image(&scan)?,
                    labels: dataset.label(case, &scan.geometry)?.labels()?,
                    geometry: scan.geometry,
                })
            })
            .collect::<Result<_, DatasetError>>()?;
        let folder = dataset
            .folder
            .canonicalize()
            .unwrap_or_else(|_| dataset.folder.clone());
        let name = folder
            .file_name()
            .map(|n| n.to_string_lossy().into_owned())
            .unwrap_or_default();
        Ok(TrainingData {
            dataset: name,
            preprocessing,
            training,
            validation,
            synthesis: dataset.synthesis.clone(),
        })
    }
}

/// Bytes of the prepared scans of these cases, each with so many label maps on its prepared grid or, for none, one on its own
/// grid. Reads headers only.
fn bytes(
    dataset: &Dataset,
    preprocessing: &Preprocessing,
    cases: &[usize],
    maps: usize,
) -> Result<u64, DatasetError> {
    let mut sum = 0u64;
    for case in cases.iter().map(|i| &dataset.cases[*i]) {
        let (geometry, _) = volume::read_geometry(&case.images[0])?;
        let [d, h, w] = preprocessing.place(&geometry, &case.images[0])?.shape();
        let prepared = host_memory::bytes(&[dataset.channels.len() + maps, d, h, w], size_of::<f32>());
        let own = if maps == 0 {
            host_memory::bytes(&geometry.shape, size_of::<i32>())
        } else {
            0
        };
        sum = sum.saturating_add(prepared).saturating_add(own);
    }
    Ok(sum)
}

/// The order in which epoch `epoch` takes the cases: a Fisher–Yates shuffle with a stream of its own.
pub fn epoch_order(seed: u64, epoch: usize, cases: usize) -> Vec<usize> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(u64::MAX - epoch as u64);
    let mut order: Vec<usize> = (0..cases).collect();
    for i in (1..cases).rev() {
        // The bias of a 64-bit remainder is below 1e-15 for any dataset.
        order.swap(i, (rng.next_u64() % (i as u64 + 1)) as usize);
    }
    order
}

/// An affine matrix: identity + N(0, σ²) on all 12 entries, in normalised coordinates (method section 3).
pub fn augmentation(rng: &mut ChaCha8Rng, sigma: f32) -> [f32; 12] {
    std::array::from_fn(|i| {
        let z: f64 = StandardNormal.sample(rng);
        let identity = if i % 5 == 0 { 1.0 } else { 0.0 };
        identity + (z * sigma as f64) as f32
    })
}

/// Voxels of each class over all training cases.
pub fn label_counts(data: &TrainingData, classes: usize) -> Vec<u64> {
    let mut counts = vec![0; classes];
    let labels = data.training.iter().flat_map(|case| &case.labels.data);
    for label in labels.filter(|label| **label >= 0.0) {
        let label = *label as usize;
        let class = data.synthesis.as_ref().map_or(label, |made| made.learned[label]);
        counts[class] += 1;
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epochs_shuffle_differently_but_the_same_again() {
        let first = epoch_order(7, 0, 50);
        assert_eq!(first, epoch_order(7, 0, 50));
        assert_ne!(first, epoch_order(7, 1, 50));
        let mut sorted = first;
        sorted.sort();
        assert_eq!(sorted, (0..50).collect::<Vec<_>>());
    }
}

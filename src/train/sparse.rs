//! Sparse training (method sections 1 and 3): a few random locations of a few scans a step. The scans stay on the device,
//! smoothed once; a step reads those that it draws where they lie, so that its memory and time go with the locations and
//! not with the volume.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::Rng;

use super::data::epoch_order;
use super::graph::{Recipe, train_on};
use super::{Loss, Settings, TrainError, TrainingData, stream};
use crate::gpu::{Device, Executable, Resident};
use crate::graph::{Graph, GraphError};
use crate::model::{At, Builder, Network, Site};
use crate::predict::points::{Smoother, point_network};
use crate::preprocess::{crop_or_pad, tiles};
use crate::tensor::{Spec, Tensor};

/// One sparse training step as a graph: network, loss, gradients, Adam. For each of `scans` the resident input
/// `image.I`, flat `[1, C, D, H, W]` (smoothed), the inputs `points.I` `[1, S, 3]` (normalised x, y, z) and, with
/// `augment`, `theta.I` `[1, 3, 4]`, which turns the offsets; `labels` `[scans, 1, 1, 1, S]` (class index, −1 ignored) and,
/// with class weights, `class_weights` `[L]`. Keeps `loss` `[1]`. `shape` is C, D, H, W.
pub fn sparse_training_graph(
    network: &Network,
    shape: [usize; 4],
    scans: usize,
    samples: usize,
    classes: usize,
    loss: Loss,
    augment: bool,
) -> Result<Graph, GraphError> {
    let recipe = &Recipe::plain(loss, augment);
    sparse_graph(network, shape, scans, samples, classes, recipe)
}

/// [`sparse_training_graph`] by a recipe.
pub(super) fn sparse_graph(
    network: &Network,
    shape: [usize; 4],
    scans: usize,
    samples: usize,
    classes: usize,
    recipe: &Recipe,
) -> Result<Graph, GraphError> {
    let points = point_network(network)?;
    let mut graph = Graph::new();
    let [c, d, h, w] = shape;
    let mut sites = Vec::new();
    for i in 0..scans {
        let image = graph.resident(&format!("image.{i}"), Spec::flat(&[1, c, d, h, w]))?;
        let at = At::Points(graph.input(&format!("points.{i}"), Spec::flat(&[1, samples, 3]))?);
        let theta = match recipe.stages.moves {
            true => Some(graph.input(&format!("theta.{i}"), Spec::flat(&[1, 3, 4]))?),
            false => None,
        };
        sites.push(Site { image, at, theta });
    }
    let labels = graph.input("labels", Spec::flat(&[scans, 1, 1, 1, samples]))?;
    let mut builder = Builder::new(&mut graph, true);
    let logits = (points.at)(&mut builder, &sites, classes)?;
    train_on(&mut graph, &[logits], labels, classes, recipe)?;
    Ok(graph)
}

/// A part of a case that has the size of the training grid, so that normalised offsets mean the same in all of them.
struct Scan {
    image: Resident,
    labels: Tensor,
}

/// Where the inputs of a sparse step come from.
pub struct Sparse<'a> {
    settings: &'a Settings,
    data: &'a TrainingData,
    grid: [usize; 3],
    samples: usize,
    batches: usize,
    /// By case; a case that is larger than the grid is covered by several parts.
    scans: Vec<Vec<Scan>>,
}

/// What the scans that stay on the device took.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Residents {
    /// How many there are.
    pub scans: usize,
    /// Bytes on the device.
    pub bytes: u64,
    /// Seconds for cropping, upload and smoothing.
    pub seconds: f64,
}

impl<'a> Sparse<'a> {
    /// Uploads and smooths every case.
    pub async fn new(
        device: &Device,
        network: &Network,
        settings: &'a Settings,
        data: &'a TrainingData,
        grid: [usize; 3],
        samples: usize,
    ) -> Result<(Self, Residents), TrainError> {
        if data.synthesis.is_some() || settings.synthetic {
            let message = "images of label maps are made for trainings on all voxels only";
            return Err(TrainError::Settings(message.into()));
        }
        if data.training.is_empty() || samples == 0 {
            let message = "sparse training needs a case to train on and at least one sample";
            return Err(TrainError::Settings(message.into()));
        }
        let batches = settings.steps.unwrap_or(Settings::SPARSE_STEPS);
        if batches < settings.accumulate {
            let message = format!(
                "an epoch of {batches} batches has no step of {}",
                settings.accumulate
            );
            return Err(TrainError::Settings(message));
        }
        let start = web_time::Instant::now();
        let mut sparse = Sparse {
            settings,
            data,
            grid,
            samples,
            batches,
            scans: Vec::new(),
        };
        let smoother = Smoother::new(device, point_network(network)?, sparse.shape()).await?;
        for case in &data.training {
            let mut scans = Vec::new();
            let [_, d, h, w] = case.image.shape[..] else {
                unreachable!("a case is [C, D, H, W]")
            };
            for origin in tiles([d, h, w], grid) {
                let image = crop_or_pad(&case.image, origin, grid, 0.0);
                scans.push(Scan {
                    image: smoother.smooth(device, image).await?,
                    labels: crop_or_pad(&case.labels, origin, grid, 0.0),
                });
            }
            sparse.scans.push(scans);
        }
        device.done().await?;
        let all = || sparse.scans.iter().flatten();
        let residents = Residents {
            scans: all().count(),
            bytes: all().map(|s| s.image.bytes()).sum(),
            seconds: start.elapsed().as_secs_f64(),
        };
        Ok((sparse, residents))
    }

    /// Of an epoch.
    pub fn batches(&self) -> usize {
        self.batches
    }

    fn shape(&self) -> [usize; 4] {
        let [d, h, w] = self.grid;
        [self.data.preprocessing.channels.len(), d, h, w]
    }

    /// The cases of a batch, counted from the first epoch's.
    pub fn cases(&self, batch: usize) -> Vec<usize> {
        (0..self.settings.batch)
            .map(|slot| self.case(batch, slot))
            .collect()
    }

    fn case(&self, batch: usize, slot: usize) -> usize {
        // Pass after pass over the shuffled cases, wherever epochs end.
        let (index, cases) = (batch * self.settings.batch + slot, self.scans.len());
        epoch_order(self.settings.seed, index / cases, cases)[index % cases]
    }

    pub async fn upload(
        &self,
        device: &Device,
        executable: &mut Executable,
        index: usize,
    ) -> Result<(), TrainError> {
        let Settings {
            seed, batch, affine, ..
        } = *self.settings;
        let moves = self.settings.stages().moves;
        let spacing = self.data.preprocessing.grid_spacing();
        let mut labels = Vec::with_capacity(batch * self.samples);
        for slot in 0..batch {
            let case = &self.scans[self.case(index, slot)];
            let mut rng = stream(seed, index, slot);
            let scan = &case[below(&mut rng, case.len())];
            let augment = &self.settings.augment;
            let theta = augment.theta(&mut rng, affine, self.grid, spacing);
            let (points, classes) = draw(&mut rng, &scan.labels, &theta, self.samples);
            executable
                .bind(device, &format!("image.{slot}"), &scan.image)
                .await?;
            let points = Tensor::new(&[1, self.samples, 3], points);
            executable.upload(device, &format!("points.{slot}"), &points)?;
            if moves {
                let theta = Tensor::new(&[1, 3, 4], theta.to_vec());
                executable.upload(device, &format!("theta.{slot}"), &theta)?;
            }
            labels.extend(classes);
        }
        let labels = Tensor::new(&[batch, 1, 1, 1, self.samples], labels);
        executable.upload(device, "labels", &labels)?;
        Ok(())
    }
}

fn below(rng: &mut ChaCha8Rng, n: usize) -> usize {
    // The bias of a 64-bit remainder is below 1e-9 for any volume.
    (rng.next_u64() % n as u64) as usize
}

/// Random voxels p of a label map `[1, D, H, W]`, moved to p' = theta · (p, 1): the locations p' (x, y, z), normalised, and
/// the labels nearest to them, background outside. They are what an image augmented by theta would have at p.
fn draw(rng: &mut ChaCha8Rng, labels: &Tensor, theta: &[f32; 12], samples: usize) -> (Vec<f32>, Vec<f32>) {
    let size = [labels.shape[3], labels.shape[2], labels.shape[1]]; // x, y, z
    let mut points = Vec::with_capacity(samples * 3);
    let mut classes = Vec::with_capacity(samples);
    for _ in 0..samples {
        let p = size.map(|n| match n {
            1 => 0.0,
            _ => 2.0 * below(rng, n) as f64 / (n - 1) as f64 - 1.0,
        });
        let moved: [f64; 3] = std::array::from_fn(|row| {
            let [a, b, c, t] = std::array::from_fn(|column| theta[4 * row + column] as f64);
            a * p[0] + b * p[1] + c * p[2] + t
        });
        points.extend(moved.map(|v| v as f32));
        let voxel = std::array::from_fn(|axis| {
            ((moved[axis] + 1.0) / 2.0 * (size[axis] - 1) as f64).round_ties_even()
        });
        let inside = (0..3).all(|axis| voxel[axis] >= 0.0 && voxel[axis] < size[axis] as f64);
        let [x, y, z] = voxel.map(|v: f64| v as usize);
        classes.push(match inside {
            true => labels.data[(z * size[1] + y) * size[0] + x],
            false => 0.0,
        });
    }
    (points, classes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_chacha::rand_core::SeedableRng;

    /// Labels that say where they are: x + 10 y + 100 z on 7 × 6 × 5 voxels.
    fn labels() -> Tensor {
        Tensor::from_fn(&[1, 5, 6, 7], |i| {
            (i % 7 + 10 * (i / 7 % 6) + 100 * (i / 42)) as f32
        })
    }

    #[test]
    fn without_augmentation_locations_are_voxels_with_their_own_labels() {
        let identity = std::array::from_fn(|i| (i % 5 == 0) as u8 as f32);
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let (points, classes) = draw(&mut rng, &labels(), &identity, 2000);
        let mut seen = std::collections::BTreeSet::new();
        for (p, class) in points.chunks_exact(3).zip(classes) {
            let voxel: Vec<f32> = p
                .iter()
                .zip([7, 6, 5])
                .map(|(v, n)| (v + 1.0) / 2.0 * (n - 1) as f32)
                .collect();
            let expected = voxel[0] + 10.0 * voxel[1] + 100.0 * voxel[2];
            assert!((class - expected).abs() < 1e-3, "{voxel:?} has {class}");
            seen.insert(class as u32);
        }
        assert_eq!(seen.len(), 210, "every voxel is drawn");
    }

    #[test]
    fn a_shift_by_a_voxel_takes_the_neighbours_label_and_background_outside() {
        let mut theta: [f32; 12] = std::array::from_fn(|i| (i % 5 == 0) as u8 as f32);
        theta[3] = 2.0 / 6.0; // one voxel along x
        let mut rng = ChaCha8Rng::seed_from_u64(4);
        let (points, classes) = draw(&mut rng, &labels(), &theta, 500);
        let mut outside = 0;
        for (p, class) in points.chunks_exact(3).zip(classes) {
            if p[0] > 1.01 {
                assert_eq!(class, 0.0);
                outside += 1;
            } else {
                assert_eq!(class % 10.0, ((p[0] + 1.0) * 3.0).round());
            }
        }
        assert!(outside > 20);
    }
}

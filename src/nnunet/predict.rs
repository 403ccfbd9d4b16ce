//! Tiles through the network, and their logits to labels (`predict_from_raw_data.py`, `export_prediction.py`).

use std::ops::ControlFlow;

use half::f16;

use super::plan::Labels;
use super::prepare::{PrepareError, Prepared, prepare, signed};
use super::{Model, network};
use crate::gpu::{Device, Executable, GpuError, Weights};
use crate::graph::GraphError;
use crate::host_memory::{self, TooLarge};
use crate::op::StepScalars;
use crate::plan;
use crate::preprocess::crop_or_pad_values;
use crate::tensor::Tensor;
use crate::volume::{Reorientation, Volume};

/// The share of a patch between two tiles, where the scan does not want less.
pub const STEP: f64 = 0.5;
/// The Gaussian's standard deviation over the patch, how many of them are taken on each side, and its peak.
const SIGMA: f64 = 1.0 / 8.0;
const TRUNCATED: f64 = 4.0;
const PEAK: f64 = 10.0;

/// What can go wrong while predicting.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NnunetError {
    /// The scan does not fit the model.
    #[error(transparent)]
    Prepare(#[from] PrepareError),
    /// The network can't be built or planned.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// The device failed.
    #[error(transparent)]
    Gpu(#[from] GpuError),
    /// There is no memory for the logits.
    #[error("the scan's logits are too large: {0}")]
    Memory(#[from] TooLarge),
    /// The network gave what is no number.
    #[error("the logits of the scan are not finite: its weights or the scan are damaged")]
    NotFinite,
    /// The caller said so.
    #[error("stopped before the end")]
    Stopped,
}

/// A model ready to segment scans.
#[derive(Debug)]
pub struct Segmenter<'m> {
    model: &'m Model,
    weights: Weights,
    executable: Executable,
    /// The fold whose tensors are on the device.
    loaded: usize,
    gaussian: Vec<f32>,
    /// How a tile is mirrored, pass by pass.
    mirrored: Vec<Reorientation>,
}

/// Logits of a scan on the network's grid, in half precision. nnU-Net adds its tiles up in it, which shows in a scan's corners:
/// there a tile counts so little that its products with the weight lose most of their digits.
#[derive(Debug)]
pub struct Logits {
    /// `[outputs, D, H, W]`.
    data: Vec<f16>,
    prepared: Prepared,
}

impl<'m> Segmenter<'m> {
    /// Plans the network. `mirroring` runs each tile along all the axes that the model allows.
    ///
    /// # Errors
    /// Tensors that are missing or of other shapes, and a device that has not the memory.
    pub async fn new(
        device: &Device,
        model: &'m Model,
        mirroring: bool,
    ) -> Result<Segmenter<'m>, NnunetError> {
        let graph = network::graph(&model.plan)?;
        let plan = plan::Plan::new(&graph, device.caps())?;
        tracing::debug!("inference plan:\n{plan}");
        let weights = Weights::new(device, &plan, false).await?;
        weights.upload(device, &model.folds[0])?;
        let axes = match mirroring {
            true => model.plan.mirrored_axes(),
            false => vec![Vec::new()],
        };
        Ok(Segmenter {
            model,
            executable: Executable::new(device, plan, &weights).await?,
            weights,
            loaded: 0,
            gaussian: gaussian(model.plan.patch),
            mirrored: axes.iter().map(|axes| Reorientation::mirror(axes)).collect(),
        })
    }

    /// Label values `[X, Y, Z]` of a scan on its own grid. `watch` hears the share of the tiles that are done; `Break` ends it.
    ///
    /// # Errors
    /// A scan that does not fit the model, no memory, the device's failures.
    pub async fn labels(
        &mut self,
        device: &Device,
        scans: &[Volume],
        watch: &mut dyn FnMut(f64) -> ControlFlow<()>,
    ) -> Result<Vec<i32>, NnunetError> {
        let logits = self.logits(device, scans, watch).await?;
        self.labels_of(&logits)
    }

    /// Logits of a scan on the network's grid, the mean over the folds.
    ///
    /// # Errors
    /// As [`Segmenter::labels`].
    pub async fn logits(
        &mut self,
        device: &Device,
        scans: &[Volume],
        watch: &mut dyn FnMut(f64) -> ControlFlow<()>,
    ) -> Result<Logits, NnunetError> {
        let prepared = prepare(&self.model.plan, scans)?;
        let outputs = self.model.plan.labels.names().len();
        let volume: usize = prepared.size.iter().product();
        let patch = self.model.plan.patch;
        let folds = self.model.folds.len();
        host_memory::require(host_memory::bytes(&[outputs + 1, volume], 2 * folds.min(2)))?;
        let origins = tiles(prepared.size, patch);
        let mut weights = vec![f16::ZERO; volume];
        for origin in &origins {
            add_tile(&mut weights, prepared.size, *origin, patch, |at| {
                self.gaussian[at]
            });
        }
        let passes = (folds * origins.len() * self.mirrored.len()) as f64;
        let mut done = 0;
        let mut report = || {
            done += 1;
            watch(f64::from(done) / passes)
        };
        let mut data: Vec<f16> = Vec::new();
        for fold in 0..folds {
            let mut sums = vec![f16::ZERO; outputs * volume];
            if self.loaded != fold {
                self.weights.upload(device, &self.model.folds[fold])?;
                self.loaded = fold;
            }
            for origin in &origins {
                let tile = crop_or_pad_values(&prepared.data, prepared.size, signed(*origin), patch, 0.0);
                let logits = self.tile_logits(device, &tile, &mut report).await?;
                for (own, to) in logits
                    .chunks_exact(logits.len() / outputs)
                    .zip(sums.chunks_exact_mut(volume))
                {
                    add_tile(to, prepared.size, *origin, patch, |at| {
                        own[at] * self.gaussian[at]
                    });
                }
            }
            for sums in sums.chunks_exact_mut(volume) {
                for (sum, weight) in sums.iter_mut().zip(&weights) {
                    *sum = f16::from_f32(sum.to_f32() / weight.to_f32());
                }
            }
            match fold {
                0 => data = sums,
                _ => data
                    .iter_mut()
                    .zip(&sums)
                    .for_each(|(all, own)| *all = f16::from_f32(all.to_f32() + own.to_f32())),
            }
        }
        if folds > 1 {
            data.iter_mut()
                .for_each(|v| *v = f16::from_f32(v.to_f32() / folds as f32));
        }
        match data.iter().all(|v| v.is_finite()) {
            true => Ok(Logits { data, prepared }),
            false => Err(NnunetError::NotFinite),
        }
    }

    /// Logits of a tile, the mean over its mirror images.
    async fn tile_logits(
        &mut self,
        device: &Device,
        tile: &[f32],
        report: &mut impl FnMut() -> ControlFlow<()>,
    ) -> Result<Vec<f32>, NnunetError> {
        let patch = self.model.plan.patch;
        let shape = [1, self.model.plan.channels.len(), patch[0], patch[1], patch[2]];
        let outputs = self.model.plan.labels.names().len();
        let mut logits: Vec<f32> = Vec::new();
        for mirror in &self.mirrored {
            let image = Tensor::new(&shape, mirror.apply(tile, shape[1], patch));
            self.executable.upload(device, "image", &image)?;
            self.executable.submit(device, &StepScalars::default())?;
            let found = self.executable.read(device, "logits").await?.data;
            let found = mirror.apply(&found, outputs, patch);
            match logits.is_empty() {
                true => logits = found,
                false => logits.iter_mut().zip(&found).for_each(|(sum, v)| *sum += v),
            }
            if report().is_break() {
                return Err(NnunetError::Stopped);
            }
        }
        let images = self.mirrored.len() as f32;
        logits.iter_mut().for_each(|v| *v /= images);
        Ok(logits)
    }

    /// Labels `[X, Y, Z]` from logits: each output is resampled to the scan's box by itself, against the best so far.
    ///
    /// # Errors
    /// No memory for an output at the scan's size.
    pub fn labels_of(&self, logits: &Logits) -> Result<Vec<i32>, NnunetError> {
        let placement = &logits.prepared.placement;
        let voxels: usize = placement.size().iter().product();
        host_memory::require(3 * host_memory::bytes(&[voxels], 4))?;
        let mut labels = vec![0; voxels];
        let mut best = Vec::new();
        for (output, name) in self.model.plan.labels.names().iter().enumerate() {
            let own = self.output(logits, output)?;
            match &self.model.plan.labels {
                Labels::Exclusive(_) if output == 0 => best = own,
                Labels::Exclusive(_) => {
                    for ((label, best), v) in labels.iter_mut().zip(&mut best).zip(own) {
                        if v > *best {
                            (*label, *best) = (name.value, v);
                        }
                    }
                }
                // A probability above a half.
                Labels::Regions(_) => {
                    for (label, _) in labels.iter_mut().zip(&own).filter(|(_, v)| **v > 0.0) {
                        *label = name.value;
                    }
                }
            }
        }
        Ok(placement.restore(&labels)?)
    }

    /// Logits of one output at the size of the scan's box, `[D, H, W]`, axes transposed.
    ///
    /// # Errors
    /// No memory for them.
    pub fn output(&self, logits: &Logits, output: usize) -> Result<Vec<f32>, NnunetError> {
        let prepared = &logits.prepared;
        let volume: usize = prepared.size.iter().product();
        let (first, size) = prepared.inner;
        let own = &logits.data[output * volume..(output + 1) * volume];
        host_memory::require(host_memory::bytes(&size, 6))?;
        let inner = crop_or_pad_values(own, prepared.size, signed(first), size, f16::ZERO);
        let inner: Vec<f32> = inner.into_iter().map(f16::to_f32).collect();
        let placement = &prepared.placement;
        let mut resampled = self.model.plan.logits_resampling.apply(
            &inner,
            (size, self.model.plan.spacing),
            (placement.size(), placement.spacing),
        )?;
        resampled.iter_mut().for_each(|v| *v = f16::from_f32(*v).to_f32());
        Ok(resampled)
    }
}

/// Adds a value for each voxel of a tile, by its position in it.
fn add_tile(
    to: &mut [f16],
    size: [usize; 3],
    origin: [usize; 3],
    patch: [usize; 3],
    value: impl Fn(usize) -> f32,
) {
    for d in 0..patch[0] {
        for h in 0..patch[1] {
            let row = ((origin[0] + d) * size[1] + origin[1] + h) * size[2] + origin[2];
            let own = (d * patch[1] + h) * patch[2];
            for (w, to) in to[row..row + patch[2]].iter_mut().enumerate() {
                *to = f16::from_f32(to.to_f32() + value(own + w));
            }
        }
    }
}

/// First voxels of the tiles that cover a volume: as far apart as [`STEP`] allows, evenly.
fn tiles(size: [usize; 3], patch: [usize; 3]) -> Vec<[usize; 3]> {
    let [d, h, w] = [0, 1, 2].map(|a| starts(size[a], patch[a]));
    let rows = d.iter().flat_map(|d| h.iter().map(move |h| (*d, *h)));
    rows.flat_map(|(d, h)| w.iter().map(move |w| [d, h, *w]))
        .collect()
}

fn starts(size: usize, patch: usize) -> Vec<usize> {
    let most = (size - patch) as f64;
    let count = (most / (patch as f64 * STEP)).ceil() as usize + 1;
    let apart = most / (count.max(2) - 1) as f64;
    (0..count)
        .map(|i| (apart * i as f64).round_ties_even() as usize)
        .collect()
}

/// How much a tile's voxels count: nnU-Net's, which has them in half precision.
fn gaussian(patch: [usize; 3]) -> Vec<f32> {
    let axes = patch.map(|size| {
        let sigma = size as f64 * SIGMA;
        let radius = (TRUNCATED * sigma + 0.5) as usize;
        let at = |i: usize| (-0.5 * (i as f64 / sigma).powi(2)).exp();
        let centre = size / 2;
        let one = |i: usize| {
            let distance = i.abs_diff(centre);
            if distance <= radius { at(distance) } else { 0.0 }
        };
        (0..size).map(one).collect::<Vec<f64>>()
    });
    let [d, h, w] = &axes;
    let mut weights: Vec<f32> = Vec::with_capacity(patch.iter().product());
    for z in d {
        for y in h {
            weights.extend(
                w.iter()
                    .map(|x| f16::from_f32((PEAK * z * y * x) as f32).to_f32()),
            );
        }
    }
    let least = weights
        .iter()
        .copied()
        .filter(|v| *v > 0.0)
        .fold(f32::INFINITY, f32::min);
    weights.iter_mut().filter(|v| **v == 0.0).for_each(|v| *v = least);
    weights
}

#[cfg(test)]
mod tests {
    use super::*;

    /// nnU-Net's own example: 110 voxels, tiles of 64.
    #[test]
    fn tiles_begin_where_nnunets_do() {
        assert_eq!(starts(110, 64), [0, 23, 46]);
        assert_eq!(starts(64, 64), [0]);
        assert_eq!(starts(65, 64), [0, 1]);
    }

    #[test]
    fn weights_are_highest_in_the_middle_and_never_zero() {
        let weights = gaussian([8, 6, 32]);
        assert_eq!(weights[(4 * 6 + 3) * 32 + 16], 10.0);
        assert!(weights.iter().all(|w| *w > 0.0 && *w <= 10.0));
    }
}

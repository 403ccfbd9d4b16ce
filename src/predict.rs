//! Scan to labels with trained weights: preprocess, tile, run the inference graph, bring logits back to the scan.

pub mod ensemble;
pub mod points;

use std::collections::HashMap;
use std::ops::{ControlFlow, Range};

use crate::finite::{Search, first_in, is_finite};
use crate::gpu::{Device, Executable, GpuError, Weights};
use crate::graph::{Graph, GraphError};
use crate::host_memory::{self, TooLarge};
use crate::model::{Builder, Network};
use crate::op::StepScalars;
use crate::op::arg_max::ArgMax;
use crate::plan::Plan;
use crate::preprocess::{
    Placement, Prepared, Preprocessing, TileMerger, check_tiles, crop_or_pad, crop_or_pad_owned, tiles,
};
use crate::tensor::{Spec, Tensor};
use crate::volume::{Volume, VolumeError};

/// What can go wrong while predicting.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PredictError {
    /// The scan does not fit the model's preprocessing.
    #[error(transparent)]
    Preprocess(#[from] VolumeError),
    /// The network can't be built or planned.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// The device failed.
    #[error(transparent)]
    Gpu(#[from] GpuError),
    /// There is no memory for what the scan takes: its logits and labels, and what a device without memory of its own takes.
    #[error("the scan is too large: {0}; {percent} % of its voxels would fit", percent = .0.fits())]
    Memory(#[from] TooLarge),
    /// The network's grid is too small for the scan.
    #[error("{0}")]
    Grid(String),
    /// A location that is not in the scan.
    #[error("location {} lies outside the scan, at voxel {voxel:?}", .index + 1)]
    Outside {
        /// Its position among the locations.
        index: usize,
        /// Where it is in the scan's voxels.
        voxel: [f64; 3],
    },
    /// Logits that are not finite are nothing to choose labels by.
    #[error("the logits are not finite{}", first_in(.layer))]
    NotFinite {
        /// What first was not finite, in words, where it was looked for and found.
        layer: Option<String>,
    },
    /// The caller's [`Watch`] said so.
    #[error("stopped before the end")]
    Stopped,
}

/// Hears the share done, 0 to 1, after each part of a prediction; `Break` stops it.
pub type Watch<'w> = &'w mut dyn FnMut(f64) -> ControlFlow<()>;

/// Operations between two calls of a [`Watch`]: 5 ms where a GPU does 200 GFLOP a second.
const WATCHED_FLOPS: u64 = 1_000_000_000;

/// What an inference graph keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Keep {
    /// `logits` `[1, L, D, H, W]`.
    Logits,
    /// `labels` `[1, 1, D, H, W]`, the class of the highest logit and the first of equal ones: a small part of the memory
    /// and of the way back.
    Labels,
}

/// A network for inference on a grid (D, H, W): `image` `[1, C, D, H, W]` in, logits kept.
pub fn inference_graph(
    network: &Network,
    preprocessing: &Preprocessing,
    grid: [usize; 3],
) -> Result<Graph, GraphError> {
    inference_graph_keeping(network, preprocessing, grid, Keep::Logits)
}

/// [`inference_graph`], or the same with labels kept instead.
pub fn inference_graph_keeping(
    network: &Network,
    preprocessing: &Preprocessing,
    grid: [usize; 3],
    keep: Keep,
) -> Result<Graph, GraphError> {
    let mut graph = Graph::new();
    let [d, h, w] = grid;
    let image = graph.input("image", Spec::flat(&[1, preprocessing.channels.len(), d, h, w]))?;
    let mut builder = Builder::new(&mut graph, false);
    let logits = network.build(&mut builder, image, preprocessing.labels.len())?;
    match keep {
        Keep::Logits => graph.keep("logits", logits),
        Keep::Labels => {
            let labels = graph.push1(ArgMax, &[logits])?;
            graph.keep("labels", labels);
        }
    }
    Ok(graph)
}

/// A network ready to segment scans: one tile of the preprocessing's grid at a time or, where it has no grid, each scan
/// as a whole, planned anew whenever a scan's size differs from the last one's.
#[derive(Debug)]
pub struct Predictor {
    network: Network,
    preprocessing: Preprocessing,
    /// For planning anew; empty where the weights are shared.
    tensors: HashMap<String, Tensor>,
    planned: Option<Planned>,
}

/// A network on a grid, or on slabs of it.
#[derive(Debug)]
struct Planned {
    grid: [usize; 3],
    keep: Keep,
    slabs: Slabs,
    executable: Executable,
}

impl Planned {
    /// What the network keeps of an image `[C, D, H, W]` of the grid's size: logits `[L, D, H, W]`, or labels `[1, D, H, W]`.
    async fn run(
        &self,
        device: &Device,
        image: Tensor,
        watch: &mut Option<Watch<'_>>,
        share: impl Fn(f64) -> f64,
    ) -> Result<Tensor, PredictError> {
        let Slabs { planes, each } = &self.slabs;
        if each.len() == 1 {
            return self.run_slab(device, image, watch, share).await;
        }
        let [depth, height, width] = self.grid;
        let plane = height * width;
        let mut whole: Option<Tensor> = None;
        for (i, (first, kept)) in each.iter().enumerate() {
            let slab = crop_or_pad(&image, [*first as isize, 0, 0], [*planes, height, width], 0.0);
            let share = |done| share((i as f64 + done) / each.len() as f64);
            let found = self.run_slab(device, slab, watch, share).await?;
            let channels = found.shape[0];
            let whole = whole.get_or_insert_with(|| Tensor::zeros(&[channels, depth, height, width]));
            for channel in 0..channels {
                let from = (channel * planes + kept.start - first) * plane;
                let to = (channel * depth + kept.start) * plane;
                let length = kept.len() * plane;
                whole.data[to..to + length].copy_from_slice(&found.data[from..from + length]);
            }
        }
        Ok(whole.expect("several slabs"))
    }

    async fn run_slab(
        &self,
        device: &Device,
        mut image: Tensor,
        watch: &mut Option<Watch<'_>>,
        share: impl Fn(f64) -> f64,
    ) -> Result<Tensor, PredictError> {
        let name = match self.keep {
            Keep::Logits => "logits",
            Keep::Labels => "labels",
        };
        image.shape.insert(0, 1);
        self.executable.upload(device, "image", &image)?;
        drop(image);
        run(device, &self.executable, watch, share).await?;
        let mut found = self.executable.read(device, name).await?;
        found.shape.remove(0);
        Ok(found)
    }
}

impl Predictor {
    /// Plans the network for the device and the preprocessing's grid, with weights shared with training.
    ///
    /// # Errors
    /// A preprocessing without a grid, and a network that can't be planned on it.
    pub async fn new(
        device: &Device,
        network: &Network,
        preprocessing: &Preprocessing,
        weights: &Weights,
    ) -> Result<Predictor, PredictError> {
        let grid = preprocessing
            .grid
            .ok_or_else(|| GraphError::Name("shared weights need a preprocessing with a grid".into()))?;
        let plan = plan(device, network, preprocessing, grid, Keep::Logits)?;
        Predictor::planned(device, network, preprocessing, plan, weights).await
    }

    /// [`Predictor::new`] of a plan for the preprocessing's grid that keeps logits.
    pub(crate) async fn planned(
        device: &Device,
        network: &Network,
        preprocessing: &Preprocessing,
        plan: Plan,
        weights: &Weights,
    ) -> Result<Predictor, PredictError> {
        let grid = preprocessing.grid.expect("the plan is for it");
        let executable = Executable::new(device, plan, weights).await?;
        Ok(Predictor {
            network: *network,
            preprocessing: preprocessing.clone(),
            tensors: HashMap::new(),
            planned: Some(Planned {
                grid,
                keep: Keep::Logits,
                slabs: Slabs::whole(grid),
                executable,
            }),
        })
    }

    /// A predictor with weights of its own, by name; checked at once where the preprocessing has a grid.
    ///
    /// # Errors
    /// A network that can't be planned on the grid, tensors that are missing or of other shapes.
    pub async fn with_weights(
        device: &Device,
        network: &Network,
        preprocessing: &Preprocessing,
        tensors: &HashMap<String, Tensor>,
    ) -> Result<Predictor, PredictError> {
        if let Some(grid) = preprocessing.grid {
            // Pipelines wait for the first scan, which decides whether logits are kept.
            let (plan, _) = plan_in_slabs(device, network, preprocessing, grid, Keep::Labels)?;
            let weights = Weights::new(device, &plan, false).await?;
            weights.upload(device, tensors)?;
        }
        Ok(Predictor {
            network: *network,
            preprocessing: preprocessing.clone(),
            tensors: tensors.clone(),
            planned: None,
        })
    }

    /// The network on a grid, once it is sure that there is memory for it and for so many bytes on the host.
    async fn plan_for(
        &mut self,
        device: &Device,
        grid: [usize; 3],
        keep: Keep,
        host: u64,
    ) -> Result<&Planned, PredictError> {
        let planned = self.planned.as_ref();
        if planned.is_some_and(|planned| (planned.grid, planned.keep) == (grid, keep)) {
            device.require(0, host)?;
        } else {
            self.planned = None; // its memory is free for the next
            let (plan, slabs) = plan_in_slabs(device, &self.network, &self.preprocessing, grid, keep)?;
            device.require(plan.device_bytes(), host)?;
            let weights = Weights::new(device, &plan, false).await?;
            weights.upload(device, &self.tensors)?;
            self.planned = Some(Planned {
                grid,
                keep,
                slabs,
                executable: Executable::new(device, plan, &weights).await?,
            });
        }
        Ok(self.planned.as_ref().expect("planned above"))
    }

    /// Label values `[X, Y, Z]` of a scan on its own grid, the same as [`Predictor::segment`]'s. Where nothing is resampled
    /// and one tile covers the scan, logits never leave the device.
    pub async fn labels(&mut self, device: &Device, scan: &Volume) -> Result<Vec<i32>, PredictError> {
        self.labels_in_parts(device, scan, None).await
    }

    /// [`Predictor::labels`] in parts, for callers that draw or may change their minds meanwhile.
    ///
    /// # Errors
    /// As [`Predictor::labels`], and [`PredictError::Stopped`].
    pub async fn labels_watched(
        &mut self,
        device: &Device,
        scan: &Volume,
        watch: Watch<'_>,
    ) -> Result<Vec<i32>, PredictError> {
        self.labels_in_parts(device, scan, Some(watch)).await
    }

    async fn labels_in_parts(
        &mut self,
        device: &Device,
        scan: &Volume,
        mut watch: Option<Watch<'_>>,
    ) -> Result<Vec<i32>, PredictError> {
        let prepared = self.preprocessing.prepare_image(scan)?;
        let shape = prepared.placement.shape();
        let grid = self.preprocessing.grid.unwrap_or(shape);
        check_tiles(shape, grid).map_err(PredictError::Grid)?;
        let origins = tiles(shape, grid);
        // Shared weights (of training) come with their one plan.
        let fixed = self.tensors.is_empty();
        if fixed || kept(&self.preprocessing, &prepared.placement) == Keep::Logits {
            let logits = self.tiles(device, &prepared, watch).await?;
            return Ok(self.preprocessing.restore_labels(&logits, &prepared.placement));
        }
        let Prepared { image, placement } = prepared;
        let image = cut(image, origins[0], grid);
        let host = host_bytes(&self.preprocessing, &placement, Keep::Labels);
        let planned = self.plan_for(device, grid, Keep::Labels, host).await?;
        let labels = planned.run(device, image, &mut watch, |share| share).await?;
        if labels.data.contains(&ArgMax::NONE) {
            // The scan made way for its labels.
            let prepared = self.preprocessing.prepare_image(scan)?;
            let layer = self.first_not_finite(device, &prepared, &self.tensors).await;
            return Err(PredictError::NotFinite { layer });
        }
        let labels = cut(labels, origins[0].map(|o| -o), shape);
        Ok(self.preprocessing.restore_classes(&labels, &placement))
    }

    /// Logits `[L, D, H, W]` on the whole grid of a preprocessed scan.
    pub async fn logits(&mut self, device: &Device, prepared: &Prepared) -> Result<Tensor, PredictError> {
        self.tiles(device, prepared, None).await
    }

    async fn tiles(
        &mut self,
        device: &Device,
        prepared: &Prepared,
        mut watch: Option<Watch<'_>>,
    ) -> Result<Tensor, PredictError> {
        let shape = prepared.placement.shape();
        let grid = self.preprocessing.grid.unwrap_or(shape);
        check_tiles(shape, grid).map_err(PredictError::Grid)?;
        let classes = self.preprocessing.labels.len();
        let origins = tiles(shape, grid);
        let count = origins.len() as f64;
        let host = host_bytes(&self.preprocessing, &prepared.placement, Keep::Logits);
        self.plan_for(device, grid, Keep::Logits, host).await?;
        let planned = self.planned.as_ref().expect("planned above");
        let mut merger = TileMerger::new(classes, shape, grid)?;
        for (index, origin) in origins.into_iter().enumerate() {
            let image = crop_or_pad(&prepared.image, origin, grid, 0.0);
            let share = |share| (index as f64 + share) / count;
            let logits = planned.run(device, image, &mut watch, share).await?;
            if !is_finite(&logits) {
                let layer = self.first_not_finite(device, prepared, &self.tensors).await;
                return Err(PredictError::NotFinite { layer });
            }
            merger.add(origin, &logits.data);
        }
        Ok(merger.finish())
    }

    /// Label values `[X, Y, Z]` of a scan on its own grid, with the logits `[L, D, H, W]` on the preprocessed grid.
    pub async fn segment(
        &mut self,
        device: &Device,
        scan: &Volume,
    ) -> Result<(Vec<i32>, Tensor), PredictError> {
        let prepared = self.preprocessing.prepare_image(scan)?;
        let logits = self.logits(device, &prepared).await?;
        let labels = self.preprocessing.restore_labels(&logits, &prepared.placement);
        Ok((labels, logits))
    }

    /// What the network, with these weights, first makes of a scan that is not finite, in words; `None` where it is not found.
    pub(crate) async fn first_not_finite(
        &self,
        device: &Device,
        prepared: &Prepared,
        tensors: &HashMap<String, Tensor>,
    ) -> Option<String> {
        let shape = prepared.placement.shape();
        let grid = self.preprocessing.grid.unwrap_or(shape);
        let graph = inference_graph(&self.network, &self.preprocessing, grid).ok()?;
        let mut search = Search::new(device, &graph, tensors).await.ok()?;
        for origin in tiles(shape, grid) {
            let mut image = crop_or_pad(&prepared.image, origin, grid, 0.0);
            image.shape.insert(0, 1);
            search.executable().upload(device, "image", &image).ok()?;
            let found = search.run(device, &StepScalars::default()).await.ok()?;
            if found.is_some() {
                return found;
            }
        }
        None
    }

    /// The preprocessing that scans go through.
    pub fn preprocessing(&self) -> &Preprocessing {
        &self.preprocessing
    }
}

/// What the network keeps for a scan's labels: they are the device's where nothing is resampled and one tile covers the scan.
pub(crate) fn kept(preprocessing: &Preprocessing, placement: &Placement) -> Keep {
    let shape = placement.shape();
    let grid = preprocessing.grid.unwrap_or(shape);
    match placement.is_resampled() || tiles(shape, grid).len() > 1 {
        true => Keep::Logits,
        false => Keep::Labels,
    }
}

/// Bytes of host memory that a scan's labels take at most beside the prepared scan.
pub(crate) fn host_bytes(preprocessing: &Preprocessing, placement: &Placement, keep: Keep) -> u64 {
    let shape = placement.shape();
    let grid = preprocessing.grid.unwrap_or(shape);
    let classes = preprocessing.labels.len();
    let staged = |values: usize| 2 * host_memory::bytes(&grid, values * size_of::<f32>());
    let device = match keep {
        Keep::Labels => staged(1),
        Keep::Logits => staged(classes).saturating_add(TileMerger::bytes(classes, shape, grid)),
    };
    let image = staged(preprocessing.channels.len());
    device
        .saturating_add(image)
        .saturating_add(placement.label_bytes())
}

/// Runs the network on what was uploaded, in parts where someone hears of them; `share` is that of all, given this run's.
async fn run(
    device: &Device,
    executable: &Executable,
    watch: &mut Option<Watch<'_>>,
    share: impl Fn(f64) -> f64,
) -> Result<(), PredictError> {
    let step = StepScalars::default();
    let Some(watch) = watch else {
        return Ok(executable.submit(device, &step)?);
    };
    let mut report = |done: f64| watch(share(done));
    let parts = executable.submit_in_parts(device, &step, WATCHED_FLOPS, &mut report);
    match parts.await? {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(PredictError::Stopped),
    }
}

/// [`crop_or_pad`] without a copy where there is nothing to cut.
fn cut(array: Tensor, origin: [isize; 3], grid: [usize; 3]) -> Tensor {
    let [channels, d, h, w] = array.shape[..].try_into().expect("[C, D, H, W]");
    let data = crop_or_pad_owned(array.data, [d, h, w], origin, grid, 0.0);
    Tensor::new(&[channels, grid[0], grid[1], grid[2]], data)
}

/// How a network goes over a grid: slabs of so many planes, by the first plane of each and the planes of the grid that are
/// kept of it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Slabs {
    pub planes: usize,
    pub each: Vec<(usize, Range<usize>)>,
}

impl Slabs {
    fn whole(grid: [usize; 3]) -> Slabs {
        Slabs {
            planes: grid[0],
            each: vec![(0, 0..grid[0])],
        }
    }

    /// So many slabs of a grid for a network that sees `reach` planes away; `None` where they would keep nothing.
    fn new(depth: usize, reach: usize, count: usize) -> Option<Slabs> {
        let planes = (depth + 2 * reach * (count - 1)).div_ceil(count);
        if planes <= 2 * reach || planes >= depth {
            return None;
        }
        let mut each = Vec::with_capacity(count);
        let mut end = 0;
        for i in 0..count {
            let first = (i * (planes - 2 * reach)).min(depth - planes);
            let start = end;
            end = if i + 1 == count {
                depth
            } else {
                first + planes - reach
            };
            each.push((first, start..end));
        }
        Some(Slabs { planes, each })
    }
}

/// The plan of [`inference_graph_keeping`] for a grid, or where the adapter's limits do not allow it and the network sees only so
/// far, for the fewest slabs of it.
pub(crate) fn plan_in_slabs(
    device: &Device,
    network: &Network,
    preprocessing: &Preprocessing,
    grid: [usize; 3],
    keep: Keep,
) -> Result<(Plan, Slabs), GraphError> {
    let plan = |planes| {
        let grid = [planes, grid[1], grid[2]];
        plan(device, network, preprocessing, grid, keep)
    };
    let refused = match plan(grid[0]) {
        Ok(plan) => return Ok((plan, Slabs::whole(grid))),
        Err(error) => error,
    };
    if let (GraphError::Limit { .. }, Some(reach)) = (&refused, network.reach()) {
        let slabs = (2..=grid[0]).map_while(|count| Slabs::new(grid[0], reach, count));
        let mut slabs: Vec<Slabs> = slabs.collect();
        // More slabs are thinner ones.
        let fewest = slabs.partition_point(|slabs| plan(slabs.planes).is_err());
        if fewest < slabs.len() {
            let slabs = slabs.swap_remove(fewest);
            return Ok((plan(slabs.planes)?, slabs));
        }
    }
    Err(refused)
}

/// The plan of [`inference_graph_keeping`].
pub(crate) fn plan(
    device: &Device,
    network: &Network,
    preprocessing: &Preprocessing,
    grid: [usize; 3],
    keep: Keep,
) -> Result<Plan, GraphError> {
    let graph = inference_graph_keeping(network, preprocessing, grid, keep)?;
    let plan = Plan::new(&graph, device.caps())?;
    tracing::debug!("inference plan:\n{plan}");
    Ok(plan)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slabs_keep_every_plane_once_and_none_near_a_cut() {
        for (depth, reach) in [(256, 46), (100, 7), (33, 3)] {
            for count in 2..=6 {
                let Some(slabs) = Slabs::new(depth, reach, count) else {
                    continue;
                };
                let mut next = 0;
                for (first, kept) in &slabs.each {
                    let end = first + slabs.planes;
                    assert!(kept.start == next && end <= depth, "{slabs:?}");
                    assert!(*first == 0 || kept.start >= first + reach, "{slabs:?}");
                    assert!(end == depth || kept.end + reach <= end, "{slabs:?}");
                    next = kept.end;
                }
                assert_eq!(next, depth);
            }
        }
        assert_eq!(Slabs::new(64, 46, 8), None);
    }
}

//! Scan to labels with trained weights: preprocess, tile, run the inference graph, bring logits back to the scan.

pub mod points;

use std::collections::HashMap;
use std::ops::ControlFlow;

use crate::finite::{Search, first_in, is_finite};
use crate::gpu::{Device, Executable, GpuError, Weights};
use crate::graph::{Graph, GraphError};
use crate::host_memory::{self, TooLarge};
use crate::model::{Builder, Network};
use crate::op::StepScalars;
use crate::op::arg_max::ArgMax;
use crate::plan::Plan;
use crate::preprocess::{Placement, Prepared, Preprocessing, TileMerger, check_tiles, crop_or_pad, tiles};
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
    let mut builder = Builder {
        graph: &mut graph,
        training: false,
    };
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
    planned: Option<([usize; 3], Keep, Executable)>,
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
            planned: Some((grid, Keep::Logits, executable)),
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
            let plan = plan(device, network, preprocessing, grid, Keep::Labels)?;
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
    ) -> Result<&Executable, PredictError> {
        let planned = self.planned.as_ref();
        if planned.is_some_and(|(has_grid, has, _)| (*has_grid, *has) == (grid, keep)) {
            device.require(0, host)?;
        } else {
            self.planned = None; // its memory is free for the next
            let plan = plan(device, &self.network, &self.preprocessing, grid, keep)?;
            device.require(plan.device_bytes(), host)?;
            let weights = Weights::new(device, &plan, false).await?;
            weights.upload(device, &self.tensors)?;
            self.planned = Some((grid, keep, Executable::new(device, plan, &weights).await?));
        }
        Ok(&self.planned.as_ref().expect("planned above").2)
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
        let mut image = cut(image, origins[0], grid);
        image.shape.insert(0, 1);
        let host = host_bytes(&self.preprocessing, &placement, Keep::Labels);
        let executable = self.plan_for(device, grid, Keep::Labels, host).await?;
        executable.upload(device, "image", &image)?;
        drop(image);
        run(device, executable, &mut watch, |share| share).await?;
        let mut labels = executable.read(device, "labels").await?;
        if labels.data.contains(&ArgMax::NONE) {
            // The scan made way for its labels.
            let prepared = self.preprocessing.prepare_image(scan)?;
            let layer = self.first_not_finite(device, &prepared, &self.tensors).await;
            return Err(PredictError::NotFinite { layer });
        }
        labels.shape.remove(0);
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
        let (_, _, executable) = self.planned.as_ref().expect("planned above");
        let mut merger = TileMerger::new(classes, shape, grid)?;
        for (index, origin) in origins.into_iter().enumerate() {
            let mut image = crop_or_pad(&prepared.image, origin, grid, 0.0);
            image.shape.insert(0, 1);
            executable.upload(device, "image", &image)?;
            run(device, executable, &mut watch, |share| {
                (index as f64 + share) / count
            })
            .await?;
            let logits = executable.read(device, "logits").await?;
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
    match origin == [0; 3] && array.shape[1..] == grid {
        true => array,
        false => crop_or_pad(&array, origin, grid, 0.0),
    }
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

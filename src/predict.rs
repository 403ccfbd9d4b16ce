//! Scan to labels with trained weights: preprocess, tile, run the inference graph, bring logits back to the scan.

use std::collections::HashMap;

use crate::gpu::{Device, Executable, GpuError, Weights};
use crate::graph::{Graph, GraphError};
use crate::model::{Builder, Network};
use crate::op::StepScalars;
use crate::plan::Plan;
use crate::preprocess::{Prepared, Preprocessing, TileMerger, crop_or_pad, tiles};
use crate::tensor::{Spec, Tensor};
use crate::volume::{Volume, VolumeError};

/// What can go wrong while predicting.
#[derive(Debug, thiserror::Error)]
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
}

/// A network for inference on a grid (D, H, W): `image` `[1, C, D, H, W]` in, `logits` `[1, L, D, H, W]` kept.
pub fn inference_graph(
    network: &Network,
    preprocessing: &Preprocessing,
    grid: [usize; 3],
) -> Result<Graph, GraphError> {
    let mut graph = Graph::new();
    let [d, h, w] = grid;
    let image = graph.input("image", Spec::flat(&[1, preprocessing.channels.len(), d, h, w]))?;
    let mut builder = Builder {
        graph: &mut graph,
        training: false,
    };
    let logits = (network.build)(&mut builder, image, preprocessing.labels.len())?;
    graph.keep("logits", logits);
    Ok(graph)
}

/// A network ready to segment scans, one tile of its grid at a time.
#[derive(Debug)]
pub struct Predictor {
    executable: Executable,
    preprocessing: Preprocessing,
    grid: [usize; 3],
}

impl Predictor {
    /// Plans the network for the device and the preprocessing's grid; `weights` may be shared with training.
    pub async fn new(
        device: &Device,
        network: &Network,
        preprocessing: &Preprocessing,
        grid: [usize; 3],
        weights: &Weights,
    ) -> Result<Predictor, PredictError> {
        let plan = Plan::new(&inference_graph(network, preprocessing, grid)?, device.caps())?;
        Predictor::from_plan(device, plan, preprocessing, grid, weights).await
    }

    /// A predictor with weights of its own, by name.
    pub async fn with_weights(
        device: &Device,
        network: &Network,
        preprocessing: &Preprocessing,
        grid: [usize; 3],
        tensors: &HashMap<String, Tensor>,
    ) -> Result<Predictor, PredictError> {
        let plan = Plan::new(&inference_graph(network, preprocessing, grid)?, device.caps())?;
        let weights = Weights::new(device, &plan, false).await?;
        weights.upload(device, tensors)?;
        Predictor::from_plan(device, plan, preprocessing, grid, &weights).await
    }

    async fn from_plan(
        device: &Device,
        plan: Plan,
        preprocessing: &Preprocessing,
        grid: [usize; 3],
        weights: &Weights,
    ) -> Result<Predictor, PredictError> {
        tracing::debug!("inference plan:\n{plan}");
        let executable = Executable::new(device, plan, weights).await?;
        Ok(Predictor {
            executable,
            preprocessing: preprocessing.clone(),
            grid,
        })
    }

    /// Logits `[L, D, H, W]` on the whole grid of a preprocessed scan.
    pub async fn logits(&self, device: &Device, prepared: &Prepared) -> Result<Tensor, PredictError> {
        let shape = prepared.placement.shape();
        let mut merger = TileMerger::new(self.preprocessing.labels.len(), shape, self.grid);
        for origin in tiles(shape, self.grid) {
            let mut image = crop_or_pad(&prepared.image, origin, self.grid, 0.0);
            image.shape.insert(0, 1);
            self.executable.upload(device, "image", &image)?;
            self.executable.submit(device, &StepScalars::default())?;
            let logits = self.executable.read(device, "logits").await?;
            merger.add(origin, &logits.data);
        }
        Ok(merger.finish())
    }

    /// Label values `[X, Y, Z]` of a scan on its own grid, with the logits `[L, D, H, W]` on the preprocessed grid.
    pub async fn segment(&self, device: &Device, scan: &Volume) -> Result<(Vec<i32>, Tensor), PredictError> {
        let prepared = self.preprocessing.prepare_image(scan)?;
        let logits = self.logits(device, &prepared).await?;
        let labels = self.preprocessing.restore_labels(&logits, &prepared.placement);
        Ok((labels, logits))
    }

    /// The preprocessing that scans go through.
    pub fn preprocessing(&self) -> &Preprocessing {
        &self.preprocessing
    }
}

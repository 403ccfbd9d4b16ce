//! Prediction at any set of locations, at a cost in proportion to their number.

use crate::gpu::{Device, Executable, GpuError, Resident, Weights};
use crate::graph::{Graph, GraphError};
use crate::model::PointNetwork;
use crate::op::StepScalars;
use crate::plan::Plan;
use crate::tensor::{Spec, Tensor};

use super::PredictError;

/// What a scan goes through once before any location of it is looked at: uploaded and smoothed on the device, where it
/// stays in a buffer of its own.
#[derive(Debug)]
pub struct Smoother {
    executable: Executable,
}

impl Smoother {
    /// Plans the smoothing of images `[C, D, H, W]` of that shape.
    pub async fn new(
        device: &Device,
        network: &PointNetwork,
        shape: [usize; 4],
    ) -> Result<Smoother, PredictError> {
        let mut graph = Graph::new();
        let [c, d, h, w] = shape;
        let image = graph.input("image", Spec::flat(&[1, c, d, h, w]))?;
        let smoothed = (network.smooth)(&mut graph, image)?;
        graph.keep("smoothed", smoothed);
        let plan = Plan::new(&graph, device.caps())?;
        let weights = Weights::new(device, &plan, false).await?;
        let executable = Executable::new(device, plan, &weights).await?;
        Ok(Smoother { executable })
    }

    /// The smoothed image, on the device.
    pub async fn smooth(&self, device: &Device, mut image: Tensor) -> Result<Resident, GpuError> {
        image.shape.insert(0, 1);
        self.executable.upload(device, "image", &image)?;
        self.executable.submit(device, &StepScalars::default())?;
        self.executable.resident(device, "smoothed").await
    }
}

/// The network's own locations, or why it has none.
pub(crate) fn point_network(network: &crate::model::Network) -> Result<&PointNetwork, GraphError> {
    network.points.as_ref().ok_or_else(|| {
        GraphError::Name(format!(
            "`{}` sees whole images only; networks for single locations are {}",
            network.name,
            crate::model::point_networks().join(", ")
        ))
    })
}

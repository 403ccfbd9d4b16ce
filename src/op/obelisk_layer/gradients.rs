//! Which kernels the gradients of offsets and weights run, and the operation that has both.

use super::layer::Layer;
use super::{ObeliskLayer, ObeliskLayerOffsetGradient, ObeliskLayerWeightGradient};
use crate::op::obelisk_sample::Sampling;
use crate::op::*;

/// Second stages of both gradients.
pub const TOTAL: Shader = shader!(
    "obelisk_layer_total",
    "common/divide",
    "common/obelisk",
    "common/sum64",
    "common/trilinear"; Sampling);

/// Kernels of the offsets' gradient, alone or with the weights'.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum OffsetVariant {
    /// One kernel for both gradients; eight lanes share the upstream gradient by shuffles.
    Lanes,
    /// Each invocation reads its own upstream gradient, and one sums the partial results of a number.
    InvocationTotals,
    /// The same, but a workgroup sums the partial results of a number: a GPU has more invocations than there are numbers.
    WorkgroupTotals,
}

impl OffsetVariant {
    pub fn new(target: Target) -> Self {
        match target {
            Target::CpuLanes(_) => OffsetVariant::Lanes,
            Target::Cpu => OffsetVariant::InvocationTotals,
            Target::Gpu => OffsetVariant::WorkgroupTotals,
        }
    }

    /// As plans print it.
    pub fn name(self) -> &'static str {
        match self {
            OffsetVariant::Lanes => "lanes",
            OffsetVariant::InvocationTotals => "invocation totals",
            OffsetVariant::WorkgroupTotals => "workgroup totals",
        }
    }
}

/// Kernels of the weights' gradient.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum WeightVariant {
    /// As [`OffsetVariant::Lanes`].
    Lanes,
    /// Each invocation reads its own upstream gradient.
    Direct,
}

impl WeightVariant {
    pub fn new(target: Target) -> Self {
        match target {
            Target::CpuLanes(_) => WeightVariant::Lanes,
            Target::Cpu | Target::Gpu => WeightVariant::Direct,
        }
    }

    /// As plans print it.
    pub fn name(self) -> &'static str {
        match self {
            WeightVariant::Lanes => "lanes",
            WeightVariant::Direct => "direct",
        }
    }
}

/// dL/do and dL/dW of [`ObeliskLayer`], which lanes compute in one kernel. Inputs: its inputs, then dL/dF.
#[derive(Clone, Copy, Debug)]
pub struct ObeliskLayerGradients(pub ObeliskLayer);

impl Op for ObeliskLayerGradients {
    fn name(&self) -> &'static str {
        "obelisk_layer_gradients"
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>, GraphError> {
        let offsets = ObeliskLayerOffsetGradient(self.0).outputs(inputs)?;
        Ok([offsets, ObeliskLayerWeightGradient(self.0).outputs(inputs)?].concat())
    }

    fn dispatches(&self, io: &mut Io, caps: &Caps) -> Result<Vec<Dispatch>, GraphError> {
        let layer = Layer::new(self.name(), &io.inputs[..io.inputs.len() - 1], &self.0)?;
        let (offsets, weights) = (BufferRef::Output(0), BufferRef::Output(1));
        let shared = match OffsetVariant::new(caps.target) {
            OffsetVariant::Lanes => return Ok(layer.lanes_gradients(io, caps, offsets, weights)),
            OffsetVariant::InvocationTotals => false,
            OffsetVariant::WorkgroupTotals => true,
        };
        let mut dispatches = layer.offset_gradient(shared, io, caps, offsets);
        dispatches.extend(layer.weight_gradient(io, caps, weights));
        Ok(dispatches)
    }

    fn variant(&self, _: &Io, caps: &Caps) -> &'static str {
        OffsetVariant::new(caps.target).name()
    }

    fn reference(&self, inputs: &[&Tensor], step: &StepScalars) -> Vec<Tensor> {
        let offsets = ObeliskLayerOffsetGradient(self.0).reference(inputs, step);
        [
            offsets,
            ObeliskLayerWeightGradient(self.0).reference(inputs, step),
        ]
        .concat()
    }
}

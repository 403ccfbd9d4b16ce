//! The label of the highest output of a convolution, without the outputs in memory.

use super::kernels::{Labels, Pointwise};
use super::*;
use crate::op::arg_max::ArgMax;

/// [`Conv3d`], a 1×1×1 convolution behind it if `pointwise`, and [`ArgMax`] behind that: plans put it in their place where a
/// kernel has all outputs of a voxel at hand. Inputs: the convolution's, then weight `[L, C, 1, 1, 1]` and bias `[L]` of the
/// 1×1×1 convolution. Output: labels, flat `[N, 1, D, H, W]`.
#[derive(Clone, Copy, Debug)]
pub struct Conv3dLabels {
    /// The convolution.
    pub conv: Conv3d,
    /// Whether a 1×1×1 convolution follows.
    pub pointwise: bool,
}

impl Conv3dLabels {
    /// Whether an invocation of the convolution's kernel has all outputs of a voxel on this adapter.
    pub fn fits(&self, inputs: &[Spec], caps: &Caps) -> Result<bool, GraphError> {
        let lattice = self.lattice(inputs)?;
        Ok(lattice.y.1.blocks() <= 4 && lattice.variant(false, caps) == SumVariant::Winograd)
    }

    /// The inputs of the convolution, and of the 1×1×1 convolution behind it.
    fn split<'a, T>(&self, inputs: &'a [T]) -> (&'a [T], &'a [T]) {
        inputs.split_at(inputs.len() - if self.pointwise { 2 } else { 0 })
    }

    fn lattice(&self, inputs: &[Spec]) -> Result<Lattice, GraphError> {
        let (convolved, behind) = self.split(inputs);
        let y = &self.conv.outputs(convolved)?[0];
        let first = convolved.len();
        let count = self.conv.sources(first);
        let pointwise = behind.first().map(|weight| Pointwise {
            weight: (
                BufferRef::Input(first),
                weight.ncdhw().expect("checked on insertion"),
            ),
            bias: BufferRef::Input(first + 1),
        });
        let [n, _, d, h, w] = y.ncdhw().expect("a map");
        Ok(Lattice {
            labels: Some(Labels {
                labels: (BufferRef::Output(0), Spec::flat(&[n, 1, d, h, w])),
                pointwise,
            }),
            ..self.conv.lattice(convolved, y, 0..count)
        })
    }
}

impl Op for Conv3dLabels {
    fn name(&self) -> &'static str {
        "conv3d labels"
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>, GraphError> {
        let (convolved, behind) = self.split(inputs);
        let mut logits = self.conv.outputs(convolved)?;
        if self.pointwise {
            let config = Conv3dConfig::default();
            let pointwise = Conv3d {
                config,
                bias: true,
                slope: None,
            };
            logits.extend_from_slice(behind);
            logits = pointwise.outputs(&logits)?;
        }
        ArgMax.outputs(&logits)
    }

    fn dispatches(&self, io: &mut Io, caps: &Caps) -> Result<Vec<Dispatch>, GraphError> {
        if !self.fits(io.inputs, caps)? {
            let reason =
                "no kernel has all outputs of a voxel at hand: put an arg max behind the convolution";
            return Err(GraphError::shape(self.name(), io.inputs, reason));
        }
        let lattice = self.lattice(io.inputs)?;
        kernels::dispatches(vec![(lattice, SumVariant::Winograd)], io, caps)
    }

    fn variant(&self, _: &Io, _: &Caps) -> &'static str {
        SumVariant::Winograd.name()
    }

    fn reference(&self, inputs: &[&Tensor], step: &StepScalars) -> Vec<Tensor> {
        let (convolved, behind) = self.split(inputs);
        let mut logits = self.conv.reference(convolved, step).remove(0);
        if let [weight, bias] = behind {
            logits = reference::forward(&Conv3dConfig::default(), &logits, weight, Some(bias));
        }
        ArgMax.reference(&[&logits], step)
    }

    fn reads(&self, inputs: &[Spec], outputs: &[Spec], planes: Range<usize>) -> Option<Reads> {
        let mut reads = self.conv.reads(self.split(inputs).0, outputs, planes)?;
        reads.resize(inputs.len(), None);
        Some(reads)
    }
}

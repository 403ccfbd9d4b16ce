//! The label of the highest output of a convolution, without the outputs in memory.

use super::kernels::{Labels, Pointwise};
use super::*;
use crate::op::arg_max::ArgMax;

/// [`Conv3d`], a 1×1×1 convolution behind it if `pointwise`, and [`ArgMax`] behind that: plans put it in their place where a
/// kernel has all outputs of a voxel at hand. Inputs: the convolution's, then weight `[L, C, 1, 1, 1]` and bias `[L]` of the
/// 1×1×1 convolution. Output: labels, flat `[N, 1, D, H, W]`.
#[derive(Clone, Copy, Debug)]
pub struct Conv3dLabels {
    conv: Conv3d,
    pointwise: bool,
}

/// Adds the node that tells labels in place of `logits`, where a convolution makes them for the arg max alone and its kernel
/// on this adapter can.
pub(in crate::op) fn without_logits(
    graph: &mut Graph,
    logits: Value,
    sole: Sole,
    caps: &Caps,
) -> Result<Option<Vec<Value>>, GraphError> {
    let made = |graph: &Graph, value: Value| match graph.producer::<Conv3d>(value) {
        Some((conv, inputs)) if sole(value) => Some((*conv, inputs.to_vec())),
        _ => None,
    };
    let Some((last, inputs)) = made(graph, logits) else {
        return Ok(None);
    };
    let mut found = vec![(
        Conv3dLabels {
            conv: last,
            pointwise: false,
        },
        inputs.clone(),
    )];
    if let [x, weight, bias] = inputs[..]
        && last.bias
        && last.slope.is_none()
        && last.config == Conv3dConfig::default()
        && graph.shape(weight)[2..] == [1, 1, 1]
        && let Some((conv, mut inputs)) = made(graph, x)
    {
        inputs.extend([weight, bias]);
        found.push((
            Conv3dLabels {
                conv,
                pointwise: true,
            },
            inputs,
        ));
    }
    for (op, inputs) in found {
        let specs: Vec<Spec> = inputs.iter().map(|v| graph.spec(*v).clone()).collect();
        if op.lattice(&specs)?.has_labels(caps) {
            return graph.push(op, &inputs).map(Some);
        }
    }
    Ok(None)
}

impl Conv3dLabels {
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
        self.lattice(io.inputs)?.dispatches(io, caps)
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

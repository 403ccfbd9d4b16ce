//! Resampling to the nearest voxel: upsampling of maps, and labels for losses at lower resolutions.

use super::separable::{Filter, filter_axes, planes_read};
use super::*;

/// An image or map `[N, C, D, H, W]` at another size: voxel i of an axis is ⌊(i + ½)·in/out⌋ of the input, whose centre is the
/// nearest, the upper one of two (PyTorch's `interpolate(mode="nearest-exact")`; for whole factors of upsampling also
/// `mode="nearest"`).
#[derive(Clone, Copy, Debug)]
pub struct Nearest {
    /// Depth, height and width of the output.
    pub size: [usize; 3],
}

/// The gradient of [`Nearest`]: each input voxel sums the outputs that are it.
#[derive(Clone, Copy, Debug)]
pub struct NearestGradient {
    /// Depth, height and width of the input.
    pub size: [usize; 3],
}

fn resized(op: &'static str, inputs: &[Spec], size: [usize; 3]) -> Result<Vec<Spec>, GraphError> {
    match inputs {
        [x] if x.shape.len() == 5 && x.count() > 0 && size.iter().all(|s| *s > 0) => Ok(vec![Spec {
            shape: [&x.shape[..2], &size].concat(),
            layout: x.layout,
        }]),
        _ => {
            let reason =
                format!("takes one image or map [N, C, D, H, W] to size {size:?}, no axis of it zero");
            Err(GraphError::shape(op, inputs, reason))
        }
    }
}

/// The input voxel of output `i`, of an axis with `from` inputs and `to` outputs.
pub(super) fn nearest(i: usize, from: usize, to: usize) -> usize {
    (2 * i + 1) * from / (2 * to)
}

/// Calls `visit(input index, output index)` for every output voxel.
fn voxels(input: &Tensor, output: &Tensor, mut visit: impl FnMut(usize, usize)) {
    let [_, channels, d, h, w] = output.ncdhw();
    let [_, _, id, ih, iw] = input.ncdhw();
    for to in 0..output.data.len() {
        let (x, y, z, outer) = (to % w, to / w % h, to / w / h % d, to / w / h / d);
        let (n, c) = (outer / channels, outer % channels);
        visit(
            input.index(n, c, nearest(z, id, d), nearest(y, ih, h), nearest(x, iw, w)),
            to,
        );
    }
}

/// The planes of a map that its slabs read; those of an image are not in the order of its depth.
fn reads(filter: Filter, inputs: &[Spec], depth: usize, planes: Range<usize>) -> Option<Reads> {
    let (layout, from) = (inputs[0].layout, inputs[0].shape[2]);
    (layout == Layout::Map).then(|| {
        let read = match filter.changes(from, depth) {
            true => planes_read(filter, &planes, from, depth),
            false => planes,
        };
        vec![Some(read)]
    })
}

impl Op for Nearest {
    fn name(&self) -> &'static str {
        "nearest"
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>, GraphError> {
        resized(self.name(), inputs, self.size)
    }

    fn dispatches(&self, io: &mut Io, caps: &Caps) -> Result<Vec<Dispatch>, GraphError> {
        filter_axes(self.name(), Filter::Nearest, io, caps)
    }

    fn rematerialise(&self, node: &NodeView, _: &[Spec]) -> Option<(Arc<dyn Op>, Vec<Value>)> {
        Some((Arc::new(*self), node.inputs.clone()))
    }

    fn reads(&self, inputs: &[Spec], _: &[Spec], planes: Range<usize>) -> Option<Reads> {
        reads(Filter::Nearest, inputs, self.size[0], planes)
    }

    fn gradient(
        &self,
        graph: &mut Graph,
        node: &NodeView,
        upstream: &[Option<Value>],
        _: &[bool],
    ) -> Result<Vec<Gradient>, GraphError> {
        let [_, _, d, h, w] = graph.spec(node.inputs[0]).ncdhw().expect("five axes");
        let upstream = upstream[0].expect("the one output has a gradient");
        let gradient = graph.push1(NearestGradient { size: [d, h, w] }, &[upstream])?;
        Ok(vec![Gradient::Flows(gradient)])
    }

    fn reference(&self, inputs: &[&Tensor], _: &StepScalars) -> Vec<Tensor> {
        let [n, c, ..] = inputs[0].ncdhw();
        let mut output = Tensor::zeros(&[n, c, self.size[0], self.size[1], self.size[2]]);
        let mut values = vec![0.0; output.data.len()];
        voxels(inputs[0], &output, |from, to| values[to] = inputs[0].data[from]);
        output.data = values;
        vec![output]
    }
}

impl Op for NearestGradient {
    fn name(&self) -> &'static str {
        "nearest_gradient"
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>, GraphError> {
        resized(self.name(), inputs, self.size)
    }

    fn dispatches(&self, io: &mut Io, caps: &Caps) -> Result<Vec<Dispatch>, GraphError> {
        filter_axes(self.name(), Filter::NearestGradient, io, caps)
    }

    fn reads(&self, inputs: &[Spec], _: &[Spec], planes: Range<usize>) -> Option<Reads> {
        reads(Filter::NearestGradient, inputs, self.size[0], planes)
    }

    fn gradient(
        &self,
        graph: &mut Graph,
        node: &NodeView,
        upstream: &[Option<Value>],
        _: &[bool],
    ) -> Result<Vec<Gradient>, GraphError> {
        let [_, _, d, h, w] = graph.spec(node.inputs[0]).ncdhw().expect("five axes");
        let upstream = upstream[0].expect("the one output has a gradient");
        let gradient = graph.push1(Nearest { size: [d, h, w] }, &[upstream])?;
        Ok(vec![Gradient::Flows(gradient)])
    }

    fn reference(&self, inputs: &[&Tensor], _: &StepScalars) -> Vec<Tensor> {
        let [n, c, ..] = inputs[0].ncdhw();
        let mut output = Tensor::zeros(&[n, c, self.size[0], self.size[1], self.size[2]]);
        let mut sums = vec![0f64; output.data.len()];
        voxels(&output, inputs[0], |to, from| {
            sums[to] += f64::from(inputs[0].data[from])
        });
        output.data = sums.into_iter().map(|v| v as f32).collect();
        vec![output]
    }
}

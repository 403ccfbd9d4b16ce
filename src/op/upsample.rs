//! Trilinear upsampling of feature maps to a named size.

use super::separable::{Filter, filter_axes, pieces, planes_read, taps, too_large};
use super::*;

params! {
    /// The uniform of `upsample.wgsl`.
    struct Params {
        /// Columns of this dispatch.
        count: u32,
        /// First slice.
        first: u32,
        /// Past the last slice.
        end: u32,
        /// Element at which the output's binding starts.
        base: u32,
        /// And the input's.
        source_base: u32,
        /// Columns of a plane.
        columns_y: u32,
        columns_x: u32,
        blocks: u32,
        depth: u32,
        height: u32,
        width: u32,
        in_depth: u32,
        in_height: u32,
        in_width: u32,
    }
}

/// Trilinear resampling of a map to `[N, C, size[0], size[1], size[2]]` with half-pixel centres, as PyTorch's
/// `interpolate(size, mode="trilinear", align_corners=False)`: output i of an axis reads at
/// max(0, (i + ½)·in/out − ½), and the voxel past the last repeats it. Works for any sizes, downwards too (without
/// smoothing). Input and output are maps.
#[derive(Clone, Copy, Debug)]
pub struct Upsample {
    /// Depth, height and width of the output.
    pub size: [usize; 3],
}

/// The gradient of [`Upsample`]: from a map of the size that it makes to one of the size that it reads. Each input
/// voxel gathers the outputs that read it, in a fixed order.
#[derive(Clone, Copy, Debug)]
pub struct UpsampleGradient {
    /// Depth, height and width of the upsampling's input.
    pub size: [usize; 3],
}

/// Output slices of one invocation.
const DEPTHS: usize = 8;

fn resized(op: &'static str, inputs: &[Spec], size: [usize; 3]) -> Result<Vec<Spec>, GraphError> {
    match inputs {
        [x] if x.layout == Layout::Map && x.count() > 0 && size.iter().all(|s| *s > 0) => {
            let [n, c, ..] = x.ncdhw().expect("maps have five axes");
            Ok(vec![Spec::map([n, c, size[0], size[1], size[2]])])
        }
        _ => Err(GraphError::shape(
            op,
            inputs,
            format!("takes one map [N, C, D, H, W] to size {size:?}, no axis of it zero"),
        )),
    }
}

/// Calls `visit(input index, output index, weight)` for the eight corners of every output element.
fn corners(input: &Tensor, output: &Tensor, mut visit: impl FnMut(usize, usize, f64)) {
    let [n, c, d, h, w] = output.ncdhw();
    let [_, _, id, ih, iw] = input.ncdhw();
    for n in 0..n {
        for c in 0..c {
            for z in 0..d {
                for y in 0..h {
                    for x in 0..w {
                        let at = output.index(n, c, z, y, x);
                        let axes = [taps(z, id, d), taps(y, ih, h), taps(x, iw, w)];
                        for corner in 0..8 {
                            let (mut index, mut weight) = ([0; 3], 1.0);
                            for (axis, (low, high, fraction)) in axes.into_iter().enumerate() {
                                let upper = corner >> axis & 1 == 1;
                                index[axis] = if upper { high } else { low };
                                weight *= if upper { fraction } else { 1.0 - fraction };
                            }
                            visit(input.index(n, c, index[0], index[1], index[2]), at, weight);
                        }
                    }
                }
            }
        }
    }
}

impl Upsample {
    /// First and last plane that an output plane reads, of an input of that depth.
    fn reach(&self, plane: usize, depth: usize) -> (usize, usize) {
        let (low, high, _) = taps(plane % self.size[0], depth, self.size[0]);
        let first = plane / self.size[0] * depth;
        (first + low, first + high)
    }
}

impl Op for Upsample {
    fn name(&self) -> &'static str {
        "upsample"
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>, GraphError> {
        resized(self.name(), inputs, self.size)
    }

    fn dispatches(&self, io: &mut Io, caps: &Caps) -> Result<Vec<Dispatch>, GraphError> {
        let [n, _, d, h, w] = io.inputs[0].ncdhw().expect("checked on insertion");
        let [out_d, out_h, out_w] = self.size;
        // On a GPU caches make loads cheap, and outputs beside each other are written at once.
        let side = if caps.target.is_cpu() && [out_h, out_w] == [2 * h, 2 * w] {
            2
        } else {
            1
        };
        let [columns_y, columns_x] = match side {
            2 => [h + 1, w + 1],
            _ => [out_h, out_w],
        };
        let blocks = io.inputs[0].blocks();
        let slice_bytes = |h: usize, w: usize| (blocks * h * w * 16) as u64;
        let reads = |slice: usize| self.reach(slice, d);
        let output = (n * out_d, slice_bytes(out_h, out_w));
        let planes = io.planes.clone().unwrap_or(0..output.0);
        let Some(pieces) = pieces(output, planes, (n * d, slice_bytes(h, w)), reads, caps) else {
            return Err(too_large(self.name(), "depth", caps));
        };
        Ok(pieces
            .into_iter()
            .map(|piece| {
                let slices = piece.end - piece.start;
                let count = slices.div_ceil(DEPTHS) * blocks * columns_y * columns_x;
                Dispatch {
                    constants: vec![("DEPTHS", DEPTHS as u32), ("SIDE", side)],
                    params: Params {
                        count: int(count),
                        first: int(piece.start),
                        end: int(piece.end),
                        base: int((piece.written.0 / 16) as usize),
                        source_base: int((piece.read.0 / 16) as usize),
                        columns_y: int(columns_y),
                        columns_x: int(columns_x),
                        blocks: int(blocks),
                        depth: int(out_d),
                        height: int(out_h),
                        width: int(out_w),
                        in_depth: int(d),
                        in_height: int(h),
                        in_width: int(w),
                    }
                    .into(),
                    bindings: vec![
                        read(BufferRef::Input(0)).range(piece.read.0, piece.read.1),
                        write(BufferRef::Output(0)).range(piece.written.0, piece.written.1),
                    ],
                    workgroups: linear_groups(count, 64),
                    iterations: DEPTHS as u64,
                    flops: (slices * blocks * out_h * out_w * 4 * 10) as u64,
                    ..Dispatch::new(shader!("upsample", "common/divide"; Params), "main")
                }
            })
            .collect())
    }

    fn gradient(
        &self,
        graph: &mut Graph,
        node: &NodeView,
        upstream: &[Option<Value>],
        _: &[bool],
    ) -> Result<Vec<Gradient>, GraphError> {
        let [_, _, d, h, w] = graph.spec(node.inputs[0]).ncdhw().expect("a map");
        let upstream = upstream[0].expect("the one output has a gradient");
        let gradient = graph.push1(UpsampleGradient { size: [d, h, w] }, &[upstream])?;
        Ok(vec![Gradient::Flows(gradient)])
    }

    fn rematerialise(&self, node: &NodeView, _: &[Spec]) -> Option<(Arc<dyn Op>, Vec<Value>)> {
        Some((Arc::new(*self), node.inputs.clone()))
    }

    fn reads(&self, inputs: &[Spec], _: &[Spec], planes: Range<usize>) -> Option<Reads> {
        let depth = inputs[0].shape[2];
        let (first, last) = (
            self.reach(planes.start, depth).0,
            self.reach(planes.end - 1, depth).1,
        );
        Some(vec![Some(first..last + 1)])
    }

    #[cfg(feature = "onnx")]
    fn onnx(&self, to: &mut onnx::Writer, call: &onnx::Call) -> Result<Vec<String>, String> {
        let [n, c, ..] = call.outputs[0].ncdhw().expect("a map");
        let (outer, size) = (to.int64(&onnx::ints([n, c])), to.size(self.size)?);
        let sizes = to.node("Concat", &[&outer, &size], [Attribute::Int("axis", 0)]);
        let attributes = [
            Attribute::Text("mode", "linear"),
            Attribute::Text("coordinate_transformation_mode", "half_pixel"),
        ];
        Ok(vec![to.node(
            "Resize",
            &[&call.inputs[0], "", "", &sizes],
            attributes,
        )])
    }

    fn reference(&self, inputs: &[&Tensor], _: &StepScalars) -> Vec<Tensor> {
        let [n, c, ..] = inputs[0].ncdhw();
        let mut output = Tensor::zeros(&[n, c, self.size[0], self.size[1], self.size[2]]);
        let mut sums = vec![0f64; output.data.len()];
        corners(inputs[0], &output, |from, to, weight| {
            sums[to] += weight * inputs[0].data[from] as f64
        });
        output.data = sums.into_iter().map(|v| v as f32).collect();
        vec![output]
    }
}

impl Op for UpsampleGradient {
    fn name(&self) -> &'static str {
        "upsample_gradient"
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>, GraphError> {
        resized(self.name(), inputs, self.size)
    }

    fn dispatches(&self, io: &mut Io, caps: &Caps) -> Result<Vec<Dispatch>, GraphError> {
        filter_axes(self.name(), Filter::UpsampleGradient, io, caps)
    }

    fn reads(&self, inputs: &[Spec], _: &[Spec], planes: Range<usize>) -> Option<Reads> {
        let depth = inputs[0].shape[2];
        let read = match Filter::UpsampleGradient.changes(depth, self.size[0]) {
            true => planes_read(Filter::UpsampleGradient, &planes, depth, self.size[0]),
            false => planes,
        };
        Some(vec![Some(read)])
    }

    fn gradient(
        &self,
        graph: &mut Graph,
        node: &NodeView,
        upstream: &[Option<Value>],
        _: &[bool],
    ) -> Result<Vec<Gradient>, GraphError> {
        let [_, _, d, h, w] = graph.spec(node.inputs[0]).ncdhw().expect("a map");
        let upstream = upstream[0].expect("the one output has a gradient");
        let gradient = graph.push1(Upsample { size: [d, h, w] }, &[upstream])?;
        Ok(vec![Gradient::Flows(gradient)])
    }

    fn reference(&self, inputs: &[&Tensor], _: &StepScalars) -> Vec<Tensor> {
        let [n, c, ..] = inputs[0].ncdhw();
        let mut output = Tensor::zeros(&[n, c, self.size[0], self.size[1], self.size[2]]);
        let mut sums = vec![0f64; output.data.len()];
        corners(&output, inputs[0], |to, from, weight| {
            sums[to] += weight * inputs[0].data[from] as f64
        });
        output.data = sums.into_iter().map(|v| v as f32).collect();
        vec![output]
    }
}

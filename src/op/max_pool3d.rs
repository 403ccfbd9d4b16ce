//! Max pooling.

use super::separable::{Piece, Window, pieces, too_large};
use super::*;
use crate::tensor::ALIGNMENT;

params! {
    /// The uniform of `common/max_pool.wgsl`.
    struct Params {
        count: u32,
        base: u32,
        source_base: u32,
        upstream_base: u32,
        inner: u32,
        length: u32,
        source_len: u32,
        kernel: u32,
        stride: u32,
        padding: u32,
        first_row: u32,
    }
}

/// Windows of a pooling, by axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaxPool {
    /// Voxels of a window.
    pub kernel: [usize; 3],
    /// Voxels between windows.
    pub stride: [usize; 3],
    /// Voxels before and after each axis that don't exist, at most half the kernel.
    pub padding: [usize; 3],
}

/// The highest voxel of each window of an image or map `[N, C, D, H, W]` (PyTorch's `max_pool3d`): axes of n become
/// ⌊(n + 2·padding − kernel) / stride⌋ + 1. The gradient goes to the first of equal ones.
///
/// # Errors
/// Axes shorter than the kernel, no step, more padding than half a kernel.
pub fn max_pool3d(graph: &mut Graph, x: Value, pool: MaxPool) -> Result<Value, GraphError> {
    let mut y = x;
    // The innermost axis first: of equal ones the first voxel in their order counts.
    for axis in [2, 1, 0] {
        let window = Window {
            kernel: pool.kernel[axis],
            stride: pool.stride[axis],
            padding: pool.padding[axis],
        };
        if (window.kernel, window.stride) != (1, 1) {
            y = graph.push1(MaxPoolAxis { axis, window }, &[y])?;
        }
    }
    Ok(y)
}

/// Along one of the axes D, H, W.
#[derive(Clone, Copy, Debug)]
struct MaxPoolAxis {
    axis: usize,
    window: Window,
}

/// Inputs: x, dy. Output: dx.
#[derive(Clone, Copy, Debug)]
struct MaxPoolAxisGradient(MaxPoolAxis);

impl MaxPoolAxis {
    fn pooled(&self, n: usize) -> Option<usize> {
        let Window {
            kernel,
            stride,
            padding,
        } = self.window;
        Some((n + 2 * padding).checked_sub(kernel)? / stride + 1)
    }

    /// First and last input of a window.
    fn inputs(&self, i: usize, length: usize) -> (usize, usize) {
        let Window {
            kernel,
            stride,
            padding,
        } = self.window;
        let end = (i * stride + kernel - padding).min(length);
        ((i * stride).saturating_sub(padding), end - 1)
    }

    /// First and last window that hold an input, of so many; the last may be before the first.
    fn windows(&self, i: usize, count: usize) -> (usize, usize) {
        let Window {
            kernel,
            stride,
            padding,
        } = self.window;
        let first = (i + padding + 1).saturating_sub(kernel).div_ceil(stride);
        (first, ((i + padding) / stride).min(count - 1))
    }

    /// What stands before the axis and after it, in elements, their size in numbers, and their shader.
    fn around(&self, spec: &Spec) -> (usize, usize, usize, Shader) {
        let [n, c, d, h, w] = spec.ncdhw().expect("checked on insertion");
        let (outer, blocks, together) = match spec.layout {
            Layout::Map => (n, spec.blocks(), 4),
            Layout::Flat => (n * c, 1, 1),
        };
        let (outer, inner) = match self.axis {
            0 => (outer, blocks * h * w * together),
            1 => (outer * d * blocks, w * together),
            _ => (outer * d * blocks * h, together),
        };
        match inner % 4 {
            0 => (
                outer,
                inner / 4,
                4,
                shader!("separable_map", "common/divide", "common/max_pool"; Params),
            ),
            _ => (
                outer,
                inner,
                1,
                shader!("separable_flat", "common/divide", "common/max_pool"; Params),
            ),
        }
    }

    fn params(
        &self,
        piece: &Piece,
        inner: usize,
        element_bytes: u64,
        [length, source]: [usize; 2],
    ) -> Params {
        let at = |byte: u64| int((byte / element_bytes) as usize);
        Params {
            count: int((piece.end - piece.start) * inner),
            base: at(piece.written.0),
            source_base: at(piece.read.0),
            upstream_base: 0,
            inner: int(inner),
            length: int(length),
            source_len: int(source),
            kernel: int(self.window.kernel),
            stride: int(self.window.stride),
            padding: int(self.window.padding),
            first_row: int(piece.start),
        }
    }

    fn limit(&self, op: &'static str, caps: &Caps) -> GraphError {
        too_large(op, ["depth", "height", "width"][self.axis], caps)
    }

    /// Calls `visit(output, its inputs)` for each window.
    fn each(&self, input: &Tensor, output: &[usize], mut visit: impl FnMut(usize, &[usize])) {
        let inner: usize = output[self.axis + 3..].iter().product();
        let (length, from) = (output[self.axis + 2], input.shape[self.axis + 2]);
        for to in 0..output.iter().product() {
            let (b, i, outer) = (to % inner, to / inner % length, to / inner / length);
            let (first, last) = self.inputs(i, from);
            let inputs: Vec<usize> = (first..=last).map(|j| (outer * from + j) * inner + b).collect();
            visit(to, &inputs);
        }
    }
}

impl Op for MaxPoolAxis {
    fn name(&self) -> &'static str {
        "max_pool3d"
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>, GraphError> {
        let Window {
            kernel,
            stride,
            padding,
        } = self.window;
        let wrong = |reason: String| Err(GraphError::shape("max_pool3d", inputs, reason));
        if kernel == 0 || stride == 0 || 2 * padding > kernel {
            return wrong(format!(
                "kernel {kernel} and stride {stride} must be at least 1 and padding {padding} at most half the kernel"
            ));
        }
        let [x] = inputs else {
            return wrong("takes one image or map".into());
        };
        if x.shape.len() != 5 || x.count() == 0 {
            return wrong("takes an image or map [N, C, D, H, W]".into());
        }
        match self.pooled(x.shape[self.axis + 2]) {
            Some(pooled) => {
                let mut shape = x.shape.clone();
                shape[self.axis + 2] = pooled;
                Ok(vec![Spec {
                    shape,
                    layout: x.layout,
                }])
            }
            None => wrong(format!(
                "no axis, padded by {padding}, may be shorter than the kernel {kernel}"
            )),
        }
    }

    fn dispatches(&self, io: &mut Io, caps: &Caps) -> Result<Vec<Dispatch>, GraphError> {
        let (outer, inner, numbers, shader) = self.around(&io.inputs[0]);
        let [from, to] = [&io.inputs[0], &io.outputs[0]].map(|spec| spec.shape[self.axis + 2]);
        let element_bytes = 4 * numbers as u64;
        let row_bytes = inner as u64 * element_bytes;
        let reads = |row: usize| {
            let (first, last) = self.inputs(row % to, from);
            (row / to * from + first, row / to * from + last)
        };
        let rows = outer * to;
        let pieces = pieces((rows, row_bytes), 0..rows, (outer * from, row_bytes), reads, caps)
            .ok_or_else(|| self.limit(self.name(), caps))?;
        Ok(pieces
            .into_iter()
            .map(|piece| {
                let count = (piece.end - piece.start) * inner;
                Dispatch {
                    params: self.params(&piece, inner, element_bytes, [to, from]).into(),
                    bindings: vec![
                        read(BufferRef::Input(0)).range(piece.read.0, piece.read.1),
                        write(BufferRef::Output(0)).range(piece.written.0, piece.written.1),
                    ],
                    workgroups: linear_groups(count, 64),
                    iterations: self.window.kernel as u64,
                    flops: (count * numbers * self.window.kernel) as u64,
                    ..Dispatch::new(shader, "max_pool")
                }
            })
            .collect())
    }

    fn rematerialise(&self, node: &NodeView, _: &[Spec]) -> Option<(Arc<dyn Op>, Vec<Value>)> {
        Some((Arc::new(*self), node.inputs.clone()))
    }

    fn gradient(
        &self,
        graph: &mut Graph,
        node: &NodeView,
        upstream: &[Option<Value>],
        _: &[bool],
    ) -> Result<Vec<Gradient>, GraphError> {
        let upstream = upstream[0].expect("the one output has a gradient");
        let gradient = graph.push1(MaxPoolAxisGradient(*self), &[node.inputs[0], upstream])?;
        Ok(vec![Gradient::Flows(gradient)])
    }

    fn reference(&self, inputs: &[&Tensor], _: &StepScalars) -> Vec<Tensor> {
        let x = inputs[0];
        let mut shape = x.shape.clone();
        shape[self.axis + 2] = self.pooled(shape[self.axis + 2]).expect("checked on insertion");
        let mut output = Tensor::zeros(&shape);
        self.each(x, &shape, |to, window| {
            output.data[to] = window
                .iter()
                .map(|j| x.data[*j])
                .fold(f32::NEG_INFINITY, f32::max);
        });
        vec![output]
    }
}

impl Op for MaxPoolAxisGradient {
    fn name(&self) -> &'static str {
        "max_pool3d_gradient"
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>, GraphError> {
        if let [x, dy] = inputs
            && self.0.outputs(std::slice::from_ref(x))? == [dy.clone()]
        {
            return Ok(vec![x.clone()]);
        }
        Err(GraphError::shape(
            self.name(),
            inputs,
            "takes x and dy of the pooling's shape",
        ))
    }

    fn dispatches(&self, io: &mut Io, caps: &Caps) -> Result<Vec<Dispatch>, GraphError> {
        let pool = self.0;
        let (outer, inner, numbers, shader) = pool.around(&io.inputs[0]);
        let [from, to] = [&io.inputs[0], &io.inputs[1]].map(|spec| spec.shape[pool.axis + 2]);
        let element_bytes = 4 * numbers as u64;
        let row_bytes = inner as u64 * element_bytes;
        let rows = outer * from;
        // All inputs of the windows that hold a row's.
        let reads = |row: usize| {
            let first = (row % from).saturating_sub(pool.window.kernel - 1);
            let last = (row % from + pool.window.kernel - 1).min(from - 1);
            (row / from * from + first, row / from * from + last)
        };
        let pieces = pieces((rows, row_bytes), 0..rows, (rows, row_bytes), reads, caps)
            .ok_or_else(|| pool.limit(self.name(), caps))?;
        let windows = pool.window.kernel.div_ceil(pool.window.stride);
        Ok(pieces
            .into_iter()
            .map(|piece| {
                let count = (piece.end - piece.start) * inner;
                let at = |row: usize, last: bool| {
                    let (low, high) = pool.windows(row % from, to);
                    row / from * to
                        + if last {
                            high.max(low).min(to - 1)
                        } else {
                            low.min(to - 1)
                        }
                };
                let first = at(piece.start, false) as u64 * row_bytes / ALIGNMENT * ALIGNMENT;
                let end = (at(piece.end - 1, true) + 1) as u64 * row_bytes;
                let params = Params {
                    upstream_base: int((first / element_bytes) as usize),
                    ..pool.params(&piece, inner, element_bytes, [from, to])
                };
                Dispatch {
                    params: params.into(),
                    bindings: vec![
                        read(BufferRef::Input(0)).range(piece.read.0, piece.read.1),
                        read(BufferRef::Input(1)).range(first, end),
                        write(BufferRef::Output(0)).range(piece.written.0, piece.written.1),
                    ],
                    workgroups: linear_groups(count, 64),
                    iterations: (windows * pool.window.kernel) as u64,
                    flops: (count * numbers * windows * pool.window.kernel) as u64,
                    ..Dispatch::new(shader, "max_pool_gradient")
                }
            })
            .collect())
    }

    fn reference(&self, inputs: &[&Tensor], _: &StepScalars) -> Vec<Tensor> {
        let (x, dy) = (inputs[0], inputs[1]);
        let mut sums = vec![0f64; x.data.len()];
        self.0.each(x, &dy.shape, |to, window| {
            let first = |best: usize, j: &usize| if x.data[*j] > x.data[best] { *j } else { best };
            let best = window.iter().fold(window[0], first);
            sums[best] += f64::from(dy.data[to]);
        });
        vec![Tensor::from_fn(&x.shape, |i| sums[i] as f32)]
    }
}

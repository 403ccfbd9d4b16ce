//! Average pooling.

use super::separable::{Filter, Window, filter_axes};
use super::*;

/// Mean over windows of kernel³ voxels every `stride`, the volume padded by `padding` zeros that count
/// (PyTorch's `avg_pool3d(count_include_pad=True)`): axes of n become ⌊(n + 2·padding − kernel) / stride⌋ + 1.
/// Takes and makes an image `[N, C, D, H, W]` or a map.
#[derive(Clone, Copy, Debug)]
pub struct AvgPool3d {
    /// Voxels of the window on each axis.
    pub kernel: usize,
    /// Voxels between windows.
    pub stride: usize,
    /// Zeros before and after each axis, at most half the kernel.
    pub padding: usize,
}

/// The gradient of [`AvgPool3d`]: each input voxel sums the windows that hold it.
#[derive(Clone, Copy, Debug)]
pub struct AvgPool3dGradient {
    /// The pooling.
    pub pool: AvgPool3d,
    /// Depth, height and width of its input.
    pub size: [usize; 3],
}

impl AvgPool3d {
    fn window(&self) -> Window {
        Window {
            kernel: self.kernel,
            stride: self.stride,
            padding: self.padding,
        }
    }

    fn pooled(&self, n: usize) -> Option<usize> {
        Some((n + 2 * self.padding).checked_sub(self.kernel)? / self.stride + 1)
    }

    /// Calls `visit(input index, output index)` for every voxel of every window.
    fn windows(&self, input: &Tensor, output: &Tensor, mut visit: impl FnMut(usize, usize)) {
        let [n, c, d, h, w] = output.ncdhw();
        let [_, _, id, ih, iw] = input.ncdhw();
        let covered = |i: usize, length: usize| {
            let start = i * self.stride;
            (start.max(self.padding) - self.padding)..(start + self.kernel - self.padding).min(length)
        };
        for n in 0..n {
            for c in 0..c {
                for z in 0..d {
                    for y in 0..h {
                        for x in 0..w {
                            let at = output.index(n, c, z, y, x);
                            for wz in covered(z, id) {
                                for wy in covered(y, ih) {
                                    for wx in covered(x, iw) {
                                        visit(input.index(n, c, wz, wy, wx), at);
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

impl Op for AvgPool3d {
    fn name(&self) -> &'static str {
        "avg_pool3d"
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>, GraphError> {
        let wrong = |reason: String| Err(GraphError::shape("avg_pool3d", inputs, reason));
        if self.kernel == 0 || self.stride == 0 || 2 * self.padding > self.kernel {
            return wrong(format!(
                "kernel {} and stride {} must be at least 1 and padding {} at most half the kernel",
                self.kernel, self.stride, self.padding
            ));
        }
        let [x] = inputs else {
            return wrong("takes one image or map".into());
        };
        let Some([n, c, d, h, w]) = x.ncdhw() else {
            return wrong("takes an image or map [N, C, D, H, W]".into());
        };
        match (self.pooled(d), self.pooled(h), self.pooled(w)) {
            (Some(d), Some(h), Some(w)) if x.count() > 0 => Ok(vec![Spec {
                shape: vec![n, c, d, h, w],
                layout: x.layout,
            }]),
            _ => wrong(format!(
                "no axis, padded by {}, may be shorter than the kernel {}",
                self.padding, self.kernel
            )),
        }
    }

    fn dispatches(&self, io: &mut Io, caps: &Caps) -> Result<Vec<Dispatch>, GraphError> {
        filter_axes(self.name(), Filter::Average(self.window()), io, caps)
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
        let [_, _, d, h, w] = graph.spec(node.inputs[0]).ncdhw().expect("five axes");
        let op = AvgPool3dGradient {
            pool: *self,
            size: [d, h, w],
        };
        let upstream = upstream[0].expect("the one output has a gradient");
        Ok(vec![Gradient::Flows(graph.push1(op, &[upstream])?)])
    }

    #[cfg(feature = "onnx")]
    fn onnx(&self, to: &mut onnx::Writer, call: &onnx::Call) -> Result<Vec<String>, String> {
        let attributes = [
            Attribute::Ints("kernel_shape", onnx::ints([self.kernel; 3])),
            Attribute::Ints("strides", onnx::ints([self.stride; 3])),
            Attribute::Ints("pads", onnx::ints([self.padding; 6])),
            Attribute::Int("count_include_pad", 1),
        ];
        Ok(vec![to.node("AveragePool", &call.inputs(), attributes)])
    }

    fn reference(&self, inputs: &[&Tensor], _: &StepScalars) -> Vec<Tensor> {
        let [n, c, d, h, w] = inputs[0].ncdhw();
        let size = [d, h, w].map(|v| self.pooled(v).expect("checked on insertion"));
        let mut output = Tensor::zeros(&[n, c, size[0], size[1], size[2]]);
        let mut sums = vec![0f64; output.data.len()];
        self.windows(inputs[0], &output, |from, to| {
            sums[to] += inputs[0].data[from] as f64
        });
        let voxels = self.kernel.pow(3) as f64;
        output.data = sums.into_iter().map(|v| (v / voxels) as f32).collect();
        vec![output]
    }
}

impl Op for AvgPool3dGradient {
    fn name(&self) -> &'static str {
        "avg_pool3d_gradient"
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>, GraphError> {
        let pooled = self.size.map(|n| self.pool.pooled(n));
        match inputs {
            [x] if x.shape.len() == 5 && pooled.iter().zip(&x.shape[2..]).all(|(p, n)| *p == Some(*n)) => {
                let shape = [&x.shape[..2], &self.size].concat();
                Ok(vec![Spec {
                    shape,
                    layout: x.layout,
                }])
            }
            _ => Err(GraphError::shape(
                self.name(),
                inputs,
                format!("takes one value of size {pooled:?}"),
            )),
        }
    }

    fn dispatches(&self, io: &mut Io, caps: &Caps) -> Result<Vec<Dispatch>, GraphError> {
        filter_axes(self.name(), Filter::AverageGradient(self.pool.window()), io, caps)
    }

    fn gradient(
        &self,
        graph: &mut Graph,
        _: &NodeView,
        upstream: &[Option<Value>],
        _: &[bool],
    ) -> Result<Vec<Gradient>, GraphError> {
        let upstream = upstream[0].expect("the one output has a gradient");
        Ok(vec![Gradient::Flows(graph.push1(self.pool, &[upstream])?)])
    }

    fn reference(&self, inputs: &[&Tensor], _: &StepScalars) -> Vec<Tensor> {
        let [n, c, ..] = inputs[0].ncdhw();
        let mut output = Tensor::zeros(&[n, c, self.size[0], self.size[1], self.size[2]]);
        let mut sums = vec![0f64; output.data.len()];
        self.pool.windows(&output, inputs[0], |to, from| {
            sums[to] += inputs[0].data[from] as f64
        });
        let voxels = self.pool.kernel.pow(3) as f64;
        output.data = sums.into_iter().map(|v| (v / voxels) as f32).collect();
        vec![output]
    }
}

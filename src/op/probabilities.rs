//! From logits to probabilities.

use super::*;

params! {
    /// The uniform of `probabilities.wgsl`.
    struct Params {
        plane: u32,
        voxels: u32,
    }
}

/// Logits to probabilities, map `[N, C, D, H, W]` to one of the same shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probabilities {
    /// exp(xᵢ) / Σⱼ exp(xⱼ) over the channels, of which one is right.
    Softmax,
    /// 1 / (1 + exp(−xᵢ)) of each channel: regions that may overlap.
    Sigmoid,
}

/// Inputs: y, dy. Output: dx.
#[derive(Debug)]
struct ProbabilitiesGradient(Probabilities);

impl Probabilities {
    fn dispatches(self, entry: &'static str, io: &Io, caps: &Caps) -> Vec<Dispatch> {
        let x = &io.inputs[0];
        let plane = x.shape[3] * x.shape[4];
        io.slices(&[x], caps)
            .iter()
            .map(|run| {
                let voxels = run.count * plane;
                let mut bindings: Vec<Binding> = (0..io.inputs.len())
                    .map(|i| run.of(x, read(BufferRef::Input(i))))
                    .collect();
                bindings.push(run.of(x, write(BufferRef::Output(0))));
                Dispatch {
                    constants: vec![
                        ("CHANNELS", x.shape[1] as u32),
                        ("SIGMOID", (self == Probabilities::Sigmoid) as u32),
                    ],
                    params: Params {
                        plane: int(plane),
                        voxels: int(voxels),
                    }
                    .into(),
                    bindings,
                    workgroups: linear_groups(voxels, 64),
                    iterations: 3 * x.blocks() as u64,
                    flops: (voxels * x.shape[1] * 8) as u64,
                    ..Dispatch::new(shader!("probabilities"; Params), entry)
                }
            })
            .collect()
    }
}

impl Op for Probabilities {
    fn name(&self) -> &'static str {
        match self {
            Probabilities::Softmax => "softmax",
            Probabilities::Sigmoid => "sigmoid",
        }
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>, GraphError> {
        match inputs {
            [x] if x.layout == Layout::Map && x.count() > 0 => Ok(vec![x.clone()]),
            _ => Err(GraphError::shape(
                self.name(),
                inputs,
                "takes logits, a map [N, C, D, H, W]",
            )),
        }
    }

    fn dispatches(&self, io: &mut Io, caps: &Caps) -> Result<Vec<Dispatch>, GraphError> {
        Ok(Probabilities::dispatches(*self, "forward", io, caps))
    }

    fn reads(&self, inputs: &[Spec], outputs: &[Spec], planes: Range<usize>) -> Option<Reads> {
        same_planes(inputs, outputs, planes)
    }

    fn gradient(
        &self,
        graph: &mut Graph,
        node: &NodeView,
        upstream: &[Option<Value>],
        _: &[bool],
    ) -> Result<Vec<Gradient>, GraphError> {
        let dy = upstream[0].expect("the one output has a gradient");
        let gradient = graph.push1(ProbabilitiesGradient(*self), &[node.outputs[0], dy])?;
        Ok(vec![Gradient::Flows(gradient)])
    }

    fn reference(&self, inputs: &[&Tensor], _: &StepScalars) -> Vec<Tensor> {
        let x = inputs[0];
        let [n, channels, d, h, w] = x.ncdhw();
        let volume = d * h * w;
        let mut y = Tensor::zeros(&x.shape);
        for voxel in 0..n * volume {
            let at = |c: usize| (voxel / volume * channels + c) * volume + voxel % volume;
            let logit = |c: usize| f64::from(x.data[at(c)]);
            let highest = (0..channels).map(logit).fold(f64::MIN, f64::max);
            let sum: f64 = (0..channels).map(|c| (logit(c) - highest).exp()).sum();
            for c in 0..channels {
                y.data[at(c)] = match self {
                    Probabilities::Softmax => (logit(c) - highest).exp() / sum,
                    Probabilities::Sigmoid => 1.0 / (1.0 + (-logit(c)).exp()),
                } as f32;
            }
        }
        vec![y]
    }
}

impl Op for ProbabilitiesGradient {
    fn name(&self) -> &'static str {
        match self.0 {
            Probabilities::Softmax => "softmax_gradient",
            Probabilities::Sigmoid => "sigmoid_gradient",
        }
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>, GraphError> {
        match inputs {
            [y, dy] if y == dy && y.layout == Layout::Map => Ok(vec![y.clone()]),
            _ => Err(GraphError::shape(
                self.name(),
                inputs,
                "takes y and dy, maps of one shape",
            )),
        }
    }

    fn dispatches(&self, io: &mut Io, caps: &Caps) -> Result<Vec<Dispatch>, GraphError> {
        Ok(self.0.dispatches("gradient", io, caps))
    }

    fn reads(&self, inputs: &[Spec], outputs: &[Spec], planes: Range<usize>) -> Option<Reads> {
        same_planes(inputs, outputs, planes)
    }

    fn reference(&self, inputs: &[&Tensor], _: &StepScalars) -> Vec<Tensor> {
        let (y, dy) = (inputs[0], inputs[1]);
        let [_, channels, d, h, w] = y.ncdhw();
        let volume = d * h * w;
        let product = |i: usize| f64::from(y.data[i]) * f64::from(dy.data[i]);
        vec![Tensor::from_fn(&y.shape, |i| {
            let (first, own) = (
                i / volume / channels * channels * volume + i % volume,
                f64::from(y.data[i]),
            );
            let mean: f64 = (0..channels).map(|c| product(first + c * volume)).sum();
            let slope = match self.0 {
                Probabilities::Softmax => f64::from(dy.data[i]) - mean,
                Probabilities::Sigmoid => f64::from(dy.data[i]) * (1.0 - own),
            };
            (own * slope) as f32
        })]
    }
}

//! Batch normalisation (Ioffe & Szegedy 2015) of maps with an optional leaky ReLU behind it, in training and inference,
//! and its folding into a convolution.

mod fold;

pub use super::norm::{EPSILON, MOMENTUM};
use super::norm::{Over, gradient_reference, normalise_reference, statistics, statistics_reference};
use super::*;
pub use fold::{FoldBatchNorm, FoldBatchNormBefore, fold_batch_norm, fold_batch_norm_before};

/// Batch norm of a map `[N, C, D, H, W]` with `slope`'s leaky ReLU behind it (0 is ReLU, `None` is linear). In
/// training it normalises by the batch's statistics (biased variance) and updates the running ones (momentum 0.1,
/// unbiased variance), which must be states; otherwise it normalises by the running ones. `gamma`, `beta` and the
/// running statistics are flat `[C]`.
pub fn batch_norm(
    graph: &mut Graph,
    x: Value,
    gamma: Value,
    beta: Value,
    running_mean: Value,
    running_variance: Value,
    slope: Option<f32>,
    training: bool,
) -> Result<Value, GraphError> {
    let inputs = [x, gamma, beta, running_mean, running_variance];
    if training {
        Ok(graph.push(BatchNorm { slope }, &inputs)?[0])
    } else {
        graph.push1(BatchNormInference { slope }, &inputs)
    }
}

/// y = leaky(γ·(x − μ)/√(σ² + ε) + β) with the batch's own μ and σ². Inputs: x, γ, β, running mean, running variance
/// (the last two are updated in place). Outputs: y, μ `[C]`, σ² `[C]` (biased).
#[derive(Debug)]
pub struct BatchNorm {
    /// The leaky ReLU's slope; `None` for none.
    pub slope: Option<f32>,
}

/// y = leaky(γ·(x − μ)/√(σ² + ε) + β) with given μ and σ². Inputs: x, γ, β, μ, σ².
#[derive(Clone, Copy, Debug)]
pub struct BatchNormInference {
    /// The leaky ReLU's slope; `None` for none.
    pub slope: Option<f32>,
}

/// Inputs: x, γ, β, μ, σ², dy. Outputs: dx, dγ, dβ.
#[derive(Debug)]
struct BatchNormGradient {
    slope: Option<f32>,
    /// Whether μ and σ² come from x and so depend on it.
    batch: bool,
}

fn check(name: &'static str, inputs: &[Spec], count: usize) -> Result<(), GraphError> {
    let fits = inputs.len() == count
        && inputs[0].layout == Layout::Map
        && inputs[1..5]
            .iter()
            .all(|s| *s == Spec::flat(&inputs[0].shape[1..2]))
        && inputs[5..].iter().all(|s| *s == inputs[0]);
    if fits {
        return Ok(());
    }
    let reason = "takes a map [N, C, D, H, W], then gamma, beta, mean and variance, each flat [C]";
    Err(GraphError::shape(name, inputs, reason))
}

/// μ `[C]` and σ² `[C]` (biased) of a map. Inputs: x, running mean, running variance (the last two are updated in place).
#[derive(Debug)]
struct BatchNormStatistics;

impl Op for BatchNormStatistics {
    fn name(&self) -> &'static str {
        "batch_norm_statistics"
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>, GraphError> {
        match inputs {
            [x, mean, variance] if x.layout == Layout::Map && mean == variance => Ok(vec![mean.clone(); 2]),
            _ => Err(GraphError::shape(
                self.name(),
                inputs,
                "takes a map and its running statistics",
            )),
        }
    }

    fn writes(&self, _: usize) -> Vec<usize> {
        vec![1, 2]
    }

    fn dispatches(&self, io: &mut Io, caps: &Caps) -> Result<Vec<Dispatch>, GraphError> {
        let running = [BufferRef::Input(1), BufferRef::Input(2)];
        Ok(statistics(io, Over::Batch, running, caps))
    }

    fn reference(&self, inputs: &[&Tensor], _: &StepScalars) -> Vec<Tensor> {
        batch_statistics_reference(inputs[0], inputs[1], inputs[2]).into()
    }
}

/// Mean, biased variance, and the running ones moved.
fn batch_statistics_reference(x: &Tensor, running_mean: &Tensor, running_variance: &Tensor) -> [Tensor; 4] {
    let [n, c, d, h, w] = x.ncdhw();
    let count = (n * d * h * w) as f64;
    let [mean, variance] = statistics_reference(x, Over::Batch, &[c]);
    let moved = |old: &Tensor, new: &Tensor, scale: f64| {
        let momentum = MOMENTUM as f64;
        let moved = |c: usize| {
            let (old, new) = (old.data[c] as f64, scale * new.data[c] as f64);
            (old + momentum * (new - old)) as f32
        };
        Tensor::from_fn(&[c], moved)
    };
    let running_mean = moved(running_mean, &mean, 1.0);
    let running_variance = moved(running_variance, &variance, count / (count - 1.0));
    [mean, variance, running_mean, running_variance]
}

impl Op for BatchNorm {
    fn name(&self) -> &'static str {
        "batch_norm"
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>, GraphError> {
        check(self.name(), inputs, 5)?;
        let [n, c, d, h, w] = inputs[0].ncdhw().expect("a map");
        if n * d * h * w < 2 {
            let reason = "needs more than one value a channel in training: their variance is undefined";
            return Err(GraphError::shape(self.name(), inputs, reason));
        }
        Ok(vec![inputs[0].clone(), Spec::flat(&[c]), Spec::flat(&[c])])
    }

    fn writes(&self, _: usize) -> Vec<usize> {
        vec![3, 4]
    }

    /// Statistics and what they are used for apart: the second can be repeated, and goes in slabs.
    fn expand(&self, graph: &mut Graph, inputs: &[Value]) -> Result<Option<Vec<Value>>, GraphError> {
        let [x, gamma, beta, running_mean, running_variance] = inputs[..] else {
            unreachable!("five inputs")
        };
        let statistics = graph.push(BatchNormStatistics, &[x, running_mean, running_variance])?;
        let (mean, variance) = (statistics[0], statistics[1]);
        let normalise = BatchNormInference { slope: self.slope };
        let y = graph.push1(normalise, &[x, gamma, beta, mean, variance])?;
        Ok(Some(vec![y, mean, variance]))
    }

    fn gradient(
        &self,
        graph: &mut Graph,
        node: &NodeView,
        upstream: &[Option<Value>],
        wanted: &[bool],
    ) -> Result<Vec<Gradient>, GraphError> {
        let [Some(dy), None, None] = upstream else {
            let reason = "batch_norm offers no gradient through its statistics as outputs";
            return Err(GraphError::Name(reason.into()));
        };
        let (mean, variance) = (node.outputs[1], node.outputs[2]);
        gradient(graph, node, wanted, self.slope, [mean, variance, *dy], true)
    }

    fn reference(&self, inputs: &[&Tensor], _: &StepScalars) -> Vec<Tensor> {
        let [mean, variance, running_mean, running_variance] =
            batch_statistics_reference(inputs[0], inputs[3], inputs[4]);
        let y = normalise_reference(inputs, Over::Batch, &mean, &variance, self.slope);
        vec![y, mean, variance, running_mean, running_variance]
    }
}

fn gradient(
    graph: &mut Graph,
    node: &NodeView,
    wanted: &[bool],
    slope: Option<f32>,
    [mean, variance, dy]: [Value; 3],
    batch: bool,
) -> Result<Vec<Gradient>, GraphError> {
    if wanted[3] || wanted[4] {
        let reason = "batch_norm offers no gradient to its running statistics";
        return Err(GraphError::Name(reason.into()));
    }
    let inputs = [node.inputs[0], node.inputs[1], node.inputs[2], mean, variance, dy];
    let made = graph.push(BatchNormGradient { slope, batch }, &inputs)?;
    let mut flows: Vec<Gradient> = made.into_iter().map(Gradient::Flows).collect();
    flows.extend([Gradient::Stops; 2]);
    Ok(flows)
}

impl Op for BatchNormInference {
    fn name(&self) -> &'static str {
        "batch_norm_inference"
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>, GraphError> {
        check(self.name(), inputs, 5)?;
        Ok(vec![inputs[0].clone()])
    }

    fn dispatches(&self, io: &mut Io, caps: &Caps) -> Result<Vec<Dispatch>, GraphError> {
        Ok(norm::normalise(io, Over::Batch, self.slope.unwrap_or(1.0), caps))
    }

    fn gradient(
        &self,
        graph: &mut Graph,
        node: &NodeView,
        upstream: &[Option<Value>],
        wanted: &[bool],
    ) -> Result<Vec<Gradient>, GraphError> {
        let dy = upstream[0].expect("the one output has a gradient");
        let statistics = [node.inputs[3], node.inputs[4], dy];
        gradient(graph, node, wanted, self.slope, statistics, false)
    }

    #[cfg(feature = "onnx")]
    fn onnx(&self, to: &mut onnx::Writer, call: &onnx::Call) -> Result<Vec<String>, String> {
        let epsilon = Attribute::Float("epsilon", EPSILON);
        let y = to.node("BatchNormalization", &call.inputs(), [epsilon]);
        Ok(vec![to.leaky(y, self.slope)])
    }

    fn reference(&self, inputs: &[&Tensor], _: &StepScalars) -> Vec<Tensor> {
        vec![normalise_reference(
            inputs,
            Over::Batch,
            inputs[3],
            inputs[4],
            self.slope,
        )]
    }

    fn rematerialise(&self, node: &NodeView, _: &[Spec]) -> Option<(Arc<dyn Op>, Vec<Value>)> {
        Some((Arc::new(*self), node.inputs.clone()))
    }

    fn reads(&self, inputs: &[Spec], outputs: &[Spec], planes: Range<usize>) -> Option<Reads> {
        same_planes(inputs, outputs, planes)
    }
}

impl Op for BatchNormGradient {
    fn name(&self) -> &'static str {
        "batch_norm_gradient"
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>, GraphError> {
        check(self.name(), inputs, 6)?;
        let per_channel = Spec::flat(&inputs[0].shape[1..2]);
        Ok(vec![inputs[0].clone(), per_channel.clone(), per_channel])
    }

    fn dispatches(&self, io: &mut Io, caps: &Caps) -> Result<Vec<Dispatch>, GraphError> {
        let slope = self.slope.unwrap_or(1.0);
        Ok(norm::gradient(io, Over::Batch, slope, self.batch, caps))
    }

    /// dx over dy.
    fn overwrites(&self, _: &[Spec], _: &[Spec], _: &Caps) -> Option<usize> {
        Some(5)
    }

    fn reference(&self, inputs: &[&Tensor], _: &StepScalars) -> Vec<Tensor> {
        gradient_reference(inputs, Over::Batch, self.slope, self.batch)
    }
}

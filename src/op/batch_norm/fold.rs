//! Batch norm with fixed statistics as part of the convolution before or behind it.

use crate::op::norm::EPSILON;
use crate::op::*;

params! {
    /// The uniform of `fold_batch_norm_before.wgsl`.
    struct FoldBefore {
        outputs: u32,
        each: u32,
        group_outputs: u32,
        epsilon: f32,
    }
}

params! {
    /// The uniform of `fold_batch_norm.wgsl`.
    struct FoldAfter {
        count: u32,
        fan_in: u32,
        epsilon: f32,
    }
}

/// The convolution that equals a convolution followed by batch norm with fixed statistics:
/// w′ = w·γ/√(σ² + ε), b′ = (b − μ)·γ/√(σ² + ε) + β. Inputs: w `[O, I/groups, kD, kH, kW]`, b `[O]`, γ, β, running
/// mean, running variance, each `[O]`. Outputs: w′, b′. For inference only.
#[derive(Debug)]
pub struct FoldBatchNorm;

/// Folds a batch norm's running statistics into the convolution before it: new weights and bias. A convolution
/// without bias takes a zero one.
pub fn fold_batch_norm(
    graph: &mut Graph,
    weight: Value,
    bias: Option<Value>,
    gamma: Value,
    beta: Value,
    running_mean: Value,
    running_variance: Value,
) -> Result<(Value, Value), GraphError> {
    let bias = or_zero(graph, bias, weight)?;
    let inputs = [weight, bias, gamma, beta, running_mean, running_variance];
    let folded = graph.push(FoldBatchNorm, &inputs)?;
    Ok((folded[0], folded[1]))
}

/// A convolution's bias, or zeros for one without.
fn or_zero(graph: &mut Graph, bias: Option<Value>, weight: Value) -> Result<Value, GraphError> {
    match bias {
        Some(bias) => Ok(bias),
        None => {
            let outputs = graph.shape(weight)[0];
            graph.push1(fill::Fill::new(&[outputs], 0.0), &[])
        }
    }
}

impl Op for FoldBatchNorm {
    fn name(&self) -> &'static str {
        "fold_batch_norm"
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>, GraphError> {
        let fits = inputs.len() == 6
            && inputs[0].layout == Layout::Flat
            && !inputs[0].shape.is_empty()
            && inputs[1..]
                .iter()
                .all(|s| *s == Spec::flat(&inputs[0].shape[..1]));
        if !fits {
            let reason = "takes weights [O, …] and bias, gamma, beta, mean and variance, each flat [O]";
            return Err(GraphError::shape(self.name(), inputs, reason));
        }
        Ok(vec![inputs[0].clone(), inputs[1].clone()])
    }

    fn dispatches(&self, io: &mut Io, _: &Caps) -> Result<Vec<Dispatch>, GraphError> {
        use BufferRef::*;
        let count = io.inputs[0].count();
        let outputs = io.inputs[0].shape[0];
        let mut bindings: Vec<Binding> = (0..6).map(|i| read(Input(i))).collect();
        bindings.extend([write(Output(0)), write(Output(1))]);
        Ok(vec![Dispatch {
            params: FoldAfter {
                count: int(count),
                fan_in: int(count / outputs.max(1)),
                epsilon: EPSILON,
            }
            .into(),
            bindings,
            workgroups: linear_groups(count, 64),
            flops: 4 * count as u64,
            ..Dispatch::new(shader!("fold_batch_norm"; FoldAfter), "main")
        }])
    }

    fn reference(&self, inputs: &[&Tensor], _: &StepScalars) -> Vec<Tensor> {
        let (mut w, mut b) = (inputs[0].clone(), inputs[1].clone());
        let fan_in = w.data.len() / b.data.len();
        for o in 0..b.data.len() {
            let [bias, gamma, beta, mean, variance] = [1, 2, 3, 4, 5].map(|i| inputs[i].data[o] as f64);
            let scale = gamma / (variance + EPSILON as f64).sqrt();
            for v in &mut w.data[o * fan_in..(o + 1) * fan_in] {
                *v = (*v as f64 * scale) as f32;
            }
            b.data[o] = ((bias - mean) * scale + beta) as f32;
        }
        vec![w, b]
    }
}

/// The 1×1×1 convolution that equals batch norm with fixed statistics followed by a 1×1×1 convolution without padding:
/// with s = γ/√(σ² + ε), w′ = w·s and b′ = b + Σ w·(β − μ·s), both by input channel. Inputs: w `[O, I/groups, 1, 1, 1]`, b
/// `[O]`, γ, β, running mean, running variance, each `[I]`. Outputs: w′, b′. For inference only.
#[derive(Debug)]
pub struct FoldBatchNormBefore {
    /// Of the convolution.
    pub groups: usize,
}

/// Folds the running statistics of a batch norm (γ, β, mean, variance) into the 1×1×1 convolution after it: new weights
/// and bias. A convolution without bias takes a zero one.
pub fn fold_batch_norm_before(
    graph: &mut Graph,
    weight: Value,
    bias: Option<Value>,
    norm: &[Value],
    groups: usize,
) -> Result<(Value, Value), GraphError> {
    let bias = or_zero(graph, bias, weight)?;
    let inputs = [&[weight, bias], norm].concat();
    let folded = graph.push(FoldBatchNormBefore { groups }, &inputs)?;
    Ok((folded[0], folded[1]))
}

impl Op for FoldBatchNormBefore {
    fn name(&self) -> &'static str {
        "fold_batch_norm_before"
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>, GraphError> {
        if let [weight, bias, norm @ ..] = inputs
            && let [outputs, each, 1, 1, 1] = weight.shape[..]
            && *bias == Spec::flat(&[outputs])
            && outputs.is_multiple_of(self.groups)
            && norm.len() == 4
            && norm.iter().all(|s| *s == Spec::flat(&[each * self.groups]))
        {
            return Ok(vec![weight.clone(), bias.clone()]);
        }
        let reason = "takes weights [O, I / groups, 1, 1, 1], bias [O] and gamma, beta, mean and variance, each flat [I]";
        Err(GraphError::shape(self.name(), inputs, reason))
    }

    fn dispatches(&self, io: &mut Io, _: &Caps) -> Result<Vec<Dispatch>, GraphError> {
        use BufferRef::*;
        let (outputs, each) = (io.inputs[0].shape[0], io.inputs[0].shape[1]);
        let mut bindings: Vec<Binding> = (0..6).map(|i| read(Input(i))).collect();
        bindings.extend([write(Output(0)), write(Output(1))]);
        Ok(vec![Dispatch {
            params: FoldBefore {
                outputs: int(outputs),
                each: int(each),
                group_outputs: int(outputs / self.groups),
                epsilon: EPSILON,
            }
            .into(),
            bindings,
            workgroups: linear_groups(outputs, 64),
            iterations: each as u64,
            flops: 6 * io.inputs[0].count() as u64,
            ..Dispatch::new(shader!("fold_batch_norm_before"; FoldBefore), "main")
        }])
    }

    fn gradient(
        &self,
        _: &mut Graph,
        _: &NodeView,
        _: &[Option<Value>],
        _: &[bool],
    ) -> Result<Vec<Gradient>, GraphError> {
        Err(GraphError::Name(
            "fold_batch_norm_before is for inference and has no gradient: train with batch_norm".into(),
        ))
    }

    fn reference(&self, inputs: &[&Tensor], _: &StepScalars) -> Vec<Tensor> {
        let (mut w, mut b) = (inputs[0].clone(), inputs[1].clone());
        let (outputs, each) = (w.shape[0], w.shape[1]);
        for o in 0..outputs {
            let mut sum = b.data[o] as f64;
            for i in 0..each {
                let c = o / (outputs / self.groups) * each + i;
                let [gamma, beta, mean, variance] = [2, 3, 4, 5].map(|k| inputs[k].data[c] as f64);
                let scale = gamma / (variance + EPSILON as f64).sqrt();
                let weight = &mut w.data[o * each + i];
                sum += *weight as f64 * (beta - mean * scale);
                *weight = (*weight as f64 * scale) as f32;
            }
            b.data[o] = sum as f32;
        }
        vec![w, b]
    }
}

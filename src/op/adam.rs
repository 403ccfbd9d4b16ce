//! Adam (Kingma & Ba 2015) over all parameters in one dispatch.

use super::*;

params! {
    /// The uniform of `adam.wgsl`.
    struct Params {
        count: u32,
    }
}

/// One step of Adam with L2 weight decay, as PyTorch's `Adam(weight_decay = …)` does it:
/// g ← g + λ·p; m ← β₁m + (1−β₁)g; v ← β₂v + (1−β₂)g²; p ← p − α · m/(1−β₁ᵗ) / (√(v/(1−β₂ᵗ)) + ε)
/// with β₁ 0.9, β₂ 0.999, ε 1e-8 (method section 3). Learning rate α, weight decay λ and step t − 1 come with each
/// submission. Inputs: the parameters, their gradients, first moments, second moments, each in the same order.
#[derive(Debug)]
pub struct Adam;

const BETA1: f64 = 0.9;
const BETA2: f64 = 0.999;
const EPSILON: f64 = 1e-8;

/// Adds an Adam step over every parameter of the graph, after [`Graph::parameter_gradient_nodes`].
pub fn adam(graph: &mut Graph) -> Result<(), GraphError> {
    let parameters: Vec<Value> = graph.parameters().map(|(v, _)| v).collect();
    let mut inputs = parameters.clone();
    for parameter in &parameters {
        let found = graph.parameter_gradients().iter().find(|(p, _)| p == parameter);
        let Some((_, gradient)) = found else {
            let name = &graph.values()[parameter.index()].name;
            return Err(GraphError::Name(format!(
                "the loss does not depend on parameter `{name}`"
            )));
        };
        inputs.push(*gradient);
    }
    for order in 0..2 {
        for parameter in &parameters {
            inputs.push(graph.moment(order, *parameter)?);
        }
    }
    graph.push(Adam, &inputs)?;
    Ok(())
}

impl Op for Adam {
    fn name(&self) -> &'static str {
        "adam"
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>, GraphError> {
        let n = inputs.len() / 4;
        let same = (0..n).all(|i| (1..4).all(|k| inputs[i].shape == inputs[k * n + i].shape));
        if !inputs.len().is_multiple_of(4) || !same {
            let reason = "takes parameters, gradients, first and second moments of the same shapes";
            return Err(GraphError::shape("adam", inputs, reason));
        }
        Ok(vec![])
    }

    fn writes(&self, inputs: usize) -> Vec<usize> {
        let n = inputs / 4;
        (0..n).chain(2 * n..4 * n).collect()
    }

    fn dispatches(&self, io: &mut Io, _: &Caps) -> Result<Vec<Dispatch>, GraphError> {
        use BufferRef::*;
        let n = io.inputs.len() / 4;
        let bytes: u64 = io.inputs[..n]
            .iter()
            .map(|s| s.bytes().next_multiple_of(crate::tensor::ALIGNMENT))
            .sum();
        let count = bytes as usize / 16;
        Ok(vec![Dispatch {
            params: Params { count: int(count) }.into(),
            bindings: vec![
                step(),
                write(Parameters),
                read(Gradients),
                write(Moments(0)),
                write(Moments(1)),
            ],
            workgroups: linear_groups(count, 64),
            flops: count as u64 * 4 * 14,
            ..Dispatch::new(shader!("adam"; Params, StepScalars), "main")
        }])
    }

    fn reference(&self, inputs: &[&Tensor], step: &StepScalars) -> Vec<Tensor> {
        let n = inputs.len() / 4;
        let t = step.step as i32 + 1;
        let (rate, decay) = (step.learning_rate as f64, step.weight_decay as f64);
        let mut out: Vec<Tensor> = [0, 2, 3]
            .iter()
            .flat_map(|k| inputs[k * n..(k + 1) * n].iter().map(|t| (*t).clone()))
            .collect();
        for i in 0..n {
            for j in 0..inputs[i].data.len() {
                let p = inputs[i].data[j] as f64;
                let g = inputs[n + i].data[j] as f64 + decay * p;
                let m = BETA1 * inputs[2 * n + i].data[j] as f64 + (1.0 - BETA1) * g;
                let v = BETA2 * inputs[3 * n + i].data[j] as f64 + (1.0 - BETA2) * g * g;
                let update = m / (1.0 - BETA1.powi(t)) / ((v / (1.0 - BETA2.powi(t))).sqrt() + EPSILON);
                out[i].data[j] = (p - rate * update) as f32;
                out[n + i].data[j] = m as f32;
                out[2 * n + i].data[j] = v as f32;
            }
        }
        out
    }
}

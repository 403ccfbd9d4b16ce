//! Optimisers over all parameters at once: Adam (Kingma & Ba 2015), and gradient descent with Nesterov's momentum (Sutskever et
//! al. 2013), either with the gradient's norm clipped (Pascanu et al. 2013).

use super::*;

params! {
    /// The uniform of `adam.wgsl` and `sgd.wgsl`.
    struct Params {
        /// Vec4s.
        count: u32,
        momentum: f32,
    }
}

params! {
    /// The uniform of `gradient_norm.wgsl`.
    struct NormParams {
        /// Numbers of a gradient.
        count: u32,
        threads: u32,
        /// Where its sums begin.
        first: u32,
        longest: f32,
    }
}

/// How gradients change parameters. Learning rate α, weight decay λ and step t − 1 come with each submission.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Optimiser {
    /// As PyTorch's `Adam(weight_decay = …)`: g ← g + λ·p; m ← β₁m + (1−β₁)g; v ← β₂v + (1−β₂)g²;
    /// p ← p − α · m/(1−β₁ᵗ) / (√(v/(1−β₂ᵗ)) + ε) with β₁ 0.9, β₂ 0.999, ε 1e-8 (method section 3).
    Adam,
    /// As PyTorch's `SGD(momentum = μ, nesterov = True, weight_decay = …)`: g ← g + λ·p; m ← μm + g; p ← p − α (g + μm).
    Sgd {
        /// μ.
        momentum: f32,
    },
}

/// One step of an optimiser. Inputs: the parameters, their gradients, first moments, second moments, each in the same order.
#[derive(Clone, Copy, Debug)]
struct Update {
    optimiser: Optimiser,
    /// The gradient of all parameters is shortened to this length where it is longer.
    clip: Option<f32>,
}

const BETA1: f64 = 0.9;
const BETA2: f64 = 0.999;
const EPSILON: f64 = 1e-8;
/// Numbers of a gradient that an invocation sums at least, and most invocations for one.
const ELEMENTS: usize = 64;
const THREADS: usize = 4096;

/// Adds a step over every parameter of the graph, after [`Graph::parameter_gradient_nodes`]. With `clip` the gradients are
/// multiplied by min(1, clip / (‖g‖ + 1e-6)) first, where ‖g‖ is the length of all of them (PyTorch's `clip_grad_norm_`).
///
/// # Errors
/// A parameter that the loss does not depend on.
pub fn optimise(graph: &mut Graph, optimiser: Optimiser, clip: Option<f32>) -> Result<(), GraphError> {
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
    graph.push(Update { optimiser, clip }, &inputs)?;
    Ok(())
}

impl Update {
    /// The kernels that leave in the last buffer what gradients are multiplied by. One for each gradient, since what lies between
    /// them in their arena may be anything.
    fn norm(&self, longest: f32, io: &mut Io) -> (Vec<Dispatch>, BufferRef) {
        let n = io.inputs.len() / 4;
        let counts: Vec<usize> = io.inputs[n..2 * n]
            .iter()
            .map(|gradient| gradient.shape.iter().product())
            .collect();
        let threads = |count: usize| count.div_ceil(ELEMENTS).clamp(1, THREADS);
        let all: usize = counts.iter().map(|count| threads(*count)).sum();
        let (partial, factor) = (io.scratch(all as u64 * 4), io.scratch(4));
        let dispatch = |entry, count, threads, first| Dispatch {
            params: NormParams {
                count: int(count),
                threads: int(threads),
                first: int(first),
                longest,
            }
            .into(),
            ..Dispatch::new(shader!("gradient_norm"; NormParams), entry)
        };
        let mut first = 0;
        let mut dispatches = Vec::new();
        for (i, count) in counts.into_iter().enumerate() {
            let threads = threads(count);
            dispatches.push(Dispatch {
                bindings: vec![read(BufferRef::Input(n + i)), write(partial)],
                workgroups: linear_groups(threads, 64),
                iterations: count.div_ceil(threads) as u64,
                flops: count as u64 * 2,
                ..dispatch("squares", count, threads, first)
            });
            first += threads;
        }
        dispatches.push(Dispatch {
            bindings: vec![read(partial), write(factor)],
            workgroups: [1, 1, 1],
            iterations: all.div_ceil(64).max(64) as u64,
            ..dispatch("factor", 0, all, 0)
        });
        (dispatches, factor)
    }
}

impl Op for Update {
    fn name(&self) -> &'static str {
        match self.optimiser {
            Optimiser::Adam => "adam",
            Optimiser::Sgd { .. } => "sgd",
        }
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>, GraphError> {
        let n = inputs.len() / 4;
        let same = (0..n).all(|i| (1..4).all(|k| inputs[i].shape == inputs[k * n + i].shape));
        if !inputs.len().is_multiple_of(4) || !same {
            let reason = "takes parameters, gradients, first and second moments of the same shapes";
            return Err(GraphError::shape(self.name(), inputs, reason));
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
        let (mut dispatches, factor) = match self.clip {
            Some(longest) => {
                let (dispatches, factor) = self.norm(longest, io);
                (dispatches, Some(factor))
            }
            None => (Vec::new(), None),
        };
        let (shader, momentum) = match self.optimiser {
            Optimiser::Adam => (shader!("adam", "common/update"; Params, StepScalars), 0.0),
            Optimiser::Sgd { momentum } => (shader!("sgd", "common/update"; Params, StepScalars), momentum),
        };
        let mut bindings = vec![step(), write(Parameters), read(Gradients), write(Moments(0))];
        if self.optimiser == Optimiser::Adam {
            bindings.push(write(Moments(1)));
        }
        bindings.extend(factor.map(read));
        dispatches.push(Dispatch {
            params: Params {
                count: int(count),
                momentum,
            }
            .into(),
            bindings,
            workgroups: linear_groups(count, 64),
            flops: count as u64 * 4 * 14,
            ..Dispatch::new(shader, if factor.is_some() { "clipped" } else { "main" })
        });
        Ok(dispatches)
    }

    fn reference(&self, inputs: &[&Tensor], step: &StepScalars) -> Vec<Tensor> {
        let n = inputs.len() / 4;
        let t = step.step as i32 + 1;
        let (rate, decay) = (step.learning_rate as f64, step.weight_decay as f64);
        let squares = inputs[n..2 * n].iter().flat_map(|g| &g.data);
        let length = squares.map(|g| (*g as f64).powi(2)).sum::<f64>().sqrt();
        let factor = self
            .clip
            .map_or(1.0, |longest| (longest as f64 / (length + 1e-6)).min(1.0));
        let mut out: Vec<Tensor> = [0, 2, 3]
            .iter()
            .flat_map(|k| inputs[k * n..(k + 1) * n].iter().map(|t| (*t).clone()))
            .collect();
        for i in 0..n {
            for j in 0..inputs[i].data.len() {
                let p = inputs[i].data[j] as f64;
                let g = factor * inputs[n + i].data[j] as f64 + decay * p;
                let (first, second) = (inputs[2 * n + i].data[j] as f64, inputs[3 * n + i].data[j] as f64);
                let update = match self.optimiser {
                    Optimiser::Adam => {
                        let m = BETA1 * first + (1.0 - BETA1) * g;
                        let v = BETA2 * second + (1.0 - BETA2) * g * g;
                        out[n + i].data[j] = m as f32;
                        out[2 * n + i].data[j] = v as f32;
                        m / (1.0 - BETA1.powi(t)) / ((v / (1.0 - BETA2.powi(t))).sqrt() + EPSILON)
                    }
                    Optimiser::Sgd { momentum } => {
                        let m = momentum as f64 * first + g;
                        out[n + i].data[j] = m as f32;
                        g + momentum as f64 * m
                    }
                };
                out[i].data[j] = (p - rate * update) as f32;
            }
        }
        out
    }
}

//! Exponential moving averages of all parameters and states.

use super::*;

params! {
    /// The uniform of `average.wgsl`.
    struct Params {
        /// Vec4s.
        count: u32,
        decay: f32,
    }
}

/// a ← a + (1 − d)(x − a), where d = min(decay, (1 + t) / (10 + t)) at step t, so that the first steps, which are far from where
/// a training ends, are soon forgotten. Inputs: parameters, states, and the averages of both, in the same order.
#[derive(Clone, Copy, Debug)]
struct Average {
    decay: f32,
    parameters: usize,
}

/// Adds the averages of every parameter and state of the graph, after its optimiser has changed them.
///
/// # Errors
/// A decay that is not between 0 and 1.
pub fn average(graph: &mut Graph, decay: f32) -> Result<(), GraphError> {
    if !(0.0..1.0).contains(&decay) {
        let message = format!("averages take a decay from 0 up to but not 1, not {decay}");
        return Err(GraphError::Name(message));
    }
    let mut inputs: Vec<Value> = graph.parameters().map(|(v, _)| v).collect();
    let parameters = inputs.len();
    inputs.extend(graph.states().map(|(v, _)| v));
    for value in inputs.clone() {
        inputs.push(graph.average(value)?);
    }
    graph.push(Average { decay, parameters }, &inputs)?;
    Ok(())
}

impl Op for Average {
    fn name(&self) -> &'static str {
        "average"
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>, GraphError> {
        let n = inputs.len() / 2;
        if !inputs.len().is_multiple_of(2) || (0..n).any(|i| inputs[i].shape != inputs[n + i].shape) {
            let reason = "takes parameters and states, and averages of the same shapes";
            return Err(GraphError::shape(self.name(), inputs, reason));
        }
        Ok(vec![])
    }

    fn writes(&self, inputs: usize) -> Vec<usize> {
        (inputs / 2..inputs).collect()
    }

    fn dispatches(&self, io: &mut Io, _: &Caps) -> Result<Vec<Dispatch>, GraphError> {
        use BufferRef::*;
        let n = io.inputs.len() / 2;
        let (parameters, states) = io.inputs[..n].split_at(self.parameters);
        let of = |values: &[Spec], from, to| {
            let bytes = values
                .iter()
                .map(|s| s.bytes().next_multiple_of(crate::tensor::ALIGNMENT));
            let count = bytes.sum::<u64>() as usize / 16;
            (count > 0).then(|| Dispatch {
                params: Params {
                    count: int(count),
                    decay: self.decay,
                }
                .into(),
                bindings: vec![step(), read(from), write(to)],
                workgroups: linear_groups(count, 64),
                flops: count as u64 * 12,
                ..Dispatch::new(shader!("average"; Params, StepScalars), "main")
            })
        };
        let both = [
            of(parameters, Parameters, Averages),
            of(states, States, StateAverages),
        ];
        Ok(both.into_iter().flatten().collect())
    }

    fn reference(&self, inputs: &[&Tensor], step: &StepScalars) -> Vec<Tensor> {
        let n = inputs.len() / 2;
        let t = step.step as f32;
        let share = 1.0 - self.decay.min((1.0 + t) / (10.0 + t));
        let average = |i: usize| {
            let (new, old) = (inputs[i], inputs[n + i]);
            Tensor::from_fn(&new.shape, |j| {
                let (x, a) = (new.data[j] as f64, old.data[j] as f64);
                (a + share as f64 * (x - a)) as f32
            })
        };
        (0..n).map(average).collect()
    }
}

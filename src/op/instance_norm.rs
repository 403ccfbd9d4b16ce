//! Instance normalisation (Ulyanov, Vedaldi & Lempitsky 2016) of maps with an optional leaky ReLU behind it: batch norm by the
//! statistics of each sample, in training and in inference.

use super::conv3d::Conv3dBiasGradient;
use super::norm::{self, Over, gradient_reference, normalise_reference, statistics_reference};
use super::*;

/// Instance norm of a map `[N, C, D, H, W]` with `slope`'s leaky ReLU behind it (0 is ReLU, `None` is linear):
/// y = leaky(γ·(x − μ)/√(σ² + ε) + β), where μ and σ² (biased) are each sample's by channel. `gamma` and `beta` are flat `[C]`.
///
/// # Errors
/// Other shapes, and maps with one voxel, whose variance is 0.
pub fn instance_norm(
    graph: &mut Graph,
    x: Value,
    gamma: Value,
    beta: Value,
    slope: Option<f32>,
) -> Result<Value, GraphError> {
    Ok(graph.push(InstanceNorm { slope }, &[x, gamma, beta])?[0])
}

/// The normalisation. Inputs: x, γ, β. Outputs: y, μ `[N, C, 1, 1, 1]`, σ² `[N, C, 1, 1, 1]` (biased).
#[derive(Debug)]
pub struct InstanceNorm {
    /// The leaky ReLU's slope; `None` for none.
    pub slope: Option<f32>,
}

/// μ and σ² of a map, each a map `[N, C, 1, 1, 1]`. Input: x.
#[derive(Debug)]
struct Statistics;

/// y with given μ and σ². Inputs: x, γ, β, μ, σ².
#[derive(Clone, Copy, Debug)]
struct Normalise {
    slope: Option<f32>,
}

/// Inputs: x, γ, β, μ, σ², dy. Outputs: dx, and dγ and dβ of each sample, `[N, C, 1, 1, 1]`.
#[derive(Debug)]
struct InstanceNormGradient {
    slope: Option<f32>,
}

fn check(name: &'static str, inputs: &[Spec], count: usize) -> Result<(), GraphError> {
    let fits = match inputs {
        [x, rest @ ..] if inputs.len() == count && x.layout == Layout::Map => {
            let (channels, statistic) = (Spec::flat(&x.shape[1..2]), Over::Sample.statistic(x));
            let expected = [&channels, &channels, &statistic, &statistic, x];
            rest.iter()
                .zip(expected)
                .all(|(found, expected)| found == expected)
        }
        _ => false,
    };
    if !fits {
        let reason = "takes a map [N, C, D, H, W], then gamma and beta, each flat [C]";
        return Err(GraphError::shape(name, inputs, reason));
    }
    if Over::Sample.count(&inputs[0]) < 2 {
        let reason = "needs more than one voxel a channel: its variance is 0";
        return Err(GraphError::shape(name, inputs, reason));
    }
    Ok(())
}

impl Op for InstanceNorm {
    fn name(&self) -> &'static str {
        "instance_norm"
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>, GraphError> {
        check(self.name(), inputs, 3)?;
        let statistic = Over::Sample.statistic(&inputs[0]);
        Ok(vec![inputs[0].clone(), statistic.clone(), statistic])
    }

    /// Statistics and what they are used for apart: the second can be repeated, and goes in slabs.
    fn expand(&self, graph: &mut Graph, inputs: &[Value]) -> Result<Option<Vec<Value>>, GraphError> {
        let statistics = graph.push(Statistics, &inputs[..1])?;
        let normalise = Normalise { slope: self.slope };
        let y = graph.push1(normalise, &[inputs, &statistics].concat())?;
        Ok(Some(vec![y, statistics[0], statistics[1]]))
    }

    fn gradient(
        &self,
        graph: &mut Graph,
        node: &NodeView,
        upstream: &[Option<Value>],
        wanted: &[bool],
    ) -> Result<Vec<Gradient>, GraphError> {
        let [Some(dy), None, None] = upstream else {
            let reason = "instance_norm offers no gradient through its statistics as outputs";
            return Err(GraphError::Name(reason.into()));
        };
        let inputs = [&node.inputs[..], &node.outputs[1..3], &[*dy]].concat();
        let made = graph.push(InstanceNormGradient { slope: self.slope }, &inputs)?;
        let mut gradients = vec![Gradient::Flows(made[0])];
        for (by_sample, wanted) in made[1..].iter().zip(&wanted[1..]) {
            // The sum over the samples.
            gradients.push(match wanted {
                true => Gradient::Flows(graph.push1(Conv3dBiasGradient, &[*by_sample])?),
                false => Gradient::Stops,
            });
        }
        Ok(gradients)
    }

    #[cfg(feature = "onnx")]
    fn onnx(&self, to: &mut onnx::Writer, call: &onnx::Call) -> Result<Vec<String>, String> {
        let epsilon = Attribute::Float("epsilon", norm::EPSILON);
        let y = to.node("InstanceNormalization", &call.inputs(), [epsilon]);
        Ok(vec![to.leaky(y, self.slope)])
    }

    fn reference(&self, inputs: &[&Tensor], _: &StepScalars) -> Vec<Tensor> {
        let [mean, variance] = sample_statistics_reference(inputs[0]);
        let y = normalise_reference(inputs, Over::Sample, &mean, &variance, self.slope);
        vec![y, mean, variance]
    }
}

fn sample_statistics_reference(x: &Tensor) -> [Tensor; 2] {
    let [n, c, ..] = x.ncdhw();
    statistics_reference(x, Over::Sample, &[n, c, 1, 1, 1])
}

impl Op for Statistics {
    fn name(&self) -> &'static str {
        "instance_norm_statistics"
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>, GraphError> {
        Ok(vec![Over::Sample.statistic(&inputs[0]); 2])
    }

    fn dispatches(&self, io: &mut Io, caps: &Caps) -> Result<Vec<Dispatch>, GraphError> {
        // Running statistics that nobody reads.
        let bytes = 16 * io.inputs[0].blocks() as u64;
        let unread = [io.scratch(bytes), io.scratch(bytes)];
        Ok(norm::statistics(io, Over::Sample, unread, caps))
    }

    fn reference(&self, inputs: &[&Tensor], _: &StepScalars) -> Vec<Tensor> {
        sample_statistics_reference(inputs[0]).into()
    }
}

impl Op for Normalise {
    fn name(&self) -> &'static str {
        "instance_norm_normalise"
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>, GraphError> {
        check(self.name(), inputs, 5)?;
        Ok(vec![inputs[0].clone()])
    }

    fn dispatches(&self, io: &mut Io, caps: &Caps) -> Result<Vec<Dispatch>, GraphError> {
        Ok(norm::normalise(io, Over::Sample, self.slope.unwrap_or(1.0), caps))
    }

    fn reference(&self, inputs: &[&Tensor], _: &StepScalars) -> Vec<Tensor> {
        vec![normalise_reference(
            inputs,
            Over::Sample,
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

impl Op for InstanceNormGradient {
    fn name(&self) -> &'static str {
        "instance_norm_gradient"
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>, GraphError> {
        check(self.name(), inputs, 6)?;
        let statistic = Over::Sample.statistic(&inputs[0]);
        Ok(vec![inputs[0].clone(), statistic.clone(), statistic])
    }

    fn dispatches(&self, io: &mut Io, caps: &Caps) -> Result<Vec<Dispatch>, GraphError> {
        let slope = self.slope.unwrap_or(1.0);
        Ok(norm::gradient(io, Over::Sample, slope, true, caps))
    }

    /// dx over dy.
    fn overwrites(&self, _: &[Spec], _: &[Spec], _: &Caps) -> Option<usize> {
        Some(5)
    }

    fn reference(&self, inputs: &[&Tensor], _: &StepScalars) -> Vec<Tensor> {
        gradient_reference(inputs, Over::Sample, self.slope, true)
    }
}

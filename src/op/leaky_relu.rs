//! Leaky ReLU on its own; behind a batch norm it is part of that operation.

use super::*;

/// y = x where x > 0, else `slope`·x; slope 0 is ReLU. Any shape and layout.
#[derive(Debug)]
pub struct LeakyRelu {
    /// Factor of negative numbers.
    pub slope: f32,
}

/// [`LeakyRelu`] of `x`.
pub fn leaky_relu(graph: &mut Graph, x: Value, slope: f32) -> Result<Value, GraphError> {
    graph.push1(LeakyRelu { slope }, &[x])
}

/// Inputs: x, dy. Output: dx.
#[derive(Debug)]
struct LeakyReluGradient {
    slope: f32,
}

fn dispatches(entry: &'static str, slope: f32, io: &Io, caps: &Caps) -> Vec<Dispatch> {
    ranges(io.outputs[0].bytes(), caps)
        .map(|(from, to)| {
            let count = (to - from) as usize / 16;
            let mut bindings: Vec<Binding> = (0..io.inputs.len())
                .map(|i| read(BufferRef::Input(i)).range(from, to))
                .collect();
            bindings.push(write(BufferRef::Output(0)).range(from, to));
            Dispatch {
                params: vec![("count", count.into()), ("slope", slope.into())],
                bindings,
                workgroups: linear_groups(count, 64),
                flops: count as u64 * 4,
                ..Dispatch::new(shader!("leaky_relu"), entry)
            }
        })
        .collect()
}

impl Op for LeakyRelu {
    fn name(&self) -> &'static str {
        "leaky_relu"
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>, GraphError> {
        match inputs {
            [x] => Ok(vec![x.clone()]),
            _ => Err(GraphError::shape(self.name(), inputs, "takes one value")),
        }
    }

    fn dispatches(&self, io: &mut Io, caps: &Caps) -> Result<Vec<Dispatch>, GraphError> {
        Ok(dispatches("forward", self.slope, io, caps))
    }

    fn gradient(
        &self,
        graph: &mut Graph,
        node: &NodeView,
        upstream: &[Option<Value>],
        _: &[bool],
    ) -> Result<Vec<Gradient>, GraphError> {
        let dy = upstream[0].expect("the one output has a gradient");
        let op = LeakyReluGradient { slope: self.slope };
        Ok(vec![Gradient::Flows(graph.push1(op, &[node.inputs[0], dy])?)])
    }

    fn reference(&self, inputs: &[&Tensor], _: &StepScalars) -> Vec<Tensor> {
        let leaky = |i: usize| {
            let x = inputs[0].data[i];
            if x > 0.0 { x } else { self.slope * x }
        };
        vec![Tensor::from_fn(&inputs[0].shape, leaky)]
    }
}

impl Op for LeakyReluGradient {
    fn name(&self) -> &'static str {
        "leaky_relu_gradient"
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>, GraphError> {
        match inputs {
            [x, dy] if x == dy => Ok(vec![x.clone()]),
            _ => Err(GraphError::shape(
                self.name(),
                inputs,
                "takes x and dy of one shape and layout",
            )),
        }
    }

    fn dispatches(&self, io: &mut Io, caps: &Caps) -> Result<Vec<Dispatch>, GraphError> {
        Ok(dispatches("gradient", self.slope, io, caps))
    }

    fn gradient(
        &self,
        _: &mut Graph,
        _: &NodeView,
        _: &[Option<Value>],
        _: &[bool],
    ) -> Result<Vec<Gradient>, GraphError> {
        no_second_derivative(self.name())
    }

    fn reference(&self, inputs: &[&Tensor], _: &StepScalars) -> Vec<Tensor> {
        let gradient = |i: usize| {
            let slope = if inputs[0].data[i] > 0.0 { 1.0 } else { self.slope };
            slope * inputs[1].data[i]
        };
        vec![Tensor::from_fn(&inputs[0].shape, gradient)]
    }
}

//! Leaky ReLU on its own; behind a batch norm it is part of that operation.

use super::*;

params! {
    /// The uniform of `leaky_relu.wgsl`.
    struct Params {
        count: u32,
        slope: f32,
    }
}

/// y = x where x > 0, else `slope`·x; slope 0 is ReLU. Any shape and layout.
#[derive(Clone, Copy, Debug)]
pub struct LeakyRelu {
    /// Factor of negative numbers.
    pub slope: f32,
}

/// [`LeakyRelu`] of `x`.
pub fn leaky_relu(graph: &mut Graph, x: Value, slope: f32) -> Result<Value, GraphError> {
    graph.push1(LeakyRelu { slope }, &[x])
}

/// Inputs: x or a value of its sign, dy. Output: dx.
#[derive(Debug)]
struct LeakyReluGradient {
    slope: f32,
}

fn dispatches(entry: &'static str, slope: f32, io: &Io, caps: &Caps) -> Vec<Dispatch> {
    io.ranges(caps)
        .map(|(from, to)| {
            let count = (to - from) as usize / 16;
            // In place, the output stands for the last input.
            let read_only = io.inputs.len() - io.in_place as usize;
            let mut bindings: Vec<Binding> = (0..read_only)
                .map(|i| read(BufferRef::Input(i)).range(from, to))
                .collect();
            bindings.push(write(BufferRef::Output(0)).range(from, to));
            Dispatch {
                params: Params {
                    count: int(count),
                    slope,
                }
                .into(),
                bindings,
                workgroups: linear_groups(count, 64),
                flops: count as u64 * 4,
                ..Dispatch::new(shader!("leaky_relu"; Params), entry)
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
        let entry = if io.in_place {
            "forward_in_place"
        } else {
            "forward"
        };
        Ok(dispatches(entry, self.slope, io, caps))
    }

    fn rematerialise(&self, node: &NodeView, _: &[Spec]) -> Option<(Arc<dyn Op>, Vec<Value>)> {
        Some((Arc::new(*self), node.inputs.clone()))
    }

    fn reads(&self, inputs: &[Spec], outputs: &[Spec], planes: Range<usize>) -> Option<Reads> {
        same_planes(inputs, outputs, planes)
    }

    fn overwrites(&self, _: &[Spec], _: &[Spec], _: &Caps) -> Option<usize> {
        Some(0)
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
        // y > 0 where x > 0, so that x need not be kept.
        let sign = if self.slope >= 0.0 {
            node.outputs[0]
        } else {
            node.inputs[0]
        };
        Ok(vec![Gradient::Flows(graph.push1(op, &[sign, dy])?)])
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
        let entry = if io.in_place {
            "gradient_in_place"
        } else {
            "gradient"
        };
        Ok(dispatches(entry, self.slope, io, caps))
    }

    fn reads(&self, inputs: &[Spec], outputs: &[Spec], planes: Range<usize>) -> Option<Reads> {
        same_planes(inputs, outputs, planes)
    }

    /// dx over dy.
    fn overwrites(&self, _: &[Spec], _: &[Spec], _: &Caps) -> Option<usize> {
        Some(1)
    }

    fn reference(&self, inputs: &[&Tensor], _: &StepScalars) -> Vec<Tensor> {
        let gradient = |i: usize| {
            let slope = if inputs[0].data[i] > 0.0 { 1.0 } else { self.slope };
            slope * inputs[1].data[i]
        };
        vec![Tensor::from_fn(&inputs[0].shape, gradient)]
    }
}

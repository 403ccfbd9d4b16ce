//! Functions of single numbers behind a layer. A leaky ReLU behind a norm or a convolution becomes part of that operation.

use super::*;

params! {
    /// The uniform of `activation.wgsl`.
    struct Params {
        count: u32,
        slope: f32,
    }
}

/// y = f(x) of each number, any shape and layout; f(0) = 0, so that a map's unused channels stay zero.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Activation {
    /// x where x > 0, else `slope`·x; slope 0 is ReLU.
    LeakyRelu {
        /// Factor of negative numbers.
        slope: f32,
    },
    /// x where x > 0, else eˣ − 1 (Clevert, Unterthiner & Hochreiter 2016, α = 1).
    Elu,
    /// x·Φ(x) with the normal distribution's Φ (Hendrycks & Gimpel 2016), not its approximation by tanh.
    Gelu,
}

/// [`Activation::LeakyRelu`] of `x`.
pub fn leaky_relu(graph: &mut Graph, x: Value, slope: f32) -> Result<Value, GraphError> {
    graph.push1(Activation::LeakyRelu { slope }, &[x])
}

/// Inputs: x, or y where the derivative is one of y; dy. Output: dx.
#[derive(Debug)]
struct ActivationGradient {
    of: Activation,
}

impl Activation {
    /// The numbers in the shader's `KIND`, and the slope.
    fn kind(self) -> (u32, f32) {
        match self {
            Activation::LeakyRelu { slope } => (0, slope),
            Activation::Elu => (1, 1.0),
            Activation::Gelu => (2, 1.0),
        }
    }

    /// f(x).
    pub fn of(self, x: f32) -> f32 {
        match self {
            Activation::LeakyRelu { slope } if x <= 0.0 => slope * x,
            Activation::Elu if x <= 0.0 => x.exp_m1(),
            Activation::LeakyRelu { .. } | Activation::Elu => x,
            Activation::Gelu => x * normal_distribution(x),
        }
    }

    /// Whether the derivative is one of y, so that x need not be kept.
    fn knows_itself_by_y(self) -> bool {
        match self {
            // y > 0 where x > 0.
            Activation::LeakyRelu { slope } => slope >= 0.0,
            Activation::Elu => true,
            Activation::Gelu => false,
        }
    }

    /// df/dx by x, or by y where [`Activation::knows_itself_by_y`].
    fn derivative(self, v: f32) -> f32 {
        match self {
            Activation::LeakyRelu { slope } if v <= 0.0 => slope,
            Activation::Elu if v <= 0.0 => v + 1.0,
            Activation::LeakyRelu { .. } | Activation::Elu => 1.0,
            Activation::Gelu => {
                let density = (-0.5 * v * v).exp() / (2.0 * std::f32::consts::PI).sqrt();
                normal_distribution(v) + v * density
            }
        }
    }

    fn dispatches(self, entry: &'static str, io: &Io, caps: &Caps) -> Vec<Dispatch> {
        let (kind, slope) = self.kind();
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
                    constants: vec![("KIND", kind)],
                    params: Params {
                        count: int(count),
                        slope,
                    }
                    .into(),
                    bindings,
                    workgroups: linear_groups(count, 64),
                    flops: count as u64 * 4,
                    ..Dispatch::new(shader!("activation"; Params), entry)
                }
            })
            .collect()
    }
}

/// Φ(x), the probability that a standard normal number is at most x; the error function as Abramowitz & Stegun's formula
/// 7.1.26, within 1.5e-7, in f64 and the shader alike.
fn normal_distribution(x: f32) -> f32 {
    let z = (f64::from(x) * std::f64::consts::FRAC_1_SQRT_2).abs();
    let t = 1.0 / (1.0 + 0.3275911 * z);
    let series = [1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592];
    let tail = series.iter().fold(0.0, |sum, c| sum * t + c) * t * (-z * z).exp();
    (if x < 0.0 { 0.5 * tail } else { 1.0 - 0.5 * tail }) as f32
}

impl Op for Activation {
    fn name(&self) -> &'static str {
        match self {
            Activation::LeakyRelu { .. } => "leaky_relu",
            Activation::Elu => "elu",
            Activation::Gelu => "gelu",
        }
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
        Ok(Activation::dispatches(*self, entry, io, caps))
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
        let known_by = match self.knows_itself_by_y() {
            true => node.outputs[0],
            false => node.inputs[0],
        };
        let op = ActivationGradient { of: *self };
        Ok(vec![Gradient::Flows(graph.push1(op, &[known_by, dy])?)])
    }

    #[cfg(feature = "onnx")]
    fn onnx(&self, to: &mut onnx::Writer, call: &onnx::Call) -> Result<Vec<String>, String> {
        let x = call.inputs[0].clone();
        Ok(vec![match self {
            Activation::LeakyRelu { slope } => to.leaky(x, Some(*slope)),
            Activation::Elu => to.node("Elu", &[&x], []),
            Activation::Gelu => to.node("Gelu", &[&x], []),
        }])
    }

    fn reference(&self, inputs: &[&Tensor], _: &StepScalars) -> Vec<Tensor> {
        vec![Tensor::from_fn(&inputs[0].shape, |i| self.of(inputs[0].data[i]))]
    }
}

impl Op for ActivationGradient {
    fn name(&self) -> &'static str {
        match self.of {
            Activation::LeakyRelu { .. } => "leaky_relu_gradient",
            Activation::Elu => "elu_gradient",
            Activation::Gelu => "gelu_gradient",
        }
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
        Ok(self.of.dispatches(entry, io, caps))
    }

    fn reads(&self, inputs: &[Spec], outputs: &[Spec], planes: Range<usize>) -> Option<Reads> {
        same_planes(inputs, outputs, planes)
    }

    /// dx over dy.
    fn overwrites(&self, _: &[Spec], _: &[Spec], _: &Caps) -> Option<usize> {
        Some(1)
    }

    fn reference(&self, inputs: &[&Tensor], _: &StepScalars) -> Vec<Tensor> {
        let gradient = |i: usize| self.of.derivative(inputs[0].data[i]) * inputs[1].data[i];
        vec![Tensor::from_fn(&inputs[0].shape, gradient)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_normal_distribution_is_within_single_precision() {
        // Φ of these by Python's statistics.NormalDist.
        for (x, expected) in [
            (0.0, 0.5),
            (0.5, 0.6914624612740131),
            (-1.5, 0.06680720126885806),
            (3.0, 0.9986501019683699),
        ] {
            assert!((f64::from(normal_distribution(x)) - expected).abs() < 2e-7, "{x}");
        }
    }
}

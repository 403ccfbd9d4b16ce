//! Fully-connected layer.

use super::fill::Fill;
use super::*;

params! {
    /// The uniform of `linear.wgsl`.
    struct Params {
        samples: u32,
        inputs: u32,
        outputs: u32,
        chunk: u32,
        chunks: u32,
    }
}

/// Outputs that one invocation of the input's gradient adds up; more run side by side and are summed after.
const CHUNK: usize = 256;

/// y = x·wᵀ + b: `x` flat `[N, …]` with I numbers a sample in whatever shape, `weight` flat `[O, I]`, `bias` flat `[O]` or
/// none (zero). Returns flat `[N, O]`.
pub fn linear(graph: &mut Graph, x: Value, weight: Value, bias: Option<Value>) -> Result<Value, GraphError> {
    let bias = match bias {
        Some(bias) => bias,
        None => {
            let outputs = graph.shape(weight).first().copied().unwrap_or(0);
            graph.push1(Fill::new(&[outputs], 0.0), &[])?
        }
    };
    graph.push1(Linear, &[x, weight, bias])
}

/// Inputs: x, w, b. Output: y.
#[derive(Debug)]
struct Linear;

/// Inputs: x, w, dy. Outputs: dx, dw, db.
#[derive(Debug)]
struct LinearGradient;

/// N, I, O of x and w.
fn sizes(name: &'static str, inputs: &[Spec]) -> Result<[usize; 3], GraphError> {
    if let [x, weight, ..] = inputs
        && inputs.iter().all(|s| s.layout == Layout::Flat)
        && let ([samples, rest @ ..], [outputs, fan_in]) = (&x.shape[..], &weight.shape[..])
        && rest.iter().product::<usize>() == *fan_in
        && x.count() * outputs > 0
    {
        return Ok([*samples, *fan_in, *outputs]);
    }
    let reason = "takes x [N, …] with I numbers a sample, w [O, I] and b [O], all flat";
    Err(GraphError::shape(name, inputs, reason))
}

fn launch(entry: &'static str, [samples, inputs, outputs]: [usize; 3]) -> Dispatch {
    Dispatch {
        params: Params {
            samples: int(samples),
            inputs: int(inputs),
            outputs: int(outputs),
            chunk: int(CHUNK),
            chunks: int(outputs.div_ceil(CHUNK)),
        }
        .into(),
        flops: (2 * samples * inputs * outputs) as u64,
        ..Dispatch::new(shader!("linear", "common/sum64"; Params), entry)
    }
}

impl Op for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>, GraphError> {
        let [samples, _, outputs] = sizes(self.name(), inputs)?;
        if inputs.len() != 3 || inputs[2] != Spec::flat(&[outputs]) {
            let reason = "takes a bias [O] beside w [O, I]";
            return Err(GraphError::shape(self.name(), inputs, reason));
        }
        Ok(vec![Spec::flat(&[samples, outputs])])
    }

    fn dispatches(&self, io: &mut Io, _: &Caps) -> Result<Vec<Dispatch>, GraphError> {
        use BufferRef::*;
        let sizes = sizes(self.name(), io.inputs)?;
        let [samples, inputs, outputs] = sizes;
        Ok(vec![Dispatch {
            bindings: vec![read(Input(0)), read(Input(1)), read(Input(2)), write(Output(0))],
            workgroups: [outputs as u32, samples.div_ceil(4) as u32, 1],
            iterations: inputs.div_ceil(64) as u64 + 6,
            ..launch("forward", sizes)
        }])
    }

    fn gradient(
        &self,
        graph: &mut Graph,
        node: &NodeView,
        upstream: &[Option<Value>],
        _: &[bool],
    ) -> Result<Vec<Gradient>, GraphError> {
        let dy = upstream[0].expect("the one output has a gradient");
        let made = graph.push(LinearGradient, &[node.inputs[0], node.inputs[1], dy])?;
        Ok(made.into_iter().map(Gradient::Flows).collect())
    }

    #[cfg(feature = "onnx")]
    fn onnx(&self, to: &mut onnx::Writer, call: &onnx::Call) -> Result<Vec<String>, String> {
        let x = to.node("Flatten", &[&call.inputs[0]], []);
        let inputs = [&x, &call.inputs[1], &call.inputs[2]].map(String::as_str);
        Ok(vec![to.node("Gemm", &inputs, [Attribute::Int("transB", 1)])])
    }

    fn reference(&self, inputs: &[&Tensor], _: &StepScalars) -> Vec<Tensor> {
        let [x, weight, bias] = inputs else {
            unreachable!("three inputs")
        };
        let (samples, outputs, fan_in) = (x.shape[0], weight.shape[0], weight.shape[1]);
        vec![Tensor::from_fn(&[samples, outputs], |j| {
            let (n, o) = (j / outputs, j % outputs);
            let product = |i: usize| weight.data[o * fan_in + i] as f64 * x.data[n * fan_in + i] as f64;
            ((0..fan_in).map(product).sum::<f64>() + bias.data[o] as f64) as f32
        })]
    }
}

impl Op for LinearGradient {
    fn name(&self) -> &'static str {
        "linear_gradient"
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>, GraphError> {
        let [samples, _, outputs] = sizes(self.name(), inputs)?;
        if inputs.len() != 3 || inputs[2] != Spec::flat(&[samples, outputs]) {
            let reason = "takes dy [N, O] beside w [O, I]";
            return Err(GraphError::shape(self.name(), inputs, reason));
        }
        Ok(vec![inputs[0].clone(), inputs[1].clone(), Spec::flat(&[outputs])])
    }

    fn dispatches(&self, io: &mut Io, _: &Caps) -> Result<Vec<Dispatch>, GraphError> {
        use BufferRef::*;
        let sizes = sizes(self.name(), io.inputs)?;
        let [samples, inputs, outputs] = sizes;
        let chunks = outputs.div_ceil(CHUNK);
        let partials = io.scratch((chunks * samples * inputs * 4) as u64);
        let columns = inputs.div_ceil(64) as u32;
        Ok(vec![
            Dispatch {
                bindings: vec![read(Input(2)), read(Input(1)), write(partials)],
                workgroups: [columns, samples as u32, chunks as u32],
                iterations: CHUNK as u64,
                ..launch("input_gradient", sizes)
            },
            Dispatch {
                bindings: vec![read(partials), write(Output(0))],
                workgroups: [(samples * inputs).div_ceil(64) as u32, 1, 1],
                iterations: chunks as u64,
                flops: (chunks * samples * inputs) as u64,
                ..launch("sum_chunks", sizes)
            },
            Dispatch {
                bindings: vec![read(Input(2)), read(Input(0)), write(Output(1)), write(Output(2))],
                workgroups: [columns, outputs as u32, 1],
                iterations: samples as u64,
                ..launch("weight_gradient", sizes)
            },
        ])
    }

    fn reference(&self, inputs: &[&Tensor], _: &StepScalars) -> Vec<Tensor> {
        let [x, weight, dy] = inputs else {
            unreachable!("three inputs")
        };
        let (samples, outputs, fan_in) = (x.shape[0], weight.shape[0], weight.shape[1]);
        let d = |n: usize, o: usize| dy.data[n * outputs + o] as f64;
        let dx = Tensor::from_fn(&x.shape, |j| {
            let (n, i) = (j / fan_in, j % fan_in);
            let product = |o: usize| d(n, o) * weight.data[o * fan_in + i] as f64;
            (0..outputs).map(product).sum::<f64>() as f32
        });
        let dw = Tensor::from_fn(&weight.shape, |j| {
            let (o, i) = (j / fan_in, j % fan_in);
            let product = |n: usize| d(n, o) * x.data[n * fan_in + i] as f64;
            (0..samples).map(product).sum::<f64>() as f32
        });
        let db = Tensor::from_fn(&[outputs], |o| (0..samples).map(|n| d(n, o)).sum::<f64>() as f32);
        vec![dx, dw, db]
    }
}

//! Sum of two values of one shape: where a value has several consumers, their gradients add.

use super::*;

params! {
    struct Params {
        /// Vec4s of the range.
        count: u32,
    }
}

/// `a + b`.
#[derive(Debug)]
pub struct Add;

impl Op for Add {
    fn name(&self) -> &'static str {
        "add"
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>, GraphError> {
        match inputs {
            [a, b] if a == b => Ok(vec![a.clone()]),
            _ => Err(GraphError::shape(
                "add",
                inputs,
                "takes two values of one shape and layout",
            )),
        }
    }

    fn dispatches(&self, io: &mut Io, caps: &Caps) -> Result<Vec<Dispatch>, GraphError> {
        use BufferRef::*;
        let (entry, buffers) = match io.in_place {
            true => ("in_place", vec![write(Output(0)), read(Input(1))]),
            false => ("main", vec![read(Input(0)), read(Input(1)), write(Output(0))]),
        };
        Ok(io
            .ranges(caps)
            .map(|(from, to)| {
                let count = (to - from) as usize / 16;
                Dispatch {
                    params: Params { count: int(count) }.into(),
                    bindings: buffers.iter().map(|b| b.clone().range(from, to)).collect(),
                    workgroups: linear_groups(count, 64),
                    flops: count as u64 * 4,
                    ..Dispatch::new(shader!("add"; Params), entry)
                }
            })
            .collect())
    }

    fn reads(&self, inputs: &[Spec], outputs: &[Spec], planes: Range<usize>) -> Option<Reads> {
        same_planes(inputs, outputs, planes)
    }

    fn overwrites(&self, _: &[Spec], _: &[Spec], _: &Caps) -> Option<usize> {
        Some(0)
    }

    fn gradient(
        &self,
        _: &mut Graph,
        _: &NodeView,
        upstream: &[Option<Value>],
        _: &[bool],
    ) -> Result<Vec<Gradient>, GraphError> {
        let upstream = upstream[0].expect("the one output has a gradient");
        Ok(vec![Gradient::Flows(upstream); 2])
    }

    #[cfg(feature = "onnx")]
    fn onnx(&self, to: &mut onnx::Writer, call: &onnx::Call) -> Result<Vec<String>, String> {
        Ok(vec![to.node("Add", &call.inputs(), [])])
    }

    fn reference(&self, inputs: &[&Tensor], _: &StepScalars) -> Vec<Tensor> {
        let sum = inputs[0]
            .data
            .iter()
            .zip(&inputs[1].data)
            .map(|(a, b)| a + b)
            .collect();
        vec![Tensor::new(&inputs[0].shape, sum)]
    }
}

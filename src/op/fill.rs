//! A constant: the gradient that a sweep starts from.

use super::*;

params! {
    /// The uniform of `fill.wgsl`.
    struct Params {
        count: u32,
        value: f32,
    }
}

/// A flat value with every element the same.
#[derive(Debug)]
pub struct Fill {
    shape: Vec<usize>,
    value: f32,
}

impl Fill {
    /// `shape` filled with `value`.
    pub fn new(shape: &[usize], value: f32) -> Self {
        Fill {
            shape: shape.to_vec(),
            value,
        }
    }
}

impl Op for Fill {
    fn name(&self) -> &'static str {
        "fill"
    }

    fn outputs(&self, _: &[Spec]) -> Result<Vec<Spec>, GraphError> {
        Ok(vec![Spec::flat(&self.shape)])
    }

    fn dispatches(&self, io: &mut Io, _: &Caps) -> Result<Vec<Dispatch>, GraphError> {
        let count = io.outputs[0].count();
        Ok(vec![Dispatch {
            params: Params {
                count: int(count),
                value: self.value,
            }
            .into(),
            bindings: vec![write(BufferRef::Output(0))],
            workgroups: linear_groups(count, 64),
            ..Dispatch::new(shader!("fill"; Params), "main")
        }])
    }

    #[cfg(feature = "onnx")]
    fn onnx(&self, to: &mut onnx::Writer, _: &onnx::Call) -> Result<Vec<String>, String> {
        let values = vec![self.value; self.shape.iter().product()];
        Ok(vec![to.float(&self.shape, &values)])
    }

    fn reference(&self, _: &[&Tensor], _: &StepScalars) -> Vec<Tensor> {
        vec![Tensor::full(&self.shape, self.value)]
    }
}

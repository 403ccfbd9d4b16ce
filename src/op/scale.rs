//! A value times a number: the share of a loss in a sum of several.

use super::*;

params! {
    /// The uniform of `scale.wgsl`.
    struct Params {
        /// Vec4s of the range.
        count: u32,
        factor: f32,
    }
}

/// y = factor · x, any shape and layout.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    /// The factor.
    pub factor: f32,
}

impl Op for Scale {
    fn name(&self) -> &'static str {
        "scale"
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>, GraphError> {
        match inputs {
            [x] => Ok(vec![x.clone()]),
            _ => Err(GraphError::shape(self.name(), inputs, "takes one value")),
        }
    }

    fn dispatches(&self, io: &mut Io, caps: &Caps) -> Result<Vec<Dispatch>, GraphError> {
        use BufferRef::*;
        let (entry, buffers) = match io.in_place {
            true => ("in_place", vec![write(Output(0))]),
            false => ("main", vec![read(Input(0)), write(Output(0))]),
        };
        Ok(io
            .ranges(caps)
            .map(|(from, to)| {
                let count = (to - from) as usize / 16;
                Dispatch {
                    params: Params {
                        count: int(count),
                        factor: self.factor,
                    }
                    .into(),
                    bindings: buffers.iter().map(|b| b.clone().range(from, to)).collect(),
                    workgroups: linear_groups(count, 64),
                    flops: count as u64 * 4,
                    ..Dispatch::new(shader!("scale"; Params), entry)
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
        graph: &mut Graph,
        _: &NodeView,
        upstream: &[Option<Value>],
        _: &[bool],
    ) -> Result<Vec<Gradient>, GraphError> {
        let upstream = upstream[0].expect("the one output has a gradient");
        Ok(vec![Gradient::Flows(graph.push1(*self, &[upstream])?)])
    }

    fn reference(&self, inputs: &[&Tensor], _: &StepScalars) -> Vec<Tensor> {
        let x = inputs[0];
        vec![Tensor::from_fn(&x.shape, |i| self.factor * x.data[i])]
    }
}

//! Concatenation of maps along the batch, as a copy: where what was sampled in several scans meets in one batch.

use super::concat::pieces;
use super::*;

/// Adds the concatenation of maps `[Nᵢ, C, D, H, W]` to the graph: a map `[ΣNᵢ, C, D, H, W]`, at most as large as an
/// adapter can bind. A single map stays as it is.
pub fn join(graph: &mut Graph, maps: &[Value]) -> Result<Value, GraphError> {
    match maps {
        [map] => Ok(*map),
        _ => graph.push1(Join, maps),
    }
}

/// Concatenation along the batch.
#[derive(Debug)]
struct Join;

/// `count` cases of a map from `first` on: the gradient of one source of a [`Join`].
#[derive(Debug)]
struct Cases {
    first: usize,
    count: usize,
}

/// Vec4s of so many cases of a map.
fn vectors(map: &Spec, cases: usize) -> usize {
    map.device_len() / 4 / map.shape[0] * cases
}

params! {
    /// The uniform of `copy.wgsl`.
    pub(crate) struct Copy {
        /// Vec4s to copy.
        count: u32,
        /// The first of them in the source.
        from_vector: u32,
        /// And in the target.
        to_vector: u32,
    }
}
pub(crate) const COPY: Shader = shader!("copy"; Copy);

fn copy(source: usize, from: usize, to: usize, count: usize) -> Dispatch {
    Dispatch {
        params: Copy {
            count: int(count),
            from_vector: int(from),
            to_vector: int(to),
        }
        .into(),
        bindings: vec![read(BufferRef::Input(source)), write(BufferRef::Output(0))],
        workgroups: linear_groups(count, 64),
        ..Dispatch::new(COPY, "main")
    }
}

impl Op for Join {
    fn name(&self) -> &'static str {
        "join"
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>, GraphError> {
        let fits = |spec: &Spec| {
            spec.layout == Layout::Map && spec.count() > 0 && spec.shape[1..] == inputs[0].shape[1..]
        };
        if inputs.is_empty() || !inputs.iter().all(fits) {
            let reason = "takes one or more maps [N, C, D, H, W] that differ in N at most";
            return Err(GraphError::shape(self.name(), inputs, reason));
        }
        let mut shape = inputs[0].ncdhw().expect("maps have five axes");
        shape[0] = inputs.iter().map(|spec| spec.shape[0]).sum();
        Ok(vec![Spec::map(shape)])
    }

    fn dispatches(&self, io: &mut Io, _: &Caps) -> Result<Vec<Dispatch>, GraphError> {
        let mut to = 0;
        let copies = io.inputs.iter().enumerate().map(|(source, map)| {
            let count = vectors(map, map.shape[0]);
            to += count;
            copy(source, 0, to - count, count)
        });
        Ok(copies.collect())
    }

    fn gradient(
        &self,
        graph: &mut Graph,
        node: &NodeView,
        upstream: &[Option<Value>],
        wanted: &[bool],
    ) -> Result<Vec<Gradient>, GraphError> {
        pieces(graph, node, upstream, wanted, 0, |first, count| Cases {
            first,
            count,
        })
    }

    fn reference(&self, inputs: &[&Tensor], _: &StepScalars) -> Vec<Tensor> {
        let mut shape = inputs[0].shape.clone();
        shape[0] = inputs.iter().map(|t| t.shape[0]).sum();
        let data = inputs.iter().flat_map(|t| t.data.iter().copied()).collect();
        vec![Tensor::new(&shape, data)]
    }
}

impl Op for Cases {
    fn name(&self) -> &'static str {
        "cases"
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>, GraphError> {
        match inputs {
            [x] if x.layout == Layout::Map && self.first + self.count <= x.shape[0] => {
                let mut shape = x.ncdhw().expect("maps have five axes");
                shape[0] = self.count;
                Ok(vec![Spec::map(shape)])
            }
            _ => Err(GraphError::shape(
                self.name(),
                inputs,
                "takes one map with enough cases",
            )),
        }
    }

    fn dispatches(&self, io: &mut Io, _: &Caps) -> Result<Vec<Dispatch>, GraphError> {
        let map = &io.inputs[0];
        Ok(vec![copy(
            0,
            vectors(map, self.first),
            0,
            vectors(map, self.count),
        )])
    }

    fn reference(&self, inputs: &[&Tensor], _: &StepScalars) -> Vec<Tensor> {
        let x = inputs[0];
        let case = x.data.len() / x.shape[0];
        let mut shape = x.shape.clone();
        shape[0] = self.count;
        let data = x.data[self.first * case..][..self.count * case].to_vec();
        vec![Tensor::new(&shape, data)]
    }
}

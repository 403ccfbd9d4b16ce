//! Images of label maps: a normal random number of each label's own mean and spread at every voxel.

use super::random::{normal, stream_of};
use super::*;

params! {
    /// The uniform of `paint.wgsl`.
    struct Params {
        /// N · D · H · W.
        count: u32,
        /// D · H · W.
        volume: u32,
        labels: u32,
        id: u32,
    }
}

#[derive(Clone, Copy, Debug)]
struct Paint {
    /// Tells the nodes of a graph apart.
    id: u32,
}

/// `y = μ[l] + σ[l] · n(p)` for the label l at each voxel. Inputs: labels, flat `[N, 1, D, H, W]` (−1 and what is beyond the
/// table count as the first); a table of μ and σ, flat `[N, L, 2]`. Without σ it replaces labels by others. n(p) are normal
/// random numbers by seed, step, node and voxel. No gradient.
///
/// # Errors
/// Shapes that don't fit.
pub fn paint(graph: &mut Graph, labels: Value, table: Value) -> Result<Value, GraphError> {
    let id = graph.nodes().len() as u32;
    graph.push1(Paint { id }, &[labels, table])
}

impl Op for Paint {
    fn name(&self) -> &'static str {
        "paint"
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>, GraphError> {
        match inputs {
            [labels, table]
                if labels.layout == Layout::Flat
                    && labels.shape.len() == 5
                    && labels.shape[1] == 1
                    && table.shape.len() == 3
                    && table.shape[0] == labels.shape[0]
                    && table.shape[1] > 0
                    && table.shape[2] == 2 =>
            {
                Ok(vec![labels.clone()])
            }
            _ => Err(GraphError::shape(
                "paint",
                inputs,
                "takes labels [N, 1, D, H, W] and a table [N, L, 2]",
            )),
        }
    }

    fn dispatches(&self, io: &mut Io, _: &Caps) -> Result<Vec<Dispatch>, GraphError> {
        use BufferRef::*;
        let shape = &io.inputs[0].shape;
        let count: usize = shape.iter().product();
        Ok(vec![Dispatch {
            params: Params {
                count: int(count),
                volume: int(count / shape[0]),
                labels: int(io.inputs[1].shape[1]),
                id: self.id,
            }
            .into(),
            bindings: vec![step(), read(Input(0)), read(Input(1)), write(Output(0))],
            workgroups: linear_groups(count, 64),
            flops: (count * 40) as u64,
            ..Dispatch::new(
                shader!("paint", "common/random", "common/normal"; Params, StepScalars),
                "main",
            )
        }])
    }

    fn reference(&self, inputs: &[&Tensor], step: &StepScalars) -> Vec<Tensor> {
        let (labels, table) = (inputs[0], inputs[1]);
        let volume: usize = labels.shape[1..].iter().product();
        let count = table.shape[1];
        let key = stream_of(self.id, step);
        vec![Tensor::from_fn(&labels.shape, |i| {
            let label = labels.data[i].max(0.0) as usize;
            let label = if label < count { label } else { 0 };
            let entry = &table.data[2 * (i / volume * count + label)..][..2];
            (entry[0] as f64 + entry[1] as f64 * normal(i as u32, key)) as f32
        })]
    }
}

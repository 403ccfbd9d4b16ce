//! Affine augmentation of an OBELISK layer without resampling the image: its offsets times the matrix.

use super::*;

params! {
    /// The uniform of `turn_offsets.wgsl`.
    struct Params {
        count: u32,
    }
}

/// o' = A·o: `offsets` flat `[1, K, 1, P, 3]` in (x, y, z), `theta` flat `[1, 3, 4]` whose first three columns are A.
/// Gradients flow to the offsets, Aᵀ·dL/do', and none to theta.
pub fn turn_offsets(graph: &mut Graph, offsets: Value, theta: Value) -> Result<Value, GraphError> {
    graph.push1(TurnOffsets { transposed: false }, &[offsets, theta])
}

/// The product with A, or with its transpose: the gradient.
#[derive(Debug)]
struct TurnOffsets {
    transposed: bool,
}

impl Op for TurnOffsets {
    fn name(&self) -> &'static str {
        "turn_offsets"
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>, GraphError> {
        match inputs {
            [offsets, theta]
                if offsets.shape.len() == 5
                    && offsets.shape[4] == 3
                    && offsets.layout == Layout::Flat
                    && *theta == Spec::flat(&[1, 3, 4]) =>
            {
                Ok(vec![offsets.clone()])
            }
            _ => Err(GraphError::shape(
                self.name(),
                inputs,
                "takes offsets [1, K, 1, P, 3] and theta [1, 3, 4], both flat",
            )),
        }
    }

    fn dispatches(&self, io: &mut Io, _: &Caps) -> Result<Vec<Dispatch>, GraphError> {
        use BufferRef::*;
        let count = io.inputs[0].count() / 3;
        Ok(vec![Dispatch {
            constants: vec![("TRANSPOSED", self.transposed as u32)],
            params: Params { count: int(count) }.into(),
            bindings: vec![read(Input(0)), read(Input(1)), write(Output(0))],
            workgroups: linear_groups(count, 64),
            iterations: 3,
            flops: count as u64 * 18,
            ..Dispatch::new(shader!("turn_offsets"; Params), "main")
        }])
    }

    fn gradient(
        &self,
        graph: &mut Graph,
        node: &NodeView,
        upstream: &[Option<Value>],
        wanted: &[bool],
    ) -> Result<Vec<Gradient>, GraphError> {
        let mut flows = vec![Gradient::Stops; 2];
        if wanted[0] {
            let upstream = upstream[0].expect("the one output has a gradient");
            let back = TurnOffsets {
                transposed: !self.transposed,
            };
            flows[0] = Gradient::Flows(graph.push1(back, &[upstream, node.inputs[1]])?);
        }
        Ok(flows)
    }

    fn reference(&self, inputs: &[&Tensor], _: &StepScalars) -> Vec<Tensor> {
        let (offsets, theta) = (inputs[0], &inputs[1].data);
        let entry = |row: usize, column: usize| match self.transposed {
            false => theta[4 * row + column] as f64,
            true => theta[4 * column + row] as f64,
        };
        let turned = Tensor::from_fn(&offsets.shape, |i| {
            let o = &offsets.data[i / 3 * 3..][..3];
            (0..3).map(|j| entry(i % 3, j) * o[j] as f64).sum::<f64>() as f32
        });
        vec![turned]
    }
}

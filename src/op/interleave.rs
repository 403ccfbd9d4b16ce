//! The columns of an OBELISK layer's weight in another order, for the gradient of its image.

use super::*;

params! {
    /// The uniform of `interleave.wgsl`.
    struct Params {
        count: u32,
        channels: u32,
        offsets: u32,
    }
}

/// A weight flat `[O, C·K, 1, 1, 1]` with column c·K + k at k·C + c. It stands in gradients: none flows through it.
#[derive(Clone, Copy, Debug)]
pub struct Interleave {
    /// C.
    pub channels: usize,
}

impl Op for Interleave {
    fn name(&self) -> &'static str {
        "interleave"
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>, GraphError> {
        match inputs {
            [weight]
                if weight.layout == Layout::Flat
                    && matches!(weight.shape[..], [_, columns, 1, 1, 1] if columns.is_multiple_of(self.channels)) =>
            {
                Ok(vec![weight.clone()])
            }
            _ => {
                let reason = format!("takes a flat weight [O, {} K, 1, 1, 1]", self.channels);
                Err(GraphError::shape(self.name(), inputs, reason))
            }
        }
    }

    fn dispatches(&self, io: &mut Io, _: &Caps) -> Result<Vec<Dispatch>, GraphError> {
        let weight = &io.inputs[0];
        Ok(vec![Dispatch {
            params: Params {
                count: int(weight.count()),
                channels: int(self.channels),
                offsets: int(weight.shape[1] / self.channels),
            }
            .into(),
            bindings: vec![read(BufferRef::Input(0)), write(BufferRef::Output(0))],
            workgroups: linear_groups(weight.count(), 64),
            ..Dispatch::new(shader!("interleave"; Params), "main")
        }])
    }

    fn reference(&self, inputs: &[&Tensor], _: &StepScalars) -> Vec<Tensor> {
        let weight = inputs[0];
        let columns = weight.shape[1];
        let offsets = columns / self.channels;
        vec![Tensor::from_fn(&weight.shape, |i| {
            let (row, column) = (i / columns, i % columns);
            weight.data[row * columns + column % self.channels * offsets + column / self.channels]
        })]
    }
}

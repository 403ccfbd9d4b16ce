//! The label of the highest logit.

use super::*;

params! {
    /// The uniform of `arg_max.wgsl`.
    struct Params {
        plane: u32,
        voxels: u32,
    }
}

/// Input: logits, map `[N, L, D, H, W]`. Output: labels, flat `[N, 1, D, H, W]`, the index of the highest logit and the
/// first of equal ones, or [`ArgMax::NONE`]. No gradient flows through it.
#[derive(Clone, Copy, Debug)]
pub struct ArgMax;

impl ArgMax {
    /// In place of a label where a logit is not finite.
    pub const NONE: f32 = -1.0;
}

impl Op for ArgMax {
    fn name(&self) -> &'static str {
        "arg_max"
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>, GraphError> {
        match inputs {
            [logits] if logits.layout == Layout::Map => {
                let [n, _, d, h, w] = logits.ncdhw().expect("a map");
                Ok(vec![Spec::flat(&[n, 1, d, h, w])])
            }
            _ => Err(GraphError::shape(
                self.name(),
                inputs,
                "takes logits, a map [N, L, D, H, W]",
            )),
        }
    }

    fn dispatches(&self, io: &mut Io, caps: &Caps) -> Result<Vec<Dispatch>, GraphError> {
        use BufferRef::*;
        let (logits, labels) = (&io.inputs[0], &io.outputs[0]);
        let plane = logits.shape[3] * logits.shape[4];
        Ok(io
            .slices(&[logits, labels], caps)
            .iter()
            .map(|run| {
                let voxels = run.count * plane;
                Dispatch {
                    constants: vec![("CLASSES", logits.shape[1] as u32)],
                    params: Params {
                        plane: int(plane),
                        voxels: int(voxels),
                    }
                    .into(),
                    bindings: vec![run.of(logits, read(Input(0))), run.of(labels, write(Output(0)))],
                    workgroups: linear_groups(voxels, 64),
                    iterations: 5 * logits.blocks() as u64,
                    flops: (voxels * logits.shape[1]) as u64,
                    ..Dispatch::new(shader!("arg_max"; Params), "main")
                }
            })
            .collect())
    }

    fn gradient(
        &self,
        _: &mut Graph,
        _: &NodeView,
        _: &[Option<Value>],
        _: &[bool],
    ) -> Result<Vec<Gradient>, GraphError> {
        Ok(vec![Gradient::Stops])
    }

    fn reads(&self, inputs: &[Spec], outputs: &[Spec], planes: Range<usize>) -> Option<Reads> {
        same_planes(inputs, outputs, planes)
    }

    fn reference(&self, inputs: &[&Tensor], _: &StepScalars) -> Vec<Tensor> {
        let [n, classes, d, h, w] = inputs[0].ncdhw();
        let volume = d * h * w;
        vec![Tensor::from_fn(&[n, 1, d, h, w], |voxel| {
            let z = |l: usize| inputs[0].data[(voxel / volume * classes + l) * volume + voxel % volume];
            if !(0..classes).all(|l| z(l).is_finite()) {
                return ArgMax::NONE;
            }
            let best = (1..classes).fold(0, |best, l| if z(l) > z(best) { l } else { best });
            best as f32
        })]
    }
}

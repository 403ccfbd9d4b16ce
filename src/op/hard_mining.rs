//! Online hard example mining: which voxels a loss counts.

use super::logits::{check_logits, classes, for_each_voxel, loops, voxel_cross_entropy};
use super::*;

params! {
    /// The uniform of `hard_mining.wgsl`.
    struct Params {
        /// H · W.
        plane: u32,
        /// Of this dispatch.
        voxels: u32,
        /// The digit is bits shift … above - 1.
        shift: u32,
        above: u32,
        first_chunk: u32,
        /// Over all dispatches.
        chunks: u32,
        /// Of the share to keep.
        numerator: u32,
        denominator: u32,
    }
}

/// `keep` is a share of so many parts: integers, so that device and reference take the floor of the same product.
const PARTS: u32 = 10_000;
/// Losses that a workgroup of the histogram counts.
const PER_INVOCATION: usize = 128;
/// Consecutive voxels that an invocation ranks.
const CHUNK: usize = 256;
const BINS: usize = 2048;

/// Of the n voxels with a label, keeps the labels of the floor(keep·n) with the highest cross-entropy (unweighted, over the
/// whole batch), equal ones by lowest index in `[N, D, H, W]`; all other labels become −1, ignored. No gradient flows
/// through the choice. Inputs: logits, map `[N, L, D, H, W]`; labels, flat `[N, 1, D, H, W]`. Output: labels.
#[derive(Debug)]
pub struct HardestVoxels {
    parts: u32,
}

impl HardestVoxels {
    /// Keeps this share of the voxels, 0 … 1, taken to four decimals.
    pub fn new(keep: f32) -> Result<Self, GraphError> {
        if !(0.0..=1.0).contains(&keep) {
            let message = format!("hard_mining keeps a share of the voxels between 0 and 1, not {keep}");
            return Err(GraphError::Name(message));
        }
        Ok(HardestVoxels {
            parts: (keep as f64 * PARTS as f64).round() as u32,
        })
    }
}

impl Op for HardestVoxels {
    fn name(&self) -> &'static str {
        "hard_mining"
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>, GraphError> {
        check_logits(self.name(), inputs)?;
        Ok(vec![inputs[1].clone()])
    }

    fn dispatches(&self, io: &mut Io, caps: &Caps) -> Result<Vec<Dispatch>, GraphError> {
        use BufferRef::*;
        let (logits, labels) = (&io.inputs[0], &io.inputs[1]);
        let plane = logits.shape[3] * logits.shape[4];
        let runs = slices(&[logits, labels], caps);
        let voxels = |run: &Slices| run.count * plane;
        let chunks = |run: &Slices| voxels(run).div_ceil(CHUNK);
        let all_chunks: usize = runs.iter().map(chunks).sum();
        let histogram = io.scratch(BINS as u64 * 4);
        let selection = io.scratch(16);
        let ties = io.scratch(all_chunks as u64 * 4);

        let launch = |entry, voxels: usize, digit: (u32, u32), first_chunk: usize| Dispatch {
            constants: [
                classes(logits),
                vec![
                    ("BINS", BINS as u32),
                    ("PER_INVOCATION", PER_INVOCATION as u32),
                    ("CHUNK", CHUNK as u32),
                ],
            ]
            .concat(),
            params: Params {
                plane: int(plane),
                voxels: int(voxels),
                shift: digit.0,
                above: digit.1,
                first_chunk: int(first_chunk),
                chunks: int(all_chunks),
                numerator: self.parts,
                denominator: PARTS,
            }
            .into(),
            ..Dispatch::new(shader!("hard_mining", "common/classes"; Params), entry)
        };
        let mut dispatches = vec![Dispatch {
            bindings: vec![write(histogram), write(selection)],
            iterations: BINS as u64 / 64,
            ..launch("clear", 0, (0, 0), 0)
        }];
        // The losses stand where the chosen labels will.
        for run in &runs {
            dispatches.push(Dispatch {
                bindings: vec![
                    run.of(logits, read(Input(0))),
                    run.of(labels, read(Input(1))),
                    run.of(labels, write(Output(0))),
                ],
                workgroups: linear_groups(voxels(run), 64),
                iterations: loops(logits) as u64,
                flops: (voxels(run) * logits.blocks() * 4 * 8) as u64,
                ..launch("losses", voxels(run), (0, 0), 0)
            });
        }
        for digit in [(20, 31), (10, 20), (0, 10)] {
            for run in &runs {
                dispatches.push(Dispatch {
                    bindings: vec![write(histogram), read(selection), run.of(labels, read(Output(0)))],
                    workgroups: linear_groups(voxels(run), 64 * PER_INVOCATION),
                    iterations: (PER_INVOCATION + 2 * BINS / 64) as u64,
                    ..launch("histogram", voxels(run), digit, 0)
                });
            }
            dispatches.push(Dispatch {
                bindings: vec![write(histogram), write(selection)],
                iterations: (128 + 3 * BINS / 64) as u64,
                ..launch("choose", 0, digit, 0)
            });
        }
        let mut first = 0;
        let mut marks = Vec::new();
        for run in &runs {
            let workgroups = linear_groups(chunks(run), 64);
            let bindings = vec![write(ties), read(selection), run.of(labels, read(Output(0)))];
            dispatches.push(Dispatch {
                bindings,
                workgroups,
                iterations: CHUNK as u64,
                ..launch("count_ties", voxels(run), (0, 0), first)
            });
            let bindings = vec![
                read(ties),
                read(selection),
                run.of(labels, write(Output(0))),
                run.of(labels, read(Input(1))),
            ];
            marks.push(Dispatch {
                bindings,
                workgroups,
                iterations: CHUNK as u64,
                ..launch("mark", voxels(run), (0, 0), first)
            });
            first += chunks(run);
        }
        dispatches.push(Dispatch {
            bindings: vec![write(ties)],
            iterations: 2 * all_chunks.div_ceil(64) as u64 + 64,
            ..launch("prefix", 0, (0, 0), 0)
        });
        dispatches.extend(marks);
        Ok(dispatches)
    }

    fn gradient(
        &self,
        _: &mut Graph,
        _: &NodeView,
        _: &[Option<Value>],
        _: &[bool],
    ) -> Result<Vec<Gradient>, GraphError> {
        Ok(vec![Gradient::Stops; 2])
    }

    fn reference(&self, inputs: &[&Tensor], _: &StepScalars) -> Vec<Tensor> {
        let volume: usize = inputs[0].shape[2..].iter().product();
        let classes = inputs[0].shape[1];
        let mut losses: Vec<(f64, usize)> = Vec::new();
        for_each_voxel(inputs[0], inputs[1], |at, _, label| {
            if label >= classes {
                return;
            }
            let voxel = at(0) / (classes * volume) * volume + at(0) % volume;
            losses.push((voxel_cross_entropy(inputs[0], at, label), voxel));
        });
        let kept = losses.len() as u64 * self.parts as u64 / PARTS as u64;
        losses.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        let mut out = Tensor::full(&inputs[1].shape, -1.0);
        for (_, voxel) in losses.into_iter().take(kept as usize) {
            out.data[voxel] = inputs[1].data[voxel];
        }
        vec![out]
    }
}

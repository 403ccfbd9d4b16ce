//! Dice losses on logits: soft Dice, with plain or squared denominators, and Gibson's hinge Dice.

use super::logits::{check_logits, for_each_voxel};
use super::*;

params! {
    /// The uniform of `dice.wgsl`.
    struct Planes {
        plane: u32,
        planes: u32,
        classes: u32,
        first_voxel: u32,
    }
}

params! {
    /// The uniform of `dice_score.wgsl`.
    struct ScoreParams {
        classes: u32,
        partials: u32,
    }
}

/// ε in the denominator; keeps the score of a label without any voxel defined.
const EPSILON: f64 = 1e-5;

/// Invocations of the first stage, which leave a partial sum each: enough to fill a device, few enough to add up, and
/// more where an invocation would loop too long.
fn partials(voxels: usize, blocks: usize, caps: &Caps) -> usize {
    let loops = 1 + 4 * blocks;
    let least = (voxels * loops).div_ceil(60_000);
    let enough = if caps.target.is_cpu() { 2048 } else { 1 << 16 };
    voxels.min(least.max(enough)).next_multiple_of(64)
}

/// Voxels of an invocation of the gradient.
const VECTORS: usize = 8;

params! {
    /// The uniform of the sums of `dice.wgsl`.
    struct Sums {
        walk: Walk,
        classes: u32,
        first_voxel: u32,
        first_partial: u32,
    }
}

const MODULE: Shader = shader!("dice", "common/walk"; Sums, Planes);

/// What follows from the sums over all voxels that are not ignored, batch and space together: with
/// S_l = 2Σpt / (Σp + Σt + ε) of label l (Σp² with `squared`, Milletari 2016), the loss 1 − mean S over labels 1…; with
/// `hinge` also 10 mean (10 min(S, 0.1) − 1)² + 10 mean (100 min(S, 0.01) − 1)² (Gibson et al. 2018), which pushes
/// labels that are hardly found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Score {
    squared: bool,
    hinge: bool,
}

/// Adds soft Dice of logits (map `[N, L, D, H, W]`) and labels (flat `[N, 1, D, H, W]`: class index, negative where ignored)
/// to the graph; the loss is flat `[1]`. Method section 3.
pub fn soft_dice(
    graph: &mut Graph,
    logits: Value,
    labels: Value,
    squared: bool,
) -> Result<Value, GraphError> {
    Ok(graph.push(
        DiceLoss(Score {
            squared,
            hinge: false,
        }),
        &[logits, labels],
    )?[0])
}

/// Gibson's hinge Dice with squared denominators, as published with dense V-networks; see [`soft_dice()`].
pub fn hinge_dice(
    graph: &mut Graph,
    logits: Value,
    labels: Value,
    squared: bool,
) -> Result<Value, GraphError> {
    Ok(graph.push(DiceLoss(Score { squared, hinge: true }), &[logits, labels])?[0])
}

/// Inputs: logits, labels. Outputs: the loss `[1]`, and its derivatives by Σpt and Σp, `[2, ⌈L/4⌉·4]`.
#[derive(Debug)]
struct DiceLoss(Score);

/// Inputs: logits, labels, the derivatives that [`DiceLoss`] left, the loss's upstream gradient. Output: d logits.
#[derive(Debug)]
struct DiceLossGradient(Score);

impl Op for DiceLoss {
    fn name(&self) -> &'static str {
        "soft_dice"
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>, GraphError> {
        let classes = check_logits(self.name(), inputs)?;
        Ok(vec![
            Spec::flat(&[1]),
            Spec::flat(&[2, classes.next_multiple_of(4)]),
        ])
    }

    fn dispatches(&self, io: &mut Io, caps: &Caps) -> Result<Vec<Dispatch>, GraphError> {
        use BufferRef::*;
        let logits = io.inputs[0].clone();
        let [_, classes, _, h, w] = logits.ncdhw().expect("checked on insertion");
        let blocks = logits.blocks();
        let constants = vec![("BLOCKS", blocks as u32), ("SQUARED", self.0.squared as u32)];
        let runs = slices(&[&logits], caps);
        let threads = |run: &Slices| partials(run.count * h * w, blocks, caps);
        let count: usize = runs.iter().map(threads).sum();
        let partial = io.scratch((count * 3 * blocks * 16) as u64);
        let total = io.scratch((3 * blocks * 16) as u64);
        let mut first = 0;
        let mut dispatches: Vec<Dispatch> = runs
            .iter()
            .map(|run| {
                let voxels = run.count * h * w;
                let threads = threads(run);
                first += threads;
                Dispatch {
                    constants: constants.clone(),
                    params: Sums {
                        walk: walk(run.count, h * w, blocks, threads),
                        classes: int(classes),
                        first_voxel: int(run.first * h * w),
                        first_partial: int(first - threads),
                    }
                    .into(),
                    bindings: vec![
                        run.of(&logits, read(Input(0))),
                        read(Input(1)),
                        read(Input(1)), // no weights yet; this entry point does not read them
                        write(partial),
                    ],
                    workgroups: [threads as u32 / 64, 1, 1],
                    // A voxel: its own turn, three loops over blocks for the softmax, one for the sums.
                    iterations: (voxels.div_ceil(threads) * (1 + 4 * blocks)) as u64,
                    flops: (voxels * blocks * 4 * 12) as u64,
                    ..Dispatch::new(MODULE, "sums")
                }
            })
            .collect();
        let score = |entry| Dispatch {
            constants: vec![("BLOCKS", blocks as u32), ("HINGE", self.0.hinge as u32)],
            params: ScoreParams {
                classes: int(classes),
                partials: int(count),
            }
            .into(),
            ..Dispatch::new(shader!("dice_score"; ScoreParams), entry)
        };
        dispatches.push(Dispatch {
            bindings: vec![read(partial), read(Input(1)), write(total), write(Output(0))],
            workgroups: if caps.target.is_cpu() {
                linear_groups(12 * blocks, 64)
            } else {
                [12 * blocks as u32, 1, 1]
            },
            iterations: if caps.target.is_cpu() {
                count as u64
            } else {
                count.div_ceil(256) as u64 + 8
            },
            ..score(if caps.target.is_cpu() {
                "total"
            } else {
                "shared_total"
            })
        });
        dispatches.push(Dispatch {
            bindings: vec![read(total), read(Input(1)), write(Output(1)), write(Output(0))],
            iterations: 4 * blocks as u64,
            ..score("score")
        });
        Ok(dispatches)
    }

    fn gradient(
        &self,
        graph: &mut Graph,
        node: &NodeView,
        upstream: &[Option<Value>],
        _: &[bool],
    ) -> Result<Vec<Gradient>, GraphError> {
        let Some(upstream) = upstream[0] else {
            return Ok(vec![Gradient::Stops; 2]);
        };
        let inputs = [node.inputs[0], node.inputs[1], node.outputs[1], upstream];
        let logits = graph.push1(DiceLossGradient(self.0), &inputs)?;
        Ok(vec![Gradient::Flows(logits), Gradient::Stops])
    }

    fn reference(&self, inputs: &[&Tensor], _: &StepScalars) -> Vec<Tensor> {
        let classes = inputs[0].shape[1];
        let padded = classes.next_multiple_of(4);
        let mut sums = vec![[0.0; 3]; classes];
        for_each_voxel(inputs[0], inputs[1], |_, p, label| {
            for (l, s) in sums.iter_mut().enumerate() {
                let t = (l == label) as u8 as f64;
                *s = [
                    s[0] + p[l] * t,
                    s[1] + if self.0.squared { p[l] * p[l] } else { p[l] },
                    s[2] + t,
                ];
            }
        });
        let mut loss = 1.0;
        let mut derivatives = Tensor::zeros(&[2, padded]);
        let labels = (classes - 1) as f64;
        for (l, [both, predicted, truth]) in sums.into_iter().enumerate().skip(1) {
            let below = predicted + truth + EPSILON;
            let s = 2.0 * both / below;
            loss -= s / labels;
            let mut slope = -1.0 / labels;
            if self.0.hinge {
                let (low, very_low) = (10.0 * s.min(0.1) - 1.0, 100.0 * s.min(0.01) - 1.0);
                loss += 10.0 * (low * low + very_low * very_low) / labels;
                slope += 10.0 * (20.0 * low + 200.0 * very_low) / labels;
            }
            derivatives.data[l] = (slope * 2.0 / below) as f32;
            derivatives.data[padded + l] = (-slope * s / below) as f32;
        }
        vec![Tensor::new(&[1], vec![loss as f32]), derivatives]
    }
}

impl Op for DiceLossGradient {
    fn name(&self) -> &'static str {
        "soft_dice_gradient"
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>, GraphError> {
        check_logits(self.name(), inputs)?;
        Ok(vec![inputs[0].clone()])
    }

    fn dispatches(&self, io: &mut Io, caps: &Caps) -> Result<Vec<Dispatch>, GraphError> {
        use BufferRef::*;
        let logits = io.inputs[0].clone();
        let [_, classes, _, h, w] = logits.ncdhw().expect("checked on insertion");
        let blocks = logits.blocks();
        let weights = io.scratch((2 * blocks * 16) as u64);
        let unused = io.scratch(16);
        let mut dispatches = vec![Dispatch {
            constants: vec![("BLOCKS", blocks as u32)],
            params: ScoreParams {
                classes: int(classes),
                partials: 0,
            }
            .into(),
            bindings: vec![read(Input(2)), read(Input(3)), write(weights), write(unused)],
            workgroups: linear_groups(8 * blocks, 64),
            ..Dispatch::new(shader!("dice_score"; ScoreParams), "scale")
        }];
        dispatches.extend(io.slices(&[&logits], caps).iter().map(|run| {
            let voxels = run.count * h * w;
            Dispatch {
                constants: vec![
                    ("BLOCKS", blocks as u32),
                    ("SQUARED", self.0.squared as u32),
                    ("VECTORS", VECTORS as u32),
                ],
                params: Planes {
                    plane: int(h * w),
                    planes: int(run.count),
                    classes: int(classes),
                    first_voxel: int(run.first * h * w),
                }
                .into(),
                bindings: vec![
                    run.of(&logits, read(Input(0))),
                    read(Input(1)),
                    read(weights),
                    run.of(&logits, write(Output(0))),
                ],
                workgroups: plane_groups(h * w, VECTORS, run.count),
                iterations: (2 * blocks + VECTORS * (1 + 5 * blocks)) as u64,
                flops: (voxels * blocks * 4 * 16) as u64,
                ..Dispatch::new(MODULE, "gradient")
            }
        }));
        Ok(dispatches)
    }

    fn reads(&self, inputs: &[Spec], outputs: &[Spec], planes: Range<usize>) -> Option<Reads> {
        // The labels are bound whole: the kernel counts voxels from the first.
        let mut reads = same_planes(inputs, outputs, planes)?;
        reads[1] = None;
        Some(reads)
    }

    fn reference(&self, inputs: &[&Tensor], _: &StepScalars) -> Vec<Tensor> {
        let [logits, labels, derivatives, upstream] = inputs else {
            unreachable!("four inputs")
        };
        let classes = logits.shape[1];
        let padded = classes.next_multiple_of(4);
        let mut out = Tensor::zeros(&logits.shape);
        for_each_voxel(logits, labels, |at, p, label| {
            let q: Vec<f64> = (0..classes)
                .map(|l| {
                    let slope =
                        derivatives.data[padded + l] as f64 * if self.0.squared { 2.0 * p[l] } else { 1.0 };
                    upstream.data[0] as f64 * (derivatives.data[l] as f64 * (l == label) as u8 as f64 + slope)
                })
                .collect();
            let mean: f64 = p.iter().zip(&q).map(|(p, q)| p * q).sum();
            for l in 0..classes {
                out.data[at(l)] = (p[l] * (q[l] - mean)) as f32;
            }
        });
        vec![out]
    }
}

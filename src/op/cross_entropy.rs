//! Softmax cross-entropy with class weights, over all voxels or the hardest ones, and the weights themselves.

use super::fill::Fill;
use super::hard_mining::HardestVoxels;
use super::logits::{check_logits, classes, for_each_voxel, loops, voxel_cross_entropy};
use super::*;

params! {
    /// The uniform of `cross_entropy.wgsl`.
    struct Planes {
        plane: u32,
        planes: u32,
    }
}

params! {
    /// The uniform of the sums of `cross_entropy.wgsl`.
    struct Sums {
        walk: Walk,
        first: u32,
    }
}

params! {
    /// The uniform of `cross_entropy.wgsl`.
    struct Merge {
        partials: u32,
    }
}

/// Adds Σ w·ce / Σ w over the voxels that count to the graph, flat `[1]`: ce is the cross-entropy of the softmax of
/// `logits` (map `[N, L, D, H, W]`) and `labels` (flat `[N, 1, D, H, W]`: class index; −1 and whatever is no class are
/// ignored), w the weight of the voxel's label in `class_weights` (flat `[L]`; `None` weighs all classes alike). 0 with a
/// zero gradient where the weights sum to 0.
pub fn cross_entropy(
    graph: &mut Graph,
    logits: Value,
    labels: Value,
    class_weights: Option<Value>,
) -> Result<Value, GraphError> {
    let weights = match class_weights {
        Some(weights) => weights,
        None => {
            let classes = graph.shape(logits).get(1).copied().unwrap_or(0);
            graph.push1(Fill::new(&[classes], 1.0), &[])?
        }
    };
    Ok(graph.push(CrossEntropy, &[logits, labels, weights])?[0])
}

/// [`cross_entropy()`] over the floor(`keep` · n) voxels with the highest unweighted cross-entropy, of the n that count in
/// the whole batch, ties by lowest index (online hard example mining, method section 3). `keep` is taken to four
/// decimals.
pub fn hard_mining(
    graph: &mut Graph,
    logits: Value,
    labels: Value,
    class_weights: Option<Value>,
    keep: f32,
) -> Result<Value, GraphError> {
    let labels = graph.push1(HardestVoxels::new(keep)?, &[logits, labels])?;
    cross_entropy(graph, logits, labels, class_weights)
}

/// Weights for [`cross_entropy()`] from how often each label occurs: count^−½ divided by the mean of the labels that occur,
/// then 0.5 for label 0, the background (the published script's rule). A label that does not occur gets 0.
pub fn class_weights(counts: &[u64]) -> Vec<f32> {
    let rarity = |count: u64| {
        if count == 0 {
            0.0
        } else {
            (count as f64).powf(-0.5)
        }
    };
    let present = counts.iter().filter(|c| **c > 0).count().max(1) as f64;
    let mean = counts.iter().map(|c| rarity(*c)).sum::<f64>() / present;
    let mut weights: Vec<f32> = counts
        .iter()
        .map(|c| if *c == 0 { 0.0 } else { (rarity(*c) / mean) as f32 })
        .collect();
    if let Some(background) = weights.first_mut().filter(|w| **w > 0.0) {
        *background = 0.5;
    }
    weights
}

/// Inputs: logits, labels, class weights. Outputs: the loss `[1]` and Σ w `[1]`.
#[derive(Debug)]
struct CrossEntropy;

/// Inputs: logits, labels, class weights, Σ w, the loss's upstream gradient. Output: d logits.
#[derive(Debug)]
struct CrossEntropyGradient;

fn check(name: &'static str, inputs: &[Spec], count: usize) -> Result<(), GraphError> {
    let classes = check_logits(name, inputs)?;
    if inputs.len() == count
        && inputs[2] == Spec::flat(&[classes])
        && inputs[3..].iter().all(|s| *s == Spec::flat(&[1]))
    {
        return Ok(());
    }
    let reason = "takes logits [N, L, D, H, W], labels [N, 1, D, H, W] and class weights, flat [L]";
    Err(GraphError::shape(name, inputs, reason))
}

/// Voxels of an invocation of the gradient.
const VECTORS: usize = 8;

const MODULE: Shader = shader!(
    "cross_entropy",
    "common/classes",
    "common/sum64",
    "common/workgroup_reduction",
    "common/walk"; Sums, Merge, Planes);

impl Op for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross_entropy"
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>, GraphError> {
        check(self.name(), inputs, 3)?;
        Ok(vec![Spec::flat(&[1]); 2])
    }

    fn dispatches(&self, io: &mut Io, caps: &Caps) -> Result<Vec<Dispatch>, GraphError> {
        use BufferRef::*;
        let (logits, labels) = (&io.inputs[0], &io.inputs[1]);
        let plane = logits.shape[3] * logits.shape[4];
        let runs = slices(&[logits, labels], caps);
        let threads = |run: &Slices| {
            let voxels = run.count * plane;
            // More where many classes would make an invocation loop too long.
            let least = (voxels * (1 + loops(logits))).div_ceil(60_000);
            walk_threads(voxels, 4, caps).max(least).next_multiple_of(64)
        };
        let (each, by_workgroup) = workgroup_reduction(caps);
        let partials = runs.iter().map(threads).sum::<usize>() / each;
        let buffer = io.scratch(partials as u64 * 16);
        let mut first = 0;
        let mut dispatches = Vec::new();
        for run in &runs {
            let bindings = vec![
                run.of(logits, read(Input(0))),
                run.of(labels, read(Input(1))),
                read(Input(2)),
                write(buffer),
            ];
            let (voxels, threads) = (run.count * plane, threads(run));
            let walk = walk(run.count, plane, logits.blocks(), threads);
            dispatches.push(Dispatch {
                constants: [classes(logits), vec![by_workgroup]].concat(),
                params: Sums {
                    walk,
                    first: int(first),
                }
                .into(),
                bindings,
                workgroups: [threads as u32 / 64, 1, 1],
                iterations: (voxels.div_ceil(threads) * (1 + loops(logits))) as u64,
                flops: (voxels * logits.blocks() * 4 * 12) as u64,
                ..Dispatch::new(MODULE, "sums")
            });
            first += threads / each;
        }
        dispatches.push(Dispatch {
            constants: classes(logits),
            params: Merge {
                partials: int(partials),
            }
            .into(),
            bindings: vec![read(buffer), write(Output(0)), write(Output(1))],
            iterations: partials.div_ceil(64) as u64 + 6,
            ..Dispatch::new(MODULE, "merge")
        });
        Ok(dispatches)
    }

    fn gradient(
        &self,
        graph: &mut Graph,
        node: &NodeView,
        upstream: &[Option<Value>],
        wanted: &[bool],
    ) -> Result<Vec<Gradient>, GraphError> {
        let [Some(upstream), None] = upstream else {
            let reason = "cross_entropy offers no gradient through its sum of weights as an output";
            return Err(GraphError::Name(reason.into()));
        };
        // Labels are a choice, not a number: where they come from logits (hard mining), nothing flows through them.
        if wanted[2] {
            let reason = "cross_entropy offers no gradient to its class weights";
            return Err(GraphError::Name(reason.into()));
        }
        let [logits, labels, weights] = node.inputs[..] else {
            unreachable!("three inputs")
        };
        let inputs = [logits, labels, weights, node.outputs[1], *upstream];
        let dlogits = graph.push1(CrossEntropyGradient, &inputs)?;
        Ok(vec![Gradient::Flows(dlogits), Gradient::Stops, Gradient::Stops])
    }

    fn reference(&self, inputs: &[&Tensor], _: &StepScalars) -> Vec<Tensor> {
        let (mut loss, mut sum) = (0.0, 0.0);
        for_each_voxel(inputs[0], inputs[1], |at, _, label| {
            if label >= inputs[0].shape[1] {
                return;
            }
            let weight = inputs[2].data[label] as f64;
            loss += weight * voxel_cross_entropy(inputs[0], at, label);
            sum += weight;
        });
        let mean = if sum > 0.0 { loss / sum } else { 0.0 };
        vec![
            Tensor::new(&[1], vec![mean as f32]),
            Tensor::new(&[1], vec![sum as f32]),
        ]
    }
}

impl Op for CrossEntropyGradient {
    fn name(&self) -> &'static str {
        "cross_entropy_gradient"
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>, GraphError> {
        check(self.name(), inputs, 5)?;
        Ok(vec![inputs[0].clone()])
    }

    fn dispatches(&self, io: &mut Io, caps: &Caps) -> Result<Vec<Dispatch>, GraphError> {
        use BufferRef::*;
        let (logits, labels) = (&io.inputs[0], &io.inputs[1]);
        let plane = logits.shape[3] * logits.shape[4];
        Ok(io
            .slices(&[logits, labels], caps)
            .iter()
            .map(|run| {
                let bindings = vec![
                    run.of(logits, read(Input(0))),
                    run.of(labels, read(Input(1))),
                    read(Input(2)),
                    read(Input(3)),
                    read(Input(4)),
                    run.of(logits, write(Output(0))),
                ];
                let mut constants = classes(logits);
                constants.push(("VECTORS", VECTORS as u32));
                Dispatch {
                    constants,
                    params: Planes {
                        plane: int(plane),
                        planes: int(run.count),
                    }
                    .into(),
                    bindings,
                    workgroups: plane_groups(plane, VECTORS, run.count),
                    iterations: (VECTORS * (1 + loops(logits))) as u64,
                    flops: (run.count * plane * logits.blocks() * 4 * 12) as u64,
                    ..Dispatch::new(MODULE, "gradient")
                }
            })
            .collect())
    }

    fn reads(&self, inputs: &[Spec], outputs: &[Spec], planes: Range<usize>) -> Option<Reads> {
        same_planes(inputs, outputs, planes)
    }

    fn reference(&self, inputs: &[&Tensor], _: &StepScalars) -> Vec<Tensor> {
        let [logits, labels, weights, sum, upstream] = inputs else {
            unreachable!("five inputs")
        };
        let mut out = Tensor::zeros(&logits.shape);
        let (sum, upstream) = (sum.data[0] as f64, upstream.data[0] as f64);
        if sum > 0.0 {
            for_each_voxel(logits, labels, |at, p, label| {
                if label >= logits.shape[1] {
                    return;
                }
                let scale = upstream * weights.data[label] as f64 / sum;
                for (l, p) in p.iter().enumerate() {
                    let hot = if l == label { 1.0 } else { 0.0 };
                    out.data[at(l)] = (scale * (p - hot)) as f32;
                }
            });
        }
        vec![out]
    }
}

//! Batch normalisation (Ioffe & Szegedy 2015) of maps with an optional leaky ReLU behind it, in training and inference,
//! and its folding into a convolution.

use super::*;

params! {
    /// The uniform of `batch_norm.wgsl`.
    struct Planes {
        plane: u32,
        blocks: u32,
        planes: u32,
        /// Of a plane.
        runs: u32,
        /// Of a run.
        length: u32,
        channels: u32,
        slope: f32,
        epsilon: f32,
        inverse_count: f32,
    }
}

params! {
    /// The uniform of `batch_norm.wgsl`.
    struct Merge {
        partials: u32,
        momentum: f32,
        blocks: u32,
    }
}

params! {
    /// The uniform of `fold_batch_norm_before.wgsl`.
    struct FoldBefore {
        outputs: u32,
        each: u32,
        group_outputs: u32,
        epsilon: f32,
    }
}

params! {
    /// The uniform of `fold_batch_norm.wgsl`.
    struct FoldAfter {
        count: u32,
        fan_in: u32,
        epsilon: f32,
    }
}

/// ε of the published networks.
pub const EPSILON: f32 = 1e-5;
/// Weight of the newest batch in the running statistics.
pub const MOMENTUM: f32 = 0.1;

/// Batch norm of a map `[N, C, D, H, W]` with `slope`'s leaky ReLU behind it (0 is ReLU, `None` is linear). In
/// training it normalises by the batch's statistics (biased variance) and updates the running ones (momentum 0.1,
/// unbiased variance), which must be states; otherwise it normalises by the running ones. `gamma`, `beta` and the
/// running statistics are flat `[C]`.
pub fn batch_norm(
    graph: &mut Graph,
    x: Value,
    gamma: Value,
    beta: Value,
    running_mean: Value,
    running_variance: Value,
    slope: Option<f32>,
    training: bool,
) -> Result<Value, GraphError> {
    let inputs = [x, gamma, beta, running_mean, running_variance];
    if training {
        Ok(graph.push(BatchNorm { slope }, &inputs)?[0])
    } else {
        graph.push1(BatchNormInference { slope }, &inputs)
    }
}

/// y = leaky(γ·(x − μ)/√(σ² + ε) + β) with the batch's own μ and σ². Inputs: x, γ, β, running mean, running variance
/// (the last two are updated in place). Outputs: y, μ `[C]`, σ² `[C]` (biased).
#[derive(Debug)]
pub struct BatchNorm {
    /// The leaky ReLU's slope; `None` for none.
    pub slope: Option<f32>,
}

/// y = leaky(γ·(x − μ)/√(σ² + ε) + β) with given μ and σ². Inputs: x, γ, β, μ, σ².
#[derive(Clone, Copy, Debug)]
pub struct BatchNormInference {
    /// The leaky ReLU's slope; `None` for none.
    pub slope: Option<f32>,
}

/// Inputs: x, γ, β, μ, σ², dy. Outputs: dx, dγ, dβ.
#[derive(Debug)]
struct BatchNormGradient {
    slope: Option<f32>,
    /// Whether μ and σ² come from x and so depend on it.
    batch: bool,
}

fn check(name: &'static str, inputs: &[Spec], count: usize) -> Result<(), GraphError> {
    let fits = inputs.len() == count
        && inputs[0].layout == Layout::Map
        && inputs[1..5]
            .iter()
            .all(|s| *s == Spec::flat(&inputs[0].shape[1..2]))
        && inputs[5..].iter().all(|s| *s == inputs[0]);
    if fits {
        return Ok(());
    }
    let reason = "takes a map [N, C, D, H, W], then gamma, beta, mean and variance, each flat [C]";
    Err(GraphError::shape(name, inputs, reason))
}

fn planes(spec: &Spec, slices: usize) -> (usize, usize) {
    (spec.shape[3] * spec.shape[4], slices * spec.blocks())
}

params! {
    /// The uniform of the reductions of `batch_norm.wgsl`.
    struct Reduction {
        walk: Walk,
        /// Position of this dispatch's partials.
        first: u32,
        /// Partials a block, over all dispatches.
        partials: u32,
        channels: u32,
        slope: f32,
        epsilon: f32,
    }
}

/// Dispatches of a reduction's first stage: one for each run of slices, and the partials a channel block that they leave.
fn reduction(
    entry: &'static str,
    x: &Spec,
    slope: f32,
    caps: &Caps,
    scratch: impl FnOnce(usize) -> BufferRef,
    bindings: impl Fn(&Slices, BufferRef) -> Vec<Binding>,
) -> (Vec<Dispatch>, usize) {
    let plane = x.shape[3] * x.shape[4];
    let runs = slices(&[x], caps);
    let threads = |run: &Slices| walk_threads(run.count * plane, x.blocks(), caps);
    let (each, by_workgroup) = workgroup_reduction(caps);
    let partials = runs.iter().map(threads).sum::<usize>() / each;
    let buffer = scratch(partials);
    let mut first = 0;
    let dispatches = runs
        .iter()
        .map(|run| {
            let (elements, threads) = (run.count * plane, threads(run));
            let dispatch = Dispatch {
                constants: vec![by_workgroup],
                params: Reduction {
                    walk: walk(run.count, plane, x.blocks(), threads),
                    first: int(first),
                    partials: int(partials),
                    channels: int(x.shape[1]),
                    slope,
                    epsilon: EPSILON,
                }
                .into(),
                bindings: bindings(run, buffer),
                workgroups: [threads as u32 / 64, x.blocks() as u32, 1],
                iterations: elements.div_ceil(threads) as u64,
                flops: (elements * x.blocks() * 4 * 5) as u64,
                ..Dispatch::new(MODULE, entry)
            };
            first += threads / each;
            dispatch
        })
        .collect();
    (dispatches, partials)
}

const MODULE: Shader = shader!(
    "batch_norm",
    "common/divide",
    "common/lanes",
    "common/sum64",
    "common/workgroup_reduction",
    "common/walk"; Reduction, Merge, Planes);

/// Merges the partials of a reduction; `entries` are a workgroup's and an invocation's.
fn merge(
    [by_workgroup, alone]: [&'static str; 2],
    x: &Spec,
    partials: usize,
    bindings: Vec<Binding>,
    caps: &Caps,
) -> Dispatch {
    let blocks = x.blocks();
    let (entry, workgroups, iterations) = if caps.target.is_cpu() && partials <= 4096 {
        (alone, linear_groups(blocks, 64), partials + partials.div_ceil(16))
    } else {
        (by_workgroup, [blocks as u32, 1, 1], partials.div_ceil(64) + 6 * 2)
    };
    Dispatch {
        params: Merge {
            partials: int(partials),
            momentum: MOMENTUM,
            blocks: int(blocks),
        }
        .into(),
        bindings,
        workgroups,
        iterations: iterations as u64,
        flops: (blocks * partials * 4 * 8) as u64,
        ..Dispatch::new(MODULE, entry)
    }
}

fn elementwise(
    entry: &'static str,
    x: &Spec,
    slope: f32,
    count: Option<usize>,
    run: &Slices,
    bindings: Vec<Binding>,
    caps: &Caps,
) -> Dispatch {
    let (plane, planes) = planes(x, run.count);
    // The channel's numbers that an invocation reads first cost a CPU as much as five steps of its run.
    let most = 8 * if caps.target.is_cpu() { 32 } else { 8 };
    let runs = plane.div_ceil(most);
    let length = plane.div_ceil(runs).next_multiple_of(8);
    Dispatch {
        params: Planes {
            plane: int(plane),
            blocks: int(x.blocks()),
            planes: int(planes),
            runs: int(runs),
            length: int(length),
            channels: int(x.shape[1]),
            slope,
            epsilon: EPSILON,
            inverse_count: count.map_or(0.0, |n| 1.0 / n as f32),
        }
        .into(),
        bindings,
        workgroups: linear_groups(planes * runs, 8),
        iterations: length as u64 / 8,
        flops: (plane * planes * 4 * 4) as u64,
        ..Dispatch::new(MODULE, entry)
    }
}

/// `mean` and `variance` are the node's inputs 3 and 4, or its outputs 1 and 2.
fn normalise(io: &Io, slope: f32, mean: BufferRef, variance: BufferRef, caps: &Caps) -> Vec<Dispatch> {
    use BufferRef::*;
    let x = &io.inputs[0];
    io.slices(&[x], caps)
        .iter()
        .map(|run| {
            let bindings = vec![
                run.of(x, read(Input(0))),
                read(Input(1)),
                read(Input(2)),
                read(mean),
                read(variance),
                run.of(x, write(Output(0))),
            ];
            elementwise("normalise", x, slope, None, run, bindings, caps)
        })
        .collect()
}

/// The batch's mean and variance and the running ones, of input 0 into these.
fn statistics(io: &mut Io, into: [BufferRef; 4], caps: &Caps) -> Vec<Dispatch> {
    let x = &io.inputs[0];
    let mut buffer = BufferRef::Scratch(0);
    let (mut dispatches, partials) = reduction(
        "statistics",
        x,
        1.0,
        caps,
        |partials| {
            buffer = io.scratch((x.blocks() * 3 * partials * 16) as u64);
            buffer
        },
        |run, buffer| vec![run.of(x, read(BufferRef::Input(0))), write(buffer)],
    );
    let bindings = [read(buffer)].into_iter().chain(into.map(write)).collect();
    dispatches.push(merge(["merge", "merge_alone"], x, partials, bindings, caps));
    dispatches
}

/// μ `[C]` and σ² `[C]` (biased) of a map. Inputs: x, running mean, running variance (the last two are updated in place).
#[derive(Debug)]
struct BatchNormStatistics;

impl Op for BatchNormStatistics {
    fn name(&self) -> &'static str {
        "batch_norm_statistics"
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>, GraphError> {
        match inputs {
            [x, mean, variance] if x.layout == Layout::Map && mean == variance => Ok(vec![mean.clone(); 2]),
            _ => Err(GraphError::shape(
                self.name(),
                inputs,
                "takes a map and its running statistics",
            )),
        }
    }

    fn writes(&self, _: usize) -> Vec<usize> {
        vec![1, 2]
    }

    fn dispatches(&self, io: &mut Io, caps: &Caps) -> Result<Vec<Dispatch>, GraphError> {
        use BufferRef::*;
        Ok(statistics(io, [Output(0), Output(1), Input(1), Input(2)], caps))
    }

    fn reference(&self, inputs: &[&Tensor], _: &StepScalars) -> Vec<Tensor> {
        statistics_reference(inputs[0], inputs[1], inputs[2]).into()
    }
}

/// Mean, biased variance, and the running ones moved.
fn statistics_reference(x: &Tensor, running_mean: &Tensor, running_variance: &Tensor) -> [Tensor; 4] {
    let [n, c, d, h, w] = x.ncdhw();
    let count = (n * d * h * w) as f64;
    let mut mean = Tensor::zeros(&[c]);
    let mut variance = Tensor::zeros(&[c]);
    let (mut running_mean, mut running_variance) = (running_mean.clone(), running_variance.clone());
    for c in 0..c {
        let mu = each(x, c).map(|i| x.data[i] as f64).sum::<f64>() / count;
        let m2: f64 = each(x, c).map(|i| (x.data[i] as f64 - mu).powi(2)).sum();
        mean.data[c] = mu as f32;
        variance.data[c] = (m2 / count) as f32;
        let moved = |old: f32, new: f64| (old as f64 + MOMENTUM as f64 * (new - old as f64)) as f32;
        running_mean.data[c] = moved(running_mean.data[c], mu);
        running_variance.data[c] = moved(running_variance.data[c], m2 / (count - 1.0));
    }
    [mean, variance, running_mean, running_variance]
}

impl Op for BatchNorm {
    fn name(&self) -> &'static str {
        "batch_norm"
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>, GraphError> {
        check(self.name(), inputs, 5)?;
        let [n, c, d, h, w] = inputs[0].ncdhw().expect("a map");
        if n * d * h * w < 2 {
            let reason = "needs more than one value a channel in training: their variance is undefined";
            return Err(GraphError::shape(self.name(), inputs, reason));
        }
        Ok(vec![inputs[0].clone(), Spec::flat(&[c]), Spec::flat(&[c])])
    }

    fn writes(&self, _: usize) -> Vec<usize> {
        vec![3, 4]
    }

    /// Statistics and what they are used for apart: the second can be repeated, and goes in slabs.
    fn expand(&self, graph: &mut Graph, inputs: &[Value]) -> Result<Option<Vec<Value>>, GraphError> {
        let [x, gamma, beta, running_mean, running_variance] = inputs[..] else {
            unreachable!("five inputs")
        };
        let statistics = graph.push(BatchNormStatistics, &[x, running_mean, running_variance])?;
        let (mean, variance) = (statistics[0], statistics[1]);
        let normalise = BatchNormInference { slope: self.slope };
        let y = graph.push1(normalise, &[x, gamma, beta, mean, variance])?;
        Ok(Some(vec![y, mean, variance]))
    }

    fn gradient(
        &self,
        graph: &mut Graph,
        node: &NodeView,
        upstream: &[Option<Value>],
        wanted: &[bool],
    ) -> Result<Vec<Gradient>, GraphError> {
        let [Some(dy), None, None] = upstream else {
            let reason = "batch_norm offers no gradient through its statistics as outputs";
            return Err(GraphError::Name(reason.into()));
        };
        let (mean, variance) = (node.outputs[1], node.outputs[2]);
        gradient(graph, node, wanted, self.slope, [mean, variance, *dy], true)
    }

    fn reference(&self, inputs: &[&Tensor], _: &StepScalars) -> Vec<Tensor> {
        let [mean, variance, running_mean, running_variance] =
            statistics_reference(inputs[0], inputs[3], inputs[4]);
        let y = normalise_reference(inputs, &mean, &variance, self.slope);
        vec![y, mean, variance, running_mean, running_variance]
    }
}

/// Dense indices of channel `c`.
fn each(x: &Tensor, c: usize) -> impl Iterator<Item = usize> + use<> {
    let [n, channels, d, h, w] = x.ncdhw();
    let volume = d * h * w;
    (0..n).flat_map(move |n| (0..volume).map(move |i| (n * channels + c) * volume + i))
}

fn normalise_reference(inputs: &[&Tensor], mean: &Tensor, variance: &Tensor, slope: Option<f32>) -> Tensor {
    let mut y = inputs[0].clone();
    for c in 0..inputs[0].shape[1] {
        let rstd = 1.0 / (variance.data[c] as f64 + EPSILON as f64).sqrt();
        for i in each(inputs[0], c) {
            let xhat = (inputs[0].data[i] as f64 - mean.data[c] as f64) * rstd;
            let z = inputs[1].data[c] as f64 * xhat + inputs[2].data[c] as f64;
            y.data[i] = if z > 0.0 {
                z
            } else {
                slope.unwrap_or(1.0) as f64 * z
            } as f32;
        }
    }
    y
}

fn gradient(
    graph: &mut Graph,
    node: &NodeView,
    wanted: &[bool],
    slope: Option<f32>,
    [mean, variance, dy]: [Value; 3],
    batch: bool,
) -> Result<Vec<Gradient>, GraphError> {
    if wanted[3] || wanted[4] {
        let reason = "batch_norm offers no gradient to its running statistics";
        return Err(GraphError::Name(reason.into()));
    }
    let inputs = [node.inputs[0], node.inputs[1], node.inputs[2], mean, variance, dy];
    let made = graph.push(BatchNormGradient { slope, batch }, &inputs)?;
    let mut flows: Vec<Gradient> = made.into_iter().map(Gradient::Flows).collect();
    flows.extend([Gradient::Stops; 2]);
    Ok(flows)
}

impl Op for BatchNormInference {
    fn name(&self) -> &'static str {
        "batch_norm_inference"
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>, GraphError> {
        check(self.name(), inputs, 5)?;
        Ok(vec![inputs[0].clone()])
    }

    fn dispatches(&self, io: &mut Io, caps: &Caps) -> Result<Vec<Dispatch>, GraphError> {
        use BufferRef::*;
        Ok(normalise(io, self.slope.unwrap_or(1.0), Input(3), Input(4), caps))
    }

    fn gradient(
        &self,
        graph: &mut Graph,
        node: &NodeView,
        upstream: &[Option<Value>],
        wanted: &[bool],
    ) -> Result<Vec<Gradient>, GraphError> {
        let dy = upstream[0].expect("the one output has a gradient");
        let statistics = [node.inputs[3], node.inputs[4], dy];
        gradient(graph, node, wanted, self.slope, statistics, false)
    }

    fn reference(&self, inputs: &[&Tensor], _: &StepScalars) -> Vec<Tensor> {
        vec![normalise_reference(inputs, inputs[3], inputs[4], self.slope)]
    }

    fn rematerialise(&self, node: &NodeView, _: &[Spec]) -> Option<(Arc<dyn Op>, Vec<Value>)> {
        Some((Arc::new(*self), node.inputs.clone()))
    }

    fn reads(&self, inputs: &[Spec], outputs: &[Spec], planes: Range<usize>) -> Option<Reads> {
        same_planes(inputs, outputs, planes)
    }
}

impl Op for BatchNormGradient {
    fn name(&self) -> &'static str {
        "batch_norm_gradient"
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>, GraphError> {
        check(self.name(), inputs, 6)?;
        let per_channel = Spec::flat(&inputs[0].shape[1..2]);
        Ok(vec![inputs[0].clone(), per_channel.clone(), per_channel])
    }

    fn dispatches(&self, io: &mut Io, caps: &Caps) -> Result<Vec<Dispatch>, GraphError> {
        use BufferRef::*;
        let x = &io.inputs[0];
        let slope = self.slope.unwrap_or(1.0);
        let mut buffer = Scratch(0);
        let statistics = || (1..5).map(|i| read(Input(i)));
        let (mut dispatches, partials) = reduction(
            "gradient_sums",
            x,
            slope,
            caps,
            |partials| {
                buffer = io.scratch((x.blocks() * 2 * partials * 16) as u64);
                buffer
            },
            |run, buffer| {
                let mut bindings = vec![run.of(x, read(Input(0)))];
                bindings.extend(statistics());
                bindings.extend([run.of(x, read(Input(5))), write(buffer)]);
                bindings
            },
        );
        let totals = io.scratch((x.blocks() * 2 * 16) as u64);
        let bindings = vec![read(buffer), write(Output(1)), write(Output(2)), write(totals)];
        dispatches.push(merge(
            ["merge_sums", "merge_sums_alone"],
            x,
            partials,
            bindings,
            caps,
        ));
        let [n, _, d, h, w] = x.ncdhw().expect("a map");
        let count = self.batch.then_some(n * d * h * w);
        let entry = if io.in_place {
            "gradient_in_place"
        } else {
            "gradient"
        };
        for run in slices(&[x], caps) {
            let mut bindings = vec![run.of(x, read(Input(0)))];
            bindings.extend(statistics());
            let dx = run.of(x, write(Output(0)));
            bindings.extend(match io.in_place {
                true => vec![dx, read(totals)],
                false => vec![run.of(x, read(Input(5))), read(totals), dx],
            });
            dispatches.push(elementwise(entry, x, slope, count, &run, bindings, caps));
        }
        Ok(dispatches)
    }

    /// dx over dy.
    fn overwrites(&self, _: &[Spec], _: &[Spec], _: &Caps) -> Option<usize> {
        Some(5)
    }

    fn reference(&self, inputs: &[&Tensor], _: &StepScalars) -> Vec<Tensor> {
        let [x, gamma, beta, mean, variance, dy] = inputs else {
            unreachable!("six inputs")
        };
        let [n, c, d, h, w] = x.ncdhw();
        let inverse_count = if self.batch {
            1.0 / (n * d * h * w) as f64
        } else {
            0.0
        };
        let mut dx = Tensor::zeros(&x.shape);
        let (mut dgamma, mut dbeta) = (Tensor::zeros(&[c]), Tensor::zeros(&[c]));
        for c in 0..c {
            let rstd = 1.0 / (variance.data[c] as f64 + EPSILON as f64).sqrt();
            let gamma = gamma.data[c] as f64;
            let xhat = |i: usize| (x.data[i] as f64 - mean.data[c] as f64) * rstd;
            let g = |i: usize| {
                let active = gamma * xhat(i) + beta.data[c] as f64 > 0.0;
                dy.data[i] as f64
                    * if active {
                        1.0
                    } else {
                        self.slope.unwrap_or(1.0) as f64
                    }
            };
            let sum: f64 = each(x, c).map(g).sum();
            let product: f64 = each(x, c).map(|i| g(i) * xhat(i)).sum();
            for i in each(x, c) {
                let centred = g(i) - inverse_count * (sum + xhat(i) * product);
                dx.data[i] = (gamma * rstd * centred) as f32;
            }
            dgamma.data[c] = product as f32;
            dbeta.data[c] = sum as f32;
        }
        vec![dx, dgamma, dbeta]
    }
}

/// The convolution that equals a convolution followed by batch norm with fixed statistics:
/// w′ = w·γ/√(σ² + ε), b′ = (b − μ)·γ/√(σ² + ε) + β. Inputs: w `[O, I/groups, kD, kH, kW]`, b `[O]`, γ, β, running
/// mean, running variance, each `[O]`. Outputs: w′, b′. For inference only.
#[derive(Debug)]
pub struct FoldBatchNorm;

/// Folds a batch norm's running statistics into the convolution before it: new weights and bias. A convolution
/// without bias takes a zero one.
pub fn fold_batch_norm(
    graph: &mut Graph,
    weight: Value,
    bias: Option<Value>,
    gamma: Value,
    beta: Value,
    running_mean: Value,
    running_variance: Value,
) -> Result<(Value, Value), GraphError> {
    let bias = or_zero(graph, bias, weight)?;
    let inputs = [weight, bias, gamma, beta, running_mean, running_variance];
    let folded = graph.push(FoldBatchNorm, &inputs)?;
    Ok((folded[0], folded[1]))
}

/// A convolution's bias, or zeros for one without.
fn or_zero(graph: &mut Graph, bias: Option<Value>, weight: Value) -> Result<Value, GraphError> {
    match bias {
        Some(bias) => Ok(bias),
        None => {
            let outputs = graph.shape(weight)[0];
            graph.push1(super::fill::Fill::new(&[outputs], 0.0), &[])
        }
    }
}

impl Op for FoldBatchNorm {
    fn name(&self) -> &'static str {
        "fold_batch_norm"
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>, GraphError> {
        let fits = inputs.len() == 6
            && inputs[0].layout == Layout::Flat
            && !inputs[0].shape.is_empty()
            && inputs[1..]
                .iter()
                .all(|s| *s == Spec::flat(&inputs[0].shape[..1]));
        if !fits {
            let reason = "takes weights [O, …] and bias, gamma, beta, mean and variance, each flat [O]";
            return Err(GraphError::shape(self.name(), inputs, reason));
        }
        Ok(vec![inputs[0].clone(), inputs[1].clone()])
    }

    fn dispatches(&self, io: &mut Io, _: &Caps) -> Result<Vec<Dispatch>, GraphError> {
        use BufferRef::*;
        let count = io.inputs[0].count();
        let outputs = io.inputs[0].shape[0];
        let mut bindings: Vec<Binding> = (0..6).map(|i| read(Input(i))).collect();
        bindings.extend([write(Output(0)), write(Output(1))]);
        Ok(vec![Dispatch {
            params: FoldAfter {
                count: int(count),
                fan_in: int(count / outputs.max(1)),
                epsilon: EPSILON,
            }
            .into(),
            bindings,
            workgroups: linear_groups(count, 64),
            flops: 4 * count as u64,
            ..Dispatch::new(shader!("fold_batch_norm"; FoldAfter), "main")
        }])
    }

    fn reference(&self, inputs: &[&Tensor], _: &StepScalars) -> Vec<Tensor> {
        let (mut w, mut b) = (inputs[0].clone(), inputs[1].clone());
        let fan_in = w.data.len() / b.data.len();
        for o in 0..b.data.len() {
            let [bias, gamma, beta, mean, variance] = [1, 2, 3, 4, 5].map(|i| inputs[i].data[o] as f64);
            let scale = gamma / (variance + EPSILON as f64).sqrt();
            for v in &mut w.data[o * fan_in..(o + 1) * fan_in] {
                *v = (*v as f64 * scale) as f32;
            }
            b.data[o] = ((bias - mean) * scale + beta) as f32;
        }
        vec![w, b]
    }
}

/// The 1×1×1 convolution that equals batch norm with fixed statistics followed by a 1×1×1 convolution without padding:
/// with s = γ/√(σ² + ε), w′ = w·s and b′ = b + Σ w·(β − μ·s), both by input channel. Inputs: w `[O, I/groups, 1, 1, 1]`, b
/// `[O]`, γ, β, running mean, running variance, each `[I]`. Outputs: w′, b′. For inference only.
#[derive(Debug)]
pub struct FoldBatchNormBefore {
    /// Of the convolution.
    pub groups: usize,
}

/// Folds the running statistics of a batch norm (γ, β, mean, variance) into the 1×1×1 convolution after it: new weights
/// and bias. A convolution without bias takes a zero one.
pub fn fold_batch_norm_before(
    graph: &mut Graph,
    weight: Value,
    bias: Option<Value>,
    norm: &[Value],
    groups: usize,
) -> Result<(Value, Value), GraphError> {
    let bias = or_zero(graph, bias, weight)?;
    let inputs = [&[weight, bias], norm].concat();
    let folded = graph.push(FoldBatchNormBefore { groups }, &inputs)?;
    Ok((folded[0], folded[1]))
}

impl Op for FoldBatchNormBefore {
    fn name(&self) -> &'static str {
        "fold_batch_norm_before"
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>, GraphError> {
        if let [weight, bias, norm @ ..] = inputs
            && let [outputs, each, 1, 1, 1] = weight.shape[..]
            && *bias == Spec::flat(&[outputs])
            && outputs.is_multiple_of(self.groups)
            && norm.len() == 4
            && norm.iter().all(|s| *s == Spec::flat(&[each * self.groups]))
        {
            return Ok(vec![weight.clone(), bias.clone()]);
        }
        let reason = "takes weights [O, I / groups, 1, 1, 1], bias [O] and gamma, beta, mean and variance, each flat [I]";
        Err(GraphError::shape(self.name(), inputs, reason))
    }

    fn dispatches(&self, io: &mut Io, _: &Caps) -> Result<Vec<Dispatch>, GraphError> {
        use BufferRef::*;
        let (outputs, each) = (io.inputs[0].shape[0], io.inputs[0].shape[1]);
        let mut bindings: Vec<Binding> = (0..6).map(|i| read(Input(i))).collect();
        bindings.extend([write(Output(0)), write(Output(1))]);
        Ok(vec![Dispatch {
            params: FoldBefore {
                outputs: int(outputs),
                each: int(each),
                group_outputs: int(outputs / self.groups),
                epsilon: EPSILON,
            }
            .into(),
            bindings,
            workgroups: linear_groups(outputs, 64),
            iterations: each as u64,
            flops: 6 * io.inputs[0].count() as u64,
            ..Dispatch::new(shader!("fold_batch_norm_before"; FoldBefore), "main")
        }])
    }

    fn gradient(
        &self,
        _: &mut Graph,
        _: &NodeView,
        _: &[Option<Value>],
        _: &[bool],
    ) -> Result<Vec<Gradient>, GraphError> {
        Err(GraphError::Name(
            "fold_batch_norm_before is for inference and has no gradient: train with batch_norm".into(),
        ))
    }

    fn reference(&self, inputs: &[&Tensor], _: &StepScalars) -> Vec<Tensor> {
        let (mut w, mut b) = (inputs[0].clone(), inputs[1].clone());
        let (outputs, each) = (w.shape[0], w.shape[1]);
        for o in 0..outputs {
            let mut sum = b.data[o] as f64;
            for i in 0..each {
                let c = o / (outputs / self.groups) * each + i;
                let [gamma, beta, mean, variance] = [2, 3, 4, 5].map(|k| inputs[k].data[c] as f64);
                let scale = gamma / (variance + EPSILON as f64).sqrt();
                let weight = &mut w.data[o * each + i];
                sum += *weight as f64 * (beta - mean * scale);
                *weight = (*weight as f64 * scale) as f32;
            }
            b.data[o] = sum as f32;
        }
        vec![w, b]
    }
}

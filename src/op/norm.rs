//! What batch norm and instance norm share: statistics of a map by channel, what they normalise, and its gradient. The kernels
//! are those of `norm.wgsl`.

use super::*;

params! {
    /// The uniform of the kernels of `norm.wgsl` that go over elements.
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
        /// Vec4s before the first in the binding.
        base: u32,
        /// Of the statistics, the block of the first channels.
        first_block: u32,
    }
}

params! {
    /// The uniform of the kernels of `norm.wgsl` that merge partial results.
    struct Merge {
        partials: u32,
        momentum: f32,
        blocks: u32,
        /// See [`Planes`].
        first_block: u32,
    }
}

params! {
    /// The uniform of the reductions of `norm.wgsl`.
    struct Reduction {
        walk: Walk,
        /// Position of this dispatch's partials.
        first: u32,
        /// Partials a block, over all dispatches.
        partials: u32,
        channels: u32,
        slope: f32,
        epsilon: f32,
        /// See [`Planes`].
        base: u32,
        /// See [`Planes`].
        first_block: u32,
    }
}

/// ε of the published networks, and of nnU-Net's.
pub const EPSILON: f32 = 1e-5;
/// Weight of the newest batch in the running statistics.
pub const MOMENTUM: f32 = 0.1;

/// Which voxels of a channel share their mean and variance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// Those of all samples: batch norm.
    Batch,
    /// Those of each sample: instance norm.
    Sample,
}

/// The slices of a run that share their statistics.
struct Part {
    /// The position of the statistics: 0, or the sample.
    group: usize,
    /// Slices of the run before the first.
    skipped: usize,
    slices: usize,
}

impl Over {
    /// How many means a channel of `x` has.
    pub fn groups(self, x: &Spec) -> usize {
        match self {
            Over::Batch => 1,
            Over::Sample => x.shape[0],
        }
    }

    /// The shape of means or variances: flat `[C]`, or a map `[N, C, 1, 1, 1]`.
    pub fn statistic(self, x: &Spec) -> Spec {
        match self {
            Over::Batch => Spec::flat(&x.shape[1..2]),
            Over::Sample => Spec::map([x.shape[0], x.shape[1], 1, 1, 1]),
        }
    }

    /// Values of `x` behind each mean.
    pub fn count(self, x: &Spec) -> usize {
        let [n, _, d, h, w] = x.ncdhw().expect("a map");
        n * d * h * w / self.groups(x)
    }

    fn parts(self, x: &Spec, run: &Slices) -> Vec<Part> {
        if self == Over::Batch {
            return vec![Part {
                group: 0,
                skipped: 0,
                slices: run.count,
            }];
        }
        let depth = x.shape[2];
        let end = run.first + run.count;
        (run.first / depth..end.div_ceil(depth))
            .map(|sample| {
                let first = run.first.max(sample * depth);
                Part {
                    group: sample,
                    skipped: first - run.first,
                    slices: end.min((sample + 1) * depth) - first,
                }
            })
            .collect()
    }
}

const MODULE: Shader = shader!(
    "norm",
    "common/divide",
    "common/lanes",
    "common/sum64",
    "common/workgroup_reduction",
    "common/walk"; Reduction, Merge, Planes);

/// The partial results of a reduction's first stage, by group of statistics.
struct Partials {
    count: usize,
    buffer: BufferRef,
}

/// Dispatches of a reduction's first stage, which leave `columns` vec4s a channel block each: one for each part of each run of
/// slices.
fn reduction(
    entry: &'static str,
    io: &mut Io,
    over: Over,
    columns: usize,
    slope: f32,
    caps: &Caps,
    bindings: impl Fn(&Slices, BufferRef) -> Vec<Binding>,
) -> (Vec<Dispatch>, Vec<Partials>) {
    let x = &io.inputs[0];
    let (plane, blocks) = (x.shape[3] * x.shape[4], x.blocks());
    let runs = slices(&[x], caps);
    let threads = |part: &Part| walk_threads(part.slices * plane, blocks, caps);
    let (each, by_workgroup) = workgroup_reduction(caps);
    let mut counts = vec![0; over.groups(x)];
    for part in runs.iter().flat_map(|run| over.parts(x, run)) {
        counts[part.group] += threads(&part) / each;
    }
    let partials: Vec<Partials> = counts
        .into_iter()
        .map(|count| Partials {
            count,
            buffer: io.scratch((blocks * columns * count * 16) as u64),
        })
        .collect();
    let mut first = vec![0; partials.len()];
    let mut dispatches = Vec::new();
    for run in &runs {
        for part in over.parts(x, run) {
            let (elements, threads) = (part.slices * plane, threads(&part));
            let Partials { count, buffer } = partials[part.group];
            dispatches.push(Dispatch {
                constants: vec![by_workgroup],
                params: Reduction {
                    walk: walk(part.slices, plane, blocks, threads),
                    first: int(first[part.group]),
                    partials: int(count),
                    channels: int(x.shape[1]),
                    slope,
                    epsilon: EPSILON,
                    base: int(part.skipped * blocks * plane),
                    first_block: int(part.group * blocks),
                }
                .into(),
                bindings: bindings(run, buffer),
                workgroups: [threads as u32 / 64, blocks as u32, 1],
                iterations: elements.div_ceil(threads) as u64,
                flops: (elements * blocks * 4 * 5) as u64,
                ..Dispatch::new(MODULE, entry)
            });
            first[part.group] += threads / each;
        }
    }
    (dispatches, partials)
}

/// Merges the partials of a group; `entries` are a workgroup's and an invocation's.
fn merge(
    [by_workgroup, alone]: [&'static str; 2],
    x: &Spec,
    group: usize,
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
            first_block: int(group * blocks),
        }
        .into(),
        bindings,
        workgroups,
        iterations: iterations as u64,
        flops: (blocks * partials * 4 * 8) as u64,
        ..Dispatch::new(MODULE, entry)
    }
}

/// One dispatch for each part of a run; `count` values are behind a mean that depends on x.
fn elementwise(
    entry: &'static str,
    x: &Spec,
    over: Over,
    slope: f32,
    count: Option<usize>,
    run: &Slices,
    bindings: Vec<Binding>,
    caps: &Caps,
) -> Vec<Dispatch> {
    let (plane, blocks) = (x.shape[3] * x.shape[4], x.blocks());
    // The channel's numbers that an invocation reads first cost a CPU as much as five steps of its run.
    let most = 8 * if caps.target.is_cpu() { 32 } else { 8 };
    let runs = plane.div_ceil(most);
    let length = plane.div_ceil(runs).next_multiple_of(8);
    let dispatch = |part: Part| {
        let planes = part.slices * blocks;
        Dispatch {
            params: Planes {
                plane: int(plane),
                blocks: int(blocks),
                planes: int(planes),
                runs: int(runs),
                length: int(length),
                channels: int(x.shape[1]),
                slope,
                epsilon: EPSILON,
                inverse_count: count.map_or(0.0, |n| 1.0 / n as f32),
                base: int(part.skipped * blocks * plane),
                first_block: int(part.group * blocks),
            }
            .into(),
            bindings: bindings.clone(),
            workgroups: linear_groups(planes * runs, 8),
            iterations: length as u64 / 8,
            flops: (plane * planes * 4 * 4) as u64,
            ..Dispatch::new(MODULE, entry)
        }
    };
    over.parts(x, run).into_iter().map(dispatch).collect()
}

/// y = leaky(γ·(x − μ)/√(σ² + ε) + β) of inputs x, γ, β, μ, σ².
pub(super) fn normalise(io: &Io, over: Over, slope: f32, caps: &Caps) -> Vec<Dispatch> {
    use BufferRef::*;
    let x = &io.inputs[0];
    io.slices(&[x], caps)
        .iter()
        .flat_map(|run| {
            let mut bindings = vec![run.of(x, read(Input(0)))];
            bindings.extend((1..5).map(|i| read(Input(i))));
            bindings.push(run.of(x, write(Output(0))));
            elementwise("normalise", x, over, slope, None, run, bindings, caps)
        })
        .collect()
}

/// The mean and variance of input 0 into outputs 0 and 1; and the running ones moved.
pub(super) fn statistics(io: &mut Io, over: Over, running: [BufferRef; 2], caps: &Caps) -> Vec<Dispatch> {
    let x = io.inputs[0].clone();
    let (mut dispatches, partials) = reduction("statistics", io, over, 3, 1.0, caps, |run, buffer| {
        vec![run.of(&x, read(BufferRef::Input(0))), write(buffer)]
    });
    for (group, Partials { count, buffer }) in partials.into_iter().enumerate() {
        let into = [BufferRef::Output(0), BufferRef::Output(1), running[0], running[1]];
        let bindings = [read(buffer)].into_iter().chain(into.map(write)).collect();
        dispatches.push(merge(["merge", "merge_alone"], &x, group, count, bindings, caps));
    }
    dispatches
}

/// Of inputs x, γ, β, μ, σ², dy: dx, and by group of statistics dγ and dβ. `dependent` where μ and σ² come from x.
pub(super) fn gradient(io: &mut Io, over: Over, slope: f32, dependent: bool, caps: &Caps) -> Vec<Dispatch> {
    use BufferRef::*;
    let x = io.inputs[0].clone();
    let statistics = || (1..5).map(|i| read(Input(i)));
    let (mut dispatches, partials) = reduction("gradient_sums", io, over, 2, slope, caps, |run, buffer| {
        let mut bindings = vec![run.of(&x, read(Input(0)))];
        bindings.extend(statistics());
        bindings.extend([run.of(&x, read(Input(5))), write(buffer)]);
        bindings
    });
    let totals = io.scratch((over.groups(&x) * x.blocks() * 2 * 16) as u64);
    for (group, Partials { count, buffer }) in partials.into_iter().enumerate() {
        let bindings = vec![read(buffer), write(Output(1)), write(Output(2)), write(totals)];
        let entries = ["merge_sums", "merge_sums_alone"];
        dispatches.push(merge(entries, &x, group, count, bindings, caps));
    }
    let count = dependent.then(|| over.count(&x));
    let entry = if io.in_place {
        "gradient_in_place"
    } else {
        "gradient"
    };
    for run in slices(&[&x], caps) {
        let mut bindings = vec![run.of(&x, read(Input(0)))];
        bindings.extend(statistics());
        let dx = run.of(&x, write(Output(0)));
        bindings.extend(match io.in_place {
            true => vec![dx, read(totals)],
            false => vec![run.of(&x, read(Input(5))), read(totals), dx],
        });
        dispatches.extend(elementwise(entry, &x, over, slope, count, &run, bindings, caps));
    }
    dispatches
}

/// Dense indices of the values behind a channel's mean.
fn each(x: &Tensor, over: Over, group: usize, c: usize) -> impl Iterator<Item = usize> + use<> {
    let [n, channels, d, h, w] = x.ncdhw();
    let volume = d * h * w;
    let samples = match over {
        Over::Batch => 0..n,
        Over::Sample => group..group + 1,
    };
    samples.flat_map(move |n| (0..volume).map(move |i| (n * channels + c) * volume + i))
}

/// The groups of statistics and channels of a map, with the position of their mean.
fn means(x: &Tensor, over: Over) -> impl Iterator<Item = (usize, usize, usize)> + use<> {
    let [n, channels, ..] = x.ncdhw();
    let groups = if over == Over::Batch { 1 } else { n };
    (0..groups).flat_map(move |g| (0..channels).map(move |c| (g, c, g * channels + c)))
}

/// Mean and biased variance, each of that shape.
pub(super) fn statistics_reference(x: &Tensor, over: Over, shape: &[usize]) -> [Tensor; 2] {
    let (mut mean, mut variance) = (Tensor::zeros(shape), Tensor::zeros(shape));
    for (group, c, at) in means(x, over) {
        let values = || each(x, over, group, c).map(|i| x.data[i] as f64);
        let count = values().count() as f64;
        let mu = values().sum::<f64>() / count;
        mean.data[at] = mu as f32;
        variance.data[at] = (values().map(|v| (v - mu).powi(2)).sum::<f64>() / count) as f32;
    }
    [mean, variance]
}

fn leaky(z: f64, slope: Option<f32>) -> f64 {
    if z > 0.0 {
        z
    } else {
        slope.unwrap_or(1.0) as f64 * z
    }
}

/// Of x, γ, β.
pub(super) fn normalise_reference(
    inputs: &[&Tensor],
    over: Over,
    mean: &Tensor,
    variance: &Tensor,
    slope: Option<f32>,
) -> Tensor {
    let [x, gamma, beta] = inputs[..3] else {
        unreachable!("three inputs")
    };
    let mut y = x.clone();
    for (group, c, at) in means(x, over) {
        let rstd = 1.0 / (variance.data[at] as f64 + EPSILON as f64).sqrt();
        for i in each(x, over, group, c) {
            let xhat = (x.data[i] as f64 - mean.data[at] as f64) * rstd;
            y.data[i] = leaky(gamma.data[c] as f64 * xhat + beta.data[c] as f64, slope) as f32;
        }
    }
    y
}

/// Of x, γ, β, μ, σ², dy: dx, and dγ and dβ of the shape of μ.
pub(super) fn gradient_reference(
    inputs: &[&Tensor],
    over: Over,
    slope: Option<f32>,
    dependent: bool,
) -> Vec<Tensor> {
    let [x, gamma, beta, mean, variance, dy] = inputs else {
        unreachable!("six inputs")
    };
    let mut dx = Tensor::zeros(&x.shape);
    let (mut dgamma, mut dbeta) = (Tensor::zeros(&mean.shape), Tensor::zeros(&mean.shape));
    for (group, c, at) in means(x, over) {
        let values = || each(x, over, group, c);
        let inverse_count = if dependent {
            1.0 / values().count() as f64
        } else {
            0.0
        };
        let rstd = 1.0 / (variance.data[at] as f64 + EPSILON as f64).sqrt();
        let gamma = gamma.data[c] as f64;
        let xhat = |i: usize| (x.data[i] as f64 - mean.data[at] as f64) * rstd;
        let g = |i: usize| {
            let active = gamma * xhat(i) + beta.data[c] as f64 > 0.0;
            let slope = if active { 1.0 } else { slope.unwrap_or(1.0) as f64 };
            dy.data[i] as f64 * slope
        };
        let sum: f64 = values().map(g).sum();
        let product: f64 = values().map(|i| g(i) * xhat(i)).sum();
        for i in values() {
            let centred = g(i) - inverse_count * (sum + xhat(i) * product);
            dx.data[i] = (gamma * rstd * centred) as f32;
        }
        dgamma.data[at] = product as f32;
        dbeta.data[at] = sum as f32;
    }
    vec![dx, dgamma, dbeta]
}

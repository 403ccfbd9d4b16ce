//! What a network costs on an adapter: seconds, device memory, how long until the first result, and each kernel against
//! what the adapter reaches at best.

mod ceilings;

use std::time::Instant;

use serde::Serialize;

pub use ceilings::{Ceilings, ceilings, copy_plan, fma_plan};

use crate::gpu::{AdapterSummary, Device, Executable, GpuError, Memory, Resident, Weights};
use crate::graph::{Graph, GraphError, Init};
use crate::model::{self, Builder, Network};
use crate::op::arg_max::ArgMax;
use crate::op::obelisk_layer::obelisk_layer;
use crate::op::obelisk_sample::Locations;
use crate::op::{Forms, StepScalars};
use crate::plan::Plan;
use crate::tensor::{Spec, Tensor, scrambled};
use crate::train::{Loss, sparse_training_graph, training_graph};
use crate::weights::initialise;

/// What can go wrong while measuring.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BenchError {
    /// The network can't be built or planned at this size.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// The device failed.
    #[error(transparent)]
    Gpu(#[from] GpuError),
}

/// What to measure.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The network, or one layer.
    pub subject: Subject,
    /// Images `[batch, channels, D, H, W]`.
    pub size: [usize; 3],
    /// Images at once.
    pub batch: usize,
    /// Input channels.
    pub channels: usize,
    /// Runs that are timed, at least one.
    pub steps: usize,
    /// Also time each kernel and measure the adapter's ceilings.
    pub per_kernel: bool,
}

/// What runs.
#[derive(Clone, Debug)]
pub enum Subject {
    /// A network by name. Inference ends in labels, as predicting without resampling does.
    Network {
        /// Its name.
        arch: String,
        /// Classes.
        labels: usize,
        /// What training minimises.
        loss: Loss,
        /// Whether training steps augment on the device.
        augment: bool,
        /// Training at so many random locations of each image, for networks that can.
        samples: Option<usize>,
    },
    /// One OBELISK layer (method section 1) on the quarter grid. Its training is forward and backward: gradients of weights
    /// and offsets.
    Layer(Layer),
}

/// The numbers of an OBELISK layer.
#[derive(Clone, Copy, Debug)]
pub struct Layer {
    /// Offsets or, when binary, pairs of offsets.
    pub offsets: usize,
    /// Output channels.
    pub outputs: usize,
    /// Groups of the convolution.
    pub groups: usize,
    /// Differences of the image at two offsets.
    pub binary: bool,
    /// Also the gradient of the image, which makes it a map.
    pub input_gradient: bool,
}

/// Median, least and most of several runs, in seconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Spread {
    /// Half of the runs took no longer.
    pub median: f64,
    /// The fastest.
    pub min: f64,
    /// The slowest.
    pub max: f64,
}

impl Spread {
    /// Of these runs; there must be one.
    pub fn of(mut seconds: Vec<f64>) -> Spread {
        seconds.sort_by(f64::total_cmp);
        Spread {
            median: (seconds[(seconds.len() - 1) / 2] + seconds[seconds.len() / 2]) / 2.0,
            min: seconds[0],
            max: seconds[seconds.len() - 1],
        }
    }
}

/// Inference or training steps, measured on a device of their own.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Measurement {
    /// One submission: from handing over to done, inputs on the device.
    pub seconds: Spread,
    /// Seconds of computing that a run took from the process's threads, all added (Linux). On software adapters that is the
    /// work itself: what other programs take away from the machine does not count.
    pub processor_seconds: Option<f64>,
    /// From `since` (the process's start, for the first measurement) until the first result was read: opening the device,
    /// planning, compiling, uploading, running.
    pub first_result_seconds: f64,
    /// Of these, making buffers and pipelines.
    pub pipelines_seconds: f64,
    /// Kernels of one submission.
    pub dispatches: usize,
    /// Floating-point operations of one submission, in 10⁹.
    pub gigaflop: f64,
    /// Bytes of device memory that the plan asks for: slots, parameters, their gradients and moments, states.
    pub planned_bytes: u64,
    /// Bytes of the images that stay on the device from step to step, beside the plan.
    pub resident_bytes: u64,
    /// Device memory as it was, uploads and read-backs included.
    pub memory: Memory,
    /// The process's largest resident set so far (Linux): all of its memory, and on software adapters the device's too.
    pub peak_rss_bytes: Option<u64>,
    /// Where the time of a submission goes; empty unless asked for.
    pub kernels: Vec<Kernel>,
}

/// One kernel of a submission.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Kernel {
    /// The operation.
    pub op: &'static str,
    /// Module and entry point.
    pub kernel: String,
    /// The fastest of three runs, in seconds.
    pub seconds: f64,
    /// Its floating-point operations.
    pub flop: u64,
    /// Bytes of what it binds: each counted once, whether read, written or both.
    pub bytes: u64,
}

/// A device and what was measured on it.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// The adapter.
    pub adapter: AdapterSummary,
    /// The forms of the kernels.
    pub forms: Forms,
    /// What it reaches at best; measured with the kernels' times.
    pub ceilings: Option<Ceilings>,
    /// What was measured.
    pub measurement: Measurement,
    /// Whether kernels were timed by the adapter's clock; otherwise each was waited for, which adds to short ones.
    pub timestamps: bool,
}

/// Opens the device that is measured, of its own for each measurement: its memory starts empty, and its
/// pipelines are compiled anew.
pub type Open<'a> = &'a dyn Fn() -> Result<Device, GpuError>;

/// Inference: images to labels, or a layer's forward pass.
pub fn inference(open: Open, settings: &Settings, since: Instant) -> Result<Report, BenchError> {
    let graph = match &settings.subject {
        Subject::Network { arch, labels, .. } => labels_graph(&model::find(arch)?, settings, *labels)?,
        Subject::Layer(layer) => layer_graph(layer, settings, false)?,
    };
    measure(open, settings, &graph, false, since)
}

/// Training steps: loss, gradients, Adam; of a layer, forward and backward.
pub fn training(open: Open, settings: &Settings, since: Instant) -> Result<Report, BenchError> {
    let [d, h, w] = settings.size;
    let shape = [settings.batch, settings.channels, d, h, w];
    let graph = match &settings.subject {
        Subject::Layer(layer) => layer_graph(layer, settings, true)?,
        Subject::Network {
            arch,
            labels,
            loss,
            augment,
            samples,
        } => {
            let network = &model::find(arch)?;
            match samples {
                None => training_graph(network, shape, *labels, *loss, *augment)?,
                Some(samples) => sparse_training_graph(
                    network,
                    [settings.channels, d, h, w],
                    settings.batch,
                    *samples,
                    *labels,
                    *loss,
                    *augment,
                )?,
            }
        }
    };
    measure(open, settings, &graph, true, since)
}

fn labels_graph(network: &Network, settings: &Settings, labels: usize) -> Result<Graph, GraphError> {
    let mut graph = Graph::new();
    let [d, h, w] = settings.size;
    let shape = [settings.batch, settings.channels, d, h, w];
    let image = graph.input("image", Spec::flat(&shape))?;
    let mut builder = Builder::new(&mut graph, false);
    let logits = network.build(&mut builder, image, labels)?;
    let labels = graph.push1(ArgMax, &[logits])?;
    graph.keep("labels", labels);
    Ok(graph)
}

fn layer_graph(layer: &Layer, settings: &Settings, backward: bool) -> Result<Graph, GraphError> {
    let mut graph = Graph::new();
    let [d, h, w] = settings.size;
    let shape = [settings.batch, settings.channels, d, h, w];
    let spec = match layer.input_gradient {
        true => Spec::map(shape),
        false => Spec::flat(&shape),
    };
    let image = graph.input("image", spec)?;
    let terms = if layer.binary { 2 } else { 1 };
    let offset = graph.parameter("offset", &[1, layer.offsets, 1, terms, 3], Init::Normal(0.05))?;
    let columns = layer.offsets * settings.channels / layer.groups;
    let weight = graph.parameter("weight", &[layer.outputs, columns, 1, 1, 1], Init::Normal(0.1))?;
    let grid = Locations::Grid(settings.size.map(|n| n.div_ceil(4)));
    let y = obelisk_layer(&mut graph, image, offset, weight, None, grid, layer.groups)?;
    graph.keep("y", y);
    if backward {
        let upstream = graph.input("upstream", graph.spec(y).clone())?;
        let mut wanted = vec![weight, offset];
        wanted.extend(layer.input_gradient.then_some(image));
        for (i, gradient) in graph
            .gradients_from(&[(y, upstream)], &wanted)?
            .into_iter()
            .enumerate()
        {
            graph.keep(&format!("gradient {i}"), gradient.expect("y depends on it"));
        }
    }
    Ok(graph)
}

fn measure(
    open: Open,
    settings: &Settings,
    graph: &Graph,
    training: bool,
    since: Instant,
) -> Result<Report, BenchError> {
    let device = open()?;
    let plan = Plan::new(graph, device.caps())?;
    tracing::debug!("{plan}");
    let arenas = if training { 4 } else { 1 };
    let planned_bytes =
        plan.slot_bytes() + plan.texture_bytes() + arenas * plan.parameters.bytes + plan.states.bytes;
    let compiling = Instant::now();
    let weights = pollster::block_on(Weights::new(&device, &plan, training))?;
    let mut executable = pollster::block_on(Executable::new(&device, plan, &weights))?;
    let pipelines_seconds = compiling.elapsed().as_secs_f64();
    weights.upload(&device, &initialise(graph, 1))?;
    let resident_bytes = upload_inputs(&device, &mut executable, settings)?;
    let step = StepScalars {
        learning_rate: 1e-3,
        ..StepScalars::default()
    };
    executable.submit(&device, &step)?;
    let result = executable.plan().kept[0].0.clone();
    pollster::block_on(executable.read(&device, &result))?;
    let first_result_seconds = since.elapsed().as_secs_f64();

    let mut seconds = Vec::new();
    let computed_before = processor_seconds();
    for _ in 0..settings.steps.max(1) {
        let start = Instant::now();
        executable.submit(&device, &step)?;
        device.wait()?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    let computed = processor_seconds()
        .zip(computed_before)
        .map(|(after, before)| (after - before) / seconds.len() as f64);
    let memory = device.memory();
    let peak_rss_bytes = peak_rss_bytes();
    let (mut kernels, mut timestamps, mut best) = (Vec::new(), false, None);
    if settings.per_kernel {
        (kernels, timestamps) = time_kernels(&device, &executable, &step)?;
        best = Some(ceilings(&device)?);
    }
    let plan = executable.plan();
    Ok(Report {
        adapter: device.adapter().clone(),
        forms: device.caps().forms,
        ceilings: best,
        timestamps,
        measurement: Measurement {
            seconds: Spread::of(seconds),
            processor_seconds: computed,
            first_result_seconds,
            pipelines_seconds,
            dispatches: plan.launches.len(),
            gigaflop: plan.flops() as f64 / 1e9,
            planned_bytes,
            resident_bytes,
            memory,
            peak_rss_bytes,
            kernels,
        },
    })
}

/// Noise for images and locations, every class for labels, the identity for the augmentation: values that no kernel can
/// skip. Returns the bytes of the resident images.
fn upload_inputs(
    device: &Device,
    executable: &mut Executable,
    settings: &Settings,
) -> Result<u64, BenchError> {
    let labels = match settings.subject {
        Subject::Network { labels, .. } => labels as u32,
        Subject::Layer(_) => 1,
    };
    let tensor = |name: &str, shape: &[usize]| {
        Tensor::from_fn(shape, |i| match name.split('.').next() {
            Some("labels") => (scrambled(i) % labels) as f32,
            Some("class_weights") => 1.0,
            Some("theta") => f32::from([0, 5, 10].contains(&(i % 12))),
            _ => scrambled(i) as f32 / 2f32.powi(31) - 1.0,
        })
    };
    for (name, _, spec) in &executable.plan().inputs {
        executable.upload(device, name, &tensor(name, &spec.shape))?;
    }
    let mut bytes = 0;
    for input in executable.plan().residents.clone() {
        let image = tensor(&input.name, &input.spec.shape);
        let resident = pollster::block_on(Resident::upload(device, &image, input.spec))?;
        bytes += resident.bytes();
        pollster::block_on(executable.bind(device, &input.name, &resident))?;
    }
    Ok(bytes)
}

/// Seconds of benchmarks: wall time, and on a driver that computes on the processor the time that this process's threads
/// have computed, over the cores (Linux), which is what a run takes when nothing else runs.
pub fn clock(device: &Device) -> impl Fn() -> f64 + use<> {
    let start = Instant::now();
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get()) as f64;
    let cpu = device.caps().target.is_cpu();
    move || match processor_seconds().filter(|_| cpu) {
        Some(seconds) => seconds / cores,
        None => start.elapsed().as_secs_f64(),
    }
}

/// The fastest of three runs of each kernel, and whether the adapter's clock timed them.
fn time_kernels(
    device: &Device,
    executable: &Executable,
    step: &StepScalars,
) -> Result<(Vec<Kernel>, bool), BenchError> {
    // On a driver that computes on the processor others take time away, which its clock doesn't show.
    let mut timestamps = !device.caps().target.is_cpu();
    let mut fastest: Vec<f64> = vec![f64::INFINITY; executable.plan().launches.len()];
    for _ in 0..3 {
        let stamped = match timestamps {
            true => pollster::block_on(executable.submit_with_timestamps(device, step))?,
            false => None,
        };
        timestamps = stamped.is_some();
        let seconds = match stamped {
            Some(seconds) => seconds,
            None => executable.submit_timed(device, step, clock(device))?,
        };
        for (best, seconds) in fastest.iter_mut().zip(seconds) {
            *best = best.min(seconds);
        }
    }
    let kernel = |(launch, seconds): (&crate::plan::Launch, f64)| Kernel {
        op: launch.op,
        kernel: launch.dispatch.kernel(),
        seconds,
        flop: launch.dispatch.flops,
        bytes: launch.bound.iter().map(|b| b.size).sum(),
    };
    let launches = executable.plan().launches.iter();
    Ok((launches.zip(fastest).map(kernel).collect(), timestamps))
}

/// The most memory that the process had at once, from /proc (Linux).
pub fn peak_rss_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes << 10)
}

/// Seconds that this process's threads have computed, all added (Linux): what a shared machine takes away does not count.
pub fn processor_seconds() -> Option<f64> {
    let nanoseconds = |task: std::fs::DirEntry| -> Option<f64> {
        let stat = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        stat.split_whitespace().next()?.parse().ok()
    };
    let tasks = std::fs::read_dir("/proc/self/task").ok()?;
    Some(tasks.flatten().filter_map(nanoseconds).sum::<f64>() / 1e9)
}

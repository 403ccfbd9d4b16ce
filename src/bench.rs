//! What a network costs on an adapter: seconds, device memory, how long until the first result, and each kernel against
//! what the adapter reaches at best.

mod ceilings;

use std::time::Instant;

use serde::Serialize;

pub use ceilings::{Ceilings, ceilings, copy_plan, fma_plan};

use crate::gpu::{AdapterSummary, Device, DeviceOptions, Executable, GpuError, Memory, Weights};
use crate::graph::{Graph, GraphError};
use crate::model::{self, Builder, Network};
use crate::op::StepScalars;
use crate::op::arg_max::ArgMax;
use crate::plan::Plan;
use crate::tensor::{Spec, Tensor};
use crate::train::{Loss, training_graph};
use crate::weights::initialise;

/// What can go wrong while measuring.
#[derive(Debug, thiserror::Error)]
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
    /// Network's name.
    pub arch: String,
    /// Images `[batch, channels, D, H, W]`.
    pub size: [usize; 3],
    /// Images at once.
    pub batch: usize,
    /// Input channels.
    pub channels: usize,
    /// Classes.
    pub labels: usize,
    /// Runs that are timed, at least one.
    pub steps: usize,
    /// What training minimises.
    pub loss: Loss,
    /// Whether training steps augment their images and labels on the device.
    pub augment: bool,
    /// Also time each kernel and measure the adapter's ceilings.
    pub per_kernel: bool,
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
    /// Device memory as it was, uploads and read-backs included.
    pub memory: Memory,
    /// The process's largest resident set so far (Linux): all of its memory, and on software adapters the device's too.
    pub peak_rss_bytes: Option<u64>,
    /// Where the time of a submission goes; empty unless asked for.
    pub kernels: Vec<Kernel>,
}

/// One kernel of a submission.
#[derive(Clone, Debug, Serialize)]
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
pub struct Report {
    /// The adapter.
    pub adapter: AdapterSummary,
    /// What it reaches at best; measured with the kernels' times.
    pub ceilings: Option<Ceilings>,
    /// What was measured.
    pub measurement: Measurement,
    /// Whether kernels were timed by the adapter's clock; otherwise each was waited for, which adds to short ones.
    pub timestamps: bool,
}

/// Inference: images to labels, as predicting without resampling does it.
pub fn inference(options: &DeviceOptions, settings: &Settings, since: Instant) -> Result<Report, BenchError> {
    let network = model::find(&settings.arch)?;
    let graph = labels_graph(network, settings)?;
    measure(options, settings, &graph, "labels", false, since)
}

/// Training steps: loss, gradients, Adam.
pub fn training(options: &DeviceOptions, settings: &Settings, since: Instant) -> Result<Report, BenchError> {
    let network = model::find(&settings.arch)?;
    let [d, h, w] = settings.size;
    let shape = [settings.batch, settings.channels, d, h, w];
    let graph = training_graph(network, shape, settings.labels, settings.loss, settings.augment)?;
    measure(options, settings, &graph, "loss", true, since)
}

fn labels_graph(network: &Network, settings: &Settings) -> Result<Graph, GraphError> {
    let mut graph = Graph::new();
    let [d, h, w] = settings.size;
    let shape = [settings.batch, settings.channels, d, h, w];
    let image = graph.input("image", Spec::flat(&shape))?;
    let mut builder = Builder {
        graph: &mut graph,
        training: false,
    };
    let logits = (network.build)(&mut builder, image, settings.labels)?;
    let labels = graph.push1(ArgMax, &[logits])?;
    graph.keep("labels", labels);
    Ok(graph)
}

fn measure(
    options: &DeviceOptions,
    settings: &Settings,
    graph: &Graph,
    result: &str,
    training: bool,
    since: Instant,
) -> Result<Report, BenchError> {
    // A device of its own: its memory starts empty and its pipelines are compiled anew.
    let device = pollster::block_on(Device::open(options))?;
    let plan = Plan::new(graph, device.caps())?;
    tracing::debug!("{plan}");
    let arenas = if training { 4 } else { 1 };
    let planned_bytes = plan.slot_bytes() + arenas * plan.parameters.bytes + plan.states.bytes;
    let compiling = Instant::now();
    let weights = pollster::block_on(Weights::new(&device, &plan, training))?;
    let executable = pollster::block_on(Executable::new(&device, plan, &weights))?;
    let pipelines_seconds = compiling.elapsed().as_secs_f64();
    weights.upload(&device, &initialise(graph, 1))?;
    upload_inputs(&device, &executable, settings)?;
    let step = StepScalars {
        learning_rate: 1e-3,
        ..StepScalars::default()
    };
    executable.submit(&device, &step)?;
    pollster::block_on(executable.read(&device, result))?;
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
            memory,
            peak_rss_bytes,
            kernels,
        },
    })
}

/// Noise for images, every class for labels, the identity for the augmentation: values that no kernel can skip.
fn upload_inputs(device: &Device, executable: &Executable, settings: &Settings) -> Result<(), BenchError> {
    let labels = settings.labels as u32;
    for (name, _, spec) in &executable.plan().inputs {
        let data = |i: usize| match name.as_str() {
            "labels" => (scrambled(i) % labels) as f32,
            "class_weights" => 1.0,
            "theta" => f32::from([0, 5, 10].contains(&(i % 12))),
            _ => scrambled(i) as f32 / 2f32.powi(31) - 1.0,
        };
        executable.upload(device, name, &Tensor::from_fn(&spec.shape, data))?;
    }
    Ok(())
}

/// Numbers without a pattern that a cache or a branch predictor could use.
fn scrambled(i: usize) -> u32 {
    let h = (i as u32).wrapping_mul(0x9E37_79B1);
    let h = (h ^ (h >> 15)).wrapping_mul(0x2C1B_3C6D);
    h ^ (h >> 13)
}

/// The fastest of three runs of each kernel, and whether the adapter's clock timed them.
fn time_kernels(
    device: &Device,
    executable: &Executable,
    step: &StepScalars,
) -> Result<(Vec<Kernel>, bool), BenchError> {
    let mut timestamps = true;
    let mut fastest: Vec<f64> = vec![f64::INFINITY; executable.plan().launches.len()];
    for _ in 0..3 {
        let stamped = match timestamps {
            true => pollster::block_on(executable.submit_with_timestamps(device, step))?,
            false => None,
        };
        timestamps = stamped.is_some();
        let seconds = match stamped {
            Some(seconds) => seconds,
            None => executable.submit_timed(device, step)?,
        };
        for (best, seconds) in fastest.iter_mut().zip(seconds) {
            *best = best.min(seconds);
        }
    }
    let kernel = |(launch, seconds): (&crate::plan::Launch, f64)| Kernel {
        op: launch.op,
        kernel: format!("{}:{}", launch.dispatch.shader.name, launch.dispatch.entry),
        seconds,
        flop: launch.dispatch.flops,
        bytes: launch.bound.iter().map(|b| b.size).sum(),
    };
    let launches = executable.plan().launches.iter();
    Ok((launches.zip(fastest).map(kernel).collect(), timestamps))
}

/// The most memory that the process had at once, where /proc tells (Linux).
pub fn peak_rss_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes << 10)
}

/// Seconds that this process's threads have computed (Linux).
fn processor_seconds() -> Option<f64> {
    let nanoseconds = |task: std::fs::DirEntry| -> Option<f64> {
        let stat = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        stat.split_whitespace().next()?.parse().ok()
    };
    let tasks = std::fs::read_dir("/proc/self/task").ok()?;
    Some(tasks.flatten().filter_map(nanoseconds).sum::<f64>() / 1e9)
}

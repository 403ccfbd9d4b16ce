//! The operations of a network that walk memory rather than multiply, kernel by kernel: `cargo bench --bench kernels`,
//! with words of their names to run some.
//!
//! Prints milliseconds of each kernel and the gigabytes a second that it binds. Times are
//! `obelisk::bench::clock`'s, the least of several runs.

use std::collections::{BTreeMap, HashMap};

use obelisk::bench::clock;
use obelisk::gpu::{Device, DeviceOptions, Executable, Weights};
use obelisk::graph::{Graph, GraphError, Init, Value};
use obelisk::op::StepScalars;
use obelisk::op::activation::leaky_relu;
use obelisk::op::add::Add;
use obelisk::op::batch_norm::batch_norm;
use obelisk::op::concat::concat;
use obelisk::op::conv3d::Conv3dBiasGradient;
use obelisk::op::cross_entropy::{cross_entropy, hard_mining};
use obelisk::op::soft_dice::soft_dice;
use obelisk::op::upsample::Upsample;
use obelisk::plan::Plan;
use obelisk::tensor::{Spec, Tensor};

/// Adds an operation on a map of so many channels and this size to the graph.
type Build = fn(&mut Graph, usize, [usize; 3]) -> Result<Value, GraphError>;

/// Name, channels, size, operation.
const CASES: &[(&str, usize, usize, Build)] = &[
    ("batch norm, full size", 9, 144, norm),
    ("batch norm, half size", 16, 72, norm),
    ("batch norm, quarter size", 128, 36, norm),
    ("bias gradient", 9, 144, bias_gradient),
    ("cross-entropy", 9, 144, ce),
    ("hard mining", 9, 144, mining),
    ("soft dice", 9, 144, dice),
    ("upsampling", 12, 72, upsampled),
    ("leaky relu", 128, 36, leaky),
    ("concatenation", 128, 36, joined),
    ("sum", 16, 72, sum),
];

/// Runs of each case.
const RUNS: usize = 5;

fn map(graph: &mut Graph, name: &str, channels: usize, [d, h, w]: [usize; 3]) -> Result<Value, GraphError> {
    graph.input(name, Spec::map([1, channels, d, h, w]))
}

fn labels(graph: &mut Graph, [d, h, w]: [usize; 3]) -> Result<Value, GraphError> {
    graph.input("labels", Spec::flat(&[1, 1, d, h, w]))
}

fn norm(graph: &mut Graph, channels: usize, size: [usize; 3]) -> Result<Value, GraphError> {
    let x = map(graph, "x", channels, size)?;
    let gamma = graph.parameter("gamma", &[channels], Init::Constant(1.0))?;
    let beta = graph.parameter("beta", &[channels], Init::Constant(0.0))?;
    let mean = graph.state("mean", &[channels], Init::Constant(0.0))?;
    let variance = graph.state("variance", &[channels], Init::Constant(1.0))?;
    batch_norm(graph, x, gamma, beta, mean, variance, Some(0.025), true)
}

fn bias_gradient(graph: &mut Graph, channels: usize, size: [usize; 3]) -> Result<Value, GraphError> {
    let x = map(graph, "x", channels, size)?;
    graph.push1(Conv3dBiasGradient, &[x])
}

fn ce(graph: &mut Graph, channels: usize, size: [usize; 3]) -> Result<Value, GraphError> {
    let (x, labels) = (map(graph, "x", channels, size)?, labels(graph, size)?);
    cross_entropy(graph, x, labels, None)
}

fn mining(graph: &mut Graph, channels: usize, size: [usize; 3]) -> Result<Value, GraphError> {
    let (x, labels) = (map(graph, "x", channels, size)?, labels(graph, size)?);
    hard_mining(graph, x, labels, None, 0.25)
}

fn dice(graph: &mut Graph, channels: usize, size: [usize; 3]) -> Result<Value, GraphError> {
    let (x, labels) = (map(graph, "x", channels, size)?, labels(graph, size)?);
    soft_dice(graph, x, labels, false)
}

fn upsampled(graph: &mut Graph, channels: usize, size: [usize; 3]) -> Result<Value, GraphError> {
    let x = map(graph, "x", channels, size)?;
    graph.push1(
        Upsample {
            size: size.map(|s| 2 * s),
        },
        &[x],
    )
}

fn leaky(graph: &mut Graph, channels: usize, size: [usize; 3]) -> Result<Value, GraphError> {
    let x = map(graph, "x", channels, size)?;
    leaky_relu(graph, x, 0.025)
}

fn joined(graph: &mut Graph, channels: usize, size: [usize; 3]) -> Result<Value, GraphError> {
    let (x, other) = (map(graph, "x", channels, size)?, map(graph, "other", 32, size)?);
    concat(graph, &[x, other])
}

fn sum(graph: &mut Graph, channels: usize, size: [usize; 3]) -> Result<Value, GraphError> {
    let (x, other) = (
        map(graph, "x", channels, size)?,
        map(graph, "other", channels, size)?,
    );
    graph.push1(Add, &[x, other])
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let device = pollster::block_on(Device::open(&DeviceOptions::default()))?;
    println!("{} ({})", device.adapter().name, device.adapter().driver);
    let words: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    for case in CASES {
        if words.is_empty() || words.iter().any(|w| case.0.contains(w.as_str())) {
            pollster::block_on(bench(&device, case))?;
        }
    }
    Ok(())
}

async fn bench(
    device: &Device,
    &(name, channels, size, build): &(&str, usize, usize, Build),
) -> Result<(), Box<dyn std::error::Error>> {
    let mut graph = Graph::new();
    let y = build(&mut graph, channels, [size; 3])?;
    graph.keep("y", y);
    // A gradient has none of its own.
    let differentiable = graph.spec(y).shape.len() == 5 || graph.spec(y).shape == [1];
    if differentiable {
        let upstream = graph.input("upstream", graph.spec(y).clone())?;
        let wrt: Vec<Value> = ["x", "gamma", "beta"]
            .iter()
            .filter_map(|n| graph.find(n))
            .collect();
        let gradients = graph.gradients_from(&[(y, upstream)], &wrt)?;
        for (i, gradient) in gradients.into_iter().flatten().enumerate() {
            graph.keep(&format!("gradient {i}"), gradient);
        }
    }
    let noise = |shape: &[usize]| Tensor::from_fn(shape, |i| ((i * 7919 + 13) % 1009) as f32 / 1009.0 - 0.5);
    let plan = Plan::new(&graph, device.caps())?;
    let weights = Weights::new(device, &plan, true).await?;
    let start: HashMap<String, Tensor> = obelisk::weights::initialise(&graph, 1);
    weights.upload(device, &start)?;
    let executable = Executable::new(device, plan, &weights).await?;
    for (input, _, spec) in executable.plan().inputs.clone() {
        let data = match input.as_str() {
            "labels" => Tensor::from_fn(&spec.shape, |i| (i % channels) as f32),
            _ => noise(&spec.shape),
        };
        executable.upload(device, &input, &data)?;
    }
    let step = StepScalars::default();
    executable.submit_timed(device, &step, clock(device))?;
    let mut least = executable.submit_timed(device, &step, clock(device))?;
    for _ in 1..RUNS {
        let again = executable.submit_timed(device, &step, clock(device))?;
        least.iter_mut().zip(again).for_each(|(s, a)| *s = s.min(a));
    }
    let mut kernels: BTreeMap<(usize, String), (f64, u64)> = BTreeMap::new();
    for (launch, seconds) in executable.plan().launches.iter().zip(&least) {
        let kernel = format!(
            "{}, {}:{}",
            launch.op,
            launch.dispatch.shader().name(),
            launch.dispatch.entry()
        );
        let bytes: u64 = launch.bound.iter().map(|b| b.size).sum();
        let sum = kernels.entry((launch.node, kernel)).or_default();
        *sum = (sum.0 + seconds, sum.1 + bytes);
    }
    println!(
        "{name}, {channels} x {size}³: {:.2} ms",
        least.iter().sum::<f64>() * 1e3
    );
    for ((_, kernel), (seconds, bytes)) in kernels {
        println!(
            "    {:8.3} ms {:6.1} GB/s  {kernel}",
            seconds * 1e3,
            bytes as f64 / seconds / 1e9
        );
    }
    Ok(())
}

//! Every convolution of the hybrid network with its gradients, kernel by kernel: `cargo bench --bench conv3d`.
//!
//! Prints, for each, milliseconds and GFLOP/s (the least of five runs) of the forward pass, the input gradient and the
//! weight and bias gradients, and their sums, which is what a training step spends in convolutions.

use std::collections::HashMap;
use std::time::Instant;

use obelisk::bench::clock;
use obelisk::gpu::{Device, DeviceOptions, Executable, Weights};
use obelisk::graph::{Graph, Init, Value};
use obelisk::op::StepScalars;
use obelisk::op::conv3d::{Conv3dConfig, conv3d};
use obelisk::plan::Plan;
use obelisk::tensor::{Spec, Tensor};

/// Name, channels of the sources, outputs, kernel size, stride, input size divided by this.
type Layer = (&'static str, &'static [usize], usize, usize, usize, usize);

/// Of obelisk-hybrid with three labels.
const HYBRID: &[Layer] = &[
    ("conv0", &[1], 4, 3, 1, 1),
    ("conv1", &[4], 16, 3, 2, 1),
    ("conv11", &[16], 16, 3, 1, 2),
    ("conv2", &[16], 32, 3, 2, 2),
    ("conv22", &[32], 32, 3, 1, 4),
    ("conv3", &[32], 32, 3, 1, 4),
    ("conv6bU", &[32, 32], 32, 3, 1, 4),
    ("conv6U", &[32, 16, 16], 12, 3, 1, 2),
    ("conv7U", &[12, 4], 3, 3, 1, 1),
    ("conv77U", &[3], 3, 1, 1, 1),
    ("linear1a", &[128], 128, 1, 1, 4),
    ("linear1b", &[128], 32, 1, 1, 4),
    ("linear2a", &[512], 128, 1, 1, 8),
];

fn tensor(shape: &[usize]) -> Tensor {
    Tensor::from_fn(shape, |i| ((i * 7919 + 13) % 1009) as f32 / 1009.0 - 0.5)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let device = pollster::block_on(Device::open(&DeviceOptions::default()))?;
    println!("{} ({})", device.adapter().name, device.adapter().driver);
    let only: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let mut sums = [0.0; 3];
    for layer in HYBRID {
        if only.is_empty() || only.iter().any(|o| o == layer.0) {
            let times = pollster::block_on(bench(&device, layer, 4, [40, 56, 40]))?;
            sums.iter_mut().zip(times).for_each(|(s, t)| *s += t);
        }
    }
    println!(
        "sum: forward {:.1} ms, input {:.1} ms, weight and bias {:.1} ms",
        sums[0], sums[1], sums[2]
    );
    let large: &[(Layer, usize)] = &[
        (("72³", &[16], 16, 3, 1, 1), 72),
        (("144³", &[16], 9, 3, 1, 1), 144),
        (("144³ of 9", &[9], 9, 3, 1, 1), 144),
    ];
    for (layer, size) in large {
        if only.is_empty() || only.iter().any(|o| o == layer.0) {
            pollster::block_on(bench(&device, layer, 1, [*size; 3]))?;
        }
    }
    Ok(())
}

/// Milliseconds of the forward pass, the input gradients, the weight and bias gradients.
async fn bench(
    device: &Device,
    layer: &Layer,
    batch: usize,
    size: [usize; 3],
) -> Result<[f64; 3], Box<dyn std::error::Error>> {
    let (name, channels, outputs, kernel, stride, divided) = *layer;
    let [d, h, w] = size.map(|s| s.div_ceil(divided));
    print!("{name:9} {channels:?} -> {outputs}, {kernel}³, stride {stride}, {batch} x {d}x{h}x{w}:");
    let mut times = [0.0; 3];
    for (part, label) in ["forward", "input", "weight"].iter().enumerate() {
        if part == 1 && channels == [1] {
            continue;
        }
        let mut graph = Graph::new();
        let mut data = HashMap::new();
        let mut sources = Vec::new();
        for (i, &c) in channels.iter().enumerate() {
            let shape = [batch, c, d, h, w];
            let spec = if c == 1 {
                Spec::flat(&shape)
            } else {
                Spec::map(shape)
            };
            sources.push(graph.input(&format!("x{i}"), spec)?);
            data.insert(format!("x{i}"), tensor(&shape));
        }
        let shape = [outputs, channels.iter().sum(), kernel, kernel, kernel];
        let weight = graph.parameter("weight", &shape, Init::Constant(0.0))?;
        let bias = graph.parameter("bias", &[outputs], Init::Constant(0.0))?;
        data.insert("weight".into(), tensor(&shape));
        data.insert("bias".into(), tensor(&[outputs]));
        let config = Conv3dConfig::same(kernel, stride);
        let y = conv3d(&mut graph, &sources, weight, Some(bias), config)?;
        let upstream = graph.input("upstream", graph.spec(y).clone())?;
        data.insert("upstream".into(), tensor(graph.shape(y)));
        let wrt: Vec<Value> = match part {
            1 => sources.clone(),
            _ => vec![weight, bias],
        };
        if part == 0 {
            graph.keep("y", y);
        } else {
            for (i, gradient) in graph
                .gradients_from(&[(y, upstream)], &wrt)?
                .into_iter()
                .enumerate()
            {
                graph.keep(&format!("gradient {i}"), gradient.expect("y depends on all"));
            }
        }
        let plan = Plan::new(&graph, device.caps())?;
        let flops = plan.flops() as f64;
        let weights = Weights::new(device, &plan, true).await?;
        weights.upload(device, &data)?;
        let executable = Executable::new(device, plan, &weights).await?;
        for (name, _, _) in executable.plan().inputs.clone() {
            executable.upload(device, &name, &data[&name])?;
        }
        let step = StepScalars::default();
        let start = Instant::now();
        executable.submit(device, &step)?;
        device.wait()?;
        let first = start.elapsed().as_secs_f64() * 1e3;
        let computing = clock(device);
        let cpu = computing();
        let mut best = f64::INFINITY;
        for _ in 0..RUNS {
            let start = Instant::now();
            executable.submit(device, &step)?;
            device.wait()?;
            best = best.min(start.elapsed().as_secs_f64() * 1e3);
        }
        let cpu = (computing() - cpu) * 1e3 / RUNS as f64;
        if std::env::var_os("KERNELS").is_some() {
            let seconds = executable.submit_timed(device, &step, clock(device))?;
            for (launch, seconds) in executable.plan().launches.iter().zip(seconds) {
                let dispatch = &launch.dispatch;
                println!(
                    "\n    {:8.3} ms {}:{} {:?} {:?}",
                    seconds * 1e3,
                    dispatch.shader().name(),
                    dispatch.entry(),
                    dispatch.workgroups,
                    dispatch.constants()
                );
            }
        }
        print!(
            "  {label} {best:.2} (computed {cpu:.2}) ms {:.0} GF/s, first {first:.0}",
            flops / cpu / 1e6
        );
        times[part] = cpu;
    }
    println!();
    Ok(times)
}

const RUNS: usize = 5;

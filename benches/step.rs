//! A training step of a whole network, and where its time goes: `cargo bench --bench step -- [NETWORK [N D H W LABELS]]`.
//!
//! Stands beside pytorch_step.py: the same network, loss and sizes (obelisk-hybrid, batch 4, 40×56×40, 3 labels unless
//! said otherwise). Prints the first step (with shader compilation), the least and median of ten steps, half of what the
//! process computed a step (on two cores, what a step takes when nothing else runs), and milliseconds by operation.

use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

use obelisk::gpu::{Device, DeviceOptions, Executable, Weights};
use obelisk::graph::Init;
use obelisk::model;
use obelisk::op::StepScalars;
use obelisk::plan::Plan;
use obelisk::tensor::Tensor;
use obelisk::train::{Loss, training_graph};

const STEPS: usize = 10;

fn noise(shape: &[usize], scale: f32) -> Tensor {
    Tensor::from_fn(shape, |i| {
        let h = (i as u32).wrapping_mul(0x9E37_79B1);
        let h = (h ^ (h >> 15)).wrapping_mul(0x2C1B_3C6D);
        ((h ^ (h >> 13)) as f32 / 2f32.powi(31) - 1.0) * scale
    })
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let network = model::find(args.first().map_or("obelisk-hybrid", String::as_str))?;
    let numbers: Vec<usize> = args[args.len().min(1)..]
        .iter()
        .map(|a| a.parse())
        .collect::<Result<_, _>>()?;
    let (n, size, labels) = match numbers[..] {
        [n, d, h, w, labels] => (n, [d, h, w], labels),
        _ => (4, [40, 56, 40], 3),
    };
    let [d, h, w] = size;
    let graph = training_graph(network, [n, 1, d, h, w], labels, Loss::CrossEntropyDice, false)?;
    pollster::block_on(async {
        let device = Device::open(&DeviceOptions::default()).await?;
        let plan = Plan::new(&graph, device.caps())?;
        let start = Instant::now();
        let weights = Weights::new(&device, &plan, true).await?;
        let initial: HashMap<String, Tensor> = graph
            .values()
            .iter()
            .filter_map(|v| match v.source {
                obelisk::graph::Source::Parameter(init) | obelisk::graph::Source::State(init) => {
                    let scale = match init {
                        Init::Constant(c) => return Some((v.name.clone(), Tensor::full(&v.spec.shape, c))),
                        Init::Normal(s) => s,
                        Init::XavierNormal { fan_in, fan_out } => (2.0 / (fan_in + fan_out) as f32).sqrt(),
                    };
                    Some((v.name.clone(), noise(&v.spec.shape, scale * 3f32.sqrt())))
                }
                _ => None,
            })
            .collect();
        weights.upload(&device, &initial)?;
        let executable = Executable::new(&device, plan, &weights).await?;
        executable.upload(&device, "image", &noise(&[n, 1, d, h, w], 1.0))?;
        let random = noise(&[n, 1, d, h, w], 1.0);
        let label = |i: usize| {
            ((random.data[i] + 1.0) / 2.0 * labels as f32)
                .floor()
                .min(labels as f32 - 1.0)
        };
        executable.upload(&device, "labels", &Tensor::from_fn(&[n, 1, d, h, w], label))?;
        let step = StepScalars {
            learning_rate: 0.002,
            ..Default::default()
        };
        executable.submit(&device, &step)?;
        device.wait()?;
        println!(
            "{} on {}: {n} x {d}x{h}x{w}, {labels} labels, {} dispatches, {:.1} GFLOP, first step {:.1} s",
            network.name,
            device.adapter().name,
            executable.plan().launches.len(),
            executable.plan().flops() as f64 / 1e9,
            start.elapsed().as_secs_f64()
        );
        let computed = processor_time();
        let mut times = Vec::new();
        for _ in 0..STEPS {
            let start = Instant::now();
            executable.submit(&device, &step)?;
            device.wait()?;
            times.push(start.elapsed().as_secs_f64() * 1e3);
        }
        let computed = (processor_time() - computed) / STEPS as f64 / 2.0 * 1e3;
        times.sort_by(f64::total_cmp);
        println!(
            "step: least {:.0} ms, median {:.0} ms, computed {computed:.0} ms",
            times[0],
            times[STEPS / 2]
        );
        let mut by_op: BTreeMap<&str, (usize, f64)> = BTreeMap::new();
        let runs = [
            executable.submit_timed(&device, &step)?,
            executable.submit_timed(&device, &step)?,
            executable.submit_timed(&device, &step)?,
        ];
        for (i, launch) in executable.plan().launches.iter().enumerate() {
            let best = runs.iter().map(|r| r[i]).fold(f64::INFINITY, f64::min);
            let entry = by_op.entry(launch.op).or_default();
            entry.0 += 1;
            entry.1 += best * 1e3;
        }
        let mut by_op: Vec<_> = by_op.into_iter().collect();
        by_op.sort_by(|a, b| b.1.1.total_cmp(&a.1.1));
        for (op, (count, ms)) in by_op {
            println!("{ms:8.1} ms in {count:3} dispatches of {op}");
        }
        Ok(())
    })
}

/// Seconds that this process's threads have computed: what a shared machine takes away does not count. Linux only.
fn processor_time() -> f64 {
    let tasks = std::fs::read_dir("/proc/self/task")
        .into_iter()
        .flatten()
        .flatten();
    let nanoseconds = |task: std::fs::DirEntry| -> Option<f64> {
        let stat = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        stat.split_whitespace().next()?.parse().ok()
    };
    tasks.filter_map(nanoseconds).sum::<f64>() / 1e9
}

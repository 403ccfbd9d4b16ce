//! Sparse training of the original OBELISK at several volumes: `cargo bench --bench sparse [SAMPLES] [kernels]`.
//!
//! A step reads 3 scans with SAMPLES / 3 locations each (576 in all when nothing is said). Steps at the volumes alternate
//! in one run. Device memory is the program's own count at its peak during the steps, less the resident scans.

use std::time::Instant;

use obelisk::bench::clock;
use obelisk::gpu::{Device, DeviceOptions, Executable, Resident, Weights};
use obelisk::model;
use obelisk::op::StepScalars;
use obelisk::plan::Plan;
use obelisk::predict::points::Smoother;
use obelisk::tensor::Tensor;
use obelisk::train::{Loss, sparse_training_graph};
use obelisk::weights;

const SCANS: usize = 3;
const LABELS: usize = 9;
const STEPS: usize = 25;
/// Cubes of so many voxels a side.
const SIDES: [usize; 3] = [40, 72, 144];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let words: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let samples = words.iter().find_map(|w| w.parse().ok()).unwrap_or(576) / SCANS;
    let device = pollster::block_on(Device::open(&DeviceOptions::default()))?;
    println!("{} ({})", device.adapter().name, device.adapter().driver);
    if words.iter().any(|w| w == "kernels") {
        return pollster::block_on(kernels(&device, samples));
    }
    pollster::block_on(compare(&device, samples))
}

/// A volume's scans and step.
struct Run {
    side: usize,
    scans: Vec<Resident>,
    seconds: f64,
    executable: Executable,
    _weights: Weights,
    /// Peak of the device's memory during some steps, less what there was before the network: the scans.
    bytes: u64,
    times: Vec<f64>,
}

async fn prepare(device: &Device, side: usize, samples: usize) -> Result<Run, Box<dyn std::error::Error>> {
    let network = &model::find("obelisk")?;
    let points = network.points.as_ref().expect("obelisk looks at points");
    let shape = [1, side, side, side];
    let image = Tensor::from_fn(&shape, |i| hash(i as u32));
    // The first scan of a size compiles the kernels.
    let smoother = Smoother::new(device, points, shape).await?;
    smoother.smooth(device, image.clone()).await?;
    device.wait()?;
    let mut scans = Vec::new();
    let start = Instant::now();
    for _ in 0..SCANS {
        scans.push(smoother.smooth(device, image.clone()).await?);
    }
    device.wait()?;
    let seconds = start.elapsed().as_secs_f64() / SCANS as f64;
    drop(smoother);

    let before = device.memory().live;
    let graph = sparse_training_graph(network, shape, SCANS, samples, LABELS, Loss::HardMining, true)?;
    let plan = Plan::new(&graph, device.caps())?;
    let weights = Weights::new(device, &plan, true).await?;
    weights.upload(device, &weights::initialise(&graph, 1))?;
    let executable = Executable::new(device, plan, &weights).await?;
    let mut run = Run {
        side,
        scans,
        seconds,
        executable,
        _weights: weights,
        bytes: 0,
        times: Vec::new(),
    };
    // The first steps move the scans to where the kernels read them, one after the other.
    for number in 0..3 {
        run.step(device, samples, number).await?;
    }
    device.reset_peak();
    for number in 0..3 {
        run.step(device, samples, number).await?;
    }
    run.bytes = device.memory().peak - before;
    Ok(run)
}

impl Run {
    /// One step as training does it: draws uploaded, scans bound, kernels, loss read back.
    async fn step(
        &mut self,
        device: &Device,
        samples: usize,
        number: usize,
    ) -> Result<(), Box<dyn std::error::Error>> {
        let start = Instant::now();
        for slot in 0..SCANS {
            let executable = &mut self.executable;
            let scan = &self.scans[(slot + number) % SCANS];
            executable.bind(device, &format!("image.{slot}"), scan).await?;
            let seed = (number * SCANS + slot) as u32 * 100_000;
            let points = Tensor::from_fn(&[1, samples, 3], |i| 2.0 * hash(seed + i as u32) - 1.0);
            executable.upload(device, &format!("points.{slot}"), &points)?;
            let theta = Tensor::from_fn(&[1, 3, 4], |i| (i % 5 == 0) as u8 as f32 + 0.05 * hash(i as u32));
            executable.upload(device, &format!("theta.{slot}"), &theta)?;
        }
        let labels = Tensor::from_fn(&[SCANS, 1, 1, 1, samples], |i| (i % LABELS) as f32);
        self.executable.upload(device, "labels", &labels)?;
        self.executable
            .upload(device, "class_weights", &Tensor::full(&[LABELS], 1.0))?;
        let scalars = StepScalars {
            step: number as u32,
            seed: 1,
            learning_rate: 0.002,
            weight_decay: 1e-5,
        };
        self.executable.submit(device, &scalars)?;
        let loss = self.executable.read(device, "loss").await?.data[0];
        assert!(loss.is_finite(), "{loss}");
        self.times.push(start.elapsed().as_secs_f64());
        Ok(())
    }

    fn median(&self) -> f64 {
        let mut times = self.times[3..].to_vec(); // the first steps compile kernels
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    }
}

async fn compare(device: &Device, samples: usize) -> Result<(), Box<dyn std::error::Error>> {
    let mut runs = Vec::new();
    for side in SIDES {
        runs.push(prepare(device, side, samples).await?);
    }
    for number in 0..STEPS {
        for run in &mut runs {
            run.step(device, samples, number).await?;
        }
    }
    println!(
        "{} locations of {SCANS} scans a step, {STEPS} steps alternating, median\n",
        samples * SCANS
    );
    println!(
        "| volume | step | device memory of the step | scan on the device | upload and smoothing of a scan |"
    );
    println!("|---|---|---|---|---|");
    let mib = |bytes: u64| bytes as f64 / 1048576.0;
    for run in &runs {
        println!(
            "| {}³ | {:.1} ms | {:.2} MiB | {:.2} MiB | {:.1} ms |",
            run.side,
            run.median() * 1e3,
            mib(run.bytes),
            mib(run.scans[0].bytes()),
            run.seconds * 1e3
        );
    }
    let [small, large] = [1, 2].map(|i: usize| &runs[i]);
    println!(
        "\n{}³ against {}³: memory {:+.1} %, time {:+.1} %",
        large.side,
        small.side,
        (large.bytes as f64 / small.bytes as f64 - 1.0) * 100.0,
        (large.median() / small.median() - 1.0) * 100.0
    );
    Ok(())
}

/// Milliseconds of each kernel of a step, the least of five.
async fn kernels(device: &Device, samples: usize) -> Result<(), Box<dyn std::error::Error>> {
    let mut run = prepare(device, 72, samples).await?;
    for number in 0..4 {
        run.step(device, samples, number).await?;
    }
    println!("a step: {:.1} ms", run.median() * 1e3);
    let step = StepScalars::default();
    let mut least = run.executable.submit_timed(device, &step, clock(device))?;
    for _ in 0..5 {
        let again = run.executable.submit_timed(device, &step, clock(device))?;
        least.iter_mut().zip(again).for_each(|(s, a)| *s = s.min(a));
    }
    for (launch, seconds) in run.executable.plan().launches.iter().zip(least) {
        let d = &launch.dispatch;
        println!(
            "{:9.3} ms  {}: {}:{} {:?}",
            seconds * 1e3,
            launch.op,
            d.shader().name(),
            d.entry(),
            d.workgroups
        );
    }
    Ok(())
}

/// Numbers in [0, 1), the same for the same index.
fn hash(i: u32) -> f32 {
    let h = (i ^ i >> 15).wrapping_mul(0x2C1B_3C6D);
    ((h ^ h >> 12).wrapping_mul(0x297A_2D39) >> 8) as f32 / 16_777_216.0
}

//! Steps on several ranks over a simulated network, beside steps of one process: `cargo bench --bench ranks [NETWORK] [dense]
//! [--simulate-network MICROSECONDS,GIGABITS]`.
//!
//! One process computes what one rank of N would: a batch a step. An exchange gives it its own part in the others' places, after as
//! long as the network would have taken: the latency, and the bytes that leave this rank at the bandwidth. Efficiency is the time of
//! a step of one process by that of N ranks, which is the ranks' throughput by N times that of one.

use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, Instant};

use obelisk::dataset::Dataset;
use obelisk::gpu::{Device, DeviceOptions};
use obelisk::plan::Plan;
use obelisk::preprocess::{Overrides, Preprocessing};
use obelisk::train::{
    Event, Exchange, ExchangeError, Settings, TrainError, TrainingData, step_graph, train_on_ranks,
};

/// Steps that are timed, and those before.
const STEPS: usize = 20;
const WARM: usize = 4;
const ALL: usize = STEPS + WARM;
const RANKS: [usize; 4] = [1, 2, 4, 8];
const ROUNDS: usize = 3;

/// Rank 0 of several over a network.
struct Simulated {
    size: usize,
    latency: Duration,
    bytes_a_second: f64,
    spent: Duration,
}

impl Exchange for Simulated {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        self.size
    }

    fn exchange(&mut self, parts: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>, ExchangeError> {
        let start = Instant::now();
        let sent: usize = parts[1..].iter().map(Vec::len).sum();
        if self.size > 1 {
            std::thread::sleep(self.latency + Duration::from_secs_f64(sent as f64 / self.bytes_a_second));
        }
        let received = vec![parts[0].clone(); self.size];
        self.spent += start.elapsed();
        Ok(received)
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let words: Vec<String> = std::env::args()
        .skip(1)
        .filter(|word| word != "--bench")
        .collect();
    let network = words.iter().position(|word| word == "--simulate-network");
    let (latency, gigabits) = match network.and_then(|at| words.get(at + 1)?.split_once(',')) {
        Some((latency, gigabits)) => (latency.parse()?, gigabits.parse()?),
        None => (50.0, 10.0),
    };
    let arch = words.first().filter(|word| obelisk::model::find(word).is_ok());
    let arch = arch.map_or("obelisk-hybrid", String::as_str);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/data");
    let settings = match words.iter().any(|word| word == "dense") {
        true => Settings::dense(folder.clone(), arch),
        false => Settings::new(folder.clone(), arch),
    };
    let device = pollster::block_on(Device::open(&DeviceOptions::default()))?;
    println!("{} ({})", device.adapter().name, device.adapter().driver);
    let dataset = Dataset::open(&folder)?;
    let overrides = Overrides {
        grid: Some([40, 56, 40]),
        ..Default::default()
    };
    let preprocessing = Preprocessing::derive(&dataset, overrides)?;
    let data = TrainingData::load(&dataset, preprocessing, None)?;
    let plan = Plan::new(&step_graph(&settings, &data.preprocessing)?, device.caps())?;
    println!(
        "{arch}, batches of {} of 40×56×40, {} bytes of gradients; {latency} µs, {gigabits} Gb/s",
        settings.batch, plan.parameters.bytes
    );
    println!("ranks  ms a step  ms of exchange  efficiency");
    for _ in 0..ROUNDS {
        let mut alone = f64::NAN;
        for size in RANKS {
            let mut exchange = Simulated {
                size,
                latency: Duration::from_secs_f64(latency * 1e-6),
                bytes_a_second: gigabits * 1e9 / 8.0,
                spent: Duration::ZERO,
            };
            let step = time(&device, &settings, &data, &mut exchange)?;
            if size == 1 {
                alone = step;
            }
            println!(
                "{size:5}  {:9.2}  {:14.2}  {:10.3}",
                1e3 * step,
                1e3 * exchange.spent.as_secs_f64() / ALL as f64,
                alone / step
            );
        }
    }
    Ok(())
}

/// The median seconds of a step.
fn time(
    device: &Device,
    settings: &Settings,
    data: &TrainingData,
    exchange: &mut Simulated,
) -> Result<f64, Box<dyn std::error::Error>> {
    let mut settings = settings.clone();
    settings.accumulate = exchange.size;
    let batches = (ALL + 2) * exchange.size;
    settings.steps = settings.samples.map(|_| batches);
    let mut data = data.clone();
    let cases = data.training.iter().cloned().cycle();
    if settings.samples.is_none() {
        data.training = cases.take(batches * settings.batch).collect();
    }
    let run = tempfile::tempdir()?;
    let (mut times, mut last) = (Vec::new(), Instant::now());
    let report = |event: Event| {
        if let Event::Step { .. } = event {
            times.push(last.elapsed().as_secs_f64());
            last = Instant::now();
        }
        match times.len() {
            0..ALL => ControlFlow::Continue(()),
            _ => ControlFlow::Break(()),
        }
    };
    let trained = train_on_ranks(device, &settings, &data, run.path(), false, exchange, report);
    match pollster::block_on(trained) {
        Err(TrainError::Stopped { .. }) => {}
        ended => return Err(format!("it should have stopped: {:?}", ended.map(drop)).into()),
    }
    let mut times = times.split_off(WARM);
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}

use std::collections::BTreeMap;
use std::time::Instant;

use clap::Args;
use obelisk::bench::{self, Kernel, Measurement, Report, Settings};
use obelisk::gpu::DeviceOptions;
use obelisk::train::Loss;

use super::Usage;

/// `obelisk bench`
#[derive(Debug, Args)]
pub struct Bench {
    /// Network; `obelisk info` lists them
    #[arg(long, value_name = "NAME", default_value = "obelisk-hybrid")]
    arch: String,
    /// Size of the images in voxels
    #[arg(
        long,
        value_name = "D,H,W",
        value_delimiter = ',',
        default_value = "144,144,144"
    )]
    size: Vec<usize>,
    /// Images at once
    #[arg(long, value_name = "N", default_value_t = 1)]
    batch: usize,
    /// Classes, the background included
    #[arg(long, value_name = "N", default_value_t = 9)]
    labels: usize,
    /// Channels of the images
    #[arg(long, value_name = "N", default_value_t = 1)]
    channels: usize,
    /// Runs that are timed
    #[arg(long, value_name = "N", default_value_t = 5)]
    steps: usize,
    /// Measure inference only
    #[arg(long, conflicts_with = "training")]
    inference: bool,
    /// Measure training only
    #[arg(long)]
    training: bool,
    /// Training minimises the paper's loss, cross-entropy of the hardest quarter, instead of cross-entropy and soft Dice
    #[arg(long)]
    hard_mining: bool,
    /// Training steps augment their images too
    #[arg(long)]
    augment: bool,
    /// Also time each kernel, and hold it against what the adapter reaches at best
    #[arg(long)]
    per_kernel: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Bench {
    pub fn run(&self, options: &DeviceOptions, started: Instant) -> anyhow::Result<()> {
        let settings = self.settings()?;
        let mut since = started;
        let mut reports = Vec::new();
        if !self.training {
            reports.push(("inference", bench::inference(options, &settings, since)?));
            since = Instant::now();
        }
        if !self.inference {
            reports.push(("training", bench::training(options, &settings, since)?));
        }
        if self.json {
            println!("{}", self.to_json(&reports)?);
        } else {
            self.print(&reports);
        }
        Ok(())
    }

    fn settings(&self) -> Result<Settings, Usage> {
        let Ok(size) = <[usize; 3]>::try_from(self.size.clone()) else {
            return Err(Usage("--size takes three numbers, D,H,W".into()));
        };
        let counts = [self.batch, self.labels, self.channels, self.steps];
        if size.iter().chain(&counts).any(|n| *n == 0) {
            return Err(Usage(
                "--size, --batch, --labels, --channels and --steps start at 1".into(),
            ));
        }
        Ok(Settings {
            arch: self.arch.clone(),
            size,
            batch: self.batch,
            channels: self.channels,
            labels: self.labels,
            steps: self.steps,
            loss: match self.hard_mining {
                true => Loss::HardMining,
                false => Loss::CrossEntropyDice,
            },
            augment: self.augment,
            per_kernel: self.per_kernel,
        })
    }

    fn to_json(&self, reports: &[(&str, Report)]) -> serde_json::Result<String> {
        let mut all = serde_json::json!({
            "version": env!("CARGO_PKG_VERSION"), "arch": self.arch, "size": self.size, "batch": self.batch,
            "labels": self.labels, "channels": self.channels, "steps": self.steps,
        });
        for (what, report) in reports {
            all["adapter"] = serde_json::to_value(&report.adapter)?;
            if let Some(ceilings) = &report.ceilings {
                all["ceilings"] = serde_json::to_value(ceilings)?;
                all["timestamps"] = report.timestamps.into();
            }
            all[what] = serde_json::to_value(&report.measurement)?;
        }
        serde_json::to_string_pretty(&all)
    }

    fn print(&self, reports: &[(&str, Report)]) {
        let size: Vec<String> = self.size.iter().map(usize::to_string).collect();
        for (i, (what, report)) in reports.iter().enumerate() {
            if i == 0 {
                let adapter = &report.adapter;
                println!("{} ({}, {})", adapter.name, adapter.backend, adapter.driver);
                println!(
                    "{}, {} x {} x {}, {} labels",
                    self.arch,
                    self.batch,
                    self.channels,
                    size.join("x"),
                    self.labels
                );
            }
            print_measurement(what, &report.measurement);
            if let Some(ceilings) = &report.ceilings {
                println!(
                    "  the adapter at best: {:.1} GFLOP/s, {:.1} GB/s; kernels timed by {}",
                    ceilings.gigaflops,
                    ceilings.gigabytes,
                    if report.timestamps {
                        "its clock"
                    } else {
                        "waiting for each"
                    }
                );
                print_kernels(&report.measurement.kernels, ceilings);
            }
        }
    }
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

fn print_measurement(what: &str, m: &Measurement) {
    let s = m.seconds;
    println!(
        "\n{what}: {:.4} s ({:.4} to {:.4}), {:.1} GFLOP at {:.1} GFLOP/s, {} dispatches",
        s.median,
        s.min,
        s.max,
        m.gigaflop,
        m.gigaflop / s.median,
        m.dispatches
    );
    if let Some(seconds) = m.processor_seconds {
        println!("  computed {seconds:.4} s a run, all threads added");
    }
    println!(
        "  first result after {:.2} s, of which {:.2} s buffers and pipelines",
        m.first_result_seconds, m.pipelines_seconds
    );
    println!(
        "  device memory: planned {:.1} MB, peak {:.1} MB",
        megabytes(m.planned_bytes),
        megabytes(m.memory.peak)
    );
    if let Some(a) = m.memory.allocator {
        println!(
            "  allocator at the peak: {:.1} MB handed out, {:.1} MB reserved",
            megabytes(a.allocated_peak),
            megabytes(a.reserved_peak)
        );
    }
    if let Some(bytes) = m.peak_rss_bytes {
        println!("  process: {:.1} MB resident at most so far", megabytes(bytes));
    }
}

/// A line for each kernel of each operation, the slowest first.
fn print_kernels(kernels: &[Kernel], ceilings: &bench::Ceilings) {
    let mut sums: BTreeMap<(&str, &str), (usize, f64, u64, u64)> = BTreeMap::new();
    for k in kernels {
        let sum = sums.entry((k.op, &k.kernel)).or_default();
        *sum = (sum.0 + 1, sum.1 + k.seconds, sum.2 + k.flop, sum.3 + k.bytes);
    }
    let mut sums: Vec<_> = sums.into_iter().collect();
    sums.sort_by(|a, b| b.1.1.total_cmp(&a.1.1));
    println!(
        "  {:>9} {:>3}  {:>9} {:>5}  {:>7} {:>5}  operation, kernel",
        "ms", "n", "GFLOP/s", "%", "GB/s", "%"
    );
    for ((op, kernel), (count, seconds, flop, bytes)) in sums {
        let (gigaflops, gigabytes) = (flop as f64 / seconds / 1e9, bytes as f64 / seconds / 1e9);
        println!(
            "  {:9.3} {count:3}  {gigaflops:9.1} {:5.1}  {gigabytes:7.1} {:5.1}  {op}, {kernel}",
            seconds * 1e3,
            100.0 * gigaflops / ceilings.gigaflops,
            100.0 * gigabytes / ceilings.gigabytes,
        );
    }
    let all: f64 = kernels.iter().map(|k| k.seconds).sum();
    println!("  {:9.3} {:3}  in all", all * 1e3, kernels.len());
}

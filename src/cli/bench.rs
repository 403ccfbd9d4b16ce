use std::collections::BTreeMap;
use std::time::Instant;

use clap::Args;
use obelisk::bench::{self, Kernel, Layer, Measurement, Report, Settings, Subject};
use obelisk::train::Loss;

use super::device::{DeviceArguments, open_tuned};
use super::print::outln;
use super::{Usage, examples, values};

/// `obelisk bench`
#[derive(Debug, Args)]
#[command(after_help = examples!(
    "Seconds and memory of inference and of a training step": "obelisk bench --arch obelisk-hybrid",
    "Each kernel of the inference against what the adapter reaches at best":
        "obelisk bench --size 96,96,96 --inference --per-kernel"
))]
pub struct Bench {
    /// Network; `obelisk info` lists them
    #[arg(long, value_name = "NAME", default_value = obelisk::model::DEFAULT)]
    arch: String,
    /// Size of the images in voxels
    #[arg(long, value_name = "D,H,W", value_parser = values::grid, default_value = "144,144,144")]
    size: [usize; 3],
    /// Images at once
    #[arg(long, value_name = "N", value_parser = values::count, default_value_t = 1)]
    batch: usize,
    /// Classes, the background included
    #[arg(long, value_name = "N", value_parser = values::count, default_value_t = 9)]
    labels: usize,
    /// Channels of the images
    #[arg(long, value_name = "N", value_parser = values::count, default_value_t = 1)]
    channels: usize,
    /// Runs that are timed
    #[arg(long, value_name = "N", value_parser = values::count, default_value_t = 5)]
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
    /// Train so many scans a step (instead of --batch) at so many random locations each, for networks that can
    #[arg(long, value_name = "SCANS,SAMPLES", value_parser = values::counts::<2>, conflicts_with = "inference")]
    sparse: Option<[usize; 2]>,
    /// Instead of a network, one OBELISK layer on the quarter grid: offsets, output channels, groups. Training is its
    /// forward and backward pass
    #[arg(long, value_name = "K,OUT,GROUPS", value_parser = values::counts::<3>, conflicts_with_all = ["arch", "sparse"])]
    layer: Option<[usize; 3]>,
    /// The layer's coefficients are differences at two offsets
    #[arg(long, requires = "layer")]
    binary: bool,
    /// The layer's image needs its gradient, too
    #[arg(long, requires = "layer")]
    input_gradient: bool,
    /// Also time each kernel, and hold it against what the adapter reaches at best
    #[arg(long)]
    per_kernel: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    pub(super) device: DeviceArguments,
}

impl Bench {
    pub fn run(&self, started: Instant) -> anyhow::Result<()> {
        let settings = self.settings()?;
        let options = self.device.options();
        let open = || open_tuned(&options);
        let mut since = started;
        let mut reports = Vec::new();
        if !self.training && self.sparse.is_none() {
            reports.push(("inference", bench::inference(&open, &settings, since)?));
            since = Instant::now();
        }
        if !self.inference {
            reports.push(("training", bench::training(&open, &settings, since)?));
        }
        if self.json {
            outln!("{}", self.to_json(&reports)?);
        } else {
            self.print(&reports);
        }
        Ok(())
    }

    fn settings(&self) -> Result<Settings, Usage> {
        let subject = match self.layer {
            Some([offsets, outputs, groups]) => {
                let inputs = offsets * self.channels;
                if !inputs.is_multiple_of(groups) || !outputs.is_multiple_of(groups) {
                    let message = format!(
                        "--layer can't split {inputs} inputs and {outputs} outputs into {groups} groups"
                    );
                    return Err(Usage(message));
                }
                Subject::Layer(Layer {
                    offsets,
                    outputs,
                    groups,
                    binary: self.binary,
                    input_gradient: self.input_gradient,
                })
            }
            None => Subject::Network {
                arch: self.arch.clone(),
                labels: self.labels,
                loss: match self.hard_mining {
                    true => Loss::HardMining,
                    false => Loss::CrossEntropyDice,
                },
                augment: self.augment,
                samples: self.sparse.map(|[_, samples]| samples),
            },
        };
        Ok(Settings {
            subject,
            size: self.size,
            batch: self.sparse.map_or(self.batch, |[scans, _]| scans),
            channels: self.channels,
            steps: self.steps,
            per_kernel: self.per_kernel,
        })
    }

    fn to_json(&self, reports: &[(&str, Report)]) -> serde_json::Result<String> {
        let mut all = serde_json::json!({
            "version": env!("CARGO_PKG_VERSION"), "what": self.what(), "size": self.size, "steps": self.steps,
        });
        for (what, report) in reports {
            all["adapter"] = serde_json::to_value(&report.adapter)?;
            all["forms"] = serde_json::to_value(report.forms)?;
            if let Some(ceilings) = &report.ceilings {
                all["ceilings"] = serde_json::to_value(ceilings)?;
                all["timestamps"] = report.timestamps.into();
            }
            all[what] = serde_json::to_value(&report.measurement)?;
        }
        serde_json::to_string_pretty(&all)
    }

    /// What was measured, in words.
    fn what(&self) -> String {
        let size: Vec<String> = self.size.iter().map(usize::to_string).collect();
        let image = format!("{} x {}", self.channels, size.join("x"));
        match (&self.layer, &self.sparse) {
            (Some(l), _) => {
                let kind = if self.binary {
                    "pairs of offsets"
                } else {
                    "offsets"
                };
                format!(
                    "OBELISK layer, {} {kind} to {} in {} groups, {} x {image}",
                    l[0], l[1], l[2], self.batch
                )
            }
            (None, Some(s)) => format!(
                "{}, {} x {image}, {} samples each, {} labels",
                self.arch, s[0], s[1], self.labels
            ),
            (None, None) => format!("{}, {} x {image}, {} labels", self.arch, self.batch, self.labels),
        }
    }

    fn print(&self, reports: &[(&str, Report)]) {
        for (i, (what, report)) in reports.iter().enumerate() {
            if i == 0 {
                let adapter = &report.adapter;
                outln!("{} ({}, {})", adapter.name, adapter.backend, adapter.driver);
                outln!("forms: {}", report.forms);
                outln!("{}", self.what());
            }
            print_measurement(what, &report.measurement);
            if let Some(ceilings) = &report.ceilings {
                outln!(
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
    outln!(
        "\n{what}: {:.4} s ({:.4} to {:.4}), {:.1} GFLOP at {:.1} GFLOP/s, {} dispatches",
        s.median,
        s.min,
        s.max,
        m.gigaflop,
        m.gigaflop / s.median,
        m.dispatches
    );
    if let Some(seconds) = m.processor_seconds {
        outln!("  computed {seconds:.4} s a run, all threads added");
    }
    outln!(
        "  first result after {:.2} s, of which {:.2} s buffers and pipelines",
        m.first_result_seconds,
        m.pipelines_seconds
    );
    outln!(
        "  device memory: planned {:.1} MB, peak {:.1} MB",
        megabytes(m.planned_bytes),
        megabytes(m.memory.peak)
    );
    if m.resident_bytes > 0 {
        outln!(
            "  images that stay on the device: {:.1} MB; the peak beyond them: {:.1} MB",
            megabytes(m.resident_bytes),
            megabytes(m.memory.peak - m.resident_bytes)
        );
    }
    if let Some(a) = m.memory.allocator {
        outln!(
            "  allocator at the peak: {:.1} MB handed out, {:.1} MB reserved",
            megabytes(a.allocated_peak),
            megabytes(a.reserved_peak)
        );
    }
    if let Some(bytes) = m.peak_rss_bytes {
        outln!("  process: {:.1} MB resident at most so far", megabytes(bytes));
    }
}

/// A line for each kernel of each operation, the slowest first.
fn print_kernels(kernels: &[Kernel], ceilings: &bench::Ceilings) {
    #[derive(Default)]
    struct Sum {
        count: usize,
        seconds: f64,
        flop: u64,
        bytes: u64,
        floor: f64,
    }
    let mut sums: BTreeMap<(&str, &str), Sum> = BTreeMap::new();
    for k in kernels {
        let sum = sums.entry((k.op, &k.kernel)).or_default();
        sum.count += 1;
        sum.seconds += k.seconds;
        sum.flop += k.flop;
        sum.bytes += k.bytes;
        sum.floor += ceilings.floor(k);
    }
    let mut sums: Vec<_> = sums.into_iter().collect();
    sums.sort_by(|a, b| b.1.seconds.total_cmp(&a.1.seconds));
    outln!(
        "  {:>9} {:>3}  {:>9} {:>5}  {:>7} {:>5} {:>7}  operation, kernel",
        "ms",
        "n",
        "GFLOP/s",
        "%",
        "GB/s",
        "%",
        "× floor"
    );
    for ((op, kernel), sum) in sums {
        let (gigaflops, gigabytes) = (
            sum.flop as f64 / sum.seconds / 1e9,
            sum.bytes as f64 / sum.seconds / 1e9,
        );
        outln!(
            "  {:9.3} {:3}  {gigaflops:9.1} {:5.1}  {gigabytes:7.1} {:5.1} {:7.1}  {op}, {kernel}",
            sum.seconds * 1e3,
            sum.count,
            100.0 * gigaflops / ceilings.gigaflops,
            100.0 * gigabytes / ceilings.gigabytes,
            sum.seconds / sum.floor,
        );
    }
    let all: f64 = kernels.iter().map(|k| k.seconds).sum();
    let floor: f64 = kernels.iter().map(|k| ceilings.floor(k)).sum();
    outln!(
        "  {:9.3} {:3}  in all, {:.1} × the floor: what the adapter's ceilings allow, kernel by kernel",
        all * 1e3,
        kernels.len(),
        all / floor
    );
}

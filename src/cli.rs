//! Subcommands, one file each.

mod advice;
mod bench;
mod crossval;
mod evaluate;
mod import;
mod info;
mod offsets;
mod predict;
mod prepare;
mod train;

use std::path::Path;

use clap::{Parser, Subcommand};
use obelisk::gpu::{Device, DeviceOptions, FormsChoice, GpuError};
use obelisk::tune;
use obelisk::weights::WeightsError;

/// Train and run OBELISK-Net and other small 3D segmentation networks on any GPU.
#[derive(Debug, Parser)]
#[command(version, about, max_term_width = 100)]
pub struct Arguments {
    /// Part of the adapter's name, or its number in `obelisk info`
    #[arg(long, global = true, value_name = "NAME")]
    adapter: Option<String>,
    /// vulkan, metal or dx12
    #[arg(long, global = true, value_name = "API")]
    backend: Option<String>,
    /// Use only WebGPU's default limits and no optional features
    #[arg(long, global = true)]
    portable: bool,
    /// Forms of the kernels. auto: as measured once on this adapter, as a resumed training has recorded, and built in where
    /// --portable or --no-cache are given; measure: measure anew; built-in: as the adapter's properties tell; or
    /// texels=on|off
    #[arg(long, global = true, value_name = "FORMS", default_value = "auto")]
    forms: FormsChoice,
    /// Keep no compiled pipelines and no measured forms on disk (as when OBELISK_NO_CACHE is set)
    #[arg(long, global = true)]
    no_cache: bool,
    /// Say more on stderr; twice for the plans
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show the adapters, the one chosen and why, and the networks
    Info(info::Info),
    /// Make a dataset of scans and labels as they are published: turn, crop, resample
    Prepare(Box<prepare::Prepare>),
    /// Train a network on a folder of scans and labels
    Train(Box<train::Train>),
    /// Train and score every fold of several networks, and compare them in a table
    Crossval(Box<crossval::Crossval>),
    /// Segment a scan or a folder of scans
    Predict(predict::Predict),
    /// Measure what a network costs on this machine
    Bench(bench::Bench),
    /// Turn a PyTorch checkpoint into a weights file
    Import(import::Import),
    /// Draw what OBELISK layers have learned, and measure their reach
    Offsets(offsets::Offsets),
    /// Score predictions against reference labels
    Evaluate(evaluate::Evaluate),
}

/// Arguments that parse but make no sense together: exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);

/// Runs the subcommand of a process that `started` then.
pub fn run(arguments: Arguments, started: std::time::Instant) -> anyhow::Result<()> {
    let options = DeviceOptions {
        adapter: arguments.adapter,
        backend: arguments.backend,
        portable: arguments.portable,
        kernels_for_gpus: false,
        forms: arguments.forms,
        cache: cache_folder(arguments.no_cache),
    };
    match arguments.command {
        Command::Info(command) => command.run(&options),
        Command::Prepare(command) => command.run(),
        Command::Train(command) => command.run(&options),
        Command::Crossval(command) => command.run(&options),
        Command::Predict(command) => command.run(&options),
        Command::Bench(command) => command.run(&options, started),
        Command::Import(command) => command.run(),
        Command::Offsets(command) => command.run(&options),
        Command::Evaluate(command) => command.run(),
    }
}

/// An error with its causes and what to do, in a line.
pub fn told(error: &anyhow::Error) -> String {
    match advice::advice(error) {
        Some(advice) => format!("{error:#}; {advice}"),
        None => format!("{error:#}"),
    }
}

/// Warnings and, with `-v`, more on stderr; `RUST_LOG` overrides.
pub fn start_logging(verbose: u8) {
    let level = ["warn", "obelisk=info,warn", "obelisk=debug,warn"][verbose.min(2) as usize];
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(level));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .without_time()
        .init();
}

/// Opens the device and says which; for commands that don't measure themselves.
fn open_device(options: &DeviceOptions) -> anyhow::Result<Device> {
    let device = open_tuned(options)?;
    let adapter = device.adapter();
    eprintln!(
        "adapter: {} ({}, {})",
        adapter.name, adapter.kind, adapter.backend
    );
    Ok(device)
}

/// Opens the device with the forms that suit it, measured now where they are not known.
fn open_tuned(options: &DeviceOptions) -> Result<Device, GpuError> {
    let (device, tuning) = tune::open(options)?;
    if let Some(tuning) = tuning {
        eprintln!("forms measured in {:.1} s: {tuning}", tuning.seconds);
    }
    Ok(device)
}

/// Where compiled pipelines and measured forms are kept: a folder in the user's caches, unless it is switched off.
fn cache_folder(off: bool) -> Option<std::path::PathBuf> {
    if off || std::env::var_os("OBELISK_NO_CACHE").is_some() {
        return None;
    }
    Some(dirs::cache_dir()?.join("obelisk"))
}

/// Says how weights from elsewhere get the preprocessing that they lack.
fn how_to_import(error: WeightsError) -> anyhow::Error {
    match error {
        WeightsError::NoPreprocessing { .. } => anyhow::anyhow!(
            "{error}; `obelisk import FILE --like WEIGHTS --output FILE.safetensors` takes them from WEIGHTS"
        ),
        other => other.into(),
    }
}

/// An output that exists needs `--force`.
fn refuse_existing(path: &Path, force: bool) -> anyhow::Result<()> {
    if path.exists() && !force {
        anyhow::bail!("{} exists; --force replaces it", path.display());
    }
    Ok(())
}

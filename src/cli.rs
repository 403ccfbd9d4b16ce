//! Subcommands, one file each, and what they have in common: values, files, the device, printing.

mod advice;
mod bench;
mod check;
mod crossval;
mod device;
mod evaluate;
mod export;
mod files;
mod import;
mod info;
pub mod interrupt;
mod memory;
mod next;
mod offsets;
mod pictures;
mod predict;
mod prepare;
pub mod print;
mod ranks;
mod report;
mod scoring;
mod shell;
mod train;

use clap::{Parser, Subcommand};
use interrupt::Interrupted;
use memory::MemoryArguments;
use obelisk::values;
use obelisk::weights::WeightsError;
use print::errln;

/// The end of a command's help: what it is for, by example.
macro_rules! examples {
    ($($what:literal: $command:literal),+) => {
        concat!("Examples:", $("\n  # ", $what, "\n  ", $command),+)
    };
}
use examples;

/// Train and run OBELISK-Net and other small 3D segmentation networks on any GPU.
#[derive(Debug, Parser)]
#[command(version, about, max_term_width = 100, after_help = examples!(
    "Segment a scan": "obelisk predict --model weights.safetensors --input scan.nii.gz --output labels.nii.gz",
    "Train on a dataset and validate on a fifth of it": "obelisk train dataset --out run --fold 0"
))]
pub struct Arguments {
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
    /// List every fault of a dataset, and what its scans and labels are like
    Check(check::Check),
    /// Train a network on a folder of scans and labels
    Train(Box<train::Train>),
    /// Train and score every fold of several networks, and compare them in a table
    Crossval(Box<crossval::Crossval>),
    /// Segment a scan or a folder of scans
    Predict(Box<predict::Predict>),
    /// Name the scans to label next: those that a network is least sure of, and unlike each other
    Next(next::Next),
    /// Measure what a network costs on this machine
    Bench(bench::Bench),
    /// Turn a PyTorch checkpoint into a weights file
    Import(import::Import),
    /// Turn a model into an ONNX file for other programs
    Export(export::Export),
    /// Draw what OBELISK layers have learned, and measure their reach
    Offsets(offsets::Offsets),
    /// Score predictions against reference labels
    Evaluate(evaluate::Evaluate),
    /// Write a training, a cross-validation or scores as one HTML file, with cases to look through
    Report(Box<report::Report>),
    /// Print a shell's completions of these commands and their options
    Completions(shell::Completions),
    /// Write these helps as manual pages
    Man(shell::Man),
}

impl Command {
    fn memory(&self) -> Option<&MemoryArguments> {
        match self {
            Command::Prepare(command) => Some(&command.memory),
            Command::Check(command) => Some(&command.memory),
            Command::Train(command) => Some(&command.device.memory),
            Command::Crossval(command) => Some(&command.device.memory),
            Command::Predict(command) => Some(&command.device.memory),
            Command::Next(command) => Some(&command.device.memory),
            Command::Bench(command) => Some(&command.device.memory),
            Command::Evaluate(command) => Some(&command.memory),
            Command::Offsets(command) => Some(&command.device.memory),
            Command::Report(command) => Some(&command.device.memory),
            _ => None,
        }
    }
}

/// Arguments that parse but contradict each other: exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);

/// Runs the subcommand of a process that `started` then.
pub fn run(arguments: Arguments, started: std::time::Instant) -> anyhow::Result<()> {
    if let Some(memory) = arguments.command.memory() {
        memory.limit();
    }
    match arguments.command {
        Command::Info(command) => command.run(),
        Command::Prepare(command) => command.run(),
        Command::Check(command) => command.run(),
        Command::Train(command) => command.run(),
        Command::Crossval(command) => command.run(),
        Command::Predict(command) => command.run(),
        Command::Next(command) => command.run(),
        Command::Bench(command) => command.run(started),
        Command::Import(command) => command.run(),
        Command::Export(command) => command.run(),
        Command::Offsets(command) => command.run(),
        Command::Evaluate(command) => command.run(),
        Command::Report(command) => command.run(),
        Command::Completions(command) => command.run(),
        Command::Man(command) => command.run(),
    }
}

/// Prints why a command failed or was interrupted, and returns the exit code: 2 for wrong usage, 1 for a run that failed,
/// 130 and 143 after signals.
pub fn report(error: &anyhow::Error) -> u8 {
    if let Some(interrupted) = error.downcast_ref::<Interrupted>() {
        errln!("{interrupted}");
        return interrupted.exit_code();
    }
    errln!("error: {}", message(error));
    if error.is::<Usage>() { 2 } else { 1 }
}

/// An error and its causes in a line, without those that an error above has already put into its own words, and what to do.
fn message(error: &anyhow::Error) -> String {
    let mut message = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if message.is_empty() {
            message = cause;
        } else if !message.contains(&cause) {
            message = format!("{message}: {cause}");
        }
    }
    match advice::advice(error) {
        Some(advice) => format!("{message}; {advice}"),
        None => message,
    }
}

/// Says how weights from elsewhere get the preprocessing that they lack.
fn how_to_import(error: WeightsError) -> anyhow::Error {
    match error {
        WeightsError::NoPreprocessing { .. } => anyhow::anyhow!(
            "{error}; `obelisk import FILE --like WEIGHTS --output FILE.safetensors` takes them from WEIGHTS"
        ),
        WeightsError::NoIntensity { .. } => anyhow::anyhow!("{error}; say it by --intensity"),
        other => other.into(),
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
        .log_internal_errors(false) // they would go to stderr as well, and panic where it is closed
        .without_time()
        .init();
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;

    #[test]
    fn every_command_ends_its_help_with_two_examples_that_parse() {
        let mut all = Arguments::command();
        all.build();
        let mut commands = vec![all.clone()];
        commands.extend(all.get_subcommands().filter(|c| c.get_name() != "help").cloned());
        assert!(commands.len() > 10);
        for mut command in commands {
            let name = command.get_name().to_owned();
            for help in [command.render_help(), command.render_long_help()] {
                let help = help.to_string();
                let (_, end) = help.split_once("\nExamples:\n").expect(&name);
                let lines: Vec<&str> = end.trim_end().lines().map(str::trim).collect();
                let examples: Vec<&str> = lines.iter().copied().filter(|l| !l.starts_with('#')).collect();
                assert!(examples.len() == 2 && lines.len() == 4, "{name}: {end}");
                for example in examples {
                    let of = if name == "obelisk" {
                        "obelisk "
                    } else {
                        &*format!("obelisk {name} ")
                    };
                    assert!(format!("{example} ").starts_with(of), "{example}");
                    // What follows is the shell's.
                    let arguments = example.split(' ').take_while(|word| *word != ">");
                    if let Err(refusal) = Arguments::try_parse_from(arguments) {
                        panic!("{example}: {refusal}");
                    }
                }
            }
        }
    }

    #[test]
    fn device_options_stand_last_where_a_device_is_used_and_nowhere_else() {
        let mut all = Arguments::command();
        all.build();
        for command in all.get_subcommands_mut() {
            let name = command.get_name().to_owned();
            let help = command.render_long_help().to_string();
            let uses = [
                "info", "train", "crossval", "predict", "next", "bench", "offsets", "report",
            ]
            .contains(&&*name);
            assert_eq!(help.contains("--adapter"), uses, "{name}");
            if uses {
                let at = |what: &str| help.find(what).expect(what);
                assert!(at("\nOptions:") < at("\nDevice options:"), "{name}");
                assert!(at("\nDevice options:") < at("--adapter"), "{name}");
                let rest = &help[at("\nDevice options:")..];
                let flags = rest.lines().filter(|l| l.trim_start().starts_with("--")).count();
                assert_eq!(flags, 6, "{name}: {rest}");
            }
        }
    }

    #[test]
    fn causes_are_told_once() {
        let io = || std::io::Error::from(std::io::ErrorKind::NotFound);
        let plain = anyhow::Error::new(io()).context("scan.nii");
        assert_eq!(message(&plain), format!("scan.nii: {}", io()));
        let twice = anyhow::Error::new(io()).context(format!("scan.nii: {}", io()));
        assert_eq!(message(&twice), format!("scan.nii: {}", io()));
    }
}

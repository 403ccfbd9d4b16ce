//! The options that choose the device, of the commands that use one.

use std::path::PathBuf;

use clap::Args;
use clap::builder::PossibleValuesParser;
use obelisk::gpu::{Device, DeviceOptions, FormsChoice, GpuError};
use obelisk::tune;

use super::memory::MemoryArguments;
use super::print::errln;

/// Which device computes, and how.
#[derive(Debug, Args)]
#[command(next_help_heading = "Device options")]
pub struct DeviceArguments {
    /// Part of the adapter's name, or its number in `obelisk info`
    #[arg(long, value_name = "NAME")]
    adapter: Option<String>,
    /// The system's interface to its adapters [default: any]
    #[arg(long, value_name = "API", value_parser = PossibleValuesParser::new(["vulkan", "metal", "dx12"]))]
    backend: Option<String>,
    /// Use only WebGPU's default limits and no optional features
    #[arg(long)]
    portable: bool,
    /// Forms of the kernels. auto: as measured once on this adapter, as a resumed training has recorded, and built in where
    /// --portable or --no-cache are given; measure: measure anew; built-in: from the adapter's properties; or
    /// texels=on|off
    #[arg(long, value_name = "FORMS", default_value = "auto")]
    forms: FormsChoice,
    /// Keep no compiled pipelines and no measured forms on disk (as when OBELISK_NO_CACHE is set)
    #[arg(long)]
    no_cache: bool,
    #[command(flatten)]
    pub memory: MemoryArguments,
}

impl DeviceArguments {
    /// The same as the library takes it.
    pub fn options(&self) -> DeviceOptions {
        DeviceOptions {
            adapter: self.adapter.clone(),
            backend: self.backend.clone(),
            portable: self.portable,
            kernels_for_gpus: false,
            most: None,
            forms: self.forms,
            cache: cache_folder(self.no_cache),
        }
    }
}

/// Opens the device and says which; for commands that don't measure themselves.
pub fn open(options: &DeviceOptions) -> anyhow::Result<Device> {
    let device = open_tuned(options)?;
    let adapter = device.adapter();
    errln!(
        "adapter: {} ({}, {})",
        adapter.name,
        adapter.kind,
        adapter.backend
    );
    Ok(device)
}

/// How often in a row a command opened a device anew that was lost.
#[derive(Debug, Default)]
pub struct Losses {
    in_a_row: usize,
    done: usize,
}

impl Losses {
    const MOST: usize = 3;

    /// Whether to open a device anew and repeat what failed on it with this error: it was lost, and not more than three times
    /// since `done` grew. Says so.
    pub fn repeat(&mut self, device: &Device, done: usize, error: &impl std::fmt::Display) -> bool {
        if done > self.done {
            *self = Losses { in_a_row: 0, done };
        }
        let repeat = self.in_a_row < Losses::MOST && device.is_lost();
        if repeat {
            self.in_a_row += 1;
            errln!(
                "{error}; opening a device anew and repeating what was lost ({} of {})",
                self.in_a_row,
                Losses::MOST
            );
        }
        repeat
    }
}

/// Opens the device with the forms that suit it, measured now where they are not known.
pub fn open_tuned(options: &DeviceOptions) -> Result<Device, GpuError> {
    let (device, tuning) = tune::open(options)?;
    if let Some(tuning) = tuning {
        errln!("forms measured in {:.1} s: {tuning}", tuning.seconds);
    }
    Ok(device)
}

/// Where compiled pipelines and measured forms are kept: a folder in the user's caches, unless it is switched off.
fn cache_folder(off: bool) -> Option<PathBuf> {
    if off || std::env::var_os("OBELISK_NO_CACHE").is_some() {
        return None;
    }
    Some(dirs::cache_dir()?.join("obelisk"))
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::path::Path;

    use clap::Parser;
    use obelisk::faults::{self, Counts, Fault};

    use super::super::{Arguments, message, run};
    use super::errln;

    /// A command in whose arguments `@` stands for the folder, and what its devices did.
    fn command(folder: &Path, arguments: &str, fault: Option<Fault>) -> (anyhow::Result<()>, Counts) {
        let folder = folder.to_str().unwrap();
        let arguments = arguments.split(' ').map(|argument| argument.replace('@', folder));
        let arguments =
            Arguments::try_parse_from(std::iter::once("obelisk".into()).chain(arguments)).unwrap();
        faults::with(fault, || run(arguments, std::time::Instant::now()))
    }

    #[test]
    fn a_lost_device_is_opened_anew_and_what_was_lost_is_repeated() {
        if let Err(error) = pollster::block_on(obelisk::gpu::Device::open(&Default::default())) {
            assert!(std::env::var_os("CI").is_none(), "no device in CI: {error}");
            errln!("SKIPPED: tests on a device ({error})");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/data");
        let data = data.to_str().unwrap();
        let tiny = "--arch obelisk --size 8,8,8 --spacing 8,8,8 --epochs 2 --steps 2 --batch 1 --samples 32";
        let bytes = |name: &str| std::fs::read(folder.join(name)).unwrap();
        let mut lost = 0;

        let train = |run: &str| format!("train {data} {tiny} --tensorboard --out @/{run}");
        let (trained, whole) = command(folder, &train("whole"), None);
        trained.unwrap();
        // As the first scan is uploaded, half-way, and as the last weights are read.
        let all = whole.submissions;
        for at in [1, all / 2, all] {
            let run = format!("lost-{at}");
            let (trained, counts) = command(folder, &train(&run), Some(Fault::Loss(at)));
            trained.unwrap_or_else(|error| panic!("{at} of {all}: {error:#}"));
            assert!(counts.submissions > all, "{at} of {all}: {counts:?}");
            for file in ["last.safetensors", obelisk::train::tensorboard::FILE] {
                assert!(
                    bytes(&format!("{run}/{file}")) == bytes(&format!("whole/{file}")),
                    "{run}/{file}"
                );
            }
            lost += 1;
        }

        let scan = "imagesTs";
        let scan = std::fs::read_dir(Path::new(data).join(scan))
            .unwrap()
            .next()
            .unwrap()
            .unwrap()
            .path();
        let predict = |labels: &str| {
            let scan = scan.display();
            format!("predict --model @/whole/last.safetensors --input {scan} --output @/{labels}.nii.gz")
        };
        let (predicted, whole) = command(folder, &predict("labels"), None);
        predicted.unwrap();
        for at in 1..=whole.submissions {
            let (predicted, _) = command(folder, &predict(&format!("labels-{at}")), Some(Fault::Loss(at)));
            predicted.unwrap();
            assert!(bytes(&format!("labels-{at}.nii.gz")) == bytes("labels.nii.gz"));
            lost += 1;
        }

        // A device that is lost again and again is given up after the third time.
        let (given_up, _) = command(folder, &predict("none"), Some(Fault::Losses(1)));
        let given_up = message(&given_up.unwrap_err());
        assert!(given_up.contains("the device was lost"), "{given_up}");
        assert!(!folder.join("none.nii.gz").exists());
        lost += 4;

        let out = format!("crossval {data} {tiny} --folds 4 --fold 0 --out @/folds");
        command(folder, &out, Some(Fault::Loss(all / 2))).0.unwrap();
        assert!(folder.join("folds/obelisk/fold_0/result.json").exists());
        lost += 1;
        writeln!(std::io::stderr(), "{lost} devices lost").unwrap();
    }
}

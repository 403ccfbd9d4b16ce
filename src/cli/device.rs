//! The options that choose the device, of the commands that use one.

use std::path::PathBuf;

use clap::Args;
use clap::builder::PossibleValuesParser;
use obelisk::gpu::{Device, DeviceOptions, FormsChoice, GpuError};
use obelisk::tune;

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
}

impl DeviceArguments {
    /// The same as the library takes it.
    pub fn options(&self) -> DeviceOptions {
        DeviceOptions {
            adapter: self.adapter.clone(),
            backend: self.backend.clone(),
            portable: self.portable,
            kernels_for_gpus: false,
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

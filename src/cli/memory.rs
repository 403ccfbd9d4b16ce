//! The option that limits what a command takes of the machine's memory.

use clap::Args;
use obelisk::host_memory;

use super::values;

/// How much memory a command may take.
#[derive(Debug, Args)]
pub struct MemoryArguments {
    /// Refuse what takes more of the machine's memory than this, before it is computed; software devices count
    /// [default: what is free]
    #[arg(long, value_name = "MB", value_parser = values::positive::<f64>)]
    memory: Option<f64>,
}

impl MemoryArguments {
    /// Has the library keep to it.
    pub fn limit(&self) {
        host_memory::set_limit(self.memory.map(|megabytes| (megabytes * 1e6) as u64));
    }
}

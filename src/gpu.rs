//! The only module that names wgpu: adapters and the device, pipelines, buffers, submission, reading back.
//!
//! Functions that wait for the device are `async`, and leave the thread to others meanwhile (`waiting.rs`). What the host
//! computes stays on the thread that polls the future: kernels that are compiled, preprocessing, files that
//! [`crate::train::train`] writes. So a runtime that serves others runs a training or a prediction on a thread of its own,
//! such as `spawn_blocking`'s.

mod cache;
mod device;
mod executable;
mod forms;
mod memory;
mod reading;
mod timing;
mod waiting;

pub use device::{AdapterSummary, Device, DeviceOptions, adapters};
pub(crate) use executable::AVERAGE;
pub use executable::{Executable, Resident, Weights};
pub use forms::{FormsChoice, FormsSource};
pub use memory::{AllocatorMemory, Memory};
pub(crate) use reading::Numbers;
pub use reading::Reading;

use crate::host_memory::TooLarge;
use crate::op::Forms;

/// What can go wrong with a device.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GpuError {
    /// No adapter, or none that fits the request.
    #[error("{0}")]
    NoAdapter(String),
    /// The adapter refused to make a device.
    #[error("the adapter `{adapter}` gave no device: {reason}")]
    NoDevice {
        /// The adapter's name.
        adapter: String,
        /// What the backend said.
        reason: String,
    },
    /// Forms of the kernels that the adapter can't take.
    #[error("{adapter} can't take the forms {forms}: {problem}")]
    Forms {
        /// The forms.
        forms: Forms,
        /// The adapter's name.
        adapter: String,
        /// What is in the way.
        problem: String,
    },
    /// A buffer could not be allocated.
    #[error("the device has no memory for {label} ({mib} MiB): {reason}")]
    OutOfMemory {
        /// What it was for.
        label: String,
        /// Its size.
        mib: u64,
        /// What the backend said.
        reason: String,
    },
    /// The device computes in the machine's memory, which has no room.
    #[error("the device computes in the machine's memory: {0}")]
    HostMemory(#[from] TooLarge),
    /// A shader or pipeline was refused: a defect of this program or of the driver.
    #[error("pipeline {label} was refused: {reason}")]
    Pipeline {
        /// Shader and entry point.
        label: String,
        /// What the backend said.
        reason: String,
    },
    /// An operation on the device failed.
    #[error("the device failed: {0}")]
    Device(String),
    /// The device is gone, and what was on it.
    #[error("the device was lost: {0}")]
    Lost(String),
    /// A tensor that does not fit the plan.
    #[error("{0}")]
    Tensor(String),
}

//! What an error is about, for interfaces that have a class of errors for each: JavaScript's and Python's.

use crate::gpu::GpuError;
use crate::graph::GraphError;
use crate::nnunet::{NnunetError, PrepareError};
use crate::predict::PredictError;
use crate::train::TrainError;
use crate::volume::VolumeError;
use crate::weights::WeightsError;

/// What an error is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// A scan or label map that can't be read, written or taken.
    Scan,
    /// Weights that can't be read, are damaged, or are of a network that is not run here.
    Weights,
    /// No adapter, or a device that failed.
    Device,
    /// More than the device's or the machine's memory.
    TooLarge,
    /// The caller stopped it.
    Stopped,
}

/// An error that says what it is about.
pub trait Kinded: std::error::Error {
    /// What it is about.
    fn kind(&self) -> ErrorKind;
}

impl Kinded for GpuError {
    fn kind(&self) -> ErrorKind {
        match self {
            GpuError::OutOfMemory { .. } | GpuError::HostMemory(_) => ErrorKind::TooLarge,
            GpuError::Tensor(_) => ErrorKind::Weights,
            _ => ErrorKind::Device,
        }
    }
}

impl Kinded for GraphError {
    fn kind(&self) -> ErrorKind {
        match self {
            GraphError::Limit { .. } | GraphError::Size { .. } => ErrorKind::TooLarge,
            _ => ErrorKind::Weights,
        }
    }
}

impl Kinded for VolumeError {
    fn kind(&self) -> ErrorKind {
        match self {
            VolumeError::Memory { .. } => ErrorKind::TooLarge,
            _ => ErrorKind::Scan,
        }
    }
}

impl Kinded for PredictError {
    fn kind(&self) -> ErrorKind {
        match self {
            PredictError::Preprocess(e) => e.kind(),
            PredictError::Graph(e) => e.kind(),
            PredictError::Gpu(e) => e.kind(),
            PredictError::Outside { .. } | PredictError::Grid(_) => ErrorKind::Scan,
            PredictError::Memory(_) => ErrorKind::TooLarge,
            PredictError::NotFinite { .. } => ErrorKind::Weights,
            PredictError::Stopped => ErrorKind::Stopped,
        }
    }
}

impl Kinded for PrepareError {
    fn kind(&self) -> ErrorKind {
        match self {
            PrepareError::Volume(e) => e.kind(),
            PrepareError::Memory(_) => ErrorKind::TooLarge,
            PrepareError::Scan(_) => ErrorKind::Scan,
        }
    }
}

impl Kinded for NnunetError {
    fn kind(&self) -> ErrorKind {
        match self {
            NnunetError::Prepare(e) => e.kind(),
            NnunetError::Graph(e) => e.kind(),
            NnunetError::Gpu(e) => e.kind(),
            NnunetError::Memory(_) => ErrorKind::TooLarge,
            NnunetError::Stopped => ErrorKind::Stopped,
            NnunetError::NotFinite => ErrorKind::Weights,
        }
    }
}

impl Kinded for WeightsError {
    fn kind(&self) -> ErrorKind {
        ErrorKind::Weights
    }
}

impl Kinded for TrainError {
    fn kind(&self) -> ErrorKind {
        match self {
            TrainError::Graph(e) => e.kind(),
            TrainError::Gpu(e) => e.kind(),
            TrainError::Predict(e) => e.kind(),
            _ => ErrorKind::Weights,
        }
    }
}

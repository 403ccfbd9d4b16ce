//! OBELISK-Net (Heinrich, Oktay, Bouteldja, *Medical Image Analysis* 2019) as a portable GPU compute program: networks for
//! segmentation in 3D are trained and run by WGSL compute shaders on whatever adapter wgpu finds, software Vulkan and browsers
//! among them.
//!
//! Data flows one way: scan → volume → tensor → graph → plan → dispatches → labels → scan. `ARCHITECTURE.md` in the
//! repository describes the house.
//!
//! # Segment a scan
//!
//! ```no_run
//! use std::path::Path;
//!
//! use obelisk::gpu::{Device, DeviceOptions};
//! use obelisk::model;
//! use obelisk::predict::Predictor;
//! use obelisk::volume;
//! use obelisk::weights::Model;
//!
//! # async fn segment() -> Result<(), Box<dyn std::error::Error>> {
//! // Weights that `obelisk train` wrote; they say how scans are prepared and what the labels are.
//! let model = Model::load(Path::new("hippocampus.safetensors"))?;
//! let network = &model::find(&model.info.arch)?;
//! let preprocessing = &model.info.preprocessing;
//!
//! // The fastest adapter there is; without a GPU, software Vulkan.
//! let device = Device::open(&DeviceOptions::default()).await?;
//! let mut predictor = Predictor::with_weights(&device, network, preprocessing, &model.tensors).await?;
//!
//! let scan = volume::read(Path::new("scan.nii.gz"))?;
//! let labels = predictor.labels(&device, &scan).await?; // one a voxel, x fastest, as in the file
//! for label in &preprocessing.labels {
//!     let voxels = labels.iter().filter(|value| **value == label.value).count();
//!     println!("{}: {voxels} voxels", label.name);
//! }
//! volume::write_labels(Path::new("labels.nii.gz"), &labels, &scan.geometry, false)?;
//! # Ok(())
//! # }
//! ```
//!
//! `pollster::block_on` or a thread of any runtime runs it; [`gpu`] says what it does on that thread.
//!
//! # Features
//!
//! - `cli` (default): the command-line program, and the modules that only it uses, for pictures, benchmarks and measured
//!   variants of kernels. A library takes `default-features = false` and gets neither clap nor plotters nor indicatif.
//! - `onnx`, a part of `cli`: models as ONNX files.
//! - `mpi`: training on several processes, over an MPI-3 that is there, with libclang, when it is built.
//! - `web`: the interface for JavaScript, on wasm32.
//!
//! # Operations of one's own
//!
//! [`op::Op`] is the contract, [`shader!`] and [`params!`] make its kernels; `examples/add_an_operation.rs` is one.

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

pub mod autodiff;
#[cfg(feature = "cli")]
pub mod bench;
pub mod check;
pub mod components;
pub mod crossval;
pub mod dataset;
pub mod error_kind;
pub mod evaluate;
#[cfg(feature = "onnx")]
pub mod export;
#[doc(hidden)]
pub mod faults;
pub mod file;
mod finite;
mod fuse;
pub mod gpu;
pub mod graph;
pub mod host_memory;
#[cfg(feature = "cli")]
pub mod label_table;
pub mod metrics;
pub mod model;
#[cfg(feature = "cli")]
pub mod next;
pub mod nnunet;
pub mod offsets;
#[cfg(feature = "onnx")]
pub mod onnx;
pub mod op;
#[cfg(feature = "cli")]
pub mod picture;
pub mod plan;
pub mod predict;
pub mod prepare;
pub mod preprocess;
pub mod receptive_field;
#[cfg(feature = "cli")]
pub mod report;
pub mod shader;
pub mod statistics;
pub mod tensor;
pub mod train;
#[cfg(feature = "cli")]
pub mod tune;
#[cfg(feature = "cli")]
pub mod values;
pub mod volume;
#[cfg(all(feature = "web", target_arch = "wasm32"))]
pub mod web;
pub mod weights;

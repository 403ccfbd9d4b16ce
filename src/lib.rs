//! OBELISK-Net (Heinrich, Oktay, Bouteldja, *Medical Image Analysis* 2019) as a portable GPU compute program.
//!
//! Data flows one way: scan → volume → tensor → graph → plan → dispatches → labels → scan. `ARCHITECTURE.md` in the
//! repository describes the house.

pub mod autodiff;
#[cfg(feature = "cli")]
pub mod bench;
pub mod crossval;
pub mod dataset;
pub mod evaluate;
pub mod file;
mod fuse;
pub mod gpu;
pub mod graph;
pub mod host_memory;
pub mod metrics;
pub mod model;
pub mod offsets;
pub mod op;
#[cfg(feature = "cli")]
pub mod picture;
pub mod plan;
pub mod predict;
pub mod prepare;
pub mod preprocess;
pub mod receptive_field;
pub mod shader;
pub mod tensor;
pub mod train;
#[cfg(feature = "cli")]
pub mod tune;
pub mod volume;
#[cfg(all(feature = "web", target_arch = "wasm32"))]
pub mod web;
pub mod weights;

//! The integration tests, one module a subject, in one program that opens the devices once. One module, one test:
//! `cargo test --release --test suite -- conv3d::`, `… -- ten_steps::the_hybrid`.

mod common;

mod activation;
mod augment;
mod batch_norm;
mod brainchop;
mod check;
mod checkpoints;
mod concat;
mod conv3d;
mod conv_transpose3d;
mod cross_entropy;
mod data;
mod dice;
#[cfg(feature = "dicom")]
mod dicom;
mod dropout;
mod elementary;
mod ensemble;
mod evaluate;
mod example_operation;
mod faults;
mod forms;
mod import;
mod in_memory;
mod instance_norm;
mod layout;
mod limits;
mod linear;
mod memory;
mod metrics;
mod networks;
mod nifti;
mod nnunet;
mod obelisk_layer;
mod obelisk_networks;
mod plans;
mod pth;
mod published;
mod ranks;
mod receptive_field;
mod recipes;
mod resampling;
mod sampling;
mod shaders;
mod sparse_operations;
mod supply;
mod ten_steps;
mod texels;
mod volumes;
mod watched;
mod weights;

// These need the command-line program or what is built with it.
#[cfg(feature = "cli")]
mod bench;
#[cfg(feature = "cli")]
mod cluster;
#[cfg(feature = "cli")]
mod command_line;
#[cfg(feature = "cli")]
mod crossval;
#[cfg(feature = "cli")]
mod losses;
#[cfg(feature = "cli")]
mod onnx;
#[cfg(feature = "cli")]
mod picture;
#[cfg(feature = "cli")]
mod prepare;
#[cfg(feature = "cli")]
mod probabilities;
mod program;
#[cfg(feature = "cli")]
mod report;
#[cfg(feature = "cli")]
mod tune;
#[cfg(feature = "cli")]
mod unattended;

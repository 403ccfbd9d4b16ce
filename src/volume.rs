//! Scans and label maps: NIfTI files in and out with their geometry, reorientation and resampling.

mod nifti;
mod orient;
pub mod resample;

use std::path::{Path, PathBuf};

use glam::DMat4;

pub use nifti::{SpatialHeader, encode_labels, read, read_bytes, read_geometry, write_image, write_labels};
pub use orient::{Orientation, Reorientation};

/// A scan: voxels and where they lie in the patient.
#[derive(Debug, Clone)]
pub struct Volume {
    /// Voxels `[C, X, Y, Z]`, dense, z fastest: nibabel's array in C order, with a 4-D file's last axis first.
    pub data: Vec<f32>,
    /// Number of channels C: the length of the file's fourth axis, 1 for a 3-D file.
    pub channels: usize,
    /// Shape, spacing and orientation.
    pub geometry: Geometry,
    /// Voxels that were NaN or infinite in the file. NaN and -inf have become the smallest finite value, +inf the
    /// largest.
    pub non_finite: usize,
    /// Where it came from, for messages.
    pub source: PathBuf,
}

/// Where a voxel grid lies in the patient.
#[derive(Debug, Clone, PartialEq)]
pub struct Geometry {
    /// Voxels along the file's three spatial axes, `[X, Y, Z]`.
    pub shape: [usize; 3],
    /// Voxel index (i, j, k) to patient millimetres, RAS+ (NIfTI's world).
    pub affine: DMat4,
    /// Millimetres from voxel to voxel along each axis; 0 where the file declares none.
    pub spacing: [f64; 3],
    /// Which way each axis points, e.g. `RAS`.
    pub orientation: Orientation,
    /// The header fields that say all of this, kept verbatim for files written on the same grid.
    pub header: SpatialHeader,
}

impl Geometry {
    /// Number of voxels of one channel.
    pub fn voxels(&self) -> usize {
        self.shape.iter().product()
    }

    /// What differs between two grids: shapes, or affines by more than `tolerance` in any entry. `None` when they
    /// are the same.
    pub fn difference(&self, other: &Geometry, tolerance: f64) -> Option<String> {
        if self.shape != other.shape {
            return Some(format!("shape {:?} against {:?}", self.shape, other.shape));
        }
        if self.affine.abs_diff_eq(other.affine, tolerance) {
            return None;
        }
        let rows = |affine: DMat4| {
            affine
                .transpose()
                .to_cols_array_2d()
                .map(|row| row.map(|v| v as f32))
        };
        Some(format!(
            "affine rows {:?} against {:?}",
            &rows(self.affine)[..3],
            &rows(other.affine)[..3]
        ))
    }
}

impl Volume {
    /// The first channel's voxels as integers, for a label map.
    ///
    /// # Errors
    /// A file of several channels, non-finite voxels, fractions, or a magnitude of 2^24 and more, from which f32
    /// stops holding every integer.
    pub fn labels(&self) -> Result<Vec<i32>, VolumeError> {
        if self.channels != 1 {
            return Err(self.error(format!(
                "a label map has one channel, this file has {}",
                self.channels
            )));
        }
        if self.non_finite > 0 {
            return Err(self.error(format!(
                "{} voxels of the label map are not finite",
                self.non_finite
            )));
        }
        self.data
            .iter()
            .map(|&v| match v.fract() == 0.0 && v.abs() < 16_777_216.0 {
                true => Ok(v as i32),
                false => Err(self.error(format!("{v} is not a label: labels are whole numbers below 2^24"))),
            })
            .collect()
    }

    fn error(&self, problem: String) -> VolumeError {
        VolumeError::Format {
            path: self.source.clone(),
            problem,
        }
    }
}

/// Why a scan could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// The operating system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The file's content, or what was to be written, is not what it must be.
    #[error("{}: {problem}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong and what to do.
        problem: String,
    },
}

/// A file's name without `.nii` or `.nii.gz`; `None` for any other ending.
pub fn stem(path: &Path) -> Option<&str> {
    let name = path.file_name()?.to_str()?;
    name.strip_suffix(".nii.gz")
        .or_else(|| name.strip_suffix(".nii"))
        .filter(|stem| !stem.is_empty())
}

//! Scans and label maps: NIfTI, MGH and NRRD files in and out with their geometry, reorientation and resampling.

#[cfg(feature = "dicom")]
pub mod dicom;
mod file;
mod mgh;
mod nifti;
mod nrrd;
mod orient;
pub mod resample;

use std::borrow::Cow;
use std::fmt;
use std::path::{Path, PathBuf};

use glam::{DMat4, DVec3};

use crate::host_memory::TooLarge;

pub use self::file::{check_written, read, read_bytes, read_geometry, write_image, write_labels};
pub use self::nifti::{SpatialHeader, encode_labels, write_shares};
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
    /// Voxel index (i, j, k) to patient millimetres, RAS+ (NIfTI's world); finite and not singular.
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

    /// What differs between two grids: shapes, or places of voxels by more than `tolerance` voxels. `None` when they are
    /// the same. The text names both grids.
    pub fn difference(&self, other: &Geometry, tolerance: f64) -> Option<String> {
        if self.shape == other.shape && self.displacement(other) <= tolerance {
            return None;
        }
        let [one, two] = [self, other].map(Geometry::to_string);
        if one != two {
            return Some(format!("{one} against {two}"));
        }
        let rows = |affine: DMat4| {
            affine
                .transpose()
                .to_cols_array_2d()
                .map(|row| row.map(|v| v as f32))
        };
        Some(format!(
            "{one}, affine rows {:?} against {:?}",
            &rows(self.affine)[..3],
            &rows(other.affine)[..3]
        ))
    }

    /// How far apart two grids of one shape place a voxel at most, in the width of this one's finest axis.
    fn displacement(&self, other: &Geometry) -> f64 {
        let last = self.shape.map(|n| (n - 1) as f64);
        let finest = [self.affine.x_axis, self.affine.y_axis, self.affine.z_axis]
            .map(|axis| axis.length())
            .into_iter()
            .fold(f64::INFINITY, f64::min);
        // the difference of two affine maps is largest at a corner
        let apart = (0..8).map(|corner| {
            let voxel = DVec3::from_array(std::array::from_fn(|a| {
                if corner >> a & 1 == 1 { last[a] } else { 0.0 }
            }));
            let [here, there] = [self.affine, other.affine].map(|affine| affine.transform_point3(voxel));
            here.distance(there)
        });
        apart.fold(0.0, f64::max) / finest
    }
}

impl fmt::Display for Geometry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lengths =
            [self.affine.x_axis, self.affine.y_axis, self.affine.z_axis].map(|axis| axis.length() as f32);
        let [x, y, z] = lengths;
        let origin = self.affine.w_axis.truncate().to_array();
        write!(
            f,
            "{:?} voxels of {x} × {y} × {z} mm, {} from {origin:.3?} mm",
            self.shape, self.orientation
        )
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
    #[error("{}: {reason}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        reason: std::io::Error,
    },
    /// The file's content, or what was to be written, is not what it must be.
    #[error("{}: {problem}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong and what to do.
        problem: String,
    },
    /// There is no memory for it.
    #[error("{}: {what}: {cause}", path.display())]
    Memory {
        /// The file.
        path: PathBuf,
        /// What would be allocated.
        what: String,
        /// How much is needed, and how much there is.
        #[source]
        cause: TooLarge,
    },
}

impl VolumeError {
    /// The file that it is about.
    pub fn path(&self) -> &Path {
        match self {
            VolumeError::Io { path, .. }
            | VolumeError::Format { path, .. }
            | VolumeError::Memory { path, .. } => path,
        }
    }
}

/// Voxels by which two files of one scan may place a voxel apart: affines carry rounding.
pub const SAME_PLACE: f64 = 0.1;

/// Endings of the files that hold scans: NIfTI's, FreeSurfer's and NRRD's. Of two files of one scan, the header's.
pub const ENDINGS: [&str; 8] = [
    ".nii.gz", ".nii", ".mgz", ".mgh", ".nrrd", ".nhdr", ".hdr.gz", ".hdr",
];

/// Which of [`ENDINGS`] a file's name has, in capitals or not, behind at least one character.
pub fn ending(path: &Path) -> Option<&'static str> {
    let name = path.file_name()?.as_encoded_bytes();
    ENDINGS.into_iter().find(|ending| {
        let at = name.len().checked_sub(ending.len()).filter(|at| *at > 0);
        at.is_some_and(|at| name[at..].eq_ignore_ascii_case(ending.as_bytes()))
    })
}

/// A file's name without its [`ending`]; `None` where it has none of them. What is not UTF-8 becomes `\u{fffd}`.
pub fn stem(path: &Path) -> Option<Cow<'_, str>> {
    let ending = ending(path)?;
    let name = path.file_name()?.as_encoded_bytes();
    Some(String::from_utf8_lossy(&name[..name.len() - ending.len()]))
}

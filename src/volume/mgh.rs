//! FreeSurfer's MGH and MGZ files (<https://surfer.nmr.mgh.harvard.edu/fswiki/FsTutorial/MghFormat>): a header of 284 bytes, voxels
//! with x fastest, and what the scanner did behind them; all big-endian, MGZ compressed by gzip.
//!
//! A crate reads them, `neuroformats`, together with surfaces: it takes sizes as the header has them and holds the bytes and several
//! arrays at once. The header is 284 bytes, so it is read here.

use std::io::{BufRead, Read};

use ::nifti::NiftiType;
use glam::{DMat3, DMat4, DVec3};

use super::Geometry;
use super::file::{Problem, Scan, Stream, compressed, stored, wrong};
use super::nifti::{SpatialHeader, shape};

/// The first four bytes.
pub(super) const VERSION: [u8; 4] = [0, 0, 0, 1];
const HEADER_BYTES: usize = 284;

/// Types of voxels by their number.
const TYPES: [(i32, NiftiType); 5] = [
    (0, NiftiType::Uint8),
    (1, NiftiType::Int32),
    (3, NiftiType::Float32),
    (4, NiftiType::Int16),
    (10, NiftiType::Uint16),
];

/// Reads the header behind its first field.
pub(super) fn open<R: BufRead>(mut stream: Stream<R>) -> Result<Scan<R>, Problem> {
    let mut header = [0; HEADER_BYTES];
    stream.bytes.read_exact(&mut header[4..])?;
    let field = |at: usize| [header[at], header[at + 1], header[at + 2], header[at + 3]];
    let int = |at: usize| i32::from_be_bytes(field(at));
    let float = |i: usize| f64::from(f32::from_be_bytes(field(30 + 4 * i)));
    let mut dims = [1; 8];
    dims[0] = 4;
    (1..=4).for_each(|i| dims[i] = i64::from(int(4 * i)));
    let (shape, channels, _) = shape(dims)?;
    let code = int(20);
    let Some((_, voxel)) = TYPES.into_iter().find(|(known, _)| *known == code) else {
        return wrong(format!(
            "its type {code} is no single number a voxel; convert it to float"
        ));
    };
    // Without the flag, FreeSurfer takes the grid for one of its conformed volumes: coronal slices of 1 mm around the origin.
    let declared = header[28..30] != [0, 0];
    let sizes = match declared {
        true => [0, 1, 2].map(float),
        false => [1.0; 3],
    };
    let axes = match declared {
        true => DMat3::from_cols_array(&std::array::from_fn(|i| float(3 + i))),
        false => DMat3::from_cols(DVec3::NEG_X, DVec3::NEG_Z, DVec3::Y),
    };
    let centre = match declared {
        true => DVec3::from_array([12, 13, 14].map(float)),
        false => DVec3::ZERO,
    };
    let matrix = axes * DMat3::from_diagonal(DVec3::from_array(sizes));
    let origin = centre - matrix * middle(shape);
    let mut spatial = SpatialHeader::from_affine(DMat4::from_mat3_translation(matrix, origin));
    spatial.pixdim[1..].copy_from_slice(&sizes);
    Ok(Scan {
        stream,
        geometry: spatial.geometry(shape).or_else(wrong)?,
        channels,
        voxel,
        big_endian: true,
        scaling: None,
    })
}

/// The voxel whose place the header has; between two of them where their number is even.
fn middle(shape: [usize; 3]) -> DVec3 {
    DVec3::from_array(shape.map(|n| n as f64 / 2.0))
}

/// A file of voxels.
pub(super) fn encode<T: Copy>(
    voxels: &[T],
    like: &Geometry,
    voxel: NiftiType,
    compress: bool,
    little_endian: impl Fn(T) -> [u8; 4],
) -> Result<Vec<u8>, String> {
    // Labels of a type that MGH has not, in the next larger one.
    let voxel = match voxel {
        NiftiType::Int8 => NiftiType::Int16,
        NiftiType::Uint16 => NiftiType::Int32,
        other => other,
    };
    let (code, _) = TYPES
        .into_iter()
        .find(|(_, known)| *known == voxel)
        .ok_or("no such type")?;
    let matrix = DMat3::from_mat4(like.affine);
    let sizes = [matrix.x_axis, matrix.y_axis, matrix.z_axis].map(DVec3::length);
    let axes = matrix * DMat3::from_diagonal(DVec3::from_array(sizes.map(f64::recip)));
    let centre = like.affine.transform_point3(middle(like.shape));
    let mut file = Vec::with_capacity(HEADER_BYTES);
    file.extend(VERSION);
    for n in like.shape.into_iter().chain([1]) {
        let n =
            i32::try_from(n).map_err(|_| format!("{n} voxels along an axis are more than MGH can say"))?;
        file.extend(n.to_be_bytes());
    }
    file.extend(code.to_be_bytes());
    file.extend([0; 4]); // degrees of freedom
    file.extend([0, 1]); // the place is known
    let place = sizes
        .into_iter()
        .chain(axes.to_cols_array())
        .chain(centre.to_array());
    place.for_each(|v| file.extend((v as f32).to_be_bytes()));
    file.resize(HEADER_BYTES, 0);
    let bytes = voxel.size_of();
    let big_endian = |v: T| {
        let mut stored = little_endian(v);
        stored[..bytes].reverse();
        stored
    };
    stored(&mut file, voxels, like.shape, bytes, big_endian)?;
    if compress { compressed(&file) } else { Ok(file) }
}

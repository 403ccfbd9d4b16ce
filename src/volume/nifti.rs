//! NIfTI-1 and NIfTI-2 (`.nii`, `.nii.gz`, pairs of `.hdr` and `.img`): a checked reader of the headers of everything that holds
//! a scan, and a writer of voxels on a scan's grid.
//!
//! Affines follow nibabel: the sform where its code is set, else the qform, else the voxel sizes with the origin at
//! the grid's centre and x towards the patient's left. Scaling follows the standard: a slope of zero, NaN or
//! infinity means none. Lengths are millimetres, whatever unit the header names.
//!
//! The crate `nifti` (0.18) reads NIfTI-1 headers and names the types of voxels and units, behind checks of what it lets
//! pass: it takes the byte order from `dim[0]` alone, dimensions as unsigned, and any `bitpix`. NIfTI-2, which it does not
//! know, is read here. So are voxels (`file.rs`), and files are written here, because the crate
//!
//! - scales in f32: with slope 0.1 and intercept 5, 464 of the 65,536 values of int16 differ from nibabel's;
//! - holds the file's bytes, a typed copy and the converted array at once, 840 MB for 512 × 512 × 400 voxels of int16, where
//!   16 planes and the array are 428 MB here, and knows only the first member of a gzip stream;
//! - writes `sub.01.nii` to `sub.nii`, replaces a file in place, drops the error of a last write to a full disk, and can't
//!   write to memory, which the page needs.

use std::io::{BufRead, Read};
use std::path::Path;

use ::nifti::{NiftiHeader, NiftiType, Unit};
use glam::{DMat3, DMat4, DQuat, DVec3};

use super::file::{Beside, Other, Problem, Scan, Stream, compressed, smallest_type, stored, wrong};
use super::{Geometry, Orientation, VolumeError};
use crate::file::write_beside;

/// The header fields that place a grid in the patient, as the file has them (f32 fields of NIfTI-1 widened), in the unit of
/// length that it names.
#[derive(Debug, Clone, PartialEq)]
pub struct SpatialHeader {
    /// 1 or 2.
    pub version: u8,
    /// Number of spatial axes that the file declares, 1 to 3.
    pub axes: usize,
    /// Meaning of the quaternion's world; 0: there is none.
    pub qform_code: i32,
    /// Meaning of the matrix's world; 0: there is none.
    pub sform_code: i32,
    /// qfac, then the voxel sizes.
    pub pixdim: [f64; 4],
    /// b, c, d of the rotation from voxels to world.
    pub quaternion: [f64; 3],
    /// World position of voxel (0, 0, 0) in the qform.
    pub offset: [f64; 3],
    /// Rows of the sform matrix.
    pub rows: [[f64; 4]; 3],
    /// Units of space and time (`xyzt_units`).
    pub units: i32,
}

/// The bytes of the NIfTI file of labels that [`super::write_labels`] writes, compressed or not. Compressed bytes carry no time and
/// no name.
///
/// # Errors
/// A number of labels that is not that of the grid.
pub fn encode_labels(labels: &[i32], like: &Geometry, compress: bool) -> Result<Vec<u8>, String> {
    let voxel = smallest_type(labels);
    encode(labels, like, voxel, compress, |label| label.to_le_bytes())
}

/// Writes numbers from 0 to 1, one or several a voxel, on the grid `like`: each map `[X, Y, Z]` (z fastest), in steps of 1/255,
/// which take a quarter of what f32 takes. Several maps are the file's fourth axis. The name must end in `.nii` or `.nii.gz`;
/// otherwise as [`super::write_labels`].
///
/// # Errors
/// As [`super::write_labels`].
///
/// # Panics
/// Without a map.
pub fn write_shares(path: &Path, maps: &[Vec<f32>], like: &Geometry, force: bool) -> Result<(), VolumeError> {
    assert!(!maps.is_empty(), "one map at least");
    let format = |problem: String| VolumeError::Format {
        path: path.into(),
        problem,
    };
    let compress = match super::ending(path) {
        Some(".nii.gz") => true,
        Some(".nii") => false,
        _ => return Err(format("the name must end in .nii or .nii.gz".into())),
    };
    let bytes = encode_shares(maps, like, compress).map_err(format)?;
    write_beside(path, &bytes, force).map_err(|reason| VolumeError::Io {
        path: path.into(),
        reason,
    })
}

fn encode_shares(maps: &[Vec<f32>], like: &Geometry, compress: bool) -> Result<Vec<u8>, String> {
    let step = |share: f32| (share.clamp(0.0, 1.0) * 255.0).round() as u8;
    let mut file = Vec::new();
    for map in maps {
        let own = encode(map, like, NiftiType::Uint8, false, |share| [step(share), 0, 0, 0])?;
        let header = own.len() - map.len();
        match file.is_empty() {
            true => file = own,
            false => file.extend(&own[header..]),
        }
    }
    let (count, slope) = (maps.len() as i64, 1.0 / 255.0);
    let axes = if count > 1 { 4i64 } else { 3 };
    let second = file.get(..4) == Some(&(NIFTI2_BYTES as i32).to_le_bytes());
    let mut put = |at: usize, field: &[u8]| file[at..at + field.len()].copy_from_slice(field);
    if second {
        put(16, &axes.to_le_bytes());
        put(48, &count.to_le_bytes());
        put(176, &f64::to_le_bytes(slope));
    } else {
        put(40, &(axes as i16).to_le_bytes());
        put(48, &(count as i16).to_le_bytes());
        put(112, &(slope as f32).to_le_bytes());
    }
    if compress { compressed(&file) } else { Ok(file) }
}

/// A file of voxels, of each of which the first little-endian bytes are stored, as many as the type has.
pub(super) fn encode<T: Copy>(
    voxels: &[T],
    like: &Geometry,
    voxel: NiftiType,
    compress: bool,
    little_endian: impl Fn(T) -> [u8; 4],
) -> Result<Vec<u8>, String> {
    let bytes = voxel.size_of();
    let mut file = like.header.encode(like.shape, voxel as i16, bytes);
    stored(&mut file, voxels, like.shape, bytes, little_endian)?;
    if compress { compressed(&file) } else { Ok(file) }
}

/// How voxels are stored.
///
/// # Errors
/// What is no single number a voxel, or none that is read here.
fn voxel_type(code: i16) -> Result<NiftiType, Problem> {
    let header = NiftiHeader {
        datatype: code,
        ..NiftiHeader::default()
    };
    let Ok(voxel) = header.data_type() else {
        return match code {
            1 => wrong("it holds single bits; convert it to uint8"),
            _ => wrong(format!("its datatype code {code} is not one of NIfTI's")),
        };
    };
    match voxel {
        NiftiType::Rgb24 | NiftiType::Rgba32 => {
            wrong("it holds RGB colours; convert it to one grey value a voxel")
        }
        NiftiType::Complex64 | NiftiType::Complex128 | NiftiType::Complex256 => {
            wrong("it holds complex numbers; convert it to magnitudes")
        }
        NiftiType::Float128 => wrong("it holds 128-bit floats; convert it to float32"),
        _ => Ok(voxel),
    }
}

/// What a header of either version says.
struct Header {
    dims: [i64; 8],
    datatype: i16,
    bitpix: i16,
    offset: f64,
    slope: f64,
    intercept: f64,
    spatial: SpatialHeader,
}

impl Header {
    /// Of the 348 bytes of NIfTI-1.
    fn version_1(bytes: &[u8]) -> Result<Header, Problem> {
        let header = NiftiHeader::from_reader(bytes).map_err(|e| Problem::Format(e.to_string()))?;
        // the crate swaps bytes wherever dim[0] is no number of dimensions
        if header.sizeof_hdr != NIFTI1_BYTES as i32 {
            return wrong(number_of_dimensions(i64::from(header.dim[0].swap_bytes() as i16)));
        }
        let floats = |values: &[f32; 4]| values.map(f64::from);
        let h = &header;
        Ok(Header {
            dims: h.dim.map(|n| i64::from(n as i16)),
            datatype: h.datatype,
            bitpix: h.bitpix,
            offset: f64::from(h.vox_offset),
            slope: f64::from(h.scl_slope),
            intercept: f64::from(h.scl_inter),
            spatial: SpatialHeader {
                version: 1,
                axes: 0,
                qform_code: i32::from(h.qform_code),
                sform_code: i32::from(h.sform_code),
                pixdim: std::array::from_fn(|i| f64::from(h.pixdim[i])),
                quaternion: [h.quatern_b, h.quatern_c, h.quatern_d].map(f64::from),
                offset: [h.quatern_x, h.quatern_y, h.quatern_z].map(f64::from),
                rows: [floats(&h.srow_x), floats(&h.srow_y), floats(&h.srow_z)],
                units: i32::from(h.xyzt_units),
            },
        })
    }

    /// Of the 540 bytes of NIfTI-2.
    fn version_2(header: &[u8], big_endian: bool) -> Header {
        let fields = Fields { header, big_endian };
        let floats = |at: usize| move |i: usize| fields.f64(at + 8 * i);
        Header {
            dims: std::array::from_fn(|i| fields.i64(16 + 8 * i)),
            datatype: fields.i16(12),
            bitpix: fields.i16(14),
            offset: fields.i64(168) as f64,
            slope: fields.f64(176),
            intercept: fields.f64(184),
            spatial: SpatialHeader {
                version: 2,
                axes: 0,
                qform_code: fields.i32(344),
                sform_code: fields.i32(348),
                pixdim: std::array::from_fn(floats(104)),
                quaternion: std::array::from_fn(floats(352)),
                offset: std::array::from_fn(floats(376)),
                rows: std::array::from_fn(|row| std::array::from_fn(floats(400 + 32 * row))),
                units: fields.i32(500),
            },
        }
    }
}

/// Fixed-size fields at fixed places, in the file's byte order.
#[derive(Clone, Copy)]
struct Fields<'a> {
    header: &'a [u8],
    big_endian: bool,
}

impl Fields<'_> {
    fn get<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut field = [0; N];
        field.copy_from_slice(&self.header[at..at + N]);
        if self.big_endian {
            field.reverse();
        }
        field
    }
    fn i16(&self, at: usize) -> i16 {
        i16::from_le_bytes(self.get(at))
    }
    fn i32(&self, at: usize) -> i32 {
        i32::from_le_bytes(self.get(at))
    }
    fn i64(&self, at: usize) -> i64 {
        i64::from_le_bytes(self.get(at))
    }
    fn f64(&self, at: usize) -> f64 {
        f64::from_le_bytes(self.get(at))
    }
}

const NIFTI1_BYTES: usize = 348;
const NIFTI2_BYTES: usize = 540;
/// Header extensions are small.
const MOST_EXTENSIONS: f64 = (1u64 << 30) as f64;
/// Reads the header of a stream that begins with these four bytes.
pub(super) fn open<R: BufRead>(
    first: [u8; 4],
    mut stream: Stream<R>,
    beside: Beside<R>,
) -> Result<Scan<R>, Problem> {
    let (version, big_endian) = match (i32::from_le_bytes(first), i32::from_be_bytes(first)) {
        (348, _) => (1, false),
        (_, 348) => (1, true),
        (540, _) => (2, false),
        (_, 540) => (2, true),
        _ => {
            return wrong(
                "it is not a NIfTI file (the header's first field is neither 348 nor 540), and no MGH or NRRD file either",
            );
        }
    };
    let header_bytes = if version == 1 { NIFTI1_BYTES } else { NIFTI2_BYTES };
    let mut header = first.to_vec();
    header.resize(header_bytes, 0);
    stream.bytes.read_exact(&mut header[4..])?;
    let magic = if version == 1 {
        &header[344..348]
    } else {
        &header[4..8]
    };
    let pair = match magic {
        b"n+1\0" | b"n+2\0" => false,
        b"ni1\0" | b"ni2\0" => true,
        _ => return wrong("it is no NIfTI file (its magic is missing; ANALYZE 7.5 has no orientation)"),
    };

    let Header {
        dims,
        datatype,
        bitpix,
        offset,
        slope,
        intercept,
        mut spatial,
    } = match version {
        1 => Header::version_1(&header)?,
        _ => Header::version_2(&header, big_endian),
    };
    let voxel = voxel_type(datatype)?;
    if i64::from(bitpix) != 8 * voxel.size_of() as i64 {
        return wrong(format!(
            "its header contradicts itself: datatype {datatype} has {} bits a voxel, bitpix says {bitpix}",
            8 * voxel.size_of()
        ));
    }
    let (shape, channels, axes) = shape(dims)?;
    spatial.axes = axes;
    let geometry = spatial.geometry(shape).or_else(wrong)?;
    let scaling = match slope {
        s if s == 0.0 || !s.is_finite() => None,
        _ if !intercept.is_finite() => {
            return wrong(format!(
                "its intensity scaling is slope {slope} with intercept {intercept}"
            ));
        }
        _ => Some((slope, intercept)).filter(|s| *s != (1.0, 0.0)),
    };

    // The four bytes that announce extensions belong to the header; voxels of a pair begin in a file of their own.
    let least = if pair { 0 } else { header_bytes + 4 };
    let offset = match offset {
        0.0 => least,
        o if o >= least as f64 && o <= MOST_EXTENSIONS && o.fract() == 0.0 => o as usize,
        o if o > MOST_EXTENSIONS => {
            return wrong(format!(
                "its voxels start at byte {o}; the file is cut off or its header damaged"
            ));
        }
        o => {
            return wrong(format!(
                "its voxels start at byte {o}, inside the header of {least} bytes"
            ));
        }
    };
    if pair {
        let (reader, length) = beside(Other::Ending(&["img", "img.gz"]))?;
        stream = Stream::new(reader, length)?;
        stream.skip(offset as u64)?;
    } else {
        stream.skip((offset - header_bytes) as u64)?;
    }
    Ok(Scan {
        stream,
        geometry,
        channels,
        voxel,
        big_endian,
        scaling,
    })
}

fn number_of_dimensions(declared: i64) -> String {
    format!("it declares {declared} dimensions; NIfTI has 1 to 7")
}

/// The spatial shape, the number of channels and the number of spatial axes that `dim` declares.
pub(super) fn shape(dims: [i64; 8]) -> Result<([usize; 3], usize, usize), Problem> {
    if !(1..=7).contains(&dims[0]) {
        return wrong(number_of_dimensions(dims[0]));
    }
    let rank = dims[0] as usize;
    let declared = &dims[1..=rank];
    if declared.iter().any(|d| *d < 1) {
        return wrong(format!("its dimensions {declared:?} are not all positive"));
    }
    let beyond: Vec<i64> = declared.iter().skip(3).copied().filter(|d| *d > 1).collect();
    if beyond.len() > 1 {
        return wrong(format!(
            "its dimensions {declared:?} have more than one axis beyond space"
        ));
    }
    let mut shape = [1; 3];
    for (n, d) in shape.iter_mut().zip(declared) {
        *n = *d as usize;
    }
    let channels = beyond.first().map_or(1, |d| *d as usize);
    // f64 voxels in bytes must be countable
    let total = declared.iter().try_fold(8i64, |total, d| total.checked_mul(*d));
    match total.and_then(|t| usize::try_from(t).ok()) {
        Some(_) => Ok((shape, channels, rank.min(3))),
        None => wrong(format!(
            "its dimensions {declared:?} are more than memory can hold"
        )),
    }
}

impl SpatialHeader {
    /// A grid whose only transform is `affine`, as an sform.
    pub fn from_affine(affine: DMat4) -> SpatialHeader {
        let rows = affine.transpose().to_cols_array_2d();
        let sizes = [affine.x_axis, affine.y_axis, affine.z_axis].map(|c| c.truncate().length());
        SpatialHeader {
            version: 1,
            axes: 3,
            qform_code: 0,
            sform_code: 2,
            pixdim: [1.0, sizes[0], sizes[1], sizes[2]],
            quaternion: [0.0; 3],
            offset: [0.0; 3],
            rows: [rows[0], rows[1], rows[2]],
            units: 2,
        }
    }

    /// Millimetres of the unit of length that the header names; `None` where it names none.
    pub(super) fn unit(&self) -> Option<f64> {
        let header = NiftiHeader {
            xyzt_units: (self.units & 7) as u8,
            ..NiftiHeader::default()
        };
        match header.xyzt_to_space() {
            Ok(Unit::Meter) => Some(1e3),
            Ok(Unit::Mm) => Some(1.0),
            Ok(Unit::Micron) => Some(1e-3),
            _ => None,
        }
    }

    /// The geometry that these fields give a grid of `shape`, in millimetres. A header that names no unit of length means
    /// millimetres.
    ///
    /// # Errors
    /// A transform in use that is singular or not finite, voxels below a tenth of a micrometre, and a grid beyond ten metres or
    /// ten kilometres away.
    pub fn geometry(&self, shape: [usize; 3]) -> Result<Geometry, String> {
        let unit = self.unit().unwrap_or(1.0);
        let declared: [f64; 3] = std::array::from_fn(|i| {
            let size = self.pixdim[i + 1].abs() * unit;
            if i < self.axes && size.is_finite() {
                size
            } else {
                0.0
            }
        });
        // nibabel: an undeclared size counts as 1 in the affine
        let or_one = |d: f64| if d == 0.0 || !d.is_finite() { 1.0 } else { d.abs() };
        let (name, affine) = if self.sform_code != 0 {
            let [r0, r1, r2] = self.rows.map(|row| row.map(|v| v * unit));
            (
                "sform",
                DMat4::from_cols_array_2d(&[r0, r1, r2, [0.0, 0.0, 0.0, 1.0]]).transpose(),
            )
        } else if self.qform_code != 0 {
            let sizes = DVec3::from_array(std::array::from_fn(|i| or_one(self.pixdim[i + 1] * unit)));
            let qfac = if self.pixdim[0] == -1.0 { -1.0 } else { 1.0 };
            let [b, c, d] = self.quaternion;
            let w = (1.0 - (b * b + c * c + d * d)).max(0.0).sqrt();
            let rotation = DMat3::from_quat(DQuat::from_xyzw(b, c, d, w).normalize());
            let matrix = rotation * DMat3::from_diagonal(sizes * DVec3::new(1.0, 1.0, qfac));
            let offset = DVec3::from_array(self.offset) * unit;
            ("qform", DMat4::from_mat3_translation(matrix, offset))
        } else {
            let scale = DVec3::from_array(declared.map(or_one)) * DVec3::new(-1.0, 1.0, 1.0);
            let centre = DVec3::from_array(shape.map(|n| (n - 1) as f64 / 2.0));
            let matrix = DMat3::from_diagonal(scale);
            (
                "voxel size",
                DMat4::from_mat3_translation(matrix, -centre * scale),
            )
        };
        let matrix = DMat3::from_mat4(affine);
        let orientation = Orientation::from_matrix(matrix)
            .filter(|_| affine.is_finite())
            .ok_or_else(|| {
                format!(
                    "its {name} {:?} is singular or not finite; repair its header",
                    affine.transpose().to_cols_array_2d()
                )
            })?;
        let lengths = [matrix.x_axis, matrix.y_axis, matrix.z_axis].map(|c| c.length());
        let spacing: [f64; 3] = std::array::from_fn(|i| {
            if self.sform_code == 0 {
                return round(declared[i]);
            }
            // the declared size is the same number in every orientation of a scan, a column's length is not
            let agrees = (declared[i] - lengths[i]).abs() <= 1e-3 * lengths[i];
            round(if agrees { declared[i] } else { lengths[i] })
        });
        let possible =
            |axis: usize| LEAST_VOXEL <= lengths[axis] && shape[axis] as f64 * lengths[axis] <= MOST_EXTENT;
        if !(0..3).all(possible) {
            let [x, y, z] =
                std::array::from_fn(|axis| format!("{} × {} mm", shape[axis], lengths[axis] as f32));
            let unit = match self.unit() {
                Some(_) => "in the unit that xyzt_units names",
                None => "and xyzt_units names no unit",
            };
            return Err(format!(
                "its grid of {x}, {y} and {z} is no scan's ({name}, {unit}); repair its header"
            ));
        }
        let origin = affine.w_axis.truncate();
        if origin.abs().max_element() > MOST_OFFSET {
            return Err(format!(
                "its {name} puts it at {:?} mm, where no scan is; repair its header",
                origin.to_array()
            ));
        }
        Ok(Geometry {
            shape,
            affine,
            spacing,
            orientation,
            header: self.clone(),
        })
    }

    /// A little-endian header, with the four bytes that say that no extension follows.
    fn encode(&self, shape: [usize; 3], datatype: i16, bytes: usize) -> Vec<u8> {
        let first = self.version == 1 && shape.iter().all(|n| *n <= i16::MAX as usize);
        let size = if first { NIFTI1_BYTES } else { NIFTI2_BYTES };
        let mut header = vec![0u8; size + 4];
        let mut put = |at: usize, field: &[u8]| header[at..at + field.len()].copy_from_slice(field);
        put(0, &(size as i32).to_le_bytes());
        let mut dims = [1i64; 8];
        dims[0] = self.axes as i64;
        dims[1..4].copy_from_slice(&shape.map(|n| n as i64));
        let bitpix = (8 * bytes) as i16;
        let mut pixdim = [1.0; 8];
        pixdim[..4].copy_from_slice(&self.pixdim);
        let rows = self.rows.concat();
        let description = b"obelisk";
        if first {
            put(344, b"n+1\0");
            dims.iter()
                .enumerate()
                .for_each(|(i, d)| put(40 + 2 * i, &(*d as i16).to_le_bytes()));
            put(70, &datatype.to_le_bytes());
            put(72, &bitpix.to_le_bytes());
            let mut floats = |at: usize, values: &[f64]| {
                values
                    .iter()
                    .enumerate()
                    .for_each(|(i, v)| put(at + 4 * i, &(*v as f32).to_le_bytes()));
            };
            floats(76, &pixdim);
            floats(108, &[(size + 4) as f64, 1.0, 0.0]); // vox_offset, scl_slope, scl_inter
            floats(256, &self.quaternion);
            floats(268, &self.offset);
            floats(280, &rows);
            put(123, &[self.units as u8]);
            put(148, description);
            put(252, &(self.qform_code as i16).to_le_bytes());
            put(254, &(self.sform_code as i16).to_le_bytes());
        } else {
            put(4, b"n+2\0\r\n\x1a\n");
            dims.iter()
                .enumerate()
                .for_each(|(i, d)| put(16 + 8 * i, &d.to_le_bytes()));
            put(12, &datatype.to_le_bytes());
            put(14, &bitpix.to_le_bytes());
            put(168, &(size as i64 + 4).to_le_bytes());
            let mut floats = |at: usize, values: &[f64]| {
                values
                    .iter()
                    .enumerate()
                    .for_each(|(i, v)| put(at + 8 * i, &v.to_le_bytes()));
            };
            floats(104, &pixdim);
            floats(176, &[1.0, 0.0]); // scl_slope, scl_inter
            floats(352, &self.quaternion);
            floats(376, &self.offset);
            floats(400, &rows);
            put(500, &self.units.to_le_bytes());
            put(240, description);
            put(344, &self.qform_code.to_le_bytes());
            put(348, &self.sform_code.to_le_bytes());
        }
        header
    }
}

/// Millimetres; finer and larger ones come of a wrong unit.
const LEAST_VOXEL: f64 = 1e-4;
const MOST_EXTENT: f64 = 1e4;
/// Millimetres from the world's origin, ten kilometres: beyond, numbers are too coarse to say where voxels lie.
const MOST_OFFSET: f64 = 1e7;

/// To a millionth of a millimetre: 0.7 stored as f32 is 0.7.
fn round(size: f64) -> f64 {
    (size * 1e6).round() / 1e6
}

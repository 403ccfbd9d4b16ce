//! NIfTI-1 and NIfTI-2 single files (`.nii`, `.nii.gz`): a checked reader of everything that holds a scan, and a
//! writer of label maps on a scan's grid.
//!
//! Affines follow nibabel: the sform where its code is set, else the qform, else the voxel sizes with the origin at
//! the grid's centre and x towards the patient's left. Scaling follows the standard: a slope of zero, NaN or
//! infinity means none. Lengths are millimetres, whatever unit the header names.
//!
//! The crate `nifti` (0.18) reads NIfTI-1 headers and names the types of voxels and units, behind checks of what it lets
//! pass: it takes the byte order from `dim[0]` alone, dimensions as unsigned, and any `bitpix`. NIfTI-2, which it does not
//! know, is read here. So are voxels, and files are written here, because the crate
//!
//! - scales in f32: with slope 0.1 and intercept 5, 464 of the 65,536 values of int16 differ from nibabel's;
//! - holds the file's bytes, a typed copy and the converted array at once, 840 MB for 512 × 512 × 400 voxels of int16, where
//!   16 planes and the array are 428 MB here, and knows only the first member of a gzip stream;
//! - writes `sub.01.nii` to `sub.nii`, replaces a file in place, drops the error of a last write to a full disk, and can't
//!   write to memory, which the page needs.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::ops::Range;
use std::path::Path;

use ::nifti::{NiftiHeader, NiftiType, Unit};
use flate2::bufread::GzDecoder;
use flate2::{Compression, GzBuilder};
use glam::{DMat3, DMat4, DQuat, DVec3};

use super::{Geometry, Orientation, Volume, VolumeError};
use crate::file::write_beside;
use crate::host_memory::{self, TooLarge};

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

/// Reads a scan.
///
/// # Errors
/// A file that cannot be opened, is cut off or damaged, is no single-file NIfTI, holds colours or complex numbers,
/// has impossible dimensions, more than one axis beyond space or more voxels than there is memory for, or says where it
/// lies in a way that cannot be.
pub fn read(path: &Path) -> Result<Volume, VolumeError> {
    open(path)?
        .and_then(|scan| scan.volume(path))
        .map_err(|problem| problem.at(path))
}

/// Reads a scan from a file's bytes; `name` is for messages.
///
/// # Errors
/// As [`read`].
pub fn read_bytes(bytes: &[u8], name: &Path) -> Result<Volume, VolumeError> {
    Scan::open(bytes, bytes.len() as u64)
        .and_then(|scan| scan.volume(name))
        .map_err(|problem| problem.at(name))
}

/// Reads where a scan lies, and its number of channels, without its voxels.
///
/// # Errors
/// As [`read`], for the header alone.
pub fn read_geometry(path: &Path) -> Result<(Geometry, usize), VolumeError> {
    match open(path)? {
        Ok(scan) => Ok((scan.geometry, scan.channels)),
        Err(problem) => Err(problem.at(path)),
    }
}

fn open(path: &Path) -> Result<Result<Scan<BufReader<File>>, Problem>, VolumeError> {
    let opened = File::open(path).and_then(|file| Ok((file.metadata()?, file)));
    let (metadata, file) = opened.map_err(|reason| VolumeError::Io {
        path: path.into(),
        reason,
    })?;
    // a pipe does not know its length
    let length = if metadata.is_file() {
        metadata.len()
    } else {
        u64::MAX
    };
    Ok(Scan::open(BufReader::new(file), length))
}

/// Writes a label map `[X, Y, Z]` (z fastest) on the grid `like`, in the smallest integer type that holds its values.
///
/// The name must end in `.nii` or `.nii.gz`. Shape, affine, transforms, units and NIfTI version are those of `like`.
///
/// # Errors
/// Another ending, an existing file without `force`, a number of labels that is not that of the grid, or the
/// operating system's refusal.
pub fn write_labels(path: &Path, labels: &[i32], like: &Geometry, force: bool) -> Result<(), VolumeError> {
    write_file(path, force, |compress| encode_labels(labels, like, compress))
}

/// Writes a scan of one channel `[X, Y, Z]` (z fastest) on the grid `like` as f32; otherwise as [`write_labels`].
///
/// # Errors
/// As [`write_labels`].
pub fn write_image(path: &Path, voxels: &[f32], like: &Geometry, force: bool) -> Result<(), VolumeError> {
    write_file(path, force, |compress| {
        encode(voxels, like, 16, 4, compress, |voxel| voxel.to_le_bytes())
    })
}

/// Writes numbers from 0 to 1, one or several a voxel, on the grid `like`: each map `[X, Y, Z]` (z fastest), in steps of 1/255,
/// which take a quarter of what f32 takes. Several maps are the file's fourth axis. Otherwise as [`write_labels`].
///
/// # Errors
/// As [`write_labels`].
///
/// # Panics
/// Without a map.
pub fn write_shares(path: &Path, maps: &[Vec<f32>], like: &Geometry, force: bool) -> Result<(), VolumeError> {
    assert!(!maps.is_empty(), "one map at least");
    write_file(path, force, |compress| {
        let step = |share: f32| (share.clamp(0.0, 1.0) * 255.0).round() as u8;
        let mut file = Vec::new();
        for map in maps {
            let own = encode(map, like, 2, 1, false, |share| [step(share), 0, 0, 0])?;
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
        match compress {
            true => gzip(&file),
            false => Ok(file),
        }
    })
}

fn write_file(
    path: &Path,
    force: bool,
    encode: impl FnOnce(bool) -> Result<Vec<u8>, String>,
) -> Result<(), VolumeError> {
    let format = |problem: String| VolumeError::Format {
        path: path.into(),
        problem,
    };
    if super::stem(path).is_none() {
        return Err(format("the name must end in .nii or .nii.gz".into()));
    }
    let compress = path
        .extension()
        .is_some_and(|ending| ending.eq_ignore_ascii_case("gz"));
    let bytes = encode(compress).map_err(format)?;
    write_beside(path, &bytes, force).map_err(|reason| VolumeError::Io {
        path: path.into(),
        reason,
    })
}

/// The bytes that [`write_labels`] writes, compressed or not. Compressed bytes carry no time and no name.
///
/// # Errors
/// A number of labels that is not that of the grid.
pub fn encode_labels(labels: &[i32], like: &Geometry, compress: bool) -> Result<Vec<u8>, String> {
    let low = labels.iter().copied().min().unwrap_or(0);
    let high = labels.iter().copied().max().unwrap_or(0);
    let (code, bytes) = match (low, high) {
        (0.., ..=255) => (2, 1),
        (-128.., ..=127) => (256, 1),
        (-32768.., ..=32767) => (4, 2),
        (0.., ..=65535) => (512, 2),
        _ => (8, 4),
    };
    encode(labels, like, code, bytes, compress, |label| label.to_le_bytes())
}

/// A file of voxels of which the first `bytes` little-endian bytes are stored.
fn encode<T: Copy>(
    voxels: &[T],
    like: &Geometry,
    code: i16,
    bytes: usize,
    compress: bool,
    little_endian: impl Fn(T) -> [u8; 4],
) -> Result<Vec<u8>, String> {
    if voxels.len() != like.voxels() {
        return Err(format!("{} voxels for a grid of {:?}", voxels.len(), like.shape));
    }
    let mut file = like.header.encode(like.shape, code, bytes);
    let start = file.len();
    file.resize(start + voxels.len() * bytes, 0);
    let [x, y, z] = like.shape;
    for (index, voxel) in voxels.iter().enumerate() {
        let (i, j, k) = (index / (y * z), index / z % y, index % z);
        let at = start + bytes * (i + x * (j + y * k));
        file[at..at + bytes].copy_from_slice(&little_endian(*voxel)[..bytes]);
    }
    match compress {
        true => gzip(&file),
        false => Ok(file),
    }
}

fn gzip(bytes: &[u8]) -> Result<Vec<u8>, String> {
    let mut encoder = GzBuilder::new().write(Vec::new(), Compression::default());
    encoder
        .write_all(bytes)
        .and_then(|()| encoder.finish())
        .map_err(|e| e.to_string())
}

/// What went wrong, before the file's name is known.
enum Problem {
    Io(io::Error),
    Format(String),
    Memory(String, TooLarge),
}

impl Problem {
    fn at(self, path: &Path) -> VolumeError {
        let path = path.to_path_buf();
        match self {
            Problem::Io(source) if source.kind() == io::ErrorKind::UnexpectedEof => VolumeError::Format {
                path,
                problem: "the file is cut off; copy or download it again".into(),
            },
            Problem::Io(source) if source.kind() == io::ErrorKind::InvalidInput => VolumeError::Format {
                path,
                problem: format!("the compressed data is damaged ({source})"),
            },
            Problem::Io(reason) => VolumeError::Io { path, reason },
            Problem::Format(problem) => VolumeError::Format { path, problem },
            Problem::Memory(what, cause) => VolumeError::Memory { path, what, cause },
        }
    }
}

impl From<io::Error> for Problem {
    fn from(error: io::Error) -> Self {
        Problem::Io(error)
    }
}

fn wrong<T>(problem: impl Into<String>) -> Result<T, Problem> {
    Err(Problem::Format(problem.into()))
}

/// The uncompressed bytes of a plain or gzip stream of any number of members. The first bytes decide which it is;
/// anything after the last member is padding, as gzip(1) has it.
enum Bytes<R: BufRead> {
    Plain(R),
    Gzip(Option<GzDecoder<R>>),
}

impl<R: BufRead> Read for Bytes<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let member = match self {
            Bytes::Plain(reader) => return reader.read(buffer),
            Bytes::Gzip(member) => member,
        };
        while let Some(decoder) = member.as_mut() {
            let count = decoder.read(buffer)?;
            if count > 0 || buffer.is_empty() {
                return Ok(count);
            }
            let mut rest = member.take().expect("just used").into_inner();
            *member = rest
                .fill_buf()?
                .starts_with(&[0x1f])
                .then(|| GzDecoder::new(rest));
        }
        Ok(0)
    }
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

/// An opened file whose header has been read and checked, its voxels next in `bytes`.
struct Scan<R: BufRead> {
    bytes: Bytes<R>,
    geometry: Geometry,
    channels: usize,
    voxel: NiftiType,
    big_endian: bool,
    /// Slope and intercept, where there are any.
    scaling: Option<(f64, f64)>,
    /// The most bytes that can come out of the file, header included.
    most_bytes: u64,
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
/// Deflate makes no more bytes of one.
const MOST_INFLATION: u64 = 1032;
/// Header extensions are small, and so is padding after the voxels.
const MOST_EXTENSIONS: f64 = (1u64 << 30) as f64;
const MOST_PADDING: u64 = 16 << 20;
/// Planes that are decoded at once: their voxels fill the cache lines that a column in x touches.
const PLANES: usize = 16;

impl<R: BufRead> Scan<R> {
    /// Reads the header of a stream of `length` bytes.
    fn open(mut reader: R, length: u64) -> Result<Self, Problem> {
        let start = reader.fill_buf()?;
        if start.is_empty() {
            return wrong("the file is empty");
        }
        let (mut bytes, most_bytes) = match start.starts_with(&[0x1f, 0x8b]) {
            true => (
                Bytes::Gzip(Some(GzDecoder::new(reader))),
                length.saturating_mul(MOST_INFLATION),
            ),
            false => (Bytes::Plain(reader), length),
        };

        let mut header = vec![0; 4];
        bytes.read_exact(&mut header)?;
        let size = [header[0], header[1], header[2], header[3]];
        let (version, big_endian) = match (i32::from_le_bytes(size), i32::from_be_bytes(size)) {
            (348, _) => (1, false),
            (_, 348) => (1, true),
            (540, _) => (2, false),
            (_, 540) => (2, true),
            _ => return wrong("it is not a NIfTI file (the header's first field is neither 348 nor 540)"),
        };
        let header_bytes = if version == 1 { NIFTI1_BYTES } else { NIFTI2_BYTES };
        header.resize(header_bytes, 0);
        bytes.read_exact(&mut header[4..])?;
        let magic = if version == 1 {
            &header[344..348]
        } else {
            &header[4..8]
        };
        match magic {
            b"n+1\0" | b"n+2\0" => {}
            b"ni1\0" | b"ni2\0" => {
                return wrong("it is half of a .hdr/.img pair; convert the pair to one .nii or .nii.gz file");
            }
            _ => return wrong("it is no NIfTI file (its magic is missing; ANALYZE 7.5 has no orientation)"),
        }

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

        let least = header_bytes + 4; // the four bytes that announce extensions belong to the header
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
        let gap = (offset - header_bytes) as u64;
        if io::copy(&mut (&mut bytes).take(gap), &mut io::sink())? < gap {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        Ok(Scan {
            bytes,
            geometry,
            channels,
            voxel,
            big_endian,
            scaling,
            most_bytes,
        })
    }

    fn volume(mut self, source: &Path) -> Result<Volume, Problem> {
        let shape = self.geometry.shape;
        let size = self.voxel.size_of();
        let plane = shape[0] * shape[1] * size;
        let promised = host_memory::bytes(&[self.channels, shape[2]], plane);
        if promised > self.most_bytes {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        let too_large = |e| Problem::Memory(format!("{} channels of {shape:?} voxels", self.channels), e);
        let block = host_memory::bytes(&[plane], shape[2].min(PLANES));
        let values = host_memory::bytes(&[self.channels, self.geometry.voxels()], size_of::<f32>());
        host_memory::require(values.saturating_add(block)).map_err(too_large)?;
        let mut data = host_memory::zeros(self.channels * self.geometry.voxels()).map_err(too_large)?;
        let mut raw = Vec::new();
        for channel in data.chunks_exact_mut(self.geometry.voxels()) {
            for first in (0..shape[2]).step_by(PLANES) {
                let planes = first..shape[2].min(first + PLANES);
                raw.clear();
                let bytes = plane * planes.len();
                if (&mut self.bytes).take(bytes as u64).read_to_end(&mut raw)? < bytes {
                    return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
                }
                if self.big_endian {
                    raw.chunks_exact_mut(size).for_each(<[u8]>::reverse);
                }
                decode(&raw, self.voxel, self.scaling, shape, planes, channel);
            }
        }
        if matches!(self.bytes, Bytes::Gzip(_)) {
            // to the end, for the last member's checksum
            let rest = io::copy(&mut (&mut self.bytes).take(MOST_PADDING + 1), &mut io::sink())?;
            if rest > MOST_PADDING {
                return wrong("it goes on long after the voxels that its header declares");
            }
        }
        let finest = self
            .geometry
            .spacing
            .into_iter()
            .filter(|s| *s > 0.0)
            .fold(1.0, f64::min);
        if self.geometry.header.unit().is_none() && finest < 0.05 {
            tracing::warn!(
                "{}: its header names no unit of length; its voxels of {:?} are taken as millimetres",
                source.display(),
                self.geometry.spacing
            );
        }

        let non_finite = data.iter().filter(|v| !v.is_finite()).count();
        if non_finite > 0 {
            let finite = || data.iter().copied().filter(|v| v.is_finite());
            let low = finite().fold(f32::INFINITY, f32::min);
            let high = finite().fold(f32::NEG_INFINITY, f32::max);
            if low > high {
                return wrong("none of its voxels is a finite number");
            }
            for v in data.iter_mut().filter(|v| !v.is_finite()) {
                *v = if *v == f32::INFINITY { high } else { low };
            }
            tracing::warn!(
                "{}: {non_finite} voxels are not finite; NaN became the smallest finite value, {low}",
                source.display()
            );
        }
        Ok(Volume {
            data,
            channels: self.channels,
            geometry: self.geometry,
            non_finite,
            source: source.into(),
        })
    }
}

/// Decodes the planes `planes` of one channel, x fastest in the file, to z fastest in memory.
fn decode(
    raw: &[u8],
    voxel: NiftiType,
    scaling: Option<(f64, f64)>,
    shape: [usize; 3],
    planes: Range<usize>,
    out: &mut [f32],
) {
    macro_rules! each {
        ($type:ty) => {{
            const N: usize = size_of::<$type>();
            let value = |chunk: &[u8]| <$type>::from_le_bytes(chunk.try_into().expect("chunks of N bytes"));
            match scaling {
                None => transpose(raw, N, shape, planes, out, |chunk| value(chunk) as f32),
                Some((slope, intercept)) => transpose(raw, N, shape, planes, out, |chunk| {
                    (value(chunk) as f64 * slope + intercept) as f32
                }),
            }
        }};
    }
    match voxel {
        NiftiType::Uint8 => each!(u8),
        NiftiType::Int8 => each!(i8),
        NiftiType::Uint16 => each!(u16),
        NiftiType::Int16 => each!(i16),
        NiftiType::Uint32 => each!(u32),
        NiftiType::Int32 => each!(i32),
        NiftiType::Uint64 => each!(u64),
        NiftiType::Int64 => each!(i64),
        NiftiType::Float32 => each!(f32),
        NiftiType::Float64 => each!(f64),
        _ => unreachable!("voxel_type refuses {voxel:?}"),
    }
}

fn transpose(
    raw: &[u8],
    bytes: usize,
    [x, y, z]: [usize; 3],
    planes: Range<usize>,
    out: &mut [f32],
    value: impl Fn(&[u8]) -> f32,
) {
    for j in 0..y {
        for i in 0..x {
            for k in planes.clone() {
                let at = bytes * (i + x * (j + y * (k - planes.start)));
                out[(i * y + j) * z + k] = value(&raw[at..at + bytes]);
            }
        }
    }
}

fn number_of_dimensions(declared: i64) -> String {
    format!("it declares {declared} dimensions; NIfTI has 1 to 7")
}

/// The spatial shape, the number of channels and the number of spatial axes that `dim` declares.
fn shape(dims: [i64; 8]) -> Result<([usize; 3], usize, usize), Problem> {
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
    fn unit(&self) -> Option<f64> {
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

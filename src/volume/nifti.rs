//! NIfTI-1 and NIfTI-2 single files (`.nii`, `.nii.gz`): a checked reader of everything that holds a scan, and a
//! writer of label maps on a scan's grid.
//!
//! Affines follow nibabel: the sform where its code is set, else the qform, else the voxel sizes with the origin at
//! the grid's centre and x towards the patient's left. Scaling follows the standard: a slope of zero, NaN or
//! infinity means none.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::Path;

use flate2::bufread::GzDecoder;
use flate2::{Compression, GzBuilder};
use glam::{DMat3, DMat4, DQuat, DVec3};

use super::{Geometry, Orientation, Volume, VolumeError};
use crate::file::write_beside;

/// The header fields that place a grid in the patient, as the file has them (f32 fields of NIfTI-1 widened).
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
/// has impossible dimensions or more than one axis beyond space, or says where it lies in a way that cannot be.
pub fn read(path: &Path) -> Result<Volume, VolumeError> {
    Scan::open(open(path)?)
        .and_then(|scan| scan.volume(path))
        .map_err(|problem| problem.at(path))
}

/// Reads a scan from a file's bytes; `name` is for messages.
///
/// # Errors
/// As [`read`].
pub fn read_bytes(bytes: &[u8], name: &Path) -> Result<Volume, VolumeError> {
    Scan::open(bytes)
        .and_then(|scan| scan.volume(name))
        .map_err(|problem| problem.at(name))
}

/// Reads where a scan lies, and its number of channels, without its voxels.
///
/// # Errors
/// As [`read`], for the header alone.
pub fn read_geometry(path: &Path) -> Result<(Geometry, usize), VolumeError> {
    match Scan::open(open(path)?) {
        Ok(scan) => Ok((scan.geometry, scan.channels)),
        Err(problem) => Err(problem.at(path)),
    }
}

fn open(path: &Path) -> Result<BufReader<File>, VolumeError> {
    File::open(path)
        .map(BufReader::new)
        .map_err(|source| VolumeError::Io {
            path: path.into(),
            source,
        })
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

fn write_file(
    path: &Path,
    force: bool,
    encode: impl FnOnce(bool) -> Result<Vec<u8>, String>,
) -> Result<(), VolumeError> {
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    let format = |problem: String| VolumeError::Format {
        path: path.into(),
        problem,
    };
    if super::stem(path).is_none() {
        return Err(format("the name must end in .nii or .nii.gz".into()));
    }
    let bytes = encode(name.ends_with(".gz")).map_err(format)?;
    write_beside(path, &bytes, force).map_err(|source| VolumeError::Io {
        path: path.into(),
        source,
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
    if !compress {
        return Ok(file);
    }
    let mut encoder = GzBuilder::new().write(Vec::new(), Compression::default());
    encoder
        .write_all(&file)
        .and_then(|()| encoder.finish())
        .map_err(|e| e.to_string())
}

/// What went wrong, before the file's name is known.
enum Problem {
    Io(io::Error),
    Format(String),
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
            Problem::Io(source) => VolumeError::Io { path, source },
            Problem::Format(problem) => VolumeError::Format { path, problem },
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

/// How a voxel is stored.
#[derive(Clone, Copy)]
enum Voxel {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    U64,
    I64,
    F32,
    F64,
}

impl Voxel {
    fn of(code: i16) -> Result<Voxel, Problem> {
        Ok(match code {
            2 => Voxel::U8,
            256 => Voxel::I8,
            512 => Voxel::U16,
            4 => Voxel::I16,
            768 => Voxel::U32,
            8 => Voxel::I32,
            1280 => Voxel::U64,
            1024 => Voxel::I64,
            16 => Voxel::F32,
            64 => Voxel::F64,
            128 | 2304 => return wrong("it holds RGB colours; convert it to one grey value a voxel"),
            32 | 1792 | 2048 => return wrong("it holds complex numbers; convert it to magnitudes"),
            1536 => return wrong("it holds 128-bit floats; convert it to float32"),
            1 => return wrong("it holds single bits; convert it to uint8"),
            other => return wrong(format!("its datatype code {other} is not one of NIfTI's")),
        })
    }

    fn bytes(self) -> usize {
        match self {
            Voxel::U8 | Voxel::I8 => 1,
            Voxel::U16 | Voxel::I16 => 2,
            Voxel::U32 | Voxel::I32 | Voxel::F32 => 4,
            Voxel::U64 | Voxel::I64 | Voxel::F64 => 8,
        }
    }
}

/// An opened file whose header has been read and checked, its voxels next in `bytes`.
struct Scan<R: BufRead> {
    bytes: Bytes<R>,
    geometry: Geometry,
    channels: usize,
    voxel: Voxel,
    big_endian: bool,
    /// Slope and intercept, where there are any.
    scaling: Option<(f64, f64)>,
}

/// Fixed-size fields at fixed places, in the file's byte order.
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
    fn f32(&self, at: usize) -> f64 {
        f64::from(f32::from_le_bytes(self.get(at)))
    }
    fn f64(&self, at: usize) -> f64 {
        f64::from_le_bytes(self.get(at))
    }
}

const NIFTI1_BYTES: usize = 348;
const NIFTI2_BYTES: usize = 540;

impl<R: BufRead> Scan<R> {
    fn open(mut reader: R) -> Result<Self, Problem> {
        let start = reader.fill_buf()?;
        if start.is_empty() {
            return wrong("the file is empty");
        }
        let mut bytes = match start.starts_with(&[0x1f, 0x8b]) {
            true => Bytes::Gzip(Some(GzDecoder::new(reader))),
            false => Bytes::Plain(reader),
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

        let fields = Fields {
            header: &header,
            big_endian,
        };
        let read = |at1: usize, at2: usize, i: usize| match version {
            1 => fields.f32(at1 + 4 * i),
            _ => fields.f64(at2 + 8 * i),
        };
        let dims: [i64; 8] = std::array::from_fn(|i| match version {
            1 => i64::from(fields.i16(40 + 2 * i)),
            _ => fields.i64(16 + 8 * i),
        });
        let (datatype, bitpix) = match version {
            1 => (fields.i16(70), fields.i16(72)),
            _ => (fields.i16(12), fields.i16(14)),
        };
        let voxel = Voxel::of(datatype)?;
        if i64::from(bitpix) != 8 * voxel.bytes() as i64 {
            return wrong(format!(
                "its header contradicts itself: datatype {datatype} has {} bits a voxel, bitpix says {bitpix}",
                8 * voxel.bytes()
            ));
        }
        let (shape, channels, axes) = shape(dims)?;
        let spatial = SpatialHeader {
            version,
            axes,
            qform_code: if version == 1 {
                i32::from(fields.i16(252))
            } else {
                fields.i32(344)
            },
            sform_code: if version == 1 {
                i32::from(fields.i16(254))
            } else {
                fields.i32(348)
            },
            pixdim: std::array::from_fn(|i| read(76, 104, i)),
            quaternion: std::array::from_fn(|i| read(256, 352, i)),
            offset: std::array::from_fn(|i| read(268, 376, i)),
            rows: std::array::from_fn(|r| std::array::from_fn(|c| read(280, 400, 4 * r + c))),
            units: if version == 1 {
                i32::from(header[123])
            } else {
                fields.i32(500)
            },
        };
        let geometry = spatial.geometry(shape).or_else(wrong)?;

        let slope = read(112, 176, 0);
        let intercept = read(116, 184, 0);
        let scaling = match slope {
            s if s == 0.0 || !s.is_finite() => None,
            _ if !intercept.is_finite() => {
                return wrong(format!(
                    "its intensity scaling is slope {slope} with intercept {intercept}"
                ));
            }
            _ => Some((slope, intercept)).filter(|s| *s != (1.0, 0.0)),
        };

        let offset = if version == 1 {
            fields.f32(108)
        } else {
            fields.i64(168) as f64
        };
        let least = header_bytes + 4; // the four bytes that announce extensions belong to the header
        let offset = match offset {
            0.0 => least,
            o if o >= least as f64 && o < 1e12 && o.fract() == 0.0 => o as usize,
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
        })
    }

    fn volume(mut self, source: &Path) -> Result<Volume, Problem> {
        let [x, y, z] = self.geometry.shape;
        let voxels = self.geometry.voxels();
        let size = self.voxel.bytes();
        let channel_bytes = voxels * size;
        let mut data = Vec::new();
        let mut raw = Vec::new();
        for _ in 0..self.channels {
            raw.clear();
            // read_to_end grows with what is there, so a header that promises terabytes costs nothing
            if (&mut self.bytes)
                .take(channel_bytes as u64)
                .read_to_end(&mut raw)?
                < channel_bytes
            {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            if self.big_endian {
                raw.chunks_exact_mut(size).for_each(<[u8]>::reverse);
            }
            data.resize(data.len() + voxels, 0.0);
            let channel = data.len() - voxels;
            decode(&raw, self.voxel, self.scaling, [x, y, z], &mut data[channel..]);
        }
        // to the end, for the last member's checksum
        io::copy(&mut self.bytes, &mut io::sink())?;

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

/// Decodes one channel, x fastest in the file, to z fastest in memory.
fn decode(raw: &[u8], voxel: Voxel, scaling: Option<(f64, f64)>, shape: [usize; 3], out: &mut [f32]) {
    macro_rules! each {
        ($type:ty) => {{
            const N: usize = size_of::<$type>();
            let value = |chunk: &[u8]| <$type>::from_le_bytes(chunk.try_into().expect("chunks of N bytes"));
            match scaling {
                None => transpose(raw, N, shape, out, |chunk| value(chunk) as f32),
                Some((slope, intercept)) => transpose(raw, N, shape, out, |chunk| {
                    (value(chunk) as f64 * slope + intercept) as f32
                }),
            }
        }};
    }
    match voxel {
        Voxel::U8 => each!(u8),
        Voxel::I8 => each!(i8),
        Voxel::U16 => each!(u16),
        Voxel::I16 => each!(i16),
        Voxel::U32 => each!(u32),
        Voxel::I32 => each!(i32),
        Voxel::U64 => each!(u64),
        Voxel::I64 => each!(i64),
        Voxel::F32 => each!(f32),
        Voxel::F64 => each!(f64),
    }
}

fn transpose(raw: &[u8], bytes: usize, [x, y, z]: [usize; 3], out: &mut [f32], value: impl Fn(&[u8]) -> f32) {
    // 16 voxels of z at a time fill the cache lines that a column in x touches
    for k0 in (0..z).step_by(16) {
        for j in 0..y {
            for i in 0..x {
                for k in k0..z.min(k0 + 16) {
                    let at = bytes * (i + x * (j + y * k));
                    out[(i * y + j) * z + k] = value(&raw[at..at + bytes]);
                }
            }
        }
    }
}

/// The spatial shape, the number of channels and the number of spatial axes that `dim` declares.
fn shape(dims: [i64; 8]) -> Result<([usize; 3], usize, usize), Problem> {
    if !(1..=7).contains(&dims[0]) {
        return wrong(format!("it declares {} dimensions; NIfTI has 1 to 7", dims[0]));
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

    /// The geometry that these fields give a grid of `shape`.
    ///
    /// # Errors
    /// A transform in use that is singular or not finite.
    pub fn geometry(&self, shape: [usize; 3]) -> Result<Geometry, String> {
        let declared: [f64; 3] = std::array::from_fn(|i| {
            let size = self.pixdim[i + 1].abs();
            if i < self.axes && size.is_finite() {
                size
            } else {
                0.0
            }
        });
        // nibabel: an undeclared size counts as 1 in the affine
        let or_one = |d: f64| if d == 0.0 || !d.is_finite() { 1.0 } else { d.abs() };
        let (name, affine) = if self.sform_code != 0 {
            let [r0, r1, r2] = self.rows;
            (
                "sform",
                DMat4::from_cols_array_2d(&[r0, r1, r2, [0.0, 0.0, 0.0, 1.0]]).transpose(),
            )
        } else if self.qform_code != 0 {
            let sizes = DVec3::from_array(std::array::from_fn(|i| or_one(self.pixdim[i + 1])));
            let qfac = if self.pixdim[0] == -1.0 { -1.0 } else { 1.0 };
            let [b, c, d] = self.quaternion;
            let w = (1.0 - (b * b + c * c + d * d)).max(0.0).sqrt();
            let rotation = DMat3::from_quat(DQuat::from_xyzw(b, c, d, w).normalize());
            let matrix = rotation * DMat3::from_diagonal(sizes * DVec3::new(1.0, 1.0, qfac));
            (
                "qform",
                DMat4::from_mat3_translation(matrix, DVec3::from_array(self.offset)),
            )
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
        let spacing = std::array::from_fn(|i| {
            if self.sform_code == 0 {
                return round(declared[i]);
            }
            // the declared size is the same number in every orientation of a scan, a column's length is not
            let agrees = (declared[i] - lengths[i]).abs() <= 1e-3 * lengths[i];
            round(if agrees { declared[i] } else { lengths[i] })
        });
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
        let first = self.version == 1;
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

/// To a millionth of a millimetre: 0.7 stored as f32 is 0.7.
fn round(size: f64) -> f64 {
    (size * 1e6).round() / 1e6
}

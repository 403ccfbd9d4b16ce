//! Files of scans, whatever their format: which one it is, the bytes of plain and compressed streams, voxels in and out.
//!
//! The format is known by the first bytes, whatever the name; files are written in that of their name.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use ::nifti::NiftiType;
use flate2::bufread::GzDecoder;
use flate2::{Compression, GzBuilder};

use super::{Geometry, Volume, VolumeError, mgh, nifti, nrrd};
use crate::file::write_beside;
use crate::host_memory::{self, TooLarge};

/// Reads a scan: a file, or with the feature `dicom` also the folder of a DICOM series.
///
/// # Errors
/// A file that cannot be opened, is cut off or damaged, is no NIfTI, MGH or NRRD file, holds colours or complex numbers, has
/// impossible dimensions, more than one axis beyond space or more voxels than there is memory for, or says where it lies in a way
/// that cannot be; one whose voxels are in another file that is not there.
pub fn read(path: &Path) -> Result<Volume, VolumeError> {
    #[cfg(feature = "dicom")]
    if super::dicom::is_here(path) {
        return super::dicom::read(path);
    }
    open(path)?
        .and_then(|scan| scan.volume(path))
        .map_err(|problem| problem.at(path))
}

/// Reads a scan from a file's bytes; `name` is for messages.
///
/// # Errors
/// As [`read`].
pub fn read_bytes(bytes: &[u8], name: &Path) -> Result<Volume, VolumeError> {
    let alone = |other: Other| {
        let name = match other {
            Other::Named(name) => name.escape_debug().to_string(),
            Other::Ending(endings) => format!("of the ending .{}", endings[0]),
        };
        wrong(format!(
            "its voxels are in another file, {name}, which is not here"
        ))
    };
    Scan::open(bytes, bytes.len() as u64, &alone)
        .and_then(|scan| scan.volume(name))
        .map_err(|problem| problem.at(name))
}

/// Reads where a scan lies, and its number of channels, without its voxels.
///
/// # Errors
/// As [`read`], for the header alone.
pub fn read_geometry(path: &Path) -> Result<(Geometry, usize), VolumeError> {
    #[cfg(feature = "dicom")]
    if super::dicom::is_here(path) {
        return Ok((super::dicom::only(path)?.geometry().clone(), 1));
    }
    match open(path)? {
        Ok(scan) => Ok((scan.geometry, scan.channels)),
        Err(problem) => Err(problem.at(path)),
    }
}

fn open(path: &Path) -> Result<Result<Scan<BufReader<File>>, Problem>, VolumeError> {
    // Of a pair, the header says what the voxels are.
    let header = || {
        let name = path.file_name()?.to_str()?;
        let stem = name.strip_suffix(".img.gz").or(name.strip_suffix(".img"))?;
        let named = |ending: &str| path.with_file_name(format!("{stem}.{ending}"));
        ["hdr", "hdr.gz"]
            .map(named)
            .into_iter()
            .find(|path| path.is_file())
    };
    let path = &*header().map_or(Cow::Borrowed(path), Cow::Owned);
    let (reader, length) = opened(path).map_err(|reason| VolumeError::Io {
        path: path.into(),
        reason,
    })?;
    let beside = |other: Other| {
        let candidates: Vec<PathBuf> = match other {
            Other::Named(name) if Path::new(name).file_name() == Some(name.as_ref()) => {
                vec![path.with_file_name(name)]
            }
            Other::Named(name) => {
                return wrong(format!(
                    "its voxels are in `{}`; put that file beside it and name it without a folder",
                    name.escape_debug()
                ));
            }
            Other::Ending(endings) => {
                let stem = super::stem(path).unwrap_or_default();
                let named = |ending: &&str| path.with_file_name(format!("{stem}.{ending}"));
                endings.iter().map(named).collect()
            }
        };
        match candidates.iter().find(|path| path.is_file()) {
            Some(found) => Ok(opened(found)?),
            None => wrong(format!(
                "its voxels are in another file, {}, which is not there",
                candidates[0].display()
            )),
        }
    };
    Ok(Scan::open(reader, length, &beside))
}

/// A file, and how many bytes it has.
fn opened(path: &Path) -> io::Result<(BufReader<File>, u64)> {
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    // a pipe does not know its length
    let length = if metadata.is_file() {
        metadata.len()
    } else {
        u64::MAX
    };
    Ok((BufReader::new(file), length))
}

/// Endings of files that are written.
const WRITTEN: [&str; 5] = [".nii.gz", ".nii", ".mgz", ".mgh", ".nrrd"];

/// Whether a label map or scan can be written under that name.
///
/// # Errors
/// The endings that can be.
pub fn check_written(path: &Path) -> Result<(), String> {
    match super::ending(path) {
        Some(ending) if WRITTEN.contains(&ending) => Ok(()),
        _ => Err("the name must end in .nii or .nii.gz, or .mgz, .mgh or .nrrd".into()),
    }
}

/// Writes a label map `[X, Y, Z]` (z fastest) on the grid `like`, in the smallest integer type that holds its values.
///
/// The name ends in `.nii` or `.nii.gz` (NIfTI), `.mgz` or `.mgh` (FreeSurfer), or `.nrrd`. In NIfTI, shape, affine, transforms,
/// units and version are those of `like`; the others have its affine.
///
/// # Errors
/// Another ending, an existing file without `force`, a number of labels that is not that of the grid, or the
/// operating system's refusal.
pub fn write_labels(path: &Path, labels: &[i32], like: &Geometry, force: bool) -> Result<(), VolumeError> {
    let voxel = smallest_type(labels);
    write_file(path, like, labels, voxel, force, |label| label.to_le_bytes())
}

/// Writes a scan of one channel `[X, Y, Z]` (z fastest) on the grid `like` as f32; otherwise as [`write_labels`].
///
/// # Errors
/// As [`write_labels`].
pub fn write_image(path: &Path, voxels: &[f32], like: &Geometry, force: bool) -> Result<(), VolumeError> {
    let voxel = NiftiType::Float32;
    write_file(path, like, voxels, voxel, force, |value| value.to_le_bytes())
}

fn write_file<T: Copy>(
    path: &Path,
    like: &Geometry,
    voxels: &[T],
    voxel: NiftiType,
    force: bool,
    little_endian: impl Fn(T) -> [u8; 4],
) -> Result<(), VolumeError> {
    let format = |problem: String| VolumeError::Format {
        path: path.into(),
        problem,
    };
    check_written(path).map_err(format)?;
    let ending = super::ending(path).expect("checked");
    let compress = ending.ends_with('z');
    let bytes = match ending {
        ".nrrd" => nrrd::encode(voxels, like, voxel, little_endian),
        ".mgz" | ".mgh" => mgh::encode(voxels, like, voxel, compress, little_endian),
        _ => nifti::encode(voxels, like, voxel, compress, little_endian),
    };
    write_beside(path, &bytes.map_err(format)?, force).map_err(|reason| VolumeError::Io {
        path: path.into(),
        reason,
    })
}

/// The smallest integer type that holds all of these.
pub(super) fn smallest_type(labels: &[i32]) -> NiftiType {
    let low = labels.iter().copied().min().unwrap_or(0);
    let high = labels.iter().copied().max().unwrap_or(0);
    match (low, high) {
        (0.., ..=255) => NiftiType::Uint8,
        (-128.., ..=127) => NiftiType::Int8,
        (-32768.., ..=32767) => NiftiType::Int16,
        (0.., ..=65535) => NiftiType::Uint16,
        _ => NiftiType::Int32,
    }
}

/// Appends voxels, x fastest, of each its first `bytes` bytes.
///
/// # Errors
/// Voxels that are not those of a grid of `shape`.
pub(super) fn stored<T: Copy>(
    file: &mut Vec<u8>,
    voxels: &[T],
    shape: [usize; 3],
    bytes: usize,
    each: impl Fn(T) -> [u8; 4],
) -> Result<(), String> {
    let [x, y, z] = shape;
    if voxels.len() != x * y * z {
        return Err(format!("{} voxels for a grid of {shape:?}", voxels.len()));
    }
    let start = file.len();
    file.resize(start + voxels.len() * bytes, 0);
    for (index, voxel) in voxels.iter().enumerate() {
        let (i, j, k) = (index / (y * z), index / z % y, index % z);
        let at = start + bytes * (i + x * (j + y * k));
        file[at..at + bytes].copy_from_slice(&each(*voxel)[..bytes]);
    }
    Ok(())
}

/// A gzip stream without a time and a name.
pub(super) fn compressed(bytes: &[u8]) -> Result<Vec<u8>, String> {
    let mut encoder = GzBuilder::new().write(Vec::new(), Compression::default());
    encoder
        .write_all(bytes)
        .and_then(|()| encoder.finish())
        .map_err(|e| e.to_string())
}

/// Another file of the same scan.
pub(super) enum Other<'a> {
    /// Of that name.
    Named(&'a str),
    /// Of the same name with one of these endings.
    Ending(&'static [&'static str]),
}

/// Opens another file of the same scan, and tells its length.
pub(super) type Beside<'a, R> = &'a dyn Fn(Other) -> Result<(R, u64), Problem>;

/// What went wrong, before the file's name is known.
pub(super) enum Problem {
    Io(io::Error),
    Format(String),
    Memory(String, TooLarge),
}

impl Problem {
    pub fn at(self, path: &Path) -> VolumeError {
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

pub(super) fn wrong<T>(problem: impl Into<String>) -> Result<T, Problem> {
    Err(Problem::Format(problem.into()))
}

/// The uncompressed bytes of a plain or gzip stream of any number of members. The first bytes decide which it is;
/// anything after the last member is padding, as gzip(1) has it.
pub(super) enum Bytes<R: BufRead> {
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

/// The bytes of a file.
pub(super) struct Stream<R: BufRead> {
    pub bytes: Bytes<R>,
    /// The most of them, what has been read already included.
    pub most_bytes: u64,
}

impl<R: BufRead> Stream<R> {
    /// Of a file of `length` bytes, compressed or not.
    pub fn new(mut reader: R, length: u64) -> Result<Self, Problem> {
        let start = reader.fill_buf()?;
        if start.is_empty() {
            return wrong("the file is empty");
        }
        Ok(match start.starts_with(&[0x1f, 0x8b]) {
            true => Stream {
                bytes: Bytes::Gzip(Some(GzDecoder::new(reader))),
                most_bytes: length.saturating_mul(MOST_INFLATION),
            },
            false => Stream {
                bytes: Bytes::Plain(reader),
                most_bytes: length,
            },
        })
    }

    /// What follows in a plain stream, which is compressed.
    pub fn inflated(self) -> Result<Self, Problem> {
        match self.bytes {
            Bytes::Plain(reader) => Ok(Stream {
                bytes: Bytes::Gzip(Some(GzDecoder::new(reader))),
                most_bytes: self.most_bytes.saturating_mul(MOST_INFLATION),
            }),
            Bytes::Gzip(_) => wrong("it is compressed twice; decompress it once"),
        }
    }

    /// Passes over bytes.
    pub fn skip(&mut self, count: u64) -> Result<(), Problem> {
        match io::copy(&mut (&mut self.bytes).take(count), &mut io::sink())? < count {
            true => Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            false => Ok(()),
        }
    }
}

/// An opened file whose header has been read and checked, its voxels next in `stream`, x fastest, channels slowest.
pub(super) struct Scan<R: BufRead> {
    pub stream: Stream<R>,
    pub geometry: Geometry,
    pub channels: usize,
    pub voxel: NiftiType,
    pub big_endian: bool,
    /// Slope and intercept, where there are any.
    pub scaling: Option<(f64, f64)>,
}

/// Deflate makes no more bytes of one.
const MOST_INFLATION: u64 = 1032;
/// Padding and what else follows the voxels is small.
const MOST_PADDING: u64 = 16 << 20;
/// Planes that are decoded at once: their voxels fill the cache lines that a column in x touches.
const PLANES: usize = 16;

impl<R: BufRead> Scan<R> {
    /// Reads the header of a file of `length` bytes.
    fn open(reader: R, length: u64, beside: Beside<R>) -> Result<Self, Problem> {
        let mut stream = Stream::new(reader, length)?;
        let mut first = [0; 4];
        stream.bytes.read_exact(&mut first)?;
        match first {
            nrrd::MAGIC => nrrd::open(stream, beside),
            mgh::VERSION => mgh::open(stream),
            _ => nifti::open(first, stream, beside),
        }
    }

    fn volume(mut self, source: &Path) -> Result<Volume, Problem> {
        let shape = self.geometry.shape;
        let size = self.voxel.size_of();
        let plane = shape[0] * shape[1] * size;
        let promised = host_memory::bytes(&[self.channels, shape[2]], plane);
        if promised > self.stream.most_bytes {
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
                if (&mut self.stream.bytes)
                    .take(bytes as u64)
                    .read_to_end(&mut raw)?
                    < bytes
                {
                    return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
                }
                if self.big_endian {
                    raw.chunks_exact_mut(size).for_each(<[u8]>::reverse);
                }
                decode(&raw, self.voxel, self.scaling, shape, planes, channel);
            }
        }
        if matches!(self.stream.bytes, Bytes::Gzip(_)) {
            // to the end, for the last member's checksum
            let rest = io::copy(
                &mut (&mut self.stream.bytes).take(MOST_PADDING + 1),
                &mut io::sink(),
            )?;
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

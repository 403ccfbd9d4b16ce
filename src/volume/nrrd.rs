//! NRRD files (<https://teem.sourceforge.net/nrrd/format.html>), as 3D Slicer and ITK write them: lines of text, then voxels, raw or
//! compressed by gzip, in the same file or in one beside it.
//!
//! No crate reads them. What is read: up to format 5, encodings raw and gzip, three axes in space, and one axis of channels behind
//! them. Where the file names no space, it is the patient's left, posterior and superior, as ITK has it.

use std::collections::HashMap;
use std::io::{BufRead, Read};

use ::nifti::NiftiType;
use glam::{DMat3, DMat4, DVec3};

use super::Geometry;
use super::file::{Beside, Other, Problem, Scan, Stream, compressed, stored, wrong};
use super::nifti::{SpatialHeader, shape};

/// The first four bytes.
pub(super) const MAGIC: [u8; 4] = *b"NRRD";
/// Bytes of the header that are read.
const MOST_HEADER: usize = 1 << 20;
/// Axes that a file can have.
const MOST_AXES: usize = 16;
/// Bytes before the voxels that are passed over.
const MOST_SKIP: i64 = 1 << 30;

/// Types by all their names; the first is written.
const TYPES: [(&[&str], NiftiType); 10] = [
    (&["int8", "signed char", "int8_t"], NiftiType::Int8),
    (&["uint8", "uchar", "unsigned char", "uint8_t"], NiftiType::Uint8),
    (
        &[
            "int16",
            "short",
            "short int",
            "signed short",
            "signed short int",
            "int16_t",
        ],
        NiftiType::Int16,
    ),
    (
        &[
            "uint16",
            "ushort",
            "unsigned short",
            "unsigned short int",
            "uint16_t",
        ],
        NiftiType::Uint16,
    ),
    (&["int32", "int", "signed int", "int32_t"], NiftiType::Int32),
    (&["uint32", "uint", "unsigned int", "uint32_t"], NiftiType::Uint32),
    (
        &[
            "int64",
            "longlong",
            "long long",
            "long long int",
            "signed long long",
            "signed long long int",
            "int64_t",
        ],
        NiftiType::Int64,
    ),
    (
        &[
            "uint64",
            "ulonglong",
            "unsigned long long",
            "unsigned long long int",
            "uint64_t",
        ],
        NiftiType::Uint64,
    ),
    (&["float"], NiftiType::Float32),
    (&["double"], NiftiType::Float64),
];

/// The fields of a header, names in small letters without spaces.
struct Fields(HashMap<String, String>);

impl Fields {
    /// Reads the lines behind the first four bytes, up to the empty one or the end of a file that has no voxels.
    fn read(bytes: &mut impl Read) -> Result<Fields, Problem> {
        let mut text = Vec::new();
        let mut byte = [0];
        loop {
            if bytes.read(&mut byte)? == 0 {
                break;
            }
            if byte[0] != b'\r' {
                text.push(byte[0]);
            }
            if text.ends_with(b"\n\n") {
                break;
            }
            if text.len() > MOST_HEADER {
                return wrong("its header has no end");
            }
        }
        let text = String::from_utf8_lossy(&text);
        let mut lines = text.lines();
        let version = lines.next().unwrap_or_default();
        if !matches!(version, "0001" | "0002" | "0003" | "0004" | "0005") {
            return wrong(format!(
                "it is of the NRRD format `{}`; NRRD0001 to NRRD0005 are read",
                version.escape_debug()
            ));
        }
        let mut fields = HashMap::new();
        for line in lines {
            // Comments, and pairs of keys and values that programs add.
            if line.is_empty() || line.starts_with('#') || line.contains(":=") {
                continue;
            }
            let Some((name, value)) = line.split_once(": ").or_else(|| line.split_once(':')) else {
                return wrong(format!("its line `{}` is no field", line.escape_debug()));
            };
            let plain = |c: &char| !c.is_whitespace();
            let name: String = name.to_lowercase().chars().filter(plain).collect();
            if fields.insert(name.clone(), value.trim().to_owned()).is_some() {
                return wrong(format!("it has the field `{}` twice", name.escape_debug()));
            }
        }
        Ok(Fields(fields))
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    fn needed(&self, name: &str) -> Result<&str, Problem> {
        let missing = || Problem::Format(format!("its header has no field `{name}`"));
        self.get(name).ok_or_else(missing)
    }

    fn numbers<T: std::str::FromStr>(&self, name: &str) -> Result<Option<Vec<T>>, Problem> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        let numbers: Result<Vec<T>, _> = value.split_whitespace().map(str::parse).collect();
        let wrong = |_| Problem::Format(format!("its field `{name}` is `{}`", value.escape_debug()));
        Ok(Some(numbers.map_err(wrong)?))
    }

    fn number(&self, names: [&str; 2]) -> Result<i64, Problem> {
        for name in names {
            match self.numbers(name)?.as_deref() {
                None => {}
                Some([number]) => return Ok(*number),
                Some(_) => return wrong(format!("its field `{name}` is not one number")),
            }
        }
        Ok(0)
    }

    /// Vectors of three numbers, an axis each; `None` for `none`.
    fn vectors(&self, name: &str) -> Result<Option<Vec<Option<DVec3>>>, Problem> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        let failed = || Problem::Format(format!("its field `{name}` is `{}`", value.escape_debug()));
        let mut vectors = Vec::new();
        let mut rest = value.trim_start();
        while !rest.is_empty() {
            if let Some(after) = rest.strip_prefix("none") {
                vectors.push(None);
                rest = after.trim_start();
                continue;
            }
            let inside = rest.strip_prefix('(').ok_or_else(failed)?;
            let (inside, after) = inside.split_once(')').ok_or_else(failed)?;
            let numbers: Result<Vec<f64>, _> = inside.split(',').map(|n| n.trim().parse()).collect();
            let [x, y, z] = numbers.map_err(|_| failed())?[..] else {
                return wrong(format!(
                    "its field `{name}` has vectors of other than three numbers"
                ));
            };
            vectors.push(Some(DVec3::new(x, y, z)));
            rest = after.trim_start();
        }
        Ok(Some(vectors))
    }
}

/// Reads the header behind its first four bytes.
pub(super) fn open<R: BufRead>(mut stream: Stream<R>, beside: Beside<R>) -> Result<Scan<R>, Problem> {
    let fields = Fields::read(&mut stream.bytes)?;
    let kind = fields.needed("type")?.to_lowercase();
    let kind: Vec<&str> = kind.split_whitespace().collect();
    let kind = kind.join(" ");
    let found = TYPES.into_iter().find(|(names, _)| names.contains(&&*kind));
    let Some((_, voxel)) = found else {
        return wrong(format!("its type `{}` is no number", kind.escape_debug()));
    };
    let big_endian = match fields.get("endian").map(str::to_lowercase).as_deref() {
        Some("big") => true,
        Some("little") => false,
        None if voxel.size_of() == 1 => false,
        None => return wrong("its header has no field `endian`"),
        Some(other) => return wrong(format!("its byte order is `{}`", other.escape_debug())),
    };
    let (shape, channels, geometry) = geometry(&fields)?;

    let data = fields.get("datafile");
    if let Some(name) = data {
        if name.starts_with("LIST") || name.contains('%') {
            return wrong("its voxels are in several files; convert it to one file");
        }
        let (reader, length) = beside(Other::Named(name))?;
        stream = Stream {
            bytes: super::file::Bytes::Plain(reader),
            most_bytes: length,
        };
    }
    match fields.needed("encoding")?.to_lowercase().as_str() {
        "raw" => {}
        "gzip" | "gz" => stream = stream.inflated()?,
        other => {
            return wrong(format!(
                "its encoding `{}` is not read; write it as raw or gzip",
                other.escape_debug()
            ));
        }
    }
    if fields.number(["lineskip", "line skip"])? != 0 {
        return wrong("its voxels begin behind lines of text; convert it to one file");
    }
    match fields.number(["byteskip", "byte skip"])? {
        skip @ 0..=MOST_SKIP => stream.skip(skip as u64)?,
        skip => return wrong(format!("its voxels begin at byte {skip}; convert it to one file")),
    }
    debug_assert_eq!(geometry.shape, shape);
    Ok(Scan {
        stream,
        geometry,
        channels,
        voxel,
        big_endian,
        scaling: None,
    })
}

/// Voxels along the axes in space, channels, and where they lie.
fn geometry(fields: &Fields) -> Result<([usize; 3], usize, Geometry), Problem> {
    let sizes: Vec<i64> = fields.numbers("sizes")?.unwrap_or_default();
    let dimension = fields.number(["dimension"; 2])?;
    if sizes.len() as i64 != dimension || sizes.len() > MOST_AXES {
        return wrong(format!(
            "it declares {dimension} axes and the sizes {:?}",
            &sizes[..sizes.len().min(MOST_AXES)]
        ));
    }
    let directions = match fields.vectors("spacedirections")? {
        Some(directions) => directions,
        None => {
            // The first three axes, as long as it says.
            let spacings = fields.numbers("spacings")?.unwrap_or(vec![1.0; sizes.len()]);
            let mut axes = [DVec3::X, DVec3::Y, DVec3::Z].into_iter();
            let scaled = |spacing: &f64| {
                spacing
                    .is_finite()
                    .then(|| axes.next().map(|axis| axis * *spacing))
            };
            spacings.iter().map(scaled).map(Option::flatten).collect()
        }
    };
    if directions.len() != sizes.len() {
        return wrong(format!(
            "it has {} axes and the directions of {}",
            sizes.len(),
            directions.len()
        ));
    }
    let space: Vec<usize> = (0..sizes.len())
        .filter(|axis| directions[*axis].is_some())
        .collect();
    let others: Vec<usize> = (0..sizes.len())
        .filter(|axis| directions[*axis].is_none())
        .collect();
    let [x, y, z] = space[..] else {
        return wrong(format!(
            "it has {} axes in space, and a scan has three",
            space.len()
        ));
    };
    if let Some(axis) = others.iter().find(|axis| **axis < z && sizes[**axis] != 1) {
        return wrong(format!(
            "its axis {} of {} numbers a voxel stands before an axis in space; write a file a channel",
            axis + 1,
            sizes[*axis]
        ));
    }
    if others.len() > 4 {
        return wrong(format!("it has {} axes beyond space", others.len()));
    }
    let mut dims = [1; 8];
    dims[0] = 3 + others.len() as i64;
    let ordered = space.iter().chain(&others);
    ordered
        .enumerate()
        .for_each(|(i, axis)| dims[i + 1] = sizes[*axis]);
    let (shape, channels, _) = shape(dims)?;

    let to_ras = match fields.get("space").map(str::to_lowercase).as_deref() {
        None | Some("left-posterior-superior" | "lps") => DVec3::new(-1.0, -1.0, 1.0),
        Some("left-anterior-superior" | "las") => DVec3::new(-1.0, 1.0, 1.0),
        Some("right-anterior-superior" | "ras") => DVec3::ONE,
        Some(other) => {
            return wrong(format!(
                "its space `{}` does not say where the patient's left is",
                other.escape_debug()
            ));
        }
    };
    let unit = unit(fields)?;
    let origin = match fields.vectors("spaceorigin")?.as_deref() {
        None => DVec3::ZERO,
        Some([Some(origin)]) => *origin,
        Some(_) => return wrong("its field `space origin` is not one vector"),
    };
    let axis = |axis: usize| directions[axis].expect("an axis in space") * to_ras * unit;
    let matrix = DMat3::from_cols(axis(x), axis(y), axis(z));
    let affine = DMat4::from_mat3_translation(matrix, origin * to_ras * unit);
    let geometry = SpatialHeader::from_affine(affine)
        .geometry(shape)
        .or_else(wrong)?;
    Ok((shape, channels, geometry))
}

/// Millimetres of the unit that it names for all of space.
fn unit(fields: &Fields) -> Result<f64, Problem> {
    let units = fields.get("spaceunits").unwrap_or_default();
    let mut named: Vec<&str> = units
        .split('"')
        .map(str::trim)
        .filter(|unit| !unit.is_empty())
        .collect();
    named.dedup();
    match named[..] {
        [] | ["mm" | "millimeter" | "millimeters"] => Ok(1.0),
        ["cm"] => Ok(10.0),
        ["m"] => Ok(1e3),
        ["um" | "µm" | "microns" | "micron"] => Ok(1e-3),
        _ => wrong(format!("its space's units are `{}`", units.escape_debug())),
    }
}

/// A file of voxels, compressed.
pub(super) fn encode<T: Copy>(
    voxels: &[T],
    like: &Geometry,
    voxel: NiftiType,
    little_endian: impl Fn(T) -> [u8; 4],
) -> Result<Vec<u8>, String> {
    let (names, _) = TYPES
        .into_iter()
        .find(|(_, known)| *known == voxel)
        .ok_or("no such type")?;
    let lps = |v: DVec3| format!("({},{},{})", 0.0 - v.x, 0.0 - v.y, v.z);
    let matrix = DMat3::from_mat4(like.affine);
    let directions = [matrix.x_axis, matrix.y_axis, matrix.z_axis].map(lps).join(" ");
    let [x, y, z] = like.shape;
    let header = format!(
        "NRRD0004\n# Complete NRRD file format specification at:\n# http://teem.sourceforge.net/nrrd/format.html\ntype: {}\n\
         dimension: 3\nspace: left-posterior-superior\nsizes: {x} {y} {z}\nspace directions: {directions}\nkinds: domain domain domain\n\
         endian: little\nencoding: gzip\nspace origin: {}\n\n",
        names[0],
        lps(like.affine.w_axis.truncate())
    );
    let mut data = Vec::new();
    stored(&mut data, voxels, like.shape, voxel.size_of(), little_endian)?;
    let mut file = header.into_bytes();
    file.extend(compressed(&data)?);
    Ok(file)
}

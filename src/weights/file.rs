//! A safetensors file of f32 tensors with a record, as JSON under one key of its metadata.
//!
//! The record begins with a checksum of the whole file, a CRC-32: it finds any changed bit and any changed 32 bits beside
//! each other, and costs less than reading the file. A record also has the number of its format. Format 1 had no checksum,
//! and format 2 is refused without one. Fields that a record lacks or this version does not know don't make a new format.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::Path;

use safetensors::tensor::{Dtype, TensorView};
use safetensors::{SafeTensorError, SafeTensors};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::pth::BATCHES;
use super::{WeightsError, check_numbers, read};
use crate::file::write_beside;
use crate::tensor::Tensor;

/// The newest format of a record.
const FORMAT: u64 = 2;

/// Longest header of a file: a thousand times the largest network's. Read, it may take 44 times its bytes.
const MOST_HEADER: usize = 16 << 20;

/// The one metadata key of a file. One key, because the order of several would differ from run to run.
const KEY: &str = "obelisk";

/// How a record begins.
const RECORD: &str = r#"{"checksum":""#;

/// How the header of a file with such a record begins; the checksum's digits follow.
const HEADER: &[u8] = br#"{"__metadata__":{"obelisk":"{\"checksum\":\""#;

/// Where the checksum's hexadecimal digits are: behind the eight bytes of the header's length.
const DIGITS: Range<usize> = 8 + HEADER.len()..8 + HEADER.len() + ZEROS.len();

/// The digits of which the checksum is computed.
const ZEROS: &str = "00000000";

/// What a file may say of its tensors.
pub trait Record: Serialize + DeserializeOwned {
    /// Bytes that a record has at most: names of a hundred thousand cases. Read, it may take 80 times as many.
    const MOST_BYTES: usize = 8 << 20;

    /// Whether its values can be; called whenever a record is read or written.
    ///
    /// # Errors
    /// What can't be, in words for the user.
    fn check(&self) -> Result<(), String>;
}

/// A record as it is stored.
#[derive(Serialize)]
struct Stored<'a, R> {
    checksum: &'static str,
    format: u64,
    #[serde(flatten)]
    record: &'a R,
}

/// Of a stored record, what decides whether the rest can be read.
#[derive(Deserialize)]
struct Format {
    #[serde(default = "first_format")]
    format: u64,
}

/// Checkpoints' records had no number at first.
fn first_format() -> u64 {
    1
}

/// What a safetensors file has: this program's record, if it is there, and the tensors.
pub(super) struct Contents {
    pub(super) record: Option<String>,
    pub(super) tensors: HashMap<String, Tensor>,
    pub(super) batches: BTreeMap<String, i64>,
}

impl Contents {
    /// Reads a file, with this program's record or without. With one, its checksum, its format and its numbers are
    /// checked.
    pub(super) fn read(path: &Path, bytes: &[u8]) -> Result<Contents, WeightsError> {
        let format = WeightsError::format(path);
        let not_weights = |e: SafeTensorError| {
            format(format!(
                "this is no safetensors file ({e}) and no PyTorch checkpoint; give the `best.safetensors` of a training \
                run or a published network's weights"
            ))
        };
        if bytes
            .first_chunk()
            .is_some_and(|length| u64::from_le_bytes(*length) > MOST_HEADER as u64)
        {
            return Err(not_weights(SafeTensorError::HeaderTooLarge));
        }
        let has_checksum = has_good_checksum(bytes).map_err(format)?;
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(not_weights)?;
        let file = SafeTensors::deserialize(bytes).map_err(not_weights)?;
        let metadata = header.metadata().clone().unwrap_or_default();
        let mut contents = Contents {
            record: metadata.get(KEY).cloned(),
            tensors: HashMap::new(),
            batches: BTreeMap::new(),
        };
        for (name, view) in file.iter() {
            match (view.dtype(), view.data()) {
                (Dtype::F32, data) => {
                    let (numbers, _) = data.as_chunks();
                    let data = numbers.iter().map(|b| f32::from_le_bytes(*b)).collect();
                    let tensor = Tensor::new(view.shape(), data);
                    contents.tensors.insert(name.to_owned(), tensor);
                }
                (Dtype::I64, &[a, b, c, d, e, f, g, h]) if name.rsplit('.').next() == Some(BATCHES) => {
                    let count = i64::from_le_bytes([a, b, c, d, e, f, g, h]);
                    contents.batches.insert(name.to_owned(), count);
                }
                (other, _) => {
                    let name = name.escape_debug();
                    return Err(format(format!("tensor `{name}` is {other:?}; only F32 is used")));
                }
            }
        }
        match &contents.record {
            Some(record) => {
                let has = serde_json::from_str::<Format>(record).map_err(|e| format(unreadable(e)))?;
                match has.format {
                    1 => {}
                    2..=FORMAT if has_checksum => {}
                    2..=FORMAT => return Err(format(format!("its checksum is missing: {CHANGED}"))),
                    0 => return Err(format("its record is of format 0, which there is not".into())),
                    newer => {
                        return Err(WeightsError::Newer {
                            path: path.into(),
                            format: newer,
                            known: FORMAT,
                        });
                    }
                }
                check_numbers(&contents.tensors).map_err(format)?;
            }
            None if metadata.values().any(|value| value.starts_with(RECORD)) => {
                return Err(format(format!("its record has another name: {CHANGED}")));
            }
            None => {}
        }
        Ok(contents)
    }
}

const CHANGED: &str = "the file is damaged, or another program changed it";

/// Whether the bytes have a checksum.
///
/// # Errors
/// A checksum that is not theirs.
fn has_good_checksum(bytes: &[u8]) -> Result<bool, String> {
    match (bytes.get(8..DIGITS.start), bytes.get(DIGITS)) {
        (Some(HEADER), Some(digits)) if digits == checksum(bytes).as_bytes() => Ok(true),
        (Some(HEADER), Some(_)) => Err(format!("its checksum differs: {CHANGED}")),
        _ => Ok(false),
    }
}

/// The checksum of a file, its own digits taken as [`ZEROS`].
fn checksum(bytes: &[u8]) -> String {
    let mut hasher = crc32fast::Hasher::new();
    for part in [&bytes[..DIGITS.start], ZEROS.as_bytes(), &bytes[DIGITS.end..]] {
        hasher.update(part);
    }
    format!("{:08x}", hasher.finalize())
}

fn check_length<R: Record>(length: usize) -> Result<(), String> {
    match length <= R::MOST_BYTES {
        true => Ok(()),
        false => Err(format!(
            "its record has {length} bytes, more than {}",
            R::MOST_BYTES
        )),
    }
}

fn unreadable(error: serde_json::Error) -> String {
    format!("its `{KEY}` record is unreadable: {error}")
}

/// The record of a file whose [`Contents`] have been read.
pub(super) fn parse_record<R: Record>(path: &Path, record: Option<&str>) -> Result<R, WeightsError> {
    let format = WeightsError::format(path);
    let record = record.ok_or_else(|| {
        format(format!(
            "the file's metadata has no `{KEY}` record, so its network and preprocessing are unknown"
        ))
    })?;
    check_length::<R>(record.len()).map_err(format)?;
    let mut unknown = Vec::new();
    let parsed: R = serde_ignored::deserialize(&mut serde_json::Deserializer::from_str(record), |field| {
        unknown.push(field.to_string());
    })
    .map_err(|e| format(unreadable(e)))?;
    unknown.retain(|field| field != "checksum" && field != "format");
    if !unknown.is_empty() {
        let fields = unknown.join(", ");
        tracing::warn!(
            "{}: its record has what this version does not know and leaves aside: {}",
            path.display(),
            fields.escape_debug()
        );
    }
    parsed
        .check()
        .map_err(|reason| format(format!("its record says what can't be: {reason}")))?;
    Ok(parsed)
}

/// Reads a safetensors file of f32 tensors with a record of type `R` under this program's metadata key.
///
/// # Errors
/// A file that can't be read, is damaged, or has no such record; a record or numbers that can't be.
pub fn load<R: Record>(path: &Path) -> Result<(R, HashMap<String, Tensor>), WeightsError> {
    parse(&read(path)?, path)
}

/// [`load`] of a file's bytes; `path` is for messages.
pub(crate) fn parse<R: Record>(
    bytes: &[u8],
    path: &Path,
) -> Result<(R, HashMap<String, Tensor>), WeightsError> {
    let contents = Contents::read(path, bytes)?;
    Ok((parse_record(path, contents.record.as_deref())?, contents.tensors))
}

/// Writes f32 tensors as safetensors with a record under this program's metadata key, beside its place, then renames.
///
/// # Errors
/// A file that exists (without `force`) or can't be written; a record or numbers that can't be.
pub fn save<R: Record>(
    path: &Path,
    record: &R,
    tensors: &HashMap<String, Tensor>,
    force: bool,
) -> Result<(), WeightsError> {
    write(path, &encode(path, record, tensors, &BTreeMap::new())?, force)
}

pub(super) fn write(path: &Path, bytes: &[u8], force: bool) -> Result<(), WeightsError> {
    write_beside(path, bytes, force).map_err(WeightsError::io(path))
}

/// The bytes of a file; they depend on the contents alone. `path` is for messages.
pub(crate) fn encode<R: Record>(
    path: &Path,
    record: &R,
    tensors: &HashMap<String, Tensor>,
    batches: &BTreeMap<String, i64>,
) -> Result<Vec<u8>, WeightsError> {
    let format = WeightsError::format(path);
    record
        .check()
        .and_then(|()| check_numbers(tensors))
        .map_err(format)?;
    let stored = Stored {
        checksum: ZEROS,
        format: FORMAT,
        record,
    };
    let record = serde_json::to_string(&stored).map_err(|e| format(e.to_string()))?;
    check_length::<R>(record.len()).map_err(format)?;
    let mut views: BTreeMap<&str, TensorView> = BTreeMap::new();
    for (name, t) in tensors {
        let view = TensorView::new(Dtype::F32, t.shape.clone(), bytemuck::cast_slice(&t.data));
        views.insert(name, view.expect("a tensor's data fits its shape"));
    }
    for (name, count) in batches {
        let view = TensorView::new(Dtype::I64, Vec::new(), bytemuck::bytes_of(count));
        views.insert(name, view.expect("one number has no axes"));
    }
    let mut bytes = safetensors::serialize(views, Some(HashMap::from([(KEY.to_owned(), record)])))
        .map_err(|e| format(e.to_string()))?;
    assert_eq!(
        &bytes[8..DIGITS.start],
        HEADER,
        "safetensors puts the metadata first"
    );
    let checksum = checksum(&bytes);
    bytes[DIGITS].copy_from_slice(checksum.as_bytes());
    Ok(bytes)
}

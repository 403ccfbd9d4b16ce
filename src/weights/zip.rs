//! The zip archives that PyTorch writes: entries stored as they are, none compressed, encrypted or shared. An archive
//! with anything else is refused, so no entry is larger than the file and all together aren't either.

use std::collections::BTreeMap;

const LOCAL: u32 = 0x0403_4b50;
const CENTRAL: u32 = 0x0201_4b50;
const END: u32 = 0x0605_4b50;
const END64: u32 = 0x0606_4b50;
const END64_LOCATOR: u32 = 0x0706_4b50;
/// Length of the end record without its comment.
const END_LENGTH: usize = 22;
/// The extra field with 64-bit numbers.
const EXTRA64: u16 = 1;

/// The archive's entries by name, checked against their checksums.
///
/// # Errors
/// In words for the user: an archive that is truncated or damaged, or whose entries are compressed, encrypted, overlap
/// or share a name.
pub(super) fn entries(bytes: &[u8]) -> Result<BTreeMap<&str, &[u8]>, String> {
    let mut found = Vec::new();
    for header in central_directory(bytes).ok_or(DAMAGED)? {
        let header = header.ok_or(DAMAGED)?;
        let shown = header.name.escape_debug();
        if header.encrypted || header.method != 0 || header.packed != header.size {
            return Err(format!(
                "its zip entry `{shown}` is compressed or encrypted, which PyTorch never does; refused"
            ));
        }
        let range = data_range(bytes, &header).ok_or_else(|| format!("{DAMAGED} (entry `{shown}`)"))?;
        found.push((range, header));
    }
    // Before their bytes are looked at, so that no byte is looked at twice.
    found.sort_by_key(|(range, _)| (range.start, range.end));
    if found.windows(2).any(|pair| pair[1].0.start < pair[0].0.end) {
        return Err("its zip archive has entries that overlap; refused".into());
    }
    let mut entries = BTreeMap::new();
    for (range, header) in found {
        let (data, shown) = (&bytes[range], header.name.escape_debug());
        if crc32fast::hash(data) != header.checksum {
            return Err(format!(
                "the checksum of its zip entry `{shown}` differs: the file is damaged"
            ));
        }
        if entries.insert(header.name, data).is_some() {
            return Err(format!("its zip archive has the entry `{shown}` twice"));
        }
    }
    Ok(entries)
}

const DAMAGED: &str = "its zip archive is truncated or damaged";

/// An entry of the central directory.
struct Header<'a> {
    name: &'a str,
    encrypted: bool,
    method: u16,
    checksum: u32,
    packed: u64,
    size: u64,
    /// Of its local header.
    offset: u64,
}

/// The entries' headers; `None` where something is cut off or no zip.
fn central_directory(bytes: &[u8]) -> Option<impl Iterator<Item = Option<Header<'_>>>> {
    let (count, offset) = end(bytes)?;
    let mut at = usize::try_from(offset).ok()?;
    // A header has 46 bytes, so a longer count is a lie and ends at the first that is none.
    let mut left = count;
    Some(std::iter::from_fn(move || {
        left = left.checked_sub(1)?;
        let header = central_header(bytes, &mut at);
        if header.is_none() {
            left = 0;
        }
        Some(header)
    }))
}

/// Number of entries and place of the central directory, from the end record.
fn end(bytes: &[u8]) -> Option<(u64, u64)> {
    let latest = bytes.len().checked_sub(END_LENGTH)?;
    let earliest = latest.saturating_sub(u16::MAX as usize);
    let at = (earliest..=latest).rev().find(|&at| {
        let comment = u16_at(bytes, at + 20).map(usize::from);
        u32_at(bytes, at) == Some(END) && comment == Some(latest - at)
    })?;
    let (count, offset) = (u16_at(bytes, at + 10)?, u32_at(bytes, at + 16)?);
    if count < u16::MAX && offset < u32::MAX {
        return Some((count.into(), offset.into()));
    }
    let locator = at
        .checked_sub(20)
        .filter(|l| u32_at(bytes, *l) == Some(END64_LOCATOR))?;
    let end64 = usize::try_from(u64_at(bytes, locator + 8)?).ok()?;
    if u32_at(bytes, end64)? != END64 {
        return None;
    }
    Some((
        u64_at(bytes, end64.checked_add(32)?)?,
        u64_at(bytes, end64.checked_add(48)?)?,
    ))
}

fn central_header<'a>(bytes: &'a [u8], at: &mut usize) -> Option<Header<'a>> {
    let header = slice(bytes, *at, 46)?;
    if u32_at(header, 0)? != CENTRAL {
        return None;
    }
    let lengths = [28, 30, 32].map(|field| u16_at(header, field).map(usize::from));
    let [Some(name), Some(extra), Some(comment)] = lengths else {
        return None;
    };
    let behind = *at + 46;
    let name_bytes = slice(bytes, behind, name)?;
    let extra_bytes = slice(bytes, behind + name, extra)?;
    *at = behind + name + extra + comment;
    let [mut size, mut packed, mut offset] = [24, 20, 42].map(|field| u32_at(header, field).map(u64::from));
    let mut wide = wide_numbers(extra_bytes);
    for number in [&mut size, &mut packed, &mut offset] {
        if *number == Some(u32::MAX.into()) {
            let (value, rest) = wide.split_first_chunk()?;
            (*number, wide) = (Some(u64::from_le_bytes(*value)), rest);
        }
    }
    Some(Header {
        name: std::str::from_utf8(name_bytes).ok()?,
        encrypted: u16_at(header, 8)? & 1 != 0,
        method: u16_at(header, 10)?,
        checksum: u32_at(header, 16)?,
        packed: packed?,
        size: size?,
        offset: offset?,
    })
}

/// The content of the extra field with 64-bit numbers; empty where there is none.
fn wide_numbers(mut extra: &[u8]) -> &[u8] {
    while let (Some(kind), Some(length)) = (u16_at(extra, 0), u16_at(extra, 2)) {
        let content = extra[4..].get(..length.into()).unwrap_or_default();
        if kind == EXTRA64 {
            return content;
        }
        extra = extra[4..].get(length.into()..).unwrap_or_default();
    }
    &[]
}

/// Where the bytes of an entry are, behind its local header.
fn data_range(bytes: &[u8], entry: &Header) -> Option<std::ops::Range<usize>> {
    let at = usize::try_from(entry.offset).ok()?;
    let header = slice(bytes, at, 30)?;
    if u32_at(header, 0)? != LOCAL {
        return None;
    }
    let (name, extra) = (u16_at(header, 26)? as usize, u16_at(header, 28)? as usize);
    if slice(bytes, at + 30, name)? != entry.name.as_bytes() {
        return None;
    }
    let start = at + 30 + name + extra;
    let size = usize::try_from(entry.size).ok()?;
    slice(bytes, start, size)?;
    Some(start..start + size)
}

fn slice(bytes: &[u8], at: usize, length: usize) -> Option<&[u8]> {
    bytes.get(at..at.checked_add(length)?)
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    slice(bytes, at, N)?.try_into().ok()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    array(bytes, at).map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    array(bytes, at).map(u64::from_le_bytes)
}

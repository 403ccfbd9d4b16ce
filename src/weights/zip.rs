//! The zip archives that PyTorch writes: entries stored as they are, none compressed, encrypted or shared. An archive
//! with anything else is refused, so no entry is larger than the file and all together aren't either.

use std::collections::BTreeMap;

use rawzip::{CompressionMethod, ZipArchive};

/// The archive's entries by name, checked against their checksums.
///
/// # Errors
/// In words for the user: an archive that is truncated or damaged, or whose entries are compressed, encrypted, overlap
/// or share a name.
pub(super) fn entries(bytes: &[u8]) -> Result<BTreeMap<String, &[u8]>, String> {
    let archive = ZipArchive::from_slice(bytes).map_err(damaged)?;
    if archive.end_offset() != bytes.len() as u64 {
        return Err(damaged("other bytes follow it"));
    }
    let mut found = Vec::new();
    for header in archive.entries() {
        let header = header.map_err(damaged)?;
        let path = header.file_path();
        let name = std::str::from_utf8(path.as_bytes()).map_err(|_| damaged("a name is not UTF-8"))?;
        let shown = name.escape_debug();
        if header.flags().is_encrypted()
            || header.compression_method() != CompressionMethod::STORE
            || header.compressed_size_hint() != header.uncompressed_size_hint()
        {
            return Err(format!(
                "its zip entry `{shown}` is compressed or encrypted, which PyTorch never does; refused"
            ));
        }
        let entry = archive
            .get_entry(header.wayfinder())
            .map_err(|e| damaged(format!("entry `{shown}`: {e}")))?;
        if entry.local_header().file_path().as_bytes() != name.as_bytes() {
            return Err(damaged(format!("entry `{shown}` has two names")));
        }
        let (start, end) = entry.compressed_data_range();
        found.push((
            start as usize..end as usize,
            name.to_owned(),
            entry.claim_verifier().crc,
        ));
    }
    if found.len() as u64 != archive.entries_hint() {
        return Err(damaged("entries are missing"));
    }
    // Before their bytes are looked at, so that no byte is looked at twice.
    found.sort_by_key(|(range, ..)| (range.start, range.end));
    if found.windows(2).any(|pair| pair[1].0.start < pair[0].0.end) {
        return Err("its zip archive has entries that overlap; refused".into());
    }
    let mut entries = BTreeMap::new();
    for (range, name, checksum) in found {
        let (data, shown) = (&bytes[range], name.escape_debug());
        if crc32fast::hash(data) != checksum {
            return Err(format!(
                "the checksum of its zip entry `{shown}` differs: the file is damaged"
            ));
        }
        if entries.contains_key(&name) {
            return Err(format!("its zip archive has the entry `{shown}` twice"));
        }
        entries.insert(name, data);
    }
    Ok(entries)
}

fn damaged(what: impl std::fmt::Display) -> String {
    format!("its zip archive is truncated or damaged ({what})")
}

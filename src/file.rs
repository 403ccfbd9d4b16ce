//! Writing files so that a reader never sees half of one and nobody loses an older one by accident.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Writes `bytes` to a temporary file beside `path` and renames it into place.
///
/// # Errors
/// [`io::ErrorKind::AlreadyExists`] when `path` exists and `force` is false; otherwise the operating
/// system's error. The temporary file is removed when writing fails.
pub fn write_beside(path: &Path, bytes: &[u8], force: bool) -> io::Result<()> {
    if !force && path.exists() {
        return Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            "the file exists already; pass --force to replace it",
        ));
    }
    let temporary = beside(path)?;
    let written = File::create(&temporary)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}

/// A name in the folder of `path` that no other process writes to, hidden and with the same ending (libraries
/// that choose a format by the ending can write to it).
///
/// # Errors
/// [`io::ErrorKind::InvalidInput`] when `path` names no file.
pub fn beside(path: &Path) -> io::Result<PathBuf> {
    let name = path
        .file_name()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the path names a folder, not a file"))?;
    let mut hidden = std::ffi::OsString::from(format!(".{}.", std::process::id()));
    hidden.push(name);
    Ok(path.with_file_name(hidden))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_an_existing_file_unless_forced_and_leaves_no_temporary() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.txt");
        write_beside(&path, b"first", false).unwrap();
        assert_eq!(
            write_beside(&path, b"second", false).unwrap_err().kind(),
            io::ErrorKind::AlreadyExists
        );
        assert_eq!(fs::read(&path).unwrap(), b"first");
        write_beside(&path, b"second", true).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"second");
        assert!(write_beside(&folder.path().join("missing/a.txt"), b"x", false).is_err());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}

//! Writing files so that a reader never sees half of one and nobody loses an older one by accident. Whatever the library
//! changes on a disk goes through here: clippy.toml forbids the rest of it to do so itself.
#![allow(clippy::disallowed_methods)]

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use tempfile::{Builder, NamedTempFile};

use crate::faults;

/// Writes `bytes` to a temporary file beside `path` and renames it into place, so that after a failure or a crash the
/// file is what it was before.
///
/// # Errors
/// [`io::ErrorKind::AlreadyExists`] when `path` exists and `force` is false, also when it came to exist meanwhile;
/// [`io::ErrorKind::InvalidInput`] when `path` is a folder or a device; otherwise the operating system's error. The
/// temporary file is removed when writing fails.
pub fn write_beside(path: &Path, bytes: &[u8], force: bool) -> io::Result<()> {
    let exists = check_place(path)?;
    if exists && !force {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, EXISTS));
    }
    let temporary = beside(path, bytes, Readers::Usual)?;
    change(|| match force {
        true => temporary.persist(path).map(drop).map_err(Into::into),
        false => persist_new(temporary, path),
    })?;
    sync_folder(path);
    Ok(())
}

/// Writes `bytes` to a file as [`write_beside`] does, and keeps what was there as the file `kept` in the same folder. At
/// every moment one of the two is whole.
///
/// # Errors
/// As [`write_beside`] with `force`.
pub fn write_beside_keeping(path: &Path, kept: &Path, bytes: &[u8]) -> io::Result<()> {
    let exists = check_place(path)?;
    let temporary = beside(path, bytes, Readers::Usual)?;
    if exists {
        change(|| fs::rename(path, kept))?;
    }
    change(|| temporary.persist(path).map_err(Into::into))?;
    sync_folder(path);
    Ok(())
}

/// Makes a file hold `kept` and then `more`. Where it begins with `kept`, it is not replaced: what follows is cut off and `more`
/// appended, so that a reader who has it open goes on. A crash may leave part of `more`, for formats whose readers notice that.
///
/// # Errors
/// As [`write_beside`] with `force`.
#[cfg(feature = "cli")]
pub(crate) fn append_to(path: &Path, kept: &[u8], more: &[u8]) -> io::Result<()> {
    let begins = check_place(path)? && fs::read(path)?.starts_with(kept);
    if !begins {
        return write_beside(path, &[kept, more].concat(), true);
    }
    let mut file = File::options().write(true).open(path)?;
    change(|| file.set_len(kept.len() as u64))?;
    io::Seek::seek(&mut file, io::SeekFrom::End(0))?;
    change(|| file.write_all(more))
}

/// Writes a file as [`write_beside`] does with `force`, that no other user reads or writes; in a folder that is made so where
/// it is not there.
///
/// # Errors
/// The operating system's. A file that was there stays then.
pub(crate) fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    change(|| builder.create(folder(path)))?;
    let temporary = beside(path, bytes, Readers::Owner)?;
    change(|| temporary.persist(path).map(drop).map_err(Into::into))
}

/// Makes a folder, and those that it lies in, where there is none.
///
/// # Errors
/// The operating system's.
pub fn make_folder(path: &Path) -> io::Result<()> {
    change(|| fs::create_dir_all(path))
}

/// Makes sure that files can be written into a folder.
///
/// # Errors
/// The operating system's.
pub fn takes_files(folder: &Path) -> io::Result<()> {
    let probe = folder.join(format!(".obelisk-{}", std::process::id()));
    change(|| File::create_new(&probe))?;
    change(|| fs::remove_file(&probe))
}

/// Removes a file, if it is there.
///
/// # Errors
/// The operating system's.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    change(|| match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    })
}

/// Does what changes the disk, unless a test's disk fails.
pub(crate) fn change<T>(operation: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    faults::operation()?;
    operation()
}

/// Whether there is a file at `path`.
fn check_place(path: &Path) -> io::Result<bool> {
    let refuse = |problem: &str| Err(io::Error::new(io::ErrorKind::InvalidInput, problem));
    match fs::metadata(path) {
        _ if path.file_name().is_none() => refuse("the path names a folder, not a file"),
        Ok(found) if !found.is_file() => refuse("it is a folder or a device, not a file"),
        Ok(_) => Ok(true),
        Err(_) => Ok(false),
    }
}

const EXISTS: &str = "the file exists already";

/// Who may read a file.
#[derive(Clone, Copy, PartialEq)]
enum Readers {
    /// Whom the umask says.
    Usual,
    Owner,
}

/// A temporary file in the folder of `path` with these bytes, on the disk.
fn beside(path: &Path, bytes: &[u8], readers: Readers) -> io::Result<NamedTempFile> {
    let mut builder = Builder::new();
    builder.prefix(".obelisk-").suffix(".tmp");
    builder.disable_cleanup(faults::nothing_is_tidied());
    let make = |path: &Path| File::options().write(true).create_new(true).open(path);
    let mut temporary = change(|| match readers {
        Readers::Usual => builder.make_in(folder(path), make),
        // From the beginning, as tempfile makes them.
        Readers::Owner => builder.tempfile_in(folder(path)),
    })?;
    let file = temporary.as_file_mut();
    if let Err(error) = faults::operation() {
        // A disk takes what it has room for.
        file.write_all(&bytes[..bytes.len() / 2])?;
        return Err(error);
    }
    file.write_all(bytes)?;
    change(|| file.sync_all())?;
    Ok(temporary)
}

/// The folder that a file's path lies in.
pub fn folder(path: &Path) -> &Path {
    path.parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

/// Renames to a path where nothing is.
fn persist_new(temporary: NamedTempFile, path: &Path) -> io::Result<()> {
    match temporary.persist_noclobber(path) {
        Ok(_) => Ok(()),
        Err(_) if fs::symlink_metadata(path).is_ok() => {
            Err(io::Error::new(io::ErrorKind::AlreadyExists, EXISTS))
        }
        // The file system can rename, but neither link nor rename without replacing.
        Err(failed) => {
            failed.file.persist(path)?;
            Ok(())
        }
    }
}

/// Makes the renaming last through a power failure, where folders can be synced; the file is whole in any case.
fn sync_folder(path: &Path) {
    if cfg!(unix) {
        let _ = change(|| File::open(folder(path))?.sync_all());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<String> = entries
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

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
        let missing = write_beside(&folder.path().join("missing/a.txt"), b"x", false).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
        assert!(!missing.to_string().contains("tmp"), "{missing}");
        assert_eq!(names(folder.path()), ["a.txt"]);
    }

    #[test]
    fn keeps_the_file_before() {
        let folder = tempfile::tempdir().unwrap();
        let (path, kept) = (folder.path().join("new"), folder.path().join("before"));
        let contents = |path: &Path| fs::read(path).ok();
        for (i, before) in [(0, None), (1, Some(vec![0])), (2, Some(vec![1]))] {
            write_beside_keeping(&path, &kept, &[i]).unwrap();
            assert_eq!(contents(&path), Some(vec![i]));
            assert_eq!(contents(&kept), before);
        }
        // After a crash between the two renames the file is gone and the one before is not.
        fs::remove_file(&path).unwrap();
        write_beside_keeping(&path, &kept, &[3]).unwrap();
        assert_eq!((contents(&path), contents(&kept)), (Some(vec![3]), Some(vec![1])));
        assert_eq!(names(folder.path()), ["before", "new"]);
    }

    #[cfg(feature = "cli")]
    #[test]
    fn appends_to_what_begins_so_and_replaces_what_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events");
        for (before, kept, more, after) in [
            (None, "", "ab", "ab"),
            (Some("ab"), "ab", "cd", "abcd"),
            (Some("abXY"), "ab", "", "ab"),
            (Some("other"), "ab", "cd", "abcd"),
        ] {
            match before {
                Some(before) => fs::write(&path, before).unwrap(),
                None => assert!(!path.exists()),
            }
            append_to(&path, kept.as_bytes(), more.as_bytes()).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), after);
        }
        assert!(append_to(folder.path(), b"", b"x").is_err());
        assert_eq!(names(folder.path()), ["events"]);
    }

    #[test]
    fn of_two_that_write_at_once_without_force_one_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        for round in 0..20 {
            let path = folder.path().join(round.to_string());
            let written: Vec<bool> = std::thread::scope(|scope| {
                let writers: Vec<_> = (0..8u8)
                    .map(|i| (i, path.clone()))
                    .map(|(i, path)| scope.spawn(move || write_beside(&path, &[i; 1000], false).is_ok()))
                    .collect();
                writers.into_iter().map(|writer| writer.join().unwrap()).collect()
            });
            let winner = written.iter().position(|ok| *ok).unwrap();
            assert_eq!(written.iter().filter(|ok| **ok).count(), 1);
            assert_eq!(fs::read(&path).unwrap(), [winner as u8; 1000]);
        }
        assert_eq!(names(folder.path()).len(), 20);
    }

    #[test]
    fn replaces_neither_folders_nor_devices() {
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("inner");
        fs::create_dir(&inner).unwrap();
        for path in [&inner, &folder.path().join(".."), Path::new("/")] {
            for force in [false, true] {
                let error = write_beside(path, b"x", force).unwrap_err();
                assert_eq!(
                    error.kind(),
                    io::ErrorKind::InvalidInput,
                    "{}: {error}",
                    path.display()
                );
            }
        }
        #[cfg(unix)]
        {
            // A socket stands for /dev/null, which this test had better not touch.
            let socket = folder.path().join("socket");
            let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
            assert_eq!(
                write_beside(&socket, b"x", true).unwrap_err().kind(),
                io::ErrorKind::InvalidInput
            );
            assert_eq!(names(folder.path()), ["inner", "socket"]);
        }
    }

    #[cfg(unix)]
    #[test]
    fn files_have_the_permissions_of_any_other() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let (plain, beside) = (folder.path().join("plain"), folder.path().join("beside"));
        fs::write(&plain, b"x").unwrap();
        write_beside(&beside, b"x", false).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode(&beside), mode(&plain));
    }
}

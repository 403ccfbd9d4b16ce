//! Compiled pipelines on disk, where the backend gives them out (Vulkan): the next process of the same program on the same
//! adapter and driver starts with them. A driver trusts what it is given, so a file that others could have written is not
//! read: the checksum finds damage, the file's owner and mode intent. No key would add to that, since whoever can write the
//! file can read the key.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use crate::file::write_private;

/// First bytes of a file of pipelines; a checksum of the rest follows.
const MAGIC: &[u8; 8] = b"OBELPIPE";

/// A larger file is none of this program's: all kernels of a network are some MiB.
const MOST_BYTES: u64 = 256 << 20;

/// A backend's pipeline cache and its file.
#[derive(Debug)]
pub(super) struct PipelineCache {
    pub(super) cache: wgpu::PipelineCache,
    path: PathBuf,
    /// Bytes that came from the file; none where there was none.
    pub(super) loaded: Option<usize>,
    /// Checksum of what the file holds.
    stored: Mutex<u64>,
}

impl PipelineCache {
    /// The cache of this adapter, driver and version of the program in `folder`. `None` where the device has no pipeline
    /// caches. A file that is damaged, or can't be read, is reported and ignored.
    pub(super) fn open(device: &wgpu::Device, info: &wgpu::AdapterInfo, folder: &Path) -> Option<Self> {
        if !device.features().contains(wgpu::Features::PIPELINE_CACHE) {
            return None;
        }
        let adapter = wgpu::util::pipeline_cache_key(info)?;
        let driver = fnv1a(format!("{} {}", info.driver, info.driver_info).as_bytes());
        let name = format!("{adapter}_{driver:016x}_{}.bin", env!("CARGO_PKG_VERSION"));
        let path = folder.join(name);
        let data = load(&path).unwrap_or_else(|problem| {
            tracing::warn!("{}: {problem}; pipelines are compiled anew", path.display());
            None
        });
        let descriptor = wgpu::PipelineCacheDescriptor {
            label: Some("pipelines"),
            data: data.as_deref(),
            fallback: true, // of another device or driver after all: start empty
        };
        #[allow(unsafe_code)] // wgpu's only way to load compiled pipelines
        // SAFETY: the data is what `get_data` of this program gave on an adapter of this key, by its checksum, and no other user
        // could write it.
        let cache = unsafe { device.create_pipeline_cache(&descriptor) };
        Some(PipelineCache {
            cache,
            path,
            loaded: data.as_ref().map(Vec::len),
            stored: Mutex::new(data.as_deref().map_or(0, fnv1a)),
        })
    }

    /// Writes the pipelines beside their place and renames, unless the file has them. A cache that can't be written
    /// costs time, not results: it is reported.
    pub(super) fn save(&self) {
        let Some(data) = self.cache.get_data() else { return };
        let checksum = fnv1a(&data);
        let mut stored = self.stored.lock().unwrap();
        if *stored == checksum {
            return;
        }
        *stored = checksum; // also when writing fails: once is enough to hear of it
        let mut bytes = MAGIC.to_vec();
        bytes.extend(checksum.to_le_bytes());
        bytes.extend(data);
        if let Err(error) = write_private(&self.path, &bytes) {
            tracing::warn!("{}: {error}; the next run compiles again", self.path.display());
        }
    }
}

/// Whether the file is this user's, and no other may read or write it. A superuser reads the files of others, too.
fn is_private(file: &fs::Metadata) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        file.mode() & 0o077 == 0 && file.uid() == rustix::process::geteuid().as_raw()
    }
    #[cfg(not(unix))]
    file.is_file() // folders of users are private there
}

/// The bytes of a file that [`write_private`] wrote, or why they can't be trusted to be; `Ok(None)` where there is none.
pub(super) fn read_kept(path: &Path) -> Result<Option<Vec<u8>>, String> {
    match fs::symlink_metadata(path) {
        // Before it is opened: a pipe would wait for its writer.
        Ok(found) if !found.is_file() => return Err("it is not a file".into()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        _ => {}
    }
    let file = fs::File::open(path).map_err(|e| e.to_string())?;
    // Of the open file: what is looked at is what is read.
    let metadata = file.metadata().map_err(|e| e.to_string())?;
    if !is_private(&metadata) {
        return Err("another user owns it or may read or write it".into());
    }
    if metadata.len() > MOST_BYTES {
        return Err(format!("it has {} bytes", metadata.len()));
    }
    let mut bytes = Vec::new();
    file.take(MOST_BYTES)
        .read_to_end(&mut bytes)
        .map_err(|e| e.to_string())?;
    Ok(Some(bytes))
}

/// What a file of pipelines holds, or what is wrong with it; `Ok(None)` where there is none.
fn load(path: &Path) -> Result<Option<Vec<u8>>, String> {
    let Some(bytes) = read_kept(path)? else {
        return Ok(None);
    };
    let rest = bytes.strip_prefix(MAGIC).ok_or("not a file of pipelines")?;
    let (checksum, data) = rest.split_at_checked(8).ok_or("it is cut off")?;
    if checksum != fnv1a(data).to_le_bytes() {
        return Err("it is damaged".into());
    }
    Ok(Some(data.to_vec()))
}

/// FNV-1a, 64 bits.
pub(super) fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(unix)]
    #[test]
    fn what_others_could_have_written_is_not_read() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/pipelines.bin");
        let bytes = [&MAGIC[..], &fnv1a(b"compiled").to_le_bytes(), b"compiled"].concat();
        write_private(&path, &bytes).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(path.parent().unwrap()), mode(&path)), (0o700, 0o600));
        assert!(load(&path).unwrap().is_some());
        for others in [0o644, 0o620, 0o602] {
            fs::set_permissions(&path, PermissionsExt::from_mode(others)).unwrap();
            assert!(load(&path).is_err(), "{others:o}");
        }
        write_private(&path, &bytes).unwrap();
        assert!(load(&path).unwrap().is_some(), "written anew");
        let left: Vec<_> = fs::read_dir(path.parent().unwrap()).unwrap().collect();
        assert_eq!(left.len(), 1, "no temporary file is left: {left:?}");
        // A superuser can give files away; whom they belong to then could have written them.
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&path, Some(12345), None).unwrap();
            assert!(load(&path).unwrap_err().contains("another user"));
        }
    }

    #[cfg(unix)]
    #[test]
    fn what_is_no_file_or_too_large_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pipelines.bin");
        write_private(&path, b"x").unwrap();
        fs::File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(1 << 40)
            .unwrap();
        assert!(load(&path).unwrap_err().contains("bytes"));
        fs::remove_file(&path).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RWXU).unwrap();
        assert!(
            load(&path).unwrap_err().contains("not a file"),
            "and it does not wait for a writer"
        );
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(load(&path).is_err() && write_private(&path, b"x").is_err());
    }

    #[test]
    fn only_whole_files_are_loaded() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pipelines.bin");
        assert_eq!(load(&path), Ok(None));
        let mut bytes = MAGIC.to_vec();
        bytes.extend(fnv1a(b"compiled").to_le_bytes());
        bytes.extend(b"compiled");
        write_private(&path, &bytes).unwrap();
        assert_eq!(load(&path), Ok(Some(b"compiled".to_vec())));
        for cut in [0, 7, 8, 15, 16, bytes.len() - 1] {
            std::fs::write(&path, &bytes[..cut]).unwrap();
            assert!(load(&path).is_err(), "cut to {cut} bytes");
        }
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            std::fs::write(&path, &damaged).unwrap();
            assert!(load(&path).is_err(), "byte {at} changed");
        }
    }
}

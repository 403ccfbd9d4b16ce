//! One training a folder.

use std::fs::{File, TryLockError};
use std::io::ErrorKind;
use std::path::Path;

use super::TrainError;
use crate::file;

/// A run's folder, locked: while this lives, no other process trains into it. The system drops the lock with the process,
/// however that ends.
#[derive(Debug)]
pub struct RunFolder {
    _lock: File,
}

impl RunFolder {
    /// Makes the folder where there is none, and locks it by its file `lock`.
    ///
    /// # Errors
    /// [`TrainError::Locked`] where another training holds it, and the system's refusal.
    pub fn lock(path: &Path) -> Result<RunFolder, TrainError> {
        let io = |path: &Path| {
            let path = path.to_owned();
            move |cause| TrainError::Io { path, cause }
        };
        file::make_folder(path).map_err(io(path))?;
        let name = path.join("lock");
        // Not truncated: it may be another's, and locked.
        let mut options = File::options();
        options.create(true).truncate(false).write(true);
        let file = file::change(|| options.open(&name)).map_err(io(&name))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(TrainError::Locked { run: path.into() }),
            Err(TryLockError::Error(error)) if error.kind() == ErrorKind::Unsupported => {
                let path = path.display();
                tracing::warn!(
                    "the file system of {path} has no locks: nothing keeps another training out of it"
                );
            }
            Err(TryLockError::Error(error)) => return Err(io(&name)(error)),
        }
        Ok(RunFolder { _lock: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_locked_once_and_free_again_afterwards() {
        let folder = tempfile::tempdir().unwrap();
        let run = folder.path().join("new/run");
        let lock = RunFolder::lock(&run).unwrap();
        assert!(matches!(RunFolder::lock(&run), Err(TrainError::Locked { .. })));
        assert!(RunFolder::lock(folder.path()).is_ok());
        drop(lock);
        assert!(RunFolder::lock(&run).is_ok());
    }
}

//! Hashes of files.

use std::io::Read;
use std::path::Path;

use data_encoding::HEXLOWER;
use sha2::{Digest, Sha256};

use super::{ReportError, invalid};

/// A file's SHA-256 in hexadecimal digits, as `sha256sum` prints it.
///
/// # Errors
/// A file that can't be read.
pub fn of_file(path: &Path) -> Result<String, ReportError> {
    let mut hasher = Sha256::new();
    let mut part = vec![0; 1 << 20];
    let hashed = std::fs::File::open(path).and_then(|mut file| {
        loop {
            match file.read(&mut part) {
                Ok(0) => return Ok(()),
                Ok(count) => hasher.update(&part[..count]),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    });
    match hashed {
        Ok(()) => Ok(HEXLOWER.encode(&hasher.finalize())),
        Err(error) => invalid(path, format!("it can't be read: {error}")),
    }
}

/// The SHA-256 of a list of files as `sha256sum` prints it, which is one hash for all of them.
pub fn of_list(files: &[(String, String)]) -> String {
    let mut hasher = Sha256::new();
    for (name, hash) in files {
        hasher.update(format!("{hash}  {name}\n"));
    }
    HEXLOWER.encode(&hasher.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_the_standard() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        std::fs::write(&path, "abc").unwrap();
        // FIPS 180-2, B.1
        let want = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(of_file(&path).unwrap(), want);
        // printf '%s  a\n' … | sha256sum
        let list = of_list(&[("a".into(), want.into())]);
        assert_eq!(
            list,
            "60eb527cba799edb93b30ea27633d72a197c248cd40cf6f7647c93f98b8f9a32"
        );
        assert!(of_file(&folder.path().join("b")).is_err());
    }
}

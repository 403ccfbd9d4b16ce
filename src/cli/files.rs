//! The files that a command reads and writes: no input is ever an output, and what can't be written is reported before anything
//! is computed.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::Context;
use obelisk::dataset::Dataset;
use obelisk::file::{self, folder};

use super::Usage;

/// A command's inputs and outputs, each with the option that names it.
#[derive(Debug, Default)]
pub struct Files {
    read: Vec<(&'static str, PathBuf)>,
    written: Vec<(&'static str, PathBuf)>,
}

impl Files {
    /// None yet.
    pub fn new() -> Self {
        Files::default()
    }

    /// A file or folder that is read.
    pub fn read(&mut self, option: &'static str, path: impl Into<PathBuf>) -> &mut Self {
        self.read.push((option, path.into()));
        self
    }

    /// Several of them.
    pub fn read_all<'p>(
        &mut self,
        option: &'static str,
        paths: impl IntoIterator<Item = &'p PathBuf>,
    ) -> &mut Self {
        self.read
            .extend(paths.into_iter().map(|path| (option, path.clone())));
        self
    }

    /// Notes all files of a dataset as read.
    pub fn read_dataset(&mut self, dataset: &Dataset) -> &mut Self {
        self.read("DATASET", &dataset.folder);
        for case in &dataset.cases {
            self.read_all("DATASET", &case.images)
                .read("DATASET", &case.label);
        }
        self
    }

    /// A file or folder that is written, now or with `--force`.
    pub fn write(&mut self, option: &'static str, path: impl Into<PathBuf>) -> &mut Self {
        self.written.push((option, path.into()));
        self
    }

    /// Several of them.
    pub fn write_all<'p>(
        &mut self,
        option: &'static str,
        paths: impl IntoIterator<Item = &'p PathBuf>,
    ) -> &mut Self {
        self.written
            .extend(paths.into_iter().map(|path| (option, path.clone())));
        self
    }

    /// Compares all of them by what they are, not by how they are spelt.
    ///
    /// # Errors
    /// An input that is not there, an output that is an input, two outputs that are one file.
    pub fn check(&self) -> anyhow::Result<()> {
        let mut known = HashMap::new();
        for (option, path) in &self.read {
            let identity = identity(path).with_context(|| format!("{option} {}", path.display()))?;
            known.insert(identity, (*option, path, true));
        }
        for (option, path) in &self.written {
            let identity = identity(path).unwrap_or_else(|_| future(path));
            let Some((other, before, is_read)) = known.insert(identity, (*option, path, false)) else {
                continue;
            };
            let (path, before) = (path.display(), before.display());
            return Err(Usage(match is_read {
                false => format!("{option} {path} is the same as {other} {before}; give each its own"),
                true => format!(
                    "{option} {path} is {other} {before} itself, which is never written to, not with --force either; \
                     choose another place"
                ),
            })
            .into());
        }
        Ok(())
    }
}

/// The identity of a file, whatever path leads to it.
#[derive(Debug, PartialEq, Eq, Hash)]
enum Identity {
    /// Device and inode.
    #[cfg(unix)]
    Node(u64, u64),
    /// The one path of a file without its links or, for one that is not there yet, of where it will be.
    Path(PathBuf),
}

#[cfg(unix)]
fn identity(path: &Path) -> std::io::Result<Identity> {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).map(|m| Identity::Node(m.dev(), m.ino()))
}

#[cfg(not(unix))]
fn identity(path: &Path) -> std::io::Result<Identity> {
    path.canonicalize().map(Identity::Path)
}

fn future(path: &Path) -> Identity {
    let folder = folder(path).canonicalize();
    Identity::Path(match (folder, path.file_name()) {
        (Ok(folder), Some(name)) => folder.join(name),
        _ => path.to_owned(),
    })
}

/// Makes sure that a file can be written there before anything is computed for it.
///
/// # Errors
/// A file that exists without `force`, a folder of that name, a place that takes no files.
pub fn claim(path: &Path, force: bool) -> anyhow::Result<()> {
    if path.is_dir() {
        anyhow::bail!("{} is a folder, not a file", path.display());
    }
    if path.exists() && !force {
        anyhow::bail!("{} exists; --force replaces it", path.display());
    }
    takes_files(folder(path))
}

/// Makes a folder where there is none, and makes sure that it takes files.
///
/// # Errors
/// The system's refusal.
pub fn claim_folder(path: &Path) -> anyhow::Result<()> {
    file::make_folder(path).with_context(|| format!("{}", path.display()))?;
    takes_files(path)
}

fn takes_files(folder: &Path) -> anyhow::Result<()> {
    file::takes_files(folder).with_context(|| format!("{} takes no files", folder.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(files: &Files) -> Option<String> {
        files.check().err().map(|e| crate::cli::message(&e))
    }

    #[test]
    fn files_are_told_apart_by_what_they_are() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::write(path("a"), "a").unwrap();
        std::fs::write(path("b"), "a").unwrap();
        std::fs::create_dir(path("sub")).unwrap();
        let same = |input: &str, output: &str| {
            refusal(
                Files::new()
                    .read("--input", path(input))
                    .write("--output", path(output)),
            )
        };
        assert_eq!(same("a", "b"), None);
        assert_eq!(same("a", "new"), None);
        for spelling in ["a", "./a", "sub/../a"] {
            let refused = same("a", spelling).expect(spelling);
            assert!(
                refused.contains("--output") && refused.contains("--input"),
                "{refused}"
            );
        }
        assert!(same("sub", "sub/.").is_some());
        assert!(
            same("missing", "b").unwrap().starts_with("--input"),
            "a mistyped input is told first"
        );
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink(path("a"), path("link")).unwrap();
            std::fs::hard_link(path("a"), path("hard")).unwrap();
            std::os::unix::fs::symlink(path("sub"), path("folder")).unwrap();
            for (input, output) in [("a", "link"), ("link", "a"), ("a", "hard"), ("folder", "sub")] {
                assert!(same(input, output).is_some(), "{input} {output}");
            }
        }
        let two = |one: &str, other: &str| {
            refusal(
                Files::new()
                    .write("--output", path(one))
                    .write("--logits", path(other)),
            )
        };
        assert_eq!(two("x", "y"), None);
        assert!(two("x", "sub/../x").unwrap().contains("each its own"));
        assert!(two("a", "a").is_some());
    }

    #[test]
    fn places_that_take_no_file_are_told_beforehand() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::write(path("a"), "a").unwrap();
        assert!(claim(&path("new"), false).is_ok());
        assert!(
            claim(&path("a"), false)
                .unwrap_err()
                .to_string()
                .contains("--force")
        );
        assert!(claim(&path("a"), true).is_ok());
        for wrong in ["missing/new", "a/new"] {
            assert!(claim(&path(wrong), true).is_err(), "{wrong}");
        }
        assert!(claim(folder.path(), true).is_err());
        assert!(claim_folder(&path("made/within")).is_ok());
        assert!(claim_folder(&path("a")).is_err());
        assert_eq!(std::fs::read_dir(path("made/within")).unwrap().count(), 0);
    }
}

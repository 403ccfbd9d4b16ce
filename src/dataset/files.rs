//! Scans in folders: one file of all channels, or one file a channel.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::{DatasetError, invalid};
#[cfg(feature = "dicom")]
use crate::volume::dicom::{Folder, Holds};
use crate::volume::{self, SAME_PLACE, Volume, VolumeError};

/// Reads a scan from one file of all channels or from one file a channel, which must share a grid.
///
/// # Errors
/// A file that cannot be read, or two that lie on different grids.
///
/// # Panics
/// If `files` is empty.
pub fn read_channels(files: &[PathBuf]) -> Result<Volume, VolumeError> {
    let mut scan = volume::read(&files[0])?;
    for file in &files[1..] {
        let next = volume::read(file)?;
        if let Some(difference) = scan.geometry.difference(&next.geometry, SAME_PLACE) {
            let problem = format!("its grid is not that of {}: {difference}", files[0].display());
            return Err(VolumeError::Format {
                path: file.clone(),
                problem,
            });
        }
        scan.data
            .try_reserve_exact(next.data.len())
            .map_err(|e| VolumeError::Format {
                path: file.clone(),
                problem: format!("its {:?} voxels: {e}", next.geometry.shape),
            })?;
        scan.data.extend(next.data);
        scan.channels += next.channels;
        scan.non_finite += next.non_finite;
    }
    Ok(scan)
}

/// What a folder holds.
#[derive(Debug)]
pub struct FoundScans {
    /// Each scan's files by its id.
    pub scans: BTreeMap<String, Vec<PathBuf>>,
    /// Scans of which files are missing, or too many, with the reason.
    pub incomplete: Vec<DatasetError>,
}

/// The scans in a folder by id, each with its channel files; see [`find_scans`].
///
/// # Errors
/// Those of [`find_scans`], and the first incomplete scan.
pub fn scans(folder: &Path, channels: usize) -> Result<BTreeMap<String, Vec<PathBuf>>, DatasetError> {
    let FoundScans { scans, incomplete } = find_scans(folder, channels)?;
    match incomplete.into_iter().next() {
        Some(error) => Err(error),
        None => Ok(scans),
    }
}

/// The scans in a folder by id, each with its channel files: `CASE.nii.gz`, or `CASE_0000.nii.gz`, `CASE_0001.nii.gz` … for a
/// scan of several channels. Files of one channel are `CASE_0000.nii.gz` where all names end so. Hidden files and files of
/// other endings are left out. With the feature `dicom`, folders of DICOM files are scans, too, where there are no files of scans.
///
/// # Errors
/// A folder that cannot be listed, without scans, or with two files of one id.
pub fn find_scans(folder: &Path, channels: usize) -> Result<FoundScans, DatasetError> {
    #[cfg(feature = "dicom")]
    if let Ok(Folder {
        holds: Holds::Folders(series),
        ..
    }) = Folder::open(folder)
    {
        return Ok(FoundScans {
            scans: series.into_iter().map(|(id, path)| (id, vec![path])).collect(),
            incomplete: Vec::new(),
        });
    }
    let files = files(folder)?;
    let numbered: Vec<Option<(&str, usize)>> = files.keys().map(|stem| channel_of(stem)).collect();
    let one_each = channels == 1 && numbered.iter().all(|n| matches!(n, Some((_, 0))));
    let mut found = FoundScans {
        scans: BTreeMap::new(),
        incomplete: Vec::new(),
    };
    let mut groups: BTreeMap<&str, Vec<(usize, &str)>> = BTreeMap::new();
    for (stem, number) in files.keys().zip(&numbered) {
        match number {
            Some((id, channel)) if channels > 1 || one_each => {
                groups.entry(id).or_default().push((*channel, stem))
            }
            _ => insert(&mut found.scans, stem, vec![files[stem].clone()])?,
        }
    }
    for (id, group) in groups {
        // names are sorted, so a scan's channels come in order
        let paths = || group.iter().map(|(_, stem)| files[*stem].clone());
        if group.iter().map(|(channel, _)| *channel).eq(0..channels) {
            insert(&mut found.scans, id, paths().collect())?;
        } else if channels > 1 && group.iter().all(|(_, stem)| is_whole(&files[*stem], channels)) {
            for (path, (_, stem)) in paths().zip(&group) {
                insert(&mut found.scans, stem, vec![path])?;
            }
        } else {
            let there: Vec<usize> = group.iter().map(|(channel, _)| *channel).collect();
            found.incomplete.push(incomplete(folder, id, &there, channels));
        }
    }
    Ok(found)
}

/// The files of a folder that hold scans, by name without ending.
fn files(folder: &Path) -> Result<BTreeMap<String, PathBuf>, DatasetError> {
    let mut files = BTreeMap::new();
    let cannot = |e: std::io::Error| DatasetError::Invalid {
        path: folder.into(),
        problem: format!("cannot be listed: {e}"),
    };
    for entry in std::fs::read_dir(folder).map_err(cannot)? {
        let path = entry.map_err(cannot)?.path();
        let Some(stem) = volume::stem(&path).map(String::from) else {
            continue;
        };
        if stem.starts_with('.') || path.is_dir() {
            continue;
        }
        if let Some(other) = files.insert(stem, path.clone()) {
            return invalid(
                &path,
                format!("{} has the same name; keep one of them", other.display()),
            );
        }
    }
    match files.is_empty() {
        true => invalid(
            folder,
            "the folder holds no .nii or .nii.gz file, nor another that is read (.mgz, .mgh, .nrrd, .nhdr, .hdr, or DICOM in a folder a \
             series)",
        ),
        false => Ok(files),
    }
}

fn insert(
    scans: &mut BTreeMap<String, Vec<PathBuf>>,
    id: &str,
    files: Vec<PathBuf>,
) -> Result<(), DatasetError> {
    let path = files[0].clone();
    match scans.insert(id.to_string(), files) {
        None => Ok(()),
        Some(other) => invalid(
            &path,
            format!(
                "{} is a scan of the same name; keep one of them",
                other[0].display()
            ),
        ),
    }
}

/// Whether a file holds all channels, or can't be read, which whoever reads it will say.
fn is_whole(file: &Path, channels: usize) -> bool {
    volume::read_geometry(file).map_or(true, |(_, has)| has == channels)
}

fn incomplete(folder: &Path, id: &str, there: &[usize], channels: usize) -> DatasetError {
    let names = |numbers: &mut dyn Iterator<Item = usize>| {
        let names: Vec<String> = numbers.map(|channel| format!("{id}_{channel:04}")).collect();
        names.join(", ")
    };
    let missing = names(&mut (0..channels).filter(|channel| !there.contains(channel)));
    let beyond = names(&mut there.iter().copied().filter(|channel| *channel >= channels));
    let problem = match (missing.is_empty(), beyond.is_empty()) {
        (false, true) => format!("the file {missing} is missing"),
        (true, _) => format!("the file {beyond} is one too many"),
        (false, false) => format!("the file {missing} is missing, and {beyond} is one too many"),
    };
    DatasetError::Invalid {
        path: folder.join(id),
        problem: format!(
            "{problem}: a scan has {channels} channels, _0000 to _{:04}",
            channels - 1
        ),
    }
}

/// `CASE_0003` is channel 3 of CASE.
fn channel_of(stem: &str) -> Option<(&str, usize)> {
    let (id, digits) = stem.rsplit_once('_')?;
    let four = digits.len() == 4 && digits.bytes().all(|b| b.is_ascii_digit());
    Some((id, digits.parse().ok()?)).filter(|_| four && !id.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channel_numbers_are_four_digits_at_the_end() {
        assert_eq!(channel_of("liver_12_0003"), Some(("liver_12", 3)));
        for other in ["liver_003", "liver0003", "_0000", "liver_00a0", "liver_+001"] {
            assert_eq!(channel_of(other), None, "{other}");
        }
    }
}

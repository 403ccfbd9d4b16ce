//! Folders of scans and labels, as the Medical Segmentation Decathlon and nnU-Net v2 lay them out, and their folds.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::volume::{self, Volume, VolumeError};

/// A class of a segmentation: what a file's voxels of `value` are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Label {
    /// The number in label files.
    pub value: i32,
    /// What it is called.
    pub name: String,
}

/// One training scan and its label map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Case {
    /// The file name without its ending (and, for nnU-Net, without `_0000`).
    pub id: String,
    /// One file holding all channels, or one file a channel.
    pub images: Vec<PathBuf>,
    /// The label map.
    pub label: PathBuf,
}

/// Indices into [`Dataset::cases`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fold {
    /// To train on, ascending.
    pub train: Vec<usize>,
    /// To validate on, ascending.
    pub validation: Vec<usize>,
}

/// How cases are divided for cross-validation: a number of folds, `loo` for leave-one-out, or `splits`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "FoldsText", into = "FoldsText")]
pub enum Folds {
    /// scikit-learn's `KFold(K, shuffle=True, random_state=12345)` over the sorted ids.
    Count(usize),
    /// Those of the folder's `splits_final.json`, which must be there.
    Splits,
    /// As many folds as cases; fold k holds out case k of the sorted ids.
    LeaveOneOut,
}

/// [`Folds`] in files: a number or a word.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum FoldsText {
    Count(usize),
    Word(String),
}

impl TryFrom<FoldsText> for Folds {
    type Error = String;

    fn try_from(text: FoldsText) -> Result<Folds, String> {
        match text {
            FoldsText::Count(count) => count.to_string().parse(),
            FoldsText::Word(word) => word.parse(),
        }
    }
}

impl From<Folds> for FoldsText {
    fn from(folds: Folds) -> FoldsText {
        match folds {
            Folds::Count(count) => FoldsText::Count(count),
            Folds::LeaveOneOut | Folds::Splits => FoldsText::Word(folds.to_string()),
        }
    }
}

impl std::str::FromStr for Folds {
    type Err = String;

    fn from_str(text: &str) -> Result<Folds, String> {
        match text.parse() {
            Ok(count) if count >= 2 => Ok(Folds::Count(count)),
            Err(_) if text == "loo" => Ok(Folds::LeaveOneOut),
            Err(_) if text == "splits" => Ok(Folds::Splits),
            _ => Err(format!(
                "`{text}` is no number of folds, 2 or more, nor loo or splits"
            )),
        }
    }
}

impl std::fmt::Display for Folds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Folds::Count(count) => write!(f, "{count}"),
            Folds::LeaveOneOut => f.write_str("loo"),
            Folds::Splits => f.write_str("splits"),
        }
    }
}

/// A folder with `dataset.json`.
#[derive(Debug, Clone)]
pub struct Dataset {
    /// The folder.
    pub folder: PathBuf,
    /// Names of the channels, e.g. `MRI` or `CT`, in order.
    pub channels: Vec<String>,
    /// The classes by ascending file value; a class's index in the network is its position here. The first is
    /// value 0, the background.
    pub labels: Vec<Label>,
    /// The file value of voxels that count neither as background nor as anything else.
    pub ignore: Option<i32>,
    /// The training cases, sorted by id.
    pub cases: Vec<Case>,
    /// From `splits_final.json`, if the folder has one.
    splits: Option<Vec<Fold>>,
}

/// Why a dataset cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    /// A file of the dataset is not as it must be.
    #[error("{}: {problem}", path.display())]
    Invalid {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong and what to do.
        problem: String,
    },
    /// A scan could not be read.
    #[error(transparent)]
    Volume(#[from] VolumeError),
}

fn invalid<T>(path: &Path, problem: impl Into<String>) -> Result<T, DatasetError> {
    Err(DatasetError::Invalid {
        path: path.into(),
        problem: problem.into(),
    })
}

fn json(path: &Path) -> Result<Value, DatasetError> {
    match std::fs::read(path) {
        Ok(text) => serde_json::from_slice(&text).or_else(|e| invalid(path, format!("it is not JSON: {e}"))),
        Err(e) => invalid(path, format!("cannot be read: {e}")),
    }
}

impl Dataset {
    /// Reads `folder/dataset.json` (and `splits_final.json`) and finds the training cases' files.
    ///
    /// # Errors
    /// A description that is neither convention's, region-based labels, or files that are missing; the scans
    /// themselves are not opened ([`Dataset::check`] does that).
    pub fn open(folder: &Path) -> Result<Dataset, DatasetError> {
        let path = folder.join("dataset.json");
        if !path.exists() {
            return invalid(
                folder,
                "the folder has no dataset.json; it must be a dataset in the Medical Segmentation Decathlon's \
                 or nnU-Net's layout",
            );
        }
        let description = json(&path)?;
        let channels = channels(&description).or_else(|e| invalid(&path, e))?;
        let (labels, ignore) = labels(&description).or_else(|e| invalid(&path, e))?;
        let mut cases = match description.get("training").and_then(Value::as_array) {
            Some(pairs) => listed(folder, &path, pairs, channels.len())?,
            None => found(folder, &path, &description, channels.len())?,
        };
        if cases.is_empty() {
            return invalid(&path, "the dataset has no training cases");
        }
        cases.sort_by(|a, b| a.id.cmp(&b.id));
        if let Some(twice) = cases.windows(2).find(|pair| pair[0].id == pair[1].id) {
            return invalid(&path, format!("the case {} is there twice", twice[0].id));
        }
        let missing: Vec<&Path> = cases
            .iter()
            .flat_map(|case| case.images.iter().chain([&case.label]))
            .map(PathBuf::as_path)
            .filter(|file| !file.is_file())
            .collect();
        if let Some(first) = missing.first() {
            let problem = match missing.len() {
                1 => "the file is missing".to_string(),
                n => format!(
                    "the file is missing, and {} others that {} names",
                    n - 1,
                    path.display()
                ),
            };
            return invalid(first, problem);
        }
        let splits = splits(&folder.join("splits_final.json"), &cases)?;
        Ok(Dataset {
            folder: folder.into(),
            channels,
            labels,
            ignore,
            cases,
            splits,
        })
    }

    /// The folds to cross-validate with. Without `folds`: those of the folder's `splits_final.json` or, where there is
    /// none, `KFold(5, shuffle=True, random_state=12345)` over the sorted ids, which is nnU-Net's split.
    ///
    /// # Errors
    /// More folds than cases.
    pub fn folds(&self, folds: Option<Folds>) -> Result<Vec<Fold>, DatasetError> {
        match (folds, &self.splits) {
            (None | Some(Folds::Splits), Some(splits)) => return Ok(splits.clone()),
            (Some(Folds::Splits), None) => {
                let path = self.folder.join("splits_final.json");
                return invalid(&path, "the file is missing, and its folds were asked for");
            }
            _ => {}
        }
        let cases = self.cases.len();
        let count = match folds {
            None | Some(Folds::Splits) => DEFAULT_FOLDS,
            Some(Folds::Count(count)) => count,
            Some(Folds::LeaveOneOut) => {
                let others = |k| (0..cases).filter(|i| *i != k).collect();
                let fold = |k| Fold {
                    train: others(k),
                    validation: vec![k],
                };
                return Ok((0..cases).map(fold).collect());
            }
        };
        if cases < count {
            let problem =
                format!("{cases} cases are too few for {count} folds; take fewer, or train on all of them");
            return invalid(&self.folder, problem);
        }
        Ok((0..count).map(|k| k_fold(cases, count, k)).collect())
    }

    /// Fold `k`, from 0, of [`Dataset::folds`].
    ///
    /// # Errors
    /// A fold that does not exist, and those of [`Dataset::folds`].
    pub fn fold(&self, folds: Option<Folds>, k: usize) -> Result<Fold, DatasetError> {
        let mut all = self.folds(folds)?;
        if k < all.len() {
            return Ok(all.swap_remove(k));
        }
        let source = match (folds, &self.splits) {
            (None | Some(Folds::Splits), Some(_)) => self.folder.join("splits_final.json"),
            _ => self.folder.clone(),
        };
        invalid(
            &source,
            format!("there are folds 0 to {}, no fold {k}", all.len() - 1),
        )
    }

    /// Opens every header: each scan must have the channels that dataset.json declares, on its label map's grid.
    ///
    /// # Errors
    /// The first file that cannot be read or does not fit.
    pub fn check(&self) -> Result<(), DatasetError> {
        for case in &self.cases {
            let mut channels = 0;
            let (label, _) = volume::read_geometry(&case.label)?;
            for image in &case.images {
                let (geometry, count) = volume::read_geometry(image)?;
                channels += count;
                if geometry.shape != label.shape {
                    return invalid(
                        image,
                        format!(
                            "the scan has {:?} voxels, its label map {} has {:?}",
                            geometry.shape,
                            case.label.display(),
                            label.shape
                        ),
                    );
                }
                if geometry.orientation != label.orientation {
                    return invalid(
                        image,
                        format!(
                            "the scan is stored as {}, its label map {} as {}; one of the headers is wrong",
                            geometry.orientation,
                            case.label.display(),
                            label.orientation
                        ),
                    );
                }
                if let Some(difference) = geometry.difference(&label, 1e-2) {
                    tracing::warn!(
                        "{} and {} do not lie in the same place ({difference}); the voxels are taken as they are",
                        image.display(),
                        case.label.display()
                    );
                }
            }
            if channels != self.channels.len() {
                return invalid(&case.images[0], self.channels_problem(channels));
            }
        }
        Ok(())
    }

    fn channels_problem(&self, found: usize) -> String {
        format!(
            "the scan has {found} channels, dataset.json declares {}: {:?}",
            self.channels.len(),
            self.channels
        )
    }

    /// Reads a case's scan with all its channels, `[C, X, Y, Z]`.
    ///
    /// # Errors
    /// A file that cannot be read, channels on different grids, or another number of channels than declared.
    pub fn image(&self, case: &Case) -> Result<Volume, DatasetError> {
        let volume = read_channels(&case.images)?;
        match volume.channels == self.channels.len() {
            true => Ok(volume),
            false => invalid(&case.images[0], self.channels_problem(volume.channels)),
        }
    }

    /// Reads a case's label map; [`crate::preprocess::Preprocessing::prepare_labels`] turns its values into classes.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn label(&self, case: &Case) -> Result<Volume, DatasetError> {
        Ok(volume::read(&case.label)?)
    }
}

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
        if let Some(difference) = scan.geometry.difference(&next.geometry, 1e-2) {
            let problem = format!("its grid is not that of {}: {difference}", files[0].display());
            return Err(VolumeError::Format {
                path: file.clone(),
                problem,
            });
        }
        scan.data.extend(next.data);
        scan.channels += next.channels;
        scan.non_finite += next.non_finite;
    }
    Ok(scan)
}

/// The scans in a folder by id, each with its channel files: `CASE.nii.gz`, or `CASE_0000.nii.gz`, `CASE_0001.nii.gz`
/// … when every name ends in four digits and every case has `channels` files numbered from 0.
///
/// # Errors
/// A folder that cannot be listed, without scans, or with two files of one id.
pub fn scans(folder: &Path, channels: usize) -> Result<BTreeMap<String, Vec<PathBuf>>, DatasetError> {
    let mut files = BTreeMap::new();
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) => return invalid(folder, format!("cannot be listed: {e}")),
    };
    for entry in entries.flatten() {
        let path = entry.path();
        if let Some(stem) = volume::stem(&path)
            .filter(|stem| !stem.starts_with('.'))
            .map(str::to_string)
            && let Some(other) = files.insert(stem, path.clone())
        {
            return invalid(
                &path,
                format!("{} has the same name; keep one of them", other.display()),
            );
        }
    }
    if files.is_empty() {
        return invalid(folder, "the folder holds no .nii or .nii.gz file");
    }
    let mut cases: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    let mut numbered = true;
    for (stem, path) in &files {
        match channel_of(stem) {
            // files are sorted, so a case's channels come in order
            Some((id, channel)) => {
                let channel_files = cases.entry(id.to_string()).or_default();
                numbered &= channel == channel_files.len();
                channel_files.push(path.clone());
            }
            None => numbered = false,
        }
    }
    if numbered
        && cases
            .values()
            .all(|channel_files| channel_files.len() == channels)
    {
        return Ok(cases);
    }
    Ok(files.into_iter().map(|(stem, path)| (stem, vec![path])).collect())
}

/// `CASE_0003` is channel 3 of CASE.
fn channel_of(stem: &str) -> Option<(&str, usize)> {
    let (id, digits) = stem.rsplit_once('_')?;
    let four = digits.len() == 4 && digits.bytes().all(|b| b.is_ascii_digit());
    Some((id, digits.parse().ok()?)).filter(|_| four && !id.is_empty())
}

/// Channel names by index, from `channel_names` (nnU-Net v2) or `modality` (Decathlon).
fn channels(description: &Value) -> Result<Vec<String>, String> {
    let Some(names) = description
        .get("channel_names")
        .or(description.get("modality"))
        .and_then(Value::as_object)
    else {
        return Err("it has neither `modality` nor `channel_names`, such as {\"0\": \"CT\"}".into());
    };
    let channel = |index: usize| {
        names
            .get(&index.to_string())
            .and_then(Value::as_str)
            .map(str::to_string)
            .ok_or_else(|| {
                format!(
                    "its {} channels must be named \"0\" to \"{}\"",
                    names.len(),
                    names.len() - 1
                )
            })
    };
    match names.is_empty() {
        true => Err("it names no channel".into()),
        false => (0..names.len()).map(channel).collect(),
    }
}

/// Labels by value, and the ignore label: `{"1": "liver"}` (Decathlon) or `{"liver": 1}` (nnU-Net v2).
fn labels(description: &Value) -> Result<(Vec<Label>, Option<i32>), String> {
    let Some(entries) = description.get("labels").and_then(Value::as_object) else {
        return Err("it has no `labels`, such as {\"0\": \"background\", \"1\": \"liver\"}".into());
    };
    let mut labels = Vec::new();
    for (key, value) in entries {
        let number = |text: &str| text.trim().parse::<i32>().ok();
        let label = match value {
            Value::Array(_) => {
                return Err(format!(
                    "the label {key} is a region of several values; region-based training is not supported: \
                     give each value a label of its own"
                ));
            }
            Value::Number(n) => n.as_i64().and_then(|n| i32::try_from(n).ok()).map(|value| Label {
                value,
                name: key.clone(),
            }),
            Value::String(text) => match (number(key), number(text)) {
                (Some(value), _) => Some(Label {
                    value,
                    name: text.clone(),
                }),
                (None, Some(value)) => Some(Label {
                    value,
                    name: key.clone(),
                }),
                _ => None,
            },
            _ => None,
        };
        labels.push(label.ok_or_else(|| format!("the label \"{key}\": {value} has no whole number"))?);
    }
    let ignored = |label: &Label| label.name == "ignore" && label.value != 0;
    let ignore = labels.iter().find(|l| ignored(l)).map(|l| l.value);
    labels.retain(|l| !ignored(l));
    labels.sort_by_key(|l| l.value);
    if let Some(pair) = labels.windows(2).find(|p| p[0].value == p[1].value) {
        return Err(format!(
            "the labels {} and {} have one value, {}",
            pair[0].name, pair[1].name, pair[0].value
        ));
    }
    if labels.first().is_none_or(|l| l.value != 0) || labels.len() < 2 {
        return Err("it must have the label 0, the background, and at least one positive label".into());
    }
    Ok((labels, ignore))
}

/// The cases of a Decathlon `training` list.
fn listed(folder: &Path, path: &Path, pairs: &[Value], channels: usize) -> Result<Vec<Case>, DatasetError> {
    let mut cases = Vec::new();
    for pair in pairs {
        let file = |key: &str| {
            pair.get(key)
                .and_then(Value::as_str)
                .map(|name| folder.join(name.trim_start_matches("./")))
        };
        let (Some(image), Some(label)) = (file("image"), file("label")) else {
            return invalid(
                path,
                format!("the training entry {pair} is not {{\"image\": …, \"label\": …}}"),
            );
        };
        let Some(id) = volume::stem(&image).map(str::to_string) else {
            return invalid(&image, "scans must be .nii or .nii.gz files");
        };
        // nnU-Net v1 lists CASE.nii.gz and stores CASE_0000.nii.gz
        let ending = if image.to_string_lossy().ends_with(".gz") {
            ".nii.gz"
        } else {
            ".nii"
        };
        let numbered: Vec<PathBuf> = (0..channels)
            .map(|c| image.with_file_name(format!("{id}_{c:04}{ending}")))
            .collect();
        let images = match !image.exists() && numbered[0].exists() {
            true => numbered,
            false => vec![image],
        };
        cases.push(Case { id, images, label });
    }
    Ok(cases)
}

/// The cases in nnU-Net's `imagesTr` and `labelsTr`.
fn found(
    folder: &Path,
    path: &Path,
    description: &Value,
    channels: usize,
) -> Result<Vec<Case>, DatasetError> {
    let Some(ending) = description.get("file_ending").and_then(Value::as_str) else {
        return invalid(
            path,
            "it has neither a `training` list (Decathlon) nor a `file_ending` (nnU-Net v2)",
        );
    };
    if ending != ".nii.gz" && ending != ".nii" {
        return invalid(
            path,
            format!("its scans end in {ending}; convert them to .nii.gz, and `file_ending` too"),
        );
    }
    let labels = folder.join("labelsTr");
    let images = folder.join("imagesTr");
    let mut cases = Vec::new();
    for (id, files) in scans(&labels, 0)? {
        let image = |channel: usize| images.join(format!("{id}_{channel:04}{ending}"));
        cases.push(Case {
            images: (0..channels).map(image).collect(),
            label: files[0].clone(),
            id,
        });
    }
    Ok(cases)
}

/// nnU-Net's splits, `[{"train": [ids], "val": [ids]}]`.
fn splits(path: &Path, cases: &[Case]) -> Result<Option<Vec<Fold>>, DatasetError> {
    if !path.exists() {
        return Ok(None);
    }
    #[derive(Deserialize)]
    struct Split {
        train: Vec<String>,
        val: Vec<String>,
    }
    let splits: Vec<Split> = serde_json::from_value(json(path)?).or_else(|e| {
        invalid(
            path,
            format!("it is not a list of {{\"train\": [ids], \"val\": [ids]}}: {e}"),
        )
    })?;
    let indices = |ids: Vec<String>| -> Result<Vec<usize>, DatasetError> {
        let mut found = BTreeSet::new();
        for id in ids {
            match cases.binary_search_by(|case| case.id.cmp(&id)) {
                Ok(index) => found.insert(index),
                Err(_) => return invalid(path, format!("the case {id} is not in the dataset")),
            };
        }
        Ok(found.into_iter().collect())
    };
    let mut folds = Vec::new();
    for split in splits {
        let fold = Fold {
            train: indices(split.train)?,
            validation: indices(split.val)?,
        };
        if let Some(both) = fold.train.iter().find(|index| fold.validation.contains(index)) {
            let problem = format!(
                "the case {} of fold {} is both to train and to validate on",
                cases[*both].id,
                folds.len()
            );
            return invalid(path, problem);
        }
        if fold.train.is_empty() {
            return invalid(path, format!("fold {} has no case to train on", folds.len()));
        }
        folds.push(fold);
    }
    Ok(Some(folds))
}

const DEFAULT_FOLDS: usize = 5;

/// scikit-learn's `list(KFold(folds, shuffle=True, random_state=12345).split(range(count)))[k]`.
fn k_fold(count: usize, folds: usize, k: usize) -> Fold {
    let mut random = MersenneTwister::new(12345);
    let mut order: Vec<usize> = (0..count).collect();
    for i in (1..count).rev() {
        order.swap(i, random.up_to(i as u32) as usize);
    }
    let start = |k: usize| k * (count / folds) + k.min(count % folds);
    let mut validation = order[start(k)..start(k + 1)].to_vec();
    validation.sort_unstable();
    let train = (0..count)
        .filter(|i| validation.binary_search(i).is_err())
        .collect();
    Fold { train, validation }
}

/// MT19937 (Matsumoto & Nishimura 1998), seeded and read as numpy's legacy `RandomState` does.
struct MersenneTwister {
    state: [u32; 624],
    next: usize,
}

impl MersenneTwister {
    fn new(seed: u32) -> Self {
        let mut state = [seed; 624];
        for i in 1..624 {
            let previous = state[i - 1];
            state[i] = 1_812_433_253u32
                .wrapping_mul(previous ^ (previous >> 30))
                .wrapping_add(i as u32);
        }
        MersenneTwister { state, next: 624 }
    }

    fn next(&mut self) -> u32 {
        if self.next == 624 {
            for i in 0..624 {
                let joined = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % 624] & 0x7fff_ffff);
                let twist = if joined & 1 == 1 { 0x9908_b0df } else { 0 };
                self.state[i] = self.state[(i + 397) % 624] ^ (joined >> 1) ^ twist;
            }
            self.next = 0;
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    /// Uniform in 0..=max: numpy's `random_interval`, which masks and rejects.
    fn up_to(&mut self, max: u32) -> u32 {
        let mask = u32::MAX.checked_shr(max.leading_zeros()).unwrap_or(0);
        loop {
            let value = self.next() & mask;
            if value <= max {
                return value;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folds_are_scikit_learns() {
        let stored: Value = serde_json::from_str(include_str!("../tests/reference/folds.json")).unwrap();
        for (key, wanted) in stored.as_object().unwrap() {
            let (count, folds) = key.split_once('/').unwrap();
            let (count, folds): (usize, usize) = (count.parse().unwrap(), folds.parse().unwrap());
            assert_eq!(wanted.as_array().unwrap().len(), folds);
            for (k, want) in wanted.as_array().unwrap().iter().enumerate() {
                let want: Vec<usize> = serde_json::from_value(want.clone()).unwrap();
                let fold = k_fold(count, folds, k);
                assert_eq!(fold.validation, want, "fold {k} of {folds}, {count} cases");
                let mut all = [fold.train, fold.validation].concat();
                all.sort_unstable();
                assert_eq!(all, (0..count).collect::<Vec<_>>());
            }
        }
        assert_eq!(stored.as_object().unwrap().len(), 15);
    }

    #[test]
    fn folds_are_numbers_or_loo() {
        #[derive(Debug, PartialEq, Serialize, Deserialize)]
        struct File {
            folds: Folds,
        }
        for (text, folds) in [
            ("folds = 4\n", Folds::Count(4)),
            ("folds = \"loo\"\n", Folds::LeaveOneOut),
        ] {
            let file: File = toml::from_str(text).unwrap();
            assert_eq!(file.folds, folds);
            assert_eq!(toml::to_string(&file).unwrap(), text);
            assert_eq!(folds.to_string().parse(), Ok(folds));
        }
        for wrong in ["folds = 1", "folds = -2", "folds = \"all\""] {
            assert!(toml::from_str::<File>(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn channel_numbers_are_four_digits_at_the_end() {
        assert_eq!(channel_of("liver_12_0003"), Some(("liver_12", 3)));
        for other in ["liver_003", "liver0003", "_0000", "liver_00a0", "liver_+001"] {
            assert_eq!(channel_of(other), None, "{other}");
        }
    }
}

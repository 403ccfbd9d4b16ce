//! How cases are divided for cross-validation.

use std::collections::BTreeSet;
use std::path::Path;

use rand_mt::Mt;
use serde::{Deserialize, Serialize};

use super::{Case, DatasetError, invalid, json};

/// Indices into [`super::Dataset::cases`].
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

/// nnU-Net's splits, `[{"train": [ids], "val": [ids]}]`.
pub(super) fn splits(path: &Path, cases: &[Case]) -> Result<Option<Vec<Fold>>, DatasetError> {
    if !path.exists() {
        return Ok(None);
    }
    #[derive(Deserialize)]
    struct Split {
        train: Vec<String>,
        val: Vec<String>,
    }
    let splits: Vec<Split> = json(path, "a list of {\"train\": [ids], \"val\": [ids]}")?;
    if splits.is_empty() {
        return invalid(path, "it lists no fold; remove the file, or list the folds");
    }
    let mut folds = Vec::new();
    for (k, split) in splits.into_iter().enumerate() {
        let indices = |ids: Vec<String>| -> Result<Vec<usize>, DatasetError> {
            let mut found = BTreeSet::new();
            for id in ids {
                match cases.binary_search_by(|case| case.id.cmp(&id)) {
                    Ok(index) if found.insert(index) => {}
                    Ok(_) => return invalid(path, format!("fold {k} lists the case {id} twice")),
                    Err(_) => {
                        return invalid(path, format!("the case {id} of fold {k} is not in the dataset"));
                    }
                };
            }
            Ok(found.into_iter().collect())
        };
        let fold = Fold {
            train: indices(split.train)?,
            validation: indices(split.val)?,
        };
        if let Some(both) = fold.train.iter().find(|index| fold.validation.contains(index)) {
            let problem = format!(
                "the case {} of fold {k} is both to train and to validate on",
                cases[*both].id
            );
            return invalid(path, problem);
        }
        if fold.train.is_empty() {
            return invalid(path, format!("fold {k} has no case to train on"));
        }
        folds.push(fold);
    }
    Ok(Some(folds))
}

pub(super) const DEFAULT_FOLDS: usize = 5;

/// scikit-learn's `list(KFold(folds, shuffle=True, random_state=12345).split(range(count)))[k]`.
pub(super) fn k_fold(count: usize, folds: usize, k: usize) -> Fold {
    // numpy's `RandomState(12345).shuffle`
    let mut random = Mt::new(12345);
    let mut order: Vec<usize> = (0..count).collect();
    for i in (1..count).rev() {
        order.swap(i, up_to(&mut random, i as u32) as usize);
    }
    let start = |k: usize| k * (count / folds) + k.min(count % folds);
    let mut validation = order[start(k)..start(k + 1)].to_vec();
    validation.sort_unstable();
    let train = (0..count)
        .filter(|i| validation.binary_search(i).is_err())
        .collect();
    Fold { train, validation }
}

/// Uniform in 0..=max: numpy's `random_interval`, which masks and rejects.
fn up_to(random: &mut Mt, max: u32) -> u32 {
    let mask = u32::MAX.checked_shr(max.leading_zeros()).unwrap_or(0);
    loop {
        let value = random.next_u32() & mask;
        if value <= max {
            return value;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folds_are_scikit_learns() {
        let stored: serde_json::Value =
            serde_json::from_str(include_str!("../../tests/reference/folds.json")).unwrap();
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
}

//! How well label maps agree with reference ones: Dice per label on the scans' own grids.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::dataset::{DatasetError, Label, scans};
use crate::volume::{self, VolumeError};

/// How many voxels have a label.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Overlap {
    /// |A|, in the prediction.
    pub prediction: u64,
    /// |B|, in the reference.
    pub reference: u64,
    /// |A ∩ B|.
    pub both: u64,
}

impl Overlap {
    /// 2|A ∩ B| / (|A| + |B|), `None` where neither has the label.
    pub fn dice(&self) -> Option<f64> {
        let sum = self.prediction + self.reference;
        (sum > 0).then(|| 2.0 * self.both as f64 / sum as f64)
    }
}

/// Counts voxels per label of two maps on one grid; voxels whose reference is `ignore` don't count at all.
///
/// # Panics
/// If the maps differ in length.
pub fn overlaps(prediction: &[i32], reference: &[i32], ignore: Option<i32>) -> BTreeMap<i32, Overlap> {
    assert_eq!(prediction.len(), reference.len(), "voxels of the two maps");
    let mut pairs: BTreeMap<(i32, i32), u64> = BTreeMap::new();
    let mut run = (prediction.first().copied().zip(reference.first().copied()), 0u64);
    let mut close = |(pair, length): (Option<(i32, i32)>, u64)| {
        if let Some(pair) = pair {
            *pairs.entry(pair).or_default() += length;
        }
    };
    for pair in prediction.iter().copied().zip(reference.iter().copied()) {
        if run.0 != Some(pair) {
            close(run);
            run = (Some(pair), 0);
        }
        run.1 += 1;
    }
    close(run);
    let mut overlaps: BTreeMap<i32, Overlap> = BTreeMap::new();
    for ((predicted, true_label), voxels) in pairs {
        if Some(true_label) == ignore {
            continue;
        }
        overlaps.entry(predicted).or_default().prediction += voxels;
        let entry = overlaps.entry(true_label).or_default();
        entry.reference += voxels;
        if predicted == true_label {
            entry.both += voxels;
        }
    }
    overlaps
}

/// The scores of one case.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CaseScore {
    /// The case.
    pub case: String,
    /// Dice of each of the report's labels, `None` where neither map has the label.
    pub dice: Vec<Option<f64>>,
    /// Mean over the labels that have one.
    pub mean: Option<f64>,
}

/// Dice of several cases and its means.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The labels that are scored, without the background.
    pub labels: Vec<Label>,
    /// Per case, by id.
    pub cases: Vec<CaseScore>,
    /// Mean Dice of each label over the cases that have one.
    pub label_means: Vec<Option<f64>>,
    /// Mean of the labels' means.
    pub mean: Option<f64>,
    /// References that have no prediction; they are not scored.
    pub unpredicted: Vec<String>,
}

fn mean(values: impl Iterator<Item = Option<f64>>) -> Option<f64> {
    let (sum, count) = values
        .flatten()
        .fold((0.0, 0), |(sum, count), v| (sum + v, count + 1));
    (count > 0).then(|| sum / f64::from(count))
}

impl Report {
    /// Dice of `labels` (the background, value 0, is left out) in each case's overlaps.
    pub fn new(labels: &[Label], cases: &[(String, BTreeMap<i32, Overlap>)]) -> Report {
        let labels: Vec<Label> = labels.iter().filter(|l| l.value != 0).cloned().collect();
        let cases: Vec<CaseScore> = cases
            .iter()
            .map(|(case, overlaps)| {
                let dice: Vec<Option<f64>> = labels
                    .iter()
                    .map(|l| overlaps.get(&l.value).and_then(Overlap::dice))
                    .collect();
                CaseScore {
                    case: case.clone(),
                    mean: mean(dice.iter().copied()),
                    dice,
                }
            })
            .collect();
        let label_means: Vec<Option<f64>> = (0..labels.len())
            .map(|label| mean(cases.iter().map(|case| case.dice[label])))
            .collect();
        Report {
            labels,
            cases,
            mean: mean(label_means.iter().copied()),
            label_means,
            unpredicted: Vec::new(),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let score = |dice: Option<f64>| dice.map_or("-".into(), |d| format!("{d:.4}"));
        let mut rows = vec![vec!["case".to_string()]];
        rows[0].extend(self.labels.iter().map(|l| match l.name == l.value.to_string() {
            true => l.name.clone(),
            false => format!("{} {}", l.value, l.name),
        }));
        rows[0].push("mean".into());
        for case in &self.cases {
            let mut row = vec![case.case.clone()];
            row.extend(case.dice.iter().copied().chain([case.mean]).map(score));
            rows.push(row);
        }
        let mut last = vec!["mean".to_string()];
        last.extend(self.label_means.iter().copied().chain([self.mean]).map(score));
        rows.push(last);
        let widths: Vec<usize> = (0..rows[0].len())
            .map(|c| rows.iter().map(|row| row[c].chars().count()).max().unwrap_or(0))
            .collect();
        for row in &rows {
            write!(f, "{:width$}", row[0], width = widths[0])?;
            for (text, width) in row.iter().zip(&widths).skip(1) {
                write!(f, "  {text:>width$}")?;
            }
            writeln!(f)?;
        }
        if !self.unpredicted.is_empty() {
            writeln!(f, "not predicted: {}", self.unpredicted.join(", "))?;
        }
        Ok(())
    }
}

/// Why maps cannot be compared.
#[derive(Debug, thiserror::Error)]
pub enum EvaluateError {
    /// A folder cannot be used.
    #[error(transparent)]
    Folder(#[from] DatasetError),
    /// A map cannot be read.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// A prediction without a reference.
    #[error("{} has no reference in {}", prediction.display(), folder.display())]
    NoReference {
        /// The prediction.
        prediction: PathBuf,
        /// Where a file of its name should be.
        folder: PathBuf,
    },
    /// A prediction on another grid than its reference.
    #[error("{} is not on the grid of {}: {difference}", prediction.display(), reference.display())]
    Geometry {
        /// The prediction.
        prediction: PathBuf,
        /// The reference.
        reference: PathBuf,
        /// What differs.
        difference: String,
    },
}

/// Compares a prediction with its reference.
///
/// # Errors
/// Files that are no label maps, or grids that differ in shape or, by more than 1e-3, in their affine.
pub fn compare(
    prediction: &Path,
    reference: &Path,
    ignore: Option<i32>,
) -> Result<BTreeMap<i32, Overlap>, EvaluateError> {
    let predicted = volume::read(prediction)?;
    let expected = volume::read(reference)?;
    match predicted.geometry.difference(&expected.geometry, 1e-3) {
        Some(difference) => Err(EvaluateError::Geometry {
            prediction: prediction.into(),
            reference: reference.into(),
            difference,
        }),
        None => Ok(overlaps(&predicted.labels()?, &expected.labels()?, ignore)),
    }
}

/// Scores every label map in the folder `predictions` against the one of its name in the folder `references`.
/// Without `labels`, every value but 0 that occurs is scored.
///
/// # Errors
/// Folders without label maps, a prediction without a reference, and those of [`compare`].
pub fn evaluate(
    predictions: &Path,
    references: &Path,
    labels: Option<&[Label]>,
    ignore: Option<i32>,
) -> Result<Report, EvaluateError> {
    let mut expected = scans(references, 1)?;
    let mut cases = Vec::new();
    for (id, files) in scans(predictions, 1)? {
        let Some(reference) = expected.remove(&id) else {
            return Err(EvaluateError::NoReference {
                prediction: files[0].clone(),
                folder: references.into(),
            });
        };
        cases.push((id, compare(&files[0], &reference[0], ignore)?));
    }
    let occurring = || {
        let values: std::collections::BTreeSet<i32> =
            cases.iter().flat_map(|(_, o)| o.keys().copied()).collect();
        values
            .into_iter()
            .map(|value| Label {
                value,
                name: value.to_string(),
            })
            .collect::<Vec<_>>()
    };
    if let Some(labels) = labels {
        for unknown in occurring()
            .iter()
            .filter(|l| labels.iter().all(|known| known.value != l.value))
        {
            tracing::warn!(
                "the label {} occurs but is not declared; it is not scored",
                unknown.value
            );
        }
    }
    let mut report = Report::new(&labels.map_or_else(occurring, <[Label]>::to_vec), &cases);
    report.unpredicted = expected.into_keys().collect();
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dice_is_twice_the_overlap_over_the_sum() {
        let prediction = [0, 1, 1, 1, 2, 0, 9, 1];
        let reference = [0, 1, 1, 0, 0, 2, 9, 5];
        let dice = |ignore| {
            let counted = overlaps(&prediction, &reference, ignore);
            [0, 1, 2, 9, 3].map(|label| counted.get(&label).and_then(Overlap::dice))
        };
        assert_eq!(
            dice(None),
            [Some(2.0 / 5.0), Some(4.0 / 6.0), Some(0.0), Some(1.0), None]
        );
        // without the voxel whose reference is 5, label 1 has three predicted voxels
        assert_eq!(dice(Some(5))[1], Some(4.0 / 5.0));
        assert_eq!(dice(Some(9))[3], None);
        assert!(overlaps(&[], &[], None).is_empty());
    }

    #[test]
    fn means_go_over_cases_then_over_labels_and_skip_what_is_in_neither() {
        let labels: Vec<Label> = [(0, "background"), (1, "a"), (4, "b")]
            .map(|(value, name)| Label {
                value,
                name: name.into(),
            })
            .to_vec();
        let cases = [
            ("x".to_string(), overlaps(&[1, 1, 4, 0], &[1, 0, 4, 0], None)),
            ("y".to_string(), overlaps(&[1, 1, 0, 0], &[1, 1, 0, 0], None)),
            ("z".to_string(), overlaps(&[0, 1, 0, 4], &[0, 0, 0, 0], None)),
        ];
        let report = Report::new(&labels, &cases);
        assert_eq!(report.cases[0].dice, [Some(2.0 / 3.0), Some(1.0)]);
        assert_eq!(report.cases[1].dice, [Some(1.0), None]);
        assert_eq!(report.cases[1].mean, Some(1.0));
        assert_eq!(report.cases[2].dice, [Some(0.0), Some(0.0)]);
        assert_eq!(report.label_means, [Some((2.0 / 3.0 + 1.0) / 3.0), Some(0.5)]);
        assert!((report.mean.unwrap() - (5.0 / 9.0 + 0.5) / 2.0).abs() < 1e-12);
        let table = report.to_string();
        assert!(
            table.contains("1 a") && table.contains("0.6667") && table.contains(" -"),
            "{table}"
        );
        let json = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<Report>(&json).unwrap(), report);
    }
}

//! How well label maps agree with reference ones: scores by label on the scans' own grids.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::dataset::{DatasetError, Label, scans};
use crate::metrics::{self, Comparison, LabelScores, METRICS, Unit, mean};
use crate::volume::{self, VolumeError};

/// The scores of one case.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CaseScore {
    /// The case.
    pub case: String,
    /// By metric, then by label of the report: the score, `None` where neither map has the label.
    #[serde(flatten, with = "metrics::by_name")]
    pub scores: Vec<Vec<Option<f64>>>,
    /// By metric: the mean over the labels that have a score.
    #[serde(flatten, with = "metrics::mean_of_first")]
    pub means: Vec<Option<f64>>,
}

/// Scores of several cases and their means.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The labels that are scored, without the background.
    pub labels: Vec<Label>,
    /// Per case, by id.
    pub cases: Vec<CaseScore>,
    /// By metric, then by label: the mean over the cases that have a score.
    #[serde(flatten, with = "metrics::label_means_of_first")]
    pub label_means: Vec<Vec<Option<f64>>>,
    /// By metric: the mean of the labels' means.
    #[serde(flatten, with = "metrics::mean_of_first")]
    pub means: Vec<Option<f64>>,
}

impl Report {
    /// The scores of `labels` (the background, value 0, is left out) in each case.
    pub fn new(labels: &[Label], cases: &[(String, LabelScores)]) -> Report {
        let labels: Vec<Label> = labels.iter().filter(|l| l.value != 0).cloned().collect();
        let cases: Vec<CaseScore> = cases
            .iter()
            .map(|(case, by_label)| {
                let score = |metric: usize, label: &Label| *by_label.get(&label.value)?.get(metric)?;
                let scores: Vec<Vec<Option<f64>>> = (0..METRICS.len())
                    .map(|metric| labels.iter().map(|label| score(metric, label)).collect())
                    .collect();
                CaseScore {
                    case: case.clone(),
                    means: scores.iter().map(|s| mean(s.iter().copied())).collect(),
                    scores,
                }
            })
            .collect();
        let label_mean =
            |metric: usize, label: usize| mean(cases.iter().map(|case| case.scores[metric][label]));
        let label_means: Vec<Vec<Option<f64>>> = (0..METRICS.len())
            .map(|metric| (0..labels.len()).map(|label| label_mean(metric, label)).collect())
            .collect();
        Report {
            labels,
            means: label_means.iter().map(|m| mean(m.iter().copied())).collect(),
            label_means,
            cases,
        }
    }

    /// A metric's table: a line a case, a column a label.
    fn table(&self, metric: usize, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let score = |score: Option<f64>| score.map_or("-".into(), |s| format!("{s:.4}"));
        let mut rows = vec![vec!["case".to_string()]];
        rows[0].extend(self.labels.iter().map(|l| match l.name == l.value.to_string() {
            true => l.name.clone(),
            false => format!("{} {}", l.value, l.name),
        }));
        rows[0].push("mean".into());
        let cases = self.cases.iter().map(|c| (c.case.as_str(), &c.scores, &c.means));
        for (name, scores, means) in cases.chain([("mean", &self.label_means, &self.means)]) {
            let mut row = vec![name.to_string()];
            row.extend(scores[metric].iter().copied().chain([means[metric]]).map(score));
            rows.push(row);
        }
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
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, metric) in METRICS.iter().enumerate() {
            if METRICS.len() > 1 {
                let gap = if i == 0 { "" } else { "\n" };
                let unit = match metric.unit {
                    Unit::Fraction => String::new(),
                    Unit::Symbol(unit) => format!(" ({unit})"),
                };
                writeln!(f, "{gap}{}{unit}", metric.title)?;
            }
            self.table(i, f)?;
        }
        Ok(())
    }
}

/// Why maps cannot be compared.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
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
    /// References without a prediction. Scoring the others would raise the mean.
    #[error(
        "{} of {references} references in {} have no prediction in {}: {}",
        missing.len(), folder.display(), predictions.display(), missing.join(", ")
    )]
    NoPrediction {
        /// The references' names.
        missing: Vec<String>,
        /// How many references there are.
        references: usize,
        /// Where they are.
        folder: PathBuf,
        /// Where files of their names should be.
        predictions: PathBuf,
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

/// Scores a prediction against its reference.
///
/// # Errors
/// Files that are no label maps, or grids that differ in shape or place a voxel more than a two-hundredth of one apart.
pub fn compare(
    prediction: &Path,
    reference: &Path,
    ignore: Option<i32>,
) -> Result<LabelScores, EvaluateError> {
    let predicted = volume::read(prediction)?;
    let expected = volume::read(reference)?;
    match predicted.geometry.difference(&expected.geometry, 5e-3) {
        Some(difference) => Err(EvaluateError::Geometry {
            prediction: prediction.into(),
            reference: reference.into(),
            difference,
        }),
        None => {
            let (prediction, reference) = (predicted.labels()?, expected.labels()?);
            let (shape, spacing) = (expected.geometry.shape, expected.geometry.spacing);
            Ok(Comparison::new(&prediction, &reference, shape, spacing, ignore).scores())
        }
    }
}

/// Scores every label map in the folder `predictions` against the one of its name in the folder `references`.
/// Without `labels`, every value but 0 that occurs is scored.
///
/// # Errors
/// Folders without label maps, a prediction without a reference, a reference without a prediction (as nnU-Net has it: a mean
/// over what happens to be there says nothing), and those of [`compare`].
pub fn evaluate(
    predictions: &Path,
    references: &Path,
    labels: Option<&[Label]>,
    ignore: Option<i32>,
) -> Result<Report, EvaluateError> {
    let expected = scans(references, 1)?;
    let predicted = scans(predictions, 1)?;
    if let Some(id) = predicted.keys().find(|id| !expected.contains_key(*id)) {
        return Err(EvaluateError::NoReference {
            prediction: predicted[id][0].clone(),
            folder: references.into(),
        });
    }
    let missing: Vec<String> = expected
        .keys()
        .filter(|id| !predicted.contains_key(*id))
        .cloned()
        .collect();
    if !missing.is_empty() {
        return Err(EvaluateError::NoPrediction {
            missing,
            references: expected.len(),
            folder: references.into(),
            predictions: predictions.into(),
        });
    }
    let cases = predicted
        .into_iter()
        .map(|(id, files)| {
            let overlaps = compare(&files[0], &expected[&id][0], ignore)?;
            Ok((id, overlaps))
        })
        .collect::<Result<Vec<_>, EvaluateError>>()?;
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
    Ok(Report::new(
        &labels.map_or_else(occurring, <[Label]>::to_vec),
        &cases,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_go_over_cases_then_over_labels_and_skip_what_is_in_neither() {
        let labels: Vec<Label> = [(0, "background"), (1, "a"), (4, "b")]
            .map(|(value, name)| Label {
                value,
                name: name.into(),
            })
            .to_vec();
        let cases = [
            ("x", [1, 1, 4, 0], [1, 0, 4, 0]),
            ("y", [1, 1, 0, 0], [1, 1, 0, 0]),
            ("z", [0, 1, 0, 4], [0, 0, 0, 0]),
        ]
        .map(|(case, prediction, reference)| {
            let maps = Comparison::new(&prediction, &reference, [1, 1, 4], [10.0; 3], None);
            (case.to_string(), maps.scores())
        });
        let report = Report::new(&labels, &cases);
        assert_eq!(report.cases[0].scores[0], [Some(2.0 / 3.0), Some(1.0)]);
        assert_eq!(report.cases[1].scores[0], [Some(1.0), None]);
        assert_eq!(report.cases[1].means, [Some(1.0), Some(0.0)]);
        assert_eq!(report.cases[2].scores[0], [Some(0.0), Some(0.0)]);
        assert_eq!(report.label_means[0], [Some((2.0 / 3.0 + 1.0) / 3.0), Some(0.5)]);
        assert_eq!(report.label_means[1], [Some(2.0 / 3.0), Some(0.5)]);
        assert!((report.means[0].unwrap() - (5.0 / 9.0 + 0.5) / 2.0).abs() < 1e-12);
        let table = report.to_string();
        assert!(
            table.contains("1 a") && table.contains("0.6667") && table.contains(" -"),
            "{table}"
        );
        assert!(
            table.starts_with("Dice\ncase") && table.contains("\n\nvolume error (ml)\ncase"),
            "{table}"
        );
        let json = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<Report>(&json).unwrap(), report);
    }
}

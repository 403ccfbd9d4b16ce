//! How well label maps agree with reference ones: scores by label on the scans' own grids, what they come to over all cases,
//! and how methods compare.

mod csv;
mod latex;
mod methods;
pub(crate) mod summary;

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use methods::{Method, Methods, Test};
pub use summary::Summary;

use crate::dataset::{DatasetError, Label, scans};
use crate::host_memory::TooLarge;
use crate::metrics::{self, Comparison, LabelScores, METRICS, Scoring, Surfaces, Unit, mean};
use crate::volume::{self, VolumeError};

/// The scores of one case.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CaseScore {
    /// The case.
    pub case: String,
    /// By metric, then by label of the report: the score, `None` where neither map has the label or the metric is not defined;
    /// nothing for a metric that was not asked for.
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
    /// How surfaces were measured, where they were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub surfaces: Option<Surfaces>,
    /// Each metric over the cases, by label and for all labels; nothing before [`Report::summarise`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub summary: Vec<Summary>,
}

impl Report {
    /// The scores of `labels` (the background, value 0, is left out) in each case.
    pub fn new(labels: &[Label], cases: &[(String, LabelScores)], scoring: &Scoring) -> Report {
        let labels: Vec<Label> = labels.iter().filter(|l| l.value != 0).cloned().collect();
        let cases = cases.iter().map(|(case, by_label)| {
            let score = |metric: usize, label: &Label| *by_label.get(&label.value)?.get(metric)?;
            let scores = (0..METRICS.len()).map(|metric| match scoring.chosen().has(metric) {
                true => labels.iter().map(|label| score(metric, label)).collect(),
                false => Vec::new(),
            });
            let scores: Vec<Vec<Option<f64>>> = scores.collect();
            CaseScore {
                case: case.clone(),
                means: scores.iter().map(|s| mean(s.iter().copied())).collect(),
                scores,
            }
        });
        let cases = cases.collect();
        Report::of_cases(labels, cases, scoring.measured_surfaces())
    }

    /// Of cases that are scored. A metric counts where every case was scored by it: a mean over part of the cases would stand
    /// beside those over all.
    pub fn of_cases(labels: Vec<Label>, cases: Vec<CaseScore>, surfaces: Option<Surfaces>) -> Report {
        let scored = |metric: usize| {
            let by_it = |case: &CaseScore| case.scores.get(metric).is_some_and(|s| s.len() == labels.len());
            cases.iter().all(by_it)
        };
        let label_mean = |metric: usize, label: usize| mean(cases.iter().map(|c| c.scores[metric][label]));
        let label_means: Vec<Vec<Option<f64>>> = (0..METRICS.len())
            .map(|metric| match scored(metric) {
                true => (0..labels.len()).map(|label| label_mean(metric, label)).collect(),
                false => Vec::new(),
            })
            .collect();
        Report {
            means: label_means.iter().map(|m| mean(m.iter().copied())).collect(),
            label_means,
            labels,
            cases,
            surfaces,
            summary: Vec::new(),
        }
    }

    /// The metrics that every case was scored by, by their place in [`METRICS`].
    pub fn scored(&self) -> impl Iterator<Item = usize> + '_ {
        let scored = |i: &usize| self.label_means.get(*i).is_some_and(|means| !means.is_empty());
        (0..METRICS.len()).filter(scored)
    }

    /// A label's name in tables: `1 liver`.
    pub(crate) fn label_heading(label: &Label) -> String {
        match label.name == label.value.to_string() {
            true => label.name.clone(),
            false => label.to_string(),
        }
    }

    /// A metric's table: a line a case, a column a label.
    fn table(&self, metric: usize, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let score = |score: Option<f64>| score.map_or("-".into(), |s| format!("{s:.4}"));
        let mut rows = vec![vec!["case".to_string()]];
        rows[0].extend(self.labels.iter().map(Report::label_heading));
        rows[0].push("mean".into());
        let cases = self.cases.iter().map(|c| (c.case.as_str(), &c.scores, &c.means));
        for (name, scores, means) in cases.chain([("mean", &self.label_means, &self.means)]) {
            let mut row = vec![name.to_string()];
            row.extend(scores[metric].iter().copied().chain([means[metric]]).map(score));
            rows.push(row);
        }
        write_rows(&rows, 1, f)
    }
}

/// Writes rows of equal length with their columns aligned: the first `left` to the left, the others to the right.
fn write_rows(rows: &[Vec<String>], left: usize, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let widths: Vec<usize> = (0..rows.first().map_or(0, Vec::len))
        .map(|c| rows.iter().map(|row| row[c].chars().count()).max().unwrap_or(0))
        .collect();
    for row in rows {
        let mut line = String::new();
        for (i, (text, width)) in row.iter().zip(&widths).enumerate() {
            let gap = if i == 0 { "" } else { "  " };
            line += &match i < left {
                true => format!("{gap}{text:width$}"),
                false => format!("{gap}{text:>width$}"),
            };
        }
        writeln!(f, "{}", line.trim_end())?;
    }
    Ok(())
}

impl fmt::Display for Report {
    /// The first metric of every case, and what all come to.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // without any label, the cases are all there is to say
        let nothing = self.labels.is_empty().then_some(0);
        if let Some(metric) = self.scored().next().or(nothing) {
            let unit = match METRICS[metric].unit {
                Unit::Symbol(unit) => format!(" ({unit})"),
                Unit::Fraction | Unit::Ratio => String::new(),
            };
            if metric != 0 || !self.summary.is_empty() {
                writeln!(f, "{}{unit}", METRICS[metric].title)?;
            }
            self.table(metric, f)?;
        }
        if !self.summary.is_empty() {
            writeln!(f, "\n{}", summary::heading(self.surfaces, self.cases.len()))?;
            self.write_summary(f)?;
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
    /// There is no memory for the distances between surfaces.
    #[error("{}: the distances between its surfaces: {cause}", prediction.display())]
    Memory {
        /// The prediction.
        prediction: PathBuf,
        /// How much is needed, and how much there is.
        #[source]
        cause: TooLarge,
    },
    /// Folders that would have one name in a table.
    #[error("two methods are named {0}")]
    TwoOfOneName(String),
}

/// What is scored, and how.
#[derive(Debug, Clone)]
pub struct Options<'a> {
    /// The labels that are scored; `None` for every value but 0 that occurs.
    pub labels: Option<&'a [Label]>,
    /// Voxels whose reference has this value don't count.
    pub ignore: Option<i32>,
    /// The metrics.
    pub scoring: Scoring,
}

impl Default for Options<'_> {
    /// Every metric of every label.
    fn default() -> Self {
        Options {
            labels: None,
            ignore: None,
            scoring: Scoring::all(),
        }
    }
}

impl Options<'_> {
    fn wants(&self, label: i32) -> bool {
        self.labels
            .is_none_or(|labels| labels.iter().any(|known| known.value == label))
    }
}

/// Scores a prediction against its reference. A label that is not wanted is there without scores.
///
/// # Errors
/// Files that are no label maps, grids that differ in shape or place a voxel more than a two-hundredth of one apart, and
/// surfaces for which there is no memory.
pub fn compare(prediction: &Path, reference: &Path, options: &Options) -> Result<LabelScores, EvaluateError> {
    let predicted = volume::read(prediction)?;
    let expected = volume::read(reference)?;
    if let Some(difference) = predicted.geometry.difference(&expected.geometry, 5e-3) {
        return Err(EvaluateError::Geometry {
            prediction: prediction.into(),
            reference: reference.into(),
            difference,
        });
    }
    let labels = [predicted.labels()?, expected.labels()?];
    drop(predicted.data);
    drop(expected.data);
    let (shape, spacing) = (expected.geometry.shape, expected.geometry.spacing);
    let maps = Comparison::new(&labels[0], &labels[1], shape, spacing, options.ignore);
    let mut scores = maps
        .scores(&options.scoring, |label| options.wants(label))
        .map_err(|cause| EvaluateError::Memory {
            prediction: prediction.into(),
            cause,
        })?;
    for label in maps.labels() {
        scores.entry(label).or_default();
    }
    Ok(scores)
}

/// Scores every label map in the folder `predictions` against the one of its name in the folder `references`.
///
/// # Errors
/// Folders without label maps, a prediction without a reference, a reference without a prediction (as nnU-Net has it: a mean
/// over what happens to be there says nothing), and those of [`compare`].
pub fn evaluate(predictions: &Path, references: &Path, options: &Options) -> Result<Report, EvaluateError> {
    let folder = [(String::new(), predictions.to_owned())];
    let mut methods = evaluate_methods(&folder, references, options, |_, _| {})?;
    Ok(methods.methods.remove(0).report)
}

/// Scores several methods, each a name and a folder of predictions, as [`evaluate`] does, and tests the first against the
/// others. `progress` hears after each case how many of how many are done.
///
/// # Errors
/// Those of [`evaluate`], and two methods of one name.
pub fn evaluate_methods(
    folders: &[(String, PathBuf)],
    references: &Path,
    options: &Options,
    mut progress: impl FnMut(usize, usize),
) -> Result<Methods, EvaluateError> {
    for (i, (name, _)) in folders.iter().enumerate() {
        if folders[..i].iter().any(|(other, _)| other == name) {
            return Err(EvaluateError::TwoOfOneName(name.clone()));
        }
    }
    let expected = scans(references, 1)?;
    let mut predicted = Vec::new();
    for (_, predictions) in folders {
        let found = scans(predictions, 1)?;
        if let Some(id) = found.keys().find(|id| !expected.contains_key(*id)) {
            return Err(EvaluateError::NoReference {
                prediction: found[id][0].clone(),
                folder: references.into(),
            });
        }
        let missing = expected.keys().filter(|id| !found.contains_key(*id));
        let missing: Vec<String> = missing.cloned().collect();
        if !missing.is_empty() {
            return Err(EvaluateError::NoPrediction {
                missing,
                references: expected.len(),
                folder: references.into(),
                predictions: predictions.clone(),
            });
        }
        predicted.push(found);
    }
    let (mut done, all) = (0, folders.len() * expected.len());
    let mut scored: Vec<Vec<(String, LabelScores)>> = Vec::new();
    for found in predicted {
        let mut cases = Vec::new();
        for (id, files) in found {
            let scores = compare(&files[0], &expected[&id][0], options)?;
            cases.push((id, scores));
            done += 1;
            progress(done, all);
        }
        scored.push(cases);
    }
    let all_cases = || {
        scored
            .iter()
            .flatten()
            .flat_map(|(_, scores)| scores.keys().copied())
    };
    let occurring: BTreeSet<i32> = all_cases().collect();
    for label in occurring.iter().filter(|label| !options.wants(**label)) {
        tracing::warn!("the label {label} occurs but is not declared; it is not scored");
    }
    let occurring: Vec<Label> = occurring
        .into_iter()
        .map(|value| Label {
            value,
            name: value.to_string(),
        })
        .collect();
    let labels = options.labels.unwrap_or(&occurring);
    let methods = folders.iter().zip(&scored).map(|((name, _), cases)| Method {
        name: name.clone(),
        report: Report::new(labels, cases, &options.scoring).summarise(),
    });
    let against_first: Vec<(usize, usize)> = (1..folders.len()).map(|other| (0, other)).collect();
    Ok(Methods::new(methods.collect(), &against_first))
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
            (case.to_string(), maps.scores(&Scoring::all(), |_| true).unwrap())
        });
        let report = Report::new(&labels, &cases, &Scoring::all()).summarise();
        assert_eq!(report.cases[0].scores[0], [Some(2.0 / 3.0), Some(1.0)]);
        assert_eq!(report.cases[1].scores[0], [Some(1.0), None]);
        assert_eq!(report.cases[1].means[0], Some(1.0));
        assert_eq!(report.cases[2].scores[0], [Some(0.0), Some(0.0)]);
        assert_eq!(report.label_means[0], [Some((2.0 / 3.0 + 1.0) / 3.0), Some(0.5)]);
        assert!((report.means[0].unwrap() - (5.0 / 9.0 + 0.5) / 2.0).abs() < 1e-12);
        let hd = METRICS.iter().position(|m| m.name == "hd").unwrap();
        // a label that one map lacks is infinitely far, and so is the mean
        assert_eq!(report.cases[2].scores[hd], [Some(f64::INFINITY); 2]);
        assert_eq!(report.cases[0].scores[hd], [Some(10.0), Some(0.0)]);
        assert_eq!(report.label_means[hd], [Some(f64::INFINITY); 2]);
        let of = |metric: &str, label| {
            let same = |s: &&Summary| s.metric == metric && s.label == label;
            report.summary.iter().find(same).unwrap()
        };
        let far = of("hd", Some(4));
        assert_eq!((far.mean, far.median), (Some(f64::INFINITY), Some(f64::INFINITY)));
        assert_eq!((far.cases, far.undefined, far.infinite), (2, 1, 1));
        assert_eq!(of("hd", Some(1)).median, Some(10.0));
        // where the reference has no label, there is no recall; where the prediction has none, no precision
        assert_eq!(
            (of("recall", Some(1)).cases, of("recall", Some(1)).undefined),
            (2, 1)
        );
        let all = of("dice", None);
        assert_eq!((all.mean, all.cases, all.undefined), (report.means[0], 3, 0));
        assert!(all.low.unwrap() < all.mean.unwrap() && all.high.unwrap() > all.mean.unwrap());
        let table = report.to_string();
        assert!(
            table.contains("1 a") && table.contains("0.6667") && table.contains(" -"),
            "{table}"
        );
        assert!(
            table.starts_with("Dice\ncase") && table.contains("\n4 b "),
            "{table}"
        );
        let means = table
            .lines()
            .filter(|line| line.split(' ').next() == Some("mean"));
        assert_eq!(means.count(), 1, "one line begins with its mean: {table}");
        let json = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<Report>(&json).unwrap(), report);
        let dice = Report::new(&labels, &cases, &Scoring::first());
        assert_eq!((dice.means[0], dice.means[hd]), (report.means[0], None));
        assert_eq!(
            (dice.surfaces, dice.scored().collect::<Vec<_>>()),
            (None, vec![0])
        );
        assert!(dice.to_string().starts_with("case"));
        let nothing = Report::new(&[], &[("x".into(), LabelScores::new())], &Scoring::all());
        assert_eq!(
            nothing.summarise().to_string(),
            "case  mean\nx        -\nmean     -\n"
        );
    }
}

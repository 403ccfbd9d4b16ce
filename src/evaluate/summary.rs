//! What scores come to over the cases.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Report, write_rows};
use crate::metrics::{METRICS, Metric, Surface, Surfaces, optional_number};
use crate::statistics::{self, RESAMPLES};

/// A metric over the cases, for a label or for all labels.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// The metric's name.
    pub metric: String,
    /// The label; `None` for all, where a case's score is its mean over labels, and the mean that of the labels' means.
    pub label: Option<i32>,
    /// The mean over the cases that have a score; infinite where one of them is.
    #[serde(with = "optional_number")]
    pub mean: Option<f64>,
    /// The lower end of the mean's 95 % interval ([`statistics::intervals`]); `None` for fewer than two cases.
    #[serde(with = "optional_number")]
    pub low: Option<f64>,
    /// The upper end.
    #[serde(with = "optional_number")]
    pub high: Option<f64>,
    /// The median over the cases that have a score.
    #[serde(with = "optional_number")]
    pub median: Option<f64>,
    /// Cases that have a score.
    pub cases: usize,
    /// Cases that have none: neither map has the label, or the metric is not defined.
    pub undefined: usize,
    /// Cases whose score is infinite: one of the maps lacks the label.
    pub infinite: usize,
}

impl Report {
    /// With what each metric comes to over the cases. Takes a while: intervals come from drawing the cases often.
    pub fn summarise(mut self) -> Report {
        let mut columns = Vec::new();
        let mut groups = Vec::new();
        let mut what = Vec::new();
        for metric in self.scored() {
            let first = columns.len();
            for (i, label) in self.labels.iter().enumerate() {
                groups.push(vec![columns.len()]);
                columns.push(self.cases.iter().map(|case| case.scores[metric][i]).collect());
                what.push((metric, Some((i, label.value))));
            }
            groups.push((first..columns.len()).collect());
            what.push((metric, None));
        }
        let intervals = statistics::intervals(&columns, &groups);
        let summary = what.iter().zip(&groups).zip(intervals);
        let summary = summary.map(|((&(metric, label), group), interval)| {
            let of_case = |case: &super::CaseScore| case.means[metric];
            let (scores, mean): (Vec<Option<f64>>, _) = match label {
                Some((i, _)) => (columns[group[0]].clone(), self.label_means[metric][i]),
                None => (self.cases.iter().map(of_case).collect(), self.means[metric]),
            };
            let cases = scores.iter().flatten().count();
            // one case says nothing of others
            let interval = interval.filter(|_| cases > 1);
            Summary {
                metric: METRICS[metric].name.into(),
                label: label.map(|(_, value)| value),
                mean,
                low: interval.map(|[low, _]| low),
                high: interval.map(|[_, high]| high),
                median: statistics::median(scores.iter().copied()),
                cases,
                undefined: scores.len() - cases,
                infinite: scores.iter().flatten().filter(|s| s.is_infinite()).count(),
            }
        });
        self.summary = summary.collect();
        self
    }

    /// A metric's summary of a label, or of all.
    pub(crate) fn summary_of(&self, metric: &Metric, label: Option<i32>) -> Option<&Summary> {
        self.summary
            .iter()
            .find(|s| s.metric == metric.name && s.label == label)
    }

    /// The labels, then `None` for all of them where they are several, with their headings.
    pub(crate) fn parts(&self) -> Vec<(Option<i32>, String)> {
        let labels = self.labels.iter();
        let mut parts: Vec<_> = labels
            .map(|label| (Some(label.value), Report::label_heading(label)))
            .collect();
        if parts.len() > 1 {
            parts.push((None, "all labels".into()));
        }
        parts
    }

    pub(crate) fn write_summary(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let header = [
            "label",
            "metric",
            "mean",
            "95 % interval",
            "median",
            "cases",
            "undefined",
            "infinite",
        ];
        let mut rows = vec![header.map(String::from).to_vec()];
        for (label, heading) in self.parts() {
            for metric in self.scored().map(|i| &METRICS[i]) {
                let Some(summary) = self.summary_of(metric, label) else {
                    continue;
                };
                let counts = [summary.cases, summary.undefined, summary.infinite];
                let mut row = vec![heading.clone(), metric.heading()];
                row.extend([
                    shown(metric, summary.mean),
                    interval(metric, summary),
                    shown(metric, summary.median),
                ]);
                row.extend(counts.map(|count| count.to_string()));
                rows.push(row);
            }
        }
        write_rows(&rows, 2, f)
    }
}

/// What stands above a summary.
pub(crate) fn heading(surfaces: Option<Surfaces>, cases: usize) -> String {
    let of_surfaces = surfaces.map_or(String::new(), |surfaces| {
        let kind = match surfaces.definition {
            Surface::Elements => "surface elements",
            Surface::Voxels => "edge voxels",
        };
        let missing = match surfaces.missing.is_finite() {
            true => format!(", {} mm where a map lacks the label", surfaces.missing),
            false => String::new(),
        };
        format!(
            ". Surfaces: {kind}, surface Dice within {} mm{missing}",
            surfaces.tolerance
        )
    });
    let plural = if cases == 1 { "" } else { "s" };
    format!("Over {cases} case{plural}; intervals of means by {RESAMPLES} bootstrap resamples{of_surfaces}.")
}

/// A score as its metric shows it, `-` for none.
pub(crate) fn shown(metric: &Metric, score: Option<f64>) -> String {
    match score.map(|score| metric.shown(score)) {
        None => "-".into(),
        Some(score) => format!("{score:.*}", decimals(score)),
    }
}

/// Two decimals, or three of small numbers.
fn decimals(score: f64) -> usize {
    if score.abs() < 1.0 { 3 } else { 2 }
}

/// A summary's interval in brackets, `-` for none.
pub(crate) fn interval(metric: &Metric, summary: &Summary) -> String {
    match (summary.low, summary.high) {
        (Some(low), Some(high)) => format!("[{}, {}]", shown(metric, Some(low)), shown(metric, Some(high))),
        _ => "-".into(),
    }
}

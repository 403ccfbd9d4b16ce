//! The cases that are worth a look, and the pictures of them.

use std::collections::HashSet;

use super::ReportError;
use super::page::USUAL;
use crate::dataset::{Dataset, Label};
use crate::evaluate::{CaseScore, Report};
use crate::gpu::Device;
use crate::metrics::{Better, Comparison, LabelScores, METRICS, Scoring};
use crate::model;
use crate::picture::{Slices, slices};
use crate::predict::Predictor;
use crate::volume::Volume;
use crate::weights::Model;

/// Where a case stands among all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The nth worst, from 1.
    Worst(usize),
    /// The nth best, from 1.
    Best(usize),
}

/// A case to look at.
#[derive(Clone, Debug)]
pub struct View {
    /// The method whose labels they are.
    pub method: String,
    /// The case.
    pub case: String,
    /// Where it stands.
    pub place: Place,
    /// Its scores in words.
    pub scores: String,
    /// The labels that occur, by their place among all labels, for their colours.
    pub legend: Vec<(usize, String)>,
    /// Whether the reference is drawn, too.
    pub has_reference: bool,
    /// Its slices.
    pub planes: [Slices; 3],
}

/// The worst cases, worst first, and then the best, best first: so many of each, none twice. They are ordered by their mean over
/// labels of the first metric that says what is better; cases without a score are left out.
pub fn chosen(report: &Report, count: usize) -> Vec<(Place, &CaseScore)> {
    let Some(metric) = report.scored().find(|i| METRICS[*i].better != Better::Neither) else {
        return Vec::new();
    };
    let score = |case: &&CaseScore| case.means.get(metric).copied().flatten();
    let mut cases: Vec<&CaseScore> = report.cases.iter().filter(|case| score(case).is_some()).collect();
    cases.sort_by(|a, b| {
        let (a, b) = (score(a).unwrap_or_default(), score(b).unwrap_or_default());
        match METRICS[metric].better {
            Better::Lower => b.total_cmp(&a),
            _ => a.total_cmp(&b),
        }
    });
    let worst = count.min(cases.len().div_ceil(2));
    let best = count.min(cases.len() - worst);
    let first = cases[..worst].iter().enumerate();
    let last = cases.iter().rev().take(best).enumerate();
    first
        .map(|(i, case)| (Place::Worst(i + 1), *case))
        .chain(last.map(|(i, case)| (Place::Best(i + 1), *case)))
        .collect()
}

/// A view of a case: its scores by label, and its slices with about so many pixels in each plane.
///
/// # Errors
/// Labels that are not on the scan's grid, in words.
pub fn view(
    report: &Report,
    (method, place, case): (&str, Place, &CaseScore),
    scan: &Volume,
    labels: &[i32],
    reference: Option<&[i32]>,
    most: usize,
) -> Result<View, String> {
    let mut names = vec![Label {
        value: 0,
        name: "background".into(),
    }];
    names.extend(report.labels.iter().cloned());
    let occurring: HashSet<i32> = labels
        .iter()
        .chain(reference.unwrap_or_default())
        .copied()
        .collect();
    let legend = names.iter().enumerate().skip(1);
    Ok(View {
        method: method.into(),
        case: case.case.clone(),
        place,
        scores: in_words(report, case),
        legend: legend
            .filter(|(_, label)| occurring.contains(&label.value))
            .map(|(i, label)| (i, label.name.clone()))
            .collect(),
        has_reference: reference.is_some(),
        planes: slices(scan, labels, reference, &names, most)?,
    })
}

/// The case's mean by each metric that says what is better, and by the first of them each label's score.
fn in_words(report: &Report, case: &CaseScore) -> String {
    let judging = || report.scored().filter(|i| METRICS[*i].better != Better::Neither);
    let usual = judging().filter(|i| USUAL.contains(&METRICS[*i].name));
    let first = judging().take(1).filter(|i| !USUAL.contains(&METRICS[*i].name));
    let parts = first.chain(usual).enumerate().map(|(place, i)| {
        let shown = |score: Option<f64>| crate::evaluate::summary::shown(&METRICS[i], score);
        let mean = format!(
            "{} {}",
            METRICS[i].heading(),
            shown(case.means.get(i).copied().flatten())
        );
        let by_label = case.scores.get(i).map_or(&[][..], Vec::as_slice);
        if place > 0 || by_label.len() < 2 {
            return mean;
        }
        let labels = report.labels.iter().zip(by_label).take(8);
        let labels: Vec<String> = labels
            .map(|(label, score)| format!("{} {}", label.name, shown(*score)))
            .collect();
        format!("{mean} ({})", labels.join(", "))
    });
    parts.collect::<Vec<_>>().join(" · ")
}

/// Segments and scores cases of a dataset that a model has not seen. `progress` hears after each how many are done.
///
/// # Errors
/// A case that the dataset does not have, files that can't be read, a prediction that fails, no memory for surfaces.
pub async fn score_held_out(
    device: &Device,
    dataset: &Dataset,
    model: &Model,
    cases: &[String],
    scoring: &Scoring,
    mut progress: impl FnMut(usize),
) -> Result<Vec<(String, LabelScores)>, ReportError> {
    let preprocessing = &model.info.preprocessing;
    let network = &model::find(&model.info.arch)?;
    let mut predictor = Predictor::with_weights(device, network, preprocessing, &model.tensors).await?;
    let mut scores = Vec::new();
    for id in cases {
        let Some(case) = dataset.cases.iter().find(|case| case.id == *id) else {
            return Err(ReportError::NoCase {
                folder: dataset.folder.clone(),
                case: id.clone(),
            });
        };
        let scan = dataset.image(case)?;
        let expected = dataset.label(case, &scan.geometry)?.labels()?;
        let labels = predictor.labels(device, &scan).await?;
        let (shape, spacing) = (scan.geometry.shape, scan.geometry.spacing);
        let maps = Comparison::new(&labels, &expected, shape, spacing, preprocessing.ignore);
        let wanted = |label: i32| preprocessing.labels.iter().any(|known| known.value == label);
        let of_case = maps
            .scores(scoring, wanted)
            .map_err(|cause| ReportError::Memory {
                case: id.clone(),
                cause,
            })?;
        scores.push((id.clone(), of_case));
        progress(scores.len());
    }
    Ok(scores)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_and_the_best_are_chosen_once_each() {
        let case = |(name, dice): (&str, Option<f64>)| {
            let mut scores = vec![Vec::new(); METRICS.len()];
            scores[0] = vec![dice];
            CaseScore {
                case: name.into(),
                means: scores
                    .iter()
                    .map(|s| crate::metrics::mean(s.iter().copied()))
                    .collect(),
                scores,
            }
        };
        let cases = [
            ("a", Some(0.5)),
            ("b", None),
            ("c", Some(0.9)),
            ("d", Some(0.1)),
            ("e", Some(0.7)),
        ];
        let label = Label {
            value: 1,
            name: "one".into(),
        };
        let report = Report::of_cases(vec![label], cases.map(case).to_vec(), None);
        let names = |count: usize| {
            let found = chosen(&report, count);
            found
                .iter()
                .map(|(place, case)| (*place, case.case.as_str()))
                .collect::<Vec<_>>()
        };
        assert_eq!(names(1), [(Place::Worst(1), "d"), (Place::Best(1), "c")]);
        let all = [
            (Place::Worst(1), "d"),
            (Place::Worst(2), "a"),
            (Place::Best(1), "c"),
            (Place::Best(2), "e"),
        ];
        assert_eq!(names(2), all);
        assert_eq!(names(9), all);
        assert!(names(0).is_empty());
        assert_eq!(in_words(&report, &report.cases[0]), "Dice % 50.00");
    }
}

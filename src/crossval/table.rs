//! The table that compares the networks, as Markdown, CSV and JSON, with the scores of every case.

mod csv;
mod markdown;

use std::path::Path;

use serde::{Deserialize, Serialize};

use serde::Serializer;
use serde_json::Value;

use super::{CrossvalError, Epoch, FoldResult, HeldOut, finished, write};
use crate::dataset::Label;
use crate::evaluate::{CaseScore, Method, Methods, Report};
use crate::metrics::{self, METRICS, Stored, Surfaces};

/// Mean and standard deviation over cases.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// Mean; of the labels' means where it is that of several labels. Infinite where a score is.
    #[serde(with = "metrics::number")]
    pub mean: f64,
    /// Standard deviation over cases (n − 1); `None` for a single one, and where a score is infinite.
    pub deviation: Option<f64>,
}

impl Stored for Option<Score> {
    fn is_absent(&self) -> bool {
        self.is_none()
    }

    fn write<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        self.serialize(to)
    }

    fn read(value: Value) -> Result<Self, serde_json::Error> {
        serde_json::from_value(value)
    }
}

/// A network's row.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TableRow {
    /// Its folder's name.
    pub name: String,
    /// What the table calls it.
    pub method: String,
    /// The network.
    pub arch: String,
    /// Trained numbers of the network.
    pub parameters: usize,
    /// The finished folds, from 0.
    pub folds: Vec<usize>,
    /// Number of held-out cases that are scored.
    pub cases: usize,
    /// By metric: the score over labels and cases.
    #[serde(flatten, with = "metrics::by_name")]
    pub scores: Vec<Option<Score>>,
    /// By metric, then by label of the table: the score over cases.
    #[serde(flatten, with = "metrics::label_by_name")]
    pub label_scores: Vec<Vec<Option<Score>>>,
    /// Planned device memory of a training step in bytes.
    pub training_bytes: u64,
    /// Planned device memory of the inference in bytes.
    pub inference_bytes: u64,
    /// The most device memory that a training held in bytes, its validation included.
    pub training_peak: u64,
    /// The most device memory that a prediction held in bytes.
    pub inference_peak: u64,
    /// Seconds of a fold's training steps, mean over folds.
    pub training_seconds: f64,
    /// Seconds from scan to labels, mean over cases.
    pub prediction_seconds: f64,
    /// Which weights segmented the cases.
    pub weights: Epoch,
    /// Passes over the training cases.
    pub epochs: usize,
    /// The adapters that the folds ran on.
    pub adapters: Vec<String>,
}

/// The comparison of several networks; `table.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Table {
    /// Name of the dataset's folder.
    pub dataset: String,
    /// Number of folds.
    pub folds: usize,
    /// Whether every row covers every fold.
    pub complete: bool,
    /// The labels that are scored.
    pub labels: Vec<Label>,
    /// How surfaces were measured, where they were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub surfaces: Option<Surfaces>,
    /// A row a network.
    pub rows: Vec<TableRow>,
    /// The scores of every case, by row.
    #[serde(skip)]
    results: Vec<Vec<FoldResult>>,
}

impl Table {
    /// The table of results: a list of finished folds for each row, none empty.
    ///
    /// # Errors
    /// No result, results that are not of one dataset, its labels and folds, or a case that two folds of a row hold out.
    pub fn new(results: Vec<Vec<FoldResult>>) -> Result<Table, CrossvalError> {
        let Some(first) = results.iter().flatten().next() else {
            return Err(CrossvalError::Recipe("no fold is finished yet".into()));
        };
        let (dataset, folds, labels) = (first.dataset.clone(), first.folds, first.labels.clone());
        for other in results.iter().flatten() {
            if (&other.dataset, other.folds, &other.labels) != (&dataset, folds, &labels) {
                return Err(CrossvalError::Recipe(format!(
                    "{} and {} can't stand in one table: the first is of {dataset} in {folds} folds, the second of {} \
                     in {}; give them folders of their own",
                    first.name, other.name, other.dataset, other.folds
                )));
            }
        }
        let surfaces = results.iter().flatten().find_map(|fold| fold.surfaces);
        let measured = |fold: &&FoldResult| fold.surfaces.is_some() && fold.surfaces != surfaces;
        if let Some(other) = results.iter().flatten().find(measured) {
            return Err(CrossvalError::Recipe(format!(
                "{} and {} can't stand in one table: their surfaces were measured in different ways",
                first.name, other.name
            )));
        }
        let rows = results
            .iter()
            .map(|folds| row(folds, &labels))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Table {
            complete: rows.iter().all(|r| r.folds.len() == folds),
            dataset,
            folds,
            labels,
            surfaces,
            rows,
            results,
        })
    }

    /// The table of every finished fold in a folder: first the rows of these names, in their order, then the others that
    /// are of the same dataset and folds.
    ///
    /// # Errors
    /// Those of [`finished`] and [`Table::new`].
    pub fn of_folder(out: &Path, names: &[&str]) -> Result<Table, CrossvalError> {
        let mut results = finished(out)?;
        let place = |row: &[FoldResult]| {
            names
                .iter()
                .position(|n| *n == row[0].name)
                .unwrap_or(names.len())
        };
        results.sort_by_key(|row| place(row));
        let like = results
            .first()
            .map(|row| (row[0].dataset.clone(), row[0].folds, row[0].labels.clone()));
        results.retain(|row| {
            let same = row
                .iter()
                .all(|f| Some((f.dataset.clone(), f.folds, f.labels.clone())) == like);
            let keep = same || place(row) < names.len();
            if !keep {
                tracing::warn!(
                    "{} in {} is of another dataset or other folds: left out",
                    row[0].name,
                    out.display()
                );
            }
            keep
        });
        Table::new(results)
    }

    /// What the table does not cover, `None` where it covers every fold.
    pub fn partial(&self) -> Option<String> {
        if self.complete {
            return None;
        }
        let rows: Vec<String> = self
            .rows
            .iter()
            .filter(|r| r.folds.len() < self.folds)
            .map(|r| {
                let done: Vec<String> = r.folds.iter().map(usize::to_string).collect();
                let fold = if done.len() == 1 { "fold" } else { "folds" };
                let count = done.len();
                format!(
                    "{} has {count} of {} ({fold} {})",
                    r.method,
                    self.folds,
                    done.join(", ")
                )
            })
            .collect();
        let cases = match self.rows.iter().all(|r| r.folds == self.rows[0].folds) {
            true => "All rows are over the same cases.",
            false => "The rows are over different cases.",
        };
        Some(format!(
            "Only part of the folds is finished: {}. {cases}",
            rows.join("; ")
        ))
    }

    /// The scores of every case by a metric, by row, then by label.
    pub fn scores(&self, metric: usize) -> Vec<Vec<Vec<f64>>> {
        let of_label = |folds: &[FoldResult], label: usize| -> Vec<f64> {
            cases(folds).filter_map(|c| c.score(metric, label)).collect()
        };
        self.results
            .iter()
            .map(|folds| {
                (0..self.labels.len())
                    .map(|label| of_label(folds, label))
                    .collect()
            })
            .collect()
    }

    /// The metrics that the table shows, by their place in [`METRICS`]: the first, and those that a fold was scored by.
    pub fn metrics(&self) -> Vec<usize> {
        let scored = |i: &usize| {
            let by_it = |case: &HeldOut| case.scores.get(*i).is_some_and(|s| !s.is_empty());
            *i == 0 || self.results.iter().any(|folds| cases(folds).any(by_it))
        };
        (0..METRICS.len()).filter(scored).collect()
    }

    /// The networks as methods with their reports, and tests of every pair.
    pub fn methods(&self) -> Methods {
        let methods = self.rows.iter().zip(&self.results).map(|(row, folds)| {
            let case = |case: &HeldOut| CaseScore {
                case: case.case.clone(),
                scores: case.scores.clone(),
                means: case.means.clone(),
            };
            let mut cases: Vec<CaseScore> = cases(folds).map(case).collect();
            cases.sort_by(|a, b| a.case.cmp(&b.case));
            let again = self.rows.iter().filter(|r| r.method == row.method).count() > 1;
            Method {
                name: match again {
                    true => format!("{} ({})", row.method, row.name),
                    false => row.method.clone(),
                },
                report: Report::of_cases(self.labels.clone(), cases, self.surfaces).summarise(),
            }
        });
        let count = self.rows.len();
        let pairs: Vec<(usize, usize)> = (0..count)
            .flat_map(|first| (first + 1..count).map(move |second| (first, second)))
            .collect();
        Methods::new(methods.collect(), &pairs)
    }

    /// What [`Table::save`] writes.
    pub const FILES: [&'static str; 6] = [
        "table.md",
        "table.csv",
        "table.json",
        "cases.csv",
        "table.tex",
        "scores.json",
    ];

    /// Writes [`Table::FILES`] into `out`, over those of an earlier call.
    ///
    /// # Errors
    /// The operating system's refusal.
    pub fn save(&self, out: &Path) -> Result<(), CrossvalError> {
        let json = serde_json::to_string_pretty(self).map_err(|e| CrossvalError::Recipe(e.to_string()))?;
        let methods = self.methods();
        let scores =
            serde_json::to_string_pretty(&methods).map_err(|e| CrossvalError::Recipe(e.to_string()))?;
        let texts = [
            self.markdown(),
            self.csv(),
            json,
            self.cases_csv(),
            methods.latex(),
            scores,
        ];
        (Table::FILES.iter().zip(texts)).try_for_each(|(name, text)| write(&out.join(name), text.as_bytes()))
    }
}

fn cases(folds: &[FoldResult]) -> impl Iterator<Item = &HeldOut> {
    folds.iter().flat_map(|f| &f.cases)
}

fn row(folds: &[FoldResult], labels: &[Label]) -> Result<TableRow, CrossvalError> {
    let first = &folds[0];
    let mut ids: Vec<&str> = cases(folds).map(|c| c.case.as_str()).collect();
    ids.sort_unstable();
    if let Some(twice) = ids.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(CrossvalError::Recipe(format!(
            "{}: two folds hold out the case {}; a cross-validation's table counts each case once",
            first.name, twice[0]
        )));
    }
    let (scores, label_scores) = (0..METRICS.len())
        .map(|metric| metric_scores(folds, metric, labels.len()))
        .unzip();
    let mut adapters: Vec<String> = folds.iter().map(|f| f.adapter.clone()).collect();
    adapters.sort();
    adapters.dedup();
    let mean = |values: &mut dyn Iterator<Item = f64>| {
        let (sum, count) = values.fold((0.0, 0), |(sum, count), v| (sum + v, count + 1));
        sum / f64::from(count)
    };
    let largest = |bytes: fn(&FoldResult) -> u64| folds.iter().map(bytes).max().unwrap_or(0);
    Ok(TableRow {
        name: first.name.clone(),
        method: first.title.clone(),
        arch: first.settings.arch.clone(),
        parameters: first.parameters,
        folds: folds.iter().filter_map(|f| f.settings.fold).collect(),
        cases: ids.len(),
        scores,
        label_scores,
        training_bytes: largest(|f| f.training_bytes),
        inference_bytes: largest(|f| f.inference_bytes),
        training_peak: largest(|f| f.training_peak),
        inference_peak: largest(|f| f.inference_peak),
        training_seconds: mean(&mut folds.iter().map(|f| f.training_seconds)),
        prediction_seconds: mean(&mut cases(folds).map(|c| c.seconds)),
        weights: first.weights,
        epochs: first.settings.epochs,
        adapters,
    })
}

/// A metric's score over labels and cases, and over the cases of each label. None where a fold was scored by a version
/// of the program that did not have the metric: a mean over part of the cases would stand beside those over all.
fn metric_scores(folds: &[FoldResult], metric: usize, labels: usize) -> (Option<Score>, Vec<Option<Score>>) {
    if cases(folds).any(|case| case.scores[metric].is_empty()) {
        return (None, vec![None; labels]);
    }
    let by_label: Vec<Option<Score>> = (0..labels)
        .map(|label| score(cases(folds).map(|c| c.score(metric, label))))
        .collect();
    let means: Vec<f64> = by_label.iter().flatten().map(|s| s.mean).collect();
    let over_cases = score(cases(folds).map(|c| c.means[metric]));
    let over_labels = over_cases.map(|over_cases| Score {
        mean: means.iter().sum::<f64>() / means.len() as f64,
        ..over_cases
    });
    (over_labels, by_label)
}

/// Mean and deviation of the values there are.
fn score(values: impl Iterator<Item = Option<f64>>) -> Option<Score> {
    let values: Vec<f64> = values.flatten().collect();
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
    (!values.is_empty()).then_some(Score {
        mean,
        deviation: (values.len() > 1 && mean.is_finite()).then(|| (squares / (count - 1.0)).sqrt()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::Settings;

    /// For Dice and HD.
    fn by_metric<T: Default + Clone>(dice: T, hd: T) -> Vec<T> {
        let mut values = vec![T::default(); METRICS.len()];
        (values[0], values[HD]) = (dice, hd);
        values
    }

    const HD: usize = 5;

    fn fold(name: &str, fold: usize, cases: &[(&str, [Option<f64>; 2])]) -> FoldResult {
        let mut settings = Settings::new("data".into(), "unet");
        settings.fold = Some(fold);
        let label = |value, name: &str| Label {
            value,
            name: name.into(),
        };
        FoldResult {
            name: name.into(),
            title: format!("{name}, all"),
            settings,
            dataset: "data".into(),
            folds: 2,
            weights: Epoch::Last,
            epoch: 44,
            adapter: "a".into(),
            labels: vec![label(1, "left|right"), label(2, "b")],
            cases: cases
                .iter()
                .map(|(case, dice)| HeldOut {
                    case: (*case).into(),
                    scores: by_metric(dice.to_vec(), vec![Some(1.5), None]),
                    means: by_metric(metrics::mean(*dice), Some(1.5)),
                    seconds: 0.5,
                })
                .collect(),
            surfaces: None,
            parameters: 1234567,
            training_bytes: 3 << 20,
            inference_bytes: 1 << 20,
            training_peak: 4 << 20,
            inference_peak: 2 << 20,
            training_seconds: 60.0 * (fold + 1) as f64,
        }
    }

    #[test]
    fn means_are_over_all_held_out_cases_and_deviations_too() {
        let a = fold(
            "net",
            0,
            &[("x", [Some(0.5), Some(1.0)]), ("y", [Some(0.7), None])],
        );
        let b = fold("net", 1, &[("z", [Some(0.9), Some(0.0)])]);
        let table = Table::new(vec![vec![a, b]]).unwrap();
        let row = &table.rows[0];
        let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-12, "{a} against {b}");
        near(row.label_scores[0][0].unwrap().mean, 0.7);
        near(row.label_scores[0][0].unwrap().deviation.unwrap(), 0.2);
        near(row.label_scores[0][1].unwrap().mean, 0.5);
        near(row.label_scores[0][1].unwrap().deviation.unwrap(), 0.5f64.sqrt());
        near(row.scores[0].unwrap().mean, 0.6);
        // over the cases' means 0.75, 0.7 and 0.45
        near(row.scores[0].unwrap().deviation.unwrap(), 0.1607275126832159);
        near(row.training_seconds, 90.0);
        assert_eq!((row.cases, table.complete, table.partial()), (3, true, None));
        let markdown = table.markdown();
        assert!(
            markdown.contains("| net, all | 1,234,567 | 60.00 ± 16.07 | 70.00 ± 20.00 | 50.00 ± 70.71 |"),
            "{markdown}"
        );
        assert!(
            markdown.contains("left\\|right") && markdown.contains("90.0 s"),
            "{markdown}"
        );
        assert!(!markdown.contains("Only part"), "{markdown}");
        assert!(
            table
                .csv()
                .contains("net,\"net, all\",unet,1234567,2,2,3,0.600000,0.160728,0.700000"),
            "{}",
            table.csv()
        );
        assert!(
            table
                .cases_csv()
                .contains("net,0,y,0.700000,0.700000,,1.500000,1.500000,,0.5000"),
            "{}",
            table.cases_csv()
        );
        assert!(
            table.csv().contains("dice_b,dice_b_sd,hd_mean,hd_mean_sd"),
            "{}",
            table.csv()
        );
        assert_eq!(table.scores(0), [[vec![0.5, 0.7, 0.9], vec![1.0, 0.0]]]);
        let json = serde_json::to_string(&table).unwrap();
        assert_eq!(serde_json::from_str::<Table>(&json).unwrap().rows, table.rows);
    }

    #[test]
    fn a_metric_that_a_fold_was_not_scored_by_stays_empty() {
        let a = fold("net", 0, &[("x", [Some(0.5), Some(1.0)])]);
        let mut b = fold("net", 1, &[("y", [Some(0.7), None])]);
        let error = |folds: &[FoldResult]| {
            let row = row(folds, &folds[0].labels).unwrap();
            (row.scores[HD], row.label_scores[HD].clone())
        };
        assert!(error(&[a.clone(), b.clone()]).0.is_some());
        // as a version of the program left it that did not have the second metric
        b.cases[0].scores[HD].clear();
        b.cases[0].means[HD] = None;
        assert_eq!(error(&[a.clone(), b.clone()]), (None, vec![None; 2]));
        let markdown = Table::new(vec![vec![a, b]]).unwrap().markdown();
        let line = "| net, all | 1,234,567 | 80.00 ± 3.54 | 60.00 ± 14.14 | 100.00 | – | – | – |";
        assert!(markdown.contains(line), "{markdown}");
        let heading = "| Dice % | left\\|right | b | HD mm | HD left\\|right | HD b |";
        assert!(markdown.contains(heading), "{markdown}");
    }

    #[test]
    fn a_table_of_part_of_the_folds_says_so() {
        let (a, b) = (
            fold("net", 0, &[("x", [Some(0.5); 2])]),
            fold("net", 1, &[("y", [Some(0.5); 2])]),
        );
        let other = fold("other", 1, &[("y", [Some(0.5); 2])]);
        let different = Table::new(vec![vec![a, b.clone()], vec![other.clone()]]).unwrap();
        let note = different.partial().unwrap();
        assert!(
            note.contains("other, all has 1 of 2 (fold 1)") && note.contains("different cases"),
            "{note}"
        );
        assert!(different.markdown().starts_with("**Only part of the folds"));
        let same = Table::new(vec![vec![b], vec![other]]).unwrap();
        assert!(same.partial().unwrap().contains("same cases"));
    }

    #[test]
    fn results_that_do_not_belong_together_are_refused() {
        let a = fold("net", 0, &[("x", [None; 2])]);
        let again = fold("net", 1, &[("x", [None; 2])]);
        let error = Table::new(vec![vec![a.clone(), again]]).unwrap_err().to_string();
        assert!(error.contains("two folds hold out the case x"), "{error}");
        let mut other = fold("other", 0, &[("x", [None; 2])]);
        other.folds = 5;
        assert!(
            Table::new(vec![vec![a.clone()], vec![other]])
                .unwrap_err()
                .to_string()
                .contains("one table")
        );
        assert!(
            Table::new(vec![])
                .unwrap_err()
                .to_string()
                .contains("no fold is finished")
        );
        // a case without any label counts as a case, and has no score
        let table = Table::new(vec![vec![a]]).unwrap();
        assert_eq!((table.rows[0].cases, table.rows[0].scores[0]), (1, None));
    }
}

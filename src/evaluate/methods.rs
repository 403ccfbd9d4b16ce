//! Several methods beside each other: their reports, and tests of whether they differ.

use std::collections::{BTreeSet, HashMap};
use std::fmt;

use serde::{Deserialize, Serialize};

use super::summary::{heading, interval, shown};
use super::{CaseScore, Report, write_rows};
use crate::metrics::{Better, METRICS, optional_number};
use crate::statistics;

/// A method and its scores.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Method {
    /// What tables call it.
    pub name: String,
    /// Its scores.
    #[serde(flatten)]
    pub report: Report,
}

/// Whether two methods differ in a metric, over the cases that both have a score of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Test {
    /// The metric's name.
    pub metric: String,
    /// The label; `None` for the cases' means over labels.
    pub label: Option<i32>,
    /// A method's name.
    pub first: String,
    /// The other's.
    pub second: String,
    /// Cases of which both have a score.
    pub cases: usize,
    /// The mean of the first's scores minus the second's; `None` where a score is infinite, or there is no case.
    #[serde(with = "optional_number")]
    pub difference: Option<f64>,
    /// The lower end of its 95 % interval ([`statistics::intervals`]).
    #[serde(with = "optional_number")]
    pub low: Option<f64>,
    /// The upper end.
    #[serde(with = "optional_number")]
    pub high: Option<f64>,
    /// Of Wilcoxon's signed-rank test ([`statistics::wilcoxon`]).
    pub statistic: f64,
    /// The test's p value, two-sided.
    pub p: f64,
    /// Corrected after Holm for all tests of the metric: of every label, and of every pair of methods.
    pub p_holm: f64,
    /// Whether the p value is exact.
    pub exact: bool,
}

/// Several methods.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Methods {
    /// The methods, in the order of tables.
    pub methods: Vec<Method>,
    /// The tests between them.
    pub tests: Vec<Test>,
}

impl Methods {
    /// Tests these pairs of methods, by their places. The methods have the same labels.
    pub fn new(methods: Vec<Method>, pairs: &[(usize, usize)]) -> Methods {
        let cases: BTreeSet<&str> = methods
            .iter()
            .flat_map(|method| method.report.cases.iter().map(|c| c.case.as_str()))
            .collect();
        let (mut tests, mut columns) = (Vec::new(), Vec::new());
        for metric in (0..METRICS.len()).filter(|i| METRICS[*i].better != Better::Neither) {
            let first = tests.len();
            for &(one, other) in pairs {
                for (test, column) in tests_of(&methods[one], &methods[other], metric, &cases) {
                    tests.push(test);
                    columns.push(column);
                }
            }
            let p: Vec<f64> = tests[first..].iter().map(|test| test.p).collect();
            for (test, p) in tests[first..].iter_mut().zip(statistics::holm(&p)) {
                test.p_holm = p;
            }
        }
        let groups: Vec<Vec<usize>> = (0..columns.len()).map(|column| vec![column]).collect();
        for (test, interval) in tests.iter_mut().zip(statistics::intervals(&columns, &groups)) {
            let interval = interval.filter(|_| test.difference.is_some() && test.cases > 1);
            (test.low, test.high) = (interval.map(|[low, _]| low), interval.map(|[_, high]| high));
        }
        Methods { methods, tests }
    }

    /// The metrics that every method was scored by, by their place in [`METRICS`].
    pub(crate) fn scored(&self) -> Vec<usize> {
        let all = |i: &usize| self.methods.iter().all(|m| m.report.scored().any(|j| j == *i));
        (0..METRICS.len()).filter(all).collect()
    }

    /// The test of two methods by their places.
    pub(super) fn test(&self, metric: usize, label: Option<i32>, pair: [usize; 2]) -> Option<&Test> {
        let [first, second] = pair.map(|i| &self.methods[i].name);
        self.tests.iter().find(|t| {
            (t.metric.as_str(), t.label) == (METRICS[metric].name, label)
                && (&t.first, &t.second) == (first, second)
        })
    }
}

/// The tests of two methods by label and for the mean over labels, without intervals and corrections, each with the
/// differences by case; none where one of the methods lacks the metric.
fn tests_of(
    one: &Method,
    other: &Method,
    metric: usize,
    cases: &BTreeSet<&str>,
) -> Vec<(Test, Vec<Option<f64>>)> {
    let has = |method: &Method| method.report.scored().any(|i| i == metric);
    if !has(one) || !has(other) {
        return Vec::new();
    }
    let by_case = |method: &Method| -> HashMap<String, CaseScore> {
        let cases = method.report.cases.iter();
        cases.map(|case| (case.case.clone(), case.clone())).collect()
    };
    let scores = [by_case(one), by_case(other)];
    let test = |label: Option<i32>| {
        let place = one.report.labels.iter().position(|l| Some(l.value) == label);
        let score = |case: &CaseScore| match place {
            Some(i) => case.scores[metric][i],
            None => case.means[metric],
        };
        let difference = |case: &&str| {
            let [one, other] = [&scores[0], &scores[1]].map(|of| of.get(*case).and_then(score));
            // of two infinite scores none is the better one
            let difference = one? - other?;
            Some(if difference.is_nan() { 0.0 } else { difference })
        };
        let column: Vec<Option<f64>> = cases.iter().map(difference).collect();
        let differences: Vec<f64> = column.iter().copied().flatten().collect();
        let wilcoxon = statistics::wilcoxon(&differences);
        let test = Test {
            metric: METRICS[metric].name.into(),
            label,
            first: one.name.clone(),
            second: other.name.clone(),
            cases: differences.len(),
            difference: statistics::mean(column.iter().copied()).filter(|mean| mean.is_finite()),
            low: None,
            high: None,
            statistic: wilcoxon.statistic,
            p: wilcoxon.p,
            p_holm: wilcoxon.p,
            exact: wilcoxon.exact,
        };
        (test, column)
    };
    let parts = one.report.parts().into_iter();
    parts.map(|(label, _)| test(label)).collect()
}

impl fmt::Display for Methods {
    /// The report of a single method, or what several come to beside each other.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [first, others @ ..] = self.methods.as_slice() else {
            return Ok(());
        };
        if others.is_empty() {
            return first.report.fmt(f);
        }
        let (report, metrics) = (&first.report, self.scored());
        writeln!(f, "{}", heading(report.surfaces, report.cases.len()))?;
        writeln!(
            f,
            "Means and intervals; p: Wilcoxon signed-rank against {}, two-sided, Holm's correction over labels and methods.\n",
            first.name
        )?;
        let mut header = vec!["label".to_owned(), "metric".into(), first.name.clone()];
        header.extend(others.iter().flat_map(|m| [m.name.clone(), "p".into()]));
        let mut rows = vec![header];
        for (label, name) in report.parts() {
            for &i in &metrics {
                let mut row = vec![name.clone(), METRICS[i].heading()];
                for (k, method) in self.methods.iter().enumerate() {
                    row.push(match method.report.summary_of(&METRICS[i], label) {
                        None => "-".into(),
                        Some(s) => {
                            let undefined = match s.infinite {
                                0 => String::new(),
                                n => format!(" ({n} infinite, median {})", shown(&METRICS[i], s.median)),
                            };
                            format!(
                                "{} {}{undefined}",
                                shown(&METRICS[i], s.mean),
                                interval(&METRICS[i], s)
                            )
                        }
                    });
                    if k > 0 {
                        let test = self.test(i, label, [0, k]);
                        row.push(test.map_or("-".into(), |test| chance(test.p_holm)));
                    }
                }
                rows.push(row);
            }
        }
        write_rows(&rows, 2, f)
    }
}

/// A p value in words.
fn chance(p: f64) -> String {
    match p < 1e-4 {
        true => "<0.0001".into(),
        false => format!("{p:.4}"),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::dataset::Label;
    use crate::metrics::Surfaces;

    /// Methods of two labels, whose Dice and HD by case are these.
    pub fn methods(names: &[&str], dice: &[&[f64]], hd: &[&[f64]]) -> Methods {
        let label = |value: i32, name: &str| Label {
            value,
            name: name.into(),
        };
        let at = METRICS.iter().position(|m| m.name == "hd").unwrap();
        let report = |method: usize| {
            let cases = dice[method].iter().zip(hd[method]).enumerate();
            let cases = cases.map(|(i, (dice, hd))| {
                let mut scores = vec![Vec::new(); METRICS.len()];
                scores[0] = vec![Some(*dice), (i > 0).then_some(0.5)];
                scores[at] = vec![Some(*hd), (i > 0).then_some(1.0)];
                CaseScore {
                    case: format!("case{i}"),
                    means: scores
                        .iter()
                        .map(|s| statistics::mean(s.iter().copied()))
                        .collect(),
                    scores,
                }
            });
            let labels = vec![label(1, "left_a & b"), label(2, "b")];
            Report::of_cases(labels, cases.collect(), Some(Surfaces::default())).summarise()
        };
        let methods = names.iter().enumerate().map(|(i, name)| Method {
            name: (*name).into(),
            report: report(i),
        });
        Methods::new(methods.collect(), &[(0, 1)])
    }

    #[test]
    fn methods_are_tested_case_by_case_and_infinite_scores_are_the_worst() {
        let first: Vec<f64> = (0..8).map(|i| 0.8 + 0.01 * f64::from(i)).collect();
        let second: Vec<f64> = first
            .iter()
            .enumerate()
            .map(|(i, d)| d - 0.01 * (i + 1) as f64)
            .collect();
        let near = [2.0, 3.0, f64::INFINITY, 1.0, 1.0, 1.0, 1.0, 1.0];
        let far = [f64::INFINITY, 3.5, f64::INFINITY, 1.25, 1.125, 1.0, 1.5, 1.75];
        let methods = methods(&["ours", "theirs"], &[&first, &second], &[&near, &far]);
        let test = |metric: &str, label| {
            let same = |t: &&Test| t.metric == metric && t.label == label;
            methods.tests.iter().find(same).unwrap()
        };
        let dice = test("dice", Some(1));
        assert_eq!((dice.cases, dice.exact, dice.statistic), (8, true, 0.0));
        assert_eq!(dice.p, 2.0 / 256.0);
        // three tests: of both labels, of which the second never differs, and of their means
        assert_eq!(dice.p_holm, 3.0 * dice.p);
        assert!((dice.difference.unwrap() - 0.045).abs() < 1e-12);
        assert!(dice.low.unwrap() > 0.0 && dice.high.unwrap() < 0.08);
        assert_eq!((test("dice", Some(2)).cases, test("dice", Some(2)).p), (7, 1.0));
        let hd = test("hd", Some(1));
        // two cases are equal, infinite in both or not; in six the second is farther, once infinitely
        assert_eq!((hd.cases, hd.difference, hd.statistic), (8, None, 0.0));
        assert_eq!(hd.p, 2.0 / 64.0);
        let text = methods.to_string();
        for part in [
            "label",
            "ours",
            "1 left_a & b  Dice %",
            "(2 infinite, median 1.62)",
            "0.0234",
            "all labels",
        ] {
            assert!(text.contains(part), "`{part}` is not in {text}");
        }
        let json = serde_json::to_string(&methods).unwrap();
        assert_eq!(serde_json::from_str::<Methods>(&json).unwrap(), methods);
    }
}

//! Scores that `evaluate` wrote, read.

use std::path::Path;

use super::{ReportError, invalid};
use crate::dataset::Label;
use crate::evaluate::{CaseScore, Method, Methods, Report};
use crate::metrics::{METRICS, mean};

/// Reads scores from what `evaluate` or a cross-validation wrote: JSON of one method or of several, or CSV. A single method
/// without a name has the file's.
///
/// # Errors
/// A file that can't be read, or has other contents.
pub fn read(path: &Path) -> Result<Methods, ReportError> {
    let text = std::fs::read_to_string(path).or_else(|e| invalid(path, format!("it can't be read: {e}")))?;
    let name = path.file_stem().unwrap_or_default().to_string_lossy();
    let scores = match text.trim_start().starts_with('{') {
        true => of_json(&text, &name),
        false => of_csv(&text),
    };
    scores.or_else(|problem| {
        invalid(
            path,
            format!("it holds no scores as `evaluate` writes them: {problem}"),
        )
    })
}

/// Nothing of the file but its scores is believed: means, intervals and tests follow from them.
fn of_json(text: &str, name: &str) -> Result<Methods, String> {
    let value: serde_json::Value = serde_json::from_str(text).map_err(|e| e.to_string())?;
    let several = value.get("methods").is_some();
    let (methods, pairs) = match several {
        true => {
            let found: Methods = serde_json::from_value(value).map_err(|e| e.to_string())?;
            let place = |name: &str| found.methods.iter().position(|m| m.name == name);
            let mut pairs: Vec<(usize, usize)> = found
                .tests
                .iter()
                .filter_map(|test| Some((place(&test.first)?, place(&test.second)?)))
                .collect();
            pairs.sort_unstable();
            pairs.dedup();
            (found.methods, pairs)
        }
        false => {
            let report: Report = serde_json::from_value(value).map_err(|e| e.to_string())?;
            let name = name.to_owned();
            (vec![Method { name, report }], Vec::new())
        }
    };
    let labels = methods.first().map(|m| m.report.labels.clone());
    if methods.iter().any(|m| Some(&m.report.labels) != labels.as_ref()) {
        return Err("its methods have different labels".into());
    }
    let again = methods.into_iter().map(|method| {
        let Report {
            labels,
            cases,
            surfaces,
            ..
        } = method.report;
        Method {
            name: method.name,
            report: report(labels, cases, surfaces),
        }
    });
    checked(Methods::new(again.collect(), &pairs))
}

fn report(labels: Vec<Label>, cases: Vec<CaseScore>, surfaces: Option<crate::metrics::Surfaces>) -> Report {
    let cases = cases.into_iter().map(|mut case| {
        case.scores.resize(METRICS.len(), Vec::new());
        case.means = case.scores.iter().map(|s| mean(s.iter().copied())).collect();
        case
    });
    Report::of_cases(labels, cases.collect(), surfaces).summarise()
}

fn checked(methods: Methods) -> Result<Methods, String> {
    let empty = |m: &Method| m.report.scored().next().is_none() || m.report.cases.is_empty();
    match methods.methods.iter().any(empty) || methods.methods.is_empty() {
        true => Err("there is no case with a score of each label".into()),
        false => Ok(methods),
    }
}

/// By case: each label's scores.
type Cases = Vec<(String, Vec<(i32, Vec<Option<f64>>)>)>;

fn of_csv(text: &str) -> Result<Methods, String> {
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    let header = reader.headers().map_err(|e| e.to_string())?.clone();
    let mut names = header.iter();
    for expected in ["method", "case", "label", "name"] {
        if names.next() != Some(expected) {
            return Err(format!("it has no column `{expected}` where one should be"));
        }
    }
    let metric = |name: &str| {
        let known = METRICS.iter().position(|m| m.name == name);
        known.ok_or_else(|| format!("there is no metric `{name}`"))
    };
    let metrics: Vec<usize> = names.map(metric).collect::<Result<_, String>>()?;
    let mut labels: Vec<Label> = Vec::new();
    // By method, then by case: each label's scores.
    let mut methods: Vec<(String, Cases)> = Vec::new();
    for (line, record) in reader.records().enumerate() {
        let record = record.map_err(|e| e.to_string())?;
        let at = |what: String| format!("line {}: {what}", line + 2);
        let value: i32 = (record[2].parse()).map_err(|_| at(format!("`{}` is no label", &record[2])))?;
        let label = Label {
            value,
            name: record[3].to_owned(),
        };
        match labels.iter().find(|known| known.value == value) {
            Some(known) if *known != label => {
                return Err(at(format!("{label} is {known} in another line")));
            }
            Some(_) => {}
            None => labels.push(label),
        }
        let scores = record.iter().skip(4).map(|cell| match cell {
            "" => Ok(None),
            cell => match cell.parse::<f64>() {
                Ok(number) if !number.is_nan() => Ok(Some(number)),
                _ => Err(at(format!("`{cell}` is no score"))),
            },
        });
        let scores = scores.collect::<Result<Vec<_>, _>>()?;
        let cases = place(&mut methods, &record[0]);
        let by_label = place(cases, &record[1]);
        if by_label.iter().any(|(other, _)| *other == value) {
            return Err(at(format!(
                "{} has the label {value} twice in {}",
                &record[1], &record[0]
            )));
        }
        by_label.push((value, scores));
    }
    labels.sort_by_key(|label| label.value);
    let methods = methods.into_iter().map(|(name, cases)| {
        let cases = cases.into_iter().map(|(case, by_label)| {
            let score = |column: usize, label: &Label| {
                let found = by_label.iter().find(|(value, _)| *value == label.value);
                found.and_then(|(_, scores)| scores[column])
            };
            let of_metric = |i: usize| match metrics.iter().position(|m| *m == i) {
                Some(column) => labels.iter().map(|label| score(column, label)).collect(),
                None => Vec::new(),
            };
            CaseScore {
                case,
                scores: (0..METRICS.len()).map(of_metric).collect(),
                means: Vec::new(),
            }
        });
        Method {
            report: report(labels.clone(), cases.collect(), None),
            name,
        }
    });
    let methods: Vec<Method> = methods.collect();
    let pairs: Vec<(usize, usize)> = (1..methods.len()).map(|other| (0, other)).collect();
    checked(Methods::new(methods, &pairs))
}

/// What a list has for a name, added where it is new.
fn place<'a, T: Default>(list: &'a mut Vec<(String, T)>, name: &str) -> &'a mut T {
    let found = match list.iter().rposition(|(known, _)| known == name) {
        Some(found) => found,
        None => {
            list.push((name.to_owned(), T::default()));
            list.len() - 1
        }
    };
    &mut list[found].1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn methods() -> Methods {
        let labels = vec![
            Label {
                value: 1,
                name: "left".into(),
            },
            Label {
                value: 3,
                name: "a, \"b\"".into(),
            },
        ];
        let method = |name: &str, add: f64| {
            let case = |(i, case): (usize, &str)| {
                let mut scores = vec![Vec::new(); METRICS.len()];
                scores[0] = vec![Some(0.5 + add + 0.125 * i as f64), None];
                scores[5] = vec![Some(f64::INFINITY), Some(2.5)];
                CaseScore {
                    case: case.into(),
                    means: Vec::new(),
                    scores,
                }
            };
            let cases = ["x", "y", "z"].iter().copied().enumerate().map(case).collect();
            Method {
                name: name.into(),
                report: report(labels.clone(), cases, None),
            }
        };
        Methods::new(vec![method("ours", 0.0), method("theirs", 0.0625)], &[(0, 1)])
    }

    #[test]
    fn what_evaluate_writes_comes_back() {
        let written = methods();
        let json = serde_json::to_string(&written).unwrap();
        assert_eq!(of_json(&json, "file").unwrap(), written);
        assert_eq!(of_csv(&written.csv()).unwrap(), written);
        let one = &written.methods[1];
        let json = serde_json::to_string_pretty(&one.report).unwrap();
        let read = of_json(&json, "file").unwrap();
        assert_eq!(
            (&read.methods[0].report, read.methods[0].name.as_str()),
            (&one.report, "file")
        );
        assert_eq!(written.tests.len(), 6);
    }

    #[test]
    fn files_that_hold_something_else_are_refused_in_words() {
        let good = methods();
        let line = good.csv().lines().nth(1).unwrap().to_owned();
        let csv = |rest: &str| format!("method,case,label,name,dice,hd\n{rest}\n");
        for (text, part) in [
            (String::new(), "`method`"),
            ("a,b\n".into(), "`method`"),
            (
                "method,case,label,name,beauty\nm,c,1,l,0.5\n".into(),
                "no metric `beauty`",
            ),
            (csv("m,c,one,l,0.5,1"), "line 2: `one` is no label"),
            (csv("m,c,1,l,NaN,1"), "line 2: `NaN`"),
            (csv(&format!("{line}\n{line}")), "line 3"),
            (csv("m,c,1,l,0.5,1\nm,d,1,k,0.5,1"), "line 3: 1 k is 1 l"),
            ("method,case,label,name,dice\n".into(), "no case"),
        ] {
            let error = of_csv(&text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
        let whole = serde_json::to_value(&good).unwrap();
        for (at, value) in [
            ("/methods", serde_json::json!([])),
            ("/methods/0/cases", serde_json::json!([])),
            ("/methods/0/labels", serde_json::json!([])),
            ("/methods/0/cases/1/dice", serde_json::json!([0.5])),
            ("/methods/1/cases/0/case", serde_json::json!(1)),
        ] {
            let mut changed = whole.clone();
            *changed.pointer_mut(at).unwrap() = value;
            // A metric that not every case has does not count; the other one stays.
            match of_json(&changed.to_string(), "file") {
                Ok(read) => assert!(
                    at.ends_with("dice") && read.methods[0].report.scored().eq([5]),
                    "{at}"
                ),
                Err(error) => assert!(!error.is_empty()),
            }
        }
        for text in ["{", "{}", "{\"methods\": 1}"] {
            assert!(of_json(text, "file").is_err(), "{text}");
        }
    }
}

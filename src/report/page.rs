//! A report as HTML: one file, with nothing from a network, and nothing of the input that is not escaped.

use std::fmt::Write;

use data_encoding::BASE64;

use super::chart::{BoxChart, Line, LineChart, Values};
use super::{Attachment, Document, Hashes, Log, Place, Run, View, of_list};
use crate::crossval::TableRow;
use crate::dataset::Label;
use crate::evaluate::summary::{heading, interval, shown};
use crate::evaluate::{Method, Methods, Report};
use crate::metrics::{Better, METRICS, Metric, Unit};
use crate::picture::{Slices, label_colour};
use crate::statistics::mean;

/// Keeps a browser from asking any network for anything, whatever a name in the data may hold.
const POLICY: &str =
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'";

/// The metrics that are told in few words, where there are some of them.
pub(super) const USUAL: [&str; 4] = ["dice", "nsd", "hd95", "assd"];

/// The cases of a table that stand there open.
const FEW_CASES: usize = 12;

/// Text between tags and in attributes with double quotes.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            '\'' => escaped += "&#39;",
            c => escaped.push(c),
        }
    }
    escaped
}

pub(super) fn html(document: &Document) -> String {
    let title = escape(&document.title);
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta http-equiv=\"Content-Security-Policy\" \
         content=\"{POLICY}\">\n<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{title}</title>\n<style>\n{}</style>\n</head>\n<body>\n<header>\n<h1>{title}</h1>\n",
        include_str!("style.css")
    );
    page += &list(&document.facts);
    for note in &document.notes {
        let _ = writeln!(page, "<p class=\"note\">{}</p>", escape(note));
    }
    if let Some(scores) = &document.scores {
        page += &tiles(scores);
    }
    let sections: Vec<(&str, &str, String)> = [
        ("curves", "Training", curves(&document.runs)),
        (
            "scores",
            "Scores",
            document.scores.as_ref().map_or(String::new(), tables),
        ),
        (
            "boxes",
            "Distribution over cases",
            document.scores.as_ref().map_or(String::new(), boxes),
        ),
        ("cases", "Worst and best cases", views(&document.views)),
        (
            "all",
            "All cases",
            document.scores.as_ref().map_or(String::new(), all_cases),
        ),
        ("costs", "Memory and time", costs(&document.costs)),
        ("repeat", "To repeat it", repeat(document)),
        ("origin", "Versions and hashes", origin(document)),
    ]
    .into_iter()
    .filter(|(_, _, text)| !text.is_empty())
    .collect();
    page += "<nav>";
    for (id, title, _) in &sections {
        let _ = write!(page, "<a href=\"#{id}\">{title}</a>");
    }
    page += "</nav>\n</header>\n";
    for (id, title, text) in &sections {
        let _ = writeln!(page, "<section id=\"{id}\">\n<h2>{title}</h2>\n{text}</section>");
    }
    let _ = write!(
        page,
        "<script>\n{}</script>\n</body>\n</html>\n",
        include_str!("script.js")
    );
    page
}

fn list(facts: &[(String, String)]) -> String {
    if facts.is_empty() {
        return String::new();
    }
    let fact =
        |(name, value): &(String, String)| format!("<dt>{}</dt><dd>{}</dd>", escape(name), escape(value));
    let facts: Vec<String> = facts.iter().map(fact).collect();
    format!("<dl>{}</dl>\n", facts.join("\n"))
}

/// The metrics that say what is better, of those that all methods have.
fn judging(scores: &Methods) -> impl Iterator<Item = usize> {
    scores
        .scored()
        .into_iter()
        .filter(|i| METRICS[*i].better != Better::Neither)
}

/// The first metrics of each method over all labels.
fn tiles(scores: &Methods) -> String {
    let several = scores.methods.len() > 1;
    let metrics: Vec<usize> = judging(scores)
        .filter(|i| USUAL.contains(&METRICS[*i].name))
        .take(if several { 1 } else { 4 })
        .collect();
    let metrics = match metrics.is_empty() {
        true => judging(scores).take(1).collect(),
        false => metrics,
    };
    let mut text = String::new();
    for method in &scores.methods {
        for metric in metrics.iter().map(|i| &METRICS[*i]) {
            let all = (method.report.labels.len() == 1).then(|| method.report.labels[0].value);
            let Some(summary) = method.report.summary_of(metric, all) else {
                continue;
            };
            let what = if summary.infinite > 0 { "median" } else { "mean" };
            let of = match several {
                true => format!("{}: {what} {}", method.name, metric.heading()),
                false => format!("{what} {}", metric.heading()),
            };
            let (value, below) = match (summary.infinite, summary.low) {
                (0, Some(_)) => (summary.mean, format!("95 % {}", interval(metric, summary))),
                (0, None) => (summary.mean, String::new()),
                (count, _) => (
                    summary.median,
                    format!("mean infinite: {count} of {} cases", summary.cases),
                ),
            };
            let _ = writeln!(
                text,
                "<div class=\"tile\"><b>{}</b><span>{}</span><span>{below}</span></div>",
                shown(metric, value),
                escape(&of)
            );
        }
    }
    format!("<div class=\"tiles\">\n{text}</div>\n")
}

/// The runs of each method, in their order.
fn by_method(runs: &[Run]) -> Vec<(&str, Vec<&Run>)> {
    let mut methods: Vec<(&str, Vec<&Run>)> = Vec::new();
    for run in runs {
        match methods.iter_mut().find(|(method, _)| *method == run.method) {
            Some((_, of_method)) => of_method.push(run),
            None => methods.push((&run.method, vec![run])),
        }
    }
    methods
}

fn curves(runs: &[Run]) -> String {
    let methods = by_method(runs);
    let mut text = String::new();
    for (method, runs) in &methods {
        let figures = curves_of(runs);
        if figures.is_empty() {
            let _ = writeln!(
                text,
                "<p class=\"quiet\">{}: no epoch is finished yet.</p>",
                escape(method)
            );
            continue;
        }
        if methods.len() > 1 {
            let _ = writeln!(text, "<h3>{}</h3>", escape(method));
        }
        let _ = writeln!(text, "<div class=\"charts\">\n{figures}</div>");
    }
    text
}

/// The charts of the runs of a method.
fn curves_of(runs: &[&Run]) -> String {
    let mut figures = String::new();
    let mut add = |title: String, end: Option<f64>, lines: Vec<Line>| {
        figures += &LineChart { title, end, lines }.figure();
    };
    let column = |name: &'static str| move |log: &Log| -> Vec<Option<f64>> { log.column(name).to_vec() };
    add("Training loss".into(), None, by_run(runs, 1.0, column("loss")));
    let mut rates = by_run(runs, 1.0, column("learning_rate"));
    // The folds' rates are those of one schedule.
    if rates[..runs.len()]
        .iter()
        .all(|line| line.points == rates[0].points)
    {
        rates.truncate(1);
        (rates[0].name, rates[0].faint) = ("learning rate".into(), false);
    }
    add("Learning rate".into(), None, rates);
    let first = runs.iter().map(|run| run.log.validations()).max_by_key(Vec::len);
    for validation in first.unwrap_or_default() {
        let metric = &METRICS[validation.metric];
        let (scale, end) = match metric.unit {
            Unit::Fraction => (100.0, Some(100.0)),
            Unit::Ratio => (100.0, None),
            Unit::Symbol(_) => (1.0, None),
        };
        let of = |log: &Log, label: Option<&str>| -> Vec<Option<f64>> {
            let found = log
                .validations()
                .into_iter()
                .find(|v| v.metric == validation.metric);
            let Some(found) = found else { return Vec::new() };
            match label {
                None => found.mean.to_vec(),
                Some(label) => {
                    let labels = found.labels.into_iter();
                    labels
                        .filter(|(name, _)| *name == label)
                        .map(|(_, values)| values.to_vec())
                        .next()
                        .unwrap_or_default()
                }
            }
        };
        let labels = validation.labels.iter().map(|(label, _)| *label);
        let mut lines: Vec<Line> = labels
            .enumerate()
            .map(|(i, label)| over_runs(runs, label, Some(i), scale, |log| of(log, Some(label))))
            .collect();
        lines.push(over_runs(runs, "mean", None, scale, |log| of(log, None)));
        let over = if runs.len() > 1 { ", mean over folds" } else { "" };
        add(format!("Validation {}{over}", metric.heading()), end, lines);
        if runs.len() > 1 {
            let title = format!("Validation {}, mean over labels", metric.heading());
            add(title, end, by_run(runs, scale, |log| of(log, None)));
        }
    }
    let names: Vec<&str> = runs[0].log.sigmas().map(|(name, _)| name).collect();
    let sigma = |log: &Log, name: &str| -> Vec<Option<f64>> {
        let found = log.sigmas().find(|(other, _)| *other == name);
        found.map_or_else(Vec::new, |(_, values)| values.to_vec())
    };
    let lines = names.iter().enumerate();
    let lines = lines.map(|(i, name)| over_runs(runs, name, Some(i), 1.0, |log| sigma(log, name)));
    add(
        "Spread of the offsets, σ, normalised".into(),
        None,
        lines.collect(),
    );
    figures
}

/// A line for each run and, of several, their mean on top.
fn by_run(runs: &[&Run], scale: f64, of: impl Fn(&Log) -> Vec<Option<f64>>) -> Vec<Line> {
    let line = |(i, run): (usize, &&Run)| Line {
        name: match run.settings.fold {
            Some(fold) => format!("fold {fold}"),
            None => run.method.clone(),
        },
        colour: Some(i),
        faint: runs.len() > 1,
        points: scaled(run.log.points(&of(&run.log)), scale),
    };
    let mut lines: Vec<Line> = runs.iter().enumerate().map(line).collect();
    if runs.len() > 1 {
        lines.push(over_runs(runs, "mean", None, scale, of));
    }
    lines
}

/// The mean over runs, in the epochs that all of them have; of a single one its values.
fn over_runs(
    runs: &[&Run],
    name: &str,
    colour: Option<usize>,
    scale: f64,
    of: impl Fn(&Log) -> Vec<Option<f64>>,
) -> Line {
    let mut sums: Vec<(f64, Vec<f64>)> = Vec::new();
    for run in runs {
        for (epoch, value) in run.log.points(&of(&run.log)) {
            match sums.binary_search_by(|(at, _)| at.total_cmp(&epoch)) {
                Ok(i) => sums[i].1.push(value),
                Err(i) => sums.insert(i, (epoch, vec![value])),
            }
        }
    }
    let whole = sums.into_iter().filter(|(_, values)| values.len() == runs.len());
    let points = whole.map(|(epoch, values)| (epoch, values.iter().sum::<f64>() / values.len() as f64));
    Line {
        name: name.into(),
        colour,
        faint: false,
        points: scaled(points.collect(), scale),
    }
}

fn scaled(points: Vec<(f64, f64)>, scale: f64) -> Vec<(f64, f64)> {
    points.into_iter().map(|(x, y)| (x, y * scale)).collect()
}

/// A table of HTML: rows of cells that are escaped already, the first the header; so many columns to the left. A row of one cell is a
/// heading of those below it.
fn table(caption: &str, rows: &[Vec<String>], left: usize) -> String {
    let mut text = String::from("<table>");
    if !caption.is_empty() {
        let _ = write!(text, "<caption>{caption}</caption>");
    }
    for (i, row) in rows.iter().enumerate() {
        let tag = if i == 0 { "th" } else { "td" };
        text += match i {
            0 => "<thead><tr>",
            1 => "<tbody><tr>",
            _ => "<tr>",
        };
        if let ([heading], true) = (row.as_slice(), rows[0].len() > 1) {
            let _ = writeln!(
                text,
                "<td class=\"group\" colspan=\"{}\">{heading}</td></tr>",
                rows[0].len()
            );
            continue;
        }
        for (column, cell) in row.iter().enumerate() {
            let class = if column < left { " class=\"left\"" } else { "" };
            let _ = write!(text, "<{tag}{class}>{cell}</{tag}>");
        }
        text += if i == 0 { "</tr></thead>\n" } else { "</tr>\n" };
    }
    text += if rows.len() > 1 { "</tbody>" } else { "" };
    text + "</table>\n"
}

/// The standard deviation over cases (n − 1); `None` of fewer than two, and where one is infinite.
fn deviation(values: &[f64]) -> Option<f64> {
    let mean = mean(values.iter().map(|v| Some(*v)))?;
    let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
    (values.len() > 1 && mean.is_finite()).then(|| (squares / (values.len() - 1) as f64).sqrt())
}

/// The cases' scores by a metric, of a label or their means over labels.
fn column(report: &Report, metric: usize, label: Option<i32>) -> Vec<(&str, f64)> {
    let place = label.and_then(|value| report.labels.iter().position(|l| l.value == value));
    let score = |case: &crate::evaluate::CaseScore| match place {
        Some(place) => case.scores.get(metric)?.get(place).copied()?,
        None => case.means.get(metric).copied()?,
    };
    let cases = report.cases.iter();
    cases
        .filter_map(|case| Some((case.case.as_str(), score(case)?)))
        .collect()
}

fn tables(scores: &Methods) -> String {
    let Some(first) = scores.methods.first() else {
        return String::new();
    };
    let several = scores.methods.len() > 1;
    let cases = first.report.cases.len();
    let mut text = format!(
        "<p class=\"quiet\">{} SD: standard deviation over the cases; CI: interval of the mean; n: cases with a score. Where all labels count, a case's score is its mean \
         over them.</p>\n<div class=\"tables\">\n",
        escape(&heading(first.report.surfaces, cases))
    );
    for i in scores.scored() {
        let metric = &METRICS[i];
        let first_column = if several { "method" } else { "label" };
        let header = [first_column, "mean", "SD", "median", "95 % CI", "n"]
            .map(String::from)
            .to_vec();
        let mut rows = vec![header];
        let mut remarks = Vec::new();
        for (label, heading) in first.report.parts() {
            let known = first.report.labels.iter().find(|l| Some(l.value) == label);
            let name = known.map_or(heading, |known| known.name.clone());
            if several {
                rows.push(vec![escape(&name)]);
            }
            for method in &scores.methods {
                let Some(summary) = method.report.summary_of(metric, label) else {
                    continue;
                };
                let values: Vec<f64> = column(&method.report, i, label).iter().map(|c| c.1).collect();
                rows.push(vec![
                    escape(if several { &method.name } else { &name }),
                    shown(metric, summary.mean),
                    shown(metric, deviation(&values)),
                    shown(metric, summary.median),
                    interval(metric, summary),
                    summary.cases.to_string(),
                ]);
                let of = match several {
                    true => format!("{name}, {}", method.name),
                    false => name.clone(),
                };
                for (count, what) in [(summary.undefined, "undefined"), (summary.infinite, "infinite")] {
                    if count > 0 {
                        remarks.push(format!("{of}: {count} {what}"));
                    }
                }
            }
        }
        let _ = write!(
            text,
            "<div class=\"table\">{}",
            table(&escape(&metric.heading()), &rows, 1)
        );
        if !remarks.is_empty() {
            let _ = write!(text, "<p class=\"quiet\">{}.</p>", escape(&remarks.join("; ")));
        }
        text += "</div>\n";
    }
    text + "</div>\n" + &tests(scores)
}

/// The tests between methods.
fn tests(scores: &Methods) -> String {
    if scores.tests.is_empty() {
        return String::new();
    }
    let labels = scores.methods.first().map_or(&[][..], |m| &m.report.labels);
    let header = [
        "metric",
        "label",
        "methods",
        "difference of means",
        "95 % interval",
        "p",
        "p, Holm",
    ];
    let mut rows = vec![header.map(String::from).to_vec()];
    for test in &scores.tests {
        let Some(metric) = METRICS.iter().find(|metric| metric.name == test.metric) else {
            continue;
        };
        let label = match test.label {
            None => "all labels".to_owned(),
            Some(value) => {
                let known = labels.iter().find(|label| label.value == value);
                known.map_or(value.to_string(), Report::label_heading)
            }
        };
        let ends = match (test.low, test.high) {
            (Some(low), Some(high)) => {
                format!("[{}, {}]", shown(metric, Some(low)), shown(metric, Some(high)))
            }
            _ => "-".into(),
        };
        let p = |p: f64| match p < 1e-4 {
            true => "&lt; 0.0001".to_owned(),
            false => format!("{p:.4}"),
        };
        rows.push(vec![
            escape(&metric.heading()),
            escape(&label),
            escape(&format!("{} − {}", test.first, test.second)),
            shown(metric, test.difference),
            ends,
            p(test.p),
            p(test.p_holm),
        ]);
    }
    format!(
        "<details><summary>Tests between the methods: Wilcoxon signed-rank over the cases, corrected after Holm for each metric\
         </summary><div class=\"scroll\">{}</div></details>\n",
        table("", &rows, 3)
    )
}

fn boxes(scores: &Methods) -> String {
    let Some(first) = scores.methods.first() else {
        return String::new();
    };
    let several = scores.methods.len() > 1;
    let mut text = String::new();
    for i in judging(scores) {
        let metric = &METRICS[i];
        let of_method = |(place, method): (usize, &Method), label: &Label, name: String| Values {
            name,
            colour: place,
            values: column(&method.report, i, Some(label.value))
                .into_iter()
                .map(|(case, value)| (case.to_owned(), metric.shown(value)))
                .collect(),
        };
        let groups = first.report.labels.iter().enumerate();
        let groups = groups.map(|(place, label)| match several {
            true => {
                let methods = scores.methods.iter().enumerate();
                let values = methods.map(|m| of_method(m, label, m.1.name.clone()));
                (Report::label_heading(label), values.collect())
            }
            false => {
                let values = of_method((place, &scores.methods[0]), label, label.name.clone());
                (String::new(), vec![values])
            }
        });
        let chart = BoxChart {
            title: metric.heading(),
            end: (metric.unit == Unit::Fraction).then_some(100.0),
            groups: groups.collect(),
        };
        text += &chart.figure();
    }
    if text.is_empty() {
        return text;
    }
    format!(
        "<p class=\"quiet\">Boxes are quartiles with the median, whiskers reach to the outermost case within 1.5 times the box's \
         length, dots are cases.</p>\n<div class=\"charts\">\n{text}</div>\n"
    )
}

fn views(views: &[View]) -> String {
    if views.is_empty() {
        return String::new();
    }
    let reference = match views.iter().any(|view| view.has_reference) {
        true => "; outlined: reference",
        false => "",
    };
    let mut text = format!(
        "<p><label><input type=\"checkbox\" id=\"labels\" checked> Labels</label> <span class=\"quiet\">Filled: \
         segmentation{reference}. Slices are numbered in voxels of the scan turned to RAS.</span></p>\n"
    );
    let several = views.iter().any(|view| view.method != views[0].method);
    for view in views {
        let place = match view.place {
            Place::Worst(1) => "Worst".to_owned(),
            Place::Best(1) => "Best".to_owned(),
            Place::Worst(n) => format!("Worst but {}", n - 1),
            Place::Best(n) => format!("Best but {}", n - 1),
        };
        let of = match several {
            true => format!(" ({})", view.method),
            false => String::new(),
        };
        let _ = write!(
            text,
            "<article class=\"case\"><div><h3>{place}: {}{}</h3><p class=\"quiet\">{}</p><ul class=\"legend\">",
            escape(&view.case),
            escape(&of),
            escape(&view.scores)
        );
        for (index, name) in &view.legend {
            let [r, g, b] = label_colour(*index);
            let _ = write!(
                text,
                "<li><i class=\"swatch\" style=\"background:rgb({r},{g},{b})\"></i>{}</li>",
                escape(name)
            );
        }
        text += "</ul></div><div class=\"planes\">";
        for slices in &view.planes {
            text += &plane(&view.case, slices);
        }
        text += "</div></article>\n";
    }
    text + "<noscript><p class=\"note\">The sliders need JavaScript.</p></noscript>\n"
}

/// A plane with its slider. Both pictures are larger than the box, and are moved so that one slice without its border fills it.
fn plane(case: &str, slices: &Slices) -> String {
    let [width, height] = slices.size;
    let share = |count: usize, side: usize| 100.0 * (count * (side + 2)) as f64 / side as f64;
    let place = |i: usize, count: usize, side: usize| {
        100.0 * (i * (side + 2) + 1) as f64 / (count * (side + 2) - side) as f64
    };
    let at = format!(
        "{:.4}% {:.4}%",
        place(slices.first % slices.columns, slices.columns, width),
        place(slices.first / slices.columns, slices.rows, height)
    );
    let layer = |class: &str, png: &[u8]| {
        format!(
            "<i class=\"{class}\" style=\"background-image:url(data:image/png;base64,{});background-position:{at}\"></i>",
            BASE64.encode(png)
        )
    };
    let numbers: Vec<String> = slices.numbers.iter().map(usize::to_string).collect();
    let number = slices.numbers.get(slices.first).copied().unwrap_or_default();
    format!(
        "<div class=\"plane\" style=\"flex:{:.3} 1 0\"><div class=\"slice\" data-columns=\"{}\" data-rows=\"{}\" data-width=\"{width}\" \
         data-height=\"{height}\" data-numbers=\"{}\" style=\"aspect-ratio:{:.3}/{:.3};background-size:{:.4}% {:.4}%\">{}{}\
         <b>{}</b><b>{}</b></div><div class=\"range\"><span>{}</span><output>{number}</output></div>\
         <input type=\"range\" min=\"0\" max=\"{}\" value=\"{}\" aria-label=\"{} slice of {}\"></div>\n",
        slices.extent[0],
        slices.columns,
        slices.rows,
        numbers.join(","),
        slices.extent[0],
        slices.extent[1],
        share(slices.columns, width),
        share(slices.rows, height),
        layer("scan", &slices.scan),
        layer("labels", &slices.labels),
        slices.sides[0],
        slices.sides[1],
        slices.name,
        slices.numbers.len().saturating_sub(1),
        slices.first,
        slices.name,
        escape(case)
    )
}

fn all_cases(scores: &Methods) -> String {
    let mut text = String::new();
    for method in &scores.methods {
        let report = &method.report;
        let metrics: Vec<usize> = report.scored().collect();
        let mut header = vec!["case".to_owned()];
        for (place, i) in metrics.iter().enumerate() {
            let heading = escape(&METRICS[*i].heading());
            if place == 0 && report.labels.len() > 1 {
                let labels = report.labels.iter();
                header.extend(labels.map(|label| format!("{heading}<br>{}", escape(&label.name))));
            }
            header.push(heading);
        }
        let mut rows = vec![header];
        for case in &report.cases {
            let mut row = vec![escape(&case.case)];
            for (place, i) in metrics.iter().enumerate() {
                let metric: &Metric = &METRICS[*i];
                if place == 0 && report.labels.len() > 1 {
                    row.extend(case.scores[*i].iter().map(|score| shown(metric, *score)));
                }
                row.push(shown(metric, case.means[*i]));
            }
            rows.push(row);
        }
        let count = report.cases.len();
        let open = if count <= FEW_CASES { " open" } else { "" };
        let _ = writeln!(
            text,
            "<details{open}><summary>{}: {count} case{}</summary><div class=\"scroll\">{}</div></details>",
            escape(&method.name),
            if count == 1 { "" } else { "s" },
            table("", &rows, 1)
        );
    }
    text
}

fn costs(rows: &[TableRow]) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let header = [
        "network",
        "parameters",
        "epochs",
        "folds",
        "training, s a fold",
        "prediction, s a scan",
        "training, MiB",
        "prediction, MiB",
    ];
    let mut cells = vec![header.map(String::from).to_vec()];
    let mib = |bytes: u64| format!("{:.1}", bytes as f64 / 1048576.0);
    for row in rows {
        cells.push(vec![
            escape(&row.method),
            row.parameters.to_string(),
            row.epochs.to_string(),
            row.folds.len().to_string(),
            format!("{:.1}", row.training_seconds),
            format!("{:.3}", row.prediction_seconds),
            mib(row.training_peak),
            mib(row.inference_peak),
        ]);
    }
    format!(
        "<p class=\"quiet\">Memory is the most that the device's buffers held, for training with its validation. Times are means; \
         a scan's is from memory to label map.</p>\n<div class=\"table\">{}</div>\n",
        table("", &cells, 1)
    )
}

fn repeat(document: &Document) -> String {
    let mut text = String::new();
    for (what, command) in &document.commands {
        let _ = writeln!(
            text,
            "<p>{}</p><pre class=\"wrap\">{}</pre>",
            escape(what),
            escape(command)
        );
    }
    let open = if document.attachments.len() == 1 {
        " open"
    } else {
        ""
    };
    for Attachment {
        title,
        file,
        text: contents,
    } in &document.attachments
    {
        let _ = writeln!(
            text,
            "<details{open}><summary>{}</summary><p><a download=\"{}\" href=\"data:text/plain;base64,{}\">Save as {}</a></p>\
             <pre>{}</pre></details>",
            escape(title),
            escape(file),
            BASE64.encode(contents.as_bytes()),
            escape(file),
            escape(contents)
        );
    }
    text
}

fn origin(document: &Document) -> String {
    let mut text = list(&document.versions);
    for Hashes { title, files } in &document.hashes {
        let mut rows = vec![vec!["file".to_owned(), "SHA-256".to_owned()]];
        for (name, hash) in files {
            rows.push(vec![
                escape(name),
                format!("<span class=\"hash\">{}</span>", escape(hash)),
            ]);
        }
        let whole = match files.len() {
            0 | 1 => String::new(),
            _ => format!(
                "<p class=\"quiet\">All of them, as sha256sum lists them: <span class=\"hash\">{}</span></p>",
                of_list(files)
            ),
        };
        let open = if files.len() <= FEW_CASES { " open" } else { "" };
        let _ = writeln!(
            text,
            "<h3>{}</h3>{whole}<details{open}><summary>{} file{}</summary><div class=\"scroll\">{}</div></details>",
            escape(title),
            files.len(),
            if files.len() == 1 { "" } else { "s" },
            table("", &rows, 2)
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_the_input_becomes_markup() {
        let evil = "</script><img src=x onerror=alert(1)>'\"&";
        let label = |value| Label {
            value,
            name: evil.into(),
        };
        let mut scores = vec![Vec::new(); METRICS.len()];
        scores[0] = vec![Some(0.5), None];
        let case = crate::evaluate::CaseScore {
            case: evil.into(),
            means: scores.iter().map(|s| mean(s.iter().copied())).collect(),
            scores,
        };
        let method = |name: &str| Method {
            name: format!("{name}{evil}"),
            report: Report::of_cases(vec![label(1), label(2)], vec![case.clone()], None).summarise(),
        };
        let planes = ["axial", "coronal", "sagittal"].map(|name| Slices {
            name,
            sides: ["R", "L"],
            numbers: vec![3],
            first: 0,
            columns: 1,
            rows: 1,
            size: [1, 1],
            extent: [1.0, 1.0],
            scan: vec![1, 2, 3],
            labels: vec![],
        });
        let view = View {
            method: evil.into(),
            case: evil.into(),
            place: Place::Worst(1),
            scores: evil.into(),
            legend: vec![(1, evil.into())],
            has_reference: true,
            planes,
        };
        let run = Run {
            folder: evil.into(),
            method: evil.into(),
            settings: crate::train::Settings::new("data".into(), "unet"),
            config: evil.into(),
            log: Log::parse("epoch,loss,dice_mean,\"dice_</script><img src=x onerror=alert(1)>\",<b>_sigma\n1,2,0.5,0.5,1\n").unwrap(),
            result: None,
        };
        let pair = || (evil.to_owned(), evil.to_owned());
        let document = Document {
            title: evil.into(),
            facts: vec![pair()],
            notes: vec![evil.into()],
            runs: vec![run],
            scores: Some(Methods::new(vec![method("a"), method("b")], &[(0, 1)])),
            costs: Vec::new(),
            views: vec![view],
            commands: vec![pair()],
            attachments: vec![Attachment {
                title: evil.into(),
                file: evil.into(),
                text: evil.into(),
            }],
            versions: vec![pair()],
            hashes: vec![Hashes {
                title: evil.into(),
                files: vec![pair(), pair()],
            }],
        };
        let html = document.html();
        assert!(
            !html.contains("<img") && !html.contains("<b>_sigma") && !html.contains("onerror=alert(1)>'")
        );
        assert_eq!(html.matches("</script>").count(), 1);
        assert!(html.contains("&lt;/script&gt;&lt;img"));
        for section in ["curves", "scores", "boxes", "cases", "all", "repeat", "origin"] {
            assert!(html.contains(&format!("<section id=\"{section}\">")), "{section}");
        }
        // nothing that a browser would fetch
        for address in ["http:", "https:", "//", "@import", "src="] {
            let own = html.replace("// a reloaded page", "").replace("src=x", "");
            assert!(!own.contains(address), "{address}");
        }
        assert!(!html.contains("NaN"));
        assert_eq!(html, document.html());
        assert!(Document::default().html().len() < 10_000);
    }

    #[test]
    fn deviations_are_those_of_samples() {
        assert_eq!(deviation(&[1.0, 3.0]), Some(2f64.sqrt()));
        assert_eq!(
            (deviation(&[1.0]), deviation(&[1.0, f64::INFINITY])),
            (None, None)
        );
    }
}

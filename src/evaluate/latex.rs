//! Means and their intervals as a table for LaTeX.

use super::summary::shown;
use super::{Methods, Summary};
use crate::metrics::{Better, METRICS, Metric};

/// A p value below this is marked.
const SIGNIFICANT: f64 = 0.05;

impl Methods {
    /// A `tabular` with booktabs' rules: a block for each metric, a line a method, a column a label. Of several methods the best
    /// mean is bold, and a star marks what differs significantly from the first method.
    pub fn latex(&self) -> String {
        let Some(first) = self.methods.first() else {
            return String::new();
        };
        let parts = first.report.parts();
        let several = self.methods.len() > 1;
        let mut text = String::from(
            "% \\usepackage{booktabs}; means over cases with 95 % intervals (bootstrap over the cases)\n",
        );
        if several {
            text += &format!(
                "% bold: the best mean; *: differs from {} (Wilcoxon signed-rank, Holm's correction over labels and methods, p < {SIGNIFICANT})\n",
                first.name.replace(['\n', '\r'], " ")
            );
        }
        text += &format!("\\begin{{tabular}}{{l{}}}\n\\toprule\n", "c".repeat(parts.len()));
        let headings = parts.iter().map(|(value, _)| {
            let label = first.report.labels.iter().find(|l| Some(l.value) == *value);
            label.map_or("Mean".into(), |label| escape(&label.name))
        });
        text += &row(std::iter::once("Method".to_owned()).chain(headings));
        for metric in self.scored() {
            text += "\\midrule\n";
            let arrow = match METRICS[metric].better {
                Better::Higher => " $\\uparrow$",
                Better::Lower => " $\\downarrow$",
                Better::Neither => "",
            };
            let title = self.title(metric);
            text += &format!(
                "\\multicolumn{{{}}}{{l}}{{\\textit{{{title}}}{arrow}}} \\\\\n",
                parts.len() + 1
            );
            for (i, method) in self.methods.iter().enumerate() {
                let cell = |(label, _): &(Option<i32>, String)| {
                    let Some(summary) = method.report.summary_of(&METRICS[metric], *label) else {
                        return "--".into();
                    };
                    let bold = several && self.is_best(metric, *label, summary);
                    let test = (i > 0).then(|| self.test(metric, *label, [0, i])).flatten();
                    let marked = test.is_some_and(|test| test.p_holm < SIGNIFICANT);
                    cell(&METRICS[metric], summary, bold, marked)
                };
                text += &row(std::iter::once(escape(&method.name)).chain(parts.iter().map(cell)));
            }
        }
        text + "\\bottomrule\n\\end{tabular}\n"
    }

    /// A metric with its unit, and what it depends on.
    fn title(&self, metric: usize) -> String {
        let heading = escape(&METRICS[metric].heading());
        match self.methods[0].report.surfaces {
            Some(surfaces) if METRICS[metric].name == "nsd" => {
                format!("{heading}, within {} mm", surfaces.tolerance)
            }
            _ => heading,
        }
    }

    fn is_best(&self, metric: usize, label: Option<i32>, summary: &Summary) -> bool {
        let Some(mean) = summary.mean.filter(|mean| mean.is_finite()) else {
            return false;
        };
        METRICS[metric].better != Better::Neither
            && self.methods.iter().all(|other| {
                let other = other.report.summary_of(&METRICS[metric], label);
                let other = other.and_then(|summary| summary.mean);
                other.is_none_or(|other| !METRICS[metric].is_better(other, mean))
            })
    }
}

fn cell(metric: &Metric, summary: &Summary, bold: bool, marked: bool) -> String {
    let number = |score: Option<f64>| match score {
        None => "--".to_owned(),
        Some(score) if score.is_infinite() => "$\\infty$".into(),
        score => shown(metric, score),
    };
    let mean = number(summary.mean);
    let mean = if bold { format!("\\textbf{{{mean}}}") } else { mean };
    let star = if marked { "$^{*}$" } else { "" };
    match summary.low {
        None => mean + star,
        Some(_) => format!("{mean}{star} ({}--{})", number(summary.low), number(summary.high)),
    }
}

fn row(cells: impl Iterator<Item = String>) -> String {
    format!("{} \\\\\n", cells.collect::<Vec<_>>().join(" & "))
}

/// Text as LaTeX prints it.
fn escape(text: &str) -> String {
    let mut escaped = String::new();
    for character in text.chars() {
        match character {
            '&' | '%' | '$' | '#' | '_' | '{' | '}' => escaped.extend(['\\', character]),
            '\\' => escaped += "\\textbackslash{}",
            '~' => escaped += "\\textasciitilde{}",
            '^' => escaped += "\\textasciicircum{}",
            '<' => escaped += "\\textless{}",
            '>' => escaped += "\\textgreater{}",
            '|' => escaped += "\\textbar{}",
            // after the end of a row it would be the gap below it
            '[' => escaped += "{[}",
            '*' => escaped += "{*}",
            '\n' | '\r' => escaped.push(' '),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::methods::tests::methods;

    #[test]
    fn the_best_is_bold_and_names_are_escaped() {
        let good: Vec<f64> = (0..8).map(|i| 0.9 + 0.01 * f64::from(i)).collect();
        let bad: Vec<f64> = (0..8).map(|i| 0.8 - 0.02 * f64::from(i)).collect();
        let near = [1.0; 8];
        let mut far = [2.0; 8];
        far[3] = f64::INFINITY;
        let table = methods(&["[ours]_50%", "a\\b"], &[&good, &bad], &[&near, &far]).latex();
        let lines: Vec<&str> = table.lines().filter(|line| !line.starts_with('%')).collect();
        assert_eq!(lines[..2], ["\\begin{tabular}{lccc}", "\\toprule"]);
        assert_eq!(lines[2], "Method & left\\_a \\& b & b & Mean \\\\");
        assert_eq!(lines[3], "\\midrule");
        assert_eq!(
            lines[4],
            "\\multicolumn{4}{l}{\\textit{Dice \\%} $\\uparrow$} \\\\"
        );
        assert!(
            lines[5].starts_with("{[}ours]\\_50\\% & \\textbf{93.50} (") && !lines[5].contains("*"),
            "{}",
            lines[5]
        );
        assert!(
            lines[6].starts_with("a\\textbackslash{}b & 73.00$^{*}$ (")
                && lines[6].contains("& \\textbf{50.00} (50.00--50.00)"),
            "{}",
            lines[6]
        );
        assert_eq!(
            lines[8],
            "\\multicolumn{4}{l}{\\textit{HD mm} $\\downarrow$} \\\\"
        );
        assert!(
            lines[9].contains("& \\textbf{1.00} (1.00--1.00) &"),
            "{}",
            lines[9]
        );
        assert!(
            lines[10].contains("& $\\infty$$^{*}$ (2.00--$\\infty$) &"),
            "{}",
            lines[10]
        );
        assert_eq!(lines[11..], ["\\bottomrule", "\\end{tabular}"]);
        let columns = |line: &str| line.replace("\\&", "").matches('&').count();
        for line in [2, 5, 6, 9, 10] {
            assert_eq!(columns(lines[line]), 3, "{}", lines[line]);
        }
        // one method needs neither
        let one = methods(&["ours", "ours"], &[&good, &good], &[&near, &near]);
        let one = Methods::new(vec![one.methods[0].clone()], &[]).latex();
        assert!(!one.contains("\\textbf") && !one.contains('*'), "{one}");
    }
}

//! Scores as CSV.

use super::Methods;
use crate::metrics::METRICS;

impl Methods {
    /// A line for each label of each case of each method, a column a metric: fractions, millimetres and millilitres. A score
    /// that is not defined is empty, an infinite one `inf`.
    pub fn csv(&self) -> String {
        let metrics = self.scored();
        let mut header = ["method", "case", "label", "name"].map(String::from).to_vec();
        header.extend(metrics.iter().map(|i| METRICS[*i].name.to_owned()));
        let mut text = line(&header);
        for method in &self.methods {
            for case in &method.report.cases {
                for (i, label) in method.report.labels.iter().enumerate() {
                    let mut cells = vec![
                        method.name.clone(),
                        case.case.clone(),
                        label.value.to_string(),
                        label.name.clone(),
                    ];
                    let scores = metrics.iter().map(|metric| case.scores[*metric][i]);
                    cells.extend(scores.map(|score| score.map_or_else(String::new, |s| s.to_string())));
                    text += &line(&cells);
                }
            }
        }
        text
    }
}

/// Fields with commas between them (RFC 4180).
fn line(cells: &[String]) -> String {
    let quoted = cells
        .iter()
        .map(|text| match text.contains([',', '"', '\n', '\r']) {
            true => format!("\"{}\"", text.replace('"', "\"\"")),
            false => text.clone(),
        });
    quoted.collect::<Vec<_>>().join(",") + "\n"
}

#[cfg(test)]
mod tests {
    use crate::evaluate::methods::tests::methods;

    #[test]
    fn a_line_has_a_label_of_a_case() {
        let methods = methods(
            &["a,b", "\"c\""],
            &[&[0.5, 0.125], &[0.25, 1.0]],
            &[&[1.5, f64::INFINITY], &[0.1, 2.0]],
        );
        let want = "method,case,label,name,dice,hd\n\
            \"a,b\",case0,1,left_a & b,0.5,1.5\n\"a,b\",case0,2,b,,\n\
            \"a,b\",case1,1,left_a & b,0.125,inf\n\"a,b\",case1,2,b,0.5,1\n\
            \"\"\"c\"\"\",case0,1,left_a & b,0.25,0.1\n\"\"\"c\"\"\",case0,2,b,,\n\
            \"\"\"c\"\"\",case1,1,left_a & b,1,2\n\"\"\"c\"\"\",case1,2,b,0.5,1\n";
        assert_eq!(methods.csv(), want);
    }
}

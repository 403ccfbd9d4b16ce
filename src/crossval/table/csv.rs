//! The table and its cases as CSV.

use super::Table;
use crate::dataset::Label;
use crate::metrics::METRICS;

impl Table {
    /// A line a row; scores as their metrics have them (Dice as fractions), memory in bytes, time in seconds.
    pub fn csv(&self) -> String {
        let mut header: Vec<String> = [
            "name",
            "method",
            "arch",
            "parameters",
            "folds",
            "of_folds",
            "cases",
        ]
        .map(String::from)
        .to_vec();
        let metrics = self.metrics();
        for metric in metrics.iter().map(|i| &METRICS[*i]) {
            for name in std::iter::once("mean").chain(self.labels.iter().map(|l| l.name.as_str())) {
                let column = format!("{}_{name}", metric.name);
                header.extend([quote(&column), quote(&format!("{column}_sd"))]);
            }
        }
        header.extend(
            [
                "inference_bytes",
                "training_bytes",
                "inference_peak_bytes",
                "training_peak_bytes",
                "training_seconds",
                "prediction_seconds",
            ]
            .map(String::from),
        );
        let mut text = header.join(",") + "\n";
        for row in &self.rows {
            let mut cells = vec![
                quote(&row.name),
                quote(&row.method),
                row.arch.clone(),
                row.parameters.to_string(),
                row.folds.len().to_string(),
                self.folds.to_string(),
                row.cases.to_string(),
            ];
            let scores = metrics.iter().map(|i| (&row.scores[*i], &row.label_scores[*i]));
            for score in scores.flat_map(|(mean, labels)| std::iter::once(mean).chain(labels)) {
                cells.extend([
                    number(score.map(|s| s.mean)),
                    number(score.and_then(|s| s.deviation)),
                ]);
            }
            cells.extend([
                row.inference_bytes.to_string(),
                row.training_bytes.to_string(),
                row.inference_peak.to_string(),
                row.training_peak.to_string(),
                format!("{:.2}", row.training_seconds),
                format!("{:.4}", row.prediction_seconds),
            ]);
            text += &(cells.join(",") + "\n");
        }
        text
    }

    /// A line for each case of each row: fold, scores as their metrics have them, seconds from scan to labels.
    pub fn cases_csv(&self) -> String {
        let mut header: Vec<String> = ["name", "fold", "case"].map(String::from).to_vec();
        let metrics = self.metrics();
        for metric in metrics.iter().map(|i| &METRICS[*i]) {
            header.push(format!("{}_mean", metric.name));
            let label = |l: &Label| quote(&format!("{}_{}", metric.name, l.name));
            header.extend(self.labels.iter().map(label));
        }
        header.push("prediction_seconds".into());
        let mut text = header.join(",") + "\n";
        for fold in self.results.iter().flatten() {
            for case in &fold.cases {
                let mut cells = vec![
                    quote(&fold.name),
                    fold.settings.fold.unwrap_or_default().to_string(),
                    quote(&case.case),
                ];
                for &i in &metrics {
                    let labels = (0..self.labels.len()).map(|label| case.score(i, label));
                    cells.extend(std::iter::once(case.means[i]).chain(labels).map(number));
                }
                cells.push(format!("{:.4}", case.seconds));
                text += &(cells.join(",") + "\n");
            }
        }
        text
    }
}

fn number(value: Option<f64>) -> String {
    value.map_or_else(String::new, |v| format!("{v:.6}"))
}

/// For a field of CSV (RFC 4180).
fn quote(text: &str) -> String {
    match text.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text.to_owned(),
    }
}

//! The table as Markdown.

use std::fmt::Write;

use super::{Epoch, Score, Table};
use crate::dataset::Label;
use crate::metrics::{METRICS, Metric};

impl Table {
    /// The table with its notes.
    pub fn markdown(&self) -> String {
        let mut header = vec!["method".to_owned(), "parameters".into()];
        let metrics: Vec<(usize, &Metric)> = self.metrics().into_iter().map(|i| (i, &METRICS[i])).collect();
        for &(i, metric) in &metrics {
            header.push(metric.heading());
            let label = |l: &Label| match i {
                0 => escape(&l.name),
                _ => format!("{} {}", metric.title, escape(&l.name)),
            };
            header.extend(self.labels.iter().map(label));
        }
        header.extend(
            [
                "memory, inference",
                "memory, training",
                "training",
                "prediction",
                "folds",
            ]
            .map(String::from),
        );
        let mut text = String::new();
        if let Some(note) = self.partial() {
            let _ = writeln!(text, "**{}**\n", escape(&note));
        }
        let mut line = |cells: &[String]| {
            let _ = writeln!(text, "| {} |", cells.join(" | "));
        };
        line(&header);
        line(
            &header
                .iter()
                .enumerate()
                .map(|(i, _)| if i == 0 { "---" } else { "---:" }.into())
                .collect::<Vec<_>>(),
        );
        for row in &self.rows {
            let mut cells = vec![escape(&row.method), thousands(row.parameters)];
            for &(i, metric) in &metrics {
                let scores = std::iter::once(&row.scores[i]).chain(&row.label_scores[i]);
                cells.extend(scores.map(|score| shown(metric, *score)));
            }
            cells.extend([
                mebibytes(row.inference_peak),
                mebibytes(row.training_peak),
                duration(row.training_seconds),
                format!("{:.2} s", row.prediction_seconds),
                format!("{} of {}", row.folds.len(), self.folds),
            ]);
            line(&cells);
        }
        let _ = write!(text, "\n{}\n", self.notes());
        text
    }

    fn notes(&self) -> String {
        let list = |values: &mut dyn Iterator<Item = String>| {
            let mut values: Vec<String> = values.collect();
            values.sort();
            values.dedup();
            values.join(", ")
        };
        let cases = list(&mut self.rows.iter().map(|r| r.cases.to_string()));
        let adapters = list(&mut self.rows.iter().flat_map(|r| r.adapters.clone()));
        let epochs = list(&mut self.rows.iter().map(|r| r.epochs.to_string()));
        let metrics = self.metrics().into_iter().map(|i| match METRICS[i].name {
            "nsd" => format!(
                "{} within {} mm",
                METRICS[i].title,
                self.surfaces.unwrap_or_default().tolerance
            ),
            _ => METRICS[i].title.to_owned(),
        });
        let metrics = metrics.collect::<Vec<_>>().join(", ");
        let weights = match self.rows.iter().any(|r| r.weights == Epoch::Best) {
            true => "weights: those that scored best on the held-out cases themselves, which flatters them",
            false => "weights: those of the last epoch",
        };
        format!(
            "{}, {}-fold cross-validation, {epochs} epochs. {metrics}: mean ± standard deviation over {cases} held-out cases, \
             on the scans' own grids; the first column is the mean of the labels' means; {weights}. Memory: the \
             most that the device's buffers held, for training with its validation. Time: a fold's training steps, and a scan from memory to labels, means; adapter: {adapters}.",
            escape(&self.dataset),
            self.folds
        )
    }
}

fn shown(metric: &Metric, score: Option<Score>) -> String {
    let Some(Score { mean, deviation }) = score else {
        return "–".into();
    };
    let mean = metric.shown(mean);
    if mean.is_infinite() {
        return "∞".into();
    }
    match deviation {
        None => format!("{mean:.2}"),
        Some(deviation) => format!("{mean:.2} ± {:.2}", metric.shown(deviation)),
    }
}

fn duration(seconds: f64) -> String {
    match seconds < 120.0 {
        true => format!("{seconds:.1} s"),
        false => format!("{:.1} min", seconds / 60.0),
    }
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.0} MiB", bytes as f64 / 1048576.0)
}

/// 229217 as 229,217.
fn thousands(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// For a cell of a Markdown table.
fn escape(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

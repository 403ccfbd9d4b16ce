//! A run's log.csv, read.

use std::path::Path;

use super::{ReportError, invalid};
use crate::metrics::METRICS;

/// The columns of a run's log, a value an epoch, `None` where a cell is empty.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Log {
    /// The epochs, from 1.
    pub epochs: Vec<usize>,
    /// The other columns by name, in their order.
    pub columns: Vec<(String, Vec<Option<f64>>)>,
}

/// A metric's columns in a log.
#[derive(Clone, Debug, PartialEq)]
pub struct Validation<'a> {
    /// The metric's place in [`METRICS`].
    pub metric: usize,
    /// The mean over the labels.
    pub mean: &'a [Option<f64>],
    /// Each label's name and scores.
    pub labels: Vec<(&'a str, &'a [Option<f64>])>,
}

impl Log {
    /// Reads a log; one without epochs where there is no file yet.
    ///
    /// # Errors
    /// A file that can't be read, or is no log.
    pub fn read(path: &Path) -> Result<Log, ReportError> {
        match std::fs::read_to_string(path) {
            Ok(text) => Log::parse(&text).or_else(|problem| invalid(path, problem)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Log::default()),
            Err(error) => invalid(path, format!("it can't be read: {error}")),
        }
    }

    /// [`Log::read`] of its text.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn parse(text: &str) -> Result<Log, String> {
        let mut reader = csv::Reader::from_reader(text.as_bytes());
        let names = reader.headers().map_err(|e| e.to_string())?.clone();
        if names.get(0) != Some("epoch") {
            return Err("it is no log of a training: its first column is not `epoch`".into());
        }
        let mut log = Log {
            epochs: Vec::new(),
            columns: names
                .iter()
                .skip(1)
                .map(|name| (name.to_owned(), Vec::new()))
                .collect(),
        };
        for (line, record) in reader.records().enumerate() {
            let record = record.map_err(|e| e.to_string())?;
            let wrong = |cell: &str| format!("`{cell}` in line {} is no number", line + 2);
            let mut cells = record.iter();
            let epoch = cells.next().unwrap_or_default();
            log.epochs.push(epoch.parse().map_err(|_| wrong(epoch))?);
            for (cell, (_, values)) in cells.zip(&mut log.columns) {
                values.push(match cell {
                    "" => None,
                    cell => Some(cell.parse().map_err(|_| wrong(cell))?),
                });
            }
        }
        match log.epochs.is_sorted_by(|a, b| a < b) {
            true => Ok(log),
            false => Err("its epochs are in no order".into()),
        }
    }

    /// The values of a column; nothing where there is no such column.
    pub fn column(&self, name: &str) -> &[Option<f64>] {
        let found = self.columns.iter().find(|(column, _)| column == name);
        found.map_or(&[], |(_, values)| values)
    }

    /// Epochs and values of a column where it has finite ones.
    pub fn points(&self, values: &[Option<f64>]) -> Vec<(f64, f64)> {
        let pairs = self.epochs.iter().zip(values);
        pairs
            .filter_map(|(epoch, value)| Some((*epoch as f64, value.filter(|v| v.is_finite())?)))
            .collect()
    }

    /// The metrics of its validations: a column of the mean, and those of the labels after it.
    pub fn validations(&self) -> Vec<Validation<'_>> {
        let metric = |name: &str| {
            METRICS
                .iter()
                .position(|m| name.strip_suffix("_mean") == Some(m.name))
        };
        let mut found: Vec<Validation<'_>> = Vec::new();
        let mut open = false;
        for (name, values) in &self.columns {
            if let Some(metric) = metric(name) {
                open = true;
                found.push(Validation {
                    metric,
                    mean: values,
                    labels: Vec::new(),
                });
                continue;
            }
            let last = found.last_mut().filter(|_| open);
            let label = last.and_then(|last| {
                let label = name.strip_prefix(METRICS[last.metric].name)?.strip_prefix('_')?;
                Some((last, label))
            });
            match label {
                Some((last, label)) => last.labels.push((label, values)),
                None => open = false,
            }
        }
        found.retain(|validation| validation.mean.iter().flatten().next().is_some());
        found
    }

    /// The spread of each OBELISK layer's offsets, by parameter.
    pub fn sigmas(&self) -> impl Iterator<Item = (&str, &[Option<f64>])> {
        let columns = self.columns.iter();
        columns.filter_map(|(name, values)| Some((name.strip_suffix("_sigma")?, values.as_slice())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_found_by_name_and_unknown_ones_are_left_alone() {
        let text = "epoch,learning_rate,loss,train_seconds,dice_mean,dice_a,dice_mean_b,volume_error_mean,volume_error_a,new,offset1_sigma\n\
            1,0.1,2.5,1.0,,,,,,7,0.05\n2,0.1,1.5,1.0,0.5,0.25,0.75,1,1,7,0.06\n";
        let log = Log::parse(text).unwrap();
        assert_eq!(log.epochs, [1, 2]);
        assert_eq!(log.points(log.column("loss")), [(1.0, 2.5), (2.0, 1.5)]);
        let found = log.validations();
        let of_dice = &found[0];
        assert_eq!((of_dice.metric, of_dice.mean), (0, &[None, Some(0.5)][..]));
        let labels: Vec<&str> = of_dice.labels.iter().map(|l| l.0).collect();
        assert_eq!(labels, ["a", "mean_b"]);
        assert_eq!(METRICS[found[1].metric].name, "volume_error");
        assert_eq!(found[1].labels.len(), 1);
        let sigmas: Vec<_> = log.sigmas().collect();
        assert_eq!(sigmas, [("offset1", &[Some(0.05), Some(0.06)][..])]);
        assert!(log.column("nothing").is_empty());
    }

    #[test]
    fn other_files_are_refused() {
        for (text, part) in [
            ("", "no log"),
            ("a,b\n1,2\n", "no log"),
            ("epoch,loss\n1,x\n", "`x` in line 2"),
            ("epoch,loss\n1,1\n1,1\n", "no order"),
            ("epoch,loss\n1\n", "1"),
            ("epoch,loss\n-1,1\n", "`-1`"),
        ] {
            let error = Log::parse(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}

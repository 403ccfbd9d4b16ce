//! How well a label map agrees with a reference one. A metric is one entry of [`METRICS`]: reports, tables, logs, columns,
//! fields of files and pictures follow from it.

use std::collections::BTreeMap;

use serde::de::{Deserialize, DeserializeOwned, Deserializer, Error};
use serde::{Serialize, Serializer};
use serde_json::Value;

/// A way to score a label of a predicted map.
#[derive(Debug)]
pub struct Metric {
    /// Its name in files: of fields, of columns (`dice_liver`) and of pictures (`dice.png`).
    pub name: &'static str,
    /// Its name for readers of tables, logs and pictures.
    pub title: &'static str,
    /// What its scores are measured in.
    pub unit: Unit,
    /// Whether a higher score is a better one.
    pub higher_is_better: bool,
    /// The score of a label that at least one of the maps has; `None` where the metric is not defined.
    pub score: fn(&Comparison, i32) -> Option<f64>,
}

/// What scores are measured in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// A number from 0 to 1, which tables show in percent.
    Fraction,
    /// A unit by its symbol, such as `mm`.
    Symbol(&'static str),
}

/// Every metric. A training keeps the weights that score best by the first.
pub static METRICS: &[Metric] = &[
    Metric {
        name: "dice",
        title: "Dice",
        unit: Unit::Fraction,
        higher_is_better: true,
        score: |maps, label| {
            let overlap = maps.overlap(label);
            Some(2.0 * overlap.both as f64 / (overlap.prediction + overlap.reference) as f64)
        },
    },
    // One more in the tests of this crate, as different as can be, so that nothing relies on what the first is.
    #[cfg(test)]
    Metric {
        name: "volume_error",
        title: "volume error",
        unit: Unit::Symbol("ml"),
        higher_is_better: false,
        score: |maps, label| {
            let overlap = maps.overlap(label);
            let voxels = overlap.prediction.abs_diff(overlap.reference);
            Some(voxels as f64 * maps.spacing.iter().product::<f64>() / 1000.0)
        },
    },
];

impl Metric {
    /// Title and unit, for a table: `Dice %`.
    pub fn heading(&self) -> String {
        match self.unit {
            Unit::Fraction => format!("{} %", self.title),
            Unit::Symbol(unit) => format!("{} {unit}", self.title),
        }
    }

    /// A score in the unit of [`Metric::heading`].
    pub fn shown(&self, score: f64) -> f64 {
        match self.unit {
            Unit::Fraction => 100.0 * score,
            Unit::Symbol(_) => score,
        }
    }

    /// Whether one score is better than another.
    pub fn is_better(&self, score: f64, other: f64) -> bool {
        match self.higher_is_better {
            true => score > other,
            false => score < other,
        }
    }
}

/// How many voxels have a label.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Overlap {
    /// |A|, in the prediction.
    pub prediction: u64,
    /// |B|, in the reference.
    pub reference: u64,
    /// |A ∩ B|.
    pub both: u64,
}

/// A label map beside its reference.
#[derive(Debug)]
pub struct Comparison<'a> {
    /// The prediction, voxels in the file's order with the last axis fastest.
    pub prediction: &'a [i32],
    /// The reference, on the same grid.
    pub reference: &'a [i32],
    /// Voxels along the three axes.
    pub shape: [usize; 3],
    /// Millimetres from voxel to voxel along each axis.
    pub spacing: [f64; 3],
    /// Voxels whose reference has this value don't count.
    pub ignore: Option<i32>,
    overlaps: BTreeMap<i32, Overlap>,
}

/// Scores of one case by label, then by metric.
pub type LabelScores = BTreeMap<i32, Vec<Option<f64>>>;

impl<'a> Comparison<'a> {
    /// Counts the voxels of every label.
    ///
    /// # Panics
    /// If the maps differ in length.
    pub fn new(
        prediction: &'a [i32],
        reference: &'a [i32],
        shape: [usize; 3],
        spacing: [f64; 3],
        ignore: Option<i32>,
    ) -> Self {
        Comparison {
            prediction,
            reference,
            shape,
            spacing,
            ignore,
            overlaps: overlaps(prediction, reference, ignore),
        }
    }

    /// How many voxels have a label.
    pub fn overlap(&self, label: i32) -> Overlap {
        self.overlaps.get(&label).copied().unwrap_or_default()
    }

    /// The scores of every label but 0, the background, that occurs in one of the maps.
    pub fn scores(&self) -> LabelScores {
        let labels = self.overlaps.keys().copied().filter(|label| *label != 0);
        let scores = |label| METRICS.iter().map(|m| (m.score)(self, label)).collect();
        labels.map(|label| (label, scores(label))).collect()
    }
}

fn overlaps(prediction: &[i32], reference: &[i32], ignore: Option<i32>) -> BTreeMap<i32, Overlap> {
    assert_eq!(prediction.len(), reference.len(), "voxels of the two maps");
    let mut pairs: BTreeMap<(i32, i32), u64> = BTreeMap::new();
    let mut run = (prediction.first().copied().zip(reference.first().copied()), 0u64);
    let mut close = |(pair, length): (Option<(i32, i32)>, u64)| {
        if let Some(pair) = pair {
            *pairs.entry(pair).or_default() += length;
        }
    };
    for pair in prediction.iter().copied().zip(reference.iter().copied()) {
        if run.0 != Some(pair) {
            close(run);
            run = (Some(pair), 0);
        }
        run.1 += 1;
    }
    close(run);
    let mut overlaps: BTreeMap<i32, Overlap> = BTreeMap::new();
    for ((predicted, true_label), voxels) in pairs {
        if Some(true_label) == ignore {
            continue;
        }
        overlaps.entry(predicted).or_default().prediction += voxels;
        let entry = overlaps.entry(true_label).or_default();
        entry.reference += voxels;
        if predicted == true_label {
            entry.both += voxels;
        }
    }
    overlaps
}

/// The mean of the scores that there are.
pub fn mean(scores: impl IntoIterator<Item = Option<f64>>) -> Option<f64> {
    let (sum, count) = scores
        .into_iter()
        .flatten()
        .fold((0.0, 0), |(sum, count), v| (sum + v, count + 1));
    (count > 0).then(|| sum / f64::from(count))
}

/// For `#[serde(flatten, with = …)]`: a list with a value for each metric, as a field for each. Metrics that a file does not
/// have, because the program that wrote it had none, are read as the type's default.
macro_rules! fields {
    ($($(#[$doc:meta])* $module:ident: $key:expr;)*) => { $(
        $(#[$doc])*
        pub(crate) mod $module {
            use super::*;

            pub fn serialize<T: Serialize + Default, S: Serializer>(values: &[T], to: S) -> Result<S::Ok, S::Error> {
                write(values, to, $key)
            }

            pub fn deserialize<'de, T: DeserializeOwned + Default, D: Deserializer<'de>>(from: D) -> Result<Vec<T>, D::Error> {
                read(from, $key)
            }
        }
    )* };
}

fields! {
    /// `dice`
    by_name: |_, name| name.to_owned();
    /// `mean_dice`
    mean_by_name: |_, name| format!("mean_{name}");
    /// `label_dice`
    label_by_name: |_, name| format!("label_{name}");
    /// `mean` for the first metric, `mean_NAME` for others
    mean_of_first: |first, name| if first { "mean".into() } else { format!("mean_{name}") };
    /// `label_means` for the first metric, `label_means_NAME` for others
    label_means_of_first: |first, name| if first { "label_means".into() } else { format!("label_means_{name}") };
}

/// A field's name, of a metric that is the first or not and its name.
type Key = fn(bool, &str) -> String;

fn keys(key: Key) -> impl Iterator<Item = String> {
    let names = METRICS.iter().map(|metric| metric.name).enumerate();
    names.map(move |(i, name)| key(i == 0, name))
}

fn write<T: Serialize + Default, S: Serializer>(values: &[T], to: S, key: Key) -> Result<S::Ok, S::Error> {
    let none = T::default();
    to.collect_map(
        keys(key)
            .enumerate()
            .map(|(i, key)| (key, values.get(i).unwrap_or(&none))),
    )
}

fn read<'de, T, D>(from: D, key: Key) -> Result<Vec<T>, D::Error>
where
    T: DeserializeOwned + Default,
    D: Deserializer<'de>,
{
    let mut fields = BTreeMap::<String, Value>::deserialize(from)?;
    let mut value = |key: String| match fields.remove(&key) {
        None => Ok(T::default()),
        Some(value) => {
            serde_json::from_value(value).map_err(|e| D::Error::custom(format_args!("`{key}`: {e}")))
        }
    };
    keys(key).map(&mut value).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compare<'a>(prediction: &'a [i32], reference: &'a [i32], ignore: Option<i32>) -> Comparison<'a> {
        Comparison::new(
            prediction,
            reference,
            [1, 1, prediction.len()],
            [1.0, 2.0, 5.0],
            ignore,
        )
    }

    #[test]
    fn dice_is_twice_the_overlap_over_the_sum() {
        let prediction = [0, 1, 1, 1, 2, 0, 9, 1];
        let reference = [0, 1, 1, 0, 0, 2, 9, 5];
        let dice = |ignore| {
            let scores = compare(&prediction, &reference, ignore).scores();
            [0, 1, 2, 9, 3].map(|label| scores.get(&label).and_then(|scores| scores[0]))
        };
        // neither the background nor a label that occurs nowhere has a score
        assert_eq!(dice(None), [None, Some(4.0 / 6.0), Some(0.0), Some(1.0), None]);
        // without the voxel whose reference is 5, label 1 has three predicted voxels
        assert_eq!(dice(Some(5))[1], Some(4.0 / 5.0));
        assert_eq!(dice(Some(9))[3], None);
        assert!(compare(&[], &[], None).scores().is_empty());
    }

    #[test]
    fn metrics_know_spacing_unit_and_direction() {
        let scores = compare(&[1, 1, 1, 0], &[1, 0, 0, 0], None).scores();
        assert_eq!(scores[&1], [Some(0.5), Some(0.02)]);
        let [dice, error] = METRICS else {
            panic!("two in this crate's tests")
        };
        assert!(dice.is_better(0.6, 0.5) && !dice.is_better(0.5, 0.5));
        assert!(error.is_better(0.5, 0.6) && !error.is_better(0.6, 0.5));
        assert_eq!((dice.heading().as_str(), dice.shown(0.25)), ("Dice %", 25.0));
        assert_eq!(
            (error.heading().as_str(), error.shown(0.25)),
            ("volume error ml", 0.25)
        );
    }

    #[test]
    fn every_metric_has_fields_of_its_own_and_prefers_what_agrees() {
        let reference = [0, 1, 1, 2, 2, 2, 1, 0];
        for metric in METRICS {
            let score = |prediction: &[i32]| {
                (metric.score)(&compare(prediction, &reference, None), 1).expect("both maps have the label")
            };
            let (same, other) = (score(&reference), score(&[1, 1, 2, 2, 0, 0, 0, 0]));
            assert!(metric.is_better(same, other), "{}: {same} {other}", metric.name);
            let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
            assert!(metric.name.chars().all(plain), "{}", metric.name);
            let again = METRICS.iter().filter(|m| m.name == metric.name).count();
            assert_eq!(again, 1, "{}", metric.name);
        }
    }

    #[test]
    fn records_have_a_field_for_each_metric_and_take_those_of_other_versions() {
        #[derive(Debug, PartialEq, Serialize, serde::Deserialize)]
        struct Record {
            case: String,
            #[serde(flatten, with = "by_name")]
            scores: Vec<Vec<Option<f64>>>,
            #[serde(flatten, with = "mean_of_first")]
            means: Vec<Option<f64>>,
        }
        let record = Record {
            case: "a".into(),
            scores: vec![vec![None, Some(0.5)]],
            means: vec![Some(0.5), Some(1.0)],
        };
        let text = serde_json::to_string(&record).unwrap();
        let expected =
            r#"{"case":"a","dice":[null,0.5],"volume_error":[],"mean":0.5,"mean_volume_error":1.0}"#;
        assert_eq!(text, expected);
        let back: Record = serde_json::from_str(&text).unwrap();
        assert_eq!(back.scores, [vec![None, Some(0.5)], vec![]]);
        assert_eq!(back.means, record.means);
        let other = r#"{"case":"a","later":{"b":1},"dice":[0.5],"mean":0.5,"hausdorff":[1.0]}"#;
        let other: Record = serde_json::from_str(other).unwrap();
        assert_eq!(
            (other.scores[0].as_slice(), other.means),
            ([Some(0.5)].as_slice(), vec![Some(0.5), None])
        );
        let error = serde_json::from_str::<Record>(r#"{"case":"a","dice":3}"#).unwrap_err();
        assert!(error.to_string().contains("`dice`"), "{error}");
    }
}

//! How well a label map agrees with a reference one. A metric is one entry of [`METRICS`]: reports, tables, logs, columns,
//! fields of files and pictures follow from it. `docs/metrics.md` has the formulas, their sources and what empty labels give.

mod distance;
mod surface;

use std::collections::BTreeMap;

use serde::de::{Deserialize, Deserializer, Error};
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use serde_json::Value;

pub use crate::statistics::mean;
pub use surface::Surface;

use crate::host_memory::TooLarge;
use surface::Bounds;

/// A way to score a label of a predicted map.
#[derive(Debug)]
pub struct Metric {
    /// Its name in files: of fields, of columns (`dice_liver`) and of pictures (`dice.png`).
    pub name: &'static str,
    /// Its name for readers of tables, logs and pictures.
    pub title: &'static str,
    /// What its scores are measured in.
    pub unit: Unit,
    /// Which of two scores is the better one.
    pub better: Better,
    /// Whether it takes the distances between both surfaces, which cost far more than counting voxels.
    pub of_surfaces: bool,
    /// The score of a label that at least one of the maps has; `None` where the metric is not defined.
    pub score: fn(&LabelPair) -> Option<f64>,
}

/// What scores are measured in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// A number from 0 to 1, which tables show in percent.
    Fraction,
    /// A number above 0, which tables show in percent.
    Ratio,
    /// A unit by its symbol, such as `mm`.
    Symbol(&'static str),
}

/// Which scores are better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Better {
    /// Higher ones.
    Higher,
    /// Lower ones.
    Lower,
    /// None: it says how large something is.
    Neither,
}

/// Every metric. A training keeps the weights that score best by the first.
pub static METRICS: &[Metric] = &[
    Metric {
        name: "dice",
        title: "Dice",
        unit: Unit::Fraction,
        better: Better::Higher,
        of_surfaces: false,
        score: |label| {
            let o = label.overlap;
            Some(2.0 * o.both as f64 / (o.prediction + o.reference) as f64)
        },
    },
    Metric {
        name: "jaccard",
        title: "Jaccard",
        unit: Unit::Fraction,
        better: Better::Higher,
        of_surfaces: false,
        score: |label| {
            let o = label.overlap;
            Some(o.both as f64 / (o.prediction + o.reference - o.both) as f64)
        },
    },
    Metric {
        name: "precision",
        title: "precision",
        unit: Unit::Fraction,
        better: Better::Higher,
        of_surfaces: false,
        score: |label| share(label.overlap.both, label.overlap.prediction),
    },
    Metric {
        name: "recall",
        title: "recall",
        unit: Unit::Fraction,
        better: Better::Higher,
        of_surfaces: false,
        score: |label| share(label.overlap.both, label.overlap.reference),
    },
    Metric {
        name: "nsd",
        title: "surface Dice",
        unit: Unit::Fraction,
        better: Better::Higher,
        of_surfaces: true,
        score: |label| {
            let distances = label.distances.as_ref();
            Some(distances.map_or(0.0, |d| d.within(label.surfaces.tolerance)))
        },
    },
    Metric {
        name: "hd",
        title: "HD",
        unit: Unit::Symbol("mm"),
        better: Better::Lower,
        of_surfaces: true,
        score: |label| Some(label.distance(surface::Pair::hausdorff)),
    },
    Metric {
        name: "hd95",
        title: "HD95",
        unit: Unit::Symbol("mm"),
        better: Better::Lower,
        of_surfaces: true,
        score: |label| Some(label.distance(|d| d.quantile(0.95))),
    },
    Metric {
        name: "assd",
        title: "ASSD",
        unit: Unit::Symbol("mm"),
        better: Better::Lower,
        of_surfaces: true,
        score: |label| Some(label.distance(surface::Pair::mean)),
    },
    Metric {
        name: "volume",
        title: "volume",
        unit: Unit::Symbol("ml"),
        better: Better::Neither,
        of_surfaces: false,
        score: |label| Some(label.millilitres(label.overlap.prediction)),
    },
    Metric {
        name: "reference_volume",
        title: "reference volume",
        unit: Unit::Symbol("ml"),
        better: Better::Neither,
        of_surfaces: false,
        score: |label| Some(label.millilitres(label.overlap.reference)),
    },
    Metric {
        name: "volume_error",
        title: "volume error",
        unit: Unit::Symbol("ml"),
        better: Better::Lower,
        of_surfaces: false,
        score: |label| Some(label.millilitres(label.overlap.prediction.abs_diff(label.overlap.reference))),
    },
    Metric {
        name: "relative_volume_error",
        title: "relative volume error",
        unit: Unit::Ratio,
        better: Better::Lower,
        of_surfaces: false,
        score: |label| {
            let o = label.overlap;
            share(o.prediction.abs_diff(o.reference), o.reference)
        },
    },
];

/// A part of a whole, where there is a whole.
fn share(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

impl Metric {
    /// Title and unit, for a table: `Dice %`.
    pub fn heading(&self) -> String {
        match self.unit {
            Unit::Fraction | Unit::Ratio => format!("{} %", self.title),
            Unit::Symbol(unit) => format!("{} {unit}", self.title),
        }
    }

    /// A score in the unit of [`Metric::heading`].
    pub fn shown(&self, score: f64) -> f64 {
        match self.unit {
            Unit::Fraction | Unit::Ratio => 100.0 * score,
            Unit::Symbol(_) => score,
        }
    }

    /// Whether one score is better than another.
    pub fn is_better(&self, score: f64, other: f64) -> bool {
        match self.better {
            Better::Higher => score > other,
            Better::Lower => score < other,
            Better::Neither => false,
        }
    }
}

/// Which metrics are computed, and how those of surfaces are.
#[derive(Clone, Debug, PartialEq)]
pub struct Scoring {
    chosen: Choice,
    /// How surfaces are measured.
    pub surfaces: Surfaces,
}

/// Some of [`METRICS`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice(Vec<bool>);

/// How surfaces are measured.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, serde::Deserialize)]
pub struct Surfaces {
    /// What a surface is made of.
    pub definition: Surface,
    /// How far apart surfaces may be in mm that the surface Dice takes for the same.
    pub tolerance: f64,
    /// The distance in mm that a label gets which only one of the maps has.
    #[serde(with = "number")]
    pub missing: f64,
}

impl Default for Surfaces {
    /// Marching-cubes elements, 1 mm, infinite.
    fn default() -> Surfaces {
        Surfaces {
            definition: Surface::default(),
            tolerance: 1.0,
            missing: f64::INFINITY,
        }
    }
}

impl Choice {
    /// Every metric.
    pub fn all() -> Choice {
        Choice::of(|_| true)
    }

    /// The first metric.
    pub fn first() -> Choice {
        Choice::of(|metric| metric == 0)
    }

    /// Those of which this says so, by their place in [`METRICS`].
    pub fn of(chosen: impl Fn(usize) -> bool) -> Choice {
        Choice((0..METRICS.len()).map(chosen).collect())
    }

    /// Metrics by their names with commas between them, or `all`.
    ///
    /// # Errors
    /// A name that no metric has, in words.
    pub fn parse(text: &str) -> Result<Choice, String> {
        let mut choice = Choice::of(|_| false);
        for name in text.split(',').map(str::trim) {
            match METRICS.iter().position(|metric| metric.name == name) {
                Some(i) => choice.0[i] = true,
                None if name == "all" => choice = Choice::all(),
                None => {
                    let names: Vec<&str> = METRICS.iter().map(|metric| metric.name).collect();
                    return Err(format!(
                        "there is no metric `{name}`; they are {}, and all",
                        names.join(", ")
                    ));
                }
            }
        }
        Ok(choice)
    }

    /// Whether this one of [`METRICS`] is among them.
    pub fn has(&self, metric: usize) -> bool {
        self.0[metric]
    }

    /// Those that are among them, by their place in [`METRICS`].
    pub fn metrics(&self) -> impl Iterator<Item = usize> + '_ {
        (0..METRICS.len()).filter(|i| self.0[*i])
    }
}

impl Scoring {
    /// These metrics.
    pub fn new(chosen: Choice, surfaces: Surfaces) -> Scoring {
        Scoring { chosen, surfaces }
    }

    /// The first metric alone, which says during a training what its weights are worth.
    pub fn first() -> Scoring {
        Scoring::new(Choice::first(), Surfaces::default())
    }

    /// Every metric, surfaces as [`Surfaces::default`] has them.
    pub fn all() -> Scoring {
        Scoring::new(Choice::all(), Surfaces::default())
    }

    /// The metrics that are computed.
    pub fn chosen(&self) -> &Choice {
        &self.chosen
    }

    /// How surfaces are measured, where they are.
    pub fn measured_surfaces(&self) -> Option<Surfaces> {
        let any = self.chosen.metrics().any(|i| METRICS[i].of_surfaces);
        any.then_some(self.surfaces)
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

/// A label in both maps, for a metric.
#[derive(Debug)]
pub struct LabelPair {
    /// How many voxels have the label.
    pub overlap: Overlap,
    /// A voxel's volume in mm³.
    pub voxel: f64,
    surfaces: Surfaces,
    /// Where both maps have the label and a metric of surfaces is asked for.
    distances: Option<surface::Pair>,
}

impl LabelPair {
    /// So many voxels in ml.
    pub fn millilitres(&self, voxels: u64) -> f64 {
        voxels as f64 * self.voxel / 1000.0
    }

    fn distance(&self, of: impl Fn(&surface::Pair) -> f64) -> f64 {
        self.distances.as_ref().map_or(self.surfaces.missing, of)
    }
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
    /// Voxels whose reference has this value don't count, and have no label in either map.
    pub ignore: Option<i32>,
    overlaps: BTreeMap<i32, Overlap>,
}

/// Scores of one case by label, then by metric; `None` where a metric is not defined or not asked for.
pub type LabelScores = BTreeMap<i32, Vec<Option<f64>>>;

impl<'a> Comparison<'a> {
    /// Counts the voxels of every label.
    ///
    /// # Panics
    /// If the maps differ in length, or have another than their shape says.
    pub fn new(
        prediction: &'a [i32],
        reference: &'a [i32],
        shape: [usize; 3],
        spacing: [f64; 3],
        ignore: Option<i32>,
    ) -> Self {
        assert_eq!(
            prediction.len(),
            shape.iter().product::<usize>(),
            "voxels of the grid"
        );
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

    /// Every label but 0, the background, that occurs in one of the maps.
    pub fn labels(&self) -> impl Iterator<Item = i32> + '_ {
        self.overlaps.keys().copied().filter(|label| *label != 0)
    }

    /// The scores of every label but 0, the background, that occurs in one of the maps and is `wanted`.
    ///
    /// # Errors
    /// Surfaces for which there is no memory.
    pub fn scores(&self, scoring: &Scoring, wanted: impl Fn(i32) -> bool) -> Result<LabelScores, TooLarge> {
        let measured = scoring.measured_surfaces();
        let bounds = measured.map_or_else(BTreeMap::new, |_| self.bounds());
        let mut scores = LabelScores::new();
        for label in self.labels().filter(|label| wanted(*label)) {
            let overlap = self.overlap(label);
            let distances = match (measured, bounds.get(&label)) {
                (Some(surfaces), Some(bounds)) if overlap.prediction > 0 && overlap.reference > 0 => {
                    Some(self.distances(label, bounds, surfaces.definition)?)
                }
                _ => None,
            };
            scores.insert(label, self.score(label, scoring, distances));
        }
        Ok(scores)
    }

    /// The scores of every label by the first metric alone, as each epoch of a training has them: it takes no distances.
    pub fn first_scores(&self) -> LabelScores {
        let first = Scoring::first();
        self.labels()
            .map(|label| (label, self.score(label, &first, None)))
            .collect()
    }

    fn score(&self, label: i32, scoring: &Scoring, distances: Option<surface::Pair>) -> Vec<Option<f64>> {
        let pair = LabelPair {
            overlap: self.overlap(label),
            voxel: self.spacing.iter().product(),
            surfaces: scoring.surfaces,
            distances,
        };
        let score = |(i, metric): (usize, &Metric)| match scoring.chosen.has(i) {
            true => (metric.score)(&pair),
            false => None,
        };
        METRICS.iter().enumerate().map(score).collect()
    }

    /// The box that each label lies in, in both maps together.
    fn bounds(&self) -> BTreeMap<i32, Bounds> {
        let [_, rows, columns] = self.shape;
        let mut all = BTreeMap::new();
        let mut add = |label: i32, row: usize, from: usize, to: usize| {
            if label == 0 {
                return;
            }
            let bounds = all.entry(label).or_insert(Bounds {
                low: self.shape,
                high: [0; 3],
            });
            for (axis, (first, end)) in [
                (row / rows, row / rows + 1),
                (row % rows, row % rows + 1),
                (from, to),
            ]
            .into_iter()
            .enumerate()
            {
                bounds.low[axis] = bounds.low[axis].min(first);
                bounds.high[axis] = bounds.high[axis].max(end);
            }
        };
        let lines =
            (self.prediction.chunks_exact(columns.max(1))).zip(self.reference.chunks_exact(columns.max(1)));
        for (row, (predicted, expected)) in lines.enumerate() {
            let mut from = 0;
            while from < columns {
                let pair = (predicted[from], expected[from]);
                let mut to = from + 1;
                while to < columns && (predicted[to], expected[to]) == pair {
                    to += 1;
                }
                if Some(pair.1) != self.ignore {
                    add(pair.0, row, from, to);
                    add(pair.1, row, from, to);
                }
                from = to;
            }
        }
        all
    }

    /// How far apart both surfaces of a label are, within its box.
    fn distances(&self, label: i32, bounds: &Bounds, surface: Surface) -> Result<surface::Pair, TooLarge> {
        let [_, rows, columns] = self.shape;
        let mask = |map: &[i32]| {
            let mut mask = Vec::with_capacity(bounds.size().iter().product());
            for plane in bounds.low[0]..bounds.high[0] {
                for row in bounds.low[1]..bounds.high[1] {
                    let line = (plane * rows + row) * columns;
                    let line = line + bounds.low[2]..line + bounds.high[2];
                    let voxels = map[line.clone()].iter().zip(&self.reference[line]);
                    mask.extend(
                        voxels.map(|(v, expected)| u8::from(*v == label && Some(*expected) != self.ignore)),
                    );
                }
            }
            mask
        };
        let (prediction, reference) = (mask(self.prediction), mask(self.reference));
        surface::Pair::between([&prediction, &reference], bounds.size(), self.spacing, surface)
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

/// A number of a file that may be infinite, which JSON has no number for: `"inf"`.
pub(crate) mod number {
    use super::*;

    pub fn serialize<S: Serializer>(number: &f64, to: S) -> Result<S::Ok, S::Error> {
        match number.is_finite() {
            true => to.serialize_f64(*number),
            false => to.serialize_str("inf"),
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
        optional_number::deserialize(from)?.ok_or_else(|| D::Error::custom("a number is missing"))
    }
}

/// As [`number`], of one that may be absent.
pub(crate) mod optional_number {
    use super::*;

    pub fn serialize<S: Serializer>(number: &Option<f64>, to: S) -> Result<S::Ok, S::Error> {
        match number {
            Some(number) => super::number::serialize(number, to),
            None => to.serialize_none(),
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<f64>, D::Error> {
        match Value::deserialize(from)? {
            Value::Null => Ok(None),
            Value::String(text) if text == "inf" => Ok(Some(f64::INFINITY)),
            other => other
                .as_f64()
                .map(Some)
                .ok_or_else(|| D::Error::custom(format_args!("{other} is no number"))),
        }
    }
}

/// What files hold for a metric.
pub(crate) trait Stored: Default {
    /// Whether there is nothing to hold.
    fn is_absent(&self) -> bool;
    fn write<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error>;
    fn read(value: Value) -> Result<Self, serde_json::Error>;
}

impl Stored for Option<f64> {
    fn is_absent(&self) -> bool {
        self.is_none()
    }

    fn write<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        optional_number::serialize(self, to)
    }

    fn read(value: Value) -> Result<Self, serde_json::Error> {
        optional_number::deserialize(value)
    }
}

impl<T: Stored> Stored for Vec<T> {
    fn is_absent(&self) -> bool {
        self.is_empty()
    }

    fn write<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(self.iter().map(Written))
    }

    fn read(value: Value) -> Result<Self, serde_json::Error> {
        let values: Vec<Value> = serde_json::from_value(value)?;
        values.into_iter().map(T::read).collect()
    }
}

/// For serde, as [`Stored`] has it.
struct Written<'a, T>(&'a T);

impl<T: Stored> Serialize for Written<'_, T> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        self.0.write(to)
    }
}

/// For `#[serde(flatten, with = …)]`: a list with a value for each metric, as a field for each. Metrics without a value are left
/// out, but for the first; those that a file does not have are read as the type's default.
macro_rules! fields {
    ($($(#[$doc:meta])* $module:ident: $key:expr;)*) => { $(
        $(#[$doc])*
        pub(crate) mod $module {
            use super::*;

            pub fn serialize<T: Stored, S: Serializer>(values: &[T], to: S) -> Result<S::Ok, S::Error> {
                write(values, to, $key)
            }

            pub fn deserialize<'de, T: Stored, D: Deserializer<'de>>(from: D) -> Result<Vec<T>, D::Error> {
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

fn write<T: Stored, S: Serializer>(values: &[T], to: S, key: Key) -> Result<S::Ok, S::Error> {
    let none = T::default();
    let mut map = to.serialize_map(None)?;
    for (i, key) in keys(key).enumerate() {
        let value = values.get(i).unwrap_or(&none);
        if i == 0 || !value.is_absent() {
            map.serialize_entry(&key, &Written(value))?;
        }
    }
    map.end()
}

fn read<'de, T, D>(from: D, key: Key) -> Result<Vec<T>, D::Error>
where
    T: Stored,
    D: Deserializer<'de>,
{
    let mut fields = BTreeMap::<String, Value>::deserialize(from)?;
    let mut value = |key: String| match fields.remove(&key) {
        None => Ok(T::default()),
        Some(value) => T::read(value).map_err(|e| D::Error::custom(format_args!("`{key}`: {e}"))),
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

    fn all(maps: &Comparison) -> LabelScores {
        maps.scores(&Scoring::all(), |_| true).unwrap()
    }

    #[test]
    fn dice_is_twice_the_overlap_over_the_sum() {
        let prediction = [0, 1, 1, 1, 2, 0, 9, 1];
        let reference = [0, 1, 1, 0, 0, 2, 9, 5];
        let dice = |ignore| {
            let scores = all(&compare(&prediction, &reference, ignore));
            [0, 1, 2, 9, 3].map(|label| scores.get(&label).and_then(|scores| scores[0]))
        };
        // neither the background nor a label that occurs nowhere has a score
        assert_eq!(dice(None), [None, Some(4.0 / 6.0), Some(0.0), Some(1.0), None]);
        // without the voxel whose reference is 5, label 1 has three predicted voxels
        assert_eq!(dice(Some(5))[1], Some(4.0 / 5.0));
        assert_eq!(dice(Some(9))[3], None);
        assert!(all(&compare(&[], &[], None)).is_empty());
    }

    #[test]
    fn metrics_know_spacing_unit_and_direction() {
        let scores = all(&compare(&[1, 1, 1, 0], &[1, 0, 0, 0], None));
        let by_name = |name: &str| {
            let metric = METRICS.iter().position(|m| m.name == name).unwrap();
            (&METRICS[metric], scores[&1][metric].unwrap())
        };
        for (name, heading, shown) in [
            ("dice", "Dice %", 50.0),
            ("precision", "precision %", 100.0 / 3.0),
            ("recall", "recall %", 100.0),
            ("hd", "HD mm", 10.0),
            ("volume", "volume ml", 0.03),
            ("volume_error", "volume error ml", 0.02),
            ("relative_volume_error", "relative volume error %", 200.0),
        ] {
            let (metric, score) = by_name(name);
            assert_eq!(metric.heading(), heading);
            assert!((metric.shown(score) - shown).abs() < 1e-9, "{name} {score}");
        }
        let (dice, error) = (by_name("dice").0, by_name("volume_error").0);
        assert!(dice.is_better(0.6, 0.5) && !dice.is_better(0.5, 0.5));
        assert!(error.is_better(0.5, 0.6) && !error.is_better(0.6, 0.5));
    }

    #[test]
    fn every_metric_has_fields_of_its_own_and_prefers_what_agrees() {
        let reference = [0, 1, 1, 2, 2, 2, 1, 0];
        for (i, metric) in METRICS.iter().enumerate() {
            let score = |prediction: &[i32]| {
                all(&compare(prediction, &reference, None))[&1][i].expect("both maps have the label")
            };
            let (same, other) = (score(&reference), score(&[1, 1, 2, 2, 0, 0, 0, 0]));
            let sized = metric.better == Better::Neither;
            assert!(
                sized || metric.is_better(same, other),
                "{}: {same} {other}",
                metric.name
            );
            let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
            assert!(
                metric.name.chars().all(plain) && metric.name != "all",
                "{}",
                metric.name
            );
            let again = METRICS.iter().filter(|m| m.name == metric.name).count();
            assert_eq!(again, 1, "{}", metric.name);
        }
        assert!(
            !METRICS[0].of_surfaces,
            "each epoch of a training is scored by it"
        );
    }

    #[test]
    fn metrics_are_chosen_by_name() {
        let chosen = |text| Choice::parse(text).map(|choice| choice.metrics().collect::<Vec<_>>());
        assert_eq!(chosen("dice"), Ok(vec![0]));
        assert_eq!(chosen("hd95, dice"), Ok(vec![0, 6]));
        assert_eq!(Choice::parse("dice,all"), Ok(Choice::all()));
        for wrong in ["", "Dice", "dice,,hd", "hd95;hd"] {
            assert!(chosen(wrong).unwrap_err().contains("dice, jaccard"), "{wrong}");
        }
        let maps = compare(&[1, 0, 2], &[1, 1, 2], None);
        let scoring = Scoring::new(Choice::parse("recall").unwrap(), Surfaces::default());
        let scores = maps.scores(&scoring, |label| label == 1).unwrap();
        assert_eq!(scores.len(), 1);
        assert_eq!(scores[&1].iter().flatten().collect::<Vec<_>>(), [&0.5]);
        assert_eq!(scoring.measured_surfaces(), None);
        assert!(Scoring::all().measured_surfaces().is_some());
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
        let mut scores = vec![Vec::new(); METRICS.len()];
        scores[0] = vec![None, Some(0.5)];
        scores[5] = vec![Some(f64::INFINITY)];
        let mut means = vec![None; METRICS.len()];
        (means[0], means[5]) = (Some(0.5), Some(f64::INFINITY));
        let record = Record {
            case: "a".into(),
            scores,
            means,
        };
        let text = serde_json::to_string(&record).unwrap();
        let expected = r#"{"case":"a","dice":[null,0.5],"hd":["inf"],"mean":0.5,"mean_hd":"inf"}"#;
        assert_eq!(text, expected);
        assert_eq!(serde_json::from_str::<Record>(&text).unwrap(), record);
        let other = r#"{"case":"a","later":{"b":1},"dice":[0.5],"mean":0.5,"hausdorff":[1.0]}"#;
        let other: Record = serde_json::from_str(other).unwrap();
        assert_eq!(
            (other.scores[0].as_slice(), other.means[..2].to_vec()),
            ([Some(0.5)].as_slice(), vec![Some(0.5), None])
        );
        for wrong in [r#"{"case":"a","dice":3}"#, r#"{"case":"a","dice":["1"]}"#] {
            let error = serde_json::from_str::<Record>(wrong).unwrap_err();
            assert!(error.to_string().contains("`dice`"), "{error}");
        }
    }
}

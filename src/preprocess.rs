//! From a scan to the network's grid and back.
//!
//! A scan is turned to the run's orientation (exactly), its intensities are scaled, and it is resampled to the run's
//! spacing: an array `[C, D, H, W]` with D, H, W the oriented X, Y, Z. Training crops or pads it to the grid;
//! prediction covers it with tiles of the grid. Padding is 0 in scaled units: air for Hounsfield units / 1024 + 1,
//! the scan's mean for z-scores. The way back resamples logits, not labels, and undoes the turn exactly.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::dataset::{self, Dataset, DatasetError, Label};
use crate::host_memory::{self, TooLarge};
use crate::tensor::{Elements, Tensor};
use crate::volume::resample;
use crate::volume::{self, Geometry, Orientation, Reorientation, Volume, VolumeError};

/// What is done to every scan; stored with a run and with its weights, and checked where it is read
/// ([`Preprocessing::validate`]).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(remote = "Self")] // the two functions below go on from those that are derived
pub struct Preprocessing {
    /// The orientation of the network's D, H, W axes; `None`: as each scan is stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub orientation: Option<Orientation>,
    /// Millimetres from voxel to voxel along D, H, W; `None`: as each scan is stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spacing: Option<[f64; 3]>,
    /// Voxels of the network's input along D, H, W; `None`: as large as each scan.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grid: Option<[usize; 3]>,
    /// The value in label files that counts as nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ignore: Option<i32>,
    /// Input channels in order.
    pub channels: Vec<Channel>,
    /// The classes in order; the first is the background.
    pub labels: Vec<Label>,
}

impl<'de> Deserialize<'de> for Preprocessing {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Preprocessing, D::Error> {
        let preprocessing = Preprocessing::deserialize(deserializer)?;
        preprocessing.validate().map_err(D::Error::custom)?;
        Ok(preprocessing)
    }
}

impl Serialize for Preprocessing {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Preprocessing::serialize(self, serializer)
    }
}

/// An input channel.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Channel {
    /// Its name in dataset.json.
    pub name: String,
    /// How its intensities are scaled.
    pub intensity: Intensity,
}

/// How a channel's intensities become the network's input.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Intensity {
    /// (v − mean) / standard deviation over the whole scan; 0 where the scan is constant.
    ZScore,
    /// v / divisor + offset.
    Linear {
        /// What intensities are divided by.
        divisor: f32,
        /// What is added then.
        offset: f32,
    },
    /// The scan's quantiles of these ranks become 0 and 1, and what lies beyond them less and more: 0 and 1 for its least
    /// and largest value. 0 where the two are equal.
    Range {
        /// From 0 to 1.
        low: f32,
        /// From `low` to 1.
        high: f32,
    },
}

/// Mean and biased variance of some intensities.
pub(crate) fn moments(values: impl Iterator<Item = f32> + Clone) -> (f64, f64) {
    let (sum, count) = values
        .clone()
        .fold((0.0, 0.0), |(sum, count), v| (sum + f64::from(v), count + 1.0));
    let mean = sum / count;
    let variance = values.map(|v| (f64::from(v) - mean).powi(2)).sum::<f64>() / count;
    (mean, variance)
}

impl Intensity {
    /// Hounsfield units / 1024 + 1: air is 0, water 1 (the paper's scaling).
    pub const CT: Intensity = Intensity::Linear {
        divisor: 1024.0,
        offset: 1.0,
    };

    /// For networks that learned from images of label maps, whose intensities are between 0 and 1: bright specks don't count.
    pub const MADE: Intensity = Intensity::Range {
        low: 0.0,
        high: 0.995,
    };

    /// The least and the largest value become 0 and 1.
    pub const MIN_MAX: Intensity = Intensity::Range { low: 0.0, high: 1.0 };

    /// [`Intensity::CT`] for a channel called CT, z-scores for any other.
    pub fn of_channel(name: &str) -> Intensity {
        if name.trim().eq_ignore_ascii_case("ct") {
            Intensity::CT
        } else {
            Intensity::ZScore
        }
    }

    fn scale(self, values: &mut [f32]) {
        match self {
            Intensity::Linear { divisor, offset } => {
                values.iter_mut().for_each(|v| *v = *v / divisor + offset)
            }
            Intensity::Range { low, high } => {
                let (low, high) = quantiles(values, [low, high]);
                let range = if high > low { high - low } else { f32::INFINITY };
                values.iter_mut().for_each(|v| *v = (*v - low) / range);
            }
            Intensity::ZScore => {
                let (mean, variance) = moments(values.iter().copied());
                let factor = if variance > 0.0 {
                    variance.sqrt().recip()
                } else {
                    0.0
                };
                values
                    .iter_mut()
                    .for_each(|v| *v = ((f64::from(*v) - mean) * factor) as f32);
            }
        }
    }
}

/// What a user may decide instead of the dataset.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Overrides {
    /// Orientation of D, H, W.
    pub orientation: Option<Orientation>,
    /// Millimetres along D, H, W.
    pub spacing: Option<[f64; 3]>,
    /// Take each scan's voxels as they are stored, whatever their spacing.
    pub stored_spacing: bool,
    /// Voxels along D, H, W.
    pub grid: Option<[usize; 3]>,
}

/// A scan ready for the network.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// `[C, D, H, W]`, the whole scan.
    pub image: Tensor,
    /// The way back.
    pub placement: Placement,
}

/// How a prepared array lies in its scan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement {
    /// From the scan's axes to D, H, W.
    turn: Reorientation,
    /// The scan's voxels along D, H, W before resampling.
    oriented: [usize; 3],
    /// After resampling: the prepared array's D, H, W.
    resampled: [usize; 3],
}

impl Placement {
    /// D, H, W of the prepared array.
    pub fn shape(&self) -> [usize; 3] {
        self.resampled
    }

    /// Where a position in the scan's voxels (i, j, k; fractions too) lies in the prepared array (D, H, W).
    pub fn position(&self, voxel: [f64; 3]) -> [f64; 3] {
        let turned = self.turn.position(voxel, self.oriented);
        std::array::from_fn(|axis| {
            let factor = self.resampled[axis] as f64 / self.oriented[axis] as f64;
            (turned[axis] + 0.5) * factor - 0.5
        })
    }

    /// Millimetres from voxel to voxel of the prepared array (D, H, W), for a scan of that spacing.
    pub fn spacing(&self, scan: [f64; 3]) -> [f64; 3] {
        let turned = self.turn.permute(scan);
        std::array::from_fn(|axis| turned[axis] * self.oriented[axis] as f64 / self.resampled[axis] as f64)
    }

    /// Bytes of host memory that preparing a scan of so many channels takes at most, beside the scan: the turned array, the
    /// array resampled along one axis after the other, of which two are held at once, and the result.
    pub fn bytes(&self, channels: usize) -> u64 {
        let [from, to] = [self.oriented, self.resampled];
        let array = |shape: [usize; 3]| {
            host_memory::bytes(&[channels, shape[0], shape[1], shape[2]], size_of::<f32>())
        };
        let (first, second) = (array([to[0], from[1], from[2]]), array([to[0], to[1], from[2]]));
        let pairs = [
            first,
            first.saturating_add(second),
            second.saturating_add(array(to)),
        ];
        array(from).saturating_add(pairs.into_iter().max().unwrap_or(0))
    }

    /// Bytes of host memory that labels of the scan take at most while logits become them: classes, the highest logits, values
    /// before and after the turn.
    pub fn label_bytes(&self) -> u64 {
        host_memory::bytes(
            &self.oriented,
            size_of::<u16>() + size_of::<f32>() + 2 * size_of::<i32>(),
        )
    }

    /// Values `[D, H, W]` of the prepared grid, such as probabilities, as `[X, Y, Z]` on the scan's own: resampled linearly, then
    /// turned back.
    ///
    /// # Panics
    /// If there are not as many as [`Placement::shape`] says.
    pub fn restore(&self, values: &[f32]) -> Vec<f32> {
        let resampled = resample::linear(values, 1, self.resampled, self.oriented);
        self.turn.inverse().apply(&resampled, 1, self.oriented)
    }

    /// Of a scan that nothing is done to.
    #[cfg(test)]
    pub(crate) fn identity(shape: [usize; 3]) -> Placement {
        Placement {
            turn: Reorientation::of_axes([0, 1, 2]),
            oriented: shape,
            resampled: shape,
        }
    }

    /// Whether the prepared array has another grid than the scan.
    pub fn is_resampled(&self) -> bool {
        self.resampled != self.oriented
    }
}

/// A grid that every axis' `GRID_STEP`-th part divides suits networks that halve it three times.
const GRID_STEP: usize = 8;
const GRID_LEAST: usize = 16;

/// A spacing in mm that a grid can have.
///
/// # Errors
/// One that is not positive on every axis, or beyond what a scan's voxels measure.
pub fn check_spacing(spacing: [f64; 3]) -> Result<(), String> {
    match spacing.iter().all(|v| (1e-4..=1e4).contains(v)) {
        true => Ok(()),
        false => Err(format!(
            "the spacing {spacing:?} is not positive on every axis, between 0.0001 and 10000 mm"
        )),
    }
}

/// A number of voxels along each axis that a grid can have.
///
/// # Errors
/// No voxel along an axis, or 2^31 voxels and more in all.
pub fn check_grid(grid: [usize; 3]) -> Result<(), String> {
    match Elements::of(&grid).map(Elements::get) {
        Some(0) => Err(format!("the size {grid:?} is not positive on every axis")),
        Some(_) => Ok(()),
        None => Err(format!(
            "the size {grid:?} is more than {} voxels",
            Elements::MOST
        )),
    }
}

impl Preprocessing {
    /// Millimetres from voxel to voxel of the grid (D, H, W); 1 where scans are taken as they are stored.
    pub fn grid_spacing(&self) -> [f64; 3] {
        self.spacing.unwrap_or([1.0; 3])
    }

    /// The settings that suit a dataset: its most common orientation (the first in alphabetical order among
    /// equals), the median spacing per axis in that orientation, and a grid that holds 95 % of the resampled scans
    /// per axis, in multiples of 8, at least 16.
    ///
    /// # Errors
    /// A scan whose header cannot be read or declares no spacing, and overrides that make no sense.
    pub fn derive(dataset: &Dataset, overrides: Overrides) -> Result<Preprocessing, DatasetError> {
        let refuse = |problem: String| DatasetError::Invalid {
            path: dataset.folder.clone(),
            problem,
        };
        overrides.spacing.map_or(Ok(()), check_spacing).map_err(refuse)?;
        overrides.grid.map_or(Ok(()), check_grid).map_err(refuse)?;
        let mut geometries = Vec::new();
        for case in &dataset.cases {
            let (geometry, _) = volume::read_geometry(&case.images[0])?;
            if geometry.spacing.contains(&0.0) && !overrides.stored_spacing {
                return Err(undeclared_spacing(&geometry, &case.images[0]).into());
            }
            geometries.push(geometry);
        }
        let orientation = overrides.orientation.unwrap_or_else(|| {
            let mut counts: BTreeMap<String, (usize, Orientation)> = BTreeMap::new();
            for geometry in &geometries {
                counts
                    .entry(geometry.orientation.to_string())
                    .or_insert((0, geometry.orientation))
                    .0 += 1;
            }
            // max_by_key keeps the last of equals
            counts
                .into_values()
                .rev()
                .max_by_key(|(count, _)| *count)
                .map_or(Orientation::RAS, |(_, code)| code)
        });
        let oriented: Vec<([usize; 3], [f64; 3])> = geometries
            .iter()
            .map(|g| {
                let turn = g.orientation.to(orientation);
                (turn.permute(g.shape), turn.permute(g.spacing))
            })
            .collect();
        let axis = |values: &dyn Fn(usize) -> f64, rank: f64| {
            let mut sorted: Vec<f64> = (0..oriented.len()).map(values).collect();
            sorted.sort_by(f64::total_cmp);
            quantile(&sorted, rank)
        };
        let median = || std::array::from_fn(|a| (axis(&|i| oriented[i].1[a], 0.5) * 1e6).round() / 1e6);
        let spacing = match overrides.stored_spacing {
            true => None,
            false => Some(overrides.spacing.unwrap_or_else(median)),
        };
        let resampled: Vec<[usize; 3]> = oriented
            .iter()
            .map(|(shape, own)| match spacing {
                None => *shape,
                Some(target) => resample::resampled_shape(*shape, *own, target),
            })
            .collect();
        let grid = overrides.grid.unwrap_or_else(|| {
            std::array::from_fn(|a| {
                let size = axis(&|i| resampled[i][a] as f64, 0.95).ceil() as usize;
                size.next_multiple_of(GRID_STEP).max(GRID_LEAST)
            })
        });
        check_grid(grid).map_err(refuse)?;
        Ok(Preprocessing {
            orientation: Some(orientation),
            spacing,
            grid: Some(grid),
            ignore: dataset.ignore,
            channels: dataset
                .channels
                .iter()
                .map(|name| Channel {
                    name: name.clone(),
                    intensity: match dataset.synthesis {
                        Some(_) => Intensity::MADE,
                        None => Intensity::of_channel(name),
                    },
                })
                .collect(),
            labels: dataset.labels.clone(),
        })
    }

    /// Whether these settings make sense.
    ///
    /// # Errors
    /// A spacing or a grid that can't be, no channel, an intensity scaled by nothing, and labels of one value.
    pub fn validate(&self) -> Result<(), String> {
        self.spacing.map_or(Ok(()), check_spacing)?;
        self.grid.map_or(Ok(()), check_grid)?;
        if self.channels.is_empty() {
            return Err("there is no channel".into());
        }
        let channels = self.channels.iter().map(|c| &c.name);
        let mut names = channels.chain(self.labels.iter().map(|l| &l.name));
        if let Some(name) = names.find(|name| name.chars().any(char::is_control)) {
            return Err(format!("`{}` is no name", name.escape_debug()));
        }
        for Channel { name, intensity } in &self.channels {
            match intensity {
                Intensity::Linear { divisor, offset } if !(divisor.is_normal() && offset.is_finite()) => {
                    return Err(format!(
                        "the channel {name} is divided by {divisor} and offset by {offset}"
                    ));
                }
                Intensity::Range { low, high } if !(0.0 <= *low && low < high && *high <= 1.0) => {
                    return Err(format!(
                        "the channel {name} has intensities from quantile {low} to {high}"
                    ));
                }
                _ => {}
            }
        }
        if self.labels.len() < 2 {
            let labels = self.labels.len();
            return Err(format!(
                "{labels} labels, where a background and another are the least"
            ));
        }
        let mut values: Vec<i32> = self.labels.iter().map(|l| l.value).chain(self.ignore).collect();
        values.sort_unstable();
        match values.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(format!("two labels have the value {}", pair[0])),
            None => Ok(()),
        }
    }

    /// Names of the labels but the background, in order.
    pub fn foreground_names(&self) -> Vec<String> {
        self.labels.iter().skip(1).map(|l| l.name.clone()).collect()
    }

    /// How a scan of this geometry is brought to the network.
    ///
    /// # Errors
    /// An undeclared spacing where one is needed, or a resampled size beyond reason: hardly a voxel along an axis, or 2^31
    /// together. `source` is named in them.
    pub fn place(&self, geometry: &Geometry, source: &std::path::Path) -> Result<Placement, VolumeError> {
        let turn = geometry
            .orientation
            .to(self.orientation.unwrap_or(geometry.orientation));
        let oriented = turn.permute(geometry.shape);
        let resampled = match self.spacing {
            None => oriented,
            Some(_) if geometry.spacing.contains(&0.0) => return Err(undeclared_spacing(geometry, source)),
            Some(target) => resample::resampled_shape(oriented, turn.permute(geometry.spacing), target),
        };
        let refuse = |problem: String| VolumeError::Format {
            path: source.into(),
            problem: format!(
                "{geometry} would be resampled to {:?} mm: {problem}",
                self.spacing.unwrap_or_default()
            ),
        };
        if let Some(target) = self.spacing {
            let spacing = turn.permute(geometry.spacing);
            let vanishes = |a: usize| oriented[a] > 1 && oriented[a] as f64 * spacing[a] < target[a] / 2.0;
            if (0..3).any(vanishes) {
                return Err(refuse(
                    "less than half a voxel is left along an axis; check the voxel size and the unit in its header".into(),
                ));
            }
            check_grid(resampled).map_err(|problem| refuse(format!("{problem}; use a coarser spacing")))?;
        }
        Ok(Placement {
            turn,
            oriented,
            resampled,
        })
    }

    /// Whether a scan has as many channels as the network takes.
    ///
    /// # Errors
    /// Another number, with the names of those that are expected.
    pub fn check_channels(&self, scan: &Volume) -> Result<(), VolumeError> {
        if scan.channels != self.channels.len() {
            let names: Vec<&str> = self.channels.iter().map(|c| c.name.as_str()).collect();
            let problem = format!(
                "the scan has {} channels, the network takes {}: {names:?}",
                scan.channels,
                names.len()
            );
            return Err(VolumeError::Format {
                path: scan.source.clone(),
                problem,
            });
        }
        Ok(())
    }

    /// Turns, scales and resamples a scan.
    ///
    /// # Errors
    /// Another number of channels than expected, more than there is memory for, and those of [`Preprocessing::place`].
    pub fn prepare_image(&self, scan: &Volume) -> Result<Prepared, VolumeError> {
        self.check_channels(scan)?;
        let placement = self.place(&scan.geometry, &scan.source)?;
        host_memory::require(placement.bytes(scan.channels)).map_err(|cause| VolumeError::Memory {
            path: scan.source.clone(),
            what: format!(
                "{} channels of {:?} voxels, resampled to {:?}",
                scan.channels, placement.oriented, placement.resampled
            ),
            cause,
        })?;
        let mut data = placement
            .turn
            .apply(&scan.data, scan.channels, scan.geometry.shape);
        // after the turn, so that the sum's order, and with it its rounding, is that of every twin of the scan
        for (values, channel) in data.chunks_exact_mut(scan.geometry.voxels()).zip(&self.channels) {
            channel.intensity.scale(values);
        }
        let [d, h, w] = placement.resampled;
        let data = resample::linear(&data, scan.channels, placement.oriented, placement.resampled);
        Ok(Prepared {
            image: Tensor::new(&[scan.channels, d, h, w], data),
            placement,
        })
    }

    /// Turns and resamples (nearest voxel) a label map to class indices `[1, D, H, W]`; −1 is to be ignored.
    ///
    /// # Errors
    /// Values that no label has, voxels that are no labels, and those of [`Preprocessing::place`].
    pub fn prepare_labels(&self, map: &Volume) -> Result<Tensor, VolumeError> {
        let placement = self.place(&map.geometry, &map.source)?;
        let classes = dataset::classes(map, &self.labels, self.ignore)?;
        let turned = placement.turn.apply(&classes, 1, map.geometry.shape);
        let [d, h, w] = placement.resampled;
        Ok(Tensor::new(
            &[1, d, h, w],
            resample::nearest(&turned, placement.oriented, placement.resampled),
        ))
    }

    /// The label map `[X, Y, Z]` in file values, on the scan's own grid, of logits `[L, D, H, W]` on its prepared
    /// grid: resampled, then the highest taken, then turned back.
    ///
    /// # Panics
    /// If the logits are not those of `placement` or there are not as many as labels.
    pub fn restore_labels(&self, logits: &Tensor, placement: &Placement) -> Vec<i32> {
        let [d, h, w] = placement.resampled;
        assert_eq!(logits.shape, [self.labels.len(), d, h, w]);
        let classes = resample::argmax(
            &logits.data,
            self.labels.len(),
            placement.resampled,
            placement.oriented,
        );
        self.restore(classes.into_iter().map(usize::from), placement)
    }

    /// [`Preprocessing::restore_labels`] of classes `[1, D, H, W]` where nothing is resampled.
    ///
    /// # Panics
    /// If the classes are not those of `placement`, which is resampled or not.
    pub fn restore_classes(&self, classes: &Tensor, placement: &Placement) -> Vec<i32> {
        let [d, h, w] = placement.oriented;
        assert_eq!(classes.shape, [1, d, h, w]);
        self.restore(classes.data.iter().map(|class| *class as usize), placement)
    }

    fn restore(&self, classes: impl Iterator<Item = usize>, placement: &Placement) -> Vec<i32> {
        let values: Vec<i32> = classes.map(|class| self.labels[class].value).collect();
        placement.turn.inverse().apply(&values, 1, placement.oriented)
    }
}

impl fmt::Display for Preprocessing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let own = "as stored".to_string();
        let axes = |values: &[String; 3]| values.join(" × ");
        let orientation = self.orientation.map_or(own.clone(), |o| o.to_string());
        let spacing = self
            .spacing
            .map_or(own.clone(), |s| format!("{} mm", axes(&s.map(|v| v.to_string()))));
        let grid = self
            .grid
            .map_or(own, |g| format!("{} voxels", axes(&g.map(|v| v.to_string()))));
        writeln!(f, "orientation  {orientation}")?;
        writeln!(f, "spacing      {spacing}")?;
        writeln!(f, "grid         {grid}")?;
        for Channel { name, intensity } in &self.channels {
            match intensity {
                Intensity::ZScore => writeln!(f, "channel      {name}: z-score of each scan")?,
                Intensity::Linear { divisor, offset } => {
                    writeln!(f, "channel      {name}: intensity / {divisor} + {offset}")?;
                }
                Intensity::Range { low, high } => {
                    writeln!(
                        f,
                        "channel      {name}: quantiles {low} and {high} of each scan to 0 and 1"
                    )?;
                }
            }
        }
        let mut labels: Vec<String> = self.labels.iter().map(Label::to_string).collect();
        labels.extend(self.ignore.map(|value| format!("{value} is ignored")));
        write!(f, "labels       {}", labels.join(", "))
    }
}

/// The refusal of a scan whose header says no size of its voxels.
pub(crate) fn undeclared_spacing(geometry: &Geometry, source: &std::path::Path) -> VolumeError {
    VolumeError::Format {
        path: source.into(),
        problem: format!(
            "it does not declare the size of its voxels (pixdim {:?}); write it into the header, \
             or use a network that takes scans as stored",
            &geometry.header.pixdim[1..]
        ),
    }
}

/// numpy's percentile with linear interpolation.
fn quantile(sorted: &[f64], rank: f64) -> f64 {
    let position = rank * (sorted.len() - 1) as f64;
    let low = position.floor() as usize;
    let high = sorted[(low + 1).min(sorted.len() - 1)];
    sorted[low] + (high - sorted[low]) * position.fract()
}

/// Two quantiles of some values, each between two neighbours in proportion, as numpy's; least and largest value without a
/// copy of them all.
fn quantiles(values: &[f32], ranks: [f32; 2]) -> (f32, f32) {
    let least = values.iter().copied().fold(f32::INFINITY, f32::min);
    let largest = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if ranks == [0.0, 1.0] {
        return (least, largest);
    }
    let mut values = values.to_vec();
    let [low, high] = ranks.map(|rank| {
        let position = f64::from(rank) * (values.len() - 1) as f64;
        let (_, at, above) = values.select_nth_unstable_by(position as usize, f32::total_cmp);
        let next = above.iter().copied().fold(f32::INFINITY, f32::min);
        let next = if next.is_finite() { next } else { *at };
        (f64::from(*at) + f64::from(next - *at) * position.fract()) as f32
    });
    (low, high)
}

/// The origin that centres a grid on an array (or the array in the grid), half a voxel lower where it must.
pub fn centre(shape: [usize; 3], grid: [usize; 3]) -> [isize; 3] {
    std::array::from_fn(|a| (shape[a] as isize - grid[a] as isize).div_euclid(2))
}

/// The part `[C, grid…]` of an array `[C, D, H, W]` that starts at voxel `origin`, which may lie outside; what is
/// beyond the array is `fill`: 0 for images, −1 (ignored) or 0 (background) for class indices.
///
/// # Panics
/// If the tensor has not four axes.
pub fn crop_or_pad(array: &Tensor, origin: [isize; 3], grid: [usize; 3], fill: f32) -> Tensor {
    let [channels, d, h, w] = array.shape[..] else {
        panic!("shape {:?} is not [C, D, H, W]", array.shape)
    };
    let data = crop_or_pad_values(&array.data, [d, h, w], origin, grid, fill);
    Tensor::new(&[channels, grid[0], grid[1], grid[2]], data)
}

/// [`crop_or_pad`] of any values: arrays of `shape` behind each other.
pub(crate) fn crop_or_pad_values<T: Copy>(
    values: &[T],
    shape: [usize; 3],
    origin: [isize; 3],
    grid: [usize; 3],
    fill: T,
) -> Vec<T> {
    let [d, h, w] = shape;
    let channels = values.len() / (d * h * w);
    let mut result = vec![fill; channels * grid.iter().product::<usize>()];
    // the overlap in the array's voxels
    let range = |axis: usize, n: usize| {
        let low = origin[axis].clamp(0, n as isize);
        let high = (origin[axis] + grid[axis] as isize).clamp(low, n as isize);
        (low as usize, high as usize)
    };
    let ([z0, z1], [y0, y1], [x0, x1]) = (range(0, d).into(), range(1, h).into(), range(2, w).into());
    let to = |axis: usize, n: usize| (n as isize - origin[axis]) as usize;
    if x0 == x1 {
        return result;
    }
    for c in 0..channels {
        for z in z0..z1 {
            for y in y0..y1 {
                let source = ((c * d + z) * h + y) * w;
                let target = ((c * grid[0] + to(0, z)) * grid[1] + to(1, y)) * grid[2] + to(2, x0);
                result[target..target + x1 - x0].copy_from_slice(&values[source + x0..source + x1]);
            }
        }
    }
    result
}

/// [`crop_or_pad_values`] of arrays that stay where nothing changes.
pub(crate) fn crop_or_pad_owned<T: Copy>(
    values: Vec<T>,
    shape: [usize; 3],
    origin: [isize; 3],
    grid: [usize; 3],
    fill: T,
) -> Vec<T> {
    match (origin, grid == shape) {
        ([0, 0, 0], true) => values,
        _ => crop_or_pad_values(&values, shape, origin, grid, fill),
    }
}

/// Voxels that a tile has at least along an axis where it does not cover the scan: smaller ones show a network nothing, and
/// there would be hundreds of thousands.
const LEAST_TILE: usize = 8;

/// Whether a scan of that shape can be cut into tiles of a grid.
///
/// # Errors
/// Along which axis the tiles would be too small.
pub fn check_tiles(shape: [usize; 3], grid: [usize; 3]) -> Result<(), String> {
    match (0..3).find(|a| grid[*a] < LEAST_TILE && grid[*a] < shape[*a]) {
        Some(a) => Err(format!(
            "a grid of {grid:?} voxels would cut a scan of {shape:?} into too many pieces; along {} it has to cover \
             {LEAST_TILE} voxels, or the scan",
            ["D", "H", "W"][a]
        )),
        None => Ok(()),
    }
}

/// Origins of the grids that cover an array: the centred one along an axis that fits, else evenly spaced ones that
/// overlap by half at least and end at the borders.
pub fn tiles(shape: [usize; 3], grid: [usize; 3]) -> Vec<[isize; 3]> {
    let starts: [Vec<isize>; 3] = std::array::from_fn(|a| {
        let Some(excess) = shape[a].checked_sub(grid[a]).filter(|e| *e > 0) else {
            return vec![centre(shape, grid)[a]];
        };
        let steps = excess.div_ceil(grid[a].div_ceil(2));
        (0..=steps)
            .map(|i| ((i * excess + steps / 2) / steps) as isize)
            .collect()
    });
    let mut origins = Vec::new();
    for z in &starts[0] {
        for y in &starts[1] {
            origins.extend(starts[2].iter().map(|x| [*z, *y, *x]));
        }
    }
    origins
}

/// Merges the logits of overlapping tiles into those of the whole array: a mean weighted by a Gaussian of σ = an
/// eighth of the grid around each tile's centre, as nnU-Net's. A single tile is copied as it is.
#[derive(Debug)]
pub struct TileMerger {
    sum: Tensor,
    /// Sum of weights per voxel; empty while a single tile suffices.
    weight: Vec<f32>,
    profile: [Vec<f32>; 3],
    shape: [usize; 3],
    grid: [usize; 3],
}

impl TileMerger {
    /// Bytes of host memory that merging such tiles takes.
    pub fn bytes(classes: usize, shape: [usize; 3], grid: [usize; 3]) -> u64 {
        let [d, h, w] = shape;
        let weighted = usize::from((0..3).any(|a| shape[a] > grid[a]));
        host_memory::bytes(&[classes + weighted, d, h, w], size_of::<f32>())
    }

    /// For the tiles of an array of `shape` and logits of `classes`.
    ///
    /// # Errors
    /// Logits of the whole array that there is no memory for.
    pub fn new(classes: usize, shape: [usize; 3], grid: [usize; 3]) -> Result<TileMerger, TooLarge> {
        let several = (0..3).any(|a| shape[a] > grid[a]);
        let profile = grid.map(|n| {
            let centre = (n as f64 - 1.0) / 2.0;
            (0..n)
                .map(|i| (-0.5 * ((i as f64 - centre) / (n as f64 / 8.0)).powi(2)).exp() as f32)
                .collect()
        });
        let [d, h, w] = shape;
        let weighted = usize::from(several);
        host_memory::require(TileMerger::bytes(classes, shape, grid))?;
        Ok(TileMerger {
            sum: Tensor::new(&[classes, d, h, w], host_memory::zeros(classes * d * h * w)?),
            weight: host_memory::zeros(weighted * d * h * w)?,
            profile,
            shape,
            grid,
        })
    }

    /// Adds the logits `[classes, grid…]` (a leading batch axis of 1 is fine) of the tile at `origin`.
    ///
    /// # Panics
    /// If the logits have another size.
    pub fn add(&mut self, origin: [isize; 3], logits: &[f32]) {
        let [d, h, w] = self.shape;
        let grid = self.grid;
        let classes = self.sum.shape[0];
        assert_eq!(
            logits.len(),
            classes * grid.iter().product::<usize>(),
            "logits of a tile of {grid:?}"
        );
        let inside = |axis: usize, n: usize| {
            let from = (-origin[axis]).clamp(0, grid[axis] as isize) as usize;
            let to = (n as isize - origin[axis]).clamp(from as isize, grid[axis] as isize) as usize;
            from..to
        };
        let at = |axis: usize, i: usize| (i as isize + origin[axis]) as usize;
        for z in inside(0, d) {
            for y in inside(1, h) {
                let plane_weight = self.profile[0][z] * self.profile[1][y];
                for x in inside(2, w) {
                    let target = (at(0, z) * h + at(1, y)) * w + at(2, x);
                    let source = (z * grid[1] + y) * grid[2] + x;
                    let weight = match self.weight.is_empty() {
                        true => 1.0,
                        false => plane_weight * self.profile[2][x],
                    };
                    if let Some(sum) = self.weight.get_mut(target) {
                        *sum += weight;
                    }
                    for class in 0..classes {
                        self.sum.data[class * d * h * w + target] +=
                            weight * logits[class * grid[0] * grid[1] * grid[2] + source];
                    }
                }
            }
        }
    }

    /// The merged logits `[classes, D, H, W]`.
    pub fn finish(mut self) -> Tensor {
        if !self.weight.is_empty() {
            for class in self.sum.data.chunks_exact_mut(self.weight.len()) {
                class
                    .iter_mut()
                    .zip(&self.weight)
                    .for_each(|(sum, weight)| *sum /= weight);
            }
        }
        self.sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(shape: &[usize]) -> Tensor {
        Tensor::new(shape, (0..shape.iter().product()).map(|i| i as f32).collect())
    }

    #[test]
    fn cropping_takes_what_is_there_and_fills_the_rest() {
        let array = count(&[2, 2, 3, 4]);
        let origin = [-1, 1, 2];
        let grid = [4, 3, 3];
        let got = crop_or_pad(&array, origin, grid, -5.0);
        assert_eq!(got.shape, [2, 4, 3, 3]);
        for c in 0..2 {
            for z in 0..4 {
                for y in 0..3 {
                    for x in 0..3 {
                        let [sz, sy, sx] = [z as isize - 1, y as isize + 1, x as isize + 2];
                        let inside = (0..2).contains(&sz) && (0..3).contains(&sy) && (0..4).contains(&sx);
                        let want = if inside {
                            (((c * 2 + sz) * 3 + sy) * 4 + sx) as f32
                        } else {
                            -5.0
                        };
                        assert_eq!(got.data[((c as usize * 4 + z) * 3 + y) * 3 + x], want);
                    }
                }
            }
        }
        for far in [[9, 0, 0], [0, -9, 0], [0, 0, 4], [0, 0, -3]] {
            assert!(
                crop_or_pad(&array, far, grid, 7.0).data.iter().all(|v| *v == 7.0),
                "{far:?}"
            );
        }
        assert_eq!(crop_or_pad(&array, [0; 3], [2, 3, 4], 0.0), array);
    }

    #[test]
    fn tiles_cover_everything_and_overlap_by_half() {
        assert_eq!(tiles([35, 51, 35], [40, 56, 40]), [[-3, -3, -3]]);
        assert_eq!(tiles([16, 16, 16], [16, 16, 16]), [[0, 0, 0]]);
        for n in 17..100 {
            let starts: Vec<isize> = tiles([n, 4, 4], [16, 4, 4]).iter().map(|o| o[0]).collect();
            assert_eq!(starts[0], 0);
            assert_eq!(*starts.last().unwrap(), n as isize - 16);
            assert!(
                starts.windows(2).all(|p| p[1] > p[0] && p[1] - p[0] <= 8),
                "{n}: {starts:?}"
            );
        }
        assert_eq!(tiles([20, 10, 30], [16, 16, 16]).len(), 6);
        for (shape, grid) in [
            ([20, 9, 30], [8, 8, 8]),
            ([1, 3, 30], [1, 3, 8]),
            ([1; 3], [3; 3]),
        ] {
            assert_eq!(check_tiles(shape, grid), Ok(()), "{shape:?} {grid:?}");
        }
        for (shape, grid) in [([20; 3], [1; 3]), ([20; 3], [20, 7, 20]), ([2, 9, 9], [1, 9, 9])] {
            assert!(check_tiles(shape, grid).is_err(), "{shape:?} {grid:?}");
        }
    }

    #[test]
    fn merging_tiles_of_one_array_gives_it_back() {
        for (shape, exact) in [
            ([7, 5, 8], true),
            ([8, 8, 8], true),
            ([19, 5, 8], false),
            ([13, 11, 21], false),
        ] {
            let grid = [8, 8, 8];
            let logits = count(&[3, shape[0], shape[1], shape[2]]);
            let mut merger = TileMerger::new(3, shape, grid).unwrap();
            for origin in tiles(shape, grid) {
                merger.add(origin, &crop_or_pad(&logits, origin, grid, f32::NAN).data);
            }
            let merged = merger.finish();
            assert_eq!(merged.shape, logits.shape);
            for (got, want) in merged.data.iter().zip(&logits.data) {
                assert!(
                    got == want || !exact && (got - want).abs() <= 1e-5 * want.abs(),
                    "{got} {want}"
                );
            }
        }
    }

    #[test]
    fn tiles_weigh_by_a_gaussian_around_their_centre() {
        let (shape, grid) = ([12, 1, 1], [8, 1, 1]);
        let mut merger = TileMerger::new(1, shape, grid).unwrap();
        let origins = tiles(shape, grid);
        assert_eq!(origins, [[0, 0, 0], [4, 0, 0]]);
        merger.add(origins[0], &[0.0; 8]);
        merger.add(origins[1], &[1.0; 8]);
        let merged = merger.finish().data;
        let gauss = |d: f64| (-0.5 * d * d).exp(); // σ = 1 for a grid of 8
        for (voxel, got) in merged.iter().enumerate() {
            let (a, b) = (gauss(voxel as f64 - 3.5), gauss(voxel as f64 - 7.5));
            let want = if voxel < 4 {
                0.0
            } else if voxel >= 8 {
                1.0
            } else {
                b / (a + b)
            };
            assert!(
                (f64::from(*got) - want).abs() < 1e-6,
                "{voxel}: {got} against {want}"
            );
        }
    }

    #[test]
    fn quantiles_are_numpys() {
        let sorted = [1.0, 2.0, 4.0, 8.0];
        assert_eq!(quantile(&sorted, 0.5), 3.0);
        assert!((quantile(&sorted, 0.95) - 7.4).abs() < 1e-12);
        assert_eq!(quantile(&[5.0], 0.95), 5.0);
    }

    #[test]
    fn intensities_scale_as_documented() {
        let mut ct = [-1024.0, 0.0, 1024.0];
        Intensity::of_channel(" ct").scale(&mut ct);
        assert_eq!(ct, [0.0, 1.0, 2.0]);
        let mut mr = [1.0, 2.0, 3.0, 4.0];
        Intensity::of_channel("MRI").scale(&mut mr);
        let unit = 1.25f32.sqrt();
        for (got, want) in mr.iter().zip([-1.5, -0.5, 0.5, 1.5]) {
            assert!((got - want / unit).abs() < 1e-6, "{mr:?}");
        }
        let mut range = [8.0, 1.0, 4.0, 2.0];
        Intensity::MIN_MAX.scale(&mut range);
        assert_eq!(range, [1.0, 0.0, 3.0 / 7.0, 1.0 / 7.0]);
        // numpy.quantile([8, 1, 4, 2], [0.05, 0.95]) is 1.15 and 7.4.
        let (low, high) = quantiles(&[8.0, 1.0, 4.0, 2.0], [0.05, 0.95]);
        assert!(
            (low - 1.15).abs() < 1e-6 && (high - 7.4).abs() < 1e-6,
            "{low} {high}"
        );
        let mut flat = [7.0; 4];
        Intensity::MIN_MAX.scale(&mut flat);
        assert_eq!(flat, [0.0; 4]);
        let mut flat = [7.0; 4];
        Intensity::ZScore.scale(&mut flat);
        assert_eq!(flat, [0.0; 4]);
    }
}

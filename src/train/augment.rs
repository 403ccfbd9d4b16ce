//! Augmentation: what changes scans before each step. Its numbers are drawn here by seed, step and case; the device does the work.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::Rng;
use rand_distr::{Distribution, StandardNormal};
use serde::{Deserialize, Serialize};

use super::data::augmentation;
use crate::dataset::Synthesis;
use crate::graph::{Graph, GraphError, Value};
use crate::op::affine_grid::AffineGrid;
use crate::op::axis_filter::AxisFilter;
use crate::op::grid_sample::{GridSample, Mode, Padding};
use crate::op::intensities::intensities;
use crate::op::paint::paint;
use crate::op::warp_grid::WarpGrid;
use crate::tensor::{Spec, Tensor};
#[cfg(feature = "cli")]
use crate::values;

/// A part of the augmentation: how often it is done, and how strongly.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(from = "[f32; 2]", into = "[f32; 2]")]
pub struct Part {
    /// Share of the cases that have it, 0 to 1.
    pub probability: f32,
    /// The most that is drawn; what it means is the part's.
    pub strength: f32,
}

impl From<[f32; 2]> for Part {
    fn from([probability, strength]: [f32; 2]) -> Self {
        Part {
            probability,
            strength,
        }
    }
}

impl From<Part> for [f32; 2] {
    fn from(part: Part) -> Self {
        [part.probability, part.strength]
    }
}

/// Axes that are mirrored, each in half of the cases: some of D, H and W.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Axes([bool; 3]);

impl std::str::FromStr for Axes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut axes = [false; 3];
        if text != "none" {
            for letter in text.chars() {
                let axis = "dhw".find(letter.to_ascii_lowercase());
                axes[axis.ok_or("it must be some of the axes d, h and w, such as dw, or none")?] = true;
            }
        }
        Ok(Axes(axes))
    }
}

impl TryFrom<String> for Axes {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl std::fmt::Display for Axes {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let letters: String = "dhw"
            .chars()
            .zip(self.0)
            .filter(|(_, on)| *on)
            .map(|(c, _)| c)
            .collect();
        f.write_str(if letters.is_empty() { "none" } else { &letters })
    }
}

impl From<Axes> for String {
    fn from(axes: Axes) -> Self {
        axes.to_string()
    }
}

/// How strong an augmentation is in all its parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[non_exhaustive]
pub enum Preset {
    /// Nothing
    None,
    /// A random affine map of every scan (the paper's)
    Affine,
    /// What nnU-Net does, but for mirroring
    Nnunet,
    /// More of it, with smooth deformation, bias fields and thick slices
    Strong,
    /// For images that are made of label maps (the default with --synthetic)
    Synthetic,
}

/// The parts beside [`Settings::affine`](super::Settings::affine); those that are absent are not done. Sparse training does those
/// that move voxels, but for the deformation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::Args), group(skip))]
#[cfg_attr(
    feature = "cli",
    command(next_help_heading = "Augmentation (P: share of the cases)")
)]
#[serde(default)]
#[non_exhaustive]
pub struct Augment {
    /// Axes that are mirrored, each in half of the cases, such as dhw.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "cli", arg(long, value_name = "AXES"))]
    pub mirror: Option<Axes>,
    /// Rotation about each axis by up to so many degrees.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "cli", arg(long, value_name = "P,DEGREES", value_parser = values::part))]
    pub rotation: Option<Part>,
    /// Zoom in or out, up to so many times.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "cli", arg(long, value_name = "P,TIMES", value_parser = values::factor_part))]
    pub zoom: Option<Part>,
    /// Smooth deformation, whose control points move by up to so many millimetres (standard deviation).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "cli", arg(long, value_name = "P,MM", value_parser = values::part))]
    pub deformation: Option<Part>,
    /// Gaussian noise of up to so many of the scan's standard deviations.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "cli", arg(long, value_name = "P,SIGMA", value_parser = values::part))]
    pub noise: Option<Part>,
    /// Gaussian blur of up to so many voxels (standard deviation).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "cli", arg(long, value_name = "P,VOXELS", value_parser = values::part))]
    pub blur: Option<Part>,
    /// Intensities times up to 1 ± so much.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "cli", arg(long, value_name = "P,SHARE", value_parser = values::share_part))]
    pub brightness: Option<Part>,
    /// Distances of intensities from their mean times up to 1 ± so much, within the scan's range.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "cli", arg(long, value_name = "P,SHARE", value_parser = values::share_part))]
    pub contrast: Option<Part>,
    /// Intensities, from 0 to 1 over the scan's range, to a power of up to so much or its inverse; mean and standard deviation stay.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "cli", arg(long, value_name = "P,POWER", value_parser = values::factor_part))]
    pub gamma: Option<Part>,
    /// The same of the inverted intensities.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "cli", arg(long, value_name = "P,POWER", value_parser = values::factor_part))]
    pub inverted_gamma: Option<Part>,
    /// A resolution lower by up to so many times along all axes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "cli", arg(long, value_name = "P,TIMES", value_parser = values::factor_part))]
    pub low_resolution: Option<Part>,
    /// Slices thicker by up to so many times along one axis.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "cli", arg(long, value_name = "P,TIMES", value_parser = values::factor_part))]
    pub thick_slices: Option<Part>,
    /// A smooth field that multiplies intensities above the darkest, its logarithm of up to so much (standard deviation).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "cli", arg(long, value_name = "P,SIGMA", value_parser = values::part))]
    pub bias_field: Option<Part>,
}

impl Preset {
    /// The standard deviation of the affine map's entries, and the other parts.
    pub fn parts(self) -> (f32, Augment) {
        let part = |probability, strength| {
            Some(Part {
                probability,
                strength,
            })
        };
        match self {
            Preset::None => (0.0, Augment::default()),
            Preset::Affine => (0.075, Augment::default()),
            // Probabilities and ranges of nnU-Net 2.8.1's default trainer.
            Preset::Nnunet => (
                0.0,
                Augment {
                    rotation: part(0.2, 30.0),
                    zoom: part(0.2, 1.4),
                    noise: part(0.1, 0.316),
                    blur: part(0.1, 1.0),
                    brightness: part(0.15, 0.25),
                    contrast: part(0.15, 0.25),
                    low_resolution: part(0.125, 2.0),
                    inverted_gamma: part(0.1, 1.5),
                    gamma: part(0.3, 1.5),
                    ..Augment::default()
                },
            ),
            // In the manner of SynthSeg (Billot et al. 2023): ranges of theirs, resolutions up to 5 times lower along one axis.
            Preset::Synthetic => (
                0.0,
                Augment {
                    rotation: part(1.0, 20.0),
                    zoom: part(1.0, 1.2),
                    deformation: part(1.0, 4.0),
                    noise: part(0.9, 0.15),
                    blur: part(1.0, 0.8),
                    gamma: part(0.9, 1.6),
                    low_resolution: part(0.2, 1.6),
                    thick_slices: part(0.4, 5.0),
                    bias_field: part(0.95, 0.5),
                    ..Augment::default()
                },
            ),
            Preset::Strong => (
                0.05,
                Augment {
                    mirror: None,
                    rotation: part(0.5, 20.0),
                    zoom: part(0.5, 1.25),
                    deformation: part(0.6, 3.0),
                    noise: part(0.3, 0.3),
                    blur: part(0.2, 1.0),
                    brightness: part(0.3, 0.25),
                    contrast: part(0.3, 0.35),
                    gamma: part(0.4, 1.6),
                    inverted_gamma: part(0.15, 1.6),
                    low_resolution: part(0.15, 2.0),
                    thick_slices: part(0.15, 3.0),
                    bias_field: part(0.3, 0.3),
                },
            ),
        }
    }
}

/// What a step's graph does to its scans, which says what inputs it has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Stages {
    /// Whether an affine map is sampled: input `theta`, `[N, 3, 4]`.
    pub moves: bool,
    /// And a deformation before it: input `displacement`, `[N, 3, d, h, w]`.
    pub deforms: bool,
    /// Whether scans are filtered along each axis: inputs `taps.D`, `taps.H`, `taps.W`.
    pub filters: bool,
    /// Whether intensities change: inputs `curve`, `sigma`, `bias`.
    pub shades: bool,
    /// Whether images are made of the labels, after those have been moved: inputs `made` and `learned`, `[N, 128, 2]`, in place of
    /// `image`.
    pub makes: bool,
}

/// Most taps of a filter.
const TAPS: usize = 32;
/// Points of a curve.
const POINTS: usize = 65;
const TAP_INPUTS: [&str; 3] = ["taps.D", "taps.H", "taps.W"];

/// Voxels of a displacement along an axis of so many.
fn coarse(n: usize) -> usize {
    n.div_ceil(4).max(2)
}

/// Voxels of a bias field along an axis of so many.
fn coarser(n: usize) -> usize {
    n.div_ceil(8).max(2)
}

impl Augment {
    /// Whether there is none.
    pub fn is_none(&self) -> bool {
        *self == Augment::default()
    }

    /// What a step does, with an affine map of these entries' standard deviation.
    pub(super) fn stages(&self, affine: f32, makes: bool) -> Stages {
        let some = |parts: &[&Option<Part>]| parts.iter().any(|part| part.is_some());
        let deforms = self.deformation.is_some();
        let turns = self.mirror.is_some() || some(&[&self.rotation, &self.zoom]);
        Stages {
            moves: affine > 0.0 || turns || deforms,
            deforms,
            filters: some(&[&self.blur, &self.low_resolution, &self.thick_slices]),
            shades: some(&[
                &self.noise,
                &self.brightness,
                &self.contrast,
                &self.gamma,
                &self.inverted_gamma,
                &self.bias_field,
            ]),
            makes,
        }
    }

    /// Whether a training can have these values.
    ///
    /// # Errors
    /// The first part that can't be, by its name.
    pub(super) fn check(&self) -> Result<(), String> {
        let any = |_: f32| true;
        let above = |strength: f32| strength >= 1.0;
        let below = |strength: f32| strength < 1.0;
        type Fits<'a> = &'a dyn Fn(f32) -> bool;
        let parts: [(&str, &Option<Part>, Fits, &str); 12] = [
            ("rotation", &self.rotation, &any, ""),
            ("zoom", &self.zoom, &above, ", from 1 on"),
            ("deformation", &self.deformation, &any, ""),
            ("noise", &self.noise, &any, ""),
            ("blur", &self.blur, &any, ""),
            ("brightness", &self.brightness, &below, " below 1"),
            ("contrast", &self.contrast, &below, " below 1"),
            ("gamma", &self.gamma, &above, ", from 1 on"),
            ("inverted_gamma", &self.inverted_gamma, &above, ", from 1 on"),
            ("low_resolution", &self.low_resolution, &above, ", from 1 on"),
            ("thick_slices", &self.thick_slices, &above, ", from 1 on"),
            ("bias_field", &self.bias_field, &any, ""),
        ];
        for (name, part, fits, how) in parts {
            let Some(Part {
                probability,
                strength,
            }) = part
            else {
                continue;
            };
            let good = (0.0..=1.0).contains(probability) && strength.is_finite() && *strength >= 0.0;
            if !good || !fits(*strength) {
                return Err(format!(
                    "`{name}` is [{probability}, {strength}]; it must be a share from 0 to 1 and a strength, 0 or above{how}"
                ));
            }
        }
        Ok(())
    }
}

impl Stages {
    /// Those that move voxels.
    pub fn of_places(self) -> Stages {
        Stages {
            moves: self.moves,
            ..Stages::default()
        }
    }

    /// Adds image and labels of a step, and what it does to them, with the inputs for all of it.
    pub fn add(self, graph: &mut Graph, shape: [usize; 5]) -> Result<(Value, Value), GraphError> {
        let [n, c, d, h, w] = shape;
        let size = [d, h, w];
        let mut labels = graph.input("labels", Spec::flat(&[n, 1, d, h, w]))?;
        let mut image = match self.makes {
            false => Some(graph.input("image", Spec::flat(&shape))?),
            true => None,
        };
        if self.moves {
            let theta = graph.input("theta", Spec::flat(&[n, 3, 4]))?;
            let grid = if self.deforms {
                let [a, b, c] = size.map(coarse);
                let displacement = graph.input("displacement", Spec::flat(&[n, 3, a, b, c]))?;
                graph.push1(WarpGrid { size }, &[theta, displacement])?
            } else {
                let align_corners = true;
                graph.push1(AffineGrid { size, align_corners }, &[theta])?
            };
            let sample = |mode, padding| GridSample {
                mode,
                padding,
                align_corners: true,
            };
            if let Some(image) = &mut image {
                *image = graph.push1(sample(Mode::Trilinear, Padding::Border), &[*image, grid])?;
            }
            labels = graph.push1(sample(Mode::Nearest, Padding::Zeros), &[labels, grid])?;
        }
        let mut image = match image {
            Some(image) => image,
            None => {
                let mut table = |name| graph.input(name, Spec::flat(&[n, Synthesis::MOST, 2]));
                let (made, learned) = (table("made")?, table("learned")?);
                let image = paint(graph, labels, made)?;
                labels = paint(graph, labels, learned)?;
                image
            }
        };
        if self.filters {
            for (axis, name) in TAP_INPUTS.iter().enumerate() {
                let taps = graph.input(name, Spec::flat(&[n, size[axis], 2 + TAPS]))?;
                image = graph.push1(AxisFilter { axis: axis + 2 }, &[image, taps])?;
            }
        }
        if self.shades {
            let curve = graph.input("curve", Spec::flat(&[n, c, 2 + POINTS]))?;
            let sigma = graph.input("sigma", Spec::flat(&[n, c]))?;
            let [x, y, z] = size.map(coarser);
            let bias = graph.input("bias", Spec::flat(&[n, 1, x, y, z]))?;
            image = intensities(graph, [image, curve, sigma, bias])?;
        }
        Ok((image, labels))
    }
}

/// The intensities of a case's channel.
#[derive(Clone, Debug)]
pub(super) struct Histogram {
    low: f64,
    high: f64,
    sd: f64,
    /// Shares of the voxels in bins between `low` and `high`, one fewer than a curve has points.
    shares: Vec<f64>,
}

impl Histogram {
    /// Of an image that is made: evenly from 0 to 1.
    pub fn made() -> Histogram {
        Histogram {
            low: 0.0,
            high: 1.0,
            sd: 0.25,
            shares: vec![1.0 / (POINTS - 1) as f64; POINTS - 1],
        }
    }

    /// Of each channel of an image `[C, D, H, W]`.
    pub fn of(image: &Tensor) -> Vec<Histogram> {
        let voxels = image.shape[1..].iter().product::<usize>().max(1);
        image
            .data
            .chunks_exact(voxels)
            .map(Histogram::of_channel)
            .collect()
    }

    fn of_channel(values: &[f32]) -> Histogram {
        let (low, high) = values
            .iter()
            .fold((f32::MAX, f32::MIN), |(low, high), v| (low.min(*v), high.max(*v)));
        let (low, high) = (f64::from(low), f64::from(high).max(f64::from(low) + 1e-6));
        let bins = POINTS - 1;
        let mut shares = vec![0.0; bins];
        for v in values {
            let bin = (f64::from(*v) - low) / (high - low) * bins as f64;
            shares[(bin as usize).min(bins - 1)] += 1.0 / values.len() as f64;
        }
        let (_, variance) = crate::preprocess::moments(values.iter().copied());
        Histogram {
            low,
            high,
            sd: variance.sqrt(),
            shares,
        }
    }

    /// Mean and standard deviation of the intensities that a curve makes.
    fn moments(&self, curve: &[f64]) -> (f64, f64) {
        let middles = || {
            curve
                .windows(2)
                .map(|pair| (pair[0] + pair[1]) / 2.0)
                .zip(&self.shares)
        };
        let mean: f64 = middles().map(|(v, share)| v * share).sum();
        let variance: f64 = middles().map(|(v, share)| (v - mean).powi(2) * share).sum();
        (mean, variance.sqrt())
    }
}

/// The numbers of a batch, item after item, for the inputs that [`Stages`] names.
#[derive(Default)]
pub(super) struct Drawn {
    theta: Vec<f32>,
    displacement: Vec<f32>,
    taps: [Vec<f32>; 3],
    curve: Vec<f32>,
    sigma: Vec<f32>,
    bias: Vec<f32>,
    made: Vec<f32>,
    learned: Vec<f32>,
}

/// A number from `low` to `high`.
fn uniform(rng: &mut ChaCha8Rng, low: f64, high: f64) -> f64 {
    low + (rng.next_u32() as f64 / u32::MAX as f64) * (high - low)
}

/// Whether a part is done to this case, and how strongly at most.
fn chosen(rng: &mut ChaCha8Rng, part: Option<Part>) -> Option<f64> {
    let part = part?;
    (uniform(rng, 0.0, 1.0) < f64::from(part.probability)).then_some(f64::from(part.strength))
}

/// Between 1 / most and most, as often below 1 as above.
fn factor(rng: &mut ChaCha8Rng, most: f64) -> f64 {
    let exponent = uniform(rng, -1.0, 1.0);
    most.powf(exponent)
}

/// a · b of affine maps in rows of four.
fn product(a: [f64; 12], b: [f64; 12]) -> [f64; 12] {
    std::array::from_fn(|i| {
        let (row, column) = (i / 4, i % 4);
        let own = if column == 3 { a[4 * row + 3] } else { 0.0 };
        (0..3).map(|k| a[4 * row + k] * b[4 * k + column]).sum::<f64>() + own
    })
}

/// Values of mean 0 and about variance 1 on a grid of `out` voxels, as cubic B-splines of normal random numbers at `knots` points
/// along each axis have them.
fn smooth_field(rng: &mut ChaCha8Rng, knots: usize, out: [usize; 3]) -> Vec<f64> {
    let controls = knots + 2; // a spline takes one beyond each end
    let mut values: Vec<f64> = (0..controls.pow(3)).map(|_| StandardNormal.sample(rng)).collect();
    let mut shape = [controls; 3];
    for axis in 0..3 {
        let inner: usize = shape[axis + 1..].iter().product();
        let outer: usize = shape[..axis].iter().product();
        let mut next = vec![0.0; outer * out[axis] * inner];
        for i in 0..out[axis] {
            let at = i as f64 * (knots - 1) as f64 / (out[axis] - 1).max(1) as f64;
            let before = (at as usize).min(knots - 2);
            let t = at - before as f64;
            let weights = [
                (1.0 - t).powi(3) / 6.0,
                (3.0 * t.powi(3) - 6.0 * t * t + 4.0) / 6.0,
                (-3.0 * t.powi(3) + 3.0 * t * t + 3.0 * t + 1.0) / 6.0,
                t.powi(3) / 6.0,
            ];
            for o in 0..outer {
                for k in 0..inner {
                    let value = |j: usize| values[(o * shape[axis] + before + j) * inner + k];
                    next[(o * out[axis] + i) * inner + k] = (0..4).map(|j| weights[j] * value(j)).sum();
                }
            }
        }
        values = next;
        shape[axis] = out[axis];
    }
    // At a knot the weights' squares sum to 1/2 along each axis.
    let scale = 0.5f64.powf(-1.5);
    values.iter_mut().for_each(|v| *v *= scale);
    values
}

/// A filter along an axis of so many voxels: first a Gaussian of `sigma` voxels, then values only at the voxels next to the centres
/// of `times` thicker ones, linear between. Rows as [`AxisFilter`] takes them.
fn taps(length: usize, sigma: f64, times: f64, rows: &mut Vec<f32>) {
    let radius = ((3.0 * sigma).ceil() as usize).min((TAPS - 2 - times.ceil() as usize) / 2);
    let gaussian: Vec<f64> = (0..=2 * radius)
        .map(|k| {
            let distance = k as f64 - radius as f64;
            match sigma > 0.0 {
                true => (-distance * distance / (2.0 * sigma * sigma)).exp(),
                false => 1.0,
            }
        })
        .collect();
    let total: f64 = gaussian.iter().sum();
    for i in 0..length {
        let thick = (i as f64 + 0.5) / times - 0.5;
        let last = ((length as f64 / times).round() as i64 - 1).max(0);
        let source = |j: i64| {
            let centre = (j.clamp(0, last) as f64 + 0.5) * times - 0.5;
            (centre.round() as i64).clamp(0, length as i64 - 1)
        };
        let before = thick.floor() as i64;
        let share = thick - thick.floor();
        let ends = match times > 1.0 {
            true => [(source(before), 1.0 - share), (source(before + 1), share)],
            false => [(i as i64, 1.0), (i as i64, 0.0)],
        };
        let first = ends[0].0 - radius as i64;
        let mut row = [0.0; TAPS];
        for (at, weight) in ends {
            for (k, g) in gaussian.iter().enumerate() {
                row[(at - radius as i64 - first) as usize + k] += weight * g / total;
            }
        }
        let count = (ends[1].0 - ends[0].0) as usize + gaussian.len();
        rows.extend([first as f32, count as f32]);
        rows.extend(row.map(|v| v as f32));
    }
}

impl Augment {
    /// The affine map of a case on a grid, from output to input in normalised coordinates (x, y, z): the random one of `affine`,
    /// then rotation, zoom and mirroring, about the grid's centre and in millimetres.
    pub(super) fn theta(
        &self,
        rng: &mut ChaCha8Rng,
        affine: f32,
        grid: [usize; 3],
        spacing: [f64; 3],
    ) -> [f32; 12] {
        let random = augmentation(rng, affine);
        let half = |axis: usize| (grid[2 - axis].max(2) - 1) as f64 * spacing[2 - axis] / 2.0;
        let mut theta = random.map(f64::from);
        let mut turned = false;
        if let Some(degrees) = chosen(rng, self.rotation) {
            for axis in 0..3 {
                let angle = uniform(rng, -degrees, degrees).to_radians();
                let (a, b) = ((axis + 1) % 3, (axis + 2) % 3);
                let mut rotation: [f64; 12] = std::array::from_fn(|i| f64::from(u8::from(i % 5 == 0)));
                (rotation[5 * a], rotation[5 * b]) = (angle.cos(), angle.cos());
                rotation[4 * a + b] = -angle.sin() * half(b) / half(a);
                rotation[4 * b + a] = angle.sin() * half(a) / half(b);
                theta = product(theta, rotation);
            }
            turned = true;
        }
        if let Some(most) = chosen(rng, self.zoom) {
            let factor = factor(rng, most);
            theta
                .iter_mut()
                .enumerate()
                .filter(|(i, _)| i % 4 < 3)
                .for_each(|(_, v)| *v *= factor);
            turned = true;
        }
        if let Some(Axes(axes)) = self.mirror {
            // D is the last coordinate.
            for (axis, on) in axes.into_iter().rev().enumerate() {
                if on && rng.next_u32() & 1 == 1 {
                    (0..3).for_each(|row| theta[4 * row + axis] *= -1.0);
                    turned = true;
                }
            }
        }
        match turned {
            true => theta.map(|v| v as f32),
            false => random,
        }
    }

    /// Adds a case's numbers to those of its batch.
    pub(super) fn draw(
        &self,
        rng: &mut ChaCha8Rng,
        affine: f32,
        (grid, spacing): ([usize; 3], [f64; 3]),
        case: &[Histogram],
        drawn: &mut Drawn,
    ) {
        let stages = self.stages(affine, false);
        drawn.theta.extend(self.theta(rng, affine, grid, spacing));
        if stages.deforms {
            self.deform(rng, grid, spacing, drawn);
        }
        if stages.filters {
            self.filter(rng, grid, drawn);
        }
        if stages.shades {
            self.shade(rng, grid, case, drawn);
        }
    }

    fn deform(&self, rng: &mut ChaCha8Rng, grid: [usize; 3], spacing: [f64; 3], drawn: &mut Drawn) {
        let size = grid.map(coarse);
        let volume: usize = size.iter().product();
        match chosen(rng, self.deformation) {
            None => drawn.displacement.extend(std::iter::repeat_n(0.0, 3 * volume)),
            Some(most) => {
                let strength = uniform(rng, 0.0, most);
                for axis in [2, 1, 0] {
                    let half = (grid[axis].max(2) - 1) as f64 * spacing[axis] / 2.0;
                    let field = smooth_field(rng, 5, size);
                    drawn
                        .displacement
                        .extend(field.iter().map(|v| (v * strength / half) as f32));
                }
            }
        }
    }

    fn filter(&self, rng: &mut ChaCha8Rng, grid: [usize; 3], drawn: &mut Drawn) {
        let blur = chosen(rng, self.blur).map_or(0.0, |most| uniform(rng, most / 2.0, most));
        let mut sigma = [blur.min(4.0); 3];
        let mut times = [1.0; 3];
        if let Some(most) = chosen(rng, self.low_resolution) {
            times = [1.0 / uniform(rng, 1.0 / most.min(8.0), 1.0); 3];
        }
        if let Some(most) = chosen(rng, self.thick_slices) {
            let axis = (rng.next_u32() % 3) as usize;
            times[axis] = uniform(rng, 1.0, most.min(8.0));
            // A slice's profile is as wide as the slice.
            sigma[axis] = sigma[axis].hypot(0.42 * (times[axis] - 1.0));
        }
        for axis in 0..3 {
            taps(grid[axis], sigma[axis], times[axis], &mut drawn.taps[axis]);
        }
    }

    fn shade(&self, rng: &mut ChaCha8Rng, grid: [usize; 3], case: &[Histogram], drawn: &mut Drawn) {
        for channel in case {
            let (curve, sigma) = self.curve(rng, channel);
            drawn.curve.extend([channel.low as f32, channel.high as f32]);
            drawn.curve.extend(curve.iter().map(|v| *v as f32));
            drawn.sigma.push(sigma as f32);
        }
        let size = grid.map(coarser);
        match chosen(rng, self.bias_field) {
            None => drawn.bias.extend(std::iter::repeat_n(0.0, size.iter().product())),
            Some(most) => {
                let strength = uniform(rng, 0.0, most);
                let field = smooth_field(rng, 3, size);
                drawn.bias.extend(field.iter().map(|v| (v * strength) as f32));
            }
        }
    }

    /// What becomes of a channel's intensities, and the noise's standard deviation.
    fn curve(&self, rng: &mut ChaCha8Rng, channel: &Histogram) -> (Vec<f64>, f64) {
        let Histogram { low, high, .. } = *channel;
        let mut curve: Vec<f64> = (0..POINTS)
            .map(|i| low + (high - low) * i as f64 / (POINTS - 1) as f64)
            .collect();
        let noise = chosen(rng, self.noise).map_or(0.0, |most| uniform(rng, 0.0, most) * channel.sd);
        if let Some(share) = chosen(rng, self.brightness) {
            let factor = uniform(rng, 1.0 - share, 1.0 + share);
            curve.iter_mut().for_each(|v| *v *= factor);
        }
        let range = |curve: &[f64]| (curve[0], curve[POINTS - 1]);
        if let Some(share) = chosen(rng, self.contrast) {
            let factor = uniform(rng, 1.0 - share, 1.0 + share);
            let ((least, most), (mean, _)) = (range(&curve), channel.moments(&curve));
            curve
                .iter_mut()
                .for_each(|v| *v = (mean + (*v - mean) * factor).clamp(least, most));
        }
        for (part, inverted) in [(self.inverted_gamma, true), (self.gamma, false)] {
            let Some(most) = chosen(rng, part) else { continue };
            let power = factor(rng, most);
            let ((least, most), (mean, sd)) = (range(&curve), channel.moments(&curve));
            let length = (most - least).max(1e-12);
            for v in &mut curve {
                let share = (*v - least) / length;
                let share = match inverted {
                    true => 1.0 - (1.0 - share).powf(power),
                    false => share.powf(power),
                };
                *v = least + share * length;
            }
            let (new_mean, new_sd) = channel.moments(&curve);
            let factor = sd / new_sd.max(1e-12);
            curve
                .iter_mut()
                .for_each(|v| *v = mean + (*v - new_mean) * factor);
        }
        (curve, noise)
    }
}

impl Drawn {
    /// Adds the intensities of an image that is made, and what is learned of it.
    pub fn make(&mut self, rng: &mut ChaCha8Rng, synthesis: &Synthesis) {
        let rest = Synthesis::MOST - synthesis.values.len();
        self.made.extend(synthesis.intensities(rng).iter().flatten());
        self.made.extend(std::iter::repeat_n(0.0, 2 * rest));
        self.learned
            .extend(synthesis.learned.iter().flat_map(|class| [*class as f32, 0.0]));
        self.learned.extend(std::iter::repeat_n(0.0, 2 * rest));
    }

    /// The inputs by name, for a batch of so many.
    pub fn inputs(
        self,
        stages: Stages,
        batch: usize,
        channels: usize,
        grid: [usize; 3],
    ) -> Vec<(&'static str, Tensor)> {
        let mut inputs = Vec::new();
        if stages.moves {
            inputs.push(("theta", Tensor::new(&[batch, 3, 4], self.theta)));
        }
        if stages.deforms {
            let [d, h, w] = grid.map(coarse);
            inputs.push((
                "displacement",
                Tensor::new(&[batch, 3, d, h, w], self.displacement),
            ));
        }
        if stages.filters {
            for ((name, taps), length) in TAP_INPUTS.into_iter().zip(self.taps).zip(grid) {
                inputs.push((name, Tensor::new(&[batch, length, 2 + TAPS], taps)));
            }
        }
        if stages.shades {
            let [d, h, w] = grid.map(coarser);
            inputs.push(("curve", Tensor::new(&[batch, channels, 2 + POINTS], self.curve)));
            inputs.push(("sigma", Tensor::new(&[batch, channels], self.sigma)));
            inputs.push(("bias", Tensor::new(&[batch, 1, d, h, w], self.bias)));
        }
        if stages.makes {
            let shape = [batch, Synthesis::MOST, 2];
            inputs.push(("made", Tensor::new(&shape, self.made)));
            inputs.push(("learned", Tensor::new(&shape, self.learned)));
        }
        inputs
    }
}

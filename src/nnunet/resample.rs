//! Resampling as nnU-Net does it (`default_resampling.py`): skimage's `resize` without anti-aliasing, which is scipy's
//! `zoom` with `grid_mode` clipped to the input's range; and plane by plane where one axis alone is coarse.

use serde::{Deserialize, Serialize};

use crate::host_memory::{self, TooLarge};

/// The ratio of the largest to the smallest spacing above which planes are resampled by themselves.
const ANISOTROPY: f64 = 3.0;
/// Voxels that scipy repeats at the borders before it looks for the splines' coefficients.
const PADDING: usize = 12;

/// How values lie between voxels.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Resampling {
    /// Order of the splines: 0 takes the nearest voxel, 1 is linear, 3 cubic.
    pub order: u8,
    /// The same across the planes where these are resampled by themselves.
    pub order_z: u8,
    /// Whether planes are, or `None` where the spacings decide.
    pub separate_z: Option<bool>,
}

impl Resampling {
    /// The axis across planes that are resampled by themselves.
    fn separate(&self, from: [f64; 3], to: [f64; 3]) -> Option<usize> {
        let coarse = |spacing: [f64; 3]| {
            let most = spacing.iter().copied().fold(0.0, f64::max);
            let axes: Vec<usize> = (0..3).filter(|a| most / spacing[*a] == 1.0).collect();
            match axes[..] {
                [axis] => Some(axis),
                _ => None,
            }
        };
        let anisotropic = |spacing: [f64; 3]| {
            let least = spacing.iter().copied().fold(f64::INFINITY, f64::min);
            spacing.iter().copied().fold(0.0, f64::max) / least > ANISOTROPY
        };
        match self.separate_z {
            Some(true) => coarse(from),
            Some(false) => None,
            None if anisotropic(from) => coarse(from),
            None if anisotropic(to) => coarse(to),
            None => None,
        }
    }

    /// By axis, the pairs of voxels that lie around each one of the result, where no spline reaches further.
    pub(super) fn pairs(
        &self,
        from: ([usize; 3], [f64; 3]),
        to: ([usize; 3], [f64; 3]),
    ) -> Option<[Vec<Pair>; 3]> {
        let ((old, old_spacing), (new, new_spacing)) = (from, to);
        let across = self.separate(old_spacing, new_spacing).filter(|_| old != new);
        let order = |axis| {
            if across == Some(axis) {
                self.order_z
            } else {
                self.order
            }
        };
        let local = |axis| old[axis] == new[axis] || order(axis) <= 1;
        let pair = |axis, index| {
            if old[axis] == new[axis] {
                return Pair::at(index);
            }
            let Taps { at, weights } = Taps::at(index, old[axis], new[axis], order(axis));
            Pair {
                low: at[0],
                high: if weights[1] > 0.0 { at[1] } else { at[0] },
                share: weights[1] as f32,
            }
        };
        let axis = |axis| (0..new[axis]).map(|index| pair(axis, index)).collect();
        (0..3).all(local).then(|| [0, 1, 2].map(axis))
    }

    /// A volume `[D, H, W]` on a grid of another size over the same box; the spacings only decide how.
    ///
    /// # Errors
    /// No memory for the result.
    pub fn apply(
        &self,
        data: &[f32],
        from: ([usize; 3], [f64; 3]),
        to: ([usize; 3], [f64; 3]),
    ) -> Result<Vec<f32>, TooLarge> {
        let ((old, old_spacing), (new, new_spacing)) = (from, to);
        if old == new {
            let mut out = host_memory::zeros(data.len())?;
            out.copy_from_slice(data);
            return Ok(out);
        }
        let Some(across) = self.separate(old_spacing, new_spacing) else {
            let mut out = zoom(data, old, new, self.order)?;
            clip(&mut out, range(data));
            return Ok(out);
        };
        let mut plane = new;
        plane[across] = old[across];
        let mut out = zoom(data, old, plane, self.order)?;
        for index in 0..old[across] {
            let own = range_of(data, old, across, index);
            each_of(&mut out, plane, across, index, |v| *v = v.clamp(own.0, own.1));
        }
        zoom(&out, plane, new, self.order_z)
    }
}

/// The voxels around a position on an axis: (1 − share) of the lower and share of the higher.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Pair {
    pub low: usize,
    pub high: usize,
    pub share: f32,
}

impl Pair {
    fn at(index: usize) -> Pair {
        Pair {
            low: index,
            high: index,
            share: 0.0,
        }
    }

    /// Between two values.
    pub fn between(&self, low: f32, high: f32) -> f32 {
        low * (1.0 - self.share) + high * self.share
    }
}

/// The size on a grid of another spacing; halves are rounded to even, as Python does.
pub fn resampled_size(size: [usize; 3], from: [f64; 3], to: [f64; 3]) -> [f64; 3] {
    [0, 1, 2].map(|a| (from[a] / to[a] * size[a] as f64).round_ties_even())
}

fn range(data: &[f32]) -> (f32, f32) {
    let ends = (f32::INFINITY, f32::NEG_INFINITY);
    data.iter()
        .fold(ends, |(low, high), v| (low.min(*v), high.max(*v)))
}

fn clip(data: &mut [f32], (low, high): (f32, f32)) {
    if low <= high {
        data.iter_mut().for_each(|v| *v = v.clamp(low, high));
    }
}

/// The range of the voxels at a position of an axis.
fn range_of(data: &[f32], size: [usize; 3], axis: usize, index: usize) -> (f32, f32) {
    let mut ends = (f32::INFINITY, f32::NEG_INFINITY);
    runs(size, axis, index, |run| {
        let (low, high) = range(&data[run]);
        ends = (ends.0.min(low), ends.1.max(high));
    });
    ends
}

fn each_of(data: &mut [f32], size: [usize; 3], axis: usize, index: usize, change: impl Fn(&mut f32)) {
    runs(size, axis, index, |run| data[run].iter_mut().for_each(&change));
}

/// Runs of neighbouring voxels at a position of an axis.
fn runs(size: [usize; 3], axis: usize, index: usize, mut visit: impl FnMut(std::ops::Range<usize>)) {
    let inner: usize = size[axis + 1..].iter().product();
    let outer: usize = size[..axis].iter().product();
    for o in 0..outer {
        let start = (o * size[axis] + index) * inner;
        visit(start..start + inner);
    }
}

/// scipy's `zoom` with mode nearest and `grid_mode`: axis by axis, since splines are products.
fn zoom(data: &[f32], old: [usize; 3], new: [usize; 3], order: u8) -> Result<Vec<f32>, TooLarge> {
    let mut size = old;
    let mut current: Option<Vec<f32>> = None;
    // The axes that shrink first: fewer voxels for those that follow.
    let mut axes: Vec<usize> = (0..3).filter(|a| old[*a] != new[*a]).collect();
    axes.sort_by(|a, b| (new[*a] * old[*b]).cmp(&(new[*b] * old[*a])));
    for axis in axes {
        let from = current.as_deref().unwrap_or(data);
        let made = zoom_axis(from, size, axis, new[axis], order)?;
        size[axis] = new[axis];
        current = Some(made);
    }
    match current {
        Some(made) => Ok(made),
        None => {
            let mut out = host_memory::zeros(data.len())?;
            out.copy_from_slice(data);
            Ok(out)
        }
    }
}

fn zoom_axis(
    data: &[f32],
    size: [usize; 3],
    axis: usize,
    new: usize,
    order: u8,
) -> Result<Vec<f32>, TooLarge> {
    let old = size[axis];
    let inner: usize = size[axis + 1..].iter().product();
    let outer: usize = size[..axis].iter().product();
    let mut out = host_memory::zeros(outer * new * inner)?;
    let taps: Vec<Taps> = (0..new).map(|i| Taps::at(i, old, new, order)).collect();
    // Lines of neighbouring voxels go together, as many as a cache holds.
    const LINES: usize = 16;
    let padding = if order > 1 { PADDING } else { 0 };
    let mut line = vec![0.0f64; (old + 2 * padding) * LINES];
    for o in 0..outer {
        for first in (0..inner).step_by(LINES) {
            let lines = LINES.min(inner - first);
            for (i, row) in line.chunks_exact_mut(LINES).enumerate() {
                let at = i.saturating_sub(padding).min(old - 1);
                let start = (o * old + at) * inner + first;
                for (to, from) in row.iter_mut().zip(&data[start..start + lines]) {
                    *to = f64::from(*from);
                }
            }
            if order > 1 {
                spline_coefficients(&mut line, LINES);
            }
            for (i, taps) in taps.iter().enumerate() {
                let start = (o * new + i) * inner + first;
                for (l, to) in out[start..start + lines].iter_mut().enumerate() {
                    let sum: f64 = taps
                        .weights
                        .iter()
                        .zip(taps.at)
                        .map(|(weight, at)| weight * line[at * LINES + l])
                        .sum();
                    *to = sum as f32;
                }
            }
        }
    }
    Ok(out)
}

/// The voxels of a line, borders included, that make one of the result.
struct Taps {
    at: [usize; 4],
    weights: [f64; 4],
}

impl Taps {
    fn at(index: usize, old: usize, new: usize, order: u8) -> Taps {
        let position = (index as f64 + 0.5) * (old as f64 / new as f64) - 0.5;
        let last = (old - 1) as f64;
        match order {
            0 => Taps {
                at: [(position.clamp(0.0, last) + 0.5).floor() as usize; 4],
                weights: [1.0, 0.0, 0.0, 0.0],
            },
            1 => {
                let position = position.clamp(0.0, last);
                let low = position.floor();
                let share = position - low;
                let high = (low + 1.0).min(last);
                Taps {
                    at: [low as usize, high as usize, low as usize, low as usize],
                    weights: [1.0 - share, share, 0.0, 0.0],
                }
            }
            _ => {
                // Within the padding, which is wider than the splines.
                let position = position + PADDING as f64;
                let low = position.floor();
                let t = position - low;
                let u = 1.0 - t;
                let first = low as usize - 1;
                Taps {
                    at: [first, first + 1, first + 2, first + 3],
                    weights: [
                        u * u * u / 6.0,
                        2.0 / 3.0 - t * t * (2.0 - t) / 2.0,
                        2.0 / 3.0 - u * u * (2.0 - u) / 2.0,
                        t * t * t / 6.0,
                    ],
                }
            }
        }
    }
}

/// The coefficients of cubic B-splines through `lines` lines that lie beside each other (Unser, Aldroubi & Eden 1993): a causal
/// and an anticausal recursion with the pole √3 − 2, reflected at the borders.
fn spline_coefficients(data: &mut [f64], lines: usize) {
    let pole = 3f64.sqrt() - 2.0;
    let count = data.len() / lines;
    // Beyond that many voxels the pole's power is below what f64 tells from 0.
    let horizon = count.min(40);
    data.iter_mut().for_each(|v| *v *= 6.0);
    for l in 0..lines {
        // Σ pole^k of the reflected line, whose first voxel stands twice.
        let mut power = pole;
        let mut sum = data[l];
        for i in 0..horizon {
            sum += power * data[i * lines + l];
            power *= pole;
        }
        data[l] = sum;
        for i in 1..count {
            data[i * lines + l] += pole * data[(i - 1) * lines + l];
        }
        let last = (count - 1) * lines + l;
        data[last] *= pole / (pole - 1.0);
        for i in (0..count - 1).rev() {
            data[i * lines + l] = pole * (data[(i + 1) * lines + l] - data[i * lines + l]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `scipy.ndimage.zoom(x, 7 / 5, order, mode="nearest", grid_mode=True)` and 3 / 5, of scipy 1.17.
    #[test]
    fn lines_equal_scipys() {
        let x = [1.0, 4.0, -2.0, 0.5, 3.0];
        for (order, expected) in SCIPY {
            let found = zoom(&x, [1, 1, 5], [1, 1, expected.len()], order).unwrap();
            for (found, expected) in found.iter().zip(expected) {
                assert!(
                    (found - expected).abs() < 1e-6,
                    "order {order}: {found} for {expected}"
                );
            }
        }
    }

    const SCIPY: [(u8, &[f32]); 6] = [
        (0, &[1.0, 4.0, 4.0, -2.0, 0.5, 0.5, 3.0]),
        (0, &[1.0, -2.0, 3.0]),
        (
            1,
            &[
                1.0,
                2.714_285_7,
                2.285_714_3,
                -2.0,
                -0.214_285_71,
                1.571_428_6,
                3.0,
            ],
        ),
        (1, &[2.0, -2.0, 2.166_666_7]),
        (
            3,
            &[
                0.670_580_26,
                3.444_244_1,
                2.671_789,
                -2.0,
                -0.810_050_7,
                2.000_033_9,
                3.093_258_4,
            ],
        ),
        (3, &[2.386_795_7, -2.0, 2.546_262_3]),
    ];

    #[test]
    fn coarse_axes_are_those_alone() {
        let default = Resampling {
            order: 3,
            order_z: 0,
            separate_z: None,
        };
        assert_eq!(default.separate([5.0, 1.0, 1.0], [1.0; 3]), Some(0));
        assert_eq!(default.separate([1.0; 3], [1.0, 1.0, 5.0]), Some(2));
        assert_eq!(default.separate([0.2, 1.0, 1.0], [1.0; 3]), None);
        assert_eq!(default.separate([2.0, 1.0, 1.0], [1.0; 3]), None);
        let forced = Resampling {
            separate_z: Some(true),
            ..default
        };
        assert_eq!(forced.separate([2.0, 1.0, 1.0], [1.0; 3]), Some(0));
        assert_eq!(forced.separate([1.0; 3], [1.0, 1.0, 5.0]), None);
    }

    #[test]
    fn halves_are_rounded_to_even() {
        assert_eq!(resampled_size([5, 5, 7], [1.0; 3], [2.0; 3]), [2.0, 2.0, 4.0]);
    }
}

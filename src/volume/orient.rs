//! Orientation codes and the exact permutation and flips between them.

use std::fmt;
use std::str::FromStr;

use glam::{DMat3, DMat4};
use serde::{Deserialize, Serialize};

/// The patient direction that each voxel axis runs towards, as nibabel's `aff2axcodes` gives it: `RAS` means that
/// the first axis runs to the patient's right, the second to anterior, the third to superior.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Orientation([Direction; 3]);

/// A world axis (0 left-right, 1 posterior-anterior, 2 inferior-superior) and whether it is followed upwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Direction {
    axis: usize,
    positive: bool,
}

const LETTERS: [[char; 2]; 3] = [['L', 'R'], ['P', 'A'], ['I', 'S']];

impl Orientation {
    /// Right, anterior, superior: NIfTI's world axes.
    pub const RAS: Orientation = Orientation([
        Direction {
            axis: 0,
            positive: true,
        },
        Direction {
            axis: 1,
            positive: true,
        },
        Direction {
            axis: 2,
            positive: true,
        },
    ]);

    /// The orientation of a voxel-to-world matrix (the affine's upper left 3×3), `None` when it is singular or not
    /// finite.
    ///
    /// nibabel's `io_orientation`: the rotation nearest to the matrix with unit columns (its polar factor) is
    /// read column by column, from the most to the least aligned one, each taking the largest world axis left.
    pub fn from_matrix(matrix: DMat3) -> Option<Orientation> {
        let lengths = [matrix.x_axis, matrix.y_axis, matrix.z_axis].map(|column| column.length());
        if !lengths.iter().all(|l| l.is_finite() && *l > 0.0) {
            return None;
        }
        let mut rotation = DMat3::from_cols(
            matrix.x_axis / lengths[0],
            matrix.y_axis / lengths[1],
            matrix.z_axis / lengths[2],
        );
        if rotation.determinant().abs() < 1e-9 {
            return None;
        }
        // Newton's iteration for the polar factor converges quadratically from any regular matrix; the start's
        // smallest singular value halves the distance per step at worst, 1e-9 needs about 30.
        for _ in 0..60 {
            rotation = (rotation + rotation.inverse().transpose()) * 0.5;
        }
        let mut columns = [rotation.x_axis, rotation.y_axis, rotation.z_axis].map(|c| c.to_array());
        let strength = columns.map(|c| c.iter().fold(0.0f64, |m, v| m.max(v * v)));
        let mut order = [0, 1, 2];
        order.sort_by(|&a, &b| strength[b].total_cmp(&strength[a]));
        let mut directions = [Direction {
            axis: 0,
            positive: true,
        }; 3];
        for i in order {
            let column = columns[i];
            // the first of equals, as numpy's argmax
            let axis = (0..3)
                .rev()
                .max_by(|&a, &b| column[a].abs().total_cmp(&column[b].abs()))?;
            directions[i] = Direction {
                axis,
                positive: column[axis] > 0.0,
            };
            for other in &mut columns {
                other[axis] = 0.0;
            }
        }
        Some(Orientation(directions))
    }

    /// The permutation and flips that bring an array of this orientation to `target`.
    pub fn to(self, target: Orientation) -> Reorientation {
        let mut source = [0; 3];
        let mut flip = [false; 3];
        for (out, want) in target.0.iter().enumerate() {
            for (axis, have) in self.0.iter().enumerate() {
                if have.axis == want.axis {
                    source[out] = axis;
                    flip[out] = have.positive != want.positive;
                }
            }
        }
        Reorientation { source, flip }
    }

    /// The letters of (low index end, high index end) of an axis: `('L', 'R')` for the first axis of `RAS`.
    pub fn ends(self, axis: usize) -> (char, char) {
        let Direction { axis, positive } = self.0[axis];
        let [low, high] = LETTERS[axis];
        if positive { (low, high) } else { (high, low) }
    }
}

impl fmt::Display for Orientation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (0..3).try_for_each(|axis| write!(f, "{}", self.ends(axis).1))
    }
}

impl FromStr for Orientation {
    type Err = String;

    fn from_str(code: &str) -> Result<Self, String> {
        let problem = || {
            format!(
                "`{code}` is not an orientation: write three letters, one each of L/R, P/A and I/S, such as RAS"
            )
        };
        let mut directions = [Direction {
            axis: 3,
            positive: true,
        }; 3];
        if code.chars().count() != 3 {
            return Err(problem());
        }
        for (i, letter) in code.chars().enumerate() {
            let letter = letter.to_ascii_uppercase();
            let axis = LETTERS
                .iter()
                .position(|pair| pair.contains(&letter))
                .ok_or_else(problem)?;
            if directions.iter().any(|d| d.axis == axis) {
                return Err(problem());
            }
            directions[i] = Direction {
                axis,
                positive: LETTERS[axis][1] == letter,
            };
        }
        Ok(Orientation(directions))
    }
}

impl TryFrom<String> for Orientation {
    type Error = String;
    fn try_from(code: String) -> Result<Self, String> {
        code.parse()
    }
}

impl From<Orientation> for String {
    fn from(orientation: Orientation) -> String {
        orientation.to_string()
    }
}

/// An exact rearrangement of a voxel array: axes permuted, some reversed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reorientation {
    /// The source axis that each output axis is.
    source: [usize; 3],
    /// Whether it is read backwards.
    flip: [bool; 3],
}

impl Reorientation {
    /// The rearrangement whose axes are these of the source, none reversed.
    ///
    /// # Panics
    /// If they are no order of 0, 1 and 2.
    pub fn of_axes(source: [usize; 3]) -> Reorientation {
        let mut sorted = source;
        sorted.sort_unstable();
        assert_eq!(sorted, [0, 1, 2], "{source:?} is no order of three axes");
        Reorientation {
            source,
            flip: [false; 3],
        }
    }

    /// The rearrangement that reads these axes backwards.
    pub fn mirror(axes: &[usize]) -> Reorientation {
        Reorientation {
            source: [0, 1, 2],
            flip: [0, 1, 2].map(|axis| axes.contains(&axis)),
        }
    }

    /// This rearrangement and another behind it, as one.
    pub fn then(&self, next: Reorientation) -> Reorientation {
        let mut both = next;
        for out in 0..3 {
            both.source[out] = self.source[next.source[out]];
            both.flip[out] ^= self.flip[next.source[out]];
        }
        both
    }

    /// Whether nothing moves.
    pub fn is_identity(&self) -> bool {
        self.source == [0, 1, 2] && self.flip == [false; 3]
    }

    /// The rearrangement that undoes this one.
    pub fn inverse(&self) -> Reorientation {
        let mut inverse = *self;
        for out in 0..3 {
            inverse.source[self.source[out]] = out;
            inverse.flip[self.source[out]] = self.flip[out];
        }
        inverse
    }

    /// A per-axis triple (shape, spacing) in the output's order.
    pub fn permute<T: Copy>(&self, axes: [T; 3]) -> [T; 3] {
        self.source.map(|axis| axes[axis])
    }

    /// From a voxel of the rearranged array to the same voxel of the source, which has `shape`.
    pub fn to_source(self, shape: [usize; 3]) -> DMat4 {
        let mut matrix = [[0.0; 4]; 4];
        matrix[3][3] = 1.0;
        for out in 0..3 {
            let axis = self.source[out];
            matrix[out][axis] = if self.flip[out] { -1.0 } else { 1.0 };
            if self.flip[out] {
                matrix[3][axis] = (shape[axis] - 1) as f64;
            }
        }
        DMat4::from_cols_array_2d(&matrix)
    }

    /// Where a position in the source array (in voxels, fractions too) lies in the output array of `shape`.
    pub fn position(&self, voxel: [f64; 3], shape: [usize; 3]) -> [f64; 3] {
        std::array::from_fn(|axis| {
            let v = voxel[self.source[axis]];
            if self.flip[axis] {
                (shape[axis] - 1) as f64 - v
            } else {
                v
            }
        })
    }

    /// [`Reorientation::apply`] to arrays that stay where nothing turns.
    pub(crate) fn apply_owned<T: Copy>(&self, data: Vec<T>, channels: usize, shape: [usize; 3]) -> Vec<T> {
        match self.is_identity() {
            true => data,
            false => self.apply(&data, channels, shape),
        }
    }

    /// Rearranges `channels` dense arrays of `shape` (last axis fastest).
    ///
    /// # Panics
    /// If `data` does not hold `channels × shape` values.
    pub fn apply<T: Copy>(&self, data: &[T], channels: usize, shape: [usize; 3]) -> Vec<T> {
        let voxels: usize = shape.iter().product();
        assert_eq!(data.len(), channels * voxels, "{channels} channels of {shape:?}");
        if self.is_identity() {
            return data.to_vec();
        }
        let strides = [shape[1] * shape[2], shape[2], 1];
        let out = self.permute(shape);
        let start: usize = (0..3)
            .filter(|&a| self.flip[a])
            .map(|a| (out[a] - 1) * strides[self.source[a]])
            .sum();
        let step: [isize; 3] = std::array::from_fn(|a| {
            let stride = strides[self.source[a]] as isize;
            if self.flip[a] { -stride } else { stride }
        });
        let mut result = Vec::with_capacity(data.len());
        for channel in 0..channels {
            let origin = (channel * voxels + start) as isize;
            for i in 0..out[0] as isize {
                for j in 0..out[1] as isize {
                    let row = origin + i * step[0] + j * step[1];
                    result.extend((0..out[2] as isize).map(|k| data[(row + k * step[2]) as usize]));
                }
            }
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<Orientation> {
        let mut codes = Vec::new();
        for permutation in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            for signs in 0..8 {
                let direction = |i: usize| Direction {
                    axis: permutation[i],
                    positive: signs >> i & 1 == 1,
                };
                codes.push(Orientation([direction(0), direction(1), direction(2)]));
            }
        }
        codes
    }

    #[test]
    fn codes_are_read_back() {
        for code in all() {
            assert_eq!(code.to_string().parse::<Orientation>().unwrap(), code);
        }
        for wrong in ["", "RA", "RRS", "RLS", "XYZ", "RASS", "RÄS"] {
            assert!(
                wrong
                    .parse::<Orientation>()
                    .unwrap_err()
                    .contains("three letters"),
                "{wrong}"
            );
        }
    }

    #[test]
    fn what_is_mirrored_twice_is_as_before() {
        let data: Vec<f32> = (0..48).map(|i| i as f32).collect();
        let mirrored = |data: &[f32], axes: &[usize]| Reorientation::mirror(axes).apply(data, 2, [2, 3, 4]);
        for axes in [&[0][..], &[1], &[2], &[0, 1, 2]] {
            let once = mirrored(&data, axes);
            assert_ne!(once, data);
            assert_eq!(mirrored(&once, axes), data);
        }
        assert_eq!(mirrored(&data, &[2])[..4], [3.0, 2.0, 1.0, 0.0]);
    }

    #[test]
    fn one_after_the_other_is_both() {
        let shape = [2, 3, 4];
        let data: Vec<u32> = (0..24).collect();
        let first = "LPI".parse::<Orientation>().unwrap();
        for second in all() {
            let (first, second) = (
                first.to("ASR".parse().unwrap()),
                "ASR".parse::<Orientation>().unwrap().to(second),
            );
            let apart = second.apply(&first.apply(&data, 1, shape), 1, first.permute(shape));
            assert_eq!(first.then(second).apply(&data, 1, shape), apart);
        }
    }

    #[test]
    fn every_pair_of_orientations_moves_each_voxel_to_its_world_place() {
        // a voxel's value is its world position, so the result must be the same positions listed in the target's order
        let world = [3usize, 4, 5];
        let value = |w: [usize; 3]| (w[0] * 100 + w[1] * 10 + w[2]) as u32;
        let array = |o: Orientation| {
            let shape = o.0.map(|d| world[d.axis]);
            let mut data = Vec::new();
            for i in 0..shape[0] {
                for j in 0..shape[1] {
                    for k in 0..shape[2] {
                        let mut w = [0; 3];
                        for (direction, n) in o.0.iter().zip([i, j, k]) {
                            let last = world[direction.axis] - 1;
                            w[direction.axis] = if direction.positive { n } else { last - n };
                        }
                        data.push(value(w));
                    }
                }
            }
            (shape, data)
        };
        for from in all() {
            let (shape, data) = array(from);
            for to in all() {
                let (want_shape, want) = array(to);
                let turn = from.to(to);
                assert_eq!(turn.permute(shape), want_shape);
                assert_eq!(turn.apply(&data, 1, shape), want, "{from} to {to}");
                assert_eq!(
                    turn.inverse().apply(&want, 1, want_shape),
                    data,
                    "{from} to {to} and back"
                );
                assert_eq!(turn.inverse(), to.to(from));
            }
        }
    }

    #[test]
    fn singular_matrices_have_no_orientation() {
        assert_eq!(Orientation::from_matrix(DMat3::ZERO), None);
        assert_eq!(
            Orientation::from_matrix(DMat3::from_cols_array(&[1., 0., 0., 1., 0., 0., 0., 0., 1.])),
            None
        );
        assert_eq!(Orientation::from_matrix(DMat3::IDENTITY * f64::NAN), None);
        assert_eq!(Orientation::from_matrix(DMat3::IDENTITY), Some(Orientation::RAS));
    }
}

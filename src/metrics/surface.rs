//! Surfaces of masks and how far apart they are, by two definitions.

use serde::{Deserialize, Serialize};

use super::distance;
use crate::host_memory::{self, TooLarge};

/// What a mask's surface is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum Surface {
    /// Marching-cubes elements between voxels, each with its area, as DeepMind's surface-distance has them
    #[default]
    Elements,
    /// The mask's voxels beside others, each counted once, as MONAI has them
    Voxels,
}

/// A surface's distances to another.
#[derive(Debug, Default)]
pub(super) struct Distances {
    /// Distance in millimetres and weight (area in mm², or 1) of each element, by distance.
    elements: Vec<(f64, f64)>,
}

/// Both surfaces' distances to the other.
#[derive(Debug)]
pub(super) struct Pair {
    surface: Surface,
    sides: [Distances; 2],
}

/// Voxels from `low` to just before `high`, along the three axes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bounds {
    pub low: [usize; 3],
    pub high: [usize; 3],
}

impl Bounds {
    pub fn size(&self) -> [usize; 3] {
        std::array::from_fn(|a| self.high[a] - self.low[a])
    }
}

impl Pair {
    /// The distances between two masks, each with its 1 for a voxel inside; both have one. Outside of them all is 0.
    ///
    /// # Errors
    /// More than there is memory for.
    pub fn between(
        masks: [&[u8]; 2],
        shape: [usize; 3],
        spacing: [f64; 3],
        surface: Surface,
    ) -> Result<Pair, TooLarge> {
        let grid = match surface {
            Surface::Elements => shape.map(|n| n + 1),
            Surface::Voxels => shape,
        };
        host_memory::require(2 * distance::bytes(grid) + 4 * host_memory::bytes(&grid, 1))?;
        let weights = match surface {
            Surface::Elements => std::array::from_fn(|code| element_area(code as u8, spacing)),
            Surface::Voxels => [1.0; 256],
        };
        let codes = masks.map(|mask| match surface {
            Surface::Elements => element_codes(mask, shape),
            Surface::Voxels => edge_voxels(mask, shape),
        });
        let side = |from: &[u8], to: &[u8]| -> Result<Distances, TooLarge> {
            let places: Vec<usize> = (0..from.len()).filter(|i| from[*i] != 0).collect();
            let distances = distance::nearest(to, grid, spacing, &places)?;
            let weight = |place: &usize| weights[usize::from(from[*place])];
            let mut elements: Vec<_> = distances.into_iter().zip(places.iter().map(weight)).collect();
            elements.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)));
            Ok(Distances { elements })
        };
        let [one, other] = &codes;
        // The two searches take the same time. WebAssembly has no threads.
        let (a, b) = match cfg!(target_arch = "wasm32") {
            true => (side(one, other), side(other, one)),
            false => std::thread::scope(|scope| {
                let a = scope.spawn(|| side(one, other));
                let b = side(other, one);
                (
                    a.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
                    b,
                )
            }),
        };
        Ok(Pair {
            surface,
            sides: [a?, b?],
        })
    }

    fn all(&self) -> impl Iterator<Item = &(f64, f64)> {
        self.sides.iter().flat_map(|side| &side.elements)
    }

    /// The largest distance.
    pub fn hausdorff(&self) -> f64 {
        self.all().fold(0.0, |most, (distance, _)| most.max(*distance))
    }

    /// The larger of both surfaces' quantiles.
    pub fn quantile(&self, q: f64) -> f64 {
        let of = |side: &Distances| match self.surface {
            Surface::Elements => side.weighted_quantile(q),
            Surface::Voxels => {
                let distances: Vec<f64> = side.elements.iter().map(|e| e.0).collect();
                // torch.quantile, which MONAI calls, takes the fraction in single precision
                let place = f64::from(q as f32) * (distances.len() - 1) as f64;
                crate::statistics::between(&distances, place)
            }
        };
        of(&self.sides[0]).max(of(&self.sides[1]))
    }

    /// The mean distance over both surfaces, by weight.
    pub fn mean(&self) -> f64 {
        let (sum, weight) = self.all().fold((0.0, 0.0), |(sum, weight), (distance, w)| {
            (sum + distance * w, weight + w)
        });
        sum / weight
    }

    /// The part of both surfaces that is not farther than `tolerance` from the other.
    pub fn within(&self, tolerance: f64) -> f64 {
        let (near, weight) = self.all().fold((0.0, 0.0), |(near, weight), (distance, w)| {
            (near + if *distance <= tolerance { *w } else { 0.0 }, weight + w)
        });
        near / weight
    }
}

impl Distances {
    /// The distance that the fraction `q` of the weight does not exceed.
    fn weighted_quantile(&self, q: f64) -> f64 {
        let whole: f64 = self.elements.iter().map(|e| e.1).sum();
        let mut sum = 0.0;
        let found = self.elements.iter().find(|(_, weight)| {
            sum += weight;
            sum / whole >= q
        });
        found.or(self.elements.last()).map_or(0.0, |e| e.0)
    }
}

/// For each corner between voxels, of a grid that has one more along each axis, which of the eight voxels around it are
/// inside: bit 4a + 2b + c for that a, b, c farther along the axes. 0 where all or none are, since no surface passes there.
fn element_codes(mask: &[u8], [planes, rows, columns]: [usize; 3]) -> Vec<u8> {
    let empty = vec![0; columns];
    let row = |plane: Option<usize>, row: Option<usize>| match (plane, row) {
        (Some(p), Some(r)) if p < planes && r < rows => &mask[(p * rows + r) * columns..][..columns],
        _ => &empty[..],
    };
    let mut codes = vec![0u8; (planes + 1) * (rows + 1) * (columns + 1)];
    for (i, line) in codes.chunks_exact_mut(columns + 1).enumerate() {
        let (p, r) = (i / (rows + 1), i % (rows + 1));
        let around = [
            row(p.checked_sub(1), r.checked_sub(1)),
            row(p.checked_sub(1), Some(r)),
            row(Some(p), r.checked_sub(1)),
            row(Some(p), Some(r)),
        ];
        for (which, voxels) in around.iter().enumerate() {
            for (code, inside) in line[1..].iter_mut().zip(*voxels) {
                *code |= inside << (2 * which);
            }
            for (code, inside) in line.iter_mut().zip(*voxels) {
                *code |= inside << (2 * which + 1);
            }
        }
        for code in line {
            *code = if *code == 255 { 0 } else { *code };
        }
    }
    codes
}

/// 1 for each voxel of a mask that has one of its six neighbours outside.
fn edge_voxels(mask: &[u8], [planes, rows, columns]: [usize; 3]) -> Vec<u8> {
    let strides = [rows * columns, columns, 1];
    let mut edges = vec![0; mask.len()];
    for (i, edge) in edges.iter_mut().enumerate().filter(|(i, _)| mask[*i] != 0) {
        let place = [i / strides[0], i / columns % rows, i % columns];
        let inner = (place.iter().zip([planes, rows, columns]))
            .zip(strides)
            .all(|((at, n), stride)| *at > 0 && at + 1 < n && mask[i - stride] != 0 && mask[i + stride] != 0);
        *edge = u8::from(!inner);
    }
    edges
}

/// The area of the marching-cubes triangles in a cube between eight voxel centres, `spacing` apart, of which those of `code`
/// ([`element_codes`]) are inside. Every vertex lies in the middle of an edge of the cube. A case and its complement have one
/// area, which makes fourteen kinds; the sums below are those of the triangles in surface-distance's table.
fn element_area(code: u8, spacing: [f64; 3]) -> f64 {
    let inside = if code.count_ones() > 4 { !code } else { code };
    let corners: Vec<usize> = (0..8).filter(|corner| inside >> corner & 1 == 1).collect();
    // pairs of corners inside that are ends of an edge of the cube, by the edge's axis; bit 4 is the first axis
    let edges = [4usize, 2, 1].map(|bit| {
        let ends = corners.iter().filter(|c| *c & bit == 0);
        ends.filter(|c| inside >> (*c | bit) & 1 == 1).count()
    });
    let [x, y, z] = spacing;
    let face = [y * z, x * z, x * y];
    let length = |parts: [f64; 3]| parts.iter().map(|v| v * v).sum::<f64>().sqrt();
    // the triangle that cuts a corner off
    let corner = length(face.map(|area| 0.125 * area));
    // both triangles that cut an edge along this axis off
    let edge = |axis: usize| {
        let mut parts = face;
        parts[axis] = 0.0;
        length(parts.map(|area| 0.5 * area))
    };
    let axis = |count: usize| edges.iter().position(|n| *n == count).unwrap_or(0);
    let neighbours = |from: usize| {
        [4, 2, 1]
            .iter()
            .filter(|bit| inside >> (from ^ **bit) & 1 == 1)
            .count()
    };
    match (corners.len(), edges.iter().sum::<usize>()) {
        (0, _) => 0.0,
        // corners that touch along no edge are cut off one by one
        (n, 0) => n as f64 * corner,
        (2, 1) => edge(axis(1)),
        (3, 1) => edge(axis(1)) + corner,
        // three corners of a face
        (3, 2) => 0.5 * face[axis(0)] + 3.0 * corner,
        // all four of a face
        (4, 4) => face[axis(0)],
        // three of a face and the one far from them
        (4, 2) if edges.contains(&1) => 0.5 * face[axis(0)] + 4.0 * corner,
        // two edges that face each other across the cube
        (4, 2) => 2.0 * edge(axis(2)),
        // a corner with its three neighbours
        (4, 3) if corners.iter().any(|c| neighbours(*c) == 3) => 6.0 * corner,
        // a chain of three edges, one along each axis, of which the outer two have one more triangle each
        (4, 3) => {
            let middle = corners.iter().filter(|c| neighbours(**c) == 2);
            let along = middle.fold(0, |bits, corner| bits ^ corner);
            let outer = (0..3).filter(|axis| along != 4 >> axis);
            outer.map(edge).sum::<f64>() / 2.0 + 4.0 * corner
        }
        (n, edges) => unreachable!("{n} corners of a cube share {edges} edges"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_has_an_area_and_its_complement_the_same() {
        for code in 0..=255u8 {
            let area = element_area(code, [1.0, 2.0, 5.0]);
            assert_eq!(area, element_area(!code, [1.0, 2.0, 5.0]), "{code}");
            assert_eq!(area > 0.0, code != 0 && code != 255, "{code}");
        }
        // A flat surface across the first axis has the area of a voxel's face.
        assert_eq!(element_area(0b1111, [1.0, 2.0, 5.0]), 10.0);
        assert_eq!(element_area(0b0011_0011, [1.0, 2.0, 5.0]), 5.0);
        assert_eq!(element_area(0b0101_0101, [1.0, 2.0, 5.0]), 2.0);
    }

    #[test]
    fn surfaces_lie_around_a_voxel_or_in_it() {
        let codes = element_codes(&[1], [1; 3]);
        assert_eq!(codes.len(), 8);
        assert_eq!(codes.iter().fold(0, |all, code| all | code), 255);
        assert_eq!(edge_voxels(&[1], [1; 3]), [1]);
        let full = edge_voxels(&[1; 27], [3; 3]);
        assert_eq!(full.iter().filter(|e| **e == 0).count(), 1);
        assert_eq!(full[13], 0);
    }
}

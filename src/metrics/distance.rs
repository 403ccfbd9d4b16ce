//! Exact Euclidean distances on a grid of any spacing.

use crate::host_memory::{self, TooLarge};

/// The distance from each of the `queries` (indices of a row-major grid, ascending) to the nearest voxel that is not 0 in
/// `features`, in the unit of `spacing`; infinite where there is none.
///
/// The transform of Felzenszwalb and Huttenlocher (Distance Transforms of Sampled Functions, 2012), one axis after the
/// other: the nearest along the first axis, then twice the lower envelope of parabolas. Squares are added in the axes' order.
/// The last axis is gone through only where a query lies.
///
/// # Errors
/// More than there is memory for.
pub(super) fn nearest(
    features: &[u8],
    shape: [usize; 3],
    spacing: [f64; 3],
    queries: &[usize],
) -> Result<Vec<f64>, TooLarge> {
    let [planes, rows, columns] = shape;
    assert_eq!(features.len(), planes * rows * columns, "voxels of the grid");
    if queries.is_empty() {
        return Ok(Vec::new());
    }
    host_memory::require(bytes(shape))?;
    let mut squares = along_planes(features, shape, spacing[0]);
    let mut envelope = Envelope::new(rows.max(columns));
    for plane in squares.chunks_exact_mut(rows * columns) {
        for column in 0..columns {
            envelope.clear(spacing[1]);
            let mut plain = true;
            for row in 0..rows {
                let value = plane[row * columns + column];
                plain &= value == 0.0;
                envelope.add(row, value);
            }
            if plain || envelope.is_empty() {
                continue; // its values are the same afterwards
            }
            envelope.sweep(0..rows, |row, square| plane[row * columns + column] = square);
        }
    }
    let mut distances = Vec::with_capacity(queries.len());
    for line in queries.chunk_by(|a, b| a / columns == b / columns) {
        let start = line[0] / columns * columns;
        envelope.clear(spacing[2]);
        for (column, square) in squares[start..start + columns].iter().enumerate() {
            envelope.add(column, *square);
        }
        match envelope.is_empty() {
            true => distances.extend(line.iter().map(|_| f64::INFINITY)),
            false => envelope.sweep(line.iter().map(|query| query - start), |_, square| {
                distances.push(square.sqrt());
            }),
        }
    }
    Ok(distances)
}

/// Bytes that [`nearest`] takes on a grid.
pub(super) fn bytes(shape: [usize; 3]) -> u64 {
    host_memory::bytes(&shape, size_of::<f64>())
}

/// The squared distance along the first axis to the nearest feature.
fn along_planes(features: &[u8], [planes, rows, columns]: [usize; 3], spacing: f64) -> Vec<f64> {
    let plane = rows * columns;
    // steps first: a whole number of them times the spacing is what a voxel's place is
    let mut steps = vec![f64::INFINITY; features.len()];
    let mut before = vec![f64::INFINITY; plane];
    let mut pass = |i: usize, steps: &mut [f64]| {
        let here = i * plane..(i + 1) * plane;
        let places = before
            .iter_mut()
            .zip(&mut steps[here.clone()])
            .zip(&features[here]);
        for ((before, steps), feature) in places {
            *before = if *feature == 0 { *before + 1.0 } else { 0.0 };
            *steps = steps.min(*before);
            *before = *steps;
        }
    };
    for i in 0..planes {
        pass(i, &mut steps);
    }
    for i in (0..planes).rev() {
        pass(i, &mut steps);
    }
    for step in &mut steps {
        let distance = *step * spacing;
        *step = distance * distance;
    }
    steps
}

/// The lower envelope of parabolas of one width: for every place on a line the least of f(v) + (spacing × (place − v))².
struct Envelope {
    spacing: f64,
    /// Where a parabola's lowest point is, its height there, and from which place on it is the lowest.
    parabolas: Vec<(usize, f64, f64)>,
}

impl Envelope {
    fn new(places: usize) -> Envelope {
        Envelope {
            spacing: 1.0,
            parabolas: Vec::with_capacity(places),
        }
    }

    fn clear(&mut self, spacing: f64) {
        self.spacing = spacing;
        self.parabolas.clear();
    }

    fn is_empty(&self) -> bool {
        self.parabolas.is_empty()
    }

    /// Adds a parabola to the right of those that are there; an infinite one is none.
    fn add(&mut self, place: usize, height: f64) {
        if height == f64::INFINITY {
            return;
        }
        let square = self.spacing * self.spacing;
        let mut from = f64::NEG_INFINITY;
        while let Some(&(other, other_height, other_from)) = self.parabolas.last() {
            let apart = (place - other) as f64;
            let middle = (place + other) as f64 / 2.0;
            from = middle + (height - other_height) / (2.0 * square * apart);
            if from > other_from {
                break;
            }
            self.parabolas.pop();
            from = f64::NEG_INFINITY;
        }
        self.parabolas.push((place, height, from));
    }

    /// Calls `at` with the envelope's value at each place; places ascend.
    fn sweep(&self, places: impl IntoIterator<Item = usize>, mut at: impl FnMut(usize, f64)) {
        let mut k = 0;
        for place in places {
            while self
                .parabolas
                .get(k + 1)
                .is_some_and(|next| next.2 <= place as f64)
            {
                k += 1;
            }
            let (lowest, height, _) = self.parabolas[k];
            let distance = place.abs_diff(lowest) as f64 * self.spacing;
            at(place, height + distance * distance);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::test_runner::RngSeed;

    use super::*;

    /// Over all pairs of a voxel and a feature.
    fn brute(features: &[u8], shape: [usize; 3], spacing: [f64; 3], query: usize) -> f64 {
        let place = |i: usize| {
            let [_, rows, columns] = shape;
            [i / (rows * columns), i / columns % rows, i % columns]
        };
        let from = place(query);
        let squares = (0..features.len()).filter(|i| features[*i] != 0).map(|i| {
            let to = place(i);
            (0..3)
                .map(|a| (spacing[a] * from[a].abs_diff(to[a]) as f64).powi(2))
                .sum::<f64>()
        });
        squares.fold(f64::INFINITY, f64::min).sqrt()
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, rng_seed: RngSeed::Fixed(1), ..Default::default() })]

        #[test]
        fn distances_are_those_of_all_pairs(
            shape in prop::array::uniform3(1usize..9),
            spacing in prop::array::uniform3(0.2f64..5.0),
            density in 0u32..40,
            seed in any::<u32>(),
        ) {
            let voxels: usize = shape.iter().product();
            let hash = |i: usize, salt: u32| (i as u32 ^ seed ^ salt).wrapping_mul(0x9E37_79B1) >> 7;
            let features: Vec<u8> = (0..voxels).map(|i| u8::from(hash(i, 0) % 100 < density)).collect();
            let queries: Vec<usize> = (0..voxels).filter(|i| hash(*i, 99) % 3 > 0).collect();
            let found = nearest(&features, shape, spacing, &queries).unwrap();
            prop_assert_eq!(found.len(), queries.len());
            for (query, found) in queries.iter().zip(found) {
                let want = brute(&features, shape, spacing, *query);
                prop_assert!(found == want || (found - want).abs() < 1e-12 * want, "{found} {want}");
            }
        }
    }
}

//! Resampling between grids that cover the same box, in index space.
//!
//! Output voxel o of m samples n input voxels at (o + ½)·n/m − ½: outer faces stay where they are, as in PyTorch's
//! `interpolate(align_corners=False)`. Every weight is a ratio of integers that depends on n and m alone, so grids
//! of equal size give each other's voxels bit for bit, whatever noise the affines carry.
//!
//! Linear weights are a triangle of half-width max(1, n/m) input voxels, normalised over the voxels inside: linear
//! interpolation with replicated borders where the grid becomes finer, and its anti-aliased form (PyTorch's
//! `antialias=True`) where it becomes coarser.

/// The number of voxels of `target` spacing that cover a grid best: round(n · spacing / target), at least 1.
pub fn resampled_shape(shape: [usize; 3], spacing: [f64; 3], target: [f64; 3]) -> [usize; 3] {
    std::array::from_fn(|a| (shape[a] as f64 * spacing[a] / target[a]).round().max(1.0) as usize)
}

/// The input voxels that one output voxel mixes: `weights[i]` is that of voxel `start + i`.
struct Taps {
    start: usize,
    weights: Vec<f32>,
}

fn taps(n: usize, m: usize) -> Vec<Taps> {
    triangles(n, m, 2 * n.max(m) as i64)
}

/// Triangles whose half-width is `width` in units of 1/2m input voxel.
fn triangles(n: usize, m: usize, width: i64) -> Vec<Taps> {
    let (n, m) = (n as i64, m as i64);
    (0..m)
        .map(|o| {
            // position and distance in units of 1/2m input voxel
            let centre = (2 * o + 1) * n - m;
            let weight = |i: i64| width - (2 * m * i - centre).abs();
            let start = (centre - width).div_euclid(2 * m).max(0);
            let end = ((centre + width) / (2 * m)).min(n - 1);
            let inside: Vec<i64> = (start..=end).filter(|i| weight(*i) > 0).collect();
            let sum: i64 = inside.iter().map(|i| weight(*i)).sum();
            Taps {
                start: inside[0] as usize,
                weights: inside
                    .iter()
                    .map(|i| (weight(*i) as f64 / sum as f64) as f32)
                    .collect(),
            }
        })
        .collect()
}

/// Mixes `input`, rows of `inner` values, into `output`.
fn mix(input: &[f32], inner: usize, taps: &Taps, output: &mut [f32]) {
    for (tap, weight) in taps.weights.iter().enumerate() {
        let row = &input[(taps.start + tap) * inner..][..inner];
        match tap {
            0 => output.iter_mut().zip(row).for_each(|(o, v)| *o = weight * v),
            _ => output.iter_mut().zip(row).for_each(|(o, v)| *o += weight * v),
        }
    }
}

fn along(data: &[f32], n: usize, inner: usize, taps: &[Taps]) -> Vec<f32> {
    let mut output = vec![0.0; data.len() / n * taps.len()];
    for (block, result) in data
        .chunks_exact(n * inner)
        .zip(output.chunks_exact_mut(taps.len() * inner))
    {
        for (taps, row) in taps.iter().zip(result.chunks_exact_mut(inner)) {
            mix(block, inner, taps, row);
        }
    }
    output
}

/// Linear resampling of `[channels, from…]` to `[channels, to…]`, last axis fastest.
///
/// # Panics
/// If `data` does not hold `channels × from` values.
pub fn linear(data: &[f32], channels: usize, from: [usize; 3], to: [usize; 3]) -> Vec<f32> {
    separably(data, channels, from, to, taps)
}

/// Linear interpolation of `[channels, from…]` at the voxel centres of `[channels, to…]` between the nearest voxels alone,
/// without anti-aliasing: what ITK's and c3d's resampling does, and with it the published crops.
///
/// # Panics
/// If `data` does not hold `channels × from` values.
pub fn interpolated(data: &[f32], channels: usize, from: [usize; 3], to: [usize; 3]) -> Vec<f32> {
    separably(data, channels, from, to, |n, m| triangles(n, m, 2 * m as i64))
}

fn separably(
    data: &[f32],
    channels: usize,
    from: [usize; 3],
    to: [usize; 3],
    taps: impl Fn(usize, usize) -> Vec<Taps>,
) -> Vec<f32> {
    assert_eq!(
        data.len(),
        channels * from.iter().product::<usize>(),
        "{channels} channels of {from:?}"
    );
    let mut result = std::borrow::Cow::Borrowed(data);
    let inner = [from[1] * from[2], from[2], 1];
    let mut done = [1, to[0], to[0] * to[1]];
    done.iter_mut().for_each(|outer| *outer *= channels);
    for axis in 0..3 {
        if from[axis] != to[axis] {
            result = along(&result, from[axis], inner[axis], &taps(from[axis], to[axis])).into();
        }
        debug_assert_eq!(result.len(), done[axis] * to[axis] * inner[axis]);
    }
    result.into_owned()
}

/// Nearest-neighbour resampling of `[from…]` to `[to…]`: output o takes input floor((o + ½)·n/m).
///
/// # Panics
/// If `data` does not hold `from` values.
pub fn nearest<T: Copy>(data: &[T], from: [usize; 3], to: [usize; 3]) -> Vec<T> {
    assert_eq!(data.len(), from.iter().product::<usize>(), "{from:?}");
    if from == to {
        return data.to_vec();
    }
    let [xs, ys, zs]: [Vec<usize>; 3] =
        std::array::from_fn(|a| (0..to[a]).map(|o| (2 * o + 1) * from[a] / (2 * to[a])).collect());
    let mut result = Vec::with_capacity(to.iter().product());
    for x in &xs {
        for y in &ys {
            let row = &data[(x * from[1] + y) * from[2]..][..from[2]];
            result.extend(zs.iter().map(|z| row[*z]));
        }
    }
    result
}

/// The class with the highest logit at every voxel of the grid `to`, logits `[classes, from…]` being resampled
/// linearly; the lowest class among equals. Works plane by plane: it holds two planes of `to` beside its result.
///
/// # Panics
/// If `logits` does not hold `classes × from` values, or there are more than 65,536 classes.
pub fn argmax(logits: &[f32], classes: usize, from: [usize; 3], to: [usize; 3]) -> Vec<u16> {
    let voxels: usize = from.iter().product();
    assert_eq!(logits.len(), classes * voxels, "{classes} classes of {from:?}");
    assert!(classes <= 65_536, "{classes} classes");
    if from == to {
        return argmax_here(logits, voxels);
    }
    let taps: [Vec<Taps>; 3] = std::array::from_fn(|a| taps(from[a], to[a]));
    let plane = to[1] * to[2];
    let mut best_class = vec![0u16; to[0] * plane];
    let mut best = vec![0.0f32; plane];
    let mut x_mixed = vec![0.0f32; from[1] * from[2]];
    for (x_taps, best_class) in taps[0].iter().zip(best_class.chunks_exact_mut(plane)) {
        best.fill(f32::NEG_INFINITY);
        for class in 0..classes {
            mix(
                &logits[class * voxels..][..voxels],
                from[1] * from[2],
                x_taps,
                &mut x_mixed,
            );
            let y_mixed = along(&x_mixed, from[1], from[2], &taps[1]);
            let mixed = along(&y_mixed, from[2], 1, &taps[2]);
            for ((value, best), best_class) in mixed.iter().zip(&mut best).zip(&mut *best_class) {
                if *value > *best {
                    *best = *value;
                    *best_class = class as u16;
                }
            }
        }
    }
    best_class
}

/// [`argmax`] without resampling.
fn argmax_here(logits: &[f32], voxels: usize) -> Vec<u16> {
    let mut best_class = vec![0u16; voxels];
    let mut best = vec![f32::NEG_INFINITY; voxels];
    for (class, values) in (0..=u16::MAX).zip(logits.chunks_exact(voxels.max(1))) {
        for ((value, best), best_class) in values.iter().zip(&mut best).zip(&mut best_class) {
            if *value > *best {
                *best = *value;
                *best_class = class;
            }
        }
    }
    best_class
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(count: usize) -> Vec<f32> {
        let mut state = 1u32;
        (0..count)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as f32 / 16_777_216.0 - 0.5
            })
            .collect()
    }

    /// torch.nn.functional.interpolate(torch.arange(5.)[None, None] ** 2, size, mode='linear') and, for 2 and 3,
    /// interpolate(torch.arange(5.)[None, None, None] ** 2, (1, size), mode='bilinear', antialias=True), align_corners False.
    #[test]
    fn one_axis_equals_pytorch() {
        let squares = [0.0, 1.0, 4.0, 9.0, 16.0];
        let cases: [(usize, &[f32]); 4] = [
            (5, &squares),
            (8, &[0.0, 0.4375, 1.1875, 3.0625, 5.5625, 8.6875, 12.9375, 16.0]),
            (2, &[1.7273, 9.7273]),
            (3, &[0.4286, 4.4444, 13.0]),
        ];
        for (size, want) in cases {
            let got = linear(&squares, 1, [1, 1, 5], [1, 1, size]);
            for (g, w) in got.iter().zip(want) {
                assert!((g - w).abs() < 1e-4, "{size}: {got:?} against {want:?}");
            }
            assert_eq!(linear(&squares, 1, [5, 1, 1], [size, 1, 1]), got);
            assert_eq!(linear(&squares, 1, [1, 5, 1], [1, size, 1]), got);
        }
    }

    /// torch.nn.functional.interpolate(torch.arange(5.)[None, None] ** 2, size, mode='linear'), align_corners False.
    #[test]
    fn interpolation_mixes_two_voxels_however_coarse_the_grid() {
        let squares = [0.0, 1.0, 4.0, 9.0, 16.0];
        let cases: [(usize, &[f32]); 4] = [
            (5, &squares),
            (8, &[0.0, 0.4375, 1.1875, 3.0625, 5.5625, 8.6875, 12.9375, 16.0]),
            (2, &[0.75, 10.75]),
            (3, &[1.0 / 3.0, 4.0, 13.666667]),
        ];
        for (size, want) in cases {
            let got = interpolated(&squares, 1, [1, 5, 1], [1, size, 1]);
            for (g, w) in got.iter().zip(want) {
                assert!((g - w).abs() < 1e-5, "{size}: {got:?} against {want:?}");
            }
        }
    }

    #[test]
    fn equal_grids_give_the_same_voxels_and_a_constant_stays_constant() {
        let data = noise(2 * 3 * 4 * 5);
        assert_eq!(linear(&data, 2, [3, 4, 5], [3, 4, 5]), data);
        for to in [[1, 1, 1], [7, 2, 5], [2, 9, 31]] {
            for v in linear(&[2.5; 60], 1, [3, 4, 5], to) {
                assert!((v - 2.5).abs() < 1e-6, "{v}");
            }
        }
    }

    #[test]
    fn nearest_takes_the_voxel_that_holds_the_centre() {
        let line: Vec<usize> = (0..6).collect();
        assert_eq!(nearest(&line, [1, 1, 6], [1, 1, 3]), [1, 3, 5]);
        assert_eq!(nearest(&line, [6, 1, 1], [4, 1, 1]), [0, 2, 3, 5]);
        assert_eq!(
            nearest(&line, [1, 6, 1], [1, 12, 1]),
            [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
        );
        assert_eq!(
            nearest(&line, [1, 2, 3], [2, 2, 3]),
            [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5]
        );
    }

    #[test]
    fn argmax_is_that_of_the_resampled_logits() {
        let from = [4, 5, 3];
        let logits = noise(3 * 60);
        for to in [from, [7, 5, 2], [3, 11, 9]] {
            let resampled = linear(&logits, 3, from, to);
            let voxels: usize = to.iter().product();
            let got = argmax(&logits, 3, from, to);
            assert_eq!(got.len(), voxels);
            for voxel in 0..voxels {
                let values: Vec<f32> = (0..3).map(|class| resampled[class * voxels + voxel]).collect();
                let best = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                assert_eq!(
                    values[got[voxel] as usize], best,
                    "{to:?} voxel {voxel}: {values:?}"
                );
            }
        }
        assert_eq!(
            argmax(&[1.0, 1.0], 2, [1, 1, 1], [1, 1, 1]),
            [0],
            "the lowest among equals"
        );
    }

    #[test]
    fn shapes_follow_the_spacing() {
        assert_eq!(resampled_shape([35, 51, 35], [1.0; 3], [1.0; 3]), [35, 51, 35]);
        assert_eq!(
            resampled_shape([512, 512, 80], [0.7, 0.7, 5.0], [1.4, 1.4, 2.5]),
            [256, 256, 160]
        );
        assert_eq!(resampled_shape([1, 2, 3], [0.1; 3], [3.0; 3]), [1, 1, 1]);
    }
}

//! Which scans to label next: those that a network is least sure of and that are unlike each other and what has labels already.
//!
//! Uncertainty alone picks ten scans of one kind, and variety alone picks artefacts. A scan's score is the product of both, and one scan is
//! taken after the other, the farthest from all that were taken weighing most (greedy k-centres, as Sener and Savarese, ICLR 2018,
//! choose their core-sets, on features that need no training).

use crate::tensor::Tensor;

/// Cells along each axis whose mean intensities describe a scan.
const CELLS: usize = 4;

/// What a scan looks like, and what was found in it.
#[derive(Clone, Debug, PartialEq)]
pub struct Features {
    intensities: Vec<f64>,
    labels: Vec<f64>,
}

/// A scan that was chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pick {
    /// Its place among the scans.
    pub scan: usize,
    /// How far it is from the nearest that was chosen before it or has labels; `None` where there is none. The scans' own spread is 1.
    pub distance: Option<f64>,
}

impl Features {
    /// Of a prepared scan `[C, D, H, W]` and its probabilities `[L, D, H, W]`: mean intensities of 4 × 4 × 4 cells a channel, and the
    /// square root of each label's share of the volume, the background's left out.
    pub fn of(image: &Tensor, probabilities: &Tensor) -> Features {
        let [channels, d, h, w] = image.shape[..] else {
            panic!("a prepared scan has four axes, not {:?}", image.shape)
        };
        let mut intensities = vec![0.0; channels * CELLS.pow(3)];
        let mut counts = vec![0u32; CELLS.pow(3)];
        let cell = |i: usize, n: usize| (i * CELLS / n).min(CELLS - 1);
        for z in 0..d {
            for y in 0..h {
                for x in 0..w {
                    let of = (cell(z, d) * CELLS + cell(y, h)) * CELLS + cell(x, w);
                    counts[of] += 1;
                    for channel in 0..channels {
                        let value = image.data[((channel * d + z) * h + y) * w + x];
                        intensities[channel * counts.len() + of] += f64::from(value);
                    }
                }
            }
        }
        for (i, sum) in intensities.iter_mut().enumerate() {
            *sum /= f64::from(counts[i % counts.len()].max(1));
        }
        let voxels = probabilities.data.len() / probabilities.shape[0];
        let share = |values: &[f32]| values.iter().map(|p| f64::from(*p)).sum::<f64>() / voxels as f64;
        let labels = probabilities.data.chunks_exact(voxels).skip(1);
        Features {
            intensities,
            labels: labels.map(|values| share(values).max(0.0).sqrt()).collect(),
        }
    }
}

/// Chooses up to `count` scans in order. `scans` have their features and how unsure a network is of each, from 0 to 1; `known` are those
/// that have labels.
///
/// # Panics
/// Where features are of different networks.
pub fn choose(scans: &[(Features, f64)], known: &[Features], count: usize) -> Vec<Pick> {
    let all: Vec<&Features> = scans.iter().map(|(features, _)| features).chain(known).collect();
    let points = points(&all);
    let (own, others) = points.split_at(scans.len());
    let apart = |a: &[f64], b: &[f64]| {
        let squares = a.iter().zip(b).map(|(a, b)| (a - b) * (a - b));
        squares.sum::<f64>().sqrt()
    };
    let nearest = |point: &Vec<f64>| others.iter().map(|other| apart(point, other)).reduce(f64::min);
    let mut distances: Vec<Option<f64>> = own.iter().map(nearest).collect();
    let mut left: Vec<usize> = (0..scans.len()).collect();
    let mut picks = Vec::new();
    while picks.len() < count {
        let unsure = |scan: usize| scans[scan].1;
        let score = |scan: usize| unsure(scan) * distances[scan].unwrap_or(1.0);
        // Of equal scores the first one; scans that are like one another go by how unsure they are.
        let better = |&a: &usize, &b: &usize| {
            let by_score = score(a).total_cmp(&score(b));
            by_score
                .then_with(|| unsure(a).total_cmp(&unsure(b)))
                .then_with(|| b.cmp(&a))
        };
        let Some(&scan) = left.iter().max_by(|a, b| better(a, b)) else {
            break;
        };
        left.retain(|other| *other != scan);
        picks.push(Pick {
            scan,
            distance: distances[scan],
        });
        for &other in &left {
            let to = apart(&own[scan], &own[other]);
            distances[other] = Some(distances[other].map_or(to, |before| before.min(to)));
        }
    }
    picks
}

/// Points of a space in which intensities and labels count the same: the scans' squared distance from their mean is 1 on average.
fn points(all: &[&Features]) -> Vec<Vec<f64>> {
    let mut points = vec![Vec::new(); all.len()];
    for group in [|f: &Features| &f.intensities, |f: &Features| &f.labels] as [fn(&Features) -> &Vec<f64>; 2]
    {
        let Some(first) = all.first() else { break };
        let size = group(first).len();
        assert!(
            all.iter().all(|features| group(features).len() == size),
            "features are of one network"
        );
        let count = all.len() as f64;
        let mean: Vec<f64> = (0..size)
            .map(|i| all.iter().map(|features| group(features)[i]).sum::<f64>() / count)
            .collect();
        let from_mean = |features: &Features| -> Vec<f64> {
            let values = group(features).iter().zip(&mean);
            values.map(|(value, mean)| value - mean).collect()
        };
        let squares = all.iter().flat_map(|features| from_mean(features));
        let spread = (squares.map(|v| v * v).sum::<f64>() / count).sqrt();
        let scale = if spread > 0.0 { 0.5f64.sqrt() / spread } else { 0.0 };
        for (point, features) in points.iter_mut().zip(all) {
            point.extend(from_mean(features).into_iter().map(|value| value * scale));
        }
    }
    points
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan(level: f32, share: f32) -> Features {
        let image = Tensor::from_fn(&[1, 5, 6, 7], |i| level + (i % 3) as f32 * 0.01);
        let voxels = 5 * 6 * 7;
        let probabilities = Tensor::from_fn(&[2, 5, 6, 7], |i| if i < voxels { 1.0 - share } else { share });
        Features::of(&image, &probabilities)
    }

    #[test]
    fn features_are_means_of_cells_and_roots_of_shares() {
        let image = Tensor::from_fn(&[2, 4, 8, 4], |i| (i / 128) as f32 + (i / 32 % 4) as f32 * 10.0);
        let probabilities = Tensor::from_fn(&[3, 4, 8, 4], |i| [0.5, 0.16, 0.34][i / 128]);
        let features = Features::of(&image, &probabilities);
        assert_eq!(features.intensities.len(), 128);
        for (i, value) in features.intensities.iter().enumerate() {
            // cell planes along z are planes of the image
            assert_eq!(*value, (i / 64) as f64 + (i % 64 / 16) as f64 * 10.0, "{i}");
        }
        assert!((features.labels[0] - 0.4).abs() < 1e-6 && features.labels.len() == 2);
    }

    #[test]
    fn a_twin_of_what_was_chosen_waits() {
        let scans = [
            (scan(0.0, 0.1), 0.5),
            (scan(0.0, 0.1), 0.49),
            (scan(1.0, 0.3), 0.2),
            (scan(0.5, 0.2), 0.1),
        ];
        let order = |known: &[Features]| -> Vec<usize> {
            choose(&scans, known, 4).iter().map(|pick| pick.scan).collect()
        };
        // The least sure first; then the farthest from it, and its twin last.
        assert_eq!(order(&[]), [0, 2, 3, 1]);
        // Where something like the first has labels, the others come first.
        assert_eq!(order(&[scan(0.0, 0.1)])[..2], [2, 3]);
        let picks = choose(&scans, &[], 2);
        assert_eq!((picks.len(), picks[0].distance), (2, None));
        // Along one line the spread of 0, 0, 1 and 0.5 about their mean.
        let spread = (0.6875f64 / 4.0).sqrt();
        assert!(
            (picks[1].distance.unwrap() - 1.0 / spread).abs() < 0.1,
            "{picks:?}"
        );
    }

    #[test]
    fn equal_scans_go_by_how_unsure_they_are_and_none_is_no_error() {
        let scans = [
            (scan(1.0, 0.2), 0.1),
            (scan(1.0, 0.2), 0.3),
            (scan(1.0, 0.2), 0.2),
        ];
        let order: Vec<usize> = choose(&scans, &[], 9).iter().map(|pick| pick.scan).collect();
        assert_eq!(order, [1, 2, 0]);
        assert_eq!(choose(&[], &[scan(1.0, 0.2)], 3), []);
    }
}

//! Statistics of scores: quantiles, bootstrap intervals, paired tests.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// How often a bootstrap draws the cases.
pub const RESAMPLES: usize = 10_000;

/// The seed of every bootstrap, so that the same scores give the same intervals.
const SEED: u64 = 0;

/// The quantile `q` of values in ascending order, by linear interpolation as numpy has it; `None` of none.
pub fn quantile(sorted: &[f64], q: f64) -> Option<f64> {
    Some(between(sorted, q * (sorted.len().checked_sub(1)? as f64)))
}

/// The value at a place between those of a list that is not empty, by linear interpolation.
pub(crate) fn between(sorted: &[f64], position: f64) -> f64 {
    let (low, high) = (
        sorted[position.floor() as usize],
        sorted[position.ceil() as usize],
    );
    // infinities have no difference
    match low == high {
        true => low,
        false => low + (high - low) * position.fract(),
    }
}

/// The mean of the values that there are; `None` of none.
pub fn mean(values: impl IntoIterator<Item = Option<f64>>) -> Option<f64> {
    let (sum, count) = values
        .into_iter()
        .flatten()
        .fold((0.0, 0), |(sum, count), v| (sum + v, count + 1));
    (count > 0).then(|| sum / f64::from(count))
}

/// The median of the values that there are; `None` of none.
pub fn median(values: impl IntoIterator<Item = Option<f64>>) -> Option<f64> {
    let mut values: Vec<f64> = values.into_iter().flatten().collect();
    values.sort_unstable_by(f64::total_cmp);
    quantile(&values, 0.5)
}

/// 95 % intervals of means over cases, by the bootstrap's percentiles (Efron, 1979): cases are drawn with replacement
/// [`RESAMPLES`] times, the same for all columns. `columns` are quantities by case, `None` where a case has none; a group is a
/// quantity that is the mean of the means of several columns. One interval for each group, `None` where no column has a value.
pub fn intervals(columns: &[Vec<Option<f64>>], groups: &[Vec<usize>]) -> Vec<Option<[f64; 2]>> {
    let cases = columns.iter().map(Vec::len).max().unwrap_or(0);
    let mut means = vec![Vec::new(); groups.len()];
    // by case, so that a draw reads what lies together: no value counts as 0, 0 times
    let by_case: Vec<Vec<(f64, f64)>> = (0..cases)
        .map(|case| {
            let value = |column: &Vec<Option<f64>>| column.get(case).copied().flatten();
            columns
                .iter()
                .map(|column| value(column).map_or((0.0, 0.0), |v| (v, 1.0)))
                .collect()
        })
        .collect();
    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
    let mut sums = vec![(0.0, 0.0); columns.len()];
    for _ in 0..if cases == 0 { 0 } else { RESAMPLES } {
        sums.fill((0.0, 0.0));
        for _ in 0..cases {
            let case = ((u64::from(rng.next_u32()) * cases as u64) >> 32) as usize;
            for (sum, value) in sums.iter_mut().zip(&by_case[case]) {
                *sum = (sum.0 + value.0, sum.1 + value.1);
            }
        }
        for (group, means) in groups.iter().zip(&mut means) {
            let of = group.iter().map(|column| sums[*column]);
            means.extend(mean(of.map(|(sum, count)| (count > 0.0).then(|| sum / count))));
        }
    }
    means
        .into_iter()
        .map(|mut means| {
            means.sort_unstable_by(f64::total_cmp);
            Some([quantile(&means, 0.025)?, quantile(&means, 0.975)?])
        })
        .collect()
}

/// What a Wilcoxon signed-rank test gives.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Wilcoxon {
    /// The smaller of the rank sums of positive and of negative differences.
    pub statistic: f64,
    /// Two-sided.
    pub p: f64,
    /// Whether the distribution of the statistic is the exact one.
    pub exact: bool,
}

/// The most pairs for which the distribution is exact where no differences are equal or zero, and where some are.
const EXACT: [usize; 2] = [50, 13];

/// Wilcoxon's signed-rank test that paired differences lie around zero, two-sided. Differences of zero are left out, equal
/// ones share their mean rank. Exact for up to 50 pairs without zeros and equal magnitudes and for up to 13 with them;
/// otherwise by the normal distribution, corrected for equal ones and without correction for continuity. That is what
/// `scipy.stats.wilcoxon` does by default.
pub fn wilcoxon(differences: &[f64]) -> Wilcoxon {
    let mut sorted: Vec<f64> = differences.iter().copied().filter(|d| *d != 0.0).collect();
    sorted.sort_unstable_by(|a, b| a.abs().total_cmp(&b.abs()));
    let n = sorted.len();
    let (mut positive, mut negative, mut ties) = (0, 0, 0.0);
    // twice the ranks, which are whole numbers
    let mut ranks = Vec::with_capacity(n);
    for equal in sorted.chunk_by(|a, b| a.abs() == b.abs()) {
        let count = equal.len();
        let rank = 2 * ranks.len() + count + 1;
        ranks.extend(std::iter::repeat_n(rank, count));
        let above = equal.iter().filter(|d| **d > 0.0).count();
        positive += above * rank;
        negative += (count - above) * rank;
        ties += (count as f64).powi(3) - count as f64;
    }
    let statistic = positive.min(negative) as f64 / 2.0;
    if n == 0 {
        return Wilcoxon {
            statistic,
            p: 1.0,
            exact: true,
        };
    }
    let plain = ties == 0.0 && n == differences.len();
    let exact = differences.len() <= EXACT[usize::from(!plain)];
    let p = match exact {
        true => 2.0 * chance_of_at_most(positive.min(negative), &ranks),
        false => {
            let n = n as f64;
            let deviation = ((n * (n + 1.0) * (2.0 * n + 1.0) - ties / 2.0) / 24.0).sqrt();
            let z = (positive as f64 / 2.0 - n * (n + 1.0) / 4.0) / deviation;
            erfc(z.abs() / std::f64::consts::SQRT_2)
        }
    };
    Wilcoxon {
        statistic,
        p: p.min(1.0),
        exact,
    }
}

/// How likely the sum of the ranks that get a positive sign by chance is no more than `sum`.
fn chance_of_at_most(sum: usize, ranks: &[usize]) -> f64 {
    let mut ways = vec![0.0; ranks.iter().sum::<usize>() + 1];
    ways[0] = 1.0;
    for rank in ranks {
        for reached in (*rank..ways.len()).rev() {
            ways[reached] = (ways[reached] + ways[reached - rank]) / 2.0;
        }
        for reached in ways.iter_mut().take(*rank) {
            *reached /= 2.0;
        }
    }
    ways[..=sum].iter().sum()
}

/// Holm's correction (1979) of the p values of a family of tests, in their order: with any of them called significant below
/// α, a false one is among them with at most the chance α.
pub fn holm(p: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|a, b| p[*a].total_cmp(&p[*b]));
    let mut corrected = vec![0.0; p.len()];
    let mut least = 0.0f64;
    for (place, i) in order.into_iter().enumerate() {
        least = least.max(((p.len() - place) as f64 * p[i]).min(1.0));
        corrected[i] = least;
    }
    corrected
}

/// The complementary error function of a number that is not negative.
fn erfc(x: f64) -> f64 {
    use std::f64::consts::PI;
    if x < 2.5 {
        // erf(x) = 2/√π · exp(−x²) · Σ 2ⁿ x²ⁿ⁺¹ / (2n + 1)!!, whose terms are all positive
        let (mut term, mut sum) = (x, x);
        let mut n = 0.0;
        while term > 1e-17 * sum {
            n += 1.0;
            term *= 2.0 * x * x / (2.0 * n + 1.0);
            sum += term;
        }
        return 1.0 - 2.0 / PI.sqrt() * (-x * x).exp() * sum;
    }
    // √π · exp(x²) · erfc(x) = 1/(x + (1/2)/(x + 1/(x + (3/2)/(x + …))))
    let fraction = (1..=100).rev().fold(x, |below, k| x + f64::from(k) / 2.0 / below);
    (-x * x).exp() / (PI.sqrt() * fraction)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_numpys_and_take_infinities() {
        assert_eq!(quantile(&[0.0, 6.0, 7.0, 8.0, 9.0, 10.0], 0.25), Some(6.25));
        assert_eq!(quantile(&[3.0], 0.975), Some(3.0));
        assert_eq!(quantile(&[], 0.5), None);
        let infinite = f64::INFINITY;
        assert_eq!(quantile(&[1.0, infinite, infinite], 0.75), Some(infinite));
        assert_eq!(median([Some(infinite), None, Some(1.0), Some(2.0)]), Some(2.0));
        assert_eq!(mean([Some(infinite), Some(1.0)]), Some(infinite));
    }

    #[test]
    fn complementary_errors_are_pythons() {
        for (x, want) in [
            (0.0, 1.0),
            (0.5, 0.4795001221869535),
            (1.3859292911256331, 0.04999579029644087),
            (2.4999999, 0.00040695223527343607),
            (2.5, 0.0004069520174449589),
            (4.0, 1.541725790028002e-08),
            (10.0, 2.088487583762545e-45),
        ] {
            let found = erfc(x);
            assert!((found - want).abs() < 1e-11 * want, "{x}: {found} {want}");
        }
    }

    #[test]
    fn intervals_are_those_of_the_mean_and_the_same_each_time() {
        let values: Vec<Option<f64>> = (0..200).map(|i| Some(f64::from(i * 37 % 200))).collect();
        let columns = vec![values.clone(), vec![None; 200], vec![Some(2.0); 200]];
        let groups = [vec![0], vec![1], vec![2], vec![0, 1, 2]];
        let found = intervals(&columns, &groups);
        assert_eq!(found, intervals(&columns, &groups));
        let [low, high] = found[0].unwrap();
        // 1.96 standard errors of 0..200, whose deviation is 57.73
        let reach = 1.96 * 57.73 / 200f64.sqrt();
        assert!(
            (low - (99.5 - reach)).abs() < 0.4 && (high - (99.5 + reach)).abs() < 0.4,
            "{low} {high}"
        );
        assert_eq!((found[1], found[2]), (None, Some([2.0, 2.0])));
        // the mean of two columns' means; the one without values is none of them
        let [both_low, both_high] = found[3].unwrap();
        assert!((both_low - (low + 2.0) / 2.0).abs() < 1e-9 && (both_high - (high + 2.0) / 2.0).abs() < 1e-9);
        assert!(intervals(&[], &[vec![]])[0].is_none());
        // of cases in which a label is rare, those draws count that have it
        let mut rare = vec![None; 10];
        rare[3] = Some(0.5);
        assert_eq!(intervals(&[rare], &[vec![0]]), [Some([0.5, 0.5])]);
        let missed = intervals(&[vec![Some(f64::INFINITY), Some(1.0), Some(1.0)]], &[vec![0]]);
        assert_eq!(missed, [Some([1.0, f64::INFINITY])]);
    }

    #[test]
    fn holm_corrects_from_the_least_and_never_reverses_an_order() {
        assert_eq!(holm(&[0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02]);
        assert_eq!(holm(&[0.5, 0.6]), [1.0, 1.0]);
        assert!(holm(&[]).is_empty());
    }
}

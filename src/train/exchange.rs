//! What the processes of one training (ranks) tell each other. The training knows no transport: whatever implements
//! [`Exchange`] carries it.

use std::ops::Range;

/// Another rank is gone, or has given up.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("rank {rank} {what}")]
pub struct ExchangeError {
    /// Which.
    pub rank: usize,
    /// What became of it: a predicate, such as `has ended`.
    pub what: String,
}

/// The ranks of a training. Every rank makes the same calls in the same order.
pub trait Exchange: Send {
    /// This process, from 0.
    fn rank(&self) -> usize;

    /// How many there are.
    fn size(&self) -> usize;

    /// Sends `parts[k]` to rank k, and returns what each rank sent here, by rank.
    ///
    /// # Errors
    /// A rank that is gone.
    fn exchange(&mut self, parts: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>, ExchangeError>;

    /// What every rank gives, by rank.
    ///
    /// # Errors
    /// A rank that is gone.
    fn gather(&mut self, own: Vec<u8>) -> Result<Vec<Vec<u8>>, ExchangeError> {
        let parts = vec![own; self.size()];
        self.exchange(parts)
    }
}

/// One process.
#[derive(Clone, Copy, Debug, Default)]
pub struct Alone;

impl Exchange for Alone {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn exchange(&mut self, parts: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>, ExchangeError> {
        Ok(parts)
    }
}

/// The part of `count` numbers that a rank of `size` sums.
pub(super) fn share(count: usize, rank: usize, size: usize) -> Range<usize> {
    // No product of large numbers, which might not fit.
    let (each, more) = (count / size, count % size);
    let from = |rank: usize| rank * each + rank.min(more);
    from(rank)..from(rank + 1)
}

/// Numbers as bytes, in the machine's order: the ranks are of one kind.
pub(super) fn to_bytes(numbers: &[f32]) -> Vec<u8> {
    bytemuck::cast_slice(numbers).to_vec()
}

/// [`to_bytes`] back.
pub(super) fn from_bytes(bytes: &[u8]) -> Vec<f32> {
    bytemuck::pod_collect_to_vec(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_is_in_one_share() {
        for (count, size) in [(0, 3), (2, 3), (7, 3), (64, 4), (65, 64)] {
            let shares: Vec<Range<usize>> = (0..size).map(|rank| share(count, rank, size)).collect();
            assert_eq!(
                shares.iter().cloned().flatten().collect::<Vec<_>>(),
                (0..count).collect::<Vec<_>>()
            );
            let lengths = shares.iter().map(Range::len);
            assert!(lengths.clone().max().unwrap() - lengths.min().unwrap() <= 1);
        }
    }
}

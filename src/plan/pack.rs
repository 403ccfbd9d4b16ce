//! Values into buffers: where each lies while it lives, so that few bytes are needed in all.

use crate::tensor::{ALIGNMENT, scrambled};

/// Orders that are tried beside the sorted ones.
const SHUFFLED: usize = 24;

/// What needs memory for a while.
#[derive(Clone, Debug)]
pub(super) struct Item {
    pub bytes: u64,
    /// First and last moment at which it holds something.
    pub from: usize,
    pub to: usize,
    /// Items that it may never share a buffer with: a dispatch reads one and writes the other, and WebGPU tracks use by
    /// whole buffer.
    pub apart: Vec<usize>,
}

/// A packing: for each item its buffer and first byte there, and the buffers' bytes.
#[derive(Clone, Debug, Default)]
pub(super) struct Packing {
    pub places: Vec<(usize, u64)>,
    pub buffers: Vec<u64>,
}

impl Packing {
    pub(super) fn bytes(&self) -> u64 {
        self.buffers.iter().sum()
    }
}

/// Tries a few orders, each deterministic, and keeps the smallest packing. `least` is what any packing needs at least, and
/// `most` the largest buffer there may be (an item beyond it gets a buffer of its own, which the plan refuses).
pub(super) fn pack(items: &[Item], least: u64, most: u64) -> Packing {
    let time = |i: usize| (items[i].to - items[i].from + 1) as u64;
    let keys: [&dyn Fn(usize) -> (u64, u64); 4] = [
        &|i| (items[i].bytes, time(i)),
        &|i| (items[i].bytes / (1 << 20), time(i)),
        &|i| (items[i].bytes.saturating_mul(time(i)), items[i].bytes),
        &|i| (time(i), items[i].bytes),
    ];
    let mut orders: Vec<Vec<usize>> = Vec::new();
    for key in keys {
        let mut order: Vec<usize> = (0..items.len()).collect();
        order.sort_by_key(|&i| (std::cmp::Reverse(key(i)), i));
        orders.push(order);
    }
    for round in 0..SHUFFLED {
        // By size, each up to a third off.
        let off = |i: usize| 192 + (scrambled(round << 20 | i) % 128) as u64;
        let mut order: Vec<usize> = (0..items.len()).collect();
        order.sort_by_key(|&i| (std::cmp::Reverse(items[i].bytes * off(i)), i));
        orders.push(order);
    }
    let mut best: Option<Packing> = None;
    for order in orders {
        let packing = in_order(items, &order, most);
        if best.as_ref().is_none_or(|b| packing.bytes() < b.bytes()) {
            best = Some(packing);
        }
        if best.as_ref().is_some_and(|b| b.bytes() <= least + least / 100) {
            break;
        }
    }
    best.unwrap_or_default()
}

/// Each item at the place that grows the buffers least, the first of equal ones.
fn in_order(items: &[Item], order: &[usize], most: u64) -> Packing {
    let mut packing = Packing {
        places: vec![(usize::MAX, 0); items.len()],
        buffers: Vec::new(),
    };
    let mut inside: Vec<Vec<usize>> = Vec::new();
    for &i in order {
        let item = &items[i];
        let bytes = item.bytes.next_multiple_of(ALIGNMENT);
        let mut barred = vec![false; inside.len()];
        for &other in &item.apart {
            if let Some(barred) = barred.get_mut(packing.places[other].0) {
                *barred = true;
            }
        }
        // growth, buffer, first byte
        let mut best = (bytes, inside.len(), 0);
        for (buffer, others) in inside.iter().enumerate().filter(|(b, _)| !barred[*b]) {
            let mut taken: Vec<(u64, u64)> = others
                .iter()
                .filter(|o| items[**o].from <= item.to && item.from <= items[**o].to)
                .map(|o| {
                    let at = packing.places[*o].1;
                    (at, at + items[*o].bytes.next_multiple_of(ALIGNMENT))
                })
                .collect();
            taken.sort_unstable();
            let mut at = 0;
            for (from, to) in taken {
                if at + bytes <= from {
                    break;
                }
                at = at.max(to);
            }
            let growth = (at + bytes).saturating_sub(packing.buffers[buffer]);
            if at + bytes <= most && (growth, buffer) < (best.0, best.1) {
                best = (growth, buffer, at);
            }
        }
        let (growth, buffer, at) = best;
        if buffer == inside.len() {
            inside.push(Vec::new());
            packing.buffers.push(0);
        }
        packing.buffers[buffer] += growth;
        packing.places[i] = (buffer, at);
        inside[buffer].push(i);
    }
    packing
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lives_together_never_overlaps() {
        for round in 0..200 {
            let number = |i: usize, below: usize| scrambled(round * 1000 + i) as usize % below;
            let count = 1 + number(0, 40);
            let mut items: Vec<Item> = (0..count)
                .map(|i| {
                    let from = number(3 * i + 1, 30);
                    Item {
                        bytes: number(3 * i + 2, 5000) as u64 * 4 + 4,
                        from,
                        to: from + number(3 * i + 3, 12),
                        apart: Vec::new(),
                    }
                })
                .collect();
            for k in 0..count {
                let (a, b) = (number(500 + 2 * k, count), number(501 + 2 * k, count));
                if a != b {
                    items[a].apart.push(b);
                    items[b].apart.push(a);
                }
            }
            let most = 24_000;
            let at = |t: usize| items.iter().filter(move |i| i.from <= t && t <= i.to);
            let least = (0..50)
                .map(|t| at(t).map(|i| i.bytes).sum::<u64>())
                .max()
                .unwrap();
            let packing = pack(&items, least, most);
            assert!(packing.bytes() >= least);
            for (i, a) in items.iter().enumerate() {
                let (buffer, from) = packing.places[i];
                assert_eq!(from % ALIGNMENT, 0);
                assert!(from + a.bytes <= packing.buffers[buffer] && packing.buffers[buffer] <= most);
                for &other in &a.apart {
                    assert_ne!(buffer, packing.places[other].0, "read and written in one buffer");
                }
                for (j, b) in items.iter().enumerate().skip(i + 1) {
                    let (other, start) = packing.places[j];
                    let together = a.from <= b.to && b.from <= a.to;
                    let overlap = from < start + b.bytes && start < from + a.bytes;
                    assert!(
                        !(together && buffer == other && overlap),
                        "{i} and {j} of round {round}"
                    );
                }
            }
        }
    }
}

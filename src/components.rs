//! Connected parts of label maps: the clean-up after a segmentation.

use std::collections::HashMap;

/// What stays of a label.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Keep {
    /// The largest component; of equal ones the one that comes first in the file.
    Largest,
    /// Components of so many voxels and more.
    AtLeast(usize),
}

/// Turns what does not stay of a label into background (0): its components are the voxels that touch by a face, an edge or a
/// corner (26 neighbours), as nnU-Net's clean-up counts them. `labels` are `[X, Y, Z]`, z fastest. Returns the voxels removed.
///
/// # Panics
/// If there are not as many labels as the shape says.
pub fn clean(labels: &mut [i32], shape: [usize; 3], label: i32, keep: Keep) -> usize {
    assert_eq!(labels.len(), shape.iter().product::<usize>(), "{shape:?}");
    let mut parts = Parts::default();
    let runs = runs(labels, shape, label, &mut parts);
    let mut sizes: HashMap<u32, usize> = HashMap::new();
    for run in &runs {
        *sizes.entry(parts.root(run.part)).or_default() += run.end - run.start;
    }
    // Roots are the lowest numbers of their components, in the order of the file.
    let largest = sizes
        .iter()
        .max_by_key(|(root, size)| (**size, u32::MAX - **root));
    let largest = largest.map(|(root, _)| *root);
    let mut removed = 0;
    for run in &runs {
        let root = parts.root(run.part);
        let stays = match keep {
            Keep::Largest => Some(root) == largest,
            Keep::AtLeast(voxels) => sizes[&root] >= voxels,
        };
        if !stays {
            labels[run.start..run.end].fill(0);
            removed += run.end - run.start;
        }
    }
    removed
}

/// Voxels of the label that follow each other along z, by their index.
struct Run {
    start: usize,
    end: usize,
    part: u32,
}

/// Every run, each with a part; parts that touch are joined.
fn runs(labels: &[i32], [x, y, z]: [usize; 3], label: i32, parts: &mut Parts) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    // The runs of each row, as a range.
    let mut rows: Vec<(usize, usize)> = Vec::with_capacity(x * y);
    for row in 0..x * y {
        let (i, j) = (row / y, row % y);
        let first = runs.len();
        let mut k = 0;
        while k < z {
            if labels[row * z + k] != label {
                k += 1;
                continue;
            }
            let start = k;
            while k < z && labels[row * z + k] == label {
                k += 1;
            }
            runs.push(Run {
                start: row * z + start,
                end: row * z + k,
                part: parts.add(),
            });
        }
        rows.push((first, runs.len()));
        let before = [(0, -1), (-1, -1), (-1, 0), (-1, 1)];
        for (di, dj) in before {
            let (Some(ni), Some(nj)) = (i.checked_add_signed(di), j.checked_add_signed(dj)) else {
                continue;
            };
            if nj >= y {
                continue;
            }
            let (mut other, end) = rows[ni * y + nj];
            let offset = row * z - (ni * y + nj) * z;
            for at in first..runs.len() {
                let (start, stop) = (runs[at].start, runs[at].end);
                // Runs of a row are in order, so each is passed once.
                while other < end && runs[other].end + offset < start {
                    other += 1;
                }
                let mut touching = other;
                while touching < end && runs[touching].start + offset <= stop {
                    parts.join(runs[at].part, runs[touching].part);
                    touching += 1;
                }
            }
        }
    }
    runs
}

/// Disjoint sets, each known by its lowest number.
#[derive(Default)]
struct Parts(Vec<u32>);

impl Parts {
    fn add(&mut self) -> u32 {
        let part = self.0.len() as u32;
        self.0.push(part);
        part
    }

    fn root(&mut self, mut part: u32) -> u32 {
        while self.0[part as usize] != part {
            let above = self.0[part as usize];
            self.0[part as usize] = self.0[above as usize];
            part = above;
        }
        part
    }

    fn join(&mut self, a: u32, b: u32) {
        let (a, b) = (self.root(a), self.root(b));
        self.0[a.max(b) as usize] = a.min(b);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Components by flooding, the obvious way.
    fn flooded(labels: &[i32], [x, y, z]: [usize; 3], label: i32) -> Vec<Vec<usize>> {
        let mut seen = vec![false; labels.len()];
        let mut all = Vec::new();
        for first in 0..labels.len() {
            if labels[first] != label || seen[first] {
                continue;
            }
            seen[first] = true;
            let (mut open, mut part) = (vec![first], Vec::new());
            while let Some(at) = open.pop() {
                part.push(at);
                let (i, j, k) = (at / (y * z), at / z % y, at % z);
                for ni in i.saturating_sub(1)..(i + 2).min(x) {
                    for nj in j.saturating_sub(1)..(j + 2).min(y) {
                        for nk in k.saturating_sub(1)..(k + 2).min(z) {
                            let next = (ni * y + nj) * z + nk;
                            if labels[next] == label && !seen[next] {
                                seen[next] = true;
                                open.push(next);
                            }
                        }
                    }
                }
            }
            all.push(part);
        }
        all
    }

    #[test]
    fn components_are_those_of_a_flood() {
        let mut state = 7u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 16) as usize
        };
        for shape in [[5, 6, 7], [1, 9, 4], [8, 1, 1], [3, 3, 17], [6, 5, 1]] {
            for share in [5, 15, 40] {
                let count: usize = shape.iter().product();
                let labels: Vec<i32> = (0..count)
                    .map(|_| {
                        if next() % 100 < share {
                            2
                        } else {
                            (next() % 2) as i32
                        }
                    })
                    .collect();
                let parts = flooded(&labels, shape, 2);
                for keep in [Keep::Largest, Keep::AtLeast(3)] {
                    let mut expected = labels.clone();
                    let largest = parts.iter().map(Vec::len).max();
                    let kept = match keep {
                        Keep::Largest => parts.iter().position(|part| Some(part.len()) == largest),
                        Keep::AtLeast(_) => None,
                    };
                    for (i, part) in parts.iter().enumerate() {
                        let stays = match keep {
                            Keep::Largest => Some(i) == kept,
                            Keep::AtLeast(voxels) => part.len() >= voxels,
                        };
                        if !stays {
                            part.iter().for_each(|at| expected[*at] = 0);
                        }
                    }
                    let mut cleaned = labels.clone();
                    let removed = clean(&mut cleaned, shape, 2, keep);
                    assert_eq!(cleaned, expected, "{shape:?} {keep:?}");
                    let before = labels.iter().filter(|l| **l == 2).count();
                    let after = cleaned.iter().filter(|l| **l == 2).count();
                    assert_eq!(removed, before - after);
                }
            }
        }
    }

    #[test]
    fn an_absent_label_changes_nothing() {
        let mut labels = vec![0, 1, 1, 0];
        assert_eq!(clean(&mut labels, [1, 2, 2], 3, Keep::Largest), 0);
        assert_eq!(labels, [0, 1, 1, 0]);
    }
}

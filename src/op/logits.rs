//! What losses over the voxels of logits and labels share.

use super::*;

/// Checks logits and labels, for every loss that takes both; returns the number of classes.
pub(super) fn check_logits(op: &'static str, inputs: &[Spec]) -> Result<usize, GraphError> {
    if let [logits, labels, ..] = inputs
        && let (Some([n, classes, d, h, w]), Layout::Map) = (logits.ncdhw(), logits.layout)
        && *labels == Spec::flat(&[n, 1, d, h, w])
        && classes >= 2
    {
        return Ok(classes);
    }
    let reason =
        "takes logits, a map [N, L, D, H, W] of two or more classes, and flat labels [N, 1, D, H, W]";
    Err(GraphError::shape(op, inputs, reason))
}

/// Loops over blocks of four classes for one voxel's cross-entropy.
pub(super) fn loops(logits: &Spec) -> usize {
    4 * logits.blocks()
}

/// Constants of `common/classes`.
pub(super) fn classes(logits: &Spec) -> Vec<(&'static str, u32)> {
    vec![
        ("CLASSES", logits.shape[1] as u32),
        ("BLOCKS", logits.blocks() as u32),
    ]
}

/// Calls `visit(index of class l, softmax, label)` for every voxel whose label is not negative.
pub(super) fn for_each_voxel(
    logits: &Tensor,
    labels: &Tensor,
    mut visit: impl FnMut(&dyn Fn(usize) -> usize, &[f64], usize),
) {
    let [n, classes, d, h, w] = logits.ncdhw();
    let volume = d * h * w;
    for voxel in 0..n * volume {
        let label = labels.data[voxel];
        if label < 0.0 {
            continue;
        }
        let at = |l: usize| (voxel / volume * classes + l) * volume + voxel % volume;
        let highest = (0..classes)
            .map(|l| logits.data[at(l)] as f64)
            .fold(f64::MIN, f64::max);
        let exp: Vec<f64> = (0..classes)
            .map(|l| (logits.data[at(l)] as f64 - highest).exp())
            .collect();
        let sum: f64 = exp.iter().sum();
        let p: Vec<f64> = exp.iter().map(|e| e / sum).collect();
        visit(&at, &p, label as usize);
    }
}

/// −log softmax at the label, of the voxel whose class l is at index `at(l)`.
pub(super) fn voxel_cross_entropy(logits: &Tensor, at: &dyn Fn(usize) -> usize, label: usize) -> f64 {
    let z: Vec<f64> = (0..logits.shape[1]).map(|l| logits.data[at(l)] as f64).collect();
    let highest = z.iter().copied().fold(f64::MIN, f64::max);
    highest - z[label] + z.iter().map(|z| (z - highest).exp()).sum::<f64>().ln()
}

//! One axis of a convolution's sum, or of its input gradient's.

use std::ops::Range;

use crate::op::conv3d::Conv3dConfig;

/// Lattice points i < count at output `offset + scale·i` see input `start + stride·i + step·k` through tap
/// `first + tap_step·k` of the weight, k < taps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Axis {
    pub count: usize,
    pub taps: usize,
    pub first: i32,
    pub tap_step: i32,
    pub start: i32,
    pub stride: usize,
    pub step: usize,
    pub offset: usize,
    pub scale: usize,
}

impl Axis {
    pub fn forward(config: &Conv3dConfig, axis: usize, outputs: usize, kernel: usize) -> Self {
        Axis {
            count: outputs,
            taps: kernel,
            first: 0,
            tap_step: 1,
            start: -(config.padding[axis] as i32),
            stride: config.stride[axis],
            step: config.dilation[axis],
            offset: 0,
            scale: 1,
        }
    }

    /// The input voxels q of one residue modulo the stride s see output p through tap k where q + padding − k·dilation =
    /// p·s. The taps that do are an arithmetic sequence, and so are their p: each residue is a convolution of its own.
    pub fn gradient(config: &Conv3dConfig, axis: usize, inputs: usize, kernel: usize) -> Vec<Self> {
        let (stride, padding, dilation) = (
            config.stride[axis],
            config.padding[axis] as i32,
            config.dilation[axis] as i32,
        );
        let s = stride as i32;
        (0..stride.min(inputs))
            .map(|residue| {
                let ahead = |k: i32| residue as i32 + padding - k * dilation;
                // Descending taps, so that the outputs they reach ascend.
                let taps: Vec<i32> = (0..kernel as i32)
                    .rev()
                    .filter(|&k| ahead(k).rem_euclid(s) == 0)
                    .collect();
                let apart = if taps.len() > 1 { taps[0] - taps[1] } else { 0 };
                Axis {
                    count: (inputs - residue).div_ceil(stride),
                    taps: taps.len(),
                    first: taps.first().copied().unwrap_or(0),
                    tap_step: -apart,
                    start: taps.first().map_or(0, |&k| ahead(k) / s),
                    stride: 1,
                    step: (apart * dilation / s).max(1) as usize,
                    offset: residue,
                    scale: stride,
                }
            })
            .collect()
    }

    /// Input positions that lattice points from `from` to `to` (inclusive) see, clamped to the input.
    pub fn sees(&self, from: usize, to: usize, size: usize) -> (usize, usize) {
        let clamp = |v: i64| v.clamp(0, size as i64 - 1) as usize;
        let at = |i: usize, tap: usize| self.start as i64 + (i * self.stride + tap * self.step) as i64;
        (clamp(at(from, 0)), clamp(at(to, self.taps.saturating_sub(1))))
    }

    /// Input planes (n, z) that lattice planes read, of an input of that depth.
    pub fn planes_seen(&self, planes: &Range<usize>, depth: usize) -> Range<usize> {
        let at = |plane: usize| {
            let (low, high) = self.sees(plane % self.count, plane % self.count, depth);
            (
                plane / self.count * depth + low,
                plane / self.count * depth + high,
            )
        };
        let (first, last) = (at(planes.start).0, at(planes.end - 1).1);
        first.min(last)..last + 1
    }

    /// Whether the lattice is all of what is written.
    pub fn is_whole(&self) -> bool {
        (self.offset, self.scale) == (0, 1)
    }

    /// Whether each point sees itself alone.
    pub fn is_pointwise(&self) -> bool {
        (self.taps, self.start, self.stride, self.offset, self.scale) == (1, 0, 1, 0, 1)
    }

    /// Taps that one invocation unrolls along this axis while they share rows, and the rows between two points.
    pub fn unrolled(&self) -> (usize, usize) {
        if (2..=3).contains(&self.taps) && self.step == 1 && self.stride <= 2 {
            (self.taps, self.stride)
        } else {
            (1, 1)
        }
    }

    /// Whether Winograd's and the sliding weight gradient's kernels cover it: three taps, no stride or dilation.
    pub fn slides(&self) -> bool {
        (self.taps, self.stride, self.step, self.offset, self.scale) == (3, 1, 1, 0, 1)
    }

    /// Input rows between two rows that the kernel loads.
    pub fn row_step(&self) -> usize {
        if self.unrolled().0 > 1 { 1 } else { self.stride }
    }
}

/// The axes y and x as one where neither has more than one tap, padding or stride, else as they are; and the sizes on
/// them of the tensors that the sums read and write. One long axis leaves few rows over when it is cut into ROWS.
pub fn flatten(
    ay: Axis,
    ax: Axis,
    read: [usize; 2],
    written: [usize; 2],
) -> (Axis, Axis, [usize; 2], [usize; 2]) {
    if !(ay.is_pointwise() && ax.is_pointwise() && read == written) {
        return (ay, ax, read, written);
    }
    let size = [read[0] * read[1], 1];
    let (y, x) = (Axis { count: size[0], ..ay }, Axis { count: 1, ..ax });
    (y, x, size, size)
}

//! Sampling grids of affine maps after smooth deformations.

use super::*;

params! {
    /// The uniform of `warp_grid.wgsl`.
    struct Params {
        /// N · D · H · W.
        count: u32,
        depth: u32,
        height: u32,
        width: u32,
        /// Of the displacement.
        d: u32,
        h: u32,
        w: u32,
    }
}

/// From theta, flat `[N, 3, 4]`, and a displacement u, flat `[N, 3, d, h, w]` of (x, y, z), to the grid, flat `[N, D, H, W, 3]`,
/// of theta · (p + u(p), 1) for every output voxel p, all in normalised coordinates (−1 and 1 are the centres of the outer voxels).
/// u is trilinear between the centres of its own voxels. For augmentation: it has no gradient.
#[derive(Clone, Copy, Debug)]
pub struct WarpGrid {
    /// D, H, W of the grid.
    pub size: [usize; 3],
}

/// The normalised coordinate of voxel i of n.
fn coordinate(i: usize, n: usize) -> f64 {
    match n {
        1 => 0.0,
        _ => (2.0 * i as f64 - (n - 1) as f64) / (n - 1) as f64,
    }
}

/// The voxel before output voxel `i` of `n` on an axis of `m` voxels with the same ends, and the share of the next one.
pub(super) fn cell(i: usize, n: usize, m: usize) -> (usize, f32) {
    if n == 1 || m == 1 {
        return (0, 0.0);
    }
    // In integers, so that kernels and references find the same cell.
    let at = i * (m - 1);
    let before = (at / (n - 1)).min(m - 2);
    (before, (at - before * (n - 1)) as f32 / (n - 1) as f32)
}

/// The value of a field `[d, h, w]` at voxel (z, y, x) of a volume `[D, H, W]` with the same corners.
pub(super) fn field(values: &[f32], [d, h, w]: [usize; 3], at: [usize; 3], size: [usize; 3]) -> f64 {
    let cells: [(usize, f32); 3] = std::array::from_fn(|a| cell(at[a], size[a], [d, h, w][a]));
    let mut sum = 0.0;
    for corner in 0..8usize {
        let (mut index, mut weight) = (0, 1.0);
        for (a, n) in [d, h, w].into_iter().enumerate() {
            let upper = corner >> (2 - a) & 1;
            let (before, share) = cells[a];
            index = index * n + (before + upper).min(n - 1);
            weight *= if upper == 1 { share } else { 1.0 - share } as f64;
        }
        sum += weight * values[index] as f64;
    }
    sum
}

impl Op for WarpGrid {
    fn name(&self) -> &'static str {
        "warp_grid"
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>, GraphError> {
        let [d, h, w] = self.size;
        match inputs {
            [theta, u]
                if theta.shape.len() == 3
                    && theta.shape[1..] == [3, 4]
                    && u.shape.len() == 5
                    && u.shape[..2] == [theta.shape[0], 3]
                    && u.layout == Layout::Flat
                    && u.shape.iter().chain(&self.size).all(|n| *n > 0) =>
            {
                Ok(vec![Spec::flat(&[theta.shape[0], d, h, w, 3])])
            }
            _ => Err(GraphError::shape(
                "warp_grid",
                inputs,
                "takes theta [N, 3, 4], a displacement [N, 3, d, h, w], and a size of one voxel or more",
            )),
        }
    }

    fn dispatches(&self, io: &mut Io, _: &Caps) -> Result<Vec<Dispatch>, GraphError> {
        use BufferRef::*;
        let ([depth, height, width], u) = (self.size, &io.inputs[1].shape);
        let count = u[0] * depth * height * width;
        Ok(vec![Dispatch {
            params: Params {
                count: int(count),
                depth: int(depth),
                height: int(height),
                width: int(width),
                d: int(u[2]),
                h: int(u[3]),
                w: int(u[4]),
            }
            .into(),
            bindings: vec![read(Input(0)), read(Input(1)), write(Output(0))],
            workgroups: linear_groups(count, 64),
            iterations: 3,
            flops: (count * 3 * 24) as u64,
            ..Dispatch::new(shader!("warp_grid", "common/field"; Params), "main")
        }])
    }

    fn reference(&self, inputs: &[&Tensor], _: &StepScalars) -> Vec<Tensor> {
        let [d, h, w] = self.size;
        let (theta, u) = (inputs[0], inputs[1]);
        let coarse = [u.shape[2], u.shape[3], u.shape[4]];
        let volume: usize = coarse.iter().product();
        let mut data = Vec::new();
        for n in 0..theta.shape[0] {
            let theta = &theta.data[12 * n..12 * n + 12];
            for i in 0..d * h * w {
                let at = [i / w / h, i / w % h, i % w];
                let moved: [f64; 3] = std::array::from_fn(|axis| {
                    let values = &u.data[(3 * n + axis) * volume..][..volume];
                    coordinate(at[2 - axis], self.size[2 - axis]) + field(values, coarse, at, self.size)
                });
                data.extend(theta.chunks_exact(4).map(|row| {
                    let turned: f64 = (0..3).map(|j| row[j] as f64 * moved[j]).sum();
                    (turned + row[3] as f64) as f32
                }));
            }
        }
        vec![Tensor::new(&[theta.shape[0], d, h, w, 3], data)]
    }
}

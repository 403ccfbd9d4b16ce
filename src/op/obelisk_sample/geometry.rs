//! Where a sampling reads: its sizes, the uniform that its kernels share, and the positions for the reference.

use super::Locations;
use crate::op::*;

/// The numbers of a sampling: image `[n, c, size]`, K offsets, `terms` samples each, on `grid`.
#[derive(Clone, Copy, Debug)]
pub(in crate::op) struct Geometry {
    pub n: usize,
    pub c: usize,
    pub size: [usize; 3],
    pub k: usize,
    pub terms: usize,
    pub grid: [usize; 3],
    pub points: bool,
    pub cells: bool,
}

impl Geometry {
    /// Whether grid points lie more than two voxels apart on each axis.
    pub(super) fn is_sparse(&self) -> bool {
        let apart = |(size, points): (&usize, &usize)| *points > 1 && size - 1 > 2 * (points - 1);
        !self.points && !self.cells && self.size.iter().zip(&self.grid).all(apart)
    }

    pub(in crate::op) fn new(
        op: &'static str,
        inputs: &[Spec],
        locations: Locations,
        image: &Spec,
        offsets: &Spec,
        points: Option<&Spec>,
    ) -> Result<Self, GraphError> {
        let wrong = |reason: &str| Err(GraphError::shape(op, inputs, reason));
        let Some([n, c, d, h, w]) = image.ncdhw().filter(|_| image.count() > 0) else {
            return wrong("the image must be [N, C, D, H, W]");
        };
        let (k, terms) = match offsets.shape[..] {
            [1, k, 1, terms @ (1 | 2), 3] if k > 0 && offsets.layout == Layout::Flat => (k, terms),
            _ => {
                return wrong("the offsets must be [1, K, 1, 1, 3], or [1, K, 1, 2, 3] for differences");
            }
        };
        let grid = match (locations, points) {
            (Locations::Grid(grid) | Locations::Cells(grid), None) if grid.iter().all(|g| *g > 0) => grid,
            (Locations::Grid(_) | Locations::Cells(_), _) => {
                return wrong("the grid must have at least one point on each axis");
            }
            (Locations::Points, Some(p)) => match p.shape[..] {
                [batch, s, 3] if batch == n && s > 0 && p.layout == Layout::Flat => [1, 1, s],
                _ => return wrong("the points must be flat [N, S, 3]"),
            },
            (Locations::Points, None) => return wrong("takes image, offsets and points"),
        };
        Ok(Geometry {
            n,
            c,
            size: [d, h, w],
            k,
            terms,
            grid,
            points: points.is_some(),
            cells: matches!(locations, Locations::Cells(_)),
        })
    }

    pub(in crate::op) fn samples(&self) -> Spec {
        let [d, h, w] = self.grid;
        Spec::map([self.n, self.c * self.k, d, h, w])
    }

    /// Slopes of the samples.
    pub(super) fn slopes(&self) -> Spec {
        let [d, h, w] = self.grid;
        Spec::map([self.n, 3 * self.terms * self.c * self.k, d, h, w])
    }

    pub(in crate::op) fn locations(&self) -> usize {
        self.n * self.grid.iter().product::<usize>()
    }

    pub(in crate::op) fn constants(&self) -> Vec<(&'static str, u32)> {
        vec![
            ("BINARY", self.terms as u32 - 1),
            ("POINTS", self.points as u32),
            ("CELLS", self.cells as u32),
        ]
    }

    /// The uniform of a kernel that samples this image; what differs between dispatches is zero.
    pub(in crate::op) fn params(&self, image: &Spec) -> Sampling {
        let [d, h, w] = self.size.map(int);
        let [stride_x, stride_y, stride_z, stride_lane, stride_block, stride_n] = strides(image).map(int);
        Sampling {
            channels: int(self.c),
            offsets: int(self.k),
            size_x: w,
            size_y: h,
            size_z: d,
            grid_x: int(self.grid[2]),
            grid_y: int(self.grid[1]),
            grid_z: int(self.grid[0]),
            stride_x,
            stride_y,
            stride_z,
            stride_lane,
            stride_block,
            stride_n,
            ..Sampling::default()
        }
    }

    /// Calls `visit(n, k, sign, location, position)` for every sample; `location` counts over `grid`, positions are
    /// (z, y, x) in voxels.
    pub(in crate::op) fn visit(
        &self,
        offsets: &Tensor,
        points: Option<&Tensor>,
        mut visit: impl FnMut(usize, usize, usize, usize, [f64; 3]),
    ) {
        let [gd, gh, gw] = self.grid;
        for n in 0..self.n {
            for s in 0..gd * gh * gw {
                let at = [s / (gh * gw), s / gw % gh, s % gw];
                for k in 0..self.k {
                    for j in 0..self.terms {
                        let mut position = [0.0; 3];
                        for axis in 0..3 {
                            let extent = (self.size[axis] - 1) as f64;
                            let xyz = 2 - axis;
                            let location = match points {
                                Some(p) => (p.data[(n * gw + s) * 3 + xyz] as f64 + 1.0) / 2.0 * extent,
                                None if self.cells => {
                                    let cell = self.size[axis] as f64 / self.grid[axis] as f64;
                                    (at[axis] as f64 + 0.5) * cell - 0.5
                                }
                                None if self.grid[axis] == 1 => extent / 2.0,
                                None => at[axis] as f64 * extent / (self.grid[axis] - 1) as f64,
                            };
                            let offset = offsets.data[(k * self.terms + j) * 3 + xyz] as f64;
                            position[axis] = location + offset / 2.0 * extent;
                        }
                        visit(n, k, j, s, position);
                    }
                }
            }
        }
    }

    /// Calls `visit([z, y, x], weight, derivative of the weight by z, y, x)` for the corners of a position's cell that
    /// lie inside the image.
    pub(in crate::op) fn corners(
        &self,
        position: [f64; 3],
        mut visit: impl FnMut([usize; 3], f64, [f64; 3]),
    ) {
        for corner in 0..8 {
            let (mut index, mut weights, mut signs) = ([0; 3], [0.0; 3], [0.0; 3]);
            let mut inside = true;
            for axis in 0..3 {
                let upper = corner >> axis & 1;
                let low = position[axis].floor();
                let at = low as i64 + upper;
                inside &= at >= 0 && at < self.size[axis] as i64;
                index[axis] = at as usize;
                let fraction = position[axis] - low;
                weights[axis] = if upper == 1 { fraction } else { 1.0 - fraction };
                signs[axis] = if upper == 1 { 1.0 } else { -1.0 };
            }
            if inside {
                let [z, y, x] = weights;
                let slopes = [signs[0] * y * x, signs[1] * z * x, signs[2] * z * y];
                visit(index, z * y * x, slopes);
            }
        }
    }
}

params! {
    /// The uniform of every kernel that includes `common/obelisk.wgsl`.
    #[derive(Default)]
    pub(in crate::op) struct Sampling {
        /// Invocations or locations of this dispatch.
        count: u32,
        /// First slice (n, depth) of X's or F's binding.
        first: u32,
        /// Past its last slice, for the gather of the image's gradient.
        end: u32,
        /// Of sums in fixed point.
        headroom: u32,
        /// Partial sums of each number, over all dispatches.
        partials: u32,
        /// Those of earlier dispatches.
        partial_base: u32,
        /// Invocations that share the locations of a dispatch.
        threads: u32,
        /// C.
        channels: u32,
        /// K.
        offsets: u32,
        size_x: u32,
        size_y: u32,
        size_z: u32,
        grid_x: u32,
        grid_y: u32,
        grid_z: u32,
        stride_x: u32,
        stride_y: u32,
        stride_z: u32,
        /// Of one channel inside four.
        stride_lane: u32,
        /// Of four channels.
        stride_block: u32,
        stride_n: u32,
        /// Of a layer: channels of X in a group.
        columns: u32,
        /// Of a layer: vec4s of F in a group.
        blocks: u32,
        /// Of a layer: channels of F.
        outputs: u32,
        /// Of a layer: runs of vec4s that make a group.
        pieces: u32,
        /// Of a layer: elements in a binding of the image where it has several.
        part: u32,
    }
}

/// Elements between neighbours along x, y, z, channels inside four, blocks of four channels, and n.
fn strides(image: &Spec) -> [usize; 6] {
    let [_, c, d, h, w] = image.ncdhw().expect("checked on insertion");
    match image.layout {
        Layout::Flat => [1, w, h * w, d * h * w, 4 * d * h * w, c * d * h * w],
        Layout::Map => {
            let block = h * w * 4;
            let blocks = image.blocks();
            [4, 4 * w, blocks * block, 1, block, d * blocks * block]
        }
    }
}

fn split(inputs: &[Spec], locations: Locations) -> Option<(&Spec, &Spec, Option<&Spec>)> {
    match (inputs, locations) {
        ([image, offsets], Locations::Grid(_) | Locations::Cells(_)) => Some((image, offsets, None)),
        ([image, offsets, points], Locations::Points) => Some((image, offsets, Some(points))),
        _ => None,
    }
}

pub(in crate::op) fn geometry(
    op: &'static str,
    inputs: &[Spec],
    locations: Locations,
) -> Result<Geometry, GraphError> {
    let (image, offsets, points) = split(inputs, locations).ok_or_else(|| {
        GraphError::shape(
            op,
            inputs,
            "takes image and offsets, and points where it samples points",
        )
    })?;
    Geometry::new(op, inputs, locations, image, offsets, points)
}

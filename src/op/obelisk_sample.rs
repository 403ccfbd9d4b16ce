//! Sampling of an OBELISK layer (method section 1): trilinear values of an image at locations moved by trained offsets.

use super::fixed_point::Scatter;
use super::*;

params! {
    /// The uniform of `obelisk_slopes.wgsl`.
    struct SlopeSums {
        /// Locations of this dispatch, or vec4s.
        count: u32,
        /// H W of the grid.
        plane: u32,
        /// C K / 4.
        blocks: u32,
        /// K / 4.
        offsets: u32,
        channels: u32,
        threads: u32,
        /// Threads of earlier dispatches.
        first: u32,
    }
}

/// The gather of the image's gradient for [`Geometry::is_sparse`], with subgroups of eight or without.
fn gather_module(lanes: bool, interleaved: bool) -> Shader {
    macro_rules! gather {
        ($name:literal, $upstream:literal) => {
            shader!(
                $name,
                "common/divide",
                "common/obelisk",
                "common/obelisk_near",
                $upstream,
                "common/trilinear"; Sampling)
        };
    }
    match (lanes, interleaved) {
        (true, false) => gather!("obelisk_gather_lanes", "common/obelisk_upstream"),
        (true, true) => gather!("obelisk_gather_lanes", "common/obelisk_upstream_fours"),
        (false, false) => gather!("obelisk_gather_sparse", "common/obelisk_upstream"),
        (false, true) => gather!("obelisk_gather_sparse", "common/obelisk_upstream_fours"),
    }
}

const SHADER: Shader = shader!(
    "obelisk_sample",
    "common/divide",
    "common/obelisk",
    "common/trilinear",
    "common/fixed_point",
    "common/fixed_point_add"; Sampling);

/// Where an OBELISK layer samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Locations {
    /// A regular grid of this depth, height and width whose outer points are the centres of the outer voxels
    /// (align_corners = true); the only point of an axis lies at its middle.
    Grid([usize; 3]),
    /// The centres of the cells of a regular grid of this depth, height and width that divides the volume evenly, where
    /// upsampling takes its input to lie (align_corners = false).
    Cells([usize; 3]),
    /// At the points of a third input, flat `[N, S, 3]`: (x, y, z) with x along W, −1 and +1 at the centres of the
    /// outer voxels. The result has the grid `[1, 1, S]`.
    Points,
}

/// X[n, c·K + k, s] = I(n, c, p_s + o_k), or with two offsets a coefficient I(n, c, p_s + o_k0) − I(n, c, p_s + o_k1):
/// trilinear, corners outside the volume count as zero.
///
/// Inputs: image flat `[N, C, D, H, W]` or a map, offsets flat `[1, K, 1, 1, 3]` (unary) or `[1, K, 1, 2, 3]` (binary)
/// in normalised coordinates (x, y, z), and with [`Locations::Points`] the points. Output: a map `[N, C·K, d, h, w]`.
/// Gradients flow to the offsets and the image. At a cell border the offsets' gradient is that of the upper cell.
#[derive(Clone, Copy, Debug)]
pub struct ObeliskSample {
    /// The sampling locations p.
    pub locations: Locations,
    /// Store the slopes as well: a second output, a map `[N, 3 T·C·K, d, h, w]` of dX / do (channel (3 j + axis) C·K + c·K + k,
    /// T offsets a coefficient), from which [`ObeliskSlopeGradient`] sums the offsets' gradient without sampling the image a second
    /// time: three or six times X's memory. K must be a multiple of four.
    pub slopes: bool,
}

impl ObeliskSample {
    /// Without slopes.
    pub fn new(locations: Locations) -> Self {
        ObeliskSample {
            locations,
            slopes: false,
        }
    }
}

/// dL/do of [`ObeliskSample`] from stored slopes. Inputs: the slopes, dL/dX. Summed in two stages in a fixed order.
#[derive(Clone, Debug)]
pub struct ObeliskSlopeGradient {
    /// Shape of the offsets.
    pub offsets: Spec,
}

/// dL/do of [`ObeliskSample`]. Inputs: its inputs, then dL/dX. Summed in two stages in a fixed order.
#[derive(Clone, Copy, Debug)]
pub struct ObeliskOffsetGradient {
    /// The sampling locations p.
    pub locations: Locations,
}

/// dL/dI of [`ObeliskSample`]. Inputs: its inputs but the image, then dL/dX. On a regular grid each voxel gathers the
/// samples that read it; at cells and points the samples scatter in 64-bit fixed point, the same in every run: with s samples of
/// one n, sums resolve s · 2⁻⁵⁹ of the largest |dL/dX|.
#[derive(Clone, Debug)]
pub struct ObeliskImageGradient {
    /// The sampling locations p.
    pub locations: Locations,
    /// Shape and layout of the image.
    pub image: Spec,
    /// dL/dX has channel k·C + c in place of c·K + k, so that a voxel's channels lie together. C is then a multiple of four, and
    /// points of the regular grid lie more than two voxels apart on each axis.
    pub interleaved: bool,
}

/// The numbers of a sampling: image `[n, c, size]`, K offsets, `terms` samples each, on `grid`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Geometry {
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
    fn is_sparse(&self) -> bool {
        let apart = |(size, points): (&usize, &usize)| *points > 1 && size - 1 > 2 * (points - 1);
        !self.points && !self.cells && self.size.iter().zip(&self.grid).all(apart)
    }

    pub(super) fn new(
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

    pub(super) fn samples(&self) -> Spec {
        let [d, h, w] = self.grid;
        Spec::map([self.n, self.c * self.k, d, h, w])
    }

    /// Slopes of the samples.
    fn slopes(&self) -> Spec {
        let [d, h, w] = self.grid;
        Spec::map([self.n, 3 * self.terms * self.c * self.k, d, h, w])
    }

    pub(super) fn locations(&self) -> usize {
        self.n * self.grid.iter().product::<usize>()
    }

    pub(super) fn constants(&self) -> Vec<(&'static str, u32)> {
        vec![
            ("BINARY", self.terms as u32 - 1),
            ("POINTS", self.points as u32),
            ("CELLS", self.cells as u32),
        ]
    }

    /// The uniform of a kernel that samples this image; what differs between dispatches is zero.
    pub(super) fn params(&self, image: &Spec) -> Sampling {
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
    pub(super) fn visit(
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
    pub(super) fn corners(&self, position: [f64; 3], mut visit: impl FnMut([usize; 3], f64, [f64; 3])) {
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
    pub(super) struct Sampling {
        /// Invocations or locations of this dispatch.
        count: u32,
        /// First slice (n, depth) of X's or F's binding.
        first: u32,
        /// Past its last slice, for the gather of the image's gradient.
        end: u32,
        /// Of sums in fixed point.
        headroom: u32,
        /// Partial sums of each number, all dispatches together.
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

pub(super) fn geometry(
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

impl Op for ObeliskSample {
    fn name(&self) -> &'static str {
        "obelisk_sample"
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>, GraphError> {
        let g = geometry(self.name(), inputs, self.locations)?;
        if !self.slopes {
            return Ok(vec![g.samples()]);
        }
        if !g.k.is_multiple_of(4) {
            let reason = "slopes are stored for a number of offsets that is a multiple of four";
            return Err(GraphError::shape(self.name(), inputs, reason));
        }
        Ok(vec![g.samples(), g.slopes()])
    }

    fn dispatches(&self, io: &mut Io, caps: &Caps) -> Result<Vec<Dispatch>, GraphError> {
        let g = geometry(self.name(), io.inputs, self.locations)?;
        let samples = g.samples();
        let slopes = self.slopes.then(|| g.slopes());
        let (entry, flops) = if self.slopes {
            ("sample_slopes", 60)
        } else {
            ("sample", 32)
        };
        let points = io.inputs.len() - 1; // the offsets stand in where there are none
        let together: Vec<&Spec> = [&samples].into_iter().chain(&slopes).collect();
        Ok(slices(&together, caps)
            .into_iter()
            .map(|run| {
                let count = run.count * g.grid[1] * g.grid[2];
                let invocations = count.next_multiple_of(8) * samples.blocks();
                let fours = ("FOURS", (g.k % 4 == 0) as u32);
                Dispatch {
                    constants: [g.constants(), vec![fours]].concat(),
                    params: Sampling {
                        count: int(count),
                        first: int(run.first),
                        ..g.params(&io.inputs[0])
                    }
                    .into(),
                    bindings: [
                        read(BufferRef::Input(0)),
                        run.of(&samples, write(BufferRef::Output(0))),
                        read(BufferRef::Input(1)),
                        read(BufferRef::Input(points)),
                    ]
                    .into_iter()
                    .chain(slopes.iter().map(|s| run.of(s, write(BufferRef::Output(1)))))
                    .collect(),
                    workgroups: linear_groups(invocations, 64),
                    iterations: 6,
                    flops: (count * samples.blocks() * 4 * g.terms * flops) as u64,
                    ..Dispatch::new(SHADER, entry)
                }
            })
            .collect())
    }

    fn gradient(
        &self,
        graph: &mut Graph,
        node: &NodeView,
        upstream: &[Option<Value>],
        wanted: &[bool],
    ) -> Result<Vec<Gradient>, GraphError> {
        let ([Some(upstream)] | [Some(upstream), None]) = *upstream else {
            let reason = "obelisk_sample offers no gradient through its slopes as an output";
            return Err(GraphError::Name(reason.into()));
        };
        let locations = self.locations;
        let mut flows = vec![Gradient::Stops; node.inputs.len()];
        if wanted[0] {
            let image = graph.spec(node.inputs[0]).clone();
            let inputs = [&node.inputs[1..], &[upstream]].concat();
            let op = ObeliskImageGradient {
                locations,
                image,
                interleaved: false,
            };
            flows[0] = Gradient::Flows(graph.push1(op, &inputs)?);
        }
        if wanted[1] {
            let gradient = if self.slopes {
                let offsets = graph.spec(node.inputs[1]).clone();
                graph.push1(ObeliskSlopeGradient { offsets }, &[node.outputs[1], upstream])?
            } else {
                let inputs = [&node.inputs[..], &[upstream]].concat();
                graph.push1(ObeliskOffsetGradient { locations }, &inputs)?
            };
            flows[1] = Gradient::Flows(gradient);
        }
        Ok(flows)
    }

    fn reference(&self, inputs: &[&Tensor], _: &StepScalars) -> Vec<Tensor> {
        let g = self.host_geometry(inputs);
        let image = inputs[0];
        let mut output = Tensor::zeros(&g.samples().shape);
        let mut sums = vec![0f64; output.data.len()];
        let locations: usize = g.grid.iter().product();
        g.visit(inputs[1], inputs.get(2).copied(), |n, k, j, s, position| {
            let sign = if j == 0 { 1.0 } else { -1.0 };
            g.corners(position, |[z, y, x], weight, _| {
                for c in 0..g.c {
                    let at = ((n * g.c + c) * g.k + k) * locations + s;
                    sums[at] += sign * weight * image.at(n, c, z, y, x) as f64;
                }
            });
        });
        output.data = sums.into_iter().map(|v| v as f32).collect();
        if !self.slopes {
            return vec![output];
        }
        let mut slopes = Tensor::zeros(&g.slopes().shape);
        let mut sums = vec![0f64; slopes.data.len()];
        g.visit(inputs[1], inputs.get(2).copied(), |n, k, j, s, position| {
            let sign = if j == 0 { 1.0 } else { -1.0 };
            g.corners(position, |[z, y, x], _, along| {
                for c in 0..g.c {
                    for axis in 0..3 {
                        let term = n * 3 * g.terms + 3 * j + 2 - axis;
                        let extent = (g.size[axis] - 1) as f64;
                        let value = sign * image.at(n, c, z, y, x) as f64;
                        sums[((term * g.c + c) * g.k + k) * locations + s] +=
                            value * along[axis] * extent / 2.0;
                    }
                }
            });
        });
        slopes.data = sums.into_iter().map(|v| v as f32).collect();
        vec![output, slopes]
    }
}

impl Op for ObeliskSlopeGradient {
    fn name(&self) -> &'static str {
        "obelisk_slope_gradient"
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>, GraphError> {
        let channels = |spec: &Spec| spec.ncdhw().map_or(0, |s| s[1]);
        let [k, terms] = [self.offsets.shape[1], self.offsets.shape[3] * 3];
        match inputs {
            [slopes, upstream]
                if channels(upstream).is_multiple_of(k)
                    && channels(slopes) == terms * channels(upstream)
                    && [slopes, upstream].iter().all(|s| s.layout == Layout::Map)
                    && slopes.shape[2..] == upstream.shape[2..]
                    && slopes.shape[0] == upstream.shape[0] =>
            {
                Ok(vec![self.offsets.clone()])
            }
            _ => Err(GraphError::shape(self.name(), inputs, "takes slopes and dL/dX")),
        }
    }

    fn dispatches(&self, io: &mut Io, caps: &Caps) -> Result<Vec<Dispatch>, GraphError> {
        let inputs = io.inputs;
        let (slopes, upstream) = (&inputs[0], &inputs[1]);
        let offsets = self.offsets.shape[1] / 4;
        let terms = self.offsets.shape[3] * 3;
        let plane = upstream.shape[3] * upstream.shape[4];
        let channels = upstream.blocks() / offsets;
        let shader = shader!("obelisk_slopes", "common/divide"; SlopeSums);
        let runs = slices(&[upstream, slopes], caps);
        let threads = |run: &Slices| {
            let count = run.count * plane;
            // A processor needs few, and fewer are faster to add up.
            let enough = match caps.target.is_cpu() {
                true => (4096 / offsets).clamp(8, 64),
                false => reduction_threads(count, offsets),
            };
            enough.max((count * channels).div_ceil(60_000)).min(count)
        };
        let partials: usize = runs.iter().map(threads).sum();
        let params = |count: usize, threads: usize, first: usize| SlopeSums {
            count: int(count),
            plane: int(plane),
            blocks: int(upstream.blocks()),
            offsets: int(offsets),
            channels: int(channels),
            threads: int(threads),
            first: int(first),
        };
        let sums = io.scratch((partials * offsets * terms * 16) as u64);
        let mut first = 0;
        let mut dispatches = Vec::new();
        for run in &runs {
            let (count, threads) = (run.count * plane, threads(run));
            dispatches.push(Dispatch {
                constants: vec![("TERMS", terms as u32)],
                params: params(count, threads, first).into(),
                bindings: vec![
                    run.of(upstream, read(BufferRef::Input(1))),
                    run.of(slopes, read(BufferRef::Input(0))),
                    write(sums),
                ],
                workgroups: linear_groups(threads * offsets, 64),
                iterations: (count.div_ceil(threads) * (channels + 1)) as u64,
                flops: (count * channels * offsets * terms * 8) as u64,
                ..Dispatch::new(shader, "partial")
            });
            first += threads;
        }
        dispatches.push(Dispatch {
            constants: vec![("TERMS", terms as u32)],
            params: params(offsets * terms, partials, 0).into(),
            bindings: vec![read(sums), write(BufferRef::Output(0))],
            workgroups: linear_groups(offsets * terms, 64),
            iterations: partials as u64,
            flops: (partials * offsets * terms * 4) as u64,
            ..Dispatch::new(shader, "total")
        });
        Ok(dispatches)
    }

    fn reference(&self, inputs: &[&Tensor], _: &StepScalars) -> Vec<Tensor> {
        let (slopes, upstream) = (inputs[0], inputs[1]);
        let [n, columns, d, h, w] = upstream.ncdhw();
        let (k, terms) = (self.offsets.shape[1], self.offsets.shape[3] * 3);
        let mut sums = vec![0f64; k * terms];
        for i in 0..n {
            for (column, term) in (0..columns).flat_map(|c| (0..terms).map(move |t| (c, t))) {
                for s in 0..d * h * w {
                    let g = upstream.data[(i * columns + column) * d * h * w + s] as f64;
                    let slope = slopes.data[((i * terms + term) * columns + column) * d * h * w + s] as f64;
                    sums[column % k * terms + term] += g * slope;
                }
            }
        }
        let sums = sums.into_iter().map(|v| v as f32).collect();
        vec![Tensor::new(&self.offsets.shape, sums)]
    }
}

impl ObeliskSample {
    fn host_geometry(&self, inputs: &[&Tensor]) -> Geometry {
        let specs: Vec<Spec> = inputs.iter().map(|t| Spec::flat(&t.shape)).collect();
        geometry("obelisk_sample", &specs, self.locations).expect("checked on insertion")
    }
}

impl Op for ObeliskOffsetGradient {
    fn name(&self) -> &'static str {
        "obelisk_offset_gradient"
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>, GraphError> {
        let Some((upstream, rest)) = inputs.split_last() else {
            return Err(GraphError::shape(self.name(), inputs, "takes inputs"));
        };
        let g = geometry(self.name(), rest, self.locations)?;
        if *upstream != g.samples() {
            let reason = format!("the last input must be {:?}", g.samples());
            return Err(GraphError::shape(self.name(), inputs, reason));
        }
        Ok(vec![rest[1].clone()])
    }

    fn dispatches(&self, io: &mut Io, caps: &Caps) -> Result<Vec<Dispatch>, GraphError> {
        let upstream = io.inputs.len() - 1;
        let g = geometry(self.name(), &io.inputs[..upstream], self.locations)?;
        let image = io.inputs[0].clone();
        let samples = g.samples();
        let runs = slices(&[&samples], caps);
        let threads: Vec<usize> = runs
            .iter()
            .map(|run| reduction_threads(run.count * g.grid[1] * g.grid[2], g.k.div_ceil(4)))
            .collect();
        let partials: usize = threads.iter().sum();
        let numbers = g.k * g.terms * 3;
        let scratch = io.scratch((numbers * partials * 4) as u64);
        let mut partial_base = 0;
        let mut dispatches = Vec::new();
        for (run, threads) in runs.into_iter().zip(threads) {
            let count = run.count * g.grid[1] * g.grid[2];
            dispatches.push(Dispatch {
                constants: g.constants(),
                params: Sampling {
                    count: int(count),
                    first: int(run.first),
                    partials: int(partials),
                    partial_base: int(partial_base),
                    threads: int(threads),
                    ..g.params(&image)
                }
                .into(),
                bindings: vec![
                    read(BufferRef::Input(0)),
                    run.of(&samples, read(BufferRef::Input(upstream))),
                    read(BufferRef::Input(1)),
                    read(BufferRef::Input(upstream - 1)), // the offsets stand in for points where there are none
                    write(scratch),
                ],
                workgroups: linear_groups(threads.next_multiple_of(8) * g.k.div_ceil(4), 64),
                iterations: (count.div_ceil(threads) * (g.c + 1)) as u64,
                flops: (count * g.k * g.terms * g.c * 50) as u64,
                ..Dispatch::new(SHADER, "offset_gradient")
            });
            partial_base += threads;
        }
        dispatches.push(Dispatch {
            constants: g.constants(),
            params: Sampling {
                count: int(numbers),
                partials: int(partials),
                ..g.params(&image)
            }
            .into(),
            bindings: vec![read(scratch), write(BufferRef::Output(0))],
            workgroups: linear_groups(numbers, 64),
            iterations: partials as u64,
            flops: (numbers * partials) as u64,
            ..Dispatch::new(SHADER, "offset_gradient_total")
        });
        Ok(dispatches)
    }

    fn reference(&self, inputs: &[&Tensor], _: &StepScalars) -> Vec<Tensor> {
        let (upstream, rest) = inputs.split_last().expect("checked on insertion");
        let g = ObeliskSample::new(self.locations).host_geometry(rest);
        let image = rest[0];
        let locations: usize = g.grid.iter().product();
        let mut sums = vec![0f64; g.k * g.terms * 3];
        g.visit(rest[1], rest.get(2).copied(), |n, k, j, s, position| {
            let sign = if j == 0 { 1.0 } else { -1.0 };
            g.corners(position, |[z, y, x], _, slopes| {
                for c in 0..g.c {
                    let up = upstream.data[((n * g.c + c) * g.k + k) * locations + s] as f64;
                    let value = sign * up * image.at(n, c, z, y, x) as f64;
                    for axis in 0..3 {
                        let extent = (g.size[axis] - 1) as f64;
                        sums[(k * g.terms + j) * 3 + 2 - axis] += value * slopes[axis] * extent / 2.0;
                    }
                }
            });
        });
        let sums = sums.into_iter().map(|v| v as f32).collect();
        vec![Tensor::new(&rest[1].shape, sums)]
    }
}

impl ObeliskImageGradient {
    /// Whether the gradient of an image of C channels takes dL/dX with channel k·C + c: C is a multiple of four, and the grid's
    /// points lie more than two voxels apart on each axis.
    pub(super) fn interleaves(g: &Geometry) -> bool {
        g.is_sparse() && g.c.is_multiple_of(4)
    }

    fn geometry(&self, inputs: &[Spec]) -> Result<Geometry, GraphError> {
        let mut all = vec![self.image.clone()];
        all.extend_from_slice(&inputs[..inputs.len().saturating_sub(1)]);
        geometry(self.name(), &all, self.locations)
    }

    /// The gradient from a run of dX's slices; runs after the first add to what is there.
    fn gather(
        &self,
        g: &Geometry,
        upstream: usize,
        count: usize,
        run: Slices,
        shader: Shader,
        entry: &'static str,
    ) -> Dispatch {
        Dispatch {
            constants: g.constants(),
            params: Sampling {
                count: int(count),
                first: int(run.first),
                end: int(run.first + run.count),
                ..g.params(&self.image)
            }
            .into(),
            bindings: vec![
                read(BufferRef::Input(0)), // stands in for the image, which this kernel does not read
                run.of(&g.samples(), read(BufferRef::Input(upstream))),
                read(BufferRef::Input(0)),
                read(BufferRef::Input(0)), // and for the points
                write(BufferRef::Output(0)),
            ],
            workgroups: linear_groups(count, 64),
            flops: (run.count * g.grid[1] * g.grid[2] * g.k * g.terms * g.c * 16) as u64,
            ..Dispatch::new(shader, entry)
        }
    }

    fn scatter(&self, io: &mut Io, g: &Geometry) -> Vec<Dispatch> {
        let upstream = io.inputs.len() - 1;
        let points = upstream - 1; // the offsets stand in where there are none
        // Each sample adds at most once to a voxel.
        let samples = g.locations() / g.n * g.k * g.terms;
        let scatter = Scatter::new(io, self.image.device_len(), samples);
        let count = g.locations() * g.k;
        let adds = Dispatch {
            constants: g.constants(),
            params: Sampling {
                count: int(count),
                headroom: int(scatter.headroom),
                ..g.params(&self.image)
            }
            .into(),
            bindings: vec![
                read(scatter.largest),
                read(BufferRef::Input(upstream)),
                read(BufferRef::Input(0)),
                read(BufferRef::Input(points)),
                write(scatter.words),
            ],
            workgroups: linear_groups(count, 64),
            iterations: (g.terms * (1 + g.c * 9)) as u64,
            flops: (count * g.terms * g.c * 16) as u64,
            ..Dispatch::new(SHADER, "scatter_image_gradient")
        };
        let [clear, maximum] = scatter.before(BufferRef::Input(upstream), io.inputs[upstream].device_len());
        vec![clear, maximum, adds, scatter.after(BufferRef::Output(0))]
    }
}

impl Op for ObeliskImageGradient {
    fn name(&self) -> &'static str {
        "obelisk_image_gradient"
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>, GraphError> {
        let g = self.geometry(inputs)?;
        if inputs.last() != Some(&g.samples()) {
            let reason = format!("the last input must be {:?}", g.samples());
            return Err(GraphError::shape(self.name(), inputs, reason));
        }
        if self.interleaved && !Self::interleaves(&g) {
            let reason = "interleaved channels are for sparse grids and a multiple of four channels";
            return Err(GraphError::shape(self.name(), inputs, reason));
        }
        Ok(vec![self.image.clone()])
    }

    fn dispatches(&self, io: &mut Io, caps: &Caps) -> Result<Vec<Dispatch>, GraphError> {
        let g = self.geometry(io.inputs)?;
        if g.points || g.cells {
            return Ok(self.scatter(io, &g));
        }
        let upstream = io.inputs.len() - 1;
        let [d, h, w] = g.size;
        let planes = g.n * self.image.blocks() * d;
        let samples = g.samples();
        if g.is_sparse() {
            // Blocks of four channels that an invocation has at most, and the voxels of its rows.
            let eights = caps.target == Target::CpuLanes(8);
            let (most, rows, width) = if eights { (2, 4, 8) } else { (4, 1, 1) };
            let groups = self.image.blocks().div_ceil(most);
            let own = [
                ("BLOCKS", self.image.blocks().div_ceil(groups) as u32),
                ("LANES", g.c.min(4) as u32),
            ];
            let count = g.n * groups * d * h.div_ceil(rows) * w.div_ceil(width);
            let gather = |run: Slices| {
                let module = gather_module(eights, self.interleaved);
                let gather = self.gather(&g, upstream, count, run, module, "main");
                Dispatch {
                    constants: [gather.constants, own.to_vec()].concat(),
                    subgroups: eights,
                    workgroups: linear_groups(count * width, 64),
                    iterations: (g.k * g.terms * 2) as u64,
                    ..gather
                }
            };
            // In few runs: each after the first reads what is there number by number.
            return Ok(slices(&[&samples], &caps.whole())
                .into_iter()
                .map(gather)
                .collect());
        }
        // Grid points within a voxel of a place on an axis, with the shader's margin.
        let near = |axis: usize| match (g.size[axis], g.grid[axis]) {
            (1, points) => points,
            (size, points) => {
                let step = (points - 1) as f64 / (size - 1) as f64;
                points.min((2.0 * (step + 0.01)) as usize + 1)
            }
        };
        let loops = near(0) * (1 + near(1) * (1 + near(2) * (1 + g.c.min(4))));
        let gather = |run: Slices| Dispatch {
            iterations: (g.k * (1 + g.terms * (1 + loops))) as u64,
            ..self.gather(&g, upstream, planes * h * w, run, SHADER, "gather_image_gradient")
        };
        Ok(slices(&[&samples], caps).into_iter().map(gather).collect())
    }

    fn reference(&self, inputs: &[&Tensor], _: &StepScalars) -> Vec<Tensor> {
        let specs: Vec<Spec> = inputs.iter().map(|t| Spec::flat(&t.shape)).collect();
        let g = self.geometry(&specs).expect("checked on insertion");
        let (upstream, rest) = inputs.split_last().expect("checked on insertion");
        let mut image = Tensor::zeros(&self.image.shape);
        let mut sums = vec![0f64; image.data.len()];
        let locations: usize = g.grid.iter().product();
        g.visit(rest[0], rest.get(1).copied(), |n, k, j, s, position| {
            let sign = if j == 0 { 1.0 } else { -1.0 };
            g.corners(position, |[z, y, x], weight, _| {
                for c in 0..g.c {
                    let channel = match self.interleaved {
                        true => k * g.c + c,
                        false => c * g.k + k,
                    };
                    let up = upstream.data[(n * g.c * g.k + channel) * locations + s] as f64;
                    sums[image.index(n, c, z, y, x)] += sign * weight * up;
                }
            });
        });
        image.data = sums.into_iter().map(|v| v as f32).collect();
        vec![image]
    }
}

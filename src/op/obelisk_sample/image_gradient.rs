//! The gradient of the image: obelisk_gather_lanes.wgsl, obelisk_gather_sparse.wgsl, and two kernels of obelisk_sample.wgsl.

use super::{Geometry, Locations, SHADER, Sampling, geometry};
use crate::op::fixed_point::Scatter;
use crate::op::*;

/// dL/dI of [`ObeliskSample`](super::ObeliskSample). Inputs: its inputs but the image, then dL/dX. On a regular grid each voxel gathers the
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

/// Kernels of the image's gradient.
#[derive(Clone, Copy, Debug, PartialEq)]
enum ImageVariant {
    /// Samples scatter in fixed point, because any number of points may lie near a voxel.
    Scatter,
    /// Each voxel loops over the grid points near it.
    Gather,
    /// Each voxel takes the one grid point that an offset brings near it at most.
    GatherSparse,
    /// The same for rows of eight voxels: each of eight lanes checks an offset, and those that bring a point go round by shuffles.
    GatherSparseLanes,
}

impl ImageVariant {
    fn new(g: &Geometry, target: Target) -> Self {
        match target {
            _ if g.points || g.cells => ImageVariant::Scatter,
            _ if !g.is_sparse() => ImageVariant::Gather,
            Target::CpuLanes(8) => ImageVariant::GatherSparseLanes,
            _ => ImageVariant::GatherSparse,
        }
    }

    /// As plans print it.
    fn name(self) -> &'static str {
        match self {
            ImageVariant::Scatter => "scatter",
            ImageVariant::Gather => "gather",
            ImageVariant::GatherSparse => "gather sparse",
            ImageVariant::GatherSparseLanes => "gather sparse lanes",
        }
    }
}

/// The gather on a sparse grid.
fn sparse_gather(lanes: bool, interleaved: bool) -> Shader {
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

impl ObeliskImageGradient {
    /// Whether the gradient of an image of C channels takes dL/dX with channel k·C + c: C is a multiple of four, and the grid's
    /// points lie more than two voxels apart on each axis.
    pub(in crate::op) fn interleaves(g: &Geometry) -> bool {
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

    fn dense(&self, io: &Io, g: &Geometry, caps: &Caps) -> Vec<Dispatch> {
        let upstream = io.inputs.len() - 1;
        let [d, h, w] = g.size;
        let planes = g.n * self.image.blocks() * d;
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
            ..self.gather(g, upstream, planes * h * w, run, SHADER, "gather_image_gradient")
        };
        slices(&[&g.samples()], caps).into_iter().map(gather).collect()
    }

    fn sparse(&self, io: &Io, g: &Geometry, lanes: bool, caps: &Caps) -> Vec<Dispatch> {
        let upstream = io.inputs.len() - 1;
        let [d, h, w] = g.size;
        // Blocks of four channels that an invocation has at most, and the voxels of its rows.
        let (most, rows, width) = if lanes { (2, 4, 8) } else { (4, 1, 1) };
        let groups = self.image.blocks().div_ceil(most);
        let own = [
            ("BLOCKS", self.image.blocks().div_ceil(groups) as u32),
            ("LANES", g.c.min(4) as u32),
        ];
        let count = g.n * groups * d * h.div_ceil(rows) * w.div_ceil(width);
        let gather = |run: Slices| {
            let shader = sparse_gather(lanes, self.interleaved);
            let gather = self.gather(g, upstream, count, run, shader, "main");
            Dispatch {
                constants: [gather.constants, own.to_vec()].concat(),
                subgroups: lanes,
                workgroups: linear_groups(count * width, 64),
                iterations: (g.k * g.terms * 2) as u64,
                ..gather
            }
        };
        // In few runs: each after the first reads what is there number by number.
        slices(&[&g.samples()], &caps.whole())
            .into_iter()
            .map(gather)
            .collect()
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
        Ok(match ImageVariant::new(&g, caps.target) {
            ImageVariant::Scatter => self.scatter(io, &g),
            ImageVariant::Gather => self.dense(io, &g, caps),
            ImageVariant::GatherSparse => self.sparse(io, &g, false, caps),
            ImageVariant::GatherSparseLanes => self.sparse(io, &g, true, caps),
        })
    }

    fn variant(&self, io: &Io, caps: &Caps) -> &'static str {
        match self.geometry(io.inputs) {
            Ok(g) => ImageVariant::new(&g, caps.target).name(),
            Err(_) => "",
        }
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

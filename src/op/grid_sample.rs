//! Sampling an image at any coordinates (PyTorch's `grid_sample` in 3-D).

use super::fixed_point::Scatter;
use super::*;

params! {
    /// The uniform of `grid_sample.wgsl`.
    struct Params {
        batch: u32,
        channels: u32,
        depth: u32,
        height: u32,
        width: u32,
        locations: u32,
        headroom: u32,
    }
}

const SHADER: Shader = shader!("grid_sample", "common/fixed_point", "common/fixed_point_add"; Params);

/// How values between voxels come about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// From the eight voxels around (PyTorch's `bilinear`).
    Trilinear,
    /// From the nearest voxel, ties to the even one.
    Nearest,
}

/// What is beyond the outer voxels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Padding {
    /// Zero.
    Zeros,
    /// The nearest voxel of the border.
    Border,
}

/// Samples an image, flat `[N, C, D, H, W]`, at a grid, flat `[N, d, h, w, 3]` of (x, y, z) in −1 … 1 with x along W, to
/// flat `[N, C, d, h, w]`. Trilinear sampling has gradients for both, nearest for the image only.
#[derive(Clone, Copy, Debug)]
pub struct GridSample {
    /// Interpolation.
    pub mode: Mode,
    /// What is outside.
    pub padding: Padding,
    /// Whether −1 and 1 are the centres of the outer voxels (else their outer faces).
    pub align_corners: bool,
}

/// d image: a scatter, in 64-bit fixed point, whose sums don't depend on their order; resolution S · 2⁻⁵⁹ of the largest
/// upstream gradient for S locations. Inputs: grid, upstream.
#[derive(Debug)]
struct ImageGradient {
    sample: GridSample,
    shape: [usize; 5],
}

/// d grid. Inputs: image, grid, upstream.
#[derive(Debug)]
struct GridGradient(GridSample);

const CORNERS: [[i64; 3]; 8] = [
    [0, 0, 0],
    [1, 0, 0],
    [0, 1, 0],
    [1, 1, 0],
    [0, 0, 1],
    [1, 0, 1],
    [0, 1, 1],
    [1, 1, 1],
];

impl GridSample {
    fn dispatch(&self, entry: &'static str, image: &[usize], locations: usize, headroom: usize) -> Dispatch {
        Dispatch {
            constants: vec![
                ("CORNERS", self.align_corners as u32),
                ("BORDER", (self.padding == Padding::Border) as u32),
                ("NEAREST", (self.mode == Mode::Nearest) as u32),
            ],
            params: Params {
                batch: int(image[0]),
                channels: int(image[1]),
                depth: int(image[2]),
                height: int(image[3]),
                width: int(image[4]),
                locations: int(locations),
                headroom: int(headroom),
            }
            .into(),
            workgroups: linear_groups(image[0] * locations, 64),
            iterations: (image[1] * 9) as u64,
            flops: (image[0] * image[1] * locations * 32) as u64,
            ..Dispatch::new(SHADER, entry)
        }
    }

    /// Voxel coordinate of a normalised one, and its derivative. Rounded to f32 as the kernels have it, so that cells
    /// and ties agree.
    fn unnormalise(&self, v: f32, n: usize) -> (f64, f64) {
        let corners = self.align_corners;
        let scale = (if corners { n as f32 - 1.0 } else { n as f32 }) / 2.0;
        let at = (v + 1.0) * scale - if corners { 0.0 } else { 0.5 };
        let last = n as f32 - 1.0;
        match self.padding {
            Padding::Zeros => (at.clamp(-2.0, n as f32 + 1.0) as f64, scale as f64),
            Padding::Border => {
                let slope = if at > 0.0 && at < last { scale } else { 0.0 };
                (at.clamp(0.0, last) as f64, slope as f64)
            }
        }
    }

    /// Calls `visit(voxel within a channel, weight, d weight / d (x, y, z))` for every voxel that a location reads.
    fn taps(&self, at: &[f32], [d, h, w]: [usize; 3], mut visit: impl FnMut(usize, f64, [f64; 3])) {
        let axes: [(f64, f64); 3] = std::array::from_fn(|a| self.unnormalise(at[a], [w, h, d][a]));
        let inside = |p: [i64; 3]| (0..3).all(|a| p[a] >= 0 && p[a] < [w, h, d][a] as i64);
        let index = |p: [i64; 3]| (p[2] as usize * h + p[1] as usize) * w + p[0] as usize;
        if self.mode == Mode::Nearest {
            let p = axes.map(|(at, _)| at.round_ties_even() as i64);
            if inside(p) {
                visit(index(p), 1.0, [0.0; 3]);
            }
            return;
        }
        for corner in CORNERS {
            let p: [i64; 3] = std::array::from_fn(|a| axes[a].0.floor() as i64 + corner[a]);
            if inside(p) {
                let fraction = |a: usize| axes[a].0 - axes[a].0.floor();
                let factor = |a: usize| {
                    if corner[a] == 1 {
                        fraction(a)
                    } else {
                        1.0 - fraction(a)
                    }
                };
                let sign = |a: usize| (2 * corner[a] - 1) as f64 * axes[a].1;
                let (x, y, z) = (factor(0), factor(1), factor(2));
                visit(
                    index(p),
                    x * y * z,
                    [sign(0) * y * z, sign(1) * x * z, sign(2) * x * y],
                );
            }
        }
    }
}

fn locations(grid: &[usize]) -> usize {
    grid[1] * grid[2] * grid[3]
}

impl Op for GridSample {
    fn name(&self) -> &'static str {
        "grid_sample"
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>, GraphError> {
        if let [image, grid] = inputs
            && image.layout == Layout::Flat
            && let (Some([n, c, d, h, w]), Some([m, gd, gh, gw, 3])) = (image.ncdhw(), grid.ncdhw())
            && n == m
            && d * h * w > 0
        {
            return Ok(vec![Spec::flat(&[n, c, gd, gh, gw])]);
        }
        let reason = "takes a flat image [N, C, D, H, W] and a grid [N, d, h, w, 3] of the same N";
        Err(GraphError::shape("grid_sample", inputs, reason))
    }

    fn dispatches(&self, io: &mut Io, _: &Caps) -> Result<Vec<Dispatch>, GraphError> {
        use BufferRef::*;
        Ok(vec![Dispatch {
            // The upstream gradient's place is not read by this entry point.
            bindings: vec![read(Input(0)), read(Input(1)), read(Input(1)), write(Output(0))],
            ..self.dispatch("forward", &io.inputs[0].shape, locations(&io.inputs[1].shape), 0)
        }])
    }

    fn gradient(
        &self,
        graph: &mut Graph,
        node: &NodeView,
        upstream: &[Option<Value>],
        wanted: &[bool],
    ) -> Result<Vec<Gradient>, GraphError> {
        let upstream = upstream[0].expect("the one output has a gradient");
        let (image, grid) = (node.inputs[0], node.inputs[1]);
        let mut gradients = vec![Gradient::Stops; 2];
        if wanted[0] {
            let shape = graph.spec(image).ncdhw().expect("checked on insertion");
            let op = ImageGradient { sample: *self, shape };
            gradients[0] = Gradient::Flows(graph.push1(op, &[grid, upstream])?);
        }
        if wanted[1] && self.mode == Mode::Trilinear {
            gradients[1] = Gradient::Flows(graph.push1(GridGradient(*self), &[image, grid, upstream])?);
        }
        Ok(gradients)
    }

    fn reference(&self, inputs: &[&Tensor], _: &StepScalars) -> Vec<Tensor> {
        let [image, grid] = inputs else {
            unreachable!("two inputs")
        };
        let [n, c, d, h, w] = image.ncdhw();
        let s = locations(&grid.shape);
        let mut out = Tensor::zeros(&[n, c, grid.shape[1], grid.shape[2], grid.shape[3]]);
        for (i, at) in grid.data.chunks_exact(3).enumerate() {
            for c in 0..c {
                let mut value = 0.0;
                let channel = image.index(i / s, c, 0, 0, 0);
                self.taps(at, [d, h, w], |voxel, weight, _| {
                    value += weight * image.data[channel + voxel] as f64
                });
                out.data[(i / s * image.shape[1] + c) * s + i % s] = value as f32;
            }
        }
        vec![out]
    }
}

impl Op for ImageGradient {
    fn name(&self) -> &'static str {
        "grid_sample_image_gradient"
    }

    fn outputs(&self, _: &[Spec]) -> Result<Vec<Spec>, GraphError> {
        Ok(vec![Spec::flat(&self.shape)])
    }

    fn dispatches(&self, io: &mut Io, _: &Caps) -> Result<Vec<Dispatch>, GraphError> {
        use BufferRef::*;
        let locations = locations(&io.inputs[0].shape);
        let elements = io.outputs[0].count();
        // A location adds at most once to a voxel.
        let scatter = Scatter::new(io, elements, locations);
        let [clear, maximum] = scatter.before(Input(1), io.inputs[1].count());
        let adds = Dispatch {
            bindings: vec![
                read(scatter.largest),
                read(Input(0)),
                read(Input(1)),
                write(scatter.words),
            ],
            ..self
                .sample
                .dispatch("scatter", &self.shape, locations, scatter.headroom)
        };
        Ok(vec![clear, maximum, adds, scatter.after(Output(0))])
    }

    fn reference(&self, inputs: &[&Tensor], _: &StepScalars) -> Vec<Tensor> {
        let [grid, upstream] = inputs else {
            unreachable!("two inputs")
        };
        let [_, channels, d, h, w] = self.shape;
        let s = locations(&grid.shape);
        let mut sums = vec![0.0f64; self.shape.iter().product()];
        for (i, at) in grid.data.chunks_exact(3).enumerate() {
            for c in 0..channels {
                let channel = i / s * channels + c;
                let g = upstream.data[channel * s + i % s] as f64;
                self.sample.taps(at, [d, h, w], |voxel, weight, _| {
                    sums[channel * d * h * w + voxel] += weight * g
                });
            }
        }
        vec![Tensor::new(
            &self.shape,
            sums.into_iter().map(|v| v as f32).collect(),
        )]
    }
}

impl Op for GridGradient {
    fn name(&self) -> &'static str {
        "grid_sample_grid_gradient"
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>, GraphError> {
        Ok(vec![inputs[1].clone()])
    }

    fn dispatches(&self, io: &mut Io, _: &Caps) -> Result<Vec<Dispatch>, GraphError> {
        use BufferRef::*;
        Ok(vec![Dispatch {
            bindings: vec![read(Input(0)), read(Input(1)), read(Input(2)), write(Output(0))],
            ..self.0.dispatch(
                "grid_gradient",
                &io.inputs[0].shape,
                locations(&io.inputs[1].shape),
                0,
            )
        }])
    }

    fn reference(&self, inputs: &[&Tensor], _: &StepScalars) -> Vec<Tensor> {
        let [image, grid, upstream] = inputs else {
            unreachable!("three inputs")
        };
        let [_, channels, d, h, w] = image.ncdhw();
        let s = locations(&grid.shape);
        let mut out = Vec::with_capacity(grid.data.len());
        for (i, at) in grid.data.chunks_exact(3).enumerate() {
            let mut sum = [0.0; 3];
            for c in 0..channels {
                let channel = i / s * channels + c;
                let g = upstream.data[channel * s + i % s] as f64;
                self.0.taps(at, [d, h, w], |voxel, _, slope| {
                    let v = g * image.data[channel * d * h * w + voxel] as f64;
                    (0..3).for_each(|a| sum[a] += v * slope[a]);
                });
            }
            out.extend(sum.map(|v| v as f32));
        }
        vec![Tensor::new(&grid.shape, out)]
    }
}

//! Sampling grids of affine maps (PyTorch's `affine_grid` in 3-D).

use super::*;

params! {
    /// The uniform of `affine_grid.wgsl`.
    struct Params {
        batch: u32,
        depth: u32,
        height: u32,
        width: u32,
        threads: u32,
    }
}

/// From theta, flat `[N, 3, 4]`, to the grid, flat `[N, D, H, W, 3]`: the coordinates (x, y, z), x along W, at which
/// [`super::grid_sample::GridSample`] reads for every output voxel, theta · (x', y', z', 1). Method section 2.
#[derive(Clone, Copy, Debug)]
pub struct AffineGrid {
    /// D, H, W of the grid.
    pub size: [usize; 3],
    /// Whether −1 and 1 are the centres of the outer voxels (else their outer faces).
    pub align_corners: bool,
}

/// d theta from the grid's upstream gradient.
#[derive(Debug)]
struct AffineGridGradient(AffineGrid);

impl AffineGrid {
    fn coordinate(&self, i: usize, n: usize) -> f64 {
        match (self.align_corners, n) {
            (true, 1) => 0.0,
            (true, _) => (2.0 * i as f64 - (n - 1) as f64) / (n - 1) as f64,
            (false, _) => (2.0 * i as f64 + 1.0 - n as f64) / n as f64,
        }
    }

    /// Coordinates (x, y, z, 1) of voxel `i` in row-major order.
    fn position(&self, i: usize) -> [f64; 4] {
        let [d, h, w] = self.size;
        [
            self.coordinate(i % w, w),
            self.coordinate(i / w % h, h),
            self.coordinate(i / w / h, d),
            1.0,
        ]
    }

    fn voxels(&self) -> usize {
        self.size.iter().product()
    }

    fn dispatch(&self, entry: &'static str, batch: usize, threads: usize) -> Dispatch {
        let [d, h, w] = self.size;
        Dispatch {
            constants: vec![("CORNERS", self.align_corners as u32)],
            params: Params {
                batch: int(batch),
                depth: int(d),
                height: int(h),
                width: int(w),
                threads: int(threads),
            }
            .into(),
            ..Dispatch::new(shader!("affine_grid"; Params), entry)
        }
    }
}

impl Op for AffineGrid {
    fn name(&self) -> &'static str {
        "affine_grid"
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>, GraphError> {
        let [d, h, w] = self.size;
        match inputs {
            [theta] if theta.shape.len() == 3 && theta.shape[1..] == [3, 4] && self.voxels() > 0 => {
                Ok(vec![Spec::flat(&[theta.shape[0], d, h, w, 3])])
            }
            _ => Err(GraphError::shape(
                "affine_grid",
                inputs,
                "takes theta [N, 3, 4] and a size of one voxel or more",
            )),
        }
    }

    fn dispatches(&self, io: &mut Io, _: &Caps) -> Result<Vec<Dispatch>, GraphError> {
        let batch = io.inputs[0].shape[0];
        Ok(vec![Dispatch {
            bindings: vec![read(BufferRef::Input(0)), write(BufferRef::Output(0))],
            workgroups: linear_groups(batch * self.voxels(), 64),
            iterations: 3,
            flops: (batch * self.voxels() * 24) as u64,
            ..self.dispatch("forward", batch, 0)
        }])
    }

    fn gradient(
        &self,
        graph: &mut Graph,
        _: &NodeView,
        upstream: &[Option<Value>],
        _: &[bool],
    ) -> Result<Vec<Gradient>, GraphError> {
        let upstream = upstream[0].expect("the one output has a gradient");
        Ok(vec![Gradient::Flows(
            graph.push1(AffineGridGradient(*self), &[upstream])?,
        )])
    }

    fn reference(&self, inputs: &[&Tensor], _: &StepScalars) -> Vec<Tensor> {
        let [d, h, w] = self.size;
        let n = inputs[0].shape[0];
        let mut data = Vec::with_capacity(n * self.voxels() * 3);
        for theta in inputs[0].data.chunks_exact(12) {
            for i in 0..self.voxels() {
                let at = self.position(i);
                data.extend(
                    theta
                        .chunks_exact(4)
                        .map(|row| (0..4).map(|j| row[j] as f64 * at[j]).sum::<f64>() as f32),
                );
            }
        }
        vec![Tensor::new(&[n, d, h, w, 3], data)]
    }
}

impl Op for AffineGridGradient {
    fn name(&self) -> &'static str {
        "affine_grid_gradient"
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>, GraphError> {
        Ok(vec![Spec::flat(&[inputs[0].shape[0], 3, 4])])
    }

    fn dispatches(&self, io: &mut Io, _: &Caps) -> Result<Vec<Dispatch>, GraphError> {
        use BufferRef::*;
        let batch = io.inputs[0].shape[0];
        let voxels = self.0.voxels();
        let threads = voxels.min(1024.max(voxels.div_ceil(60_000)));
        let partial = io.scratch((batch * threads * 48) as u64);
        Ok(vec![
            Dispatch {
                bindings: vec![read(Input(0)), write(partial)],
                workgroups: linear_groups(batch * threads, 64),
                iterations: voxels.div_ceil(threads) as u64 + 15,
                flops: (batch * voxels * 24) as u64,
                ..self.0.dispatch("gradient", batch, threads)
            },
            Dispatch {
                bindings: vec![read(partial), write(Output(0))],
                workgroups: linear_groups(batch * 12, 64),
                iterations: threads as u64,
                ..self.0.dispatch("total", batch, threads)
            },
        ])
    }

    fn reference(&self, inputs: &[&Tensor], _: &StepScalars) -> Vec<Tensor> {
        let n = inputs[0].shape[0];
        let mut sums = vec![0.0f64; n * 12];
        for (i, upstream) in inputs[0].data.chunks_exact(3).enumerate() {
            let at = self.0.position(i % self.0.voxels());
            for row in 0..3 {
                for column in 0..4 {
                    sums[i / self.0.voxels() * 12 + 4 * row + column] += upstream[row] as f64 * at[column];
                }
            }
        }
        vec![Tensor::new(
            &[n, 3, 4],
            sums.into_iter().map(|v| v as f32).collect(),
        )]
    }
}

//! obelisk_slopes.wgsl: the gradient of the offsets from stored slopes.

use crate::op::*;

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

/// dL/do of [`ObeliskSample`](super::ObeliskSample) from stored slopes. Inputs: the slopes, dL/dX. Summed in two stages in a fixed order.
#[derive(Clone, Debug)]
pub struct ObeliskSlopeGradient {
    /// Shape of the offsets.
    pub offsets: Spec,
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

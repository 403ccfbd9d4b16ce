//! The gradient of the offsets, which samples the image again: two kernels of obelisk_sample.wgsl.

use super::{Locations, ObeliskSample, SHADER, Sampling, geometry};
use crate::op::*;

/// dL/do of [`ObeliskSample`]. Inputs: its inputs, then dL/dX. Summed in two stages in a fixed order.
#[derive(Clone, Copy, Debug)]
pub struct ObeliskOffsetGradient {
    /// The sampling locations p.
    pub locations: Locations,
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

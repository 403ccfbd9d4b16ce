//! obelisk_layer_offset_gradient.wgsl: the gradient of the offsets where no lanes share what they load.

use super::ObeliskLayer;
use super::gradients::{OffsetVariant, TOTAL};
use super::layer::Layer;
use crate::op::obelisk_sample::Sampling;
use crate::op::*;

/// dL/do of [`ObeliskLayer`]. Inputs: its inputs, then dL/dF.
#[derive(Clone, Copy, Debug)]
pub struct ObeliskLayerOffsetGradient(pub ObeliskLayer);

impl Layer {
    /// The gradient of the offsets into `output`. The last input is dL/dF, the one before it the weight.
    pub fn offset_gradient(
        &self,
        shared: bool,
        io: &mut Io,
        caps: &Caps,
        output: BufferRef,
    ) -> Vec<Dispatch> {
        let upstream = io.inputs.len() - 1;
        let weight = upstream - 1;
        let (pieces, run) = self.pieces(8);
        let z = self.groups * self.columns.div_ceil(4);
        let vectors = z * pieces * run * 4;
        let packed = io.scratch((vectors + 8) as u64 * 16);
        let features = self.features();
        let runs = slices(&[&features], caps);
        let numbers = z * 4 * self.g.terms * 3;
        let threads = self.threads(&runs, z, numbers);
        let partials: usize = threads.iter().sum();
        let sums = io.scratch((numbers * partials * 4) as u64);
        let mut dispatches = vec![self.pack("by_columns", run, pieces, vectors, weight, packed)];
        let mut partial_base = 0;
        for (part, threads) in runs.iter().zip(threads) {
            let count = self.locations(part);
            let [x, y, _] = linear_groups(threads, 64);
            dispatches.push(Dispatch {
                constants: self.constants(run),
                params: Sampling {
                    count: int(count),
                    first: int(part.first),
                    partials: int(partials),
                    partial_base: int(partial_base),
                    threads: int(threads),
                    pieces: int(pieces),
                    ..self.params()
                }
                .into(),
                bindings: vec![
                    read(BufferRef::Input(0)),
                    read(packed),
                    read(BufferRef::Input(1)),
                    read(BufferRef::Input(weight - 1)), // the offsets stand in for points where there are none
                    part.of(&features, read(BufferRef::Input(upstream))),
                    write(sums),
                ],
                workgroups: [x, y, z as u32],
                iterations: (count.div_ceil(threads) * (5 + pieces) + 8) as u64,
                flops: (count * self.columns * (self.outputs * 2 + self.groups * self.g.terms * 50)) as u64,
                ..Dispatch::new(
                    shader!(
                        "obelisk_layer_offset_gradient",
                        "common/divide",
                        "common/obelisk",
                        "common/trilinear",
                        "common/conv3d_plain"; Sampling),
                    "plain",
                )
            });
            partial_base += threads;
        }
        dispatches.push(self.offsets_total(shared, (run, numbers, partials), sums, output));
        dispatches
    }

    /// The second stage: where the sums are shared, a workgroup sums what stands for one number, else an invocation does.
    fn offsets_total(
        &self,
        shared: bool,
        (run, numbers, partials): (usize, usize, usize),
        sums: BufferRef,
        output: BufferRef,
    ) -> Dispatch {
        let count = self.g.k * self.g.terms * 3;
        let (entry, shares) = match shared {
            true => ("offsets_shared_total", 64),
            false => ("offsets_total", 1),
        };
        Dispatch {
            constants: self.column_constants(run, 4),
            params: Sampling {
                count: int(count),
                partials: int(partials),
                ..self.params()
            }
            .into(),
            bindings: vec![read(sums), write(output)],
            workgroups: linear_groups(count, 64 / shares),
            iterations: (self.g.c * (partials.div_ceil(shares) + 1) + 6) as u64,
            flops: (numbers * partials) as u64,
            ..Dispatch::new(TOTAL, entry)
        }
    }
}

impl Op for ObeliskLayerOffsetGradient {
    fn name(&self) -> &'static str {
        "obelisk_layer_offset_gradient"
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>, GraphError> {
        let layer = Layer::new(self.name(), &inputs[..inputs.len().saturating_sub(1)], &self.0)?;
        layer.check_upstream(self.name(), inputs)?;
        Ok(vec![inputs[1].clone()])
    }

    fn dispatches(&self, io: &mut Io, caps: &Caps) -> Result<Vec<Dispatch>, GraphError> {
        let layer = Layer::new(self.name(), &io.inputs[..io.inputs.len() - 1], &self.0)?;
        let output = BufferRef::Output(0);
        Ok(match OffsetVariant::new(caps.target) {
            OffsetVariant::Lanes => {
                let unused = io.scratch(layer.weight.bytes());
                layer.lanes_gradients(io, caps, output, unused)
            }
            OffsetVariant::InvocationTotals => layer.offset_gradient(false, io, caps, output),
            OffsetVariant::WorkgroupTotals => layer.offset_gradient(true, io, caps, output),
        })
    }

    fn variant(&self, _: &Io, caps: &Caps) -> &'static str {
        OffsetVariant::new(caps.target).name()
    }

    fn reference(&self, inputs: &[&Tensor], _: &StepScalars) -> Vec<Tensor> {
        let (upstream, rest) = inputs.split_last().expect("checked on insertion");
        let layer = self.0.host_layer(rest);
        let g = &layer.g;
        let (weight, rest) = rest.split_last().expect("checked on insertion");
        let image = rest[0];
        let locations: usize = g.grid.iter().product();
        let group_outputs = layer.outputs / layer.groups;
        let mut sums = vec![0f64; g.k * g.terms * 3];
        g.visit(rest[1], rest.get(2).copied(), |n, k, j, s, position| {
            let sign = if j == 0 { 1.0 } else { -1.0 };
            for c in 0..g.c {
                let channel = c * g.k + k;
                let group = channel / layer.columns;
                let dx: f64 = (group * group_outputs..(group + 1) * group_outputs)
                    .map(|o| {
                        weight.data[o * layer.columns + channel % layer.columns] as f64
                            * upstream.data[(n * layer.outputs + o) * locations + s] as f64
                    })
                    .sum();
                g.corners(position, |[z, y, x], _, slopes| {
                    let value = sign * dx * image.at(n, c, z, y, x) as f64;
                    for axis in 0..3 {
                        let extent = (g.size[axis] - 1) as f64;
                        sums[(k * g.terms + j) * 3 + 2 - axis] += value * slopes[axis] * extent / 2.0;
                    }
                });
            }
        });
        let sums = sums.into_iter().map(|v| v as f32).collect();
        vec![Tensor::new(&rest[1].shape, sums)]
    }
}

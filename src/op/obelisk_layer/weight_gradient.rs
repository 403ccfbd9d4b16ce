//! obelisk_layer_weight_gradient.wgsl: the gradient of the weights where no lanes share what they load.

use super::ObeliskLayer;
use super::gradients::{TOTAL, WeightVariant};
use super::layer::Layer;
use crate::op::obelisk_sample::Sampling;
use crate::op::*;

/// dL/dW of [`ObeliskLayer`]. Inputs: its inputs, then dL/dF.
#[derive(Clone, Copy, Debug)]
pub struct ObeliskLayerWeightGradient(pub ObeliskLayer);

impl Layer {
    /// The gradient of the weights into `output`. The last input is dL/dF, the one before it the weight.
    pub fn weight_gradient(&self, io: &mut Io, caps: &Caps, output: BufferRef) -> Vec<Dispatch> {
        let upstream = io.inputs.len() - 1;
        let (pieces, run) = self.pieces(8);
        let z = self.groups * pieces * self.columns.div_ceil(2);
        let features = self.features();
        let runs = slices(&[&features], caps);
        let numbers = z * 2 * run * 4;
        let threads = self.threads(&runs, z, numbers);
        let partials: usize = threads.iter().sum();
        let sums = io.scratch((numbers * partials * 4) as u64);
        let mut dispatches = Vec::new();
        let mut partial_base = 0;
        for (part, threads) in runs.iter().zip(threads) {
            let count = self.locations(part);
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
                    part.of(&features, read(BufferRef::Input(upstream))),
                    read(BufferRef::Input(1)),
                    read(BufferRef::Input(upstream - 2)), // the offsets stand in for points where there are none
                    write(sums),
                ],
                workgroups: [(threads / 64) as u32, 1, z as u32],
                iterations: count.div_ceil(threads) as u64,
                flops: (count * self.columns * (self.outputs * 2 + self.groups * pieces * self.g.terms * 32))
                    as u64,
                ..Dispatch::new(
                    shader!(
                        "obelisk_layer_weight_gradient",
                        "common/divide",
                        "common/obelisk",
                        "common/trilinear"; Sampling),
                    "main",
                )
            });
            partial_base += threads;
        }
        let count = self.weight.count();
        dispatches.push(Dispatch {
            constants: self.column_constants(run, 2),
            params: Sampling {
                count: int(count),
                partials: int(partials),
                pieces: int(pieces),
                ..self.params()
            }
            .into(),
            bindings: vec![read(sums), write(output)],
            workgroups: linear_groups(count, 64),
            iterations: partials as u64,
            flops: (count * partials) as u64,
            ..Dispatch::new(TOTAL, "weights_total")
        });
        dispatches
    }
}

impl Op for ObeliskLayerWeightGradient {
    fn name(&self) -> &'static str {
        "obelisk_layer_weight_gradient"
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>, GraphError> {
        let layer = Layer::new(self.name(), &inputs[..inputs.len().saturating_sub(1)], &self.0)?;
        layer.check_upstream(self.name(), inputs)?;
        Ok(vec![layer.weight])
    }

    fn dispatches(&self, io: &mut Io, caps: &Caps) -> Result<Vec<Dispatch>, GraphError> {
        let layer = Layer::new(self.name(), &io.inputs[..io.inputs.len() - 1], &self.0)?;
        let output = BufferRef::Output(0);
        Ok(match WeightVariant::new(caps.target) {
            WeightVariant::Lanes => {
                let unused = io.scratch(io.inputs[1].bytes());
                layer.lanes_gradients(io, caps, unused, output)
            }
            WeightVariant::Direct => layer.weight_gradient(io, caps, output),
        })
    }

    fn variant(&self, _: &Io, caps: &Caps) -> &'static str {
        WeightVariant::new(caps.target).name()
    }

    fn reference(&self, inputs: &[&Tensor], step: &StepScalars) -> Vec<Tensor> {
        let (upstream, rest) = inputs.split_last().expect("checked on insertion");
        let layer = self.0.host_layer(rest);
        let x = self.0.samples(&rest[..rest.len() - 1], step);
        let locations: usize = layer.g.grid.iter().product();
        let channels = layer.g.c * layer.g.k;
        let group_outputs = layer.outputs / layer.groups;
        let gradient = Tensor::from_fn(&layer.weight.shape, |i| {
            let (o, column) = (i / layer.columns, i % layer.columns);
            let channel = o / group_outputs * layer.columns + column;
            (0..layer.g.n * locations)
                .map(|j| {
                    let (n, s) = (j / locations, j % locations);
                    upstream.data[(n * layer.outputs + o) * locations + s] as f64
                        * x.data[(n * channels + channel) * locations + s] as f64
                })
                .sum::<f64>() as f32
        });
        vec![gradient]
    }
}

//! A fused OBELISK layer (method section 1): sampling and the grouped 1×1×1 convolution in one kernel. The sampled tensor
//! X, K·C numbers a location, is never kept from the forward pass to the gradients: they sample again.

mod forward;
mod gradients;
mod lanes_gradients;
mod layer;
mod offset_gradient;
mod weight_gradient;

use super::conv3d::{Conv3dConfig, Conv3dInputGradient, conv3d};
use super::interleave::Interleave;
#[cfg(feature = "onnx")]
use super::obelisk_sample::sampled;
use super::obelisk_sample::{Locations, ObeliskImageGradient, ObeliskSample};
use super::*;
use layer::Layer;

pub use gradients::ObeliskLayerGradients;
pub use offset_gradient::ObeliskLayerOffsetGradient;
pub use weight_gradient::ObeliskLayerWeightGradient;

/// Features of more bytes may be made in slabs: 256 outputs at 65,536 locations.
const LARGE_FEATURES: u64 = 64 << 20;

/// Adds an OBELISK layer, F[n, o, s] = Σ W[o, c·K + k] · X[n, c·K + k, s] with X of [`ObeliskSample`], to the graph.
///
/// `image` flat `[N, C, D, H, W]` or a map, `offsets` `[1, K, 1, 1, 3]` or `[1, K, 1, 2, 3]`, `weight`
/// `[O, C·K / groups, 1, 1, 1]`, `points` `[N, S, 3]` with [`Locations::Points`]. The result is a map
/// `[N, O, d, h, w]`. Groups of outputs that are not a multiple of four are sampled and convolved in two steps.
pub fn obelisk_layer(
    graph: &mut Graph,
    image: Value,
    offsets: Value,
    weight: Value,
    points: Option<Value>,
    locations: Locations,
    groups: usize,
) -> Result<Value, GraphError> {
    let outputs = graph.shape(weight).first().copied().unwrap_or(0);
    if groups > 1 && outputs % (4 * groups) != 0 {
        let inputs: Vec<Value> = [image, offsets].into_iter().chain(points).collect();
        let x = graph.push1(ObeliskSample::new(locations), &inputs)?;
        let config = Conv3dConfig {
            groups,
            ..Default::default()
        };
        return conv3d(graph, &[x], weight, None, config);
    }
    let inputs: Vec<Value> = [image, offsets]
        .into_iter()
        .chain(points)
        .chain([weight])
        .collect();
    graph.push1(ObeliskLayer { locations, groups }, &inputs)
}

/// The fused layer; see [`obelisk_layer()`]. Inputs: image, offsets, the points if any, weight. With more than one group
/// each has a multiple of four outputs. No pass stores X. Only the image's gradient stores dL/dX.
#[derive(Clone, Copy, Debug)]
pub struct ObeliskLayer {
    /// The sampling locations p.
    pub locations: Locations,
    /// Groups of the convolution.
    pub groups: usize,
}

impl Op for ObeliskLayer {
    fn name(&self) -> &'static str {
        "obelisk_layer"
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>, GraphError> {
        Ok(vec![Layer::new(self.name(), inputs, self)?.features()])
    }

    fn dispatches(&self, io: &mut Io, caps: &Caps) -> Result<Vec<Dispatch>, GraphError> {
        Layer::new(self.name(), io.inputs, self)?.forward(io, caps)
    }

    fn variant(&self, io: &Io, caps: &Caps) -> &'static str {
        match Layer::new(self.name(), io.inputs, self) {
            Ok(layer) => layer.variant(caps).name(),
            Err(_) => "",
        }
    }

    fn gradient(
        &self,
        graph: &mut Graph,
        node: &NodeView,
        upstream: &[Option<Value>],
        wanted: &[bool],
    ) -> Result<Vec<Gradient>, GraphError> {
        let upstream = upstream[0].expect("the one output has a gradient");
        let weight = node.inputs.len() - 1;
        let inputs = [&node.inputs[..], &[upstream]].concat();
        let mut flows = vec![Gradient::Stops; node.inputs.len()];
        match (wanted[1], wanted[weight]) {
            (true, true) => {
                let both = graph.push(ObeliskLayerGradients(*self), &inputs)?;
                (flows[1], flows[weight]) = (Gradient::Flows(both[0]), Gradient::Flows(both[1]));
            }
            (true, false) => {
                flows[1] = Gradient::Flows(graph.push1(ObeliskLayerOffsetGradient(*self), &inputs)?);
            }
            (false, true) => {
                flows[weight] = Gradient::Flows(graph.push1(ObeliskLayerWeightGradient(*self), &inputs)?);
            }
            (false, false) => {}
        }
        if wanted[0] {
            let specs: Vec<Spec> = node.inputs.iter().map(|v| graph.spec(*v).clone()).collect();
            let g = Layer::new(self.name(), &specs, self)?.g;
            let config = Conv3dConfig {
                groups: self.groups,
                ..Default::default()
            };
            let op = Conv3dInputGradient {
                config,
                first: 0,
                whole: true,
                source: g.samples(),
            };
            // Between groups columns can't change places.
            let interleaved = self.groups == 1 && ObeliskImageGradient::interleaves(&g);
            let weights = match interleaved {
                true => graph.push1(Interleave { channels: g.c }, &[node.inputs[weight]])?,
                false => node.inputs[weight],
            };
            let dx = graph.push1(op, &[upstream, weights])?;
            let op = ObeliskImageGradient {
                locations: self.locations,
                image: specs[0].clone(),
                interleaved,
            };
            let inputs = [&node.inputs[1..weight], &[dx]].concat();
            flows[0] = Gradient::Flows(graph.push1(op, &inputs)?);
        }
        Ok(flows)
    }

    fn reads(&self, inputs: &[Spec], outputs: &[Spec], _: Range<usize>) -> Option<Reads> {
        // All of it, for any plane. Smaller features cost less than what each slab does again.
        let in_slabs = outputs[0].bytes() > LARGE_FEATURES && self.locations != Locations::Points;
        in_slabs.then(|| vec![None; inputs.len()])
    }

    #[cfg(feature = "onnx")]
    fn onnx(&self, to: &mut onnx::Writer, call: &onnx::Call) -> Result<Vec<String>, String> {
        let x = sampled(to, call.inputs, call.specs, self.locations)?;
        let weight = call.inputs.last().expect("checked on insertion");
        let group = Attribute::Int("group", self.groups as i64);
        Ok(vec![to.node("Conv", &[&x, weight], [group])])
    }

    fn reference(&self, inputs: &[&Tensor], step: &StepScalars) -> Vec<Tensor> {
        let layer = self.host_layer(inputs);
        let (weight, rest) = inputs.split_last().expect("checked on insertion");
        let x = self.samples(rest, step);
        let mut features = Tensor::zeros(&layer.features().shape);
        let locations: usize = layer.g.grid.iter().product();
        let group_outputs = layer.outputs / layer.groups;
        for (i, f) in features.data.iter_mut().enumerate() {
            let (n, o, s) = (
                i / locations / layer.outputs,
                i / locations % layer.outputs,
                i % locations,
            );
            let first = o / group_outputs * layer.columns;
            *f = (0..layer.columns)
                .map(|column| {
                    let channel = n * layer.g.c * layer.g.k + first + column;
                    weight.data[o * layer.columns + column] as f64 * x.data[channel * locations + s] as f64
                })
                .sum::<f64>() as f32;
        }
        vec![features]
    }
}

impl ObeliskLayer {
    fn host_layer(&self, inputs: &[&Tensor]) -> Layer {
        let specs: Vec<Spec> = inputs.iter().map(|t| Spec::flat(&t.shape)).collect();
        Layer::new("obelisk_layer", &specs, self).expect("checked on insertion")
    }

    fn samples(&self, inputs: &[&Tensor], step: &StepScalars) -> Tensor {
        ObeliskSample::new(self.locations)
            .reference(inputs, step)
            .remove(0)
    }
}

//! Dropout of elements (Srivastava et al. 2014) and of whole 3-D channels (Tompson et al. 2015).

use super::random::{random, stream_of};
use super::*;

params! {
    /// The uniform of `dropout.wgsl`.
    struct Params {
        /// Flat: vec4s bound;  map: vec4s of a plane.
        count: u32,
        /// Flat: the first vec4's position;  map: the first slice's.
        first: u32,
        /// Ceil(C / 4).
        blocks: u32,
        /// Slices bound · blocks.
        planes: u32,
        channels: u32,
        depth: u32,
        /// 1: one number a channel.
        by_channel: u32,
        id: u32,
        /// P · 2³².
        threshold: u32,
        /// 1 / (1 - p).
        scale: f32,
    }
}

/// Vec4s of a plane that one invocation covers.
const VECTORS: usize = 8;

/// Sets each element to 0 with probability `rate` and divides the others by 1 − `rate`; flat values and maps. For training:
/// inference graphs leave it out.
pub fn dropout(graph: &mut Graph, x: Value, rate: f32) -> Result<Value, GraphError> {
    add(graph, x, rate, false)
}

/// Sets each channel of each sample of a map to 0 with probability `rate` and divides the others by 1 − `rate`. For
/// training: inference graphs leave it out.
pub fn channel_dropout(graph: &mut Graph, x: Value, rate: f32) -> Result<Value, GraphError> {
    add(graph, x, rate, true)
}

fn add(graph: &mut Graph, x: Value, rate: f32, by_channel: bool) -> Result<Value, GraphError> {
    if !(0.0..1.0).contains(&rate) {
        let message = format!("dropout takes a rate from 0 up to but not 1, not {rate}");
        return Err(GraphError::Name(message));
    }
    let id = graph.nodes().len() as u32;
    graph.push1(Dropout { rate, id, by_channel }, &[x])
}

/// The mask depends on the submission's seed and step, on `id` and on the element's logical index, nothing else: the
/// gradient is this operation again, and layouts and splits don't change it.
#[derive(Clone, Copy, Debug)]
struct Dropout {
    rate: f32,
    /// Tells the dropouts of one graph apart.
    id: u32,
    by_channel: bool,
}

impl Dropout {
    fn threshold(&self) -> u32 {
        (self.rate as f64 * 2f64.powi(32)) as u32
    }

    fn scale(&self) -> f32 {
        1.0 / (1.0 - self.rate)
    }
}

impl Op for Dropout {
    fn name(&self) -> &'static str {
        if self.by_channel {
            "channel_dropout"
        } else {
            "dropout"
        }
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>, GraphError> {
        match inputs {
            [x] if x.layout == Layout::Map || !self.by_channel => Ok(vec![x.clone()]),
            _ if self.by_channel => Err(GraphError::shape(
                self.name(),
                inputs,
                "takes one map [N, C, D, H, W]",
            )),
            _ => Err(GraphError::shape(self.name(), inputs, "takes one value")),
        }
    }

    fn dispatches(&self, io: &mut Io, caps: &Caps) -> Result<Vec<Dispatch>, GraphError> {
        use BufferRef::*;
        let x = &io.inputs[0];
        let launch = |count: usize, first: usize, [blocks, planes, channels, depth]: [usize; 4]| Dispatch {
            constants: vec![("VECTORS", VECTORS as u32)],
            params: Params {
                count: int(count),
                first: int(first),
                blocks: int(blocks),
                planes: int(planes),
                channels: int(channels),
                depth: int(depth),
                by_channel: self.by_channel as u32,
                id: self.id,
                threshold: self.threshold(),
                scale: self.scale(),
            }
            .into(),
            flops: (count * planes * 4) as u64,
            ..Dispatch::new(
                shader!("dropout", "common/random"; Params, StepScalars),
                "flat_elements",
            )
        };
        Ok(match x.layout {
            Layout::Flat => ranges(x.bytes(), caps)
                .map(|(from, to)| {
                    let count = (to - from) as usize / 16;
                    Dispatch {
                        bindings: vec![
                            step(),
                            read(Input(0)).range(from, to),
                            write(Output(0)).range(from, to),
                        ],
                        workgroups: linear_groups(count, 64),
                        ..launch(count, from as usize / 16, [1, 1, 1, 1])
                    }
                })
                .collect(),
            Layout::Map => {
                let [_, channels, depth, h, w] = x.ncdhw().expect("a map");
                io.slices(&[x], caps)
                    .iter()
                    .map(|run| {
                        let planes = run.count * x.blocks();
                        Dispatch {
                            entry: "map_elements",
                            bindings: vec![step(), run.of(x, read(Input(0))), run.of(x, write(Output(0)))],
                            workgroups: plane_groups(h * w, VECTORS, planes),
                            iterations: VECTORS as u64,
                            ..launch(h * w, run.first, [x.blocks(), planes, channels, depth])
                        }
                    })
                    .collect()
            }
        })
    }

    fn gradient(
        &self,
        graph: &mut Graph,
        _: &NodeView,
        upstream: &[Option<Value>],
        _: &[bool],
    ) -> Result<Vec<Gradient>, GraphError> {
        let dy = upstream[0].expect("the one output has a gradient");
        Ok(vec![Gradient::Flows(graph.push1(*self, &[dy])?)])
    }

    fn rematerialise(&self, node: &NodeView, _: &[Spec]) -> Option<(Arc<dyn Op>, Vec<Value>)> {
        Some((Arc::new(*self), node.inputs.clone()))
    }

    fn reads(&self, inputs: &[Spec], outputs: &[Spec], planes: Range<usize>) -> Option<Reads> {
        let map = inputs[0].layout == Layout::Map;
        same_planes(inputs, outputs, planes).filter(|_| map)
    }

    fn reference(&self, inputs: &[&Tensor], step: &StepScalars) -> Vec<Tensor> {
        let x = inputs[0];
        let key = stream_of(self.id, step);
        let volume: usize = if self.by_channel {
            x.shape[2..].iter().product()
        } else {
            1
        };
        vec![Tensor::from_fn(&x.shape, |i| {
            let number = random((i / volume) as u32, key);
            if number >= self.threshold() {
                x.data[i] * self.scale()
            } else {
                0.0
            }
        })]
    }
}

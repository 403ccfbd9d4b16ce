//! Between the layout of feature maps and dense numbers: where convolutions meet fully-connected layers.

use super::*;

params! {
    /// The uniform of `layout.wgsl`.
    struct Params {
        count: u32,
        plane: u32,
        blocks: u32,
        channels: u32,
        depth: u32,
        first_slice: u32,
    }
}

/// The map as dense numbers, flat `[N, C, D, H, W]`.
pub fn to_flat(graph: &mut Graph, x: Value) -> Result<Value, GraphError> {
    let shape = graph.shape(x).to_vec();
    graph.push1(ToFlat { shape }, &[x])
}

/// Dense numbers of any shape, in the order `[N, C, D, H, W]`, as a map of that shape.
pub fn to_map(graph: &mut Graph, x: Value, shape: [usize; 5]) -> Result<Value, GraphError> {
    graph.push1(ToMap { shape }, &[x])
}

#[derive(Clone, Debug)]
struct ToFlat {
    shape: Vec<usize>,
}

#[derive(Clone, Debug)]
struct ToMap {
    shape: [usize; 5],
}

/// The flat value is bound whole: its channels lie outside its depth, so that its pieces are not the map's.
fn dispatches(entry: &'static str, map: &Spec, caps: &Caps) -> Vec<Dispatch> {
    let [_, channels, depth, h, w] = map.ncdhw().expect("a map");
    slices(&[map], caps)
        .iter()
        .map(|run| {
            let count = run.count * map.blocks() * h * w;
            let bindings = match entry {
                "to_flat" => vec![
                    run.of(map, read(BufferRef::Input(0))),
                    write(BufferRef::Output(0)),
                ],
                _ => vec![
                    read(BufferRef::Input(0)),
                    run.of(map, write(BufferRef::Output(0))),
                ],
            };
            Dispatch {
                params: Params {
                    count: int(count),
                    plane: int(h * w),
                    blocks: int(map.blocks()),
                    channels: int(channels),
                    depth: int(depth),
                    first_slice: int(run.first),
                }
                .into(),
                bindings,
                workgroups: linear_groups(count, 64),
                ..Dispatch::new(shader!("layout"; Params), entry)
            }
        })
        .collect()
}

impl Op for ToFlat {
    fn name(&self) -> &'static str {
        "to_flat"
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>, GraphError> {
        let output = Spec::flat(&self.shape);
        match inputs {
            [x] if x.layout == Layout::Map && x.count() == output.count() => Ok(vec![output]),
            _ => Err(GraphError::shape(
                self.name(),
                inputs,
                "takes one map [N, C, D, H, W]",
            )),
        }
    }

    fn dispatches(&self, io: &mut Io, caps: &Caps) -> Result<Vec<Dispatch>, GraphError> {
        Ok(dispatches("to_flat", &io.inputs[0], caps))
    }

    fn gradient(
        &self,
        graph: &mut Graph,
        node: &NodeView,
        upstream: &[Option<Value>],
        _: &[bool],
    ) -> Result<Vec<Gradient>, GraphError> {
        let dy = upstream[0].expect("the one output has a gradient");
        let shape = graph.spec(node.inputs[0]).ncdhw().expect("a map");
        Ok(vec![Gradient::Flows(to_map(graph, dy, shape)?)])
    }

    #[cfg(feature = "onnx")]
    fn onnx(&self, to: &mut onnx::Writer, call: &onnx::Call) -> Result<Vec<String>, String> {
        let shape = to.int64(&onnx::ints(self.shape.iter().copied()));
        Ok(vec![to.node("Reshape", &[&call.inputs[0], &shape], [])])
    }

    fn reference(&self, inputs: &[&Tensor], _: &StepScalars) -> Vec<Tensor> {
        vec![Tensor::new(&self.shape, inputs[0].data.clone())]
    }
}

impl Op for ToMap {
    fn name(&self) -> &'static str {
        "to_map"
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>, GraphError> {
        let output = Spec::map(self.shape);
        match inputs {
            [x] if x.layout == Layout::Flat && x.count() == output.count() => Ok(vec![output]),
            _ => {
                let reason = format!("takes one flat value with as many numbers as {:?}", self.shape);
                Err(GraphError::shape(self.name(), inputs, reason))
            }
        }
    }

    fn dispatches(&self, io: &mut Io, caps: &Caps) -> Result<Vec<Dispatch>, GraphError> {
        Ok(dispatches("to_map", &io.outputs[0], caps))
    }

    fn gradient(
        &self,
        graph: &mut Graph,
        node: &NodeView,
        upstream: &[Option<Value>],
        _: &[bool],
    ) -> Result<Vec<Gradient>, GraphError> {
        let dy = upstream[0].expect("the one output has a gradient");
        let shape = graph.shape(node.inputs[0]).to_vec();
        Ok(vec![Gradient::Flows(graph.push1(ToFlat { shape }, &[dy])?)])
    }

    #[cfg(feature = "onnx")]
    fn onnx(&self, to: &mut onnx::Writer, call: &onnx::Call) -> Result<Vec<String>, String> {
        let shape = to.int64(&onnx::ints(self.shape.iter().copied()));
        Ok(vec![to.node("Reshape", &[&call.inputs[0], &shape], [])])
    }

    fn reference(&self, inputs: &[&Tensor], _: &StepScalars) -> Vec<Tensor> {
        vec![Tensor::new(&self.shape, inputs[0].data.clone())]
    }
}

//! Concatenation of maps along channels, as a copy. Convolutions take several sources as they are; this is for
//! consumers that don't.

use super::*;

params! {
    /// The uniform of `channels.wgsl`.
    struct Params {
        area: u32,
        in_blocks: u32,
        out_blocks: u32,
        first: u32,
        count: u32,
        shift: i32,
        covered: u32,
        vectors: u32,
    }
}

/// Adds the concatenation of maps `[N, Cᵢ, D, H, W]` to the graph: a map `[N, ΣCᵢ, D, H, W]`.
pub fn concat(graph: &mut Graph, sources: &[Value]) -> Result<Value, GraphError> {
    graph.push1(Concat, sources)
}

/// Concatenation along channels.
#[derive(Debug)]
pub struct Concat;

/// `count` channels of a map from `first` on: the gradient of one source of a concatenation.
#[derive(Debug)]
struct Channels {
    first: usize,
    count: usize,
}

/// Copies `count` channels of input `source` from `from` on to the output's channels from `to` on.
fn copy(io: &Io, caps: &Caps, source: usize, from: usize, to: usize, count: usize) -> Vec<Dispatch> {
    let (input, output) = (&io.inputs[source], &io.outputs[0]);
    let area = output.shape[3] * output.shape[4];
    let covered = (to + count).div_ceil(4) - to / 4;
    slices(&[input, output], caps)
        .iter()
        .map(|run| {
            let vectors = run.count * covered * area;
            Dispatch {
                params: Params {
                    area: int(area),
                    in_blocks: int(input.blocks()),
                    out_blocks: int(output.blocks()),
                    first: int(to),
                    count: int(count),
                    shift: from as i32 - to as i32,
                    covered: int(covered),
                    vectors: int(vectors),
                }
                .into(),
                bindings: vec![
                    run.of(input, read(BufferRef::Input(source))),
                    run.of(output, write(BufferRef::Output(0))),
                ],
                workgroups: linear_groups(vectors, 64),
                iterations: 4,
                ..Dispatch::new(shader!("channels"; Params), "main")
            }
        })
        .collect()
}

impl Op for Concat {
    fn name(&self) -> &'static str {
        "concat"
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>, GraphError> {
        let mut channels = 0;
        let mut shape = match inputs.first().and_then(Spec::ncdhw) {
            Some(shape) => shape,
            None => {
                return Err(GraphError::shape(
                    "concat",
                    inputs,
                    "takes one or more maps [N, C, D, H, W]",
                ));
            }
        };
        for spec in inputs {
            shape[1] = spec.shape.get(1).copied().unwrap_or(0);
            channels += shape[1];
            if *spec != Spec::map(shape) {
                return Err(GraphError::shape(
                    "concat",
                    inputs,
                    "takes maps of the same N, D, H and W",
                ));
            }
        }
        shape[1] = channels;
        Ok(vec![Spec::map(shape)])
    }

    fn dispatches(&self, io: &mut Io, caps: &Caps) -> Result<Vec<Dispatch>, GraphError> {
        let mut to = 0;
        let mut dispatches = Vec::new();
        for source in 0..io.inputs.len() {
            let count = io.inputs[source].shape[1];
            // In order: a source that starts within a block of four keeps the lanes that the one before wrote.
            dispatches.extend(copy(io, caps, source, 0, to, count));
            to += count;
        }
        Ok(dispatches)
    }

    fn gradient(
        &self,
        graph: &mut Graph,
        node: &NodeView,
        upstream: &[Option<Value>],
        wanted: &[bool],
    ) -> Result<Vec<Gradient>, GraphError> {
        pieces(graph, node, upstream, wanted, 1, |first, count| Channels {
            first,
            count,
        })
    }

    #[cfg(feature = "onnx")]
    fn onnx(&self, to: &mut onnx::Writer, call: &onnx::Call) -> Result<Vec<String>, String> {
        Ok(vec![to.concat(call.inputs)])
    }

    fn reference(&self, inputs: &[&Tensor], _: &StepScalars) -> Vec<Tensor> {
        let [n, _, d, h, w] = inputs[0].ncdhw();
        let channels = inputs.iter().map(|t| t.shape[1]).sum();
        let mut data = Vec::new();
        for n in 0..n {
            for t in inputs {
                data.extend_from_slice(&t.data[t.index(n, 0, 0, 0, 0)..][..t.shape[1] * d * h * w]);
            }
        }
        vec![Tensor::new(&[n, channels, d, h, w], data)]
    }

    fn rematerialise(&self, node: &NodeView, _: &[Spec]) -> Option<(Arc<dyn Op>, Vec<Value>)> {
        Some((Arc::new(Concat), node.inputs.clone()))
    }
}

/// The gradient of a concatenation along `axis`: to each wanted source, the piece of the upstream gradient from `first`
/// on that is as long as the source.
pub(super) fn pieces<O: Op + 'static>(
    graph: &mut Graph,
    node: &NodeView,
    upstream: &[Option<Value>],
    wanted: &[bool],
    axis: usize,
    piece: impl Fn(usize, usize) -> O,
) -> Result<Vec<Gradient>, GraphError> {
    let upstream = upstream[0].expect("the one output has a gradient");
    let mut first = 0;
    let mut gradients = Vec::new();
    for (source, wanted) in node.inputs.iter().zip(wanted) {
        let count = graph.shape(*source)[axis];
        gradients.push(match wanted {
            true => Gradient::Flows(graph.push1(piece(first, count), &[upstream])?),
            false => Gradient::Stops,
        });
        first += count;
    }
    Ok(gradients)
}

impl Op for Channels {
    fn name(&self) -> &'static str {
        "channels"
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>, GraphError> {
        match inputs {
            [x] if x.layout == Layout::Map && self.first + self.count <= x.shape[1] => {
                let mut shape = x.ncdhw().expect("maps have five axes");
                shape[1] = self.count;
                Ok(vec![Spec::map(shape)])
            }
            _ => Err(GraphError::shape(
                "channels",
                inputs,
                "takes one map with enough channels",
            )),
        }
    }

    fn dispatches(&self, io: &mut Io, caps: &Caps) -> Result<Vec<Dispatch>, GraphError> {
        Ok(copy(io, caps, 0, self.first, 0, self.count))
    }

    fn reference(&self, inputs: &[&Tensor], _: &StepScalars) -> Vec<Tensor> {
        let x = inputs[0];
        let [n, _, d, h, w] = x.ncdhw();
        let mut data = Vec::new();
        for n in 0..n {
            data.extend_from_slice(&x.data[x.index(n, self.first, 0, 0, 0)..][..self.count * d * h * w]);
        }
        vec![Tensor::new(&[n, self.count, d, h, w], data)]
    }
}

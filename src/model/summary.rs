//! What a network is made of and costs, from its graph and plans alone: no device is needed.

use std::collections::BTreeSet;

use serde::Serialize;

use super::Network;
use crate::graph::{Graph, GraphError, Source, Value};
use crate::model::Builder;
use crate::op::arg_max::ArgMax;
use crate::op::{Caps, Io, Op};
use crate::plan::Plan;
use crate::tensor::Spec;
use crate::train::{Loss, training_graph};

/// A network at one size, for batches of one.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Summary {
    /// Its name.
    pub arch: &'static str,
    /// Voxels of the image along D, H, W; it has one channel.
    pub size: [usize; 3],
    /// Labels, the background included.
    pub labels: usize,
    /// Operations of inference in order.
    pub layers: Vec<Layer>,
    /// Trained numbers.
    pub parameters: usize,
    /// Floating-point operations of one inference: the sum over the layers.
    pub flops: u64,
    /// Planned memory of inference to labels, or why it can't be planned.
    pub inference: Result<PlannedMemory, String>,
    /// Planned memory of a training step with augmentation, cross-entropy and soft Dice, or why it can't be planned.
    pub training: Result<PlannedMemory, String>,
}

/// An operation of the network.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Layer {
    /// Its parameters' names without what follows the dot; empty where it has none.
    pub name: String,
    /// The operation.
    pub kind: &'static str,
    /// Shape of its (first) output.
    pub shape: Vec<usize>,
    /// Trained numbers that no layer before it has.
    pub parameters: usize,
    /// Floating-point operations of its kernels.
    pub flops: u64,
}

/// Device memory of a plan within WebGPU's default limits, in bytes.
#[derive(Clone, Copy, Debug, Serialize)]
#[non_exhaustive]
pub struct PlannedMemory {
    /// Inputs, activations, their gradients, temporaries.
    pub slots: u64,
    /// All of it: the slots, parameters, states and, for training, gradients and moments.
    pub total: u64,
}

impl Summary {
    /// Of a network for images `[1, 1, D, H, W]`.
    ///
    /// # Errors
    /// A size or number of labels that the network does not take.
    pub fn new(network: &Network, size: [usize; 3], labels: usize) -> Result<Summary, GraphError> {
        let graph = inference(network, size, labels)?;
        let layers = layers(&graph)?;
        Ok(Summary {
            arch: network.name,
            size,
            labels,
            parameters: graph.parameter_count(),
            flops: layers.iter().map(|l| l.flops).sum(),
            layers,
            inference: memory(&labels_graph(network, size, labels)?),
            training: memory(&step(network, size, labels)?),
        })
    }

    /// The plan of one inference or training step within WebGPU's default limits.
    ///
    /// # Errors
    /// Those of [`Summary::new`], and limits that the size exceeds.
    pub fn plan(
        network: &Network,
        size: [usize; 3],
        labels: usize,
        training: bool,
    ) -> Result<Plan, GraphError> {
        let graph = match training {
            true => step(network, size, labels)?,
            false => labels_graph(network, size, labels)?,
        };
        Plan::new(&graph, &Caps::PORTABLE)
    }
}

fn inference(network: &Network, [d, h, w]: [usize; 3], labels: usize) -> Result<Graph, GraphError> {
    let mut graph = Graph::new();
    let image = graph.input("image", Spec::flat(&[1, 1, d, h, w]))?;
    let mut builder = Builder::new(&mut graph, false);
    let logits = network.build(&mut builder, image, labels)?;
    graph.keep("logits", logits);
    Ok(graph)
}

/// Inference to the label of the highest logit: what predicting without resampling does.
fn labels_graph(network: &Network, [d, h, w]: [usize; 3], labels: usize) -> Result<Graph, GraphError> {
    let mut graph = Graph::new();
    let image = graph.input("image", Spec::flat(&[1, 1, d, h, w]))?;
    let mut builder = Builder::new(&mut graph, false);
    let logits = network.build(&mut builder, image, labels)?;
    let labels = graph.push1(ArgMax, &[logits])?;
    graph.keep("labels", labels);
    Ok(graph)
}

fn step(network: &Network, [d, h, w]: [usize; 3], labels: usize) -> Result<Graph, GraphError> {
    training_graph(network, [1, 1, d, h, w], labels, Loss::CrossEntropyDice, true)
}

fn memory(graph: &Graph) -> Result<PlannedMemory, String> {
    let plan = Plan::new(graph, &Caps::PORTABLE).map_err(|e| e.to_string())?;
    Ok(PlannedMemory {
        slots: plan.slot_bytes(),
        total: plan.device_bytes(),
    })
}

/// One layer a node, as the network's function added them: what a plan fuses is apart here.
fn layers(graph: &Graph) -> Result<Vec<Layer>, GraphError> {
    let mut counted = BTreeSet::new();
    let mut layers = Vec::new();
    for node in graph.nodes() {
        let specs = |values: &[_]| -> Vec<Spec> { values.iter().map(|v| graph.spec(*v).clone()).collect() };
        let (inputs, outputs) = (specs(&node.inputs), specs(&node.outputs));
        let flops = flops(graph, node.op.as_ref(), &node.inputs, &inputs, &outputs)?;
        let (mut names, mut parameters) = (Vec::new(), 0);
        for value in &node.inputs {
            let info = &graph.values()[value.index()];
            if !matches!(info.source, Source::Parameter(_) | Source::State(_)) {
                continue;
            }
            let name = info.name.rsplit_once('.').map_or(&*info.name, |(layer, _)| layer);
            if !names.contains(&name) {
                names.push(name);
            }
            if matches!(info.source, Source::Parameter(_)) && counted.insert(*value) {
                parameters += info.spec.count();
            }
        }
        layers.push(Layer {
            name: names.join(" + "),
            kind: node.op.name(),
            shape: outputs[0].shape.clone(),
            parameters,
            flops,
        });
    }
    Ok(layers)
}

/// Operations of a node, or of those that it is composed of.
fn flops(
    graph: &Graph,
    op: &dyn Op,
    values: &[Value],
    inputs: &[Spec],
    outputs: &[Spec],
) -> Result<u64, GraphError> {
    let mut expanded = graph.clone();
    let before = graph.nodes().len();
    if op.expand(&mut expanded, values)?.is_none() {
        let dispatches = op.dispatches(&mut Io::new(inputs, outputs), &Caps::PORTABLE)?;
        return Ok(dispatches.iter().map(|d| d.flops).sum());
    }
    let specs =
        |values: &[Value]| -> Vec<Spec> { values.iter().map(|v| expanded.spec(*v).clone()).collect() };
    expanded.nodes()[before..]
        .iter()
        .map(|node| {
            let (inputs, outputs) = (specs(&node.inputs), specs(&node.outputs));
            flops(&expanded, node.op.as_ref(), &node.inputs, &inputs, &outputs)
        })
        .sum()
}

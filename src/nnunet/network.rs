//! The graph of a model's network.

use super::plan::Plan;
use crate::graph::{Graph, GraphError};
use crate::model::Builder;
use crate::tensor::Spec;

/// The network for inference on a tile: `image` `[1, C, D, H, W]` in, `logits` kept.
///
/// # Errors
/// Numbers of the plan that contradict each other.
pub fn graph(plan: &Plan) -> Result<Graph, GraphError> {
    let mut graph = Graph::new();
    let [d, h, w] = plan.patch;
    let image = graph.input("image", Spec::flat(&[1, plan.channels.len(), d, h, w]))?;
    let outputs = plan.labels.names().len();
    let mut builder = Builder::new(&mut graph, false);
    let logits = plan.network.build(&mut builder, image, outputs, false)?;
    graph.keep("logits", logits);
    Ok(graph)
}

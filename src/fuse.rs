//! Fusion: nodes become others that compute the same in less time or memory. One rule a file; [`RULES`] lists them in the order in
//! which they are tried, and the first that applies to a node counts.

mod arg_max_of_conv3d;
mod batch_norm_after_conv3d;
mod batch_norm_before_pointwise;
mod concat_into_conv3d;
mod concat_of_concat;
mod leaky_relu_after_conv3d;

use std::any::Any;

use crate::graph::{Graph, GraphError, Sole, Value};
use crate::op::{Caps, Op};

/// A node, for rules to look at. [`Graph::producer`] gives what made an input.
struct Site<'a> {
    op: &'a dyn Op,
    inputs: &'a [Value],
    sole: Sole<'a>,
    caps: &'a Caps,
}

impl Site<'_> {
    /// The node's operation, where it is an `O`.
    fn op<O: Op>(&self) -> Option<&O> {
        let op: &dyn Any = self.op;
        op.downcast_ref()
    }

    /// What made `value`, where it is an `O` and this node alone reads it: the operation and its inputs.
    fn sole_producer<O: Op + Clone>(&self, graph: &Graph, value: Value) -> Option<(O, Vec<Value>)> {
        let (op, inputs) = graph.producer::<O>(value)?;
        (self.sole)(value).then(|| (op.clone(), inputs.to_vec()))
    }
}

/// Adds nodes that do the work of a node and of some before it, and returns what stands for its outputs; `None` where it does
/// not apply.
type Rule = fn(&mut Graph, &Site) -> Result<Option<Vec<Value>>, GraphError>;

const RULES: [Rule; 6] = [
    batch_norm_after_conv3d::fuse,
    batch_norm_before_pointwise::fuse,
    concat_into_conv3d::fuse,
    concat_of_concat::fuse,
    leaky_relu_after_conv3d::fuse,
    arg_max_of_conv3d::fuse,
];

/// The graph as plans run it on an adapter: compositions expanded, and every rule applied where it can be.
pub(crate) fn fused(graph: &Graph, caps: &Caps) -> Result<Graph, GraphError> {
    graph.rewritten(|graph, op, inputs, sole| {
        if let Some(outputs) = op.expand(graph, inputs)? {
            return Ok(Some(outputs));
        }
        let site = Site {
            op,
            inputs,
            sole,
            caps,
        };
        for rule in RULES {
            if let Some(outputs) = rule(graph, &site)? {
                return Ok(Some(outputs));
            }
        }
        Ok(None)
    })
}

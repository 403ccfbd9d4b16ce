//! A leaky ReLU becomes the last step of the convolution before it.

use super::Site;
use crate::graph::{Graph, GraphError, Value};
use crate::op::activation::Activation;
use crate::op::conv3d::Conv3d;

pub(super) fn fuse(graph: &mut Graph, site: &Site) -> Result<Option<Vec<Value>>, GraphError> {
    let Some(Activation::LeakyRelu { slope }) = site.op() else {
        return Ok(None);
    };
    let Some((conv @ Conv3d { slope: None, .. }, inputs)) =
        site.sole_producer::<Conv3d>(graph, site.inputs[0])
    else {
        return Ok(None);
    };
    let conv = Conv3d {
        slope: Some(*slope),
        ..conv
    };
    graph.push(conv, &inputs).map(Some)
}

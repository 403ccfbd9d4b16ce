//! A batch norm with fixed statistics goes into the weight and the bias of the convolution before it; its leaky ReLU becomes the
//! convolution's last step.

use super::Site;
use crate::graph::{Graph, GraphError, Value};
use crate::op::batch_norm::{BatchNormInference, fold_batch_norm};
use crate::op::conv3d::Conv3d;

pub(super) fn fuse(graph: &mut Graph, site: &Site) -> Result<Option<Vec<Value>>, GraphError> {
    let Some(norm) = site.op::<BatchNormInference>() else {
        return Ok(None);
    };
    let [x, gamma, beta, mean, variance] = site.inputs[..] else {
        unreachable!("checked on insertion")
    };
    let Some((conv @ Conv3d { slope: None, .. }, mut inputs)) = site.sole_producer::<Conv3d>(graph, x) else {
        return Ok(None);
    };
    let bias = if conv.bias { inputs.pop() } else { None };
    let weight = inputs.pop().expect("a weight");
    let (weight, bias) = fold_batch_norm(graph, weight, bias, gamma, beta, mean, variance)?;
    let conv = Conv3d {
        bias: true,
        slope: norm.slope,
        ..conv
    };
    inputs.extend([weight, bias]);
    graph.push(conv, &inputs).map(Some)
}

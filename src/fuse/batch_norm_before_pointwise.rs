//! A batch norm with fixed statistics goes into the weight and the bias of the 1×1×1 convolution after it.

use super::{Site, concat_into_conv3d};
use crate::graph::{Graph, GraphError, Value};
use crate::op::batch_norm::{BatchNormInference, fold_batch_norm_before};
use crate::op::conv3d::Conv3d;

pub(super) fn fuse(graph: &mut Graph, site: &Site) -> Result<Option<Vec<Value>>, GraphError> {
    let Some(conv) = site.op::<Conv3d>() else {
        return Ok(None);
    };
    let (x, weight, bias) = match (site.inputs, conv.bias) {
        ([x, weight], false) => (*x, *weight, None),
        ([x, weight, bias], true) => (*x, *weight, Some(*bias)),
        _ => return Ok(None),
    };
    if graph.shape(weight)[2..] != [1, 1, 1] || conv.config.padding != [0; 3] {
        return Ok(None);
    }
    let Some((BatchNormInference { slope: None }, before)) = site.sole_producer(graph, x) else {
        return Ok(None);
    };
    let (weight, bias) = fold_batch_norm_before(graph, weight, bias, &before[1..], conv.config.groups)?;
    let conv = Conv3d { bias: true, ..*conv };
    let site = Site {
        op: &conv,
        inputs: &[before[0], weight, bias],
        ..*site
    };
    // What came before the batch norm may be another one, or a concatenation.
    for rule in [fuse, concat_into_conv3d::fuse] {
        if let Some(outputs) = rule(graph, &site)? {
            return Ok(Some(outputs));
        }
    }
    graph.push(conv, site.inputs).map(Some)
}

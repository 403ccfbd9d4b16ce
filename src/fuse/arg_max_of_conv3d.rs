//! An arg max goes into the convolution before it, or into a 1×1×1 convolution and the one before that, where the adapter has a
//! kernel with all outputs of a voxel at hand: the logits are then never in memory.

use super::Site;
use crate::graph::{Graph, GraphError, Value};
use crate::op::arg_max::ArgMax;
use crate::op::conv3d::{Conv3d, Conv3dConfig, Conv3dLabels};

pub(super) fn fuse(graph: &mut Graph, site: &Site) -> Result<Option<Vec<Value>>, GraphError> {
    if site.op::<ArgMax>().is_none() {
        return Ok(None);
    }
    let Some((last, inputs)) = site.sole_producer::<Conv3d>(graph, site.inputs[0]) else {
        return Ok(None);
    };
    let labels = |conv, pointwise| Conv3dLabels { conv, pointwise };
    let mut found = vec![(labels(last, false), inputs.clone())];
    if let [x, weight, bias] = inputs[..]
        && last.bias
        && last.slope.is_none()
        && last.config == Conv3dConfig::default()
        && graph.shape(weight)[2..] == [1, 1, 1]
        && let Some((conv, mut inputs)) = site.sole_producer::<Conv3d>(graph, x)
    {
        inputs.extend([weight, bias]);
        found.push((labels(conv, true), inputs));
    }
    for (op, inputs) in found {
        let specs: Vec<_> = inputs.iter().map(|v| graph.spec(*v).clone()).collect();
        if op.fits(&specs, site.caps)? {
            return graph.push(op, &inputs).map(Some);
        }
    }
    Ok(None)
}

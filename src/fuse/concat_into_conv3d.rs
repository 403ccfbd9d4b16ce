//! A convolution reads what a concatenation before it would put together: its sources.

use super::Site;
use crate::graph::{Graph, GraphError, Value};
use crate::op::concat::Concat;
use crate::op::conv3d::Conv3d;

pub(super) fn fuse(graph: &mut Graph, site: &Site) -> Result<Option<Vec<Value>>, GraphError> {
    let Some(conv) = site.op::<Conv3d>().filter(|conv| conv.config.groups == 1) else {
        return Ok(None);
    };
    let (sources, rest) = site.inputs.split_at(conv.sources(site.inputs.len()));
    let parts = |x: &Value| graph.producer::<Concat>(*x).map(|(_, inputs)| inputs.to_vec());
    if sources.iter().all(|x| parts(x).is_none()) {
        return Ok(None);
    }
    let flat = sources.iter().flat_map(|x| parts(x).unwrap_or(vec![*x]));
    let inputs: Vec<Value> = flat.chain(rest.iter().copied()).collect();
    graph.push(*conv, &inputs).map(Some)
}

//! A concatenation of concatenations is one.

use super::Site;
use crate::graph::{Graph, GraphError, Value};
use crate::op::concat::Concat;

pub(super) fn fuse(graph: &mut Graph, site: &Site) -> Result<Option<Vec<Value>>, GraphError> {
    let parts = |x: &Value| graph.producer::<Concat>(*x).map(|(_, inputs)| inputs.to_vec());
    if site.op::<Concat>().is_none() || site.inputs.iter().all(|x| parts(x).is_none()) {
        return Ok(None);
    }
    let flat: Vec<Value> = site
        .inputs
        .iter()
        .flat_map(|x| parts(x).unwrap_or(vec![*x]))
        .collect();
    graph.push(Concat, &flat).map(Some)
}

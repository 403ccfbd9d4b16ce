//! Where numbers stop to be finite: looked for once something has gone wrong, and at no cost before.

use std::collections::HashMap;

use crate::gpu::{Device, Executable, GpuError, Weights};
use crate::graph::{Graph, Source};
use crate::op::StepScalars;
use crate::plan::Plan;
use crate::tensor::Tensor;

/// A graph made for this search: every output of it is kept.
pub(crate) struct Search {
    /// The graph, to be run.
    executable: Executable,
    /// What each kept output is, in words, by its name there.
    outputs: Vec<(String, String)>,
}

impl Search {
    /// For a graph up to what it keeps, with these weights. There may be too little memory for it, or too few bindings.
    pub async fn new(
        device: &Device,
        graph: &Graph,
        tensors: &HashMap<String, Tensor>,
    ) -> Result<Search, GpuError> {
        let mut graph = graph.up_to_kept();
        let mut outputs = Vec::new();
        let mut layer = None;
        for (i, node) in graph.clone().nodes().iter().enumerate() {
            let own = node.inputs.iter().find_map(|input| {
                let info = &graph.values()[input.index()];
                let is_weight = matches!(info.source, Source::Parameter(_) | Source::State(_));
                is_weight.then(|| info.name.clone())
            });
            let (is_own, name) = (own.is_some(), own.or(layer));
            // `conv1.0.weight` is of the layer `conv1.0`
            let place = name
                .as_deref()
                .map(|name| name.rsplit_once('.').map_or(name, |(layer, _)| layer));
            let op = node.op.name();
            let told = match place {
                Some(place) if is_own => format!("the layer `{place}` ({op})"),
                Some(place) => format!("{op}, after the layer `{place}`"),
                None => format!("{op}, before the first layer"),
            };
            for (k, output) in node.outputs.iter().enumerate() {
                let key = format!("output {k} of node {i}");
                graph.keep(&key, *output);
                outputs.push((key, told.clone()));
            }
            layer = name;
        }
        let plan = Plan::new(&graph, device.caps()).map_err(|e| GpuError::Tensor(e.to_string()))?;
        let weights = Weights::new(device, &plan, false).await?;
        weights.upload(device, tensors)?;
        Ok(Search {
            executable: Executable::new(device, plan, &weights).await?,
            outputs,
        })
    }

    /// What is to be run, for its inputs.
    pub fn executable(&mut self) -> &mut Executable {
        &mut self.executable
    }

    /// Runs it: the first output, in words, that is not finite.
    pub async fn run(&self, device: &Device, step: &StepScalars) -> Result<Option<String>, GpuError> {
        self.executable.submit(device, step)?;
        for (key, told) in &self.outputs {
            let output = self.executable.read(device, key).await?;
            if !is_finite(&output) {
                return Ok(Some(told.clone()));
            }
        }
        Ok(None)
    }
}

/// The end of a sentence that says what is not finite.
pub(crate) fn first_in(layer: &Option<String>) -> String {
    layer
        .as_ref()
        .map_or(String::new(), |layer| format!(", first in {layer}"))
}

/// Whether all numbers of a tensor are finite.
pub(crate) fn is_finite(tensor: &Tensor) -> bool {
    tensor.data.iter().all(|v| v.is_finite())
}

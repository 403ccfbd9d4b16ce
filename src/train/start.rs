//! What a training starts from: random weights, or those of another training.

use std::collections::HashMap;

use super::{Settings, TrainError};
use crate::gpu::AVERAGE;
use crate::graph::Graph;
use crate::preprocess::Preprocessing;
use crate::tensor::Tensor;
use crate::weights::{self, Model};

/// Weights, the optimiser's moments of nothing, and averages of those weights.
///
/// # Errors
/// Weights to start from that can't be read, or have nothing that fits.
pub(super) fn initial(
    graph: &Graph,
    settings: &Settings,
    preprocessing: &Preprocessing,
) -> Result<HashMap<String, Tensor>, TrainError> {
    let mut tensors = weights::initialise(graph, settings.seed);
    if let Some(path) = &settings.warm_start {
        let model = Model::load(path)?;
        let taken = take(&mut tensors, &model, preprocessing);
        if taken == 0 {
            return Err(TrainError::Settings(format!(
                "{} has no tensor of the name and shape of one of {}",
                path.display(),
                settings.arch
            )));
        }
        if taken < tensors.len() {
            tracing::warn!(
                "{} of {} tensors start as in {}; the others, which it has not or in another shape, at random",
                taken,
                tensors.len(),
                path.display()
            );
        }
    }
    let averages: Vec<_> = tensors
        .iter()
        .map(|(name, tensor)| (format!("{AVERAGE}{name}"), tensor.clone()))
        .collect();
    tensors.extend(averages);
    for (_, parameter) in graph.parameters() {
        for order in 0..2 {
            let name = format!("adam.{order}.{}", parameter.name);
            tensors.insert(name, Tensor::zeros(&parameter.spec.shape));
        }
    }
    Ok(tensors)
}

/// Replaces tensors by the model's of the same name: whole where the shapes are equal; where they differ by the number of labels
/// (first axis) or channels (second), those of the same names. Returns how many tensors took something.
fn take(tensors: &mut HashMap<String, Tensor>, model: &Model, preprocessing: &Preprocessing) -> usize {
    let before = &model.info.preprocessing;
    let labels = |p: &Preprocessing| p.labels.iter().map(|l| l.name.clone()).collect::<Vec<_>>();
    let channels = |p: &Preprocessing| p.channels.iter().map(|c| c.name.clone()).collect::<Vec<_>>();
    // By axis, where names are before, and now.
    let names = [
        (labels(before), labels(preprocessing)),
        (channels(before), channels(preprocessing)),
    ];
    let mut taken = 0;
    for (name, tensor) in tensors.iter_mut() {
        let Some(from) = model.tensors.get(name) else {
            continue;
        };
        if from.shape == tensor.shape {
            *tensor = from.clone();
            taken += 1;
            continue;
        }
        let differs: Vec<usize> = match from.shape.len() == tensor.shape.len() {
            true => (0..from.shape.len())
                .filter(|a| from.shape[*a] != tensor.shape[*a])
                .collect(),
            false => continue,
        };
        let [axis @ (0 | 1)] = differs[..] else { continue };
        let (old, new) = &names[axis];
        if from.shape[axis] != old.len() || tensor.shape[axis] != new.len() {
            continue;
        }
        let inner: usize = tensor.shape[axis + 1..].iter().product();
        let outer: usize = tensor.shape[..axis].iter().product();
        for (to, name) in new.iter().enumerate() {
            let Some(source) = old.iter().position(|n| n == name) else {
                continue;
            };
            for o in 0..outer {
                let (a, b) = ((o * new.len() + to) * inner, (o * old.len() + source) * inner);
                tensor.data[a..a + inner].copy_from_slice(&from.data[b..b + inner]);
            }
        }
        taken += 1;
    }
    taken
}

//! What a training starts from: random weights, or those of another training.

use std::collections::HashMap;

use super::{Settings, TrainError, step_graph};
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
        let axes = axes(graph, settings, preprocessing)?;
        let taken = take(&mut tensors, &model, preprocessing, &axes);
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

/// What an axis of a tensor goes over.
#[derive(Clone, Copy, PartialEq)]
enum Axis {
    Labels,
    Channels,
    Other,
}

/// The axes of a network's tensors that change with the labels, and with the channels: sizes alone don't tell.
fn axes(
    graph: &Graph,
    settings: &Settings,
    preprocessing: &Preprocessing,
) -> Result<HashMap<String, Vec<Axis>>, TrainError> {
    let mut more_labels = preprocessing.clone();
    more_labels.labels.extend(preprocessing.labels.last().cloned());
    let mut more_channels = preprocessing.clone();
    more_channels
        .channels
        .extend(preprocessing.channels.last().cloned());
    let mut of: HashMap<String, Vec<Axis>> = shapes(graph)
        .map(|(name, shape)| (name, vec![Axis::Other; shape.len()]))
        .collect();
    let before: HashMap<String, Vec<usize>> = shapes(graph).collect();
    for (other, role) in [(more_labels, Axis::Labels), (more_channels, Axis::Channels)] {
        for (name, shape) in shapes(&step_graph(settings, &other)?) {
            let Some(axes) = of.get_mut(&name) else { continue };
            for (axis, (new, old)) in axes.iter_mut().zip(shape.iter().zip(&before[&name])) {
                if new != old {
                    *axis = role;
                }
            }
        }
    }
    Ok(of)
}

/// Names and shapes of a graph's parameters and states.
fn shapes(graph: &Graph) -> impl Iterator<Item = (String, Vec<usize>)> {
    let all = graph.parameters().chain(graph.states());
    all.map(|(_, info)| (info.name.clone(), info.spec.shape.clone()))
}

/// Replaces tensors by the model's of the same name: whole, and along axes of labels and channels those of the same names. Returns
/// how many tensors took something.
fn take(
    tensors: &mut HashMap<String, Tensor>,
    model: &Model,
    preprocessing: &Preprocessing,
    axes: &HashMap<String, Vec<Axis>>,
) -> usize {
    let before = &model.info.preprocessing;
    let labels = |p: &Preprocessing| p.labels.iter().map(|l| l.name.clone()).collect::<Vec<_>>();
    let channels = |p: &Preprocessing| p.channels.iter().map(|c| c.name.clone()).collect::<Vec<_>>();
    let sources = |new: &[String], old: &[String]| -> Vec<Option<usize>> {
        let place = |name| old.iter().position(|n| n == name);
        new.iter().map(place).collect()
    };
    let of_labels = sources(&labels(preprocessing), &labels(before));
    let of_channels = sources(&channels(preprocessing), &channels(before));
    let (old_labels, old_channels) = (before.labels.len(), before.channels.len());
    let mut taken = 0;
    for (name, tensor) in tensors.iter_mut() {
        let Some(from) = model.tensors.get(name) else {
            continue;
        };
        if from.shape.len() != tensor.shape.len() {
            continue;
        }
        // By axis, where each position was.
        let places: Option<Vec<Vec<Option<usize>>>> = (0..tensor.shape.len())
            .map(|axis| {
                let (new, old) = (tensor.shape[axis], from.shape[axis]);
                match axes[name][axis] {
                    Axis::Labels if new == of_labels.len() && old == old_labels => Some(of_labels.clone()),
                    Axis::Channels if new == of_channels.len() && old == old_channels => {
                        Some(of_channels.clone())
                    }
                    _ => (new == old).then(|| (0..new).map(Some).collect()),
                }
            })
            .collect();
        let Some(places) = places else { continue };
        let mut any = false;
        for i in 0..tensor.data.len() {
            let (mut rest, mut source, mut stride) = (i, Some(0), 1);
            for axis in (0..places.len()).rev() {
                let place = places[axis][rest % tensor.shape[axis]];
                source = source.zip(place).map(|(sum, place)| sum + place * stride);
                rest /= tensor.shape[axis];
                stride *= from.shape[axis];
            }
            if let Some(source) = source {
                tensor.data[i] = from.data[source];
                any = true;
            }
        }
        taken += usize::from(any);
    }
    taken
}

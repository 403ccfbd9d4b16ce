//! One training step as a graph.

use super::Settings;
use super::augment::Stages;
use super::settings::Loss;
use crate::graph::{Graph, GraphError, Value};
use crate::model::{Builder, Network};
use crate::op::add::Add;
use crate::op::average::average;
use crate::op::cross_entropy::{cross_entropy, hard_mining};
use crate::op::nearest::Nearest;
use crate::op::optimiser::{Optimiser, optimise};
use crate::op::scale::Scale;
use crate::op::soft_dice::{hinge_dice, soft_dice};
use crate::tensor::Spec;

/// Share of a batch's voxels that hard mining keeps (method section 3).
const HARDEST: f32 = 0.25;

/// One training step as a graph: augmentation, network, loss, gradients, Adam. Inputs `image` `[N, C, D, H, W]`,
/// `labels` `[N, 1, D, H, W]` (class index, −1 ignored) and, with `augment`, `theta` `[N, 3, 4]`; with class
/// weights also `class_weights` `[L]`. Keeps `loss` `[1]`.
pub fn training_graph(
    network: &Network,
    shape: [usize; 5],
    classes: usize,
    loss: Loss,
    augment: bool,
) -> Result<Graph, GraphError> {
    dense_graph(network, shape, classes, &Recipe::plain(loss, augment))
}

/// What a step does, beside its network and shapes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Recipe {
    pub loss: Loss,
    pub stages: Stages,
    pub optimiser: Optimiser,
    /// Longest gradient.
    pub clip: Option<f32>,
    /// Decay of moving averages.
    pub ema: Option<f32>,
}

impl Recipe {
    /// Adam, with an affine augmentation or none.
    pub fn plain(loss: Loss, augment: bool) -> Self {
        Recipe {
            loss,
            stages: Stages {
                moves: augment,
                ..Stages::default()
            },
            optimiser: Optimiser::Adam,
            clip: None,
            ema: None,
        }
    }

    /// Of a run.
    pub fn new(settings: &Settings) -> Self {
        Recipe {
            loss: settings.loss,
            stages: settings.stages(),
            optimiser: settings.rule(),
            clip: settings.clip,
            ema: settings.ema,
        }
    }
}

/// [`training_graph`] by a recipe.
pub(super) fn dense_graph(
    network: &Network,
    shape: [usize; 5],
    classes: usize,
    recipe: &Recipe,
) -> Result<Graph, GraphError> {
    let mut graph = Graph::new();
    let (image, labels) = recipe.stages.add(&mut graph, shape)?;
    let mut builder = Builder::new(&mut graph, true);
    let logits = network.build(&mut builder, image, classes)?;
    let mut all = vec![logits];
    all.append(&mut builder.auxiliary);
    train_on(&mut graph, &all, labels, classes, recipe)?;
    Ok(graph)
}

/// What follows the logits in a step: loss (kept), gradients, optimiser, averages. Logits of fewer voxels follow the network's own, and are
/// scored by the nearest labels, each with half the weight of the one before; the weights sum to 1 (deep supervision as
/// nnU-Net has it).
pub(super) fn train_on(
    graph: &mut Graph,
    logits: &[Value],
    labels: Value,
    classes: usize,
    recipe: &Recipe,
) -> Result<(), GraphError> {
    let loss = recipe.loss;
    let weight = |i: usize| 0.5f32.powi(i as i32);
    let total: f32 = (0..logits.len()).map(weight).sum();
    let mut sum = None;
    for (i, logits) in logits.iter().enumerate() {
        let [_, _, d, h, w] = graph.spec(*logits).ncdhw().expect("a map");
        let labels = match i {
            0 => labels,
            _ => graph.push1(Nearest { size: [d, h, w] }, &[labels])?,
        };
        let own = add_loss(graph, *logits, labels, classes, loss)?;
        let factor = weight(i) / total;
        let own = match factor {
            1.0 => own,
            _ => graph.push1(Scale { factor }, &[own])?,
        };
        sum = Some(match sum {
            Some(sum) => graph.push1(Add, &[sum, own])?,
            None => own,
        });
    }
    let loss = sum.expect("the network's own at least");
    graph.keep("loss", loss);
    graph.parameter_gradient_nodes(loss)?;
    optimise(graph, recipe.optimiser, recipe.clip)?;
    recipe.ema.map_or(Ok(()), |decay| average(graph, decay))
}

/// Adds a loss of logits (map `[N, L, D, H, W]`) and labels (flat `[N, 1, D, H, W]`: class index, −1 ignored), flat
/// `[1]`; with class weights ([`Loss::has_class_weights`]) also the input `class_weights` `[L]`.
pub fn add_loss(
    graph: &mut Graph,
    logits: Value,
    labels: Value,
    classes: usize,
    loss: Loss,
) -> Result<Value, GraphError> {
    let mut with_entropy = |dice| {
        let entropy = add_loss(graph, logits, labels, classes, Loss::CrossEntropy)?;
        let dice = add_loss(graph, logits, labels, classes, dice)?;
        graph.push1(Add, &[entropy, dice])
    };
    match loss {
        Loss::CrossEntropy => cross_entropy(graph, logits, labels, None),
        Loss::WeightedCrossEntropy => {
            let weights = class_weights(graph, classes)?;
            cross_entropy(graph, logits, labels, Some(weights))
        }
        Loss::HardMining => {
            let weights = class_weights(graph, classes)?;
            hard_mining(graph, logits, labels, Some(weights), HARDEST)
        }
        Loss::Dice => soft_dice(graph, logits, labels, false),
        Loss::DiceSquared => soft_dice(graph, logits, labels, true),
        Loss::HingeDice => hinge_dice(graph, logits, labels, true),
        Loss::CrossEntropyDice => with_entropy(Loss::Dice),
        Loss::CrossEntropyDiceSquared => with_entropy(Loss::DiceSquared),
        Loss::CrossEntropyHingeDice => with_entropy(Loss::HingeDice),
    }
}

/// The input of that name, one for all losses.
fn class_weights(graph: &mut Graph, classes: usize) -> Result<Value, GraphError> {
    match graph.find("class_weights") {
        Some(weights) => Ok(weights),
        None => graph.input("class_weights", Spec::flat(&[classes])),
    }
}

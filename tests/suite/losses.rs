//! Every loss that training offers: against its formula in f64, central differences and devices, and minimised.

use crate::common::*;
use clap::ValueEnum;
use obelisk::graph::{Graph, GraphError, Source, Value};
use obelisk::model::{Builder, Conv, Layers, NETWORKS, Network};
use obelisk::op::StepScalars;
use obelisk::tensor::{Spec, Tensor};
use obelisk::train::{Loss, add_loss, training_graph};

const CLASSES: usize = 4;
const SHAPE: [usize; 5] = [2, CLASSES, 3, 4, 5];
const WEIGHTS: [f32; CLASSES] = [0.5, 1.25, 0.75, 2.0];

/// Logits and labels of every class, some ignored; the last class is hardly found, so that hinges act.
fn data() -> Data {
    let [n, classes, d, h, w] = SHAPE;
    let labels = Tensor::from_fn(&[n, 1, d, h, w], |i| {
        ((i * 7 + i / 5) % (classes + 1)) as f32 - 1.0
    });
    let mut logits = noise(&SHAPE, 3);
    let volume = d * h * w;
    for (i, logit) in logits.data.iter_mut().enumerate() {
        if i / volume % classes == classes - 1 {
            *logit -= 6.0;
        }
    }
    Data::from([
        ("logits".into(), logits),
        ("labels".into(), labels),
        ("class_weights".into(), Tensor::new(&[CLASSES], WEIGHTS.to_vec())),
    ])
}

fn build(graph: &mut Graph, loss: Loss) -> Value {
    let [n, classes, d, h, w] = SHAPE;
    let logits = graph.input("logits", Spec::map(SHAPE)).unwrap();
    let labels = graph.input("labels", Spec::flat(&[n, 1, d, h, w])).unwrap();
    add_loss(graph, logits, labels, classes, loss).unwrap()
}

/// The losses as method section 3 writes them.
fn formula(loss: Loss, data: &Data) -> f64 {
    let volume: usize = SHAPE[2..].iter().product();
    let (logits, labels) = (&data["logits"].data, &data["labels"].data);
    let mut voxels = Vec::new();
    for (i, label) in labels.iter().enumerate().filter(|(_, l)| **l >= 0.0) {
        let at = |class: usize| logits[(i / volume * CLASSES + class) * volume + i % volume] as f64;
        let sum: f64 = (0..CLASSES).map(|c| at(c).exp()).sum();
        let p: Vec<f64> = (0..CLASSES).map(|c| at(c).exp() / sum).collect();
        voxels.push((p, *label as usize));
    }
    let entropy = |voxel: &(Vec<f64>, usize)| -voxel.0[voxel.1].ln();
    let weighted = |voxels: &[(Vec<f64>, usize)]| {
        let weight = |v: &(Vec<f64>, usize)| WEIGHTS[v.1] as f64;
        voxels.iter().map(|v| weight(v) * entropy(v)).sum::<f64>() / voxels.iter().map(weight).sum::<f64>()
    };
    let scores = |power: i32| -> Vec<f64> {
        let score = |l: usize| {
            let both: f64 = voxels.iter().filter(|v| v.1 == l).map(|v| v.0[l]).sum();
            let predicted: f64 = voxels.iter().map(|v| v.0[l].powi(power)).sum();
            let truth = voxels.iter().filter(|v| v.1 == l).count() as f64;
            2.0 * both / (predicted + truth)
        };
        (1..CLASSES).map(score).collect()
    };
    let mean = |values: Vec<f64>| values.iter().sum::<f64>() / values.len() as f64;
    match loss {
        Loss::CrossEntropy => mean(voxels.iter().map(entropy).collect()),
        Loss::WeightedCrossEntropy => weighted(&voxels),
        Loss::HardMining => {
            voxels.sort_by(|a, b| entropy(b).total_cmp(&entropy(a)));
            let kept = voxels.len() / 4;
            weighted(&voxels[..kept])
        }
        Loss::Dice => 1.0 - mean(scores(1)),
        Loss::DiceSquared => 1.0 - mean(scores(2)),
        Loss::HingeDice => {
            let hinge = |s: f64, below: f64| 10.0 * (s.min(below) / below - 1.0).powi(2);
            let all = |f: &dyn Fn(f64) -> f64| mean(scores(2).into_iter().map(f).collect());
            1.0 - all(&|s| s) + all(&|s| hinge(s, 0.1)) + all(&|s| hinge(s, 0.01))
        }
        Loss::CrossEntropyDice => formula(Loss::CrossEntropy, data) + formula(Loss::Dice, data),
        Loss::CrossEntropyDiceSquared => formula(Loss::CrossEntropy, data) + formula(Loss::DiceSquared, data),
        Loss::CrossEntropyHingeDice => formula(Loss::CrossEntropy, data) + formula(Loss::HingeDice, data),
        other => panic!("no formula of {other:?}"),
    }
}

#[test]
fn losses_equal_their_formulas_and_central_differences() {
    let data = data();
    for loss in Loss::value_variants() {
        let mut graph = Graph::new();
        let value = build(&mut graph, *loss);
        assert_eq!(
            graph.find("class_weights").is_some(),
            loss.has_class_weights(),
            "{loss:?}"
        );
        let values = evaluate(&graph, &data, &StepScalars::default());
        let found = values[value.index()].as_ref().unwrap();
        let expected = Tensor::new(&[1], vec![formula(*loss, &data) as f32]);
        assert_close(&format!("{loss:?}"), found, &expected, 1e-5);
        check_op(|g| vec![build(g, *loss)], &data, &["logits"], 1e-4, 1e-2, 1e-2);
    }
}

fn one_convolution(b: &mut Builder, image: Value, labels: usize) -> Result<Value, GraphError> {
    b.conv("conv", &[image], Conv::k3(labels))
}

#[test]
fn every_loss_falls_in_training() {
    let network = Network {
        layers: Layers::Function(one_convolution),
        ..NETWORKS[0]
    };
    let [n, _, d, h, w] = SHAPE;
    for loss in Loss::value_variants() {
        let graph = training_graph(&network, [n, 1, d, h, w], CLASSES, *loss, false).unwrap();
        let mut data = data();
        data.insert("image".into(), noise(&[n, 1, d, h, w], 8));
        data.extend(obelisk::weights::initialise(&graph, 4));
        let step = |step| StepScalars {
            step,
            learning_rate: 0.02,
            weight_decay: 1e-5,
            ..Default::default()
        };
        check_on_devices(&graph, &data, &step(0), 1e-3);
        let (_, output) = &graph.kept()[0];
        let mut losses = Vec::new();
        for number in 0..10 {
            let values = evaluate(&graph, &data, &step(number));
            losses.push(values[output.index()].as_ref().unwrap().data[0]);
            for (info, value) in graph.values().iter().zip(values) {
                if matches!(info.source, Source::Parameter(_) | Source::Moment { .. }) {
                    data.insert(info.name.clone(), value.unwrap());
                }
            }
        }
        assert!(losses[9] < 0.95 * losses[0], "{loss:?}: {losses:?}");
    }
}

#[test]
fn networks_say_whether_they_have_obelisk_layers() {
    for network in NETWORKS {
        let (size, labels) = network.fixed.map_or(([32; 3], 3), |f| (f.size, f.labels));
        let [d, h, w] = size;
        let mut graph = Graph::new();
        let image = graph.input("image", Spec::flat(&[1, 1, d, h, w])).unwrap();
        let mut builder = Builder::new(&mut graph, false);
        network.build(&mut builder, image, labels).unwrap();
        let offsets = graph
            .parameters()
            .chain(graph.states())
            .any(|(_, info)| info.name.starts_with("offset"));
        assert_eq!(network.obelisk_layers, offsets, "{network:?}");
    }
}

//! What plans make of graphs: the same numbers with less memory.

use std::collections::BTreeSet;

use crate::common::*;
use obelisk::graph::{Graph, Init, Value};
use obelisk::model::Builder;
use obelisk::op::activation::leaky_relu;
use obelisk::op::arg_max::ArgMax;
use obelisk::op::batch_norm::batch_norm;
use obelisk::op::concat::concat;
use obelisk::op::conv3d::{Conv3dConfig, conv3d};
use obelisk::op::{Access, Caps, StepScalars};
use obelisk::plan::{Plan, PlanBuffer};
use obelisk::tensor::{Spec, Tensor};
use obelisk::train::{Loss, training_graph};
use obelisk::weights::initialise;

/// Noise for whatever a graph declares; variances and the like positive.
fn data(graph: &Graph) -> Data {
    let declared = (0..graph.values().len()).filter_map(|i| {
        let info = &graph.values()[i];
        graph.find(&info.name).filter(|v| v.index() == i)?;
        let mut tensor = noise(&info.spec.shape, i as u32);
        if info.name.starts_with("adam") {
            tensor.data.fill(0.0);
        }
        if info.name.ends_with("variance") {
            tensor.data.iter_mut().for_each(|v| *v = 1.0 + 0.5 * *v);
        }
        Some((info.name.clone(), tensor))
    });
    declared.collect()
}

fn convolution(g: &mut Graph, name: &str, x: Value, out: usize, kernel: usize, groups: usize) -> Value {
    let inputs = g.shape(x)[1];
    let weight = parameter(
        g,
        &format!("{name}.weight"),
        &[out, inputs / groups, kernel, kernel, kernel],
    );
    let bias = (kernel > 1).then(|| parameter(g, &format!("{name}.bias"), &[out]));
    let config = Conv3dConfig {
        groups,
        ..Conv3dConfig::same(kernel, 1)
    };
    conv3d(g, &[x], weight, bias, config).unwrap()
}

fn norm(g: &mut Graph, name: &str, x: Value, slope: Option<f32>, training: bool) -> Value {
    let c = [g.shape(x)[1]];
    let gamma = parameter(g, &format!("{name}.gamma"), &c);
    let beta = parameter(g, &format!("{name}.beta"), &c);
    let mut state = |what: &str| {
        let name = format!("{name}.{what}");
        g.state(&name, &c, Init::Constant(0.0)).unwrap()
    };
    let (mean, variance) = (state("mean"), state("variance"));
    batch_norm(g, x, gamma, beta, mean, variance, slope, training).unwrap()
}

fn operations(graph: &Graph) -> BTreeSet<&'static str> {
    let plan = Plan::new(graph, &Caps::PORTABLE).unwrap();
    plan.launches.iter().map(|l| l.op).collect()
}

/// A convolution with batch norm and leaky ReLU, and a dense block of 1×1×1 convolutions behind it.
fn dense_block(channels: usize, groups: usize) -> (Graph, Value) {
    let mut g = Graph::new();
    let x = g.input("x", Spec::map([2, 3, 5, 4, 7])).unwrap();
    let x = convolution(&mut g, "first", x, channels, 3, 1);
    let first = x;
    let mut y = norm(&mut g, "first", x, Some(0.1), false);
    for name in ["a", "b"] {
        let x = norm(&mut g, name, y, None, false);
        let x = convolution(&mut g, name, x, channels, 1, groups);
        let x = leaky_relu(&mut g, x, 0.05).unwrap();
        y = concat(&mut g, &[y, x]).unwrap();
    }
    let x = norm(&mut g, "last", y, None, false);
    let y = convolution(&mut g, "last", x, 6, 1, 1);
    g.keep("y", y);
    (g, first)
}

#[test]
fn inference_folds_batch_norm_and_leaky_relu_into_convolutions() {
    for channels in [4, 5, 18] {
        let (g, _) = dense_block(channels, 1);
        let folded = BTreeSet::from(["conv3d", "fill", "fold_batch_norm", "fold_batch_norm_before"]);
        assert_eq!(operations(&g), folded);
        check_on_devices(&g, &data(&g), &StepScalars::default(), 1e-5);
    }
    // Grouped convolutions read one source.
    let (g, _) = dense_block(8, 2);
    assert!(operations(&g).contains("concat") && !operations(&g).contains("batch_norm_inference"));
    check_on_devices(&g, &data(&g), &StepScalars::default(), 1e-5);
}

#[test]
fn what_something_else_reads_is_not_folded_away() {
    let (mut g, first) = dense_block(5, 1);
    g.keep("first", first);
    assert!(operations(&g).contains("batch_norm_inference"));
    check_on_devices(&g, &data(&g), &StepScalars::default(), 1e-5);
}

#[test]
fn padded_convolutions_keep_the_batch_norm_before_them() {
    let mut g = Graph::new();
    let x = g.input("x", Spec::map([1, 5, 4, 6, 3])).unwrap();
    let x = norm(&mut g, "norm", x, None, false);
    let y = convolution(&mut g, "conv", x, 3, 3, 1);
    g.keep("y", y);
    assert!(operations(&g).contains("batch_norm_inference"));
    check_on_devices(&g, &data(&g), &StepScalars::default(), 1e-5);
}

/// Noise for a graph's inputs, and its weights as training starts.
fn start(graph: &Graph) -> Data {
    let mut data = data(graph);
    data.extend(initialise(graph, 1));
    data
}

/// Whether a plan did something like that to a node.
fn notes(plan: &Plan, what: &str) -> bool {
    plan.launches.iter().any(|l| l.note.contains(what))
}

fn network(name: &str, size: [usize; 3], labels: usize) -> Graph {
    let mut g = Graph::new();
    let [d, h, w] = size;
    let image = g.input("image", Spec::flat(&[1, 1, d, h, w])).unwrap();
    let network = obelisk::model::find(name).unwrap();
    let mut builder = Builder::new(&mut g, false);
    let logits = network.build(&mut builder, image, labels).unwrap();
    let labels = g.push1(ArgMax, &[logits]).unwrap();
    g.keep("labels", labels);
    g
}

#[test]
fn slabs_give_the_labels_of_the_whole_with_less_memory() {
    // Planes of 16 voxels' multiples, and others; more bindings than one; odd sizes.
    for (name, size, binding) in [
        ("obelisk-hybrid", [33, 32, 20], u64::MAX),
        ("obelisk-hybrid", [53, 18, 20], u64::MAX),
        ("unet", [48, 24, 32], 1 << 20),
    ] {
        let g = network(name, size, 5);
        let data = start(&g);
        for device in devices() {
            let caps = Caps {
                max_binding: device.caps().max_binding.min(binding),
                spare: 0,
                ..*device.caps()
            };
            let (plan, straight) = (Plan::new(&g, &caps).unwrap(), Plan::straight(&g, &caps).unwrap());
            assert!(notes(&plan, "planes "), "{name} goes in slabs");
            assert!(plan.slot_bytes() < straight.slot_bytes());
            let [labels, whole] = [plan, straight]
                .map(|p| run_plan_on(device, p, &data, &StepScalars::default())["labels"].clone());
            let differ = (0..whole.data.len()).filter(|i| labels.data[*i] != whole.data[*i]);
            let differ: Vec<usize> = differ.collect();
            let first = &differ[..differ.len().min(9)];
            assert!(
                differ.is_empty(),
                "{name} {size:?} at {} voxels: {first:?}",
                differ.len()
            );
        }
    }
}

#[test]
fn what_is_rematerialised_and_in_place_gives_the_same_training_step() {
    let step = StepScalars {
        learning_rate: 1e-3,
        seed: 3,
        ..StepScalars::default()
    };
    let savings = ["rematerialised", "in place", "planes "];
    // The larger network on one device: its two plans take long to compile on a processor.
    let one = devices().get(1..2).unwrap_or_default();
    for (name, size, savings, devices) in [
        ("obelisk-hybrid", [32, 24, 32], &savings[..], one),
        ("unet-lean", [16, 13, 19], &savings[..2], devices()),
    ] {
        let network = obelisk::model::find(name).unwrap();
        let [d, h, w] = size;
        let g = training_graph(&network, [2, 1, d, h, w], 4, Loss::CrossEntropyDice, true).unwrap();
        let mut data = start(&g);
        data.insert(
            "theta".into(),
            Tensor::from_fn(&[2, 3, 4], |i| [1.0, 0.1, 0.0, 0.0][i % 4]),
        );
        data.insert(
            "labels".into(),
            Tensor::from_fn(&[2, 1, d, h, w], |i| (i * i % 13 % 5) as f32 - 1.0),
        );
        let portable = Plan::new(&g, &Caps::PORTABLE).unwrap();
        for what in savings {
            assert!(notes(&portable, what), "{name}: {what}");
        }
        for device in devices {
            let caps = Caps {
                spare: 0,
                ..*device.caps()
            };
            let (plan, straight) = (Plan::new(&g, &caps).unwrap(), Plan::straight(&g, &caps).unwrap());
            assert!(plan.slot_bytes() < straight.slot_bytes());
            let [less, all] = [plan, straight].map(|p| run_plan_on(device, p, &data, &step));
            assert_eq!(less["loss"], all["loss"], "{name}");
            // Sums over slabs round differently, and Adam makes much of the signs of gradients near zero.
            for (key, value) in all
                .iter()
                .filter(|(key, _)| key.starts_with("grad:") || key.contains("running"))
            {
                assert_close(&format!("{name}: {key}"), &less[key], value, 2e-5);
            }
        }
    }
}

#[test]
fn no_launch_reads_and_writes_a_slot_at_once() {
    for (name, training) in [
        ("obelisk-hybrid", true),
        ("obelisk-hybrid", false),
        ("unet", true),
        ("unet", false),
    ] {
        let g = match training {
            true => {
                let network = obelisk::model::find(name).unwrap();
                training_graph(&network, [1, 1, 32, 24, 20], 3, Loss::CrossEntropyDice, false).unwrap()
            }
            false => self::network(name, [32, 24, 20], 3),
        };
        let plan = Plan::new(&g, &Caps::PORTABLE).unwrap();
        for launch in &plan.launches {
            for (a, first) in launch.dispatch.bindings.iter().zip(&launch.bound) {
                for (b, second) in launch.dispatch.bindings.iter().zip(&launch.bound) {
                    let mixed = a.access == Access::Read && b.access == Access::ReadWrite;
                    assert!(
                        !(mixed && first.buffer == second.buffer),
                        "{} reads and writes a buffer",
                        launch.op
                    );
                }
            }
        }
        for slot in plan.launches.iter().flat_map(|l| &l.bound) {
            if let PlanBuffer::Slot(i) = slot.buffer {
                assert!(slot.offset % 256 == 0 && slot.offset + slot.size <= plan.slots[i]);
            }
        }
    }
}

#[test]
fn pointwise_convolutions_run_in_place() {
    for (channels, out) in [(4, 3), (5, 6), (9, 9), (13, 16)] {
        let mut g = Graph::new();
        let x = g.input("x", Spec::map([2, 3, 5, 6, 9])).unwrap();
        let x = convolution(&mut g, "first", x, channels, 3, 1);
        let y = convolution(&mut g, "second", x, out, 1, 1);
        g.keep("y", y);
        let plan = Plan::new(&g, &Caps::PORTABLE).unwrap();
        assert!(notes(&plan, "in place"));
        check_on_devices(&g, &data(&g), &StepScalars::default(), 1e-5);
    }
}

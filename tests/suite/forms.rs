//! Every form of the kernels gives the same results.

use crate::common::*;
use obelisk::gpu::Device;
use obelisk::graph::Graph;
use obelisk::model;
use obelisk::op::conv3d::{Conv3dConfig, conv3d};
use obelisk::op::{Caps, Forms, StepScalars};
use obelisk::plan::Plan;
use obelisk::tensor::Spec;
use obelisk::train::{Loss, training_graph};
use obelisk::weights::initialise;

/// The device's, then each of these that it can take.
fn with_forms(device: &Device, candidates: &[Forms]) -> Vec<Caps> {
    let caps = |forms| Caps {
        forms,
        ..*device.caps()
    };
    let possible = candidates.iter().filter(|f| device.allow_forms(f).is_ok());
    std::iter::once(&device.caps().forms)
        .chain(possible)
        .copied()
        .map(caps)
        .collect()
}

/// A GPU's convolution has fewer outputs an invocation where there are few: one row of a block, four rows of a block, four rows
/// of all blocks.
#[test]
fn convolutions_large_and_small_give_the_same() {
    let mut kernels = std::collections::HashSet::new();
    for (outputs, size) in [(9, [12, 13, 14]), (16, [36, 36, 36]), (4, [52, 51, 52])] {
        let mut graph = Graph::new();
        let shape = [1, 3, size[0], size[1], size[2]];
        let x = graph.input("x", Spec::map(shape)).unwrap();
        let weight = parameter(&mut graph, "weight", &[outputs, 3, 3, 3, 3]);
        let bias = parameter(&mut graph, "bias", &[outputs]);
        let y = conv3d(&mut graph, &[x], weight, Some(bias), Conv3dConfig::same(3, 1)).unwrap();
        graph.keep("y", y);
        let data: Data = [
            ("x", noise(&shape, 1)),
            ("weight", noise(&[outputs, 3, 3, 3, 3], 2)),
            ("bias", noise(&[outputs], 3)),
        ]
        .map(|(name, tensor)| (name.to_owned(), tensor))
        .into();
        let step = StepScalars::default();
        let expected = evaluate(&graph, &data, &step)[y.index()].clone().unwrap();
        for device in devices() {
            let plan = Plan::new(&graph, device.caps()).unwrap();
            let kernel = &plan.launches.last().unwrap().dispatch;
            kernels.insert(format!(
                "{} {:?}",
                device.caps().target.is_cpu(),
                kernel.constants()
            ));
            let actual = run_plan_on(device, plan, &data, &step);
            assert_close(&format!("{outputs} of {size:?}"), &actual["y"], &expected, 1e-5);
        }
    }
    if devices().iter().any(|device| !device.caps().target.is_cpu()) {
        let of_gpus = kernels.iter().filter(|k| k.starts_with("false"));
        assert!(of_gpus.count() >= 3, "{kernels:?}");
    }
}

#[test]
fn a_training_step_gives_the_same_through_buffers_and_textures() {
    let network = &model::find("obelisk-hybrid").unwrap();
    let graph = training_graph(network, [1, 1, 24, 24, 24], 3, Loss::CrossEntropyDice, false).unwrap();
    let mut data: Data = initialise(&graph, 1);
    data.insert("image".into(), noise(&[1, 1, 24, 24, 24], 1));
    let mut labels = noise(&[1, 1, 24, 24, 24], 2);
    labels
        .data
        .iter_mut()
        .for_each(|v| *v = (v.abs() * 3.0).min(2.0).floor());
    data.insert("labels".into(), labels);
    let step = StepScalars::default();
    for device in devices() {
        let forms = [Forms::TEXELS, Forms::PORTABLE];
        let run = |caps: &Caps| run_plan_on(device, Plan::new(&graph, caps).unwrap(), &data, &step);
        let mut caps = with_forms(device, &forms).into_iter();
        let expected = run(&caps.next().unwrap());
        for caps in caps {
            for (name, tensor) in run(&caps) {
                assert_close(
                    &format!("{}: {name}", caps.forms),
                    &tensor,
                    &expected[&name],
                    1e-3,
                );
            }
        }
    }
}

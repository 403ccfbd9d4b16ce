//! Adapters that bind little at once and have small buffers: the same results, or a refusal that says what is in the way.

use crate::common::*;
use obelisk::gpu::{Device, DeviceOptions};
use obelisk::graph::{Graph, GraphError};
use obelisk::model::{self, NETWORKS};
use obelisk::op::arg_max::ArgMax;
use obelisk::op::obelisk_layer::obelisk_layer;
use obelisk::op::obelisk_sample::Locations;
use obelisk::op::{Caps, Forms, StepScalars, Target};
use obelisk::plan::Plan;
use obelisk::predict::{Keep, inference_graph_keeping};
use obelisk::preprocess::Preprocessing;
use obelisk::tensor::Spec;
use obelisk::train::{Loss, training_graph};
use obelisk::weights::initialise;

const BINDING: u64 = 16 << 20;
const BUFFER: u64 = 64 << 20;

/// The adapter as one that binds 16 MiB and has buffers of 64 MiB. wgpu refuses whatever goes beyond.
fn restricted() -> Option<Device> {
    devices().first()?;
    let options = DeviceOptions {
        most: Some((BINDING, BUFFER)),
        ..Default::default()
    };
    let device = pollster::block_on(Device::open(&options)).unwrap();
    assert_eq!(
        (device.caps().max_binding, device.caps().max_buffer),
        (BINDING, BUFFER)
    );
    Some(device)
}

fn preprocessing() -> Preprocessing {
    model::find("obelisk_visceral").unwrap().published.unwrap()()
}

/// Inference that keeps labels.
fn inference(arch: &str, grid: [usize; 3]) -> Graph {
    let network = &model::find(arch).unwrap();
    inference_graph_keeping(network, &preprocessing(), grid, Keep::Labels).unwrap()
}

/// Whether a plan keeps to the limits.
fn fits(plan: &Plan, caps: &Caps) -> bool {
    let bound = plan.launches.iter().flat_map(|launch| &launch.bound);
    bound.map(|bound| bound.size).all(|size| size <= caps.max_binding)
        && plan.slots.iter().all(|bytes| *bytes <= caps.max_buffer)
}

#[test]
fn networks_at_144_cubed_are_planned_for_small_limits_or_refused() {
    for (target, forms) in [
        (Target::Gpu, Forms::PORTABLE),
        (Target::CpuLanes(8), Forms::TEXELS),
    ] {
        let caps = Caps {
            max_binding: BINDING,
            max_buffer: BUFFER,
            target,
            forms,
            spare: 0,
        };
        let mut planned = Vec::new();
        for network in NETWORKS.iter().filter(|network| network.fixed.is_none()) {
            let inference = inference(network.name, [144; 3]);
            let training = training_graph(network, [1, 1, 144, 144, 144], 8, Loss::CrossEntropyDice, true);
            for (what, graph) in [("inference", inference), ("training", training.unwrap())] {
                match Plan::new(&graph, &caps) {
                    Ok(plan) => {
                        assert!(fits(&plan, &caps), "{} {what}", network.name);
                        planned.push((network.name, what));
                    }
                    Err(GraphError::Limit { op, reason }) => {
                        eprintln!("{} {what} {op}: {reason}", network.name)
                    }
                    Err(error) => panic!("{} {what}: {error}", network.name),
                }
            }
        }
        for network in NETWORKS.iter().filter(|n| n.fixed.is_none() && n.obelisk_layers) {
            assert!(planned.contains(&(network.name, "inference")), "{planned:?}");
        }
    }
}

#[test]
fn a_ct_of_any_size_is_planned_within_the_limits_of_software_vulkan() {
    // Its bindings and buffers, and those of a GPU.
    for (target, forms, spare) in [
        (Target::CpuLanes(8), Forms::TEXELS, 64 << 20),
        (Target::Gpu, Forms::PORTABLE, 2 << 30),
    ] {
        let caps = Caps {
            max_binding: 128 << 20,
            max_buffer: 2047 << 20,
            target,
            forms,
            spare,
        };
        for arch in ["obelisk_visceral", "obeliskhybrid_visceral"] {
            let plan = Plan::new(&inference(arch, [512, 512, 400]), &caps).unwrap();
            assert!(fits(&plan, &caps), "{arch}");
            // Little beside the scan, its smoothed copy, what smoothing needs, and the labels: of 420 MB each.
            assert!(
                plan.device_bytes() < 2_500_000_000,
                "{arch}: {}",
                plan.device_bytes()
            );
        }
        let refused = Plan::new(&inference("obelisk_visceral", [560, 520, 512]), &caps).unwrap_err();
        assert!(refused.to_string().contains("as a whole"), "{refused}");
    }
}

#[test]
fn a_network_gives_the_same_labels_on_a_device_with_small_limits() {
    let Some(small) = restricted() else { return };
    let large = devices().get(1).unwrap();
    // 17.2 MB of image, and 67 MB of features from 256 outputs at a quarter of the resolution.
    let graph = inference("obelisk-random", [168, 160, 160]);
    let mut data = initialise(&graph, 1);
    data.insert("image".into(), noise(&[1, 1, 168, 160, 160], 2));
    let step = StepScalars::default();
    let [labels, whole] =
        [&small, large].map(|device| run_on(device, &graph, &data, &step)["labels"].clone());
    assert!(
        whole.data.iter().any(|label| *label != whole.data[0]),
        "one label alone"
    );
    let differ = labels
        .data
        .iter()
        .zip(&whole.data)
        .filter(|(a, b)| a != b)
        .count();
    assert_eq!(differ, 0);
}

#[test]
fn features_beyond_a_buffer_are_made_in_slabs() {
    let Some(small) = restricted() else { return };
    let large = devices().get(1).unwrap();
    // 134 MB of features of an image of 4 MB, of which only the labels are kept.
    let mut graph = Graph::new();
    let image = graph.input("image", Spec::flat(&[1, 1, 64, 128, 128])).unwrap();
    let offsets = parameter(&mut graph, "offsets", &[1, 4, 1, 2, 3]);
    let weight = parameter(&mut graph, "weight", &[256, 4, 1, 1, 1]);
    let grid = Locations::Grid([36, 64, 64]);
    let features = obelisk_layer(&mut graph, image, offsets, weight, None, grid, 1).unwrap();
    let labels = graph.push1(ArgMax, &[features]).unwrap();
    graph.keep("labels", labels);
    let data = Data::from([
        ("image".into(), noise(&[1, 1, 64, 128, 128], 1)),
        ("offsets".into(), noise(&[1, 4, 1, 2, 3], 2)),
        ("weight".into(), noise(&[256, 4, 1, 1, 1], 3)),
    ]);
    let step = StepScalars::default();
    let whole = Plan::straight(&graph, large.caps()).unwrap();
    assert!(whole.slots.iter().any(|bytes| *bytes > BUFFER));
    let slabs = Plan::new(&graph, small.caps()).unwrap();
    assert!(fits(&slabs, small.caps()));
    let labels = run_plan_on(&small, slabs, &data, &step);
    assert!(labels["labels"] == run_plan_on(large, whole, &data, &step)["labels"]);
}

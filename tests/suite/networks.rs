//! Every network's graphs: what they plan to, and their wiring against PyTorch.

use std::collections::HashMap;

use crate::common::*;
use obelisk::gpu::{Executable, Weights};
use obelisk::graph::GraphError;
use obelisk::model::{self, NETWORKS, Summary, published};
use obelisk::op::{Caps, StepScalars};
use obelisk::plan::Plan;
use obelisk::predict::inference_graph;
use obelisk::preprocess::Preprocessing;
use obelisk::tensor::Tensor;
use obelisk::train::{Loss, training_graph};

#[test]
fn training_steps_plan_within_webgpus_default_limits() {
    for network in NETWORKS {
        for (shape, classes) in [
            ([1, 1, 144, 144, 144], 9),
            ([1, 1, 156, 115, 160], 8),
            ([4, 1, 40, 56, 40], 3),
        ] {
            let graph = training_graph(network, shape, classes, Loss::CrossEntropyDice, true);
            if (0..3).any(|axis| !shape[2 + axis].is_multiple_of(network.multiple[axis])) {
                let refusal = graph.unwrap_err().to_string();
                assert!(
                    refusal.contains("multiples of 8×8×8: 160×120×160 would do"),
                    "{refusal}"
                );
                continue;
            }
            match network.fixed {
                Some(fixed) if (fixed.size, fixed.labels) != ([shape[2], shape[3], shape[4]], classes) => {
                    let refusal = graph.unwrap_err().to_string();
                    assert!(refusal.contains("resample or crop"), "{refusal}");
                }
                _ => match Plan::new(&graph.unwrap(), &Caps::PORTABLE) {
                    Ok(_) => {}
                    // 32 channels of 144³ are 364 MiB: nnU-Net's patches are smaller.
                    Err(GraphError::Limit { .. })
                        if network.name.starts_with("nnunet") && shape[2] == 144 => {}
                    Err(e) => panic!("{} at {shape:?}: {e}", network.name),
                },
            }
        }
    }
}

#[test]
fn scans_of_312x230x320_plan_where_buffers_hold_their_logits() {
    let caps = Caps {
        max_buffer: 1 << 30,
        ..Caps::PORTABLE
    };
    for network in NETWORKS {
        if let Some(preprocessing) = network.published
            && network.fixed.is_none_or(|fixed| fixed.halved)
        {
            for grid in [[312, 230, 320], [311, 229, 319]] {
                let graph = inference_graph(network, &preprocessing(), grid).unwrap();
                let plan = Plan::new(&graph, &caps);
                plan.unwrap_or_else(|e| panic!("{} at {grid:?}: {e}", network.name));
            }
        }
    }
}

/// 32-bit FNV-1a, the seed of a tensor in make_networks.py.
fn fnv1a(name: &str) -> u32 {
    name.bytes()
        .fold(0x811c_9dc5, |h, b| (h ^ b as u32).wrapping_mul(0x0100_0193))
}

/// The tensor of that name in make_networks.py.
fn made(name: &str, shape: &[usize]) -> Tensor {
    let mut tensor = noise(shape, fnv1a(name));
    let (scale, shift) = match name {
        _ if name.starts_with("offset") => (0.4, 0.0),
        _ if shape.len() > 1 => {
            let fan_in: usize = shape[1..].iter().product();
            ((6.0 / fan_in as f64).sqrt() as f32, 0.0)
        }
        _ if name.ends_with("running_var") => (0.5, 1.0),
        _ if name.ends_with(".weight") => (0.3, 1.0),
        _ => (0.2, 0.0),
    };
    tensor.data.iter_mut().for_each(|v| *v = *v * scale + shift);
    tensor
}

#[test]
fn every_network_gives_pytorchs_logits() {
    let path = reference("networks.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let cases: HashMap<String, serde_json::Value> =
        serde_json::from_str(&header.metadata().as_ref().unwrap()["cases"]).unwrap();
    let stored = read_tensors(&path);
    for network in NETWORKS
        .iter()
        .filter(|n| n.fixed.is_none() && n.points.is_none())
    {
        assert!(cases.contains_key(network.name), "{} is stored", network.name);
    }
    for (arch, case) in cases {
        let network = &model::find(&arch).unwrap();
        let number = |value: &serde_json::Value| value.as_u64().unwrap() as usize;
        let size: [usize; 3] = std::array::from_fn(|axis| number(&case["size"][axis]));
        let (labels, stride) = (number(&case["labels"]), number(&case["stride"]));
        let preprocessing = Preprocessing {
            labels: published::unet_tcia().labels[..labels].to_vec(),
            ..published::unet_tcia()
        };
        let graph = inference_graph(network, &preprocessing, size).unwrap();
        let tensors: HashMap<String, Tensor> = graph
            .parameters()
            .chain(graph.states())
            .map(|(_, info)| (info.name.clone(), made(&info.name, &info.spec.shape)))
            .collect();
        let [d, h, w] = size;
        let image = made("image", &[1, 1, d, h, w]);
        let expected = &stored[&format!("{arch}/logits")];
        let all: Vec<_> = match network.fixed {
            None => devices().iter().take(2).collect(),
            // one device: these are large; all logits of the largest scan are in one buffer
            Some(_) => devices()
                .iter()
                .filter(|d| d.caps().max_buffer >= 1 << 30)
                .take(1)
                .collect(),
        };
        for device in all {
            let logits = pollster::block_on(async {
                let plan = Plan::new(&graph, device.caps()).unwrap();
                let weights = Weights::new(device, &plan, false).await.unwrap();
                weights.upload(device, &tensors).unwrap();
                let executable = Executable::new(device, plan, &weights).await.unwrap();
                executable.upload(device, "image", &image).unwrap();
                executable.submit(device, &StepScalars::default()).unwrap();
                executable.read(device, "logits").await.unwrap()
            });
            let [_, ds, hs, ws] = expected.shape[..] else {
                panic!("{:?}", expected.shape)
            };
            let taken = Tensor::from_fn(&expected.shape, |i| {
                let (x, y, z, label) = (i % ws, i / ws % hs, i / ws / hs % ds, i / ws / hs / ds);
                logits.data[((label * d + stride * z) * h + stride * y) * w + stride * x]
            });
            assert_close(&arch, &taken, expected, 1e-4);
        }
    }
}

#[test]
fn tables_of_layers_add_up() {
    for network in NETWORKS {
        let (size, labels) = network.usual();
        let summary = Summary::new(network, size, labels).unwrap();
        let sum: usize = summary.layers.iter().map(|l| l.parameters).sum();
        assert_eq!(sum, summary.parameters, "{}", network.name);
        let shape = [vec![1, labels], size.to_vec()].concat();
        assert_eq!(summary.layers.last().unwrap().shape, shape, "{}", network.name);
        assert!(summary.inference.is_ok(), "{}", network.name);
        if let (Ok(inference), Ok(training)) = (summary.inference, summary.training) {
            let parameters = 4 * summary.parameters as u64;
            assert!(inference.total >= inference.slots + parameters);
            assert!(training.total >= training.slots + 4 * parameters);
            assert!(training.slots > inference.slots);
        }
    }
    let hybrid = Summary::new(&model::find("obeliskhybrid_tcia").unwrap(), [144; 3], 9).unwrap();
    let layer = |name: &str| hybrid.layers.iter().find(|l| l.name == name).unwrap();
    // 2 · 27 · inputs · outputs · voxels, within the 1 % that packing weights adds
    for (name, inputs, outputs, side) in [
        ("conv7U", 16, 9, 144u64),
        ("conv6U", 64, 12, 72),
        ("conv22", 32, 32, 36),
    ] {
        let expected = (2 * 27 * inputs * outputs * side.pow(3)) as f64;
        let got = layer(name).flops as f64;
        assert!(
            (1.0..1.01).contains(&(got / expected)),
            "{name}: {got} for {expected}"
        );
    }
    assert_eq!(layer("offset2 + linear2a").parameters, 512 * 3 + 128 * 128);
    assert_eq!(layer("batch7U").parameters, 18);
}

#[test]
fn sizes_that_a_published_network_does_not_take_are_refused() {
    let refused = |arch: &str, size, labels| {
        let network = &model::find(arch).unwrap();
        Summary::new(network, size, labels).unwrap_err().to_string()
    };
    for text in [
        refused("allconvunet_tcia", [144, 144, 143], 9),
        refused("globalfcnet_tcia", [144; 3], 8),
        refused("globalfcnet_visceral", [144; 3], 8),
        refused("allconvunet_visceral", [156, 115, 160], 8),
    ] {
        assert!(
            text.contains("resample or crop the scan") && text.contains("or train `unet"),
            "{text}"
        );
    }
}

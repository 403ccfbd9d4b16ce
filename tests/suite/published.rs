//! The authors' weights give the authors' outputs.

use crate::common::*;
use obelisk::model::{self, published};
use obelisk::predict::{Predictor, inference_graph};
use obelisk::tensor::Tensor;
use obelisk::volume;

#[test]
fn a_crop_through_the_published_hybrid_gives_pytorchs_labels() {
    let weights = read_tensors(&reference("obeliskhybrid_tcia_fold1/weights.safetensors"));
    let crop = read_tensors(&reference("obeliskhybrid_tcia_fold1/crop.safetensors"));
    let image = &crop["image"];
    let [_, _, d, h, w] = image.ncdhw();
    let network = &model::find("obelisk-hybrid").unwrap();
    let stride2 = &crop["logits_stride2"];
    for device in devices() {
        pollster::block_on(async {
            let graph = inference_graph(network, &published::obeliskhybrid_tcia(), [d, h, w]).unwrap();
            let mut data = weights.clone();
            data.insert("image".into(), image.clone());
            let logits = run_on(device, &graph, &data, &Default::default())
                .remove("logits")
                .unwrap();
            let [_, classes, zs, ys, xs] = stride2.ncdhw();
            let every_second = Tensor::from_fn(&stride2.shape, |i| {
                let (x, y, z, l) = (i % xs, i / xs % ys, i / xs / ys % zs, i / xs / ys / zs);
                logits.at(0, l, 2 * z, 2 * y, 2 * x)
            });
            assert_close("logits", &every_second, stride2, 2e-5);
            let volume = d * h * w;
            let labels: Vec<f32> = (0..volume)
                .map(|v| {
                    let best = (0..classes).fold(0, |best, l| {
                        if logits.data[l * volume + v] > logits.data[best * volume + v] {
                            l
                        } else {
                            best
                        }
                    });
                    best as f32
                })
                .collect();
            assert!(labels == crop["labels"].data, "labels differ");
        });
    }
}

/// The published weights of a network, fold 1, through [`Predictor`] at WebGPU's default limits: labels differ from the
/// authors' only where the two highest logits nearly tie, logits by at most 1e-4 of the largest. The folder of what they
/// give lies in tests/reference or beside the repository.
fn check(arch: &str, scan: &str) {
    let stored = format!("{arch}_fold1");
    let Some(folder) = Some(reference(&stored))
        .filter(|f| f.exists())
        .or_else(|| shared(&format!("reference/{stored}")))
    else {
        return;
    };
    let Some(scan) = shared(&format!("data/ct/{scan}.nii.gz")) else {
        return;
    };
    let Some(device) = devices().first() else { return };
    assert_eq!(device.caps().max_binding, 128 << 20);
    let scan = volume::read(&scan).unwrap();
    let expected = volume::read(&folder.join("labels.nii.gz")).unwrap();
    let near_tie = volume::read(&folder.join("near_tie.nii.gz")).unwrap();
    let weights = read_tensors(&folder.join("weights.safetensors"));
    let network = &model::find(arch).unwrap();
    let graph = inference_graph(network, &network.published.unwrap()(), scan.geometry.shape).unwrap();
    for name in weights.keys() {
        assert!(graph.find(name).is_some(), "the network has no `{name}`");
    }
    let preprocessing = network.published.expect("a published network")();
    let (labels, logits) = pollster::block_on(async {
        let mut predictor = Predictor::with_weights(device, network, &preprocessing, &weights)
            .await
            .unwrap();
        predictor.segment(device, &scan).await.unwrap()
    });
    let differ = (0..labels.len())
        .filter(|&i| labels[i] as f32 != expected.data[i] && near_tie.data[i] == 0.0)
        .count();
    assert_eq!(differ, 0, "labels differ away from near ties");
    let stored = read_tensors(&folder.join("logits.safetensors"));
    let (stride, strided) = [4, 8]
        .into_iter()
        .find_map(|n| Some((n, stored.get(&format!("logits_stride{n}"))?)))
        .expect("every 4th or 8th logit is stored");
    let [_, h, w] = scan.geometry.shape;
    let [_, d_strided, h_strided, w_strided] = strided.shape[..] else {
        panic!("{:?}", strided.shape)
    };
    let taken = Tensor::from_fn(&strided.shape, |i| {
        let (x, i) = (i % w_strided, i / w_strided);
        let (y, i) = (i % h_strided, i / h_strided);
        let (z, label) = (i % d_strided, i / d_strided);
        let depth = scan.geometry.shape[0];
        logits.data[((label * depth + stride * z) * h + stride * y) * w + stride * x]
    });
    assert_close("logits", &taken, strided, 1e-4);
}

#[test]
fn the_published_tcia_hybrid_gives_the_authors_labels() {
    check("obeliskhybrid_tcia", "ct_144");
}

#[test]
fn the_published_visceral_hybrid_gives_the_authors_labels() {
    check("obeliskhybrid_visceral", "ct_156x115x160");
}

#[test]
fn the_published_tcia_unet_gives_the_authors_labels() {
    check("allconvunet_tcia", "ct_144");
}

#[test]
fn the_published_visceral_obelisk_gives_the_authors_labels() {
    check("obelisk_visceral", "ct_156x115x160");
}

#[test]
fn networks_have_the_published_numbers_of_parameters() {
    for (arch, parameters) in [
        ("obeliskhybrid_tcia", 229_217),
        ("obelisk-hybrid", 229_217),
        ("obeliskhybrid_visceral", 230_208),
        ("obelisk_visceral", 131_464),
        ("unet", 878_154),
        ("unet-lean", 201_642),
        ("unet-global-fc", 11_944_816),
        ("allconvunet_tcia", 883_740),
        ("allconvunet_visceral", 875_798),
        ("globalfcnet_tcia", 11_944_816),
        ("globalfcnet_visceral", 13_081_422),
    ] {
        let network = &model::find(arch).unwrap();
        let preprocessing = network.published.unwrap_or(published::obeliskhybrid_tcia)();
        let grid = network.fixed.map_or([144; 3], |fixed| fixed.size);
        let graph = inference_graph(network, &preprocessing, grid).unwrap();
        assert_eq!(graph.parameter_count(), parameters, "{arch}");
    }
}

#[test]
fn the_hybrid_trains_at_144_cubed_within_webgpus_default_limits() {
    use obelisk::gpu::{Executable, Weights};
    use obelisk::op::{Caps, StepScalars};
    use obelisk::plan::Plan;
    use obelisk::train::{Loss, training_graph};
    // The limits of any device, but this one's subgroups: without them a step takes minutes on a processor.
    let Some(device) = devices().get(1) else { return };
    let caps = Caps {
        target: device.caps().target,
        ..Caps::PORTABLE
    };
    let network = &model::find("obelisk-hybrid").unwrap();
    let graph = training_graph(network, [1, 1, 144, 144, 144], 9, Loss::CrossEntropyDice, true).unwrap();
    pollster::block_on(async {
        let plan = Plan::new(&graph, &caps).unwrap();
        let weights = Weights::new(device, &plan, true).await.unwrap();
        weights
            .upload(device, &obelisk::weights::initialise(&graph, 1))
            .unwrap();
        let executable = Executable::new(device, plan, &weights).await.unwrap();
        // A ball of radius 50 in noise.
        let ball = |i: usize| {
            let r = |v: usize| (v as f32 - 71.5).powi(2);
            r(i % 144) + r(i / 144 % 144) + r(i / 144 / 144) < 2500.0
        };
        let shape = [1, 1, 144, 144, 144];
        let mut image = noise(&shape, 1);
        image
            .data
            .iter_mut()
            .enumerate()
            .for_each(|(i, v)| *v += ball(i) as u8 as f32);
        let labels = Tensor::from_fn(&shape, |i| ball(i) as u8 as f32);
        let identity = Tensor::from_fn(&[1, 3, 4], |i| (i % 5 == 0) as u8 as f32);
        let mut losses = Vec::new();
        for step in 0..2 {
            // Their memory serves other values once they are read.
            for (name, tensor) in [("image", &image), ("labels", &labels), ("theta", &identity)] {
                executable.upload(device, name, tensor).unwrap();
            }
            let scalars = StepScalars {
                step,
                seed: 0,
                learning_rate: 0.002,
                weight_decay: 1e-5,
            };
            executable.submit(device, &scalars).unwrap();
            losses.push(executable.read(device, "loss").await.unwrap().data[0]);
        }
        assert!(losses[1] < losses[0], "{losses:?}");
    });
}

//! The authors' weights give the authors' outputs.
mod common;

use std::collections::HashMap;
use std::path::Path;

use common::*;
use obelisk::dataset::Label;
use obelisk::model;
use obelisk::predict::Predictor;
use obelisk::preprocess::{Channel, Intensity, Preprocessing};
use obelisk::tensor::Tensor;
use obelisk::volume;

/// Tensors of a safetensors file by name: f32 and u8 as f32, others left out.
fn tensors(path: &Path) -> HashMap<String, Tensor> {
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    file.iter()
        .filter_map(|(name, view)| {
            let data = match view.dtype() {
                safetensors::Dtype::U8 => view.data().iter().map(|v| *v as f32).collect(),
                safetensors::Dtype::F32 => view
                    .data()
                    .chunks_exact(4)
                    .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
                    .collect(),
                _ => return None,
            };
            Some((name.to_owned(), Tensor::new(view.shape(), data)))
        })
        .collect()
}

fn folder() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference/obeliskhybrid_tcia_fold1")
}

/// Scans as stored, HU / 1024 + 1, nine labels: what the published script does.
fn preprocessing(grid: [usize; 3]) -> Preprocessing {
    Preprocessing {
        orientation: None,
        spacing: None,
        grid: Some(grid),
        ignore: None,
        channels: vec![Channel {
            name: "CT".into(),
            intensity: Intensity::CT,
        }],
        labels: (0..9)
            .map(|value| Label {
                value,
                name: value.to_string(),
            })
            .collect(),
    }
}

#[test]
fn a_crop_through_the_published_hybrid_gives_pytorchs_labels() {
    let weights = tensors(&folder().join("weights.safetensors"));
    let crop = tensors(&folder().join("crop.safetensors"));
    let image = &crop["image"];
    let [_, _, d, h, w] = image.ncdhw();
    let network = model::find("obelisk-hybrid").unwrap();
    let stride2 = &crop["logits_stride2"];
    for device in devices() {
        pollster::block_on(async {
            let graph =
                obelisk::predict::inference_graph(network, &preprocessing([d, h, w]), [d, h, w]).unwrap();
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

#[test]
fn the_published_hybrid_segments_a_ct_of_144_cubed_at_webgpus_default_limits() {
    let Some(scan) = shared("data/ct/ct_144.nii.gz") else {
        return;
    };
    let Some(device) = devices().first() else { return };
    assert_eq!(device.caps().max_binding, 128 << 20);
    let scan = volume::read(&scan).unwrap();
    let expected = volume::read(&folder().join("labels.nii.gz")).unwrap();
    let near_tie = volume::read(&folder().join("near_tie.nii.gz")).unwrap();
    let weights = tensors(&folder().join("weights.safetensors"));
    let network = model::find("obeliskhybrid_tcia").unwrap();
    let grid = [144; 3];
    let (labels, logits) = pollster::block_on(async {
        let predictor = Predictor::with_weights(device, network, &preprocessing(grid), grid, &weights)
            .await
            .unwrap();
        predictor.segment(device, &scan).await.unwrap()
    });
    let differ = (0..labels.len())
        .filter(|&i| labels[i] as f32 != expected.data[i] && near_tie.data[i] == 0.0)
        .count();
    assert_eq!(differ, 0, "labels differ away from near ties");
    let stored = tensors(&folder().join("logits.safetensors"));
    let stride8 = &stored["logits_stride8"];
    let n = stride8.shape[1];
    let every_eighth = Tensor::from_fn(&stride8.shape, |i| {
        let (x, y, z, l) = (i % n, i / n % n, i / n / n % n, i / n / n / n);
        logits.data[((l * 144 + 8 * z) * 144 + 8 * y) * 144 + 8 * x]
    });
    assert_close("logits", &every_eighth, stride8, 1e-4);
}

#[test]
fn networks_have_the_published_numbers_of_parameters() {
    for (arch, parameters) in [
        ("obeliskhybrid_tcia", 229_217),
        ("obelisk-hybrid", 229_217),
        ("unet", 878_154),
    ] {
        let network = model::find(arch).unwrap();
        let graph = obelisk::predict::inference_graph(network, &preprocessing([144; 3]), [144; 3]).unwrap();
        assert_eq!(graph.parameter_count(), parameters, "{arch}");
    }
}

#[test]
fn the_hybrid_trains_at_144_cubed_within_webgpus_default_limits() {
    use obelisk::gpu::{Executable, Weights};
    use obelisk::op::StepScalars;
    use obelisk::plan::Plan;
    use obelisk::train::{Loss, training_graph};
    let Some(device) = devices().first() else { return };
    let network = model::find("obelisk-hybrid").unwrap();
    let graph = training_graph(network, [1, 1, 144, 144, 144], 9, Loss::CrossEntropyDice, true).unwrap();
    pollster::block_on(async {
        let plan = Plan::new(&graph, device.caps()).unwrap();
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
        executable.upload(device, "image", &image).unwrap();
        executable
            .upload(
                device,
                "labels",
                &Tensor::from_fn(&shape, |i| ball(i) as u8 as f32),
            )
            .unwrap();
        let identity = Tensor::from_fn(&[1, 3, 4], |i| (i % 5 == 0) as u8 as f32);
        executable.upload(device, "theta", &identity).unwrap();
        let mut losses = Vec::new();
        for step in 0..2 {
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

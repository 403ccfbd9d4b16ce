//! Ten training steps from PyTorch's initial weights and batches give PyTorch's losses.

use std::collections::HashMap;

use crate::common::*;
use obelisk::gpu::{Executable, Weights};
use obelisk::model;
use obelisk::op::StepScalars;
use obelisk::plan::Plan;
use obelisk::tensor::Tensor;
use obelisk::train::{Loss, Rule, Settings, step_graph, training_graph};

fn load(name: &str) -> HashMap<String, Tensor> {
    read_tensors(&reference(&format!("{name}.safetensors")))
}

/// The losses of ten steps on every device, compared with PyTorch's float64 ones: within 1e-3 relative, or three times
/// what PyTorch's own float32 run deviates.
fn check(arch: &str, file: &str, loss: Loss, stored: &str) {
    let reference = load(file);
    let batches = load("training_batches");
    let images = &batches["images"];
    let labels = &batches["labels"];
    let whole: [usize; 5] = images.shape[1..].try_into().unwrap();
    let [n, c, ..] = whole;
    // nnU-Net's take sizes that their steps divide: the batches' first voxels.
    let [d, h, w] = match reference.get("logits").unwrap().shape[1..] {
        [d, h, w] => [d, h, w],
        _ => unreachable!("logits [labels, D, H, W]"),
    };
    let classes = batches["class_weights"].shape[0];
    let graph = training_graph(&model::find(arch).unwrap(), [n, c, d, h, w], classes, loss, false).unwrap();
    let mut initial: HashMap<String, Tensor> = reference
        .iter()
        .filter_map(|(k, t)| Some((k.strip_prefix("weights/")?.to_owned(), t.clone())))
        .collect();
    for (_, info) in graph.states() {
        assert!(initial.contains_key(&info.name), "{} is stored", info.name);
    }
    initial.retain(|name, _| graph.find(name).is_some());
    let expected = &reference[&format!("{stored}/losses_float64")].data;
    let float32 = &reference[&format!("{stored}/losses_float32")].data;
    // The kernels for GPUs once and a few steps: on a processor they take minutes.
    let most = if arch == "unet" { 3 } else { 2 };
    for (device, steps) in devices().iter().zip([10, 10, 3]).take(most) {
        pollster::block_on(async {
            let plan = Plan::new(&graph, device.caps()).unwrap();
            reflect(&plan);
            let weights = Weights::new(device, &plan, true).await.unwrap();
            weights.upload(device, &initial).unwrap();
            let executable = Executable::new(device, plan, &weights).await.unwrap();
            executable.poison(device);
            if graph.find("class_weights").is_some() {
                executable
                    .upload(device, "class_weights", &batches["class_weights"])
                    .unwrap();
            }
            for step in 0..steps {
                let item = |t: &Tensor, shape: &[usize]| {
                    let [_, _, _, tall, wide] = whole;
                    let volume: usize = whole[2..].iter().product();
                    Tensor::from_fn(shape, |i| {
                        let (x, y, z, outer) = (i % w, i / w % h, i / w / h % d, i / w / h / d);
                        t.data[(step * n + outer) * volume + (z * tall + y) * wide + x]
                    })
                };
                executable
                    .upload(device, "image", &item(images, &[n, c, d, h, w]))
                    .unwrap();
                executable
                    .upload(device, "labels", &item(labels, &[n, 1, d, h, w]))
                    .unwrap();
                let scalars = StepScalars {
                    step: step as u32,
                    seed: 0,
                    learning_rate: 0.002,
                    weight_decay: 1e-5,
                };
                executable.submit(device, &scalars).unwrap();
                let loss = executable.read(device, "loss").await.unwrap().data[0];
                let own = (float32[step] - expected[step]).abs() / expected[step];
                let relative = (loss - expected[step]).abs() / expected[step];
                println!(
                    "{arch} {stored} step {step}: {loss} against {} ({relative:.1e})",
                    expected[step]
                );
                assert!(
                    relative <= 1e-3f32.max(3.0 * own),
                    "step {step}: {loss} against {}",
                    expected[step]
                );
            }
        });
    }
}

#[test]
fn the_hybrid_with_cross_entropy_and_dice_learns_as_in_pytorch() {
    check(
        "obelisk-hybrid",
        "training_hybrid",
        Loss::CrossEntropyDice,
        "cross_entropy_dice",
    );
}

/// Nesterov's momentum, clipped gradients, and moving averages of weights and running statistics.
#[test]
fn the_hybrid_learns_by_another_recipe_as_in_pytorch() {
    let (recipe, hybrid, batches) = (
        load("training_recipe"),
        load("training_hybrid"),
        load("training_batches"),
    );
    let (images, labels) = (&batches["images"], &batches["labels"]);
    let [n, c, d, h, w]: [usize; 5] = images.shape[1..].try_into().unwrap();
    let mut settings = Settings::dense("".into(), "obelisk-hybrid");
    (settings.optimiser, settings.momentum) = (Rule::Sgd, 0.9);
    (settings.clip, settings.ema, settings.affine) = (Some(0.5), Some(0.9), 0.0);
    settings.batch = n;
    let mut preprocessing = model::find("obelisk_visceral").unwrap().published.unwrap()();
    preprocessing.grid = Some([d, h, w]);
    preprocessing.labels.truncate(3);
    assert_eq!(preprocessing.channels.len(), c);
    let graph = step_graph(&settings, &preprocessing).unwrap();
    let mut initial: HashMap<String, Tensor> = hybrid
        .iter()
        .filter_map(|(k, t)| Some((k.strip_prefix("weights/")?.to_owned(), t.clone())))
        .collect();
    for (name, tensor) in initial.clone() {
        initial.insert(format!("ema.{name}"), tensor);
    }
    let parameters: Vec<_> = graph.parameters().map(|(_, info)| info).collect();
    for info in parameters {
        for order in 0..2 {
            initial.insert(
                format!("adam.{order}.{}", info.name),
                Tensor::zeros(&info.spec.shape),
            );
        }
    }
    let device = &devices()[0];
    pollster::block_on(async {
        let plan = Plan::new(&graph, device.caps()).unwrap();
        reflect(&plan);
        let weights = Weights::new(device, &plan, true).await.unwrap();
        weights.upload(device, &initial).unwrap();
        weights.upload_moments(device, &initial).unwrap();
        let executable = Executable::new(device, plan, &weights).await.unwrap();
        let item = |t: &Tensor, step: usize, shape: &[usize]| {
            let count: usize = shape.iter().product();
            Tensor::new(shape, t.data[step * count..(step + 1) * count].to_vec())
        };
        for step in 0..10 {
            let image = item(images, step, &[n, c, d, h, w]);
            executable.upload(device, "image", &image).unwrap();
            let labels = item(labels, step, &[n, 1, d, h, w]);
            executable.upload(device, "labels", &labels).unwrap();
            let scalars = StepScalars {
                step: step as u32,
                seed: 0,
                learning_rate: 0.01,
                weight_decay: 3e-5,
            };
            executable.submit(device, &scalars).unwrap();
            let loss = executable.read(device, "loss").await.unwrap().data[0];
            let expected = recipe["losses_float64"].data[step];
            println!("step {step}: {loss} against {expected}");
            assert!(
                (loss - expected).abs() <= 1e-3 * expected,
                "step {step}: {loss} against {expected}"
            );
        }
        let moments = weights.download_moments(device).await.unwrap();
        let mut compared = 0;
        for (name, tensor) in &moments {
            let of = name.strip_prefix("ema.").unwrap_or_default();
            if let Some(expected) = recipe.get(&format!("averages/{of}")) {
                assert_close(name, tensor, expected, 1e-3);
                compared += 1;
            }
        }
        assert!(compared >= 14, "{compared} averages");
    });
}

#[test]
fn the_hybrid_with_hard_mining_learns_as_in_pytorch() {
    check(
        "obelisk-hybrid",
        "training_hybrid",
        Loss::HardMining,
        "hard_mining",
    );
}

#[test]
fn a_meshnet_learns_as_in_pytorch() {
    check(
        "meshnet:elu:5x1,5x2,5x4,5x8,5x16,5x8,5x4,5x2,5x1",
        "training_meshnet",
        Loss::CrossEntropy,
        "cross_entropy",
    );
}

#[test]
fn nnunets_networks_learn_with_deep_supervision_as_in_pytorch() {
    for (class, stages) in [
        ("nnunet", "4x1,6x2,8s122x1,10x2"),
        ("nnunet-resenc", "4x1,6x2,8s122x1,10x2"),
    ] {
        let file = format!("training_{class}");
        check(
            &format!("{class}:{stages}"),
            &file,
            Loss::CrossEntropyDice,
            "deep_supervision",
        );
    }
}

#[test]
fn the_unet_learns_as_in_pytorch() {
    check("unet", "training_unet", Loss::CrossEntropy, "cross_entropy");
}

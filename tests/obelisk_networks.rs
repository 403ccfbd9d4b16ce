//! The original OBELISK networks: parameters, the authors' weights, training and prediction at locations.
mod common;

use std::collections::HashMap;
use std::path::Path;

use common::*;
use obelisk::model;
use obelisk::predict::{Predictor, inference_graph};
use obelisk::tensor::Tensor;
use obelisk::volume;

/// The f32 tensors of a safetensors file by name.
fn tensors(path: &Path) -> HashMap<String, Tensor> {
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    file.iter()
        .filter(|(_, view)| view.dtype() == safetensors::Dtype::F32)
        .map(|(name, view)| {
            let data = view
                .data()
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
                .collect();
            (name.to_owned(), Tensor::new(view.shape(), data))
        })
        .collect()
}

#[test]
fn they_have_as_many_parameters_as_their_layers_say() {
    let preprocessing = model::find("obelisk_visceral").unwrap().published.unwrap()();
    for (arch, parameters) in [
        ("obelisk", 131_464),
        ("obelisk_visceral", 131_464),
        ("obelisk-unary", 128_392),
        ("obelisk-random", 125_320),
    ] {
        let network = model::find(arch).unwrap();
        let graph = inference_graph(network, &preprocessing, [31, 24, 40]).unwrap();
        assert_eq!(graph.parameter_count(), parameters, "{arch}");
    }
}

#[test]
fn the_authors_visceral_weights_give_the_authors_outputs() {
    let (Some(scan), Some(folder)) = (
        shared("data/ct/ct_156x115x160.nii.gz"),
        shared("reference/obelisk_visceral_fold1"),
    ) else {
        return;
    };
    let network = model::find("obelisk_visceral").unwrap();
    let preprocessing = network.published.unwrap()();
    let scan = volume::read(&scan).unwrap();
    let expected = volume::read(&folder.join("labels.nii.gz")).unwrap();
    let near_tie = volume::read(&folder.join("near_tie.nii.gz")).unwrap();
    let weights = tensors(&folder.join("weights.safetensors"));
    let stored = tensors(&folder.join("logits.safetensors"));
    for device in devices() {
        let (labels, logits) = pollster::block_on(async {
            let grid = scan.geometry.shape;
            let predictor = Predictor::with_weights(device, network, &preprocessing, grid, &weights)
                .await
                .unwrap();
            predictor.segment(device, &scan).await.unwrap()
        });
        let differ = (0..labels.len())
            .filter(|&i| labels[i] as f32 != expected.data[i] && near_tie.data[i] == 0.0)
            .count();
        assert_eq!(differ, 0, "labels differ away from near ties");
        let stride4 = &stored["logits_stride4"];
        let [_, zs, ys, xs] = stride4.shape[..] else {
            panic!("{:?}", stride4.shape)
        };
        let [_, d, h, w] = logits.shape[..] else {
            panic!("{:?}", logits.shape)
        };
        let every_fourth = Tensor::from_fn(&stride4.shape, |i| {
            let (x, y, z, l) = (i % xs, i / xs % ys, i / xs / ys % zs, i / xs / ys / zs);
            logits.data[((l * d + 4 * z) * h + 4 * y) * w + 4 * x]
        });
        let largest = stored["logits_abs_max"].data[0];
        let worst = every_fourth
            .data
            .iter()
            .zip(&stride4.data)
            .fold(0f32, |m, (a, b)| m.max((a - b).abs()));
        assert!(
            worst <= 1e-4 * largest,
            "logits differ by {worst:e}, the largest is {largest}"
        );
        eprintln!("logits differ by at most {:.1e} of the largest", worst / largest);
    }
}

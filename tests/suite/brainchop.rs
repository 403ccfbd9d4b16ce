//! brainchop's networks give brainchop's labels, and what can't be run or is damaged is refused.

use std::collections::BTreeMap;
use std::path::Path;

use crate::common::*;
#[cfg(feature = "cli")]
use crate::program::{adapter, obelisk_in};
use obelisk::gpu::{Device, DeviceOptions};
use obelisk::model;
use obelisk::predict::Predictor;
use obelisk::preprocess::Intensity;
use obelisk::tensor::Tensor;
use obelisk::volume::{self, SpatialHeader};
use obelisk::weights::Model;
use serde_json::{Value as Json, json};

/// Labels equal PyTorch's on the whole scan, and every eighth logit is within 1e-4 of the largest.
fn check(name: &str) {
    let (Some(folder), Some(scan), Some(expected)) = (
        shared(&format!("data/brainchop/{name}")),
        shared("data/brain_scans/t1_crop.nii.gz"),
        shared("reference/brainchop"),
    ) else {
        return;
    };
    let Some(device) = devices().get(1) else { return };
    let model = Model::open(&folder, None).unwrap();
    let network = &model::find(&model.info.arch).unwrap();
    let preprocessing = &model.info.preprocessing;
    let scan = volume::read(&scan).unwrap();
    let predictor = Predictor::with_weights(device, network, preprocessing, &model.tensors);
    let mut predictor = pollster::block_on(predictor).unwrap();
    let (labels, logits) = pollster::block_on(predictor.segment(device, &scan)).unwrap();

    let file = expected.join(format!("{name}.npz"));
    let (shape, theirs) = npz(&file, "logits_stride8");
    let scale = npz(&file, "scale").1[0];
    let [classes, d, h, w] = logits.shape[..] else {
        panic!("{:?}", logits.shape)
    };
    assert_eq!(shape, [classes, d.div_ceil(8), h.div_ceil(8), w.div_ceil(8)]);
    let ours = Tensor::from_fn(&shape, |i| {
        let (z, y, x) = (
            i / (shape[2] * shape[3]) % shape[1],
            i / shape[3] % shape[2],
            i % shape[3],
        );
        let class = i / (shape[1] * shape[2] * shape[3]);
        logits.data[((class * d + 8 * z) * h + 8 * y) * w + 8 * x]
    });
    let differences = ours.data.iter().zip(&theirs).map(|(a, b)| (a - b).abs());
    let worst = differences.fold(0.0, f32::max) / scale;
    assert!(
        worst <= 1e-4,
        "{name}: logits differ by {worst:.1e} of the largest"
    );

    let theirs = volume::read(&expected.join(format!("{name}.labels.nii.gz"))).unwrap();
    let theirs = theirs.labels().unwrap();
    let differ = (0..labels.len()).filter(|i| labels[*i] != theirs[*i]).count();
    println!(
        "{name}: {differ} of {} labels differ, logits by {worst:.1e} of the largest",
        labels.len()
    );
    // Near ties: the files have no logits of every voxel to tell them by.
    assert!(
        differ <= labels.len() / 1_000_000,
        "{name}: {differ} labels differ"
    );
}

#[test]
fn the_tissue_network_has_brainchops_labels_at_full_size() {
    check("model5_gw_ae");
}

#[test]
#[ignore = "takes minutes on a processor"]
fn the_larger_networks_have_brainchops_labels_at_full_size() {
    check("model20chan3cls");
    check("model30chan18cls");
}

/// A network of a 3×3×3 convolution of dilation 2 with GELU and a last one to three labels, on scans of 8×9×10 voxels.
struct Made {
    json: Json,
    weights: Vec<f32>,
}

const SIZE: [usize; 3] = [8, 9, 10];

fn made() -> Made {
    let conv = |name: &str, filters: usize, kernel: usize, dilation: usize, before: &str| {
        json!({"class_name": "Conv3D", "inbound_nodes": [[[before, 0, 0, {}]]], "config": {
            "name": name, "filters": filters, "kernel_size": [kernel, kernel, kernel], "strides": [1, 1, 1],
            "dilation_rate": [dilation, dilation, dilation], "padding": "same", "data_format": "channels_last",
            "activation": "linear", "use_bias": true,
        }})
    };
    let layers = json!([
        {"class_name": "InputLayer", "config": {"name": "in", "batch_input_shape": [null, 8, 9, 10, 1]},
            "inbound_nodes": []},
        conv("a", 2, 3, 2, "in"),
        {"class_name": "Activation", "config": {"name": "b", "activation": "gelu"},
            "inbound_nodes": [[["a", 0, 0, {}]]]},
        conv("c", 3, 1, 1, "b"),
    ]);
    let weight = |name: &str, shape: &[usize]| json!({"name": name, "shape": shape, "dtype": "float32"});
    Made {
        json: json!({
            "format": "layers-model",
            "modelTopology": {"model_config": {"class_name": "Functional", "config": {"layers": layers}}},
            "weightsManifest": [{"paths": ["w1.bin", "w2.bin"], "weights": [
                weight("a/kernel", &[3, 3, 3, 1, 2]), weight("a/bias", &[2]),
                weight("c/kernel", &[1, 1, 1, 2, 3]), weight("c/bias", &[3]),
            ]}],
        }),
        weights: noise(&[54 + 2 + 6 + 3], 5).data,
    }
}

impl Made {
    /// Its files; the weights in two.
    fn files(&self) -> BTreeMap<String, Vec<u8>> {
        let bytes: Vec<u8> = bytemuck::cast_slice(&self.weights).to_vec();
        BTreeMap::from([
            ("model.json".into(), self.json.to_string().into_bytes()),
            ("w1.bin".into(), bytes[..100].to_vec()),
            ("w2.bin".into(), bytes[100..].to_vec()),
            (
                "colormap.json".into(),
                br#"{"labels": ["Unknown", "grey", "white"]}"#.to_vec(),
            ),
        ])
    }

    fn write(&self, folder: &Path) {
        std::fs::create_dir_all(folder).unwrap();
        for (name, bytes) in self.files() {
            std::fs::write(folder.join(name), bytes).unwrap();
        }
    }
}

#[test]
fn layers_are_what_keras_calls_them() {
    let made = made();
    let model = Model::from_brainchop(&made.files(), "mine", Some(Intensity::MIN_MAX)).unwrap();
    assert_eq!(model.info.arch, "meshnet:gelu:2x2");
    let names: Vec<&str> = (model.info.preprocessing.labels.iter().map(|l| l.name.as_str())).collect();
    assert_eq!(names, ["Unknown", "grey", "white"]);
    let Some(device) = devices().first() else { return };
    let network = &model::find(&model.info.arch).unwrap();
    // An array whose axes are the network's.
    let axes = [[-1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]];
    let affine = glam::DMat4::from_mat3(glam::DMat3::from_cols_array_2d(&axes));
    let scan = volume::Volume {
        data: noise(&SIZE, 6).data,
        channels: 1,
        geometry: SpatialHeader::from_affine(affine).geometry(SIZE).unwrap(),
        non_finite: 0,
        source: "made".into(),
    };
    let predictor = Predictor::with_weights(device, network, &model.info.preprocessing, &model.tensors);
    let (_, logits) =
        pollster::block_on(async { predictor.await.unwrap().segment(device, &scan).await }).unwrap();

    // Kernels [KD, KH, KW, in, out], a scan whose array is the input.
    let prepared = model.info.preprocessing.prepare_image(&scan).unwrap().image;
    let [kernel, bias, mixing, last] = [0..54, 54..56, 56..62, 62..65].map(|part| &made.weights[part]);
    let [d, h, w] = SIZE;
    for (z, y, x) in [(0, 0, 0), (4, 4, 5), (7, 8, 9), (2, 6, 1)] {
        let mut hidden = [bias[0], bias[1]];
        for tap in 0..27 {
            let at = |voxel: usize, tap: usize, size: usize| {
                (voxel + 2 * tap).checked_sub(2).filter(|v| *v < size)
            };
            let (Some(a), Some(b), Some(c)) = (at(z, tap / 9, d), at(y, tap / 3 % 3, h), at(x, tap % 3, w))
            else {
                continue;
            };
            let value = prepared.data[(a * h + b) * w + c];
            (0..2).for_each(|o| hidden[o] += value * kernel[tap * 2 + o]);
        }
        let hidden = hidden.map(|v| obelisk::op::activation::Activation::Gelu.of(v));
        for o in 0..3 {
            let expected = last[o] + hidden[0] * mixing[o] + hidden[1] * mixing[3 + o];
            let got = logits.data[((o * d + z) * h + y) * w + x];
            assert!((got - expected).abs() < 1e-5, "{z} {y} {x} {o}: {got} {expected}");
        }
    }
}

#[test]
fn what_is_damaged_or_not_run_is_refused_in_a_line() {
    let layer = |i: usize, key: &str| format!("/modelTopology/model_config/config/layers/{i}/{key}");
    let weight = |i: usize, key: &str| format!("/weightsManifest/0/weights/{i}/{key}");
    for (at, to, part) in [
        (layer(1, "config/strides"), json!([2, 2, 2]), "`strides`"),
        (layer(1, "config/padding"), json!("valid"), "`padding`"),
        (
            layer(1, "config/dilation_rate"),
            json!([1, 2, 2]),
            "`dilation_rate`",
        ),
        (
            layer(1, "config/kernel_size"),
            json!([5, 5, 5]),
            "3×3×3 is run here",
        ),
        (
            layer(1, "config/filters"),
            json!(1u64 << 40),
            "1 to 1024 channels",
        ),
        (layer(1, "config/filters"), json!(4), "weight"),
        (layer(1, "class_name"), json!("LSTM"), "is a LSTM"),
        (layer(2, "config/activation"), json!("tanh"), "activation `tanh`"),
        (
            layer(3, "inbound_nodes"),
            json!([[["in", 0, 0, {}]]]),
            "chains of layers",
        ),
        (
            layer(0, "config/batch_input_shape"),
            json!([null, 1 << 30, 1 << 30, 1 << 30, 1]),
            "voxels",
        ),
        (
            layer(0, "config/batch_input_shape"),
            json!([null, 8, 9, 10, 4]),
            "one channel",
        ),
        (layer(3, "config/filters"), json!(1), "1 labels"),
        (
            weight(0, "shape"),
            json!([3, 3, 3, 1, 1u64 << 60]),
            "does not fit",
        ),
        (weight(0, "dtype"), json!("uint8"), "float32"),
        (weight(3, "shape"), json!([2]), "4 bytes more"),
        (weight(2, "name"), json!("d/kernel"), "`c/kernel` are missing"),
        (
            "/weightsManifest/0/paths/0".into(),
            json!("../w1.bin"),
            "is refused",
        ),
        ("/weightsManifest/0/paths/0".into(), json!("w3.bin"), "w3.bin"),
        ("/modelTopology".into(), json!(3), "no layers"),
    ] {
        let mut made = made();
        *made.json.pointer_mut(&at).unwrap_or_else(|| panic!("{at}")) = to;
        let error = Model::from_brainchop(&made.files(), "mine", Some(Intensity::MIN_MAX)).unwrap_err();
        let error = error.to_string();
        assert!(error.contains(part) && !error.contains('\n'), "{at}: {error}");
    }
    let mut not_finite = made();
    not_finite.weights[3] = f32::NAN;
    let mut cut = made();
    cut.weights.pop();
    for (made, part) in [(not_finite, "not finite"), (cut, "does not fit")] {
        let error = Model::from_brainchop(&made.files(), "mine", Some(Intensity::MIN_MAX)).unwrap_err();
        assert!(error.to_string().contains(part), "{error}");
    }
    let error = Model::from_brainchop(&made().files(), "mine", None).unwrap_err();
    assert!(
        error.to_string().contains("how intensities are scaled"),
        "{error}"
    );
    assert!(Model::from_brainchop(&made().files(), "model20chan3cls", None).is_ok());
}

#[cfg(feature = "cli")]
#[test]
fn a_folder_is_imported_and_predicts_as_its_file() {
    if !adapter() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    made().write(&folder.join("mine"));
    let run = |arguments: &[&str]| obelisk_in(folder, arguments);
    let refused = run(&["import", "mine", "--output", "net.safetensors"]);
    assert_eq!(refused.status.code(), Some(1));
    let message = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(message.contains("say it by --intensity"), "{message}");
    assert!(!folder.join("net.safetensors").exists());
    let imported = run(&[
        "import",
        "mine",
        "--output",
        "net.safetensors",
        "--intensity",
        "quantile",
    ]);
    assert!(imported.status.success(), "{imported:?}");
    let model = Model::load(&folder.join("net.safetensors")).unwrap();
    let Intensity::Range { low, high } = model.info.preprocessing.channels[0].intensity else {
        panic!("{:?}", model.info.preprocessing)
    };
    assert_eq!((low, high), (0.05, 0.95));

    let scan = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/data/imagesTs/hippocampus_041.nii.gz");
    let scan = scan.to_str().unwrap();
    for (model, intensity, labels) in [
        ("net.safetensors", &[][..], "a.nii.gz"),
        ("mine", &["--intensity", "quantile"], "b.nii.gz"),
        ("mine/model.json", &["--intensity", "quantile"], "c.nii.gz"),
    ] {
        let arguments = ["predict", "--model", model, "--input", scan, "--output", labels];
        let predicted = run(&[&arguments, intensity].concat());
        assert!(predicted.status.success(), "{predicted:?}");
    }
    let bytes = |name: &str| std::fs::read(folder.join(name)).unwrap();
    assert_eq!(bytes("a.nii.gz"), bytes("b.nii.gz"));
    assert_eq!(bytes("a.nii.gz"), bytes("c.nii.gz"));
    let usage = run(&[
        "predict",
        "--model",
        "net.safetensors",
        "--input",
        scan,
        "--output",
        "d.nii.gz",
        "--intensity",
        "minmax",
    ]);
    assert_eq!(usage.status.code(), Some(2), "{usage:?}");
}

/// A device whose buffers hold a fifth of a map: the network goes in slabs, and gives what it gives at once.
#[test]
fn slabs_give_what_the_whole_grid_does() {
    let mut larger = made();
    let grid = [40, 24, 20];
    *larger
        .json
        .pointer_mut("/modelTopology/model_config/config/layers/0/config/batch_input_shape")
        .unwrap() = json!([null, grid[0], grid[1], grid[2], 1]);
    let mut model = Model::from_brainchop(&larger.files(), "mine", Some(Intensity::MIN_MAX)).unwrap();
    model.info.preprocessing.orientation = None;
    let network = &model::find(&model.info.arch).unwrap();
    let affine = glam::DMat4::IDENTITY;
    let scan = volume::Volume {
        data: noise(&grid, 8).data,
        channels: 1,
        geometry: SpatialHeader::from_affine(affine).geometry(grid).unwrap(),
        non_finite: 0,
        source: "made".into(),
    };
    let run = |most: Option<u64>| {
        let options = DeviceOptions {
            portable: true,
            most: most.map(|bytes| (bytes, bytes)),
            ..Default::default()
        };
        pollster::block_on(async {
            let device = Device::open(&options).await.unwrap();
            let predictor =
                Predictor::with_weights(&device, network, &model.info.preprocessing, &model.tensors);
            let mut predictor = predictor.await.unwrap();
            let (labels, logits) = predictor.segment(&device, &scan).await.unwrap();
            assert_eq!(predictor.labels(&device, &scan).await.unwrap(), labels);
            (labels, logits)
        })
    };
    if devices().is_empty() {
        return;
    }
    let (labels, logits) = run(None);
    let map = (grid.iter().product::<usize>() * 16) as u64;
    let (in_slabs, logits_in_slabs) = run(Some(map / 5 / 256 * 256));
    assert_close("logits", &logits_in_slabs, &logits, 1e-6);
    assert_eq!(in_slabs, labels);
}

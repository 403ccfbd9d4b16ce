//! Models as ONNX files: what is in them, and that onnxruntime gives the same logits and labels. What needs Python runs where
//! `python3` has onnx, onnxruntime, safetensors and nibabel.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::*;
use crate::program::{adapter, data, done, obelisk_in, offline, refused};
use glam::{DMat4, DVec3};
use obelisk::dataset::Label;
use obelisk::export::{self, ExportError, Exported};
use obelisk::graph::Graph;
use obelisk::model::{self, NETWORKS, Network};
use obelisk::nnunet;
use obelisk::onnx::proto;
use obelisk::predict::inference_graph;
use obelisk::preprocess::{Channel, Intensity, Preprocessing};
use obelisk::tensor::Tensor;
use obelisk::volume::{self, SpatialHeader};
use obelisk::weights::{self, Model, ModelInfo};
use prost::Message;

/// Whether there is a Python that can run the files.
fn python() -> bool {
    let modules = "import nibabel, onnx, onnxruntime, safetensors";
    let found = Command::new("python3").args(["-c", modules]).output();
    let found = found.is_ok_and(|output| output.status.success());
    if !found {
        eprintln!("SKIPPED: onnxruntime (python3 has not all of nibabel, onnx, onnxruntime, safetensors)");
    }
    found
}

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// One channel, z-scores and so many labels.
fn preprocessing(labels: usize, grid: Option<[usize; 3]>) -> Preprocessing {
    let label = |value: usize| Label {
        value: value as i32,
        name: format!("label {value}"),
    };
    Preprocessing {
        orientation: Some("RAS".parse().unwrap()),
        spacing: None,
        grid,
        ignore: None,
        channels: vec![Channel {
            name: "MR".into(),
            intensity: Intensity::ZScore,
        }],
        labels: (0..labels).map(label).collect(),
    }
}

/// A network with weights and statistics that are as good as random.
fn untrained(network: &Network, preprocessing: Preprocessing, size: [usize; 3]) -> Model {
    let graph = inference_graph(network, &preprocessing, size).unwrap();
    let mut tensors = weights::initialise(&graph, 5);
    let mut names: Vec<String> = tensors.keys().cloned().collect();
    names.sort();
    for (i, name) in names.iter().enumerate() {
        let tensor = tensors.get_mut(name).unwrap();
        if tensor.shape.len() == 1 {
            let noise = noise(&tensor.shape, 17 + i as u32);
            let add = if name.ends_with("var") { 1.0 } else { 0.0 };
            for (v, n) in tensor.data.iter_mut().zip(noise.data) {
                *v += 0.3 * (n + add);
            }
        }
    }
    let info = ModelInfo {
        arch: network.name.into(),
        preprocessing,
        training: None,
        source: None,
    };
    Model {
        info,
        tensors,
        batches: Default::default(),
    }
}

/// Asserts that nodes read what is there before them and that all is read; gives the file and how many nodes of each operator it has.
fn checked(exported: &Exported) -> (proto::Model, BTreeMap<String, usize>) {
    let file = proto::Model::decode(&exported.bytes[..]).unwrap();
    assert_eq!(file.ir_version, Some(9));
    assert_eq!(file.opset_import.len(), 1);
    assert_eq!(
        (&*file.opset_import[0].domain, file.opset_import[0].version),
        ("", Some(20))
    );
    let graph = file.graph.as_ref().unwrap();
    let mut known: HashSet<&str> = graph.initializer.iter().map(|t| &*t.name).collect();
    assert_eq!(known.len(), graph.initializer.len(), "names are unique");
    known.insert(&graph.input[0].name);
    let mut unread = known.clone();
    let mut names = HashSet::new();
    let mut counts = BTreeMap::new();
    for node in &graph.node {
        for input in node.input.iter().filter(|input| !input.is_empty()) {
            assert!(known.contains(&**input), "{} reads {input}", node.name);
            unread.remove(&**input);
        }
        for output in &node.output {
            assert!(known.insert(output) && unread.insert(output), "{output} twice");
        }
        assert!(names.insert(&node.name), "{} twice", node.name);
        *counts.entry(node.op_type.clone()).or_default() += 1;
    }
    for output in &graph.output {
        assert!(known.contains(&*output.name), "{} is not there", output.name);
        unread.remove(&*output.name);
    }
    assert!(unread.is_empty(), "nothing reads {unread:?}");
    for tensor in &graph.initializer {
        let each = if tensor.data_type == 1 { 4 } else { 8 };
        let count: i64 = tensor.dims.iter().product();
        let bytes = tensor.raw_data.as_ref().unwrap().len() as i64;
        assert_eq!(bytes, each * count, "{}", tensor.name);
    }
    (file, counts)
}

/// How many nodes of each operation the kept value depends on.
fn operations(graph: &Graph) -> BTreeMap<&'static str, usize> {
    let mut needed = HashSet::from([graph.kept()[0].1]);
    let mut counts = BTreeMap::new();
    for node in graph.nodes().iter().rev() {
        if node.outputs.iter().any(|output| needed.contains(output)) {
            needed.extend(&node.inputs);
            *counts.entry(node.op.name()).or_default() += 1;
        }
    }
    counts
}

#[test]
fn every_network_is_written_with_all_its_layers_and_weights() {
    for network in NETWORKS {
        let (size, labels) = match network.fixed {
            Some(fixed) => (fixed.size, fixed.labels),
            None => ([40, 48, 32], 4),
        };
        let own = untrained(network, preprocessing(labels, Some(size)), size);
        let exported = export::model(&own, None, true).unwrap();
        let [d, h, w] = size.map(Some);
        assert_eq!(exported.image, [Some(1), Some(1), d, h, w]);
        let (file, written) = checked(&exported);
        let graph = inference_graph(network, &own.info.preprocessing, size).unwrap();
        let ours = operations(&graph);
        let count = |name: &str| ours.get(name).copied().unwrap_or(0);
        let onnx = |name: &str| written.get(name).copied().unwrap_or(0);
        let name = network.name;
        let samples = count("obelisk_layer") + count("obelisk_sample");
        assert_eq!(onnx("Conv"), count("conv3d") + count("obelisk_layer"), "{name}");
        assert!(onnx("GridSample") == samples || onnx("GridSample") == 2 * samples);
        assert_eq!(
            onnx("BatchNormalization"),
            count("batch_norm_inference"),
            "{name}"
        );
        assert_eq!(onnx("Resize"), count("upsample"), "{name}");
        assert_eq!(onnx("AveragePool"), count("avg_pool3d"), "{name}");
        assert_eq!(onnx("Gemm"), count("linear"), "{name}");
        assert_eq!(onnx("ArgMax"), 1, "{name}");
        let stored: HashMap<&str, &proto::Tensor> = (file.graph.as_ref().unwrap().initializer.iter())
            .map(|tensor| (&*tensor.name, tensor))
            .collect();
        for (tensor, value) in &own.tensors {
            let bytes: Vec<u8> = value.data.iter().flat_map(|v| v.to_le_bytes()).collect();
            let Some(found) = stored.get(&**tensor) else {
                assert!(
                    name.starts_with("nnunet") && tensor.contains("seg_layers"),
                    "{tensor}"
                );
                continue; // for training alone
            };
            assert!(found.raw_data.as_ref() == Some(&bytes), "{name}: {tensor}");
            let shape: Vec<i64> = value.shape.iter().map(|n| *n as i64).collect();
            assert_eq!(found.dims, shape, "{name}: {tensor}");
        }
        let entry = |key: &str| &file.metadata_props.iter().find(|e| e.key == key).unwrap().value;
        let record: ModelInfo = serde_json::from_str(entry("record")).unwrap();
        assert_eq!(record, own.info);
        let labels: Vec<Label> = serde_json::from_str(entry("labels")).unwrap();
        assert_eq!(labels, own.info.preprocessing.labels);
        assert!(file.doc_string.contains("RAS") && file.doc_string.contains("standard deviation"));
        assert_eq!(
            export::model(&own, None, true).unwrap().bytes,
            exported.bytes,
            "the same bytes"
        );
    }
}

#[test]
fn networks_without_a_grid_take_any_size_or_their_only_one_or_say_so() {
    for network in NETWORKS {
        let (size, labels) = match network.fixed {
            Some(fixed) => (fixed.size, fixed.labels),
            None => ([40, 48, 32], 4),
        };
        let own = untrained(network, preprocessing(labels, None), size);
        let exported = export::model(&own, None, false);
        if network.name == "unet-global-fc" {
            assert!(
                matches!(exported, Err(ExportError::NoSize { .. })),
                "{exported:?}"
            );
        } else if network.fixed.is_some() {
            assert_eq!(exported.unwrap().image[2..], size.map(Some), "{}", network.name);
        } else {
            let exported = exported.unwrap_or_else(|e| panic!("{}: {e}", network.name));
            assert_eq!(exported.image, [Some(1), Some(1), None, None, None]);
            checked(&exported);
        }
        let exported = export::model(&own, Some(size), false).unwrap();
        assert_eq!(exported.image[2..], size.map(Some), "{}", network.name);
    }
}

/// A file to run, with what it should give.
struct Case {
    name: String,
    exported: Exported,
    image: Tensor,
    logits: Tensor,
}

fn case(
    name: &str,
    exported: Exported,
    graph: &Graph,
    tensors: &HashMap<String, Tensor>,
    image: Tensor,
) -> Case {
    let mut data = tensors.clone();
    data.insert("image".into(), image.clone());
    // With the adapter's own limits: logits of a whole scan may be more than WebGPU's.
    let logits = run_on(&devices()[1], graph, &data, &Default::default());
    Case {
        name: name.into(),
        exported,
        image,
        logits: logits["logits"].clone(),
    }
}

fn case_of(name: &str, model: &Model, size: Option<[usize; 3]>, image: Tensor) -> Case {
    let network = &model::find(&model.info.arch).unwrap();
    let [_, _, d, h, w] = image.ncdhw();
    let graph = inference_graph(network, &model.info.preprocessing, [d, h, w]).unwrap();
    let exported = export::model(model, size, true).unwrap();
    case(name, exported, &graph, &model.tensors, image)
}

/// The middle of a scan, z-scored, of that size.
fn image_of(scan: &volume::Volume, size: [usize; 3]) -> Tensor {
    let prepared = preprocessing(2, None).prepare_image(scan).unwrap();
    let shape = prepared.placement.shape();
    let origin = obelisk::preprocess::centre(shape, size);
    let mut image = obelisk::preprocess::crop_or_pad(&prepared.image, origin, size, 0.0);
    image.shape.insert(0, 1);
    image
}

/// Writes a safetensors file.
fn write(path: &Path, name: &str, tensor: &Tensor) {
    let view = safetensors::tensor::TensorView::new(
        safetensors::Dtype::F32,
        tensor.shape.clone(),
        bytemuck::cast_slice(&tensor.data),
    );
    std::fs::write(
        path,
        safetensors::serialize([(name, view.unwrap())], None).unwrap(),
    )
    .unwrap();
}

/// Runs the cases in onnxruntime; logits may differ by 1e-4 of the largest, labels nowhere but where the best two logits tie within
/// twice that. Prints both, by case.
fn compare(cases: Vec<Case>) {
    let folder = tempfile::tempdir().unwrap();
    let path = |case: &Case, end: &str| folder.path().join(format!("{}{end}", case.name));
    for case in &cases {
        std::fs::write(path(case, ".onnx"), &case.exported.bytes).unwrap();
        write(&path(case, ".image.safetensors"), "image", &case.image);
    }
    let script = repository("tests/reference/run_onnx.py");
    let output = Command::new("python3").arg(script).arg(folder.path()).output();
    done(&output.unwrap());
    for case in &cases {
        let outputs = read_tensors(&path(case, ".outputs.safetensors"));
        let (theirs, ours) = (&outputs["logits"], &case.logits);
        assert_eq!(theirs.shape, ours.shape, "{}", case.name);
        let [_, classes, d, h, w] = ours.ncdhw();
        let volume = d * h * w;
        let scale = ours.data.iter().fold(0.0f32, |most, v| most.max(v.abs()));
        let differences = ours.data.iter().zip(&theirs.data).map(|(a, b)| (a - b).abs());
        let worst = differences.fold(0.0, f32::max);
        let best = |logits: &Tensor, v: usize| {
            let at = |l: usize| logits.data[l * volume + v];
            (1..classes).fold(0, |best, l| if at(l) > at(best) { l } else { best })
        };
        let mut differ = 0;
        let mut used = HashSet::new();
        for v in 0..volume {
            let (a, b) = (best(ours, v), best(theirs, v));
            used.insert(a);
            if let Some(labels) = outputs.get("labels") {
                assert_eq!(labels.data[v] as usize, b, "{}", case.name);
            }
            if a != b {
                differ += 1;
                let apart = ours.data[a * volume + v] - ours.data[b * volume + v];
                assert!(apart <= 2e-4 * scale, "{}: labels {a} and {b}", case.name);
            }
        }
        println!(
            "{:40} {:>14} voxels {:2} labels, logits differ by {worst:.2e} of {scale:.2e} ({:.1e}), labels by {differ}",
            case.name,
            format!("{d}x{h}x{w}"),
            used.len(),
            worst / scale
        );
        assert!(worst <= 1e-4 * scale, "{}: {worst:e} of {scale:e}", case.name);
    }
}

/// nnU-Net's model in this folder, on a tile of a scan.
fn tile_of(name: &str, folder: &Path, scan: &volume::Volume) -> Case {
    let model = nnunet::Model::open(folder, &Default::default()).unwrap();
    let regions = matches!(model.plan.labels, nnunet::Labels::Regions(_));
    assert!(matches!(export::nnunet(&model, true), Err(ExportError::Regions)) == regions);
    let exported = export::nnunet(&model, !regions).unwrap();
    let channels = model.plan.channels.len();
    let one = image_of(scan, model.plan.patch);
    let mut image = one.clone();
    for channel in 1..channels {
        image
            .data
            .extend(one.data.iter().map(|v| v * (1.0 + channel as f32)));
    }
    image.shape[1] = channels;
    let graph = nnunet::graph(&model.plan).unwrap();
    let mut mean: Option<Case> = None;
    let count = model.folds.len() as f32;
    let mut exported = Some(exported);
    for tensors in &model.folds {
        let whole = exported
            .take()
            .unwrap_or_else(|| export::nnunet(&model, false).unwrap());
        let one = case(name, whole, &graph, tensors, image.clone());
        match &mut mean {
            None => mean = Some(one),
            Some(mean) => mean
                .logits
                .data
                .iter_mut()
                .zip(one.logits.data)
                .for_each(|(a, b)| *a += b),
        }
    }
    let mut mean = mean.unwrap();
    mean.logits.data.iter_mut().for_each(|v| *v /= count);
    mean
}

#[test]
fn onnxruntime_gives_the_same_logits_and_labels() {
    if !adapter() || !python() {
        return;
    }
    let scan = volume::read(&data().join("imagesTr/hippocampus_007.nii.gz")).unwrap();
    let mut cases = Vec::new();
    for network in NETWORKS.iter().filter(|network| network.fixed.is_none()) {
        let size = [32, 40, 32];
        let own = untrained(network, preprocessing(3, Some(size)), size);
        cases.push(case_of(network.name, &own, None, image_of(&scan, size)));
        // Graphs for any size, at sizes of which one makes a grid of one point.
        for (i, size) in [[29, 50, 35], [8, 21, 33]].into_iter().enumerate() {
            let size = [0, 1, 2].map(|a| usize::next_multiple_of(size[a], network.multiple[a]));
            if network.name != "unet-global-fc" {
                let own = untrained(network, preprocessing(3, None), size);
                let name = format!("{}-any-{i}", network.name);
                cases.push(case_of(&name, &own, None, image_of(&scan, size)));
            }
        }
    }
    for activation in ["elu", "gelu"] {
        let network = &model::find(&format!("meshnet:{activation}:5x1,6x2,3x4")).unwrap();
        let mut own = untrained(network, preprocessing(3, None), [32; 3]);
        own.info.arch = format!("meshnet:{activation}:5x1,6x2,3x4");
        cases.push(case_of(
            &format!("meshnet-{activation}"),
            &own,
            None,
            image_of(&scan, [20, 31, 24]),
        ));
    }
    let trained = Model::load(&repository("examples/weights/hippocampus.safetensors")).unwrap();
    let grid = trained.info.preprocessing.grid.unwrap();
    cases.push(case_of("hippocampus", &trained, None, image_of(&scan, grid)));
    for folder in ["anisotropic", "regions", "resenc"] {
        let model = reference(&format!("nnunet/{folder}/model"));
        cases.push(tile_of(&format!("imported-{folder}"), &model, &scan));
    }
    compare(cases);
}

/// A prepared scan, cropped or padded to the grid where there is one.
fn whole(model: &Model, scan: &volume::Volume) -> Tensor {
    let prepared = model.info.preprocessing.prepare_image(scan).unwrap();
    let shape = prepared.placement.shape();
    let grid = model.info.preprocessing.grid.unwrap_or(shape);
    let origin = obelisk::preprocess::centre(shape, grid);
    let mut image = obelisk::preprocess::crop_or_pad(&prepared.image, origin, grid, 0.0);
    image.shape.insert(0, 1);
    image
}

/// Weights of the authors where there are any, else as good as random.
#[test]
#[ignore = "minutes: every network at the size of a whole scan"]
fn onnxruntime_gives_the_same_of_every_network_on_whole_scans() {
    let (Some(ct), Some(published)) = (shared("data/ct"), shared("reference")) else {
        return;
    };
    if !adapter() || !python() {
        return;
    }
    let read = |name: &str| volume::read(&ct.join(name)).unwrap();
    for network in NETWORKS {
        let stored = published.join(format!("{}_fold1/weights.pth", network.name));
        let scan = match network.fixed.map(|fixed| fixed.size) {
            Some([312, 230, 320]) => read("ct_156x115x160.nii.gz"),
            Some([156, 115, 160]) => read("ct_156x115x160.nii.gz"),
            _ if network.name.ends_with("visceral") => read("ct_156x115x160.nii.gz"),
            _ => read("ct_144.nii.gz"),
        };
        let model = match stored.exists() {
            true => Model::open(&stored, None).unwrap(),
            false => {
                let labels = network.usual().1;
                let size = network.fixed.map_or(scan.geometry.shape, |fixed| fixed.size);
                let mut preprocessing = preprocessing(labels, network.fixed.is_none().then_some(size));
                preprocessing.orientation = None;
                untrained(network, preprocessing, size)
            }
        };
        let size = network.fixed.map_or(scan.geometry.shape, |fixed| fixed.size);
        let image = match model.info.preprocessing.grid.unwrap_or(size) == scan.geometry.shape {
            true => whole(&model, &scan),
            false => image_of(&scan, size),
        };
        compare(vec![case_of(network.name, &model, None, image)]);
    }
}

#[test]
#[ignore = "minutes: brainchop's networks at 256³"]
fn onnxruntime_gives_the_same_of_imported_models_on_whole_scans() {
    let (Some(data), Some(reference)) = (shared("data"), shared("reference")) else {
        return;
    };
    if !adapter() || !python() {
        return;
    }
    let scan = volume::read(&data.join("ct/ct_144.nii.gz")).unwrap();
    for name in ["nnunet_hippo", "nnunet_ct"] {
        compare(vec![tile_of(name, &reference.join(name).join("model"), &scan)]);
    }
    let brain = volume::read(&data.join("brain_scans/t1_crop.nii.gz")).unwrap();
    for entry in std::fs::read_dir(data.join("brainchop")).unwrap() {
        let folder = entry.unwrap().path();
        if let Ok(model) = Model::open(&folder, None) {
            let name = format!("brainchop-{}", folder.file_name().unwrap().display());
            compare(vec![case_of(&name, &model, None, whole(&model, &brain))]);
        }
    }
}

/// The program in docs/onnx.md gives `obelisk predict`'s labels: of a scan that one tile covers, of one that it does not, and by a
/// network that takes scans as they are.
#[test]
fn the_documented_program_gives_the_labels_of_predict() {
    if !adapter() || !python() {
        return;
    }
    let text = std::fs::read_to_string(repository("docs/onnx.md")).unwrap();
    let (_, program) = text.split_once("```python\n").unwrap();
    let (program, _) = program.split_once("```").unwrap();
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("segment.py"), program).unwrap();
    let hippocampus = repository("examples/weights/hippocampus.safetensors");
    // The same weights for a coarser spacing and a smaller grid, so that there are several tiles.
    let mut coarse = Model::load(&hippocampus).unwrap();
    coarse.info.preprocessing.spacing = Some([1.1, 0.95, 1.0]);
    coarse.info.preprocessing.grid = Some([32, 40, 32]);
    coarse
        .save(&folder.path().join("coarse.safetensors"), false)
        .unwrap();
    // Stored from the patient's other side, on an oblique grid.
    let scan = volume::read(&data().join("imagesTr/hippocampus_026.nii.gz")).unwrap();
    let [x, y, z] = scan.geometry.shape;
    let mut stored = scan.data.clone();
    for (to, from) in stored
        .chunks_exact_mut(y * z)
        .zip(scan.data.chunks_exact(y * z).rev())
    {
        to.copy_from_slice(from);
    }
    let last = DVec3::new((x - 1) as f64, 0.0, 0.0);
    let flip = DMat4::from_scale(DVec3::new(-1.0, 1.0, 1.0));
    let turned = DMat4::from_rotation_z(0.1) * scan.geometry.affine * DMat4::from_translation(last) * flip;
    let turned = SpatialHeader::from_affine(turned).geometry([x, y, z]).unwrap();
    assert_ne!(turned.orientation, coarse.info.preprocessing.orientation.unwrap());
    let scan = folder.path().join("scan.nii.gz");
    volume::write_image(&scan, &stored, &turned, false).unwrap();
    for model in [hippocampus.to_str().unwrap(), "coarse.safetensors"] {
        let run = |arguments: &[&str]| done(&obelisk_in(folder.path(), arguments));
        run(&["export", model, "--onnx", "net.onnx", "--force"]);
        let scan = scan.to_str().unwrap();
        run(&[
            "predict",
            "--model",
            model,
            "--input",
            scan,
            "--output",
            "ours.nii.gz",
            "--force",
        ]);
        let output = offline(|| {
            Command::new("python3")
                .args(["segment.py", "net.onnx", scan, "theirs.nii.gz"])
                .current_dir(folder.path())
                .output()
        });
        done(&output.unwrap());
        let [ours, theirs] =
            ["ours.nii.gz", "theirs.nii.gz"].map(|name| volume::read(&folder.path().join(name)).unwrap());
        assert_eq!(ours.geometry.difference(&theirs.geometry, 1e-3), None);
        let labels: HashSet<i32> = ours.labels().unwrap().into_iter().collect();
        assert!(labels.len() > 1, "{labels:?}");
        let differ = ours.data.iter().zip(&theirs.data).filter(|(a, b)| a != b).count();
        assert_eq!(
            differ,
            0,
            "{model}: {differ} of {} voxels differ",
            ours.data.len()
        );
    }
}

#[test]
fn the_program_exports_and_keeps_what_exists() {
    let folder = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| obelisk_in(folder.path(), &[&["export"], arguments].concat());
    let trained = repository("examples/weights/hippocampus.safetensors");
    let trained = trained.to_str().unwrap();
    let told = done(&run(&[trained, "--onnx", "net.onnx"]));
    assert!(
        told.contains("net.onnx: image [1, 1, ") && told.contains("to logits of 3 labels"),
        "{told}"
    );
    let first = std::fs::read(folder.path().join("net.onnx")).unwrap();
    refused(&run(&[trained, "--onnx", "net.onnx"]), 1, "--force replaces it");
    refused(&run(&[trained, "--onnx", "net.bin"]), 2, "must end in .onnx");
    assert_eq!(std::fs::read(folder.path().join("net.onnx")).unwrap(), first);
    let told = done(&run(&[
        trained, "--onnx", "net.onnx", "--labels", "--size", "32,32,40", "--json", "--force",
    ]));
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    assert_eq!(told["image"], serde_json::json!([1, 1, 32, 32, 40]));
    assert_eq!(told["outputs"], serde_json::json!(["logits", "labels"]));

    let visceral = repository("examples/weights/obelisk_visceral.safetensors");
    let told = done(&run(&[visceral.to_str().unwrap(), "--onnx", "any.onnx"]));
    assert!(told.contains("[1, 1, any, any, any]"), "{told}");
    let regions = reference("nnunet/regions/model");
    let regions = regions.to_str().unwrap();
    refused(
        &run(&[regions, "--onnx", "r.onnx", "--labels"]),
        1,
        "leave out --labels",
    );
    refused(
        &run(&[regions, "--onnx", "r.onnx", "--size", "8,8,8"]),
        2,
        "--size is not for nnU-Net",
    );
    assert!(!folder.path().join("r.onnx").exists());
    done(&run(&[regions, "--onnx", "r.onnx", "--folds", "1"]));
}

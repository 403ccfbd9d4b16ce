//! Several networks and mirrored scans: their mean, what they say of how sure they are, and the clean-up of labels.

use std::collections::HashMap;

use crate::common::*;
use crate::program::{adapter, data, done, obelisk, refused};
use obelisk::model;
use obelisk::predict::Predictor;
use obelisk::predict::ensemble::Ensemble;
use obelisk::preprocess::Preprocessing;
use obelisk::volume::{self, Reorientation, Volume};
use obelisk::weights::Model;

fn weights() -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/weights/hippocampus.safetensors")
}

fn scan(id: u32) -> std::path::PathBuf {
    data().join(format!("imagesTs/hippocampus_{id:03}.nii.gz"))
}

fn text(path: &std::path::Path) -> &str {
    path.to_str().unwrap()
}

/// The voxels read backwards along some axes, the header as it was.
fn mirrored(scan: &Volume, axes: &[usize]) -> Volume {
    let turn = Reorientation::mirror(axes);
    Volume {
        data: turn.apply(&scan.data, 1, scan.geometry.shape),
        ..scan.clone()
    }
}

#[test]
fn a_mirrored_scan_gets_mirrored_labels_where_all_mirrorings_count() {
    let Some(device) = devices().first() else { return };
    let model = Model::open(&weights(), None).unwrap();
    // The whole scan at once: a grid may lie half a voxel off its middle, mirrored on the other side.
    let whole = Preprocessing {
        grid: None,
        ..model.info.preprocessing.clone()
    };
    let preprocessing = &whole;
    let member = (
        model::find(&model.info.arch).unwrap(),
        preprocessing,
        &model.tensors,
    );
    let scan = volume::read(&scan(41)).unwrap();
    pollster::block_on(async {
        let mut ensemble = Ensemble::new(device, &[member], &[0, 1, 2]).await.unwrap();
        assert_eq!(ensemble.passes(), 8);
        let agreed = ensemble.agree(device, &scan).await.unwrap();
        let of_mirrored = ensemble.agree(device, &mirrored(&scan, &[0, 2])).await.unwrap();
        let turn = Reorientation::mirror(&[0, 2]);
        for label in 0..3 {
            let back = turn.apply(&of_mirrored.probability(label), 1, scan.geometry.shape);
            let own = agreed.probability(label);
            let worst = own.iter().zip(&back).map(|(a, b)| (a - b).abs());
            assert!(worst.fold(0.0, f32::max) < 1e-5, "{label}");
        }
        let confidence = agreed.confidence();
        assert!(confidence.disagreement > 0.0 && confidence.entropy > confidence.disagreement);
        // The hippocampus' front and back have labels of their own, which mirrored scans confuse.
        assert!(confidence.quality < 0.5, "{confidence:?}");

        // One pass is the network's own labels.
        let mut alone = Ensemble::new(device, &[member], &[]).await.unwrap();
        let agreed = alone.agree(device, &scan).await.unwrap();
        let quality = agreed.confidence().quality;
        assert!((0.8..1.0).contains(&quality), "{quality}");
        let labels = agreed.labels(preprocessing);
        let mut predictor = Predictor::with_weights(device, &member.0, preprocessing, &model.tensors)
            .await
            .unwrap();
        assert!(labels == predictor.labels(device, &scan).await.unwrap());
    });
}

#[test]
fn members_are_averaged() {
    let Some(device) = devices().first() else { return };
    let model = Model::open(&weights(), None).unwrap();
    // Another network of the same shape: some weights scaled.
    let other: HashMap<_, _> = model
        .tensors
        .iter()
        .map(|(name, tensor)| {
            let mut tensor = tensor.clone();
            if name == "conv77U.weight" {
                tensor.data.iter_mut().for_each(|v| *v *= 0.25);
            }
            (name.clone(), tensor)
        })
        .collect();
    let preprocessing = &model.info.preprocessing;
    let network = model::find(&model.info.arch).unwrap();
    let scan = volume::read(&scan(41)).unwrap();
    pollster::block_on(async {
        let mut probabilities = Vec::new();
        for members in [vec![&model.tensors], vec![&other], vec![&model.tensors, &other]] {
            let members: Vec<_> = members.into_iter().map(|t| (network, preprocessing, t)).collect();
            let mut ensemble = Ensemble::new(device, &members, &[]).await.unwrap();
            probabilities.push(ensemble.agree(device, &scan).await.unwrap().probabilities);
        }
        let mut apart = 0f32;
        for i in 0..probabilities[0].data.len() {
            let [a, b, both] = [0, 1, 2].map(|of| probabilities[of].data[i]);
            assert!((both - (a + b) / 2.0).abs() < 1e-6);
            apart = apart.max((a - b).abs());
        }
        assert!(apart > 0.1, "the members differ");
    });
}

#[test]
fn the_program_writes_probabilities_uncertainty_and_a_table_of_quality() {
    if !adapter() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let weights = weights();
    let scans = path("scans");
    std::fs::create_dir(&scans).unwrap();
    let [good, empty] = [scans.join("b_scan.nii.gz"), scans.join("a_noise.nii.gz")];
    std::fs::copy(scan(41), &good).unwrap();
    // A scan without anything in it is what a person should look at first.
    let like = volume::read(&good).unwrap();
    let noise: Vec<f32> = (0..like.data.len()).map(|i| (i * 7919 % 101) as f32).collect();
    volume::write_image(&empty, &noise, &like.geometry, false).unwrap();
    let model = format!("{0},{0}", text(&weights));
    let output = obelisk(&[
        "predict",
        "--model",
        &model,
        "--mirroring=x",
        "--input",
        text(&scans),
        "--output",
        text(&path("labels")),
        "--probabilities",
        text(&path("probabilities")),
        "--uncertainty",
        text(&path("uncertainty")),
        "--quality",
        text(&path("quality.csv")),
    ]);
    done(&output);
    let labels = volume::read(&path("labels/b_scan.nii.gz")).unwrap();
    let probabilities = volume::read(&path("probabilities/b_scan.nii.gz")).unwrap();
    assert_eq!(labels.geometry.difference(&probabilities.geometry, 1e-6), None);
    let voxels = labels.data.len();
    assert_eq!(probabilities.data.len(), 3 * voxels);
    for voxel in 0..voxels {
        let p = [0, 1, 2].map(|label| probabilities.data[label * voxels + voxel]);
        assert!((p.iter().sum::<f32>() - 1.0).abs() < 2.0 / 255.0, "{p:?}");
        let best = p.iter().fold(0.0, |a: f32, b| a.max(*b));
        assert!(best - p[labels.data[voxel] as usize] < 1.5 / 255.0);
    }
    let unsure = volume::read(&path("uncertainty/b_scan.nii.gz")).unwrap();
    assert!(unsure.data.iter().all(|u| (0.0..=1.0).contains(u)));
    assert!(unsure.data.iter().any(|u| *u > 0.5) && unsure.data.iter().any(|u| *u < 0.01));
    let table = std::fs::read_to_string(path("quality.csv")).unwrap();
    let lines: Vec<&str> = table.lines().collect();
    assert!(lines[0].starts_with("scan,quality,entropy,disagreement,expected_dice_"));
    assert!(
        lines[1].contains("a_noise") && lines[2].contains("b_scan"),
        "{table}"
    );

    // The same labels twice, and the same as the library's.
    let again = obelisk(&[
        "predict",
        "--model",
        &model,
        "--mirroring=x",
        "--input",
        text(&good),
        "--output",
        text(&path("again.nii.gz")),
    ]);
    done(&again);
    assert!(volume::read(&path("again.nii.gz")).unwrap().data == labels.data);
}

#[test]
fn what_can_not_be_an_ensemble_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("labels.nii.gz");
    let (weights, scan) = (weights(), scan(41));
    let other = weights.with_file_name("obelisk_visceral.safetensors");
    let predict = |more: &[&str]| {
        let fixed = ["predict", "--input", text(&scan), "--output", text(&out)];
        obelisk(&[&fixed, more].concat())
    };
    let both = format!("{},{}", text(&weights), text(&other));
    refused(&predict(&["--model", &both]), 2, "their labels differ");
    let model = ["--model", text(&weights)];
    let with = |more: &[&str]| predict(&[&model[..], more].concat());
    refused(&with(&["--mirroring=x,w"]), 2, "some of x,y,z");
    refused(
        &with(&["--mirroring", "--logits", "l.safetensors"]),
        2,
        "--logits",
    );
    refused(&with(&["--largest-component", "liver"]), 2, "no label `liver`");
    refused(&with(&["--probabilities", "p.txt"]), 2, "must end in .nii");
    refused(&with(&["--probabilities", text(&scan)]), 2, "never written to");
    refused(&with(&["--min-volume", "0"]), 2, "above 0");
    refused(
        &predict(&["--model", &format!("{},nowhere", text(&weights))]),
        1,
        "nowhere",
    );
    let nnunet = reference("nnunet/resenc");
    refused(
        &predict(&["--model", text(&nnunet), "--quality", "q.csv"]),
        2,
        "a model of nnU-Net's",
    );
    assert!(!out.exists());
}

#[test]
fn small_parts_of_labels_are_removed() {
    if !adapter() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let (weights, scan) = (weights(), scan(41));
    let predict = |name: &str, more: &[&str]| {
        let output = path(name);
        let fixed = [
            "predict",
            "--model",
            text(&weights),
            "--input",
            text(&scan),
            "--output",
            text(&output),
        ];
        done(&obelisk(&[&fixed[..], more].concat()));
        volume::read(&output).unwrap()
    };
    let all = predict("all.nii.gz", &[]);
    let count = |of: &Volume, label: f32| of.data.iter().filter(|v| **v == label).count();
    let millilitres = (count(&all, 1.0) + 1) as f64 * all.geometry.spacing.iter().product::<f64>() / 1000.0;
    let none = predict("none.nii.gz", &["--min-volume", &millilitres.to_string()]);
    assert_eq!(count(&none, 1.0), 0);
    let largest = predict("largest.nii.gz", &["--largest-component", "all"]);
    for label in [1.0, 2.0] {
        assert!(count(&largest, label) > 0 && count(&largest, label) <= count(&all, label));
        let mut once: Vec<i32> = largest.labels().unwrap();
        let keep = obelisk::components::Keep::Largest;
        let removed = obelisk::components::clean(&mut once, largest.geometry.shape, label as i32, keep);
        assert_eq!(removed, 0);
    }
}

#[test]
fn scans_to_label_next_are_unlike_each_other_and_what_has_labels() {
    if !adapter() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    for name in ["scans", "labelled"] {
        std::fs::create_dir(path(name)).unwrap();
    }
    for (name, id) in [
        ("scans/a", 41),
        ("scans/b", 105),
        ("scans/twin_of_a", 41),
        ("labelled/b", 105),
    ] {
        std::fs::copy(scan(id), path(&format!("{name}.nii.gz"))).unwrap();
    }
    let weights = weights();
    let next = |more: &[&str]| {
        let scans = path("scans");
        let arguments = ["next", "--model", text(&weights), "--input", text(&scans)];
        obelisk(&[&arguments[..], more].concat())
    };
    let named = |output: &str| -> Vec<(String, Option<f64>)> {
        let lines = output.lines().map(|line| {
            let value: serde_json::Value = serde_json::from_str(line).unwrap();
            let file = value["scan"][0].as_str().unwrap();
            let name = file.rsplit('/').next().unwrap().strip_suffix(".nii.gz").unwrap();
            let dice = value["expected_dice"].as_f64().unwrap();
            assert!((0.8..1.0).contains(&dice), "{line}");
            (name.to_owned(), value["distance"].as_f64())
        });
        lines.collect()
    };
    let all = named(&done(&next(&["--json"])));
    let names: Vec<&str> = all.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(all.len(), 3);
    assert_eq!(all[0].1, None);
    assert!(names[..2].contains(&"b"), "one of the twins waits: {names:?}");
    assert!(all[1].1.unwrap() > 0.5 && all[2].1.unwrap() < 1e-6, "{all:?}");

    let labelled = path("labelled");
    let told = done(&next(&["--labelled", text(&labelled), "--count", "1"]));
    assert!(told.starts_with("  1. ") && told.contains("/a.nii.gz"), "{told}");
    assert_eq!(told.lines().count(), 1);

    // One bad scan does not keep the others from their places.
    std::fs::write(path("scans/c.nii.gz"), "no scan").unwrap();
    let output = next(&["--json", "--count", "1"]);
    refused(&output, 1, "c.nii.gz");
    assert_eq!(named(std::str::from_utf8(&output.stdout).unwrap()).len(), 1);
    refused(&next(&["--count", "0"]), 2, "--count");
    refused(&next(&["--labelled", "nowhere"]), 2, "nowhere is no folder");
    let nnunet = reference("nnunet/resenc/model");
    let output = obelisk(&["next", "--model", text(&nnunet), "--input", text(&labelled)]);
    refused(&output, 2, "gives labels only");
}

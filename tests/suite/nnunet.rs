//! nnU-Net's models give nnU-Net's labels and probabilities.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use crate::common::*;
use obelisk::nnunet::{Choice, Labels, Model, Segmenter, is_model};
use obelisk::volume;

/// What nnU-Net's sums in half precision leave of a probability.
const TOLERANCE: f32 = 5e-3;
/// In the corners of a scan of many tiles the last bit of such a sum decides: docs/nnunet.md.
const CORNERS: (f32, usize) = (6e-3, 50_000);

/// The box of what is not zero in any channel, axes transposed as the model's: its first voxel and its size.
fn body(scans: &[volume::Volume], transpose: [usize; 3]) -> ([usize; 3], [usize; 3]) {
    let [_, y, z] = scans[0].geometry.shape;
    let (mut first, mut end) = ([usize::MAX; 3], [0; 3]);
    for scan in scans {
        for i in (0..scan.data.len()).filter(|i| scan.data[*i] != 0.0) {
            let voxel = [i % z, i / z % y, i / z / y];
            for axis in 0..3 {
                let at = voxel[transpose[axis]];
                first[axis] = first[axis].min(at);
                end[axis] = end[axis].max(at + 1);
            }
        }
    }
    (first, [0, 1, 2].map(|axis| end[axis] - first[axis]))
}

/// Labels equal nnU-Net's where its best two probabilities are further apart than that, and probabilities within it: of all voxels,
/// or where the file has only every fourth along each axis, of those.
fn check(folder: &Path, mirroring: bool, cases: &[&str]) {
    let name = folder.file_name().unwrap().display();
    let Some(device) = devices().get(1) else { return };
    let model = Arc::new(Model::open(&folder.join("model"), &Choice::default()).unwrap());
    let expected = folder.join(match mirroring {
        true => "expected_mirrored",
        false => "expected",
    });
    let mut segmenter = pollster::block_on(Segmenter::new(device, model.clone(), mirroring)).unwrap();
    for case in cases {
        let channel =
            |c: usize| volume::read(&folder.join(format!("imagesTs/{case}_{c:04}.nii.gz"))).unwrap();
        let scans: Vec<_> = (0..model.plan.channels.len()).map(channel).collect();
        let scan = &scans[0];
        let mut watch = |_: f64| ControlFlow::Continue(());
        let logits = pollster::block_on(segmenter.logits(device, scans.clone(), &mut watch)).unwrap();
        let labels = segmenter.labels_of(&logits).unwrap();
        // The same without ever having all logits, and where there are many tiles in so few bytes that there are columns.
        let (corner, size) = body(&scans, model.plan.transpose);
        let one_tile = (0..3).all(|axis| size[axis] <= model.plan.patch[axis]);
        let plane = size[1] * size[2] * logits.outputs() * model.names.len();
        let most = (!one_tile).then_some((plane * model.plan.patch[0]) as u64);
        let own = segmenter.labels_within(device, scans.clone(), most, &mut watch);
        let own = pollster::block_on(own).unwrap();
        let differ = own.iter().zip(&labels).filter(|(a, b)| a != b).count();
        assert!(differ <= labels.len() / 100_000, "{name} {case}: {differ} differ");
        let theirs = volume::read(&expected.join(format!("{case}.nii.gz"))).unwrap();
        let theirs = theirs.labels().unwrap();

        let ties = expected.join("near_tie.nii.gz");
        let (array, step) = match ties.exists() {
            true => ("probabilities_stride4", 4),
            false => ("probabilities", 1),
        };
        let (shape, probabilities) = npz(&expected.join(format!("{case}.npz")), array);
        let [classes, nz, ny, nx] = shape[..] else {
            panic!("{shape:?}")
        };
        let [_, y, z] = scan.geometry.shape;
        // The network's axes are nnU-Net's (z, y, x), transposed.
        let transpose = model.plan.transpose;
        let own: Vec<Vec<f32>> = (0..classes)
            .map(|c| segmenter.output(&logits, c).unwrap())
            .collect();
        let mut is_tie = match ties.exists() {
            true => volume::read(&ties)
                .unwrap()
                .data
                .iter()
                .map(|v| *v > 0.0)
                .collect(),
            false => vec![false; labels.len()],
        };
        let are_regions = matches!(model.plan.labels, Labels::Regions(_));
        let mut worst = 0.0f32;
        for at in 0..nz * ny * nx {
            let voxel = [at / (ny * nx) * step, at / nx % ny * step, at % nx * step];
            let placed = transpose.map(|axis| voxel[axis]);
            // Outside of what is not zero there are no logits.
            let inside = |a: usize| (corner[a]..corner[a] + size[a]).contains(&placed[a]);
            if !(0..3).all(inside) {
                continue;
            }
            let at_axis = |a: usize| placed[a] - corner[a];
            let i = (at_axis(0) * size[1] + at_axis(1)) * size[2] + at_axis(2);
            let most = own.iter().map(|logits| logits[i]).fold(f32::MIN, f32::max);
            let total: f32 = own.iter().map(|logits| (logits[i] - most).exp()).sum();
            let mut best = [0.0f32; 2];
            let mut apart = f32::MAX;
            for (c, logits) in own.iter().enumerate() {
                let theirs = probabilities[c * nz * ny * nx + at];
                let ours = match are_regions {
                    true => 1.0 / (1.0 + (-logits[i]).exp()),
                    false => (logits[i] - most).exp() / total,
                };
                worst = worst.max((theirs - ours).abs());
                best = match theirs > best[0] {
                    true => [theirs, best[0]],
                    false => [best[0], best[1].max(theirs)],
                };
                apart = apart.min((theirs - 0.5).abs());
            }
            let apart = if are_regions { apart } else { best[0] - best[1] };
            if step == 1 && apart < TOLERANCE {
                // Volumes have x first.
                is_tie[(voxel[2] * y + voxel[1]) * z + voxel[0]] = true;
            }
        }
        let differ = (0..labels.len()).filter(|i| labels[*i] != theirs[*i]);
        let [ties, clear] = differ.fold([0, 0], |[ties, clear], i| match is_tie[i] {
            true => [ties + 1, clear],
            false => [ties, clear + 1],
        });
        let values: std::collections::BTreeSet<i32> = theirs.iter().copied().collect();
        assert!(values.len() > 1, "{name} {case} has labels");
        println!(
            "{name} {case}, mirroring {mirroring}: {clear} of {} labels differ and {ties} near ties; probabilities by {worst:.1e}",
            labels.len()
        );
        let (most, clear_most) = match one_tile {
            true => (TOLERANCE, 0),
            false => (CORNERS.0, labels.len() / CORNERS.1),
        };
        assert!(clear <= clear_most, "{name} {case}: {clear}");
        assert!(worst <= most, "{name} {case}: {worst}");
    }
}

#[test]
fn hippocampi_of_two_folds_have_nnunets_labels() {
    let Some(folder) = shared("reference/nnunet_hippo") else {
        return;
    };
    let cases = ["hippocampus_381", "hippocampus_383", "hippocampus_385"];
    check(&folder, false, &cases);
    check(&folder, true, &cases[..1]);
}

#[test]
fn a_ct_of_many_tiles_has_nnunets_labels() {
    let Some(folder) = shared("reference/nnunet_ct") else {
        return;
    };
    check(&folder, false, &["ct"]);
}

#[test]
fn residual_encoders_channels_thick_slices_and_regions_have_nnunets_labels() {
    for name in ["resenc", "anisotropic", "regions"] {
        for mirroring in [false, true] {
            let folder = reference(&format!("nnunet/{name}"));
            check(&folder, mirroring, &["hippocampus_102"]);
        }
    }
}

#[test]
fn a_model_is_the_same_from_its_folder_its_checkpoints_and_a_file_of_this_program() {
    let Some(folder) = shared("reference/nnunet_hippo/model") else {
        return;
    };
    assert!(is_model(&folder));
    let whole = Model::open(&folder, &Choice::default()).unwrap();
    assert_eq!(whole.names, ["0", "1"]);
    let file = tempfile::tempdir().unwrap();
    let file = file.path().join("model.safetensors");
    whole.save(&file, false).unwrap();
    assert!(is_model(&file));
    let again = Model::open(&file, &Choice::default()).unwrap();
    assert_eq!((&again.plan, &again.names), (&whole.plan, &whole.names));
    assert!(again.folds == whole.folds);

    let checkpoint = |fold: usize| {
        let run = "Dataset001_Hippo/nnUNetTrainer__nnUNetPlans__3d_fullres";
        folder.join(run).join(format!("fold_{fold}/checkpoint_final.pth"))
    };
    for fold in 0..2 {
        assert!(is_model(&checkpoint(fold)));
        let alone = Model::open(&checkpoint(fold), &Choice::default()).unwrap();
        assert_eq!(
            (&alone.plan, &alone.names),
            (&whole.plan, &vec![fold.to_string()])
        );
        assert!(alone.folds[0] == whole.folds[fold]);
    }
    let choice = |configuration: Option<&str>, folds: &[&str]| Choice {
        configuration: configuration.map(String::from),
        folds: folds.iter().map(|fold| fold.to_string()).collect(),
    };
    let one = Model::open(&folder, &choice(Some("3d_fullres"), &["1"])).unwrap();
    assert!(one.folds == whole.folds[1..]);
    for (choice, part) in [
        (choice(Some("2d"), &[]), "there are 3d_fullres"),
        (choice(None, &["7"]), "has no fold `7`; there are 0, 1"),
    ] {
        let error = Model::open(&folder, &choice).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
    let truncated = std::fs::read(checkpoint(0)).unwrap();
    std::fs::write(&file, &truncated[..truncated.len() / 2]).unwrap();
    assert!(Model::open(&file, &Choice::default()).is_err());
}

/// As many classes as TotalSegmentator's, on a scan whose logits would take 37 GB in half precision.
#[cfg(all(feature = "cli", target_os = "linux"))]
#[test]
#[ignore = "takes most of an hour on a processor"]
fn a_hundred_classes_on_a_large_ct_take_less_than_two_gigabytes() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let patch = [64; 3];
    let layer = |kernel: [usize; 3]| serde_json::json!([kernel, kernel]);
    let resampling = |order: u8| serde_json::json!({"order": order, "order_z": 0, "separate_z": null});
    let labels: Vec<_> = (0..118)
        .map(|value| serde_json::json!({"value": value, "name": format!("label {value}")}))
        .collect();
    let plan = serde_json::json!({
        "configuration": "3d_fullres", "dataset": "synthetic", "reorient": false, "transpose": [0, 1, 2],
        "spacing": [1.5, 1.5, 1.5], "patch": patch, "mirroring": [],
        "channels": [{"name": "CT", "normalisation": {"ct":
            {"lower": -1000.0, "upper": 1000.0, "mean": 0.0, "deviation": 300.0}}}],
        "data_resampling": resampling(3), "logits_resampling": resampling(1),
        "network": {"class": "plain", "features": [4, 8], "kernels": layer([3; 3]),
            "strides": [[1, 1, 1], [2, 2, 2]], "encoder": [1, 1], "decoder": [1], "bias": true, "slope": 0.01},
        "labels": {"exclusive": labels},
    });
    let plan: obelisk::nnunet::Plan = serde_json::from_value(plan).unwrap();
    let graph = obelisk::nnunet::graph(&plan).unwrap();
    let model = Model {
        folds: vec![obelisk::weights::initialise(&graph, 1)],
        names: vec!["0".into()],
        plan,
    };
    model.save(&folder.join("model.safetensors"), false).unwrap();
    let size = match std::env::var("OBELISK_CT") {
        Ok(size) => obelisk::values::grid(&size).unwrap(),
        Err(_) => [512, 512, 600],
    };
    let affine = glam::DMat4::from_scale(glam::DVec3::splat(1.5));
    let geometry = volume::SpatialHeader::from_affine(affine).geometry(size).unwrap();
    let voxel = |i: usize| (i % 97) as i32 * 20 - (i / 7919 % 89) as i32 * 11;
    let voxels: Vec<i32> = (0..size.iter().product()).map(voxel).collect();
    volume::write_labels(&folder.join("ct.nii.gz"), &voxels, &geometry, false).unwrap();
    drop(voxels);
    let mut program = crate::program::command();
    program
        .current_dir(folder)
        .args(["predict", "--model", "model.safetensors", "--input", "ct.nii.gz"]);
    program.args(["--output", "labels.nii.gz", "--memory", "1500", "-v"]);
    let start = std::time::Instant::now();
    let mut child = program.spawn().unwrap();
    let mut most = 0;
    while child.try_wait().unwrap().is_none() {
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let peak = peak.and_then(|text| text.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        most = most.max(peak.unwrap_or(0));
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
    assert!(child.wait().unwrap().success());
    println!(
        "{size:?} voxels: {} MB at most, {:.0} s",
        most / 1000,
        start.elapsed().as_secs_f64()
    );
    assert!(most < 2_000_000, "{most} kB");
    let labels = volume::read(&folder.join("labels.nii.gz")).unwrap();
    assert_eq!(labels.geometry.shape, size);
}

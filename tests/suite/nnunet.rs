//! nnU-Net's models give nnU-Net's labels and probabilities.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use crate::common::*;
use crate::program;
use obelisk::nnunet::{Choice, Labels, Model, Segmenter, is_model};
use obelisk::volume;
use serde_json::json;

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

/// The cube of so many voxels in the middle of a scan.
fn middle(scan: &volume::Volume, side: usize) -> volume::Volume {
    let [x, y, z] = scan.geometry.shape;
    let [first_x, first_y, first_z] = [x, y, z].map(|voxels| (voxels - side) / 2);
    let rows = (0..side * side).map(|row| ((first_x + row / side) * y + first_y + row % side) * z + first_z);
    let header = volume::SpatialHeader::from_affine(scan.geometry.affine);
    volume::Volume {
        data: rows
            .flat_map(|row| &scan.data[row..row + side])
            .copied()
            .collect(),
        geometry: header.geometry([side; 3]).unwrap(),
        ..scan.clone()
    }
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
        // The same without ever having all logits; where there are many tiles, on eight of them and in so few bytes that there are
        // columns.
        let (corner, size) = body(&scans, model.plan.transpose);
        let patch = model.plan.patch;
        let one_tile = (0..3).all(|axis| size[axis] <= patch[axis]);
        let (part, most) = match one_tile {
            true => (scans.clone(), None),
            false => {
                let part: Vec<_> = scans.iter().map(|scan| middle(scan, patch[0] * 3 / 2)).collect();
                let (_, size) = body(&part, model.plan.transpose);
                assert!((0..3).all(|axis| size[axis] > patch[axis]), "{size:?}");
                let plane = size[1] * size[2] * logits.outputs() * model.names.len();
                (part, Some((plane * patch[0]) as u64))
            }
        };
        let own = segmenter.labels_within(device, part.clone(), most, &mut watch);
        let own = pollster::block_on(own).unwrap();
        let at_once = match one_tile {
            true => labels.clone(),
            false => {
                let logits = pollster::block_on(segmenter.logits(device, part, &mut watch));
                segmenter.labels_of(&logits.unwrap()).unwrap()
            }
        };
        assert_eq!(own.len(), at_once.len());
        let differ = own.iter().zip(&at_once).filter(|(a, b)| a != b).count();
        assert!(differ <= own.len() / 100_000, "{name} {case}: {differ} differ");
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

/// A zip archive of entries: name, stored bytes, the length and checksum that they claim unpacked, whether deflated.
fn archive(entries: &[(&str, &[u8], u32, u32, bool)]) -> Vec<u8> {
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for (name, bytes, length, checksum, deflated) in entries {
        let mut both = vec![20, 0, 0, 0, if *deflated { 8 } else { 0 }, 0, 0, 0, 0, 0];
        both.extend(checksum.to_le_bytes());
        both.extend((bytes.len() as u32).to_le_bytes());
        both.extend(length.to_le_bytes());
        both.extend((name.len() as u16).to_le_bytes());
        both.extend([0, 0]);
        directory.extend(b"PK\x01\x02\x14\x00");
        directory.extend(&both);
        directory.extend([0; 10]);
        directory.extend((out.len() as u32).to_le_bytes());
        directory.extend(name.as_bytes());
        out.extend(b"PK\x03\x04");
        out.extend(&both);
        out.extend(name.as_bytes());
        out.extend(*bytes);
    }
    let start = out.len() as u32;
    out.extend(&directory);
    out.extend(b"PK\x05\x06\x00\x00\x00\x00");
    out.extend([(entries.len() as u16).to_le_bytes(); 2].concat());
    out.extend((directory.len() as u32).to_le_bytes());
    out.extend(start.to_le_bytes());
    out.extend([0, 0]);
    out
}

/// The files of the residual encoder's model by their paths.
fn resenc() -> BTreeMap<String, Vec<u8>> {
    let root = reference("nnunet/resenc/model/Dataset011_resenc");
    let run = "nnUNetTrainer__nnUNetResEncUNetMPlans__3d_fullres";
    ["plans.json", "dataset.json", "fold_all/checkpoint_final.pth"]
        .map(|file| {
            (
                format!("{run}/{file}"),
                std::fs::read(root.join(run).join(file)).unwrap(),
            )
        })
        .into()
}

fn refused(model: Result<Model, obelisk::weights::WeightsError>, part: &str) {
    let error = model.expect_err(part).to_string();
    assert!(
        error.contains(part) && !error.contains('\n') && error.len() < 600,
        "{error}"
    );
}

#[test]
fn archives_that_are_damaged_or_hostile_are_refused_in_a_line() {
    let files = resenc();
    let whole: Vec<_> = files
        .iter()
        .map(|(name, bytes)| {
            (
                name.as_str(),
                &bytes[..],
                bytes.len() as u32,
                crc32fast::hash(bytes),
                false,
            )
        })
        .collect();
    let open = |bytes: &[u8]| Model::from_bytes(bytes, Path::new("model.zip"), &Choice::default());
    assert!(open(&archive(&whole)).is_ok());
    for share in [2, 3, 10, 100] {
        refused(
            open(&archive(&whole)[..archive(&whole).len() * (share - 1) / share]),
            "truncated or damaged",
        );
    }
    // 64 MB of zeros that claim to be a thousand, and a thousand that claim to be four billion.
    let mut zeros = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::best());
    std::io::Write::write_all(&mut zeros, &vec![0; 64 << 20]).unwrap();
    let zeros = zeros.finish().unwrap();
    let (plans, checkpoint) = (whole[2].0, whole[1].0);
    assert!(plans.ends_with("plans.json") && checkpoint.ends_with(".pth"));
    for (name, length, part) in [
        (plans, 1000, "damaged"),
        (plans, u32::MAX - 1, "bytes; 16777216 at most are read"),
        (checkpoint, 1000, "damaged"),
    ] {
        let mut entries = whole.clone();
        let at = entries.iter().position(|entry| entry.0 == name).unwrap();
        entries[at] = (name, &zeros, length, 0, true);
        refused(open(&archive(&entries)), part);
    }
    for name in [
        "../plans.json",
        "a/../../plans.json",
        "/plans.json",
        "..\\plans.json",
    ] {
        let mut entries = whole.clone();
        entries.push((name, b"{}", 2, crc32fast::hash(b"{}"), false));
        refused(open(&archive(&entries)), "would lie outside of the archive");
    }
    let twice = [&whole[..], &whole[..1]].concat();
    refused(open(&archive(&twice)), "twice");
    let mut changed = whole.clone();
    changed[1].3 ^= 1;
    refused(open(&archive(&changed)), "checksum");
}

#[test]
fn checkpoints_that_would_call_something_are_refused_by_its_name() {
    let mut count = 0;
    for file in std::fs::read_dir(reference("pth/hostile")).unwrap() {
        let path = file.unwrap().path();
        let mut files = resenc();
        let checkpoint = files.keys().find(|name| name.ends_with(".pth")).unwrap().clone();
        files.insert(checkpoint, std::fs::read(&path).unwrap());
        let model = Model::from_files(&files, Path::new("model"), &Choice::default());
        refused(model, "checkpoint_final.pth");
        count += 1;
    }
    assert!(count > 3);
}

#[test]
fn plans_with_absurd_or_other_numbers_are_refused_in_a_line() {
    let own = "/configurations/3d_fullres";
    let arguments = format!("{own}/architecture/arch_kwargs");
    for (at, to, part) in [
        (format!("{own}/patch_size"), json!([1u64 << 40, 40, 40]), "patch"),
        (
            format!("{own}/patch_size"),
            json!([41, 56, 40]),
            "can't be divided",
        ),
        (
            format!("{own}/patch_size"),
            json!([56, 40]),
            "networks of slices (2d)",
        ),
        (format!("{own}/spacing"), json!([1e-9, 1.0, 1.0]), "spacing"),
        (format!("{own}/previous_stage"), json!("3d_lowres"), "cascade"),
        (
            format!("{own}/preprocessor_name"),
            json!("Mine"),
            "preprocessor `Mine`",
        ),
        (format!("{own}/normalization_schemes"), json!(["Mine"]), "Mine"),
        (format!("{own}/resampling_fn_data"), json!("mine"), "mine"),
        (
            format!("{own}/inherits_from"),
            json!("3d_fullres"),
            "inherits from itself",
        ),
        (
            format!("{own}/architecture/network_class_name"),
            json!("a.Mine"),
            "its network is a `Mine`",
        ),
        (
            format!("{arguments}/features_per_stage"),
            json!([9, 12, 16, 24]),
            "the plan's network has",
        ),
        (
            format!("{arguments}/features_per_stage"),
            json!([8, 1u64 << 50, 16, 24]),
            "channels",
        ),
        (
            format!("{arguments}/n_blocks_per_stage"),
            json!([1, 2, 2, 1u64 << 40]),
            "convolutions",
        ),
        (
            format!("{arguments}/kernel_sizes"),
            json!([[3, 3, 3], [3, 3, 3], [3, 3, 3], [4, 3, 3]]),
            "odd ones",
        ),
        (
            format!("{arguments}/strides"),
            json!([[1, 1, 1], [2, 2, 2], [2, 2, 2], [1u64 << 40, 2, 2]]),
            "strides",
        ),
        (
            format!("{arguments}/nonlin"),
            json!("torch.nn.Mish"),
            "its activation is `Mish`",
        ),
        ("/transpose_forward".into(), json!([0, 0, 2]), "transpose_forward"),
        ("/image_reader_writer".into(), json!("Mine"), "reader `Mine`"),
        (
            "/configurations".into(),
            json!([]),
            "`configurations` is no object",
        ),
    ] {
        let mut files = resenc();
        let name = files
            .keys()
            .find(|name| name.ends_with("plans.json"))
            .unwrap()
            .clone();
        let mut plans: serde_json::Value = serde_json::from_slice(&files[&name]).unwrap();
        let (parent, key) = at.rsplit_once('/').unwrap();
        let parent = plans.pointer_mut(parent).unwrap_or_else(|| panic!("{at}"));
        parent.as_object_mut().unwrap().insert(key.into(), to);
        files.insert(name, plans.to_string().into_bytes());
        refused(
            Model::from_files(&files, Path::new("model"), &Choice::default()),
            part,
        );
    }
    let mut files = resenc();
    let name = files
        .keys()
        .find(|name| name.ends_with("dataset.json"))
        .unwrap()
        .clone();
    let labels: serde_json::Map<String, _> = (0..100_000).map(|i| (i.to_string(), json!(i))).collect();
    files.insert(
        name,
        json!({"channel_names": {"0": "MRI"}, "labels": labels})
            .to_string()
            .into_bytes(),
    );
    refused(
        Model::from_files(&files, Path::new("model"), &Choice::default()),
        "labels",
    );
}

#[cfg(feature = "cli")]
#[test]
fn a_model_is_imported_into_one_file_and_nothing_is_left_of_one_that_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let run = |arguments: &[&str]| crate::program::obelisk_in(folder, arguments);
    let model = reference("nnunet/regions/model");
    let model = model.to_str().unwrap();
    let imported = run(&["import", model, "--output", "both.safetensors"]);
    let told = crate::program::done(&imported);
    assert!(
        told.contains("folds 0, 1") && told.contains("whole, posterior"),
        "{told}"
    );
    let one = run(&[
        "import",
        model,
        "--output",
        "one.safetensors",
        "--folds",
        "1",
        "--json",
    ]);
    assert!(crate::program::done(&one).contains(r#""folds":["1"]"#));
    let both = Model::load(&folder.join("both.safetensors")).unwrap();
    let one = Model::load(&folder.join("one.safetensors")).unwrap();
    assert_eq!((both.names.len(), one.names.len()), (2, 1));
    assert!(one.folds[0] == both.folds[1]);
    for (arguments, code) in [
        (&["--folds", "7"][..], 1),
        (&["--configuration", "2d"], 1),
        (&["--arch", "unet"], 2),
        (&["--intensity", "minmax"], 2),
    ] {
        let refused = run(&[&["import", model, "--output", "none.safetensors"], arguments].concat());
        assert_eq!(refused.status.code(), Some(code), "{refused:?}");
        assert!(!folder.join("none.safetensors").exists());
    }
}

#[test]
fn plans_name_the_network_to_train() {
    let planned = |model: &str| {
        let path = reference("nnunet").join(model);
        let found = walk(&path).into_iter().find(|file| file.ends_with("plans.json"));
        obelisk::nnunet::planned_architecture(&found.unwrap(), "3d_fullres").unwrap()
    };
    for model in ["resenc", "anisotropic", "regions"] {
        let architecture = planned(model);
        let name = architecture.to_string();
        assert_eq!(
            obelisk::model::Architecture::parse(&name).unwrap(),
            architecture,
            "{name}"
        );
        assert!(obelisk::model::find(&name).is_ok());
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("plans.json");
    for (text, part) in [
        ("{", "EOF"),
        ("{}", "configurations"),
        (
            r#"{"configurations": {"2d": {}}}"#,
            "no configuration `3d_fullres`; there are 2d",
        ),
    ] {
        std::fs::write(&file, text).unwrap();
        let train = ["train", "data", "--out", "run", "--arch", file.to_str().unwrap()];
        program::refused(&program::obelisk(&train), 1, part);
    }
}

fn walk(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    entries
        .flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] })
        .collect()
}

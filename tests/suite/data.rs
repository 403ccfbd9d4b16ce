//! From dataset folders to network input and back to label maps on the scans' grids.

use std::fs;
use std::path::Path;

use glam::{DMat3, DMat4, DVec3};
use obelisk::dataset::{Dataset, Folds, find_scans, read_channels, scans};
use obelisk::preprocess::{Intensity, Overrides, Preprocessing, TileMerger, crop_or_pad, tiles};
use obelisk::tensor::Tensor;
use obelisk::volume::{self, Geometry, Orientation, SpatialHeader, Volume};
use serde_json::json;

use crate::common::shared;

/// A grid of RAS `shape` and `spacing`, in world millimetres around `origin`.
fn ras(shape: [usize; 3], spacing: [f64; 3], origin: [f64; 3]) -> Geometry {
    let matrix = DMat3::from_diagonal(DVec3::from_array(spacing));
    let affine = DMat4::from_mat3_translation(matrix, DVec3::from_array(origin));
    SpatialHeader::from_affine(affine).geometry(shape).unwrap()
}

/// The same voxels stored in another orientation.
fn twin(geometry: &Geometry, values: &[i32], code: &str) -> (Geometry, Vec<i32>) {
    let turn = geometry.orientation.to(code.parse().unwrap());
    let turned = turn.apply(values, 1, geometry.shape);
    let shape = turn.permute(geometry.shape);
    // the index of each new corner in the old grid, from a map of indices turned in the same way
    let indices: Vec<usize> = (0..geometry.voxels()).collect();
    let indices = turn.apply(&indices, 1, geometry.shape);
    let old = |new: [usize; 3]| {
        let index = indices[(new[0] * shape[1] + new[1]) * shape[2] + new[2]];
        let [_, y, z] = geometry.shape;
        DVec3::new(
            (index / (y * z)) as f64,
            (index / z % y) as f64,
            (index % z) as f64,
        )
    };
    let world = |new: [usize; 3]| geometry.affine.transform_point3(old(new));
    let origin = world([0, 0, 0]);
    let matrix = DMat3::from_cols(
        world([1, 0, 0]) - origin,
        world([0, 1, 0]) - origin,
        world([0, 0, 1]) - origin,
    );
    let affine = DMat4::from_mat3_translation(matrix, origin);
    (
        SpatialHeader::from_affine(affine).geometry(shape).unwrap(),
        turned,
    )
}

fn save(path: &Path, values: &[i32], geometry: &Geometry) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    volume::write_labels(path, values, geometry, false).unwrap();
}

/// A blurred ball of intensity (0 to 1000) and its label map, with the given values for the two half balls.
fn ball(geometry: &Geometry, values: [i32; 2]) -> (Vec<i32>, Vec<i32>) {
    let [x, y, z] = geometry.shape;
    let mut scan = Vec::new();
    let mut labels = Vec::new();
    for voxel in 0..geometry.voxels() {
        let index = [voxel / (y * z), voxel / z % y, voxel % z];
        let r = index.iter().zip([x, y, z]).map(|(i, n)| {
            let from_centre = (*i as f64 + 0.5) / n as f64 - 0.47;
            from_centre * from_centre
        });
        let r = r.sum::<f64>().sqrt();
        scan.push((1000.0 / (1.0 + ((r - 0.3) * 20.0).exp())) as i32 + (voxel % 7) as i32);
        labels.push(if r > 0.3 {
            0
        } else {
            values[usize::from(index[0] > x / 2)]
        });
    }
    (scan, labels)
}

fn write_json(path: &Path, value: serde_json::Value) {
    fs::write(path, value.to_string()).unwrap();
}

/// Six cases of a Decathlon dataset whose label values have a gap; two are stored as LPI.
fn decathlon(folder: &Path) {
    let mut training = Vec::new();
    for (index, id) in ["f", "b", "d", "a", "e", "c"].iter().enumerate() {
        let geometry = ras([20 + index, 24, 18], [1.0, 1.0, 2.0], [5.0, -3.0, 10.0]);
        let (scan, labels) = ball(&geometry, [2, 7]);
        let code = if index % 3 == 2 { "LPI" } else { "RAS" };
        let (g, s) = twin(&geometry, &scan, code);
        save(&folder.join(format!("imagesTr/{id}.nii.gz")), &s, &g);
        let (g, l) = twin(&geometry, &labels, code);
        save(&folder.join(format!("labelsTr/{id}.nii.gz")), &l, &g);
        training.push(
            json!({"image": format!("./imagesTr/{id}.nii.gz"), "label": format!("./labelsTr/{id}.nii.gz")}),
        );
    }
    let description = json!({
        "name": "balls", "modality": {"0": "CT"}, "training": training,
        "labels": {"0": "background", "7": "right", "2": "left"},
    });
    write_json(&folder.join("dataset.json"), description);
}

#[test]
fn a_decathlon_dataset_opens_with_its_gaps_in_order() {
    let folder = tempfile::tempdir().unwrap();
    decathlon(folder.path());
    let dataset = Dataset::open(folder.path()).unwrap();
    dataset.check().unwrap();
    let ids: Vec<&str> = dataset.cases.iter().map(|c| c.id.as_str()).collect();
    assert_eq!(ids, ["a", "b", "c", "d", "e", "f"]);
    let labels: Vec<(i32, &str)> = dataset
        .labels
        .iter()
        .map(|l| (l.value, l.name.as_str()))
        .collect();
    assert_eq!(labels, [(0, "background"), (2, "left"), (7, "right")]);
    assert_eq!(
        (dataset.channels.clone(), dataset.ignore),
        (vec!["CT".to_string()], None)
    );
    let fold = dataset.fold(None, 0).unwrap();
    assert_eq!((fold.train.len(), fold.validation.len()), (4, 2));
    assert!(
        dataset
            .fold(None, 5)
            .unwrap_err()
            .to_string()
            .contains("no fold 5")
    );
    let listed = dataset.folds(Some(Folds::Splits));
    assert!(listed.unwrap_err().to_string().contains("splits_final.json"));
    let left_out = dataset.folds(Some(Folds::LeaveOneOut)).unwrap();
    assert_eq!(left_out.len(), 6);
    assert_eq!(
        (left_out[4].train.len(), &left_out[4].validation[..]),
        (5, &[4][..])
    );
    assert_eq!(
        dataset.folds(Some(Folds::Count(3))).unwrap()[2].validation.len(),
        2
    );
    let many = dataset.folds(Some(Folds::Count(7)));
    assert!(
        many.unwrap_err()
            .to_string()
            .contains("6 cases are too few for 7 folds")
    );
    for few in [0, 1] {
        let message = dataset.folds(Some(Folds::Count(few))).unwrap_err().to_string();
        assert!(message.contains("take 2 or more"), "{message}");
    }

    write_json(
        &folder.path().join("splits_final.json"),
        json!([{"train": ["c", "a"], "val": ["b"]}, {"train": ["b"], "val": []}]),
    );
    let dataset = Dataset::open(folder.path()).unwrap();
    let fold = dataset.fold(None, 0).unwrap();
    assert_eq!((fold.train, fold.validation), (vec![0, 2], vec![1]));
    assert_eq!(dataset.folds(None).unwrap().len(), 2);
    assert_eq!(dataset.folds(Some(Folds::Splits)).unwrap().len(), 2);
    assert_eq!(
        dataset.folds(Some(Folds::Count(4))).unwrap().len(),
        4,
        "asked for, not the file's"
    );
    assert!(
        dataset
            .fold(None, 2)
            .unwrap_err()
            .to_string()
            .contains("folds 0 to 1, no fold 2")
    );
    for (wrong, reason) in [
        (
            json!([{"train": ["x"], "val": []}]),
            "the case x of fold 0 is not in the dataset",
        ),
        (json!([{"train": ["a", "b"], "val": ["b"]}]), "both"),
        (json!([{"train": [], "val": ["b"]}]), "no case to train on"),
        (json!({"train": []}), "not a list"),
        (json!([]), "lists no fold"),
        (json!(5), "not a list"),
        (json!([{"train": ["a"]}]), "missing field `val`"),
        (
            json!([{"train": ["a", "a"], "val": []}]),
            "fold 0 lists the case a twice",
        ),
    ] {
        write_json(&folder.path().join("splits_final.json"), wrong);
        let message = Dataset::open(folder.path()).unwrap_err().to_string();
        assert!(
            message.contains(reason) && message.contains("splits_final.json"),
            "{message}"
        );
    }
}

#[test]
fn settings_are_derived_from_the_scans_and_yield_to_the_user() {
    let folder = tempfile::tempdir().unwrap();
    decathlon(folder.path());
    let dataset = Dataset::open(folder.path()).unwrap();
    let derived = Preprocessing::derive(&dataset, Overrides::default()).unwrap();
    assert_eq!(derived.orientation, Some(Orientation::RAS));
    assert_eq!(derived.spacing, Some([1.0, 1.0, 2.0]));
    // 95th percentile of 20..=25 is 24.75, of 24 is 24, of 18 is 18
    assert_eq!(derived.grid, Some([32, 24, 24]));
    assert_eq!(derived.channels[0].intensity, Intensity::CT);
    let text = derived.to_string();
    for part in [
        "RAS",
        "1 × 1 × 2 mm",
        "32 × 24 × 24",
        "CT: intensity / 1024 + 1",
        "7 right",
    ] {
        assert!(text.contains(part), "{text}");
    }
    // both of the formats that it is stored in
    let stored = serde_json::to_string(&derived).unwrap();
    assert_eq!(serde_json::from_str::<Preprocessing>(&stored).unwrap(), derived);
    assert_eq!(
        toml::from_str::<Preprocessing>(&toml::to_string(&derived).unwrap()).unwrap(),
        derived
    );

    let overrides = Overrides {
        orientation: Some("ASR".parse().unwrap()),
        spacing: Some([2.0, 1.0, 0.5]),
        grid: Some([9, 10, 11]),
        ..Overrides::default()
    };
    let chosen = Preprocessing::derive(&dataset, overrides).unwrap();
    assert_eq!(
        (chosen.orientation, chosen.spacing, chosen.grid),
        (overrides.orientation, overrides.spacing, overrides.grid)
    );
    let spacing_only = Overrides {
        spacing: Some([2.0, 2.0, 2.0]),
        ..Overrides::default()
    };
    assert_eq!(
        Preprocessing::derive(&dataset, spacing_only).unwrap().grid,
        Some([16, 16, 24])
    );
    let stored = Overrides {
        stored_spacing: true,
        ..Overrides::default()
    };
    let stored = Preprocessing::derive(&dataset, stored).unwrap();
    assert_eq!(stored.spacing, None);
    for case in &dataset.cases {
        let scan = dataset.image(case).unwrap();
        let placement = stored.prepare_image(&scan).unwrap().placement;
        let turn = scan.geometry.orientation.to(stored.orientation.unwrap());
        assert_eq!(placement.shape(), turn.permute(scan.geometry.shape));
    }
    let wrong = Overrides {
        spacing: Some([1.0, 0.0, 1.0]),
        ..Overrides::default()
    };
    assert!(
        Preprocessing::derive(&dataset, wrong)
            .unwrap_err()
            .to_string()
            .contains("not positive")
    );
}

#[test]
fn an_nnunet_dataset_opens_with_its_channels_and_ignore_label() {
    let folder = tempfile::tempdir().unwrap();
    let geometry = ras([8, 9, 10], [1.0; 3], [0.0; 3]);
    let voxels = geometry.voxels() as i32;
    for id in ["x_2", "x_1"] {
        for channel in 0..2 {
            let values: Vec<i32> = (0..voxels).map(|v| v + 1000 * channel).collect();
            save(
                &folder.path().join(format!("imagesTr/{id}_{channel:04}.nii.gz")),
                &values,
                &geometry,
            );
        }
        let labels: Vec<i32> = (0..voxels).map(|v| v % 3).collect();
        save(
            &folder.path().join(format!("labelsTr/{id}.nii.gz")),
            &labels,
            &geometry,
        );
    }
    let description = |labels: serde_json::Value| json!({"channel_names": {"0": "T1", "1": "T2"}, "labels": labels, "numTraining": 2, "file_ending": ".nii.gz"});
    let path = folder.path().join("dataset.json");
    write_json(
        &path,
        description(json!({"background": 0, "tumour": 1, "ignore": 2})),
    );
    let dataset = Dataset::open(folder.path()).unwrap();
    dataset.check().unwrap();
    assert_eq!(
        dataset.cases.iter().map(|c| &c.id).collect::<Vec<_>>(),
        ["x_1", "x_2"]
    );
    assert_eq!((dataset.labels.len(), dataset.ignore), (2, Some(2)));
    let image = dataset.image(&dataset.cases[0]).unwrap();
    assert_eq!(
        (image.channels, image.data[5], image.data[720 + 5]),
        (2, 5.0, 1005.0)
    );
    let settings = Preprocessing::derive(&dataset, Overrides::default()).unwrap();
    let labels = settings
        .prepare_labels(&dataset.label(&dataset.cases[0], &image.geometry).unwrap())
        .unwrap();
    assert_eq!(labels.shape, [1, 8, 9, 10]);
    assert_eq!(labels.data[..4], [0.0, 1.0, -1.0, 0.0]);
    let prepared = settings.prepare_image(&image).unwrap().image;
    assert_eq!(prepared.shape, [2, 8, 9, 10]);
    // z-scores do not see the second channel's offset
    assert_eq!(prepared.data[..720], prepared.data[720..]);
    assert!(dataset.fold(None, 0).unwrap_err().to_string().contains("too few"));

    let grouped = scans(&folder.path().join("imagesTr"), 2).unwrap();
    assert_eq!(grouped.keys().collect::<Vec<_>>(), ["x_1", "x_2"]);
    assert_eq!(read_channels(&grouped["x_2"]).unwrap().channels, 2);
    assert_eq!(
        scans(&folder.path().join("imagesTr"), 1).unwrap().len(),
        4,
        "single files, not channels"
    );
    assert_eq!(
        scans(&folder.path().join("labelsTr"), 1)
            .unwrap()
            .keys()
            .collect::<Vec<_>>(),
        ["x_1", "x_2"]
    );

    for (labels, reason) in [
        (json!({"background": 0, "whole": [1, 2]}), "region"),
        (json!({"background": 0}), "at least one"),
        (json!({"a": 1, "b": 2}), "label 0"),
        (json!({"background": 0, "a": 1, "b": 1}), "one value"),
        (json!({"background": 0, "a": 1.5}), "whole number"),
        (json!({"background": 0, "a": -1}), "label 0"),
        (json!({"background": 0, "a": "b"}), "whole number"),
    ] {
        write_json(&path, description(labels));
        let message = Dataset::open(folder.path()).unwrap_err().to_string();
        assert!(
            message.contains(reason) && message.contains("dataset.json"),
            "{message}"
        );
    }
    write_json(&path, description(json!({"background": 0, "a": 1})));
    fs::remove_file(folder.path().join("imagesTr/x_2_0001.nii.gz")).unwrap();
    let message = Dataset::open(folder.path()).unwrap_err().to_string();
    assert!(
        message.contains("x_2_0001.nii.gz") && message.contains("of the case x_2 is missing"),
        "{message}"
    );
}

#[test]
fn faults_of_a_dataset_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let message = |folder: &Path| Dataset::open(folder).unwrap_err().to_string();
    assert!(message(folder.path()).contains("no dataset.json"));
    let path = folder.path().join("dataset.json");
    for (text, reason) in [
        ("{", "not JSON"),
        ("{}", "of no known layout: "),
        ("{}", "the Medical Segmentation Decathlon's"),
        ("{}", "label maps to make images of"),
        (
            r#"{"modality": {"0": "MR"}, "labels": {"0": "b", "1": "a"}, "synthesis": {"made": {"x": [1]}, "learned": {"c": [1]}}}"#,
            "`synthesis`: `learned` has c",
        ),
        ("[]", "not a dataset's description"),
        (r#"{"training": []}"#, "neither `modality`"),
        (r#"{"training": {}}"#, "not a dataset's description"),
        (
            r#"{"training": [], "training": []}"#,
            "duplicate field `training`",
        ),
        (r#"{"training": [], "modality": ["CT"]}"#, "expected an object"),
        (
            r#"{"training": [], "modality": {"1": "CT"}}"#,
            r#"named "0" to "0""#,
        ),
        (r#"{"training": [], "modality": {"0": 5}}"#, r#"named "0" to "0""#),
        (
            r#"{"training": [], "modality": {"0": "CT", "0": "MR"}}"#,
            "`0` is there twice",
        ),
        (r#"{"training": [], "modality": {}}"#, "no channel"),
        (r#"{"training": [], "modality": {"0": "CT"}}"#, "no `labels`"),
        (
            r#"{"training": [], "modality": {"0": "CT"}, "labels": {"0": "b", "1": "a", "1": "c"}}"#,
            "`1` is there twice",
        ),
        (
            r#"{"training": [], "modality": {"0": "CT"}, "labels": {"0": "b", "1": "a", " 1": "c"}}"#,
            "have one value, 1",
        ),
        (
            r#"{"training": [], "modality": {"0": "CT"}, "labels": {"0": "b", "1": "a", "2": "a"}}"#,
            "the values 1 and 2 have one name, a",
        ),
        (
            r#"{"training": [], "modality": {"0": "CT"}, "labels": {"0": "b", "16777216": "a"}}"#,
            "below 2^24",
        ),
        (
            r#"{"training": [], "modality": {"0": "CT"}, "labels": {"0": "b", "a": 1e30}}"#,
            "below 2^24",
        ),
        (
            r#"{"modality": {"0": "CT"}, "labels": {"0": "b", "1": "a"}}"#,
            "nnU-Net v2's (dataset.json with a `file_ending`)",
        ),
        (
            r#"{"modality": {"0": "CT"}, "labels": {"0": "b", "1": "a"}, "training": []}"#,
            "no training cases",
        ),
        (
            r#"{"modality": {"0": "CT"}, "labels": {"0": "b", "1": "a"}, "training": ["x"]}"#,
            "training entry",
        ),
        (
            r#"{"modality": {"0": "CT"}, "labels": {"0": "b", "1": "a"}, "file_ending": ".mha"}"#,
            ".mha",
        ),
    ] {
        fs::write(&path, text).unwrap();
        assert!(
            message(folder.path()).contains(reason),
            "{text}: {}",
            message(folder.path())
        );
    }

    let fresh = tempfile::tempdir().unwrap();
    decathlon(fresh.path());
    let label = fresh.path().join("labelsTr/c.nii.gz");
    let check = || {
        Dataset::open(fresh.path())
            .unwrap()
            .check()
            .unwrap_err()
            .to_string()
    };
    let geometry = ras([20, 20, 20], [1.0; 3], [0.0; 3]);
    volume::write_labels(&label, &vec![0; 8000], &geometry, true).unwrap();
    assert!(
        check().contains("c.nii.gz") && check().contains("[20, 20, 20]"),
        "{}",
        check()
    );

    let dataset = Dataset::open(fresh.path()).unwrap();
    let settings = Preprocessing::derive(&dataset, Overrides::default()).unwrap();
    volume::write_labels(&label, &[vec![0; 7999], vec![5]].concat(), &geometry, true).unwrap();
    let message = settings
        .prepare_labels(&volume::read(&label).unwrap())
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("label 5") && message.contains("7 right") && message.contains("c.nii.gz"),
        "{message}"
    );

    let scan = volume::read(Path::new("tests/reference/nifti/channels.nii.gz")).unwrap();
    assert!(
        settings
            .prepare_image(&scan)
            .unwrap_err()
            .to_string()
            .contains("2 channels")
    );
    let unsized_scan = volume::read(Path::new("tests/reference/nifti/neither_no_size.nii")).unwrap();
    let message = settings.prepare_image(&unsized_scan).unwrap_err().to_string();
    assert!(message.contains("does not declare the size"), "{message}");
    let as_stored = Preprocessing {
        orientation: None,
        spacing: None,
        grid: None,
        ..settings.clone()
    };
    assert_eq!(
        as_stored.prepare_image(&unsized_scan).unwrap().image.shape,
        [1, 5, 4, 3]
    );
    let tiny = Preprocessing {
        spacing: Some([1e-4; 3]),
        ..settings
    };
    let scan = volume::read(Path::new("tests/reference/nifti/int16.nii")).unwrap();
    assert!(
        tiny.prepare_image(&scan)
            .unwrap_err()
            .to_string()
            .contains("2147483647 voxels")
    );
    // a scan that vanishes between the network's voxels is in another unit than it says
    let coarse = Preprocessing {
        spacing: Some([1e3; 3]),
        ..tiny
    };
    let message = coarse.prepare_image(&scan).unwrap_err().to_string();
    assert!(
        message.contains("half a voxel") && message.contains("int16.nii"),
        "{message}"
    );
}

/// A label map whose header places it elsewhere than its scan is refused before anything is computed, however little the
/// voxels differ; rounding is not.
#[test]
fn a_label_map_on_another_grid_than_its_scan_is_refused_with_both_grids() {
    let folder = tempfile::tempdir().unwrap();
    decathlon(folder.path());
    let dataset = Dataset::open(folder.path()).unwrap();
    let case = &dataset.cases[0]; // a, stored as it is made
    let scan = dataset.image(case).unwrap();
    let own = volume::read(&case.label).unwrap();
    let affine = scan.geometry.affine;
    let shifted = |by: DVec3| DMat4::from_translation(by) * affine;
    let spaced = |by: f64| affine * DMat4::from_scale(DVec3::new(by, 1.0, 1.0));
    let turned = affine * DMat4::from_rotation_z(0.02);
    let flipped = affine * DMat4::from_scale(DVec3::new(1.0, -1.0, 1.0));
    for (what, affine, fits) in [
        ("itself", affine, true),
        ("rounding", shifted(DVec3::splat(1e-4)), true),
        ("a tenth of a voxel less", shifted(DVec3::X * 0.09), true),
        ("half a voxel", shifted(DVec3::X * 0.5), false),
        ("another origin", shifted(DVec3::new(0.0, 0.0, 40.0)), false),
        ("another spacing", spaced(1.5), false),
        ("a spacing that adds up", spaced(1.01), false),
        ("a small turn", turned, false),
        ("a flip", flipped, false),
    ] {
        let geometry = SpatialHeader::from_affine(affine)
            .geometry(own.geometry.shape)
            .unwrap();
        volume::write_labels(&case.label, &own.labels().unwrap(), &geometry, true).unwrap();
        let read = dataset.label(case, &scan.geometry);
        let checked = dataset.check();
        if fits {
            checked.unwrap();
            let map = read.unwrap();
            assert_eq!(map.geometry, scan.geometry, "{what}: the scan's grid counts");
            assert_eq!(map.data, own.data, "{what}");
            continue;
        }
        for message in [checked.unwrap_err().to_string(), read.unwrap_err().to_string()] {
            for part in ["labelsTr/a.nii.gz", "imagesTr/a.nii.gz", "against", "mm"] {
                assert!(message.contains(part), "{what}: `{part}` is not in {message}");
            }
        }
    }
    // and of another shape
    let geometry = SpatialHeader::from_affine(affine).geometry([10, 10, 10]).unwrap();
    volume::write_labels(&case.label, &[0; 1000], &geometry, true).unwrap();
    let message = dataset.label(case, &scan.geometry).unwrap_err().to_string();
    assert!(message.contains("[10, 10, 10]"), "{message}");
}

#[test]
fn a_scan_that_lacks_a_channel_is_named_and_the_others_are_found() {
    let folder = tempfile::tempdir().unwrap();
    let geometry = ras([3, 4, 5], [1.0; 3], [0.0; 3]);
    let put = |name: &str| save(&folder.path().join(name), &[0; 60], &geometry);
    for name in [
        "a_0000", "a_0001", "b_0000", "c_0001", "d_0000", "d_0001", "d_0002",
    ] {
        put(&format!("{name}.nii.gz"));
    }
    let found = find_scans(folder.path(), 2).unwrap();
    assert_eq!(found.scans.keys().collect::<Vec<_>>(), ["a"]);
    assert_eq!(found.scans["a"].len(), 2);
    let messages: Vec<String> = found.incomplete.iter().map(ToString::to_string).collect();
    assert_eq!(messages.len(), 3, "{messages:?}");
    for (message, id, part) in [
        (&messages[0], "/b: ", "the file b_0001 is missing"),
        (&messages[1], "/c: ", "the file c_0000 is missing"),
        (&messages[2], "/d: ", "the file d_0002 is one too many"),
    ] {
        assert!(message.contains(id) && message.contains(part), "{message}");
    }
    assert!(
        scans(folder.path(), 2)
            .unwrap_err()
            .to_string()
            .contains("b_0001")
    );

    // files that hold both channels are scans of their own, whatever number ends their names
    let folder = tempfile::tempdir().unwrap();
    let whole = fs::read("tests/reference/nifti/channels.nii.gz").unwrap();
    for name in [
        "x_0000.nii.gz",
        "z_0001.nii.gz",
        "IXI_0012.nii.gz",
        "plain.nii.gz",
    ] {
        fs::write(folder.path().join(name), &whole).unwrap();
    }
    let found = find_scans(folder.path(), 2).unwrap();
    assert!(found.incomplete.is_empty());
    assert_eq!(
        found.scans.keys().collect::<Vec<_>>(),
        ["IXI_0012", "plain", "x_0000", "z_0001"]
    );
    // one of the same id as another's channels
    let folder = tempfile::tempdir().unwrap();
    let put = |name: &str| save(&folder.path().join(name), &[0; 60], &geometry);
    ["a.nii", "a_0000.nii", "a_0001.nii"].into_iter().for_each(put);
    let message = find_scans(folder.path(), 2).unwrap_err().to_string();
    assert!(message.contains("same name"), "{message}");
}

#[test]
fn scans_of_any_name_are_found_and_none_is_left_out_in_silence() {
    let folder = tempfile::tempdir().unwrap();
    let geometry = ras([3, 4, 5], [1.0; 3], [0.0; 3]);
    let put = |name: &std::ffi::OsStr| save(&folder.path().join(name), &[7; 60], &geometry);
    for name in ["UP.NII.GZ", "Mixed.Nii", "größe.nii.gz", "a b.nii"] {
        put(name.as_ref());
    }
    fs::write(folder.path().join("notes.txt"), "").unwrap();
    fs::write(folder.path().join("._a b.nii"), "").unwrap();
    fs::create_dir(folder.path().join("folder.nii")).unwrap();
    #[cfg_attr(not(unix), allow(unused_mut))]
    let mut want = vec!["Mixed", "UP", "a b", "größe"];
    #[cfg(unix)]
    {
        use std::os::unix::ffi::OsStrExt;
        put(std::ffi::OsStr::from_bytes(b"r\xe9sum\xe9.nii.gz"));
        want.insert(3, "r\u{fffd}sum\u{fffd}");
        want.sort_unstable();
    }
    let found = scans(folder.path(), 1).unwrap();
    assert_eq!(found.keys().collect::<Vec<_>>(), want);
    for files in found.values() {
        assert_eq!(read_channels(files).unwrap().data, [7.0; 60], "{files:?}");
    }
    assert_eq!(
        fs::read(folder.path().join("UP.NII.GZ")).unwrap()[..2],
        [0x1f, 0x8b],
        "written compressed"
    );
    put("up2.nii".as_ref());
    put("up2.NII.GZ".as_ref());
    let message = scans(folder.path(), 1).unwrap_err().to_string();
    assert!(message.contains("same name"), "{message}");
    #[cfg(unix)]
    {
        let broken = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("nowhere", broken.path().join("a.nii")).unwrap();
        let found = scans(broken.path(), 1).unwrap();
        assert!(read_channels(&found["a"]).is_err());
    }
}

#[test]
fn settings_that_make_no_sense_are_refused_where_they_are_read() {
    let good = settings([1.0; 3]);
    let stored = serde_json::to_value(&good).unwrap();
    assert_eq!(
        serde_json::from_value::<Preprocessing>(stored.clone()).unwrap(),
        good
    );
    for (key, value, reason) in [
        ("spacing", json!([1.0, -1.0, 1.0]), "positive"),
        ("spacing", json!([0.0, 1.0, 1.0]), "positive"),
        ("spacing", json!([1e-9, 1.0, 1.0]), "positive"),
        ("grid", json!([16, 0, 16]), "positive"),
        ("grid", json!([1u64 << 40, 1u64 << 40, 1u64 << 40]), "2147483647"),
        ("grid", json!([1291, 1291, 1291]), "2147483647"),
        ("channels", json!([]), "no channel"),
        (
            "channels",
            json!([{"name": "CT", "intensity": {"kind": "linear", "divisor": 0.0, "offset": 1.0}}]),
            "divided by 0",
        ),
        ("labels", json!([]), "0 labels"),
        (
            "labels",
            json!([{"value": 0, "name": "a"}, {"value": 0, "name": "b"}]),
            "two labels have the value 0",
        ),
        ("ignore", json!(7), "two labels have the value 7"),
    ] {
        let mut wrong = stored.clone();
        wrong[key] = value;
        let message = serde_json::from_value::<Preprocessing>(wrong)
            .unwrap_err()
            .to_string();
        assert!(message.contains(reason), "{key}: {message}");
    }
    assert!(
        toml::from_str::<Preprocessing>(
            &toml::to_string(&good)
                .unwrap()
                .replace("spacing = [1.0", "spacing = [nan")
        )
        .is_err()
    );
}

/// Settings for three classes on a grid that needs resampling and tiles.
fn settings(spacing: [f64; 3]) -> Preprocessing {
    let folder = tempfile::tempdir().unwrap();
    decathlon(folder.path());
    let dataset = Dataset::open(folder.path()).unwrap();
    let overrides = Overrides {
        spacing: Some(spacing),
        grid: Some([16, 16, 24]),
        orientation: Some("PSR".parse().unwrap()),
        ..Overrides::default()
    };
    Preprocessing::derive(&dataset, overrides).unwrap()
}

/// A stand-in for a network: thresholds of the image, so that its labels follow the anatomy.
fn logits(image: &[f32]) -> Vec<f32> {
    let class = |centre: f32| image.iter().map(move |v| -(v - centre).abs());
    class(1.0).chain(class(1.5)).chain(class(1.9)).collect()
}

fn segment(settings: &Preprocessing, scan: &Volume) -> Vec<i32> {
    let prepared = settings.prepare_image(scan).unwrap();
    let (shape, grid) = (prepared.placement.shape(), settings.grid.unwrap());
    let mut merger = TileMerger::new(3, shape, grid).unwrap();
    for origin in tiles(shape, grid) {
        let tile = crop_or_pad(&prepared.image, origin, grid, 0.0);
        merger.add(origin, &logits(&tile.data));
    }
    settings.restore_labels(&merger.finish(), &prepared.placement)
}

#[test]
fn a_scan_in_any_orientation_gives_the_same_anatomy_to_the_voxel() {
    let out = tempfile::tempdir().unwrap();
    let geometry = ras([31, 26, 22], [0.7, 0.9, 1.3], [1.0, 2.0, 3.0]);
    let (scan, _) = ball(&geometry, [2, 7]);
    for spacing in [[0.9, 1.3, 0.7], [1.1, 1.1, 1.1], [2.0, 0.8, 0.6]] {
        let settings = settings(spacing);
        let mut first: Option<Vec<i32>> = None;
        for code in ["RAS", "LPI", "ASR", "SPL", "IRP", "PSR"] {
            let (twin_geometry, values) = twin(&geometry, &scan, code);
            let path = out.path().join(format!("{code}_{}.nii.gz", spacing[0]));
            volume::write_labels(&path, &values, &twin_geometry, false).unwrap();
            let stored = volume::read(&path).unwrap();
            assert_eq!(stored.geometry.orientation.to_string(), code);
            let labels = segment(&settings, &stored);
            assert!(labels.contains(&2) && labels.contains(&7));
            let back =
                stored
                    .geometry
                    .orientation
                    .to(Orientation::RAS)
                    .apply(&labels, 1, stored.geometry.shape);
            match &first {
                None => first = Some(back),
                Some(first) => assert_eq!(&back, first, "{code} at {spacing:?}"),
            }
        }
    }
}

#[test]
fn certain_logits_bring_the_labels_back_unchanged_where_nothing_is_resampled() {
    let geometry = ras([31, 26, 22], [0.7, 0.9, 1.3], [1.0, 2.0, 3.0]);
    let (_, labels) = ball(&geometry, [2, 7]);
    let (twin_geometry, values) = twin(&geometry, &labels, "ILP");
    let bytes = volume::encode_labels(&values, &twin_geometry, false).unwrap();
    let map = volume::read_bytes(&bytes, Path::new("map.nii")).unwrap();
    for (spacing, least) in [([0.9, 1.3, 0.7], 1.0), ([0.6, 0.6, 0.6], 0.97)] {
        let settings = settings(spacing);
        let classes = settings.prepare_labels(&map).unwrap();
        let one_hot: Vec<f32> = (0..3)
            .flat_map(|class| classes.data.iter().map(move |v| f32::from(*v == class as f32)))
            .collect();
        let shape = [3, classes.shape[1], classes.shape[2], classes.shape[3]];
        let placement = settings.place(&map.geometry, &map.source).unwrap();
        assert_eq!(placement.shape(), shape[1..]);
        let back = settings.restore_labels(&Tensor::new(&shape, one_hot), &placement);
        let equal = back.iter().zip(&values).filter(|(a, b)| a == b).count() as f64 / values.len() as f64;
        assert!(equal >= least, "{spacing:?}: {equal}");
    }
}

#[test]
fn the_hippocampus_dataset_gives_its_settings() {
    let Some(folder) = shared("data/Task04_Hippocampus") else {
        return;
    };
    let dataset = Dataset::open(&folder).unwrap();
    dataset.check().unwrap();
    assert_eq!(dataset.cases.len(), 208);
    let settings = Preprocessing::derive(&dataset, Overrides::default()).unwrap();
    eprintln!("{settings}");
    assert_eq!(settings.orientation, Some(Orientation::RAS));
    assert_eq!(settings.spacing, Some([1.0; 3]));
    assert_eq!(settings.grid, Some([40, 56, 48]));
    let fold = dataset.fold(None, 0).unwrap();
    assert_eq!((fold.train.len(), fold.validation.len()), (166, 42));
    for case in &dataset.cases {
        let scan = dataset.image(case).unwrap();
        let image = settings.prepare_image(&scan).unwrap().image;
        let labels = dataset.label(case, &scan.geometry).unwrap();
        let labels = settings.prepare_labels(&labels).unwrap();
        assert_eq!(image.shape, labels.shape, "{}", case.id);
        let n = image.data.len() as f64;
        let mean = image.data.iter().map(|v| f64::from(*v)).sum::<f64>() / n;
        let square = image.data.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / n;
        assert!(
            mean.abs() < 1e-4 && (square - 1.0).abs() < 1e-3,
            "{}: {mean} {square}",
            case.id
        );
    }
}

#[test]
fn the_sample_data_is_eighteen_cases_and_six_unseen_ones() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/data");
    let dataset = Dataset::open(&folder).unwrap();
    dataset.check().unwrap();
    assert_eq!(dataset.cases.len(), 18);
    let settings = Preprocessing::derive(&dataset, Overrides::default()).unwrap();
    let images = scans(&folder.join("imagesTs"), 1).unwrap();
    let labels = scans(&folder.join("labelsTs"), 1).unwrap();
    assert_eq!(images.len(), 6);
    for (id, files) in &images {
        let image = settings
            .prepare_image(&read_channels(files).unwrap())
            .unwrap()
            .image;
        let label = settings
            .prepare_labels(&read_channels(&labels[id]).unwrap())
            .unwrap();
        assert_eq!(image.shape, label.shape, "{id}");
        assert!(label.data.contains(&1.0) && label.data.contains(&2.0), "{id}");
        assert!(
            dataset.cases.iter().all(|case| &case.id != id),
            "{id} must stay unseen"
        );
    }
}

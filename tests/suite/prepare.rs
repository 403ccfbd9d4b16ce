//! `obelisk prepare` on synthetic scans: boxes in known voxels, and landmarks that stay where they are in the patient.

use std::path::Path;
use std::process::Output;

use glam::{DMat4, DQuat, DVec3};
use obelisk::dataset::Dataset;
use obelisk::preprocess::{Overrides, Preprocessing};
use obelisk::volume::{self, Geometry, SpatialHeader};

use crate::program::{self, obelisk_in, refused};

fn obelisk(folder: &Path, arguments: &str) -> Output {
    obelisk_in(folder, &arguments.split_whitespace().collect::<Vec<_>>())
}

/// Asserts that all went well; gives the notes on stderr.
fn done(output: &Output) -> String {
    program::done(output);
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A RAS grid of this spacing, or one turned a little out of the patient's axes, stored along the axes of `code`.
fn geometry(code: &str, shape: [usize; 3], spacing: [f64; 3], tilt: f64) -> Geometry {
    let rotation = DQuat::from_euler(glam::EulerRot::XYZ, tilt, -tilt / 2.0, tilt / 3.0);
    let affine =
        DMat4::from_scale_rotation_translation(spacing.into(), rotation, DVec3::new(-30.0, 12.0, 200.0));
    let ras = SpatialHeader::from_affine(affine).geometry(shape).unwrap();
    let turn = ras.orientation.to(code.parse().unwrap());
    let stored = SpatialHeader::from_affine(affine * turn.to_source(shape));
    stored.geometry(turn.permute(shape)).unwrap()
}

/// Writes a scan whose voxels are a function of their place in the RAS array of `shape`.
fn scan(path: &Path, geometry: &Geometry, shape: [usize; 3], value: impl Fn([usize; 3]) -> f32) {
    let turn = "RAS"
        .parse::<volume::Orientation>()
        .unwrap()
        .to(geometry.orientation);
    let mut voxels = Vec::new();
    for x in 0..shape[0] {
        for y in 0..shape[1] {
            voxels.extend((0..shape[2]).map(|z| value([x, y, z])));
        }
    }
    volume::write_image(path, &turn.apply(&voxels, 1, shape), geometry, false).unwrap();
}

const LIST: &str = "id,publisher,data set,original_id,extent_ant,extent_post,extent_left,extent_right,extent_inf,extent_sup\n\
                    1,TCIA,Pancreas-CT,2,1,7,2,11,3,6\n2,Synapse,Other,2,0,1,0,1,0,1\n3,TCIA,Pancreas-CT,9,1,7,2,11,3,6\n";

#[test]
fn a_listed_box_is_cut_out_of_any_orientation() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    for name in ["scans", "labels"] {
        std::fs::create_dir(path(name)).unwrap();
    }
    std::fs::write(path("list.csv"), LIST).unwrap();
    let shape = [14, 10, 8];
    let code = |[x, y, z]: [usize; 3]| (x * 100 + y * 10 + z) as f32;
    let label = |[x, _, z]: [usize; 3]| [0.0, 11.0, 7.0, 3.0][(x + z) % 4];
    // the label file is stored along other axes than the scan
    scan(
        &path("scans/PANCREAS_0002.nii.gz"),
        &geometry("PSL", shape, [1.0, 2.0, 3.0], 0.0),
        shape,
        code,
    );
    scan(
        &path("labels/label0002.nii.gz"),
        &geometry("LAS", shape, [1.0, 2.0, 3.0], 0.0),
        shape,
        label,
    );
    scan(
        &path("scans/PANCREAS_0077.nii.gz"),
        &geometry("RAS", shape, [1.0; 3], 0.0),
        shape,
        code,
    );
    scan(
        &path("labels/label0077.nii.gz"),
        &geometry("RAS", shape, [1.0; 3], 0.0),
        shape,
        label,
    );

    let command =
        "prepare --images scans --labels labels --classes pancreas=11,left_kidney=3 --crops list.csv";
    refused(
        &obelisk(folder.path(), &format!("{command} --out out")),
        2,
        "Other and Pancreas-CT; choose with --data-set",
    );
    let command = format!("{command} --data-set Pancreas-CT --out out");
    let notes = done(&obelisk(folder.path(), &command));
    for part in [
        "PANCREAS_0077 is not listed",
        "with labels: 9",
        "background now: 7",
    ] {
        assert!(notes.contains(part), "`{part}` is not in {notes}");
    }
    refused(&obelisk(folder.path(), &command), 1, "--force");
    done(&obelisk(folder.path(), &format!("{command} --force")));

    // The box in the array that c3d calls RPS begins at (left, ny − post, nz − sup), as the published script has it.
    let image = volume::read(&path("out/imagesTr/PANCREAS_0002.nii.gz")).unwrap();
    let labels = volume::read(&path("out/labelsTr/PANCREAS_0002.nii.gz")).unwrap();
    assert_eq!(image.geometry.orientation.to_string(), "LAI");
    assert_eq!(image.geometry.shape, [9, 6, 3]);
    let mut voxels = image.data.iter().zip(&labels.data);
    for i in 0..9 {
        for j in 0..6 {
            for k in 0..3 {
                let (left, anterior, inferior) = (2 + i, 10 - 7 + j, 8 - 6 + k);
                // L of LAI runs against R of RAS, I against S
                let ras = [shape[0] - 1 - left, anterior, shape[2] - 1 - inferior];
                let (voxel, class) = voxels.next().unwrap();
                assert_eq!(*voxel, code(ras), "voxel {i}, {j}, {k}");
                let want = match label(ras) {
                    11.0 => 1.0,
                    3.0 => 2.0,
                    _ => 0.0,
                };
                assert_eq!(*class, want, "label {i}, {j}, {k}");
                // and lies where that voxel lies
                let world = image
                    .geometry
                    .affine
                    .transform_point3(DVec3::new(i as f64, j as f64, k as f64));
                let ras = DVec3::from_array(ras.map(|n| n as f64));
                let want = ras * DVec3::new(1.0, 2.0, 3.0) + DVec3::new(-30.0, 12.0, 200.0);
                assert!(world.abs_diff_eq(want, 1e-4), "{world} against {want}");
            }
        }
    }
    let dataset = Dataset::open(&path("out")).unwrap();
    dataset.check().unwrap();
    let names: Vec<(i32, &str)> = dataset
        .labels
        .iter()
        .map(|l| (l.value, l.name.as_str()))
        .collect();
    assert_eq!(names, [(0, "background"), (1, "pancreas"), (2, "left_kidney")]);
    assert_eq!((dataset.channels[0].as_str(), dataset.cases.len()), ("CT", 1));

    // Resampled as the recipe does, what trains on stored voxels trains on these.
    done(&obelisk(
        folder.path(),
        &format!("{command} --size 12,12,12 --force"),
    ));
    let dataset = Dataset::open(&path("out")).unwrap();
    let stored = Overrides {
        stored_spacing: true,
        ..Overrides::default()
    };
    let preprocessing = Preprocessing::derive(&dataset, stored).unwrap();
    let image = dataset.image(&dataset.cases[0]).unwrap();
    assert_eq!(
        preprocessing.prepare_image(&image).unwrap().image.shape,
        [1, 12, 12, 12]
    );
    assert_eq!(
        (preprocessing.orientation.unwrap().to_string(), preprocessing.grid),
        ("LAI".into(), Some([16; 3]))
    );
}

/// Where a volume's mass is, in millimetres.
fn centre_of_mass(path: &Path, background: f32) -> (DVec3, f64) {
    let volume = volume::read(path).unwrap();
    let [_, y, z] = volume.geometry.shape;
    let (mut sum, mut mass) = (DVec3::ZERO, 0.0);
    for (i, v) in volume.data.iter().enumerate() {
        let voxel = DVec3::new((i / (y * z)) as f64, (i / z % y) as f64, (i % z) as f64);
        let weight = f64::from(v - background);
        sum += weight * volume.geometry.affine.transform_point3(voxel);
        mass += weight;
    }
    let voxel_volume = volume.geometry.affine.determinant().abs();
    (sum / mass, mass * voxel_volume)
}

#[test]
fn landmarks_stay_where_they_are_in_the_patient() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    for name in ["scans", "labels"] {
        std::fs::create_dir(path(name)).unwrap();
    }
    let shape = [48, 40, 30];
    let list = LIST.lines().next().unwrap().to_owned() + "\n1,A,Set,1,4,33,5,46,2,27\n";
    std::fs::write(path("list.csv"), list).unwrap();
    // a ball around a landmark off every centre, soft in the image, on a tilted grid of uneven voxels
    let spacing = [1.0, 1.25, 2.0];
    let distance = |[x, y, z]: [usize; 3]| {
        let voxel = DVec3::new(x as f64, y as f64, z as f64) - DVec3::new(20.3, 18.6, 14.2);
        (voxel * DVec3::from_array(spacing)).length()
    };
    let image = |at| -1024.0 + 1000.0 * (-distance(at).powi(2) / 50.0).exp() as f32;
    let grid = geometry("ASL", shape, spacing, 0.2);
    scan(&path("scans/ct_1.nii.gz"), &grid, shape, image);
    // one file a label, as VISCERAL has them
    scan(&path("labels/ct_1_58_4.nii.gz"), &grid, shape, |at| {
        f32::from(distance(at) < 8.0)
    });
    scan(&path("labels/ct_1_86_1.nii.gz"), &grid, shape, |at| {
        f32::from(at[0] == 0)
    });
    let (landmark, mass) = centre_of_mass(&path("scans/ct_1.nii.gz"), -1024.0);
    let (ball, volume) = centre_of_mass(&path("labels/ct_1_58_4.nii.gz"), 0.0);

    let base = "prepare --images scans --labels labels --classes liver=58";
    for (out, options, size) in [
        ("box", "--crops list.csv --size 36,36,36", [36, 36, 36]),
        (
            "turned",
            "--crops list.csv --size 40,36,30 --orient SPR",
            [40, 36, 30],
        ),
        ("padded", "--spacing 1.5,1.5,1.5 --size 40,50,44", [40, 50, 44]),
        ("coarse", "--spacing 2,2,2 --orient RAS", [24, 25, 30]),
    ] {
        let notes = done(&obelisk(folder.path(), &format!("{base} --out {out} {options}")));
        assert!(
            notes.contains("background now: 86") || out == "box" || out == "turned",
            "{out}: {notes}"
        );
        let result = volume::read(&path(&format!("{out}/imagesTr/ct_1.nii.gz"))).unwrap();
        assert_eq!(result.geometry.shape, size, "{out}");
        assert!(
            result.data.iter().all(|v| *v >= -1024.0),
            "{out}: padded with air"
        );
        let (at, found) = centre_of_mass(&path(&format!("{out}/imagesTr/ct_1.nii.gz")), -1024.0);
        assert!(
            (at - landmark).length() < 0.1,
            "{out}: the landmark moved from {landmark} to {at}"
        );
        assert!((found / mass - 1.0).abs() < 0.03, "{out}: {found} of {mass}");
        let (at, found) = centre_of_mass(&path(&format!("{out}/labelsTr/ct_1.nii.gz")), 0.0);
        // half a voxel of the scan: where a voxel's centre lies between two, the nearest is either
        assert!(
            (at - ball).length() < 0.6,
            "{out}: the label moved from {ball} to {at}"
        );
        assert!((found / volume - 1.0).abs() < 0.1, "{out}: {found} of {volume}");
        Dataset::open(&path(out)).unwrap().check().unwrap();
    }
}

#[test]
fn what_does_not_fit_together_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    for name in ["scans", "labels"] {
        std::fs::create_dir(path(name)).unwrap();
    }
    let grid = |shape| geometry("RAS", shape, [1.0; 3], 0.0);
    let shape = [6, 5, 4];
    scan(&path("scans/a_2.nii.gz"), &grid(shape), shape, |_| 1.0);
    let run = |more: &str| {
        obelisk(
            folder.path(),
            &format!("prepare --images scans --labels labels --out out {more}"),
        )
    };
    scan(&path("labels/b_3.nii.gz"), &grid(shape), shape, |_| 1.0);
    refused(&run("--classes liver=1"), 1, "no label file belongs to a scan");
    refused(&run("--classes liver"), 2, "NAME=VALUE");
    refused(&run("--classes liver=1 --size 0,1,1"), 2, "whole number from 1");
    scan(&path("labels/b_2.nii.gz"), &grid([6, 5, 3]), [6, 5, 3], |_| 1.0);
    refused(&run("--classes liver=1"), 1, "[6, 5, 3] voxels");
    // of the scan's shape, but elsewhere
    std::fs::remove_file(path("labels/b_2.nii.gz")).unwrap();
    scan(
        &path("labels/b_2.nii.gz"),
        &geometry("RAS", shape, [1.0, 1.0, 1.5], 0.0),
        shape,
        |_| 1.0,
    );
    refused(&run("--classes liver=1"), 1, "[6, 5, 4] voxels of 1 × 1 × 1.5 mm");
    let notes = done(&run("--classes liver=1 --labels-by-voxel"));
    assert!(notes.contains("its voxels are taken as the scan's"), "{notes}");
    std::fs::remove_dir_all(path("out")).unwrap();
    for size in ["1291,1291,1291", "4096,4096,4096"] {
        refused(
            &run(&format!("--classes liver=1 --labels-by-voxel --size {size}")),
            2,
            "2147483647 voxels",
        );
    }
    refused(
        &run("--classes liver=1 --labels-by-voxel --spacing 0.001,0.001,0.001"),
        1,
        "2147483647 voxels",
    );
    // the scans that can be prepared are, and the run fails all the same
    for folder in ["scans", "labels"] {
        std::fs::copy(path("scans/a_2.nii.gz"), path(&format!("{folder}/a_5.nii.gz"))).unwrap();
    }
    let output = run("--classes liver=1");
    refused(&output, 1, "1 of 2 scans failed and are not in the dataset");
    refused(&output, 1, "labels/b_2.nii.gz");
    assert_eq!(Dataset::open(&path("out")).unwrap().cases.len(), 1);
    std::fs::remove_dir_all(path("out")).unwrap();
    for folder in ["scans", "labels"] {
        std::fs::remove_file(path(&format!("{folder}/a_5.nii.gz"))).unwrap();
    }
    std::fs::write(path("list.csv"), LIST).unwrap();
    refused(
        &run("--classes liver=1 --crops list.csv --data-set Pancreas-CT"),
        1,
        "the list is not of this scan",
    );
    refused(
        &run("--classes liver=1 --crops list.csv --data-set Nonesuch"),
        2,
        "it has Other and Pancreas-CT",
    );
    assert!(!path("out/dataset.json").exists());
}

//! MGH, NRRD and pairs of NIfTI files: voxels and places are those that nibabel and SimpleITK read, and what is written is read by
//! them.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::common::*;
#[cfg(feature = "cli")]
use crate::program::{adapter, data, done, obelisk_in, refused};
use glam::DMat4;
use obelisk::volume::{self, Geometry, SpatialHeader, Volume};

fn affine_of(rows: &serde_json::Value) -> DMat4 {
    let rows: [[f64; 4]; 4] = serde_json::from_value(rows.clone()).unwrap();
    DMat4::from_cols_array_2d(&rows).transpose()
}

/// Whether two affines place the corners of a grid within a ten thousandth of a millimetre.
fn same_place(own: &Geometry, expected: DMat4) -> bool {
    let other = SpatialHeader::from_affine(expected).geometry(own.shape).unwrap();
    own.difference(&other, 1e-4).is_none() && own.orientation == other.orientation
}

#[test]
fn voxels_and_places_are_those_that_nibabel_and_simpleitk_read() {
    let folder = reference("volumes");
    let expected = fs::read_to_string(folder.join("expected.json")).unwrap();
    let expected: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&expected).unwrap();
    let arrays = read_tensors(&folder.join("expected.safetensors"));
    assert!(expected.len() > 15 && expected.len() == arrays.len());
    for (name, place) in &expected {
        let path = folder.join(name);
        let scan = volume::read(&path).unwrap_or_else(|e| panic!("{e}"));
        let array = &arrays[name];
        assert_eq!(array.shape[0], scan.channels, "{name}");
        assert_eq!(array.shape[1..], scan.geometry.shape, "{name}");
        assert!(array.data == scan.data, "{name}: voxels differ");
        assert!(
            same_place(&scan.geometry, affine_of(&place["affine"])),
            "{name}: {}",
            scan.geometry
        );
        let spacing: [f64; 3] = serde_json::from_value(place["spacing"].clone()).unwrap();
        for axis in 0..3 {
            let apart = (spacing[axis] - scan.geometry.spacing[axis]).abs();
            assert!(apart < 1e-5, "{name}: {:?}", scan.geometry.spacing);
        }
        let (geometry, channels) = volume::read_geometry(&path).unwrap();
        assert_eq!((geometry, channels), (scan.geometry, scan.channels));
        // From memory, too, but for what has a second file.
        let bytes = fs::read(&path).unwrap();
        let in_memory = volume::read_bytes(&bytes, Path::new(name));
        match path.extension().unwrap().to_str().unwrap() {
            "hdr" | "nhdr" => {
                let refused = in_memory.unwrap_err().to_string();
                assert!(refused.contains("another file"), "{refused}");
            }
            _ => assert_eq!(in_memory.unwrap().data, scan.data),
        }
    }
    let of_the_other = volume::read(&folder.join("pair.img")).unwrap();
    assert_eq!(
        of_the_other.data,
        volume::read(&folder.join("pair.hdr")).unwrap().data
    );
}

/// A label map on an oblique grid, and its values.
fn labels(least: i32, most: i32) -> (Volume, Vec<i32>) {
    let like = volume::read(&reference("volumes/double.nrrd")).unwrap();
    let count = like.geometry.voxels() as i64;
    let value = |i: i64| (i64::from(least) + (i64::from(most) - i64::from(least)) * i / (count - 1)) as i32;
    (like, (0..count).map(value).collect())
}

const RANGES: [(i32, i32); 5] = [(0, 2), (-5, 100), (0, 300), (0, 40_000), (-70_000, 70_000)];

#[test]
fn what_is_written_is_read_back() {
    let folder = tempfile::tempdir().unwrap();
    for ending in ["nii.gz", "nii", "mgz", "mgh", "nrrd", "MGZ"] {
        for (least, most) in RANGES {
            let (like, values) = labels(least, most);
            let path = folder.path().join(format!("labels.{ending}"));
            volume::write_labels(&path, &values, &like.geometry, true).unwrap();
            let back = volume::read(&path).unwrap();
            assert_eq!(back.labels().unwrap(), values, "{ending}");
            assert!(
                same_place(&back.geometry, like.geometry.affine),
                "{ending}: {}",
                back.geometry
            );
            let again = fs::read(&path).unwrap();
            volume::write_labels(&path, &values, &like.geometry, true).unwrap();
            assert_eq!(fs::read(&path).unwrap(), again, "the same bytes");
            assert!(volume::write_labels(&path, &values, &like.geometry, false).is_err());
            assert!(volume::write_labels(&path, &values[1..], &like.geometry, true).is_err());
        }
        let (like, _) = labels(0, 1);
        let path = folder.path().join(format!("image.{ending}"));
        let voxels: Vec<f32> = like.data.iter().map(|v| v * 0.1 - 3.0).collect();
        volume::write_image(&path, &voxels, &like.geometry, false).unwrap();
        assert_eq!(volume::read(&path).unwrap().data, voxels, "{ending}");
    }
    let (like, values) = labels(0, 1);
    for name in ["a.hdr", "a.nhdr", "a.png", ".nrrd", "nrrd"] {
        let path = folder.path().join(name);
        let refused = volume::write_labels(&path, &values, &like.geometry, true).unwrap_err();
        assert!(refused.to_string().contains("must end in .nii"), "{refused}");
        assert!(!path.exists());
    }
}

/// Reads files by nibabel or SimpleITK: prints shape, affine in RAS and the sum of voxels times their place in the array.
const OTHERS: &str = r#"
import json, sys
import nibabel, numpy as np, SimpleITK
for path in sys.argv[1:]:
    if path.endswith("nrrd"):
        image = SimpleITK.ReadImage(path)
        voxels = SimpleITK.GetArrayFromImage(image).transpose(2, 1, 0)
        affine = np.eye(4)
        affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) @ np.diag(image.GetSpacing())
        affine[:3, 3] = image.GetOrigin()
        affine = np.diag([-1.0, -1, 1, 1]) @ affine
    else:
        image = nibabel.load(path)
        voxels, affine = np.asarray(image.dataobj), image.affine
    print(json.dumps({"affine": affine.tolist(), "voxels": voxels.ravel().astype(int).tolist()}))
"#;

#[test]
fn nibabel_and_simpleitk_read_what_is_written() {
    let modules = Command::new("python3")
        .args(["-c", "import nibabel, SimpleITK"])
        .output();
    if !modules.is_ok_and(|output| output.status.success()) {
        eprintln!("SKIPPED: python3 has not both of nibabel and SimpleITK");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new("python3");
    command.args(["-c", OTHERS]);
    let mut written = Vec::new();
    for (i, (least, most)) in RANGES.into_iter().enumerate() {
        for ending in ["nii.gz", "mgz", "mgh", "nrrd"] {
            let (like, values) = labels(least, most);
            let path = folder.path().join(format!("{i}.{ending}"));
            volume::write_labels(&path, &values, &like.geometry, false).unwrap();
            command.arg(&path);
            written.push((path, like.geometry, values));
        }
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let lines = String::from_utf8(output.stdout).unwrap();
    assert_eq!(lines.lines().count(), written.len());
    for (line, (path, geometry, values)) in lines.lines().zip(written) {
        let found: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(
            same_place(&geometry, affine_of(&found["affine"])),
            "{}: {line}",
            path.display()
        );
        let voxels: Vec<i32> = serde_json::from_value(found["voxels"].clone()).unwrap();
        assert!(voxels == values, "{}", path.display());
    }
}

/// An NRRD file of 2 × 2 × 2 bytes with a line in the place of the one that begins so, or one more.
fn nrrd(changed: &[&str]) -> Vec<u8> {
    let mut lines = vec![
        "NRRD0004",
        "type: uint8",
        "dimension: 3",
        "space: RAS",
        "sizes: 2 2 2",
        "space directions: (1,0,0) (0,1,0) (0,0,1)",
        "encoding: raw",
        "space origin: (0,0,0)",
    ];
    for line in changed {
        let start = line.split(':').next().unwrap();
        lines.retain(|l| l.split(':').next() != Some(start) || line.ends_with("twice"));
        lines.push(line.trim_end_matches("twice"));
    }
    lines.retain(|line| !line.ends_with(": -"));
    let mut bytes = (lines.join("\n") + "\n\n").into_bytes();
    bytes.extend([1, 2, 3, 4, 5, 6, 7, 8]);
    bytes
}

#[test]
fn impossible_headers_are_refused_with_what_is_wrong() {
    let read = |bytes: &[u8]| volume::read_bytes(bytes, Path::new("a.nrrd"));
    let whole = read(&nrrd(&[])).unwrap();
    assert_eq!(whole.data, [1.0, 5.0, 3.0, 7.0, 2.0, 6.0, 4.0, 8.0]);
    for (changed, part) in [
        (&["type: block"][..], "`block` is no number"),
        (&["type: -"], "no field `type`"),
        (&["type: int16"], "no field `endian`"),
        (&["type: int16", "endian: middle"], "byte order"),
        (&["type: int16", "endian: big"], "cut off"),
        (&["encoding: txt"], "`txt` is not read"),
        (&["encoding: gzip"], "cut off"),
        (&["encoding: -"], "no field `encoding`"),
        (&["dimension: 4"], "declares 4 axes"),
        (&["dimension: x"], "field `dimension`"),
        (&["sizes: 2 2 2 2", "dimension: 4"], "directions of 3"),
        (
            &["sizes: 2 2", "dimension: 2", "space directions: (1,0,0) (0,1,0)"],
            "2 axes in space",
        ),
        (&["sizes: 2 2 0"], "not all positive"),
        (&["sizes: 2 2 -2"], "not all positive"),
        (&["sizes: 2000 2000 2000"], "cut off"),
        (
            &["sizes: 9223372036854775807 9223372036854775807 4"],
            "more than memory",
        ),
        (&["sizes: 99999999999999999999 1 1"], "field `sizes`"),
        (&["space: scanner-xyz"], "`scanner-xyz`"),
        (&["space directions: (1,0,0) (0,1,0) (1,0,0)"], "singular"),
        (&["space directions: (1,0,0) (0,1,0) (0,0,nan)"], "not finite"),
        (&["space directions: (1,0,0) (0,1,0) (0,0,1"], "space"),
        (&["space directions: (1,0) (0,1) (0,1)"], "other than three"),
        (&["space directions: none (1,0,0) (0,1,0)"], "2 axes in space"),
        (
            &[
                "dimension: 4",
                "sizes: 2 2 2 1",
                "space directions: none (1,0,0) (0,1,0) (0,0,1)",
            ],
            "axis 1 of 2 numbers",
        ),
        (&["space origin: (0,0,1e300)"], "no scan is"),
        (&["space units: \"pc\" \"pc\" \"pc\""], "units"),
        (&["byte skip: -1"], "byte -1"),
        (&["byte skip: 99999999999"], "byte 99999999999"),
        (&["byte skip: 9"], "cut off"),
        (&["line skip: 1"], "lines of text"),
        (&["data file: other.raw"], "another file, other.raw"),
        (&["data file: LIST"], "several files"),
        (&["data file: slice%03d.raw 1 9 1"], "several files"),
        (&["type: uint8twice"], "`type` twice"),
        (&["nonsense"], "is no field"),
    ] {
        let refused = read(&nrrd(changed)).expect_err(&changed.join(", ")).to_string();
        assert!(refused.contains(part), "{changed:?}: {refused}");
    }
    let newer = String::from_utf8(nrrd(&[]))
        .unwrap()
        .replace("NRRD0004", "NRRD0006");
    assert!(read(newer.as_bytes()).unwrap_err().to_string().contains("`0006`"));
    assert!(read(b"NRRD0004\n").is_err() && read(b"NRRD").is_err());

    // A file that names another one is never led out of its folder.
    let folder = tempfile::tempdir().unwrap();
    let inside = folder.path().join("inside");
    fs::create_dir(&inside).unwrap();
    fs::write(folder.path().join("secret.raw"), [1; 8]).unwrap();
    let path = inside.join("a.nhdr");
    let secret = folder.path().join("secret.raw");
    for name in ["../secret.raw", secret.to_str().unwrap(), ".", "..", "/dev/zero"] {
        fs::write(&path, nrrd(&[&format!("data file: {name}")])).unwrap();
        let refused = volume::read(&path).expect_err(name).to_string();
        assert!(
            refused.contains("beside it") || refused.contains("not there"),
            "{refused}"
        );
    }

    let mgh = fs::read(reference("volumes/int16.mgh")).unwrap();
    let read = |at: usize, field: &[u8]| {
        let mut bytes = mgh.clone();
        bytes[at..at + field.len()].copy_from_slice(field);
        volume::read_bytes(&bytes, Path::new("a.mgh")).map_err(|e| e.to_string())
    };
    assert!(read(4, &9i32.to_be_bytes()).is_ok());
    for (at, field, part) in [
        (4, i32::MAX.to_be_bytes(), "no scan's"),
        (16, i32::MAX.to_be_bytes(), "cut off"),
        (4, (-1i32).to_be_bytes(), "not all positive"),
        (16, 0i32.to_be_bytes(), "not all positive"),
        (20, 5i32.to_be_bytes(), "type 5"),
        (30, 0f32.to_be_bytes(), "singular"),
        (34, f32::NAN.to_be_bytes(), "not finite"),
        (42, f32::INFINITY.to_be_bytes(), "not finite"),
        (78, 1e30f32.to_be_bytes(), "no scan is"),
    ] {
        let refused = read(at, &field).expect_err(part);
        assert!(refused.contains(part), "{at}: {refused}");
    }
    for length in [4, 100, 283, 300] {
        let refused = volume::read_bytes(&mgh[..length], Path::new("a.mgh")).unwrap_err();
        assert!(refused.to_string().contains("cut off"), "{refused}");
    }
}

#[cfg(feature = "cli")]
#[test]
fn scans_of_any_format_get_the_same_labels_in_the_format_of_the_output() {
    if !adapter() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let scan = volume::read(&data().join("imagesTr/hippocampus_026.nii.gz")).unwrap();
    fs::create_dir(path("scans")).unwrap();
    volume::write_image(&path("scans/a.nii.gz"), &scan.data, &scan.geometry, false).unwrap();
    volume::write_image(&path("scans/b.mgz"), &scan.data, &scan.geometry, false).unwrap();
    volume::write_image(&path("scans/c.nrrd"), &scan.data, &scan.geometry, false).unwrap();
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/weights/hippocampus.safetensors");
    let predict = |input: &str, output: &str, more: &[&str]| {
        let model = model.to_str().unwrap();
        let arguments = ["predict", "--model", model, "--input", input, "--output", output];
        obelisk_in(folder.path(), &[&arguments, more].concat())
    };
    done(&predict("scans", "labels", &["--label-table", "labels.ctbl"]));
    let of = |name: &str| volume::read(&path(name)).unwrap();
    let expected = of("labels/a.nii.gz");
    assert!(expected.labels().unwrap().contains(&2));
    for name in ["labels/b.nii.gz", "labels/c.nii.gz"] {
        assert!(of(name).data == expected.data, "{name}");
        assert_eq!(
            of(name).geometry.difference(&expected.geometry, 1e-3),
            None,
            "{name}"
        );
    }
    let table = fs::read_to_string(path("labels.ctbl")).unwrap();
    assert!(
        table.starts_with("# Color table file\n# 3 values\n0 background 0 0 0 0\n1 "),
        "{table}"
    );

    done(&predict("scans/c.nrrd", "d.mgz", &["--label-table", "d.txt"]));
    assert!(of("d.mgz").data == expected.data);
    let table = fs::read_to_string(path("d.txt")).unwrap();
    assert!(
        table.contains("\"Clear Label\"") && table.lines().count() == 17,
        "{table}"
    );
    refused(
        &predict("scans/c.nrrd", "e.mgz", &["--label-table", "d.txt"]),
        1,
        "--force replaces it",
    );
    refused(
        &predict("scans/c.nrrd", "e.mgz", &["--label-table", "d.csv"]),
        2,
        ".ctbl (3D Slicer)",
    );
    refused(&predict("scans/c.nrrd", "e.nhdr", &[]), 2, ".mgz, .mgh or .nrrd");
    assert!(!path("e.mgz").exists());
}

#[cfg(feature = "cli")]
#[test]
fn a_dataset_is_made_of_mgz_and_nrrd_files_by_the_labels_of_a_table() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    for name in ["scans", "maps"] {
        fs::create_dir(path(name)).unwrap();
    }
    let (scan, values) = labels(0, 3);
    for (image, map) in [("a.mgz", "a.nrrd"), ("b.nrrd", "b.mgz")] {
        volume::write_image(&path("scans").join(image), &scan.data, &scan.geometry, false).unwrap();
        volume::write_labels(&path("maps").join(map), &values, &scan.geometry, false).unwrap();
    }
    let table = "0 0 0 0 0 0 0 \"Clear Label\"\n3 255 0 0 1 1 1 \"left kidney\"\n1 0 255 0 1 1 1 \"liver\"\n";
    fs::write(path("table.txt"), table).unwrap();
    fs::write(path("empty.ctbl"), "0 background 0 0 0 0\n").unwrap();
    let prepare = |more: &[&str]| {
        let arguments = [
            "prepare",
            "--images",
            "scans",
            "--labels",
            "maps",
            "--channel",
            "MR",
            "--out",
            "data",
        ];
        obelisk_in(folder.path(), &[&arguments, more].concat())
    };
    done(&prepare(&["--class-table", "table.txt"]));
    let dataset = obelisk::dataset::Dataset::open(&path("data")).unwrap();
    let found: Vec<(i32, &str)> = dataset.labels.iter().map(|l| (l.value, &*l.name)).collect();
    assert_eq!(found, [(0, "background"), (1, "liver"), (2, "left kidney")]);
    assert_eq!(dataset.cases.len(), 2);
    let count = |values: &[i32], label: i32| values.iter().filter(|v| **v == label).count();
    for case in &dataset.cases {
        let map = volume::read(&case.label).unwrap().labels().unwrap();
        assert_eq!(count(&map, 2), count(&values, 3), "{}", case.id);
        assert_eq!(count(&map, 1), count(&values, 1), "{}", case.id);
    }
    refused(
        &prepare(&["--class-table", "empty.ctbl", "--force"]),
        1,
        "no label but the background",
    );
    refused(
        &prepare(&["--class-table", "table.txt", "--classes", "a=1"]),
        2,
        "cannot be used with",
    );
    refused(&prepare(&[]), 2, "--classes");
}

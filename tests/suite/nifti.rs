//! Reading against nibabel's answers (tests/reference/make_nifti.py), and label maps read back.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use obelisk::volume::{self, Geometry, Volume};
use safetensors::SafeTensors;
use serde_json::Value;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference/nifti")
}

fn expected() -> BTreeMap<String, Value> {
    serde_json::from_slice(&std::fs::read(folder().join("expected.json")).unwrap()).unwrap()
}

fn floats(value: &Value) -> Vec<f64> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|v| v.as_f64().unwrap())
        .collect()
}

fn affine_difference(geometry: &Geometry, expected: &Value) -> f64 {
    let rows = geometry.affine.transpose().to_cols_array_2d();
    let expected: Vec<Vec<f64>> = expected.as_array().unwrap().iter().map(floats).collect();
    (0..16)
        .map(|i| (rows[i / 4][i % 4] - expected[i / 4][i % 4]).abs())
        .fold(0.0, f64::max)
}

#[test]
fn every_kind_of_file_reads_as_nibabel_reads_it() {
    let stored = std::fs::read(folder().join("expected.safetensors")).unwrap();
    let stored = SafeTensors::deserialize(&stored).unwrap();
    let mut read = 0;
    for (name, answer) in expected()
        .iter()
        .filter(|(_, answer)| answer.get("error").is_none())
    {
        let path = folder().join(name);
        let volume = volume::read(&path).unwrap_or_else(|e| panic!("{e}"));
        let shape: Vec<usize> = floats(&answer["shape"]).iter().map(|n| *n as usize).collect();
        assert_eq!(volume.channels, shape[0], "{name}");
        assert_eq!(volume.geometry.shape, shape[1..], "{name}");
        assert!(
            affine_difference(&volume.geometry, &answer["affine"]) < 2e-6,
            "{name}: {:?}",
            volume.geometry
        );
        assert_eq!(
            volume.geometry.orientation.to_string(),
            answer["axcodes"],
            "{name}"
        );
        let header = &volume.geometry.header;
        assert_eq!(i64::from(header.version), answer["version"], "{name}");
        assert_eq!(i64::from(header.qform_code), answer["qform_code"], "{name}");
        assert_eq!(i64::from(header.sform_code), answer["sform_code"], "{name}");
        let mut zooms = floats(&answer["zooms"]);
        zooms.resize(3, 0.0);
        if answer.get("zooms_of_affine").is_some() {
            zooms = vec![0.7, 1.25, 3.0];
        } else if answer.get("undeclared").is_some() {
            zooms = vec![0.0; 3];
        }
        for (spacing, zoom) in volume.geometry.spacing.iter().zip(zooms) {
            assert!((spacing - zoom).abs() < 2e-6, "{name}: {spacing} against {zoom}");
        }
        assert_eq!(
            volume.non_finite as u64,
            answer.get("non_finite").map_or(0, |n| n.as_u64().unwrap()),
            "{name}"
        );

        let tensor = stored.tensor(name).unwrap();
        assert_eq!(tensor.shape(), shape, "{name}");
        let want: Vec<f32> = tensor
            .data()
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
            .collect();
        assert_eq!(volume.data, want, "{name}");

        let (geometry, channels) = volume::read_geometry(&path).unwrap();
        assert_eq!((geometry, channels), (volume.geometry, volume.channels), "{name}");
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(volume::read_bytes(&bytes, &path).unwrap().data, want, "{name}");
        read += 1;
    }
    assert!(read > 80, "{read} files");
}

#[test]
fn broken_files_are_refused_with_the_reason_and_the_name() {
    let mut refused = 0;
    for (name, answer) in expected() {
        let Some(reason) = answer.get("error") else {
            continue;
        };
        let message = volume::read(&folder().join(&name)).expect_err(&name).to_string();
        assert!(
            message.contains(reason.as_str().unwrap()) && message.contains(&name),
            "{name}: {message}"
        );
        refused += 1;
    }
    assert!(refused > 20, "{refused} files");
    let message = volume::read(Path::new("nowhere.nii")).unwrap_err().to_string();
    assert!(
        message.contains("nowhere.nii") && message.contains("No such file"),
        "{message}"
    );
}

#[test]
fn no_prefix_of_a_file_and_no_damaged_byte_panics() {
    for name in ["int16.nii", "float32_v2_big.nii.gz", "extension.nii"] {
        let bytes = std::fs::read(folder().join(name)).unwrap();
        for length in 0..bytes.len() {
            assert!(
                volume::read_bytes(&bytes[..length], Path::new(name)).is_err(),
                "{name} cut to {length}"
            );
        }
        for at in 0..bytes.len().min(400) {
            for bit in [1, 0x10, 0x80, 0xff] {
                let mut damaged = bytes.clone();
                damaged[at] ^= bit;
                let _ = volume::read_bytes(&damaged, Path::new(name));
            }
        }
    }
}

/// Labels that repeat `values` over the grid.
fn labels(geometry: &Geometry, values: &[i32]) -> Vec<i32> {
    (0..geometry.voxels()).map(|i| values[i % values.len()]).collect()
}

#[test]
fn label_maps_come_back_with_the_scans_geometry() {
    let out = tempfile::tempdir().unwrap();
    for (index, (name, answer)) in expected()
        .iter()
        .filter(|(_, a)| a.get("error").is_none())
        .enumerate()
    {
        let scan = volume::read(&folder().join(name)).unwrap();
        let written = labels(&scan.geometry, &[0, 3, 250, 7]);
        let ending = ["nii", "nii.gz"][index % 2];
        let path = out.path().join(format!("{name}.labels.{ending}"));
        volume::write_labels(&path, &written, &scan.geometry, false).unwrap();
        let back = volume::read(&path).unwrap();
        assert_eq!(back.labels().unwrap(), written, "{name}");
        assert_eq!(back.geometry, scan.geometry, "{name}");
        assert_eq!(back.channels, 1);
        assert!(affine_difference(&back.geometry, &answer["affine"]) < 2e-6);
    }
}

#[test]
fn the_smallest_type_that_holds_the_labels_is_chosen() {
    let scan = volume::read(&folder().join("int16.nii")).unwrap();
    for (values, code, bits) in [
        (&[0, 255][..], 2, 8),
        (&[-128, 127], 256, 8),
        (&[-1, 128], 4, 16),
        (&[0, 256, 32767], 4, 16),
        (&[0, 65535], 512, 16),
        (&[0, 65536], 8, 32),
        (&[-1, 40000], 8, 32),
    ] {
        let written = labels(&scan.geometry, values);
        let bytes = volume::encode_labels(&written, &scan.geometry, false).unwrap();
        assert_eq!(i16::from_le_bytes([bytes[70], bytes[71]]), code, "{values:?}");
        assert_eq!(i16::from_le_bytes([bytes[72], bytes[73]]), bits, "{values:?}");
        assert_eq!(&bytes[148..156], b"obelisk\0");
        let back = volume::read_bytes(&bytes, Path::new("labels.nii")).unwrap();
        assert_eq!(back.labels().unwrap(), written);
    }
}

#[test]
fn names_are_kept_and_existing_files_need_force() {
    let out = tempfile::tempdir().unwrap();
    let scan = volume::read(&folder().join("int16.nii")).unwrap();
    let written = labels(&scan.geometry, &[0, 1]);
    let path = out.path().join("sub.01.nii");
    volume::write_labels(&path, &written, &scan.geometry, false).unwrap();
    let first = std::fs::read(&path).unwrap();
    let message = volume::write_labels(&path, &written, &scan.geometry, false)
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("--force") && message.contains("sub.01.nii"),
        "{message}"
    );
    volume::write_labels(&path, &written, &scan.geometry, true).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), first);
    for wrong in ["labels.mha", "labels", "labels.gz", ".nii"] {
        let message = volume::write_labels(&out.path().join(wrong), &written, &scan.geometry, false);
        assert!(
            message.unwrap_err().to_string().contains("must end in"),
            "{wrong}"
        );
    }
    let message = volume::write_labels(&out.path().join("a.nii"), &written[1..], &scan.geometry, false);
    assert!(message.unwrap_err().to_string().contains("59 voxels"));
    let names: Vec<_> = std::fs::read_dir(out.path())
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(names, ["sub.01.nii"]);
}

#[test]
fn compressed_label_maps_have_no_time_in_them() {
    let scan = volume::read(&folder().join("int16.nii")).unwrap();
    let bytes = volume::encode_labels(&labels(&scan.geometry, &[0, 1]), &scan.geometry, true).unwrap();
    assert_eq!(bytes[..3], [0x1f, 0x8b, 8]);
    assert_eq!(bytes[3..8], [0; 5], "no name, no time");
}

#[test]
fn fractions_and_channels_are_no_labels() {
    let read = |name: &str| -> Volume { volume::read(&folder().join(name)).unwrap() };
    assert!(
        read("float32.nii")
            .labels()
            .unwrap_err()
            .to_string()
            .contains("whole numbers")
    );
    assert!(
        read("channels.nii.gz")
            .labels()
            .unwrap_err()
            .to_string()
            .contains("one channel")
    );
    assert!(
        read("non_finite.nii")
            .labels()
            .unwrap_err()
            .to_string()
            .contains("not finite")
    );
    assert!(
        read("int32.nii")
            .labels()
            .unwrap_err()
            .to_string()
            .contains("2^24")
    );
    assert_eq!(read("int8.nii").labels().unwrap()[0], -128);
}

/// A reader that shares no code with ours opens what we write.
#[test]
fn another_reader_opens_our_label_maps() {
    use nifti::{NiftiObject, NiftiVolume, RandomAccessNiftiVolume, ReaderOptions};
    let out = tempfile::tempdir().unwrap();
    for name in ["oblique.nii", "qform_qfac.nii"] {
        let scan = volume::read(&folder().join(name)).unwrap();
        let written = labels(&scan.geometry, &[0, 1, 2, 300]);
        let path = out.path().join(format!("{name}.gz"));
        volume::write_labels(&path, &written, &scan.geometry, false).unwrap();
        let object = ReaderOptions::new().read_file(&path).unwrap();
        assert_eq!(object.header().sform_code as i32, scan.geometry.header.sform_code);
        assert_eq!(object.volume().dim(), [5, 4, 3]);
        for (voxel, label) in written.iter().enumerate() {
            let index = [voxel / 12, voxel / 3 % 4, voxel % 3].map(|i| i as u16);
            assert_eq!(
                object.volume().get_i32(&index).unwrap(),
                *label,
                "{name} {index:?}"
            );
        }
    }
}

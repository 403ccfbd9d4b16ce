//! Reading against nibabel's answers (tests/reference/make_nifti.py), and label maps read back.

use std::collections::BTreeMap;
use std::io::Write;
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
        message.contains("exists") && message.contains("sub.01.nii"),
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

/// A copy of a stored file, which is little-endian and of version 1 unless its name says more, with fields replaced.
fn changed(name: &str, fields: &[(usize, &[u8])]) -> Result<Volume, volume::VolumeError> {
    let mut bytes = std::fs::read(folder().join(name)).unwrap();
    for (at, field) in fields {
        bytes[*at..at + field.len()].copy_from_slice(field);
    }
    volume::read_bytes(&bytes, Path::new(name))
}

fn f32s(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

#[test]
fn lengths_are_millimetres_whatever_unit_the_header_names() {
    const UNITS: usize = 123;
    const PIXDIM: usize = 80;
    const SFORM_CODE: usize = 254;
    const QFORM_CODE: usize = 252;
    const QOFFSET: usize = 268;
    const ROWS: usize = 280;
    for (unit, factor) in [(1u8, 1e-3f32), (2, 1.0), (3, 1e3), (0, 1.0), (5, 1.0)] {
        // time's unit stands in the same byte
        let unit = &[unit | 8][..];
        let sizes = f32s(&[0.7 * factor, 1.25 * factor, 3.0 * factor]);
        let rows: Vec<f32> = [
            [0.7f32, 0.0, 0.0, -30.0],
            [0.0, 1.25, 0.0, 12.0],
            [0.0, 0.0, 3.0, 200.0],
        ]
        .concat()
        .iter()
        .map(|v| v * factor)
        .collect();
        let offset = f32s(&[-30.0 * factor, 12.0 * factor, 200.0 * factor]);
        let (set, unset) = (&[1u8, 0][..], &[0u8, 0][..]);
        let base = [(UNITS, unit), (PIXDIM, &sizes)];
        let sform = changed(
            "int16.nii",
            &[base[0], base[1], (SFORM_CODE, set), (ROWS, &f32s(&rows))],
        );
        let qform = changed(
            "int16.nii",
            &[
                base[0],
                base[1],
                (SFORM_CODE, unset),
                (QFORM_CODE, set),
                (256, &f32s(&[0.0; 3])),
                (QOFFSET, &offset),
            ],
        );
        let neither = changed(
            "int16.nii",
            &[base[0], base[1], (SFORM_CODE, unset), (QFORM_CODE, unset)],
        );
        for (what, volume) in [("sform", sform), ("qform", qform), ("neither", neither)] {
            let geometry = volume.unwrap().geometry;
            assert_eq!(geometry.spacing, [0.7, 1.25, 3.0], "{what} in unit {unit:?}");
            let lengths = [
                geometry.affine.x_axis,
                geometry.affine.y_axis,
                geometry.affine.z_axis,
            ];
            for (column, want) in lengths.iter().zip([0.7, 1.25, 3.0]) {
                assert!(
                    (column.length() - want).abs() < 1e-5,
                    "{what} in unit {unit:?}: {column}"
                );
            }
            if what != "neither" {
                let origin = geometry.affine.w_axis;
                assert!(
                    (origin.x + 30.0).abs() < 1e-4 && (origin.z - 200.0).abs() < 1e-3,
                    "{origin}"
                );
            }
            // a file on the grid says the same in the same unit
            let bytes = volume::encode_labels(&vec![0; geometry.voxels()], &geometry, false).unwrap();
            let back = volume::read_bytes(&bytes, Path::new("back.nii")).unwrap();
            assert_eq!(back.geometry, geometry, "{what} in unit {unit:?}");
        }
    }
    // NIfTI-2 keeps its units elsewhere
    let bytes = std::fs::read(folder().join("qform_v2.nii")).unwrap();
    let millimetres = volume::read_bytes(&bytes, Path::new("a.nii"))
        .unwrap()
        .geometry
        .spacing;
    let metres = changed("qform_v2.nii", &[(500, &1i32.to_le_bytes())]).unwrap();
    for (metre, millimetre) in metres.geometry.spacing.iter().zip(millimetres) {
        assert!((metre - 1e3 * millimetre).abs() < 1e-3, "{metre} {millimetre}");
    }
}

#[test]
fn grids_that_no_scan_has_are_refused() {
    for (unit, sizes) in [
        (2u8, [1e-5f32, 1.0, 1.0]),  // a voxel of 10 nm
        (2, [1.0, 4000.0, 1.0]),     // 16 m
        (1, [0.7, 1.0, 3000.0]),     // millimetres called metres
        (3, [0.0007, 0.001, 0.003]), // millimetres called micrometres, and a thousandth of them
        (2, [1e30, 1.0, 1.0]),
        (2, [1e-30, 1.0, 1.0]),
    ] {
        let rows = [
            [sizes[0], 0.0, 0.0, 0.0],
            [0.0, sizes[1], 0.0, 0.0],
            [0.0, 0.0, sizes[2], 0.0],
        ]
        .concat();
        let fields: [(usize, &[u8]); 4] = [
            (123, &[unit]),
            (80, &f32s(&sizes)),
            (254, &[1, 0]),
            (280, &f32s(&rows)),
        ];
        let message = changed("int16.nii", &fields).unwrap_err().to_string();
        assert!(
            message.contains("is no scan's") || message.contains("singular"),
            "{sizes:?}: {message}"
        );
        assert!(message.contains("repair its header"), "{message}");
    }
    let far = [
        [1.0f32, 0.0, 0.0, 0.0],
        [0.0, 1.0, 0.0, -3e9],
        [0.0, 0.0, 1.0, 0.0],
    ]
    .concat();
    let fields: [(usize, &[u8]); 2] = [(254, &[1, 0]), (280, &f32s(&far))];
    let message = changed("int16.nii", &fields).unwrap_err().to_string();
    assert!(message.contains("-3000000000.0"), "{message}");
    assert!(message.contains("where no scan is"), "{message}");
}

#[test]
fn what_a_header_promises_is_checked_before_memory_is_taken() {
    let dims = |shape: [u16; 3]| -> Vec<u8> {
        [3, shape[0], shape[1], shape[2]]
            .iter()
            .flat_map(|n| n.to_le_bytes())
            .collect()
    };
    // far more than the file can hold, compressed or not
    for shape in [[2000, 2000, 1000], [32767, 32767, 1], [5, 4, 4]] {
        let message = changed("int16.nii", &[(40, &dims(shape))])
            .unwrap_err()
            .to_string();
        assert!(
            message.contains("cut off") || message.contains("is no scan's"),
            "{shape:?}: {message}"
        );
    }
    // a small file that really holds gigabytes of zeros is refused by the memory that there is
    let mut header = std::fs::read(folder().join("int16.nii")).unwrap()[..352].to_vec();
    let sizes = f32s(&[0.7, 0.7, 0.7]);
    let rows = f32s(&[[0.7f32, 0., 0., 0.], [0., 0.7, 0., 0.], [0., 0., 0.7, 0.]].concat());
    let fields: [(usize, &[u8]); 6] = [
        (40, &dims([4000, 4000, 4000])),
        (70, &[2, 0]),
        (72, &[8, 0]),
        (80, &sizes),
        (254, &[1, 0]),
        (280, &rows),
    ];
    for (at, field) in fields {
        header[at..at + field.len()].copy_from_slice(field);
    }
    let mut bomb = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    bomb.write_all(&header).unwrap();
    for _ in 0..4096 {
        bomb.write_all(&[0; 1 << 16]).unwrap();
    }
    let mut bomb = bomb.finish().unwrap();
    bomb.resize(100 << 20, 0); // as long as one that holds all of it
    let message = volume::read_bytes(&bomb, Path::new("bomb.nii.gz"))
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("[4000, 4000, 4000] voxels") && message.contains("256.3 GB of memory are needed"),
        "{message}"
    );
    // and one that goes on after its voxels
    let mut endless = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    endless
        .write_all(&std::fs::read(folder().join("int16.nii")).unwrap())
        .unwrap();
    for _ in 0..(17 << 20 >> 16) {
        endless.write_all(&[0; 1 << 16]).unwrap();
    }
    let message = volume::read_bytes(&endless.finish().unwrap(), Path::new("a.nii.gz")).unwrap_err();
    assert!(message.to_string().contains("goes on"), "{message}");
}

/// A NIfTI-1 header counts to 32,767, so a longer axis makes a file of version 2.
#[test]
fn long_axes_are_written_as_they_are() {
    let affine = glam::DMat4::from_scale(glam::DVec3::splat(0.1));
    let geometry = volume::SpatialHeader::from_affine(affine)
        .geometry([40_000, 1, 2])
        .unwrap();
    let written = labels(&geometry, &[0, 1, 2]);
    let bytes = volume::encode_labels(&written, &geometry, false).unwrap();
    let back = volume::read_bytes(&bytes, Path::new("long.nii")).unwrap();
    assert_eq!(
        (back.geometry.shape, back.geometry.header.version),
        ([40_000, 1, 2], 2)
    );
    assert_eq!(back.labels().unwrap(), written);
}

//! DICOM series are the volumes that were written as such, whatever the way their pixels are stored; what is no regular stack is refused;
//! and segmentations have each voxel of a label, and refer to the images that the voxels were found in.

use std::fs;
use std::path::{Path, PathBuf};

use dicom_core::value::{DataSetSequence, PixelFragmentSequence, Value};
use dicom_core::{DataElement, PrimitiveValue, Tag, VR};
use dicom_dictionary_std::{tags, uids};
use dicom_object::{DefaultDicomObject, InMemDicomObject, open_file};
use glam::{DMat3, DMat4, DVec3, EulerRot};
use obelisk::dataset::Label;
use obelisk::volume::dicom::{DicomError, Folder, Holds, Series};
use obelisk::volume::{self, Geometry, SpatialHeader};
use tempfile::TempDir;

use crate::common::*;
#[cfg(feature = "cli")]
use crate::program::{adapter, done, obelisk_in, refused};

const STACKS: [&str; 3] = ["ct", "oblique", "enhanced.dcm"];

fn expected() -> serde_json::Map<String, serde_json::Value> {
    let text = fs::read_to_string(reference("dicom/expected.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn open(name: &str) -> Series {
    Series::open(&reference("dicom").join(name), None).unwrap()
}

#[test]
fn voxels_and_places_are_those_that_were_written() {
    let arrays = read_tensors(&reference("dicom/expected.safetensors"));
    let expected = expected();
    assert!(expected.len() == 8 && arrays.len() == 8);
    for (name, place) in &expected {
        let series = open(name);
        let scan = series.volume().unwrap();
        assert_eq!(arrays[name].shape[1..], scan.geometry.shape, "{name}");
        assert!(arrays[name].data == scan.data, "{name}: voxels differ");
        let rows: [[f64; 4]; 4] = serde_json::from_value(place["affine"].clone()).unwrap();
        let affine = DMat4::from_cols_array_2d(&rows).transpose();
        let other = SpatialHeader::from_affine(affine)
            .geometry(scan.geometry.shape)
            .unwrap();
        let apart = scan.geometry.difference(&other, 1e-4);
        assert!(apart.is_none(), "{name}: {apart:?}");
        // As any other scan.
        let path = reference("dicom").join(name);
        let same = volume::read(&path).unwrap();
        assert!(same.data == scan.data && same.geometry == scan.geometry);
        assert_eq!(volume::read_geometry(&path).unwrap(), (scan.geometry, 1));
    }
}

/// A copy of the images of a series, each changed.
fn changed(name: &str, change: impl Fn(usize, &mut DefaultDicomObject)) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (k, uid) in expected()[name]["instances"]
        .as_array()
        .unwrap()
        .iter()
        .enumerate()
    {
        let is_it =
            |path: &PathBuf| uid.as_str() == Some(&text(&open_file(path).unwrap(), tags::SOP_INSTANCE_UID));
        let mut paths = fs::read_dir(reference("dicom").join(name)).unwrap();
        let path = paths.find_map(|entry| Some(entry.unwrap().path()).filter(is_it));
        let mut file = open_file(path.unwrap()).unwrap();
        change(k, &mut file);
        file.write_to_file(folder.path().join(format!("{k:02}.dcm")))
            .unwrap();
    }
    folder
}

fn text(object: &InMemDicomObject, tag: Tag) -> String {
    let text = object.element(tag).unwrap().to_str().unwrap();
    text.trim_end_matches([' ', '\0']).to_owned()
}

fn numbers(object: &InMemDicomObject, tag: Tag) -> Vec<f64> {
    object.element(tag).unwrap().to_multi_float64().unwrap()
}

fn put(object: &mut InMemDicomObject, tag: Tag, vr: VR, value: &str) {
    let values = value.split('\\').map(str::to_owned).collect();
    object.put(DataElement::new(tag, vr, PrimitiveValue::Strs(values)));
}

fn put_number(object: &mut InMemDicomObject, tag: Tag, value: u16) {
    object.put(DataElement::new(tag, VR::US, PrimitiveValue::from(value)));
}

/// Moves an image, in millimetres of DICOM's axes.
fn shift(object: &mut InMemDicomObject, by: [f64; 3]) {
    let at = numbers(object, tags::IMAGE_POSITION_PATIENT);
    let moved: Vec<String> = (0..3).map(|a| format!("{:.4}", at[a] + by[a])).collect();
    put(object, tags::IMAGE_POSITION_PATIENT, VR::DS, &moved.join("\\"));
}

fn refusal(folder: &Path) -> String {
    match Series::open(folder, None).and_then(|series| Ok(series.volume()?)) {
        Ok(_) => panic!("{} was read", folder.display()),
        Err(error) => error.to_string(),
    }
}

#[test]
fn what_is_no_regular_stack_is_refused() {
    let folder = changed("ct", |_, _| {});
    let copy = |from: &str, to: &str| fs::copy(folder.path().join(from), folder.path().join(to)).unwrap();
    fs::remove_file(folder.path().join("05.dcm")).unwrap();
    fs::remove_file(folder.path().join("06.dcm")).unwrap();
    let gap = refusal(folder.path());
    assert!(
        gap.contains("04.dcm and 07.dcm") && gap.contains("2 are missing"),
        "{gap}"
    );
    let folder_of = changed("ct", |k, file| {
        if k == 5 {
            shift(file, [0.0, 0.0, 0.9]);
        }
    });
    let uneven = refusal(folder_of.path());
    assert!(uneven.contains("not evenly spaced"), "{uneven}");
    let folder_of = changed("ct", |k, file| shift(file, [0.0, 0.6 * k as f64, 0.0]));
    let tilted = refusal(folder_of.path());
    assert!(tilted.contains("gantry was tilted"), "{tilted}");
    let folder_of = changed("ct", |k, file| {
        if k == 3 {
            shift(file, [8.0, 0.0, 0.0]);
        }
    });
    let aside = refusal(folder_of.path());
    assert!(
        aside.contains("03.dcm is 8.000 mm off") || aside.contains("off it"),
        "{aside}"
    );

    // Two echoes of each slice.
    for echo in 1..3 {
        let images = changed("ct", |k, file| {
            put(file, tags::ECHO_NUMBERS, VR::IS, &echo.to_string());
            put(file, tags::SOP_INSTANCE_UID, VR::UI, &format!("1.2.{echo}.{k}"));
        });
        for k in 0..12 {
            let name = format!("{k:02}.dcm");
            let target = folder.path().join(format!("echo{echo}_{name}"));
            fs::copy(images.path().join(name), target).unwrap();
        }
    }
    for k in [0, 1, 2, 3, 4, 7, 8, 9, 10, 11] {
        fs::remove_file(folder.path().join(format!("{k:02}.dcm"))).unwrap();
    }
    let echoes = refusal(folder.path());
    assert!(
        echoes.contains("24 images lie at 12 places") && echoes.contains("echo: 1 and 2"),
        "{echoes}"
    );
    // One of them, twice, and a scout of another size among them.
    for k in 0..12 {
        fs::remove_file(folder.path().join(format!("echo2_{k:02}.dcm"))).unwrap();
    }
    copy("echo1_03.dcm", "again");
    let mut scout = open_file(folder.path().join("again")).unwrap();
    put(&mut scout, tags::SOP_INSTANCE_UID, VR::UI, "1.2.9");
    put(
        &mut scout,
        tags::IMAGE_TYPE,
        VR::CS,
        "ORIGINAL\\PRIMARY\\LOCALIZER",
    );
    put_number(&mut scout, tags::ROWS, 17);
    scout.write_to_file(folder.path().join("scout")).unwrap();
    let read = Series::open(folder.path(), None).unwrap();
    assert_eq!(read.geometry(), open("ct").geometry());
    put(&mut scout, tags::IMAGE_TYPE, VR::CS, "ORIGINAL\\PRIMARY\\AXIAL");
    scout.write_to_file(folder.path().join("scout")).unwrap();
    let sizes = refusal(folder.path());
    assert!(sizes.contains("40×17 pixels"), "{sizes}");
}

#[test]
fn what_is_no_scan_is_refused() {
    type Change = fn(&mut DefaultDicomObject);
    let compressed: Change = |file| {
        file.meta_mut().transfer_syntax = uids::JPEG2000_LOSSLESS.into();
        file.meta_mut().update_information_group_length();
        let pieces = PixelFragmentSequence::new_fragments(vec![vec![0_u8; 16]]);
        file.put(DataElement::new(tags::PIXEL_DATA, VR::OB, Value::from(pieces)));
    };
    let cases: [(&str, Change); 12] = [
        ("MONOCHROME1", |file| {
            put(file, tags::PHOTOMETRIC_INTERPRETATION, VR::CS, "MONOCHROME1");
        }),
        ("3 numbers a pixel (RGB)", |file| {
            put_number(file, tags::SAMPLES_PER_PIXEL, 3);
            put(file, tags::PHOTOMETRIC_INTERPRETATION, VR::CS, "RGB");
        }),
        ("ImagePositionPatient is missing", |file| {
            file.remove_element(tags::IMAGE_POSITION_PATIENT);
        }),
        ("ImagePositionPatient is missing or wrong", |file| {
            put(file, tags::IMAGE_POSITION_PATIENT, VR::DS, "1\\2\\nan");
        }),
        ("no two directions", |file| {
            put(file, tags::IMAGE_ORIENTATION_PATIENT, VR::DS, "1\\0\\0\\1\\0\\0");
        }),
        ("PixelSpacing is", |file| {
            put(file, tags::PIXEL_SPACING, VR::DS, "0\\1")
        }),
        ("bits allocated", |file| {
            file.remove_element(tags::BITS_ALLOCATED);
        }),
        ("have 12 bits", |file| put_number(file, tags::BITS_ALLOCATED, 12)),
        ("rescale slope", |file| {
            put(file, tags::RESCALE_SLOPE, VR::DS, "0")
        }),
        ("bytes of pixels", |file| put_number(file, tags::ROWS, 35)),
        ("Modality LUT", |file| {
            let item = InMemDicomObject::new_empty();
            let items = DataSetSequence::from(vec![item]);
            file.put(DataElement::new(tags::MODALITY_LUT_SEQUENCE, VR::SQ, items));
        }),
        ("JPEG 2000", compressed),
    ];
    for (part, change) in cases {
        let folder = changed("ct", |_, file| change(file));
        let refused = refusal(folder.path());
        assert!(refused.contains(part), "{part}: {refused}");
        assert!(refused.contains(&*folder.path().to_string_lossy()), "{refused}");
    }
    let folder = changed("unsigned8", |_, _| {});
    let bytes = fs::read(folder.path().join("01.dcm")).unwrap();
    fs::write(folder.path().join("01.dcm"), &bytes[..bytes.len() - 4]).unwrap();
    assert!(refusal(folder.path()).contains("cut off"));
    fs::remove_file(folder.path().join("01.dcm")).unwrap();
    fs::remove_file(folder.path().join("02.dcm")).unwrap();
    assert!(refusal(folder.path()).contains("it has one image"));
    fs::remove_file(folder.path().join("00.dcm")).unwrap();
    assert!(refusal(folder.path()).contains("holds no DICOM file"));
    fs::copy(reference("dicom/report.dcm"), folder.path().join("report")).unwrap();
    assert!(refusal(folder.path()).contains("hold no image"));
}

#[test]
fn one_of_several_series_is_chosen() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["unsigned8", "signed8"] {
        for entry in fs::read_dir(reference("dicom").join(name)).unwrap() {
            let entry = entry.unwrap();
            let target = format!("{name}_{}", entry.file_name().to_string_lossy());
            fs::copy(entry.path(), folder.path().join(target)).unwrap();
        }
    }
    fs::copy(reference("dicom/report.dcm"), folder.path().join("report.dcm")).unwrap();
    fs::write(folder.path().join("notes.txt"), "nothing").unwrap();
    fs::write(folder.path().join("DICOMDIR"), "nothing").unwrap();
    let choose = |wanted: Option<&str>| Series::open(folder.path(), wanted);
    let Err(DicomError::Choice { series, .. }) = choose(None) else {
        panic!("two series are no scan");
    };
    assert_eq!(series.len(), 2);
    assert!(
        series
            .iter()
            .all(|found| found.images == 3 && found.modality == "CT")
    );
    for found in &series {
        for wanted in [found.number.as_deref().unwrap(), &found.uid] {
            let chosen = choose(Some(wanted)).unwrap().volume().unwrap();
            assert_eq!(chosen.data, open(&found.description).volume().unwrap().data);
        }
    }
    let none = choose(Some("77")).unwrap_err().to_string();
    assert!(
        none.contains("none is `77`") && none.contains("number 10 (`unsigned8`, CT, 3 images"),
        "{none}"
    );

    // What a folder is.
    let holds = |path: &Path| Folder::open(path).unwrap();
    assert_eq!(holds(folder.path()).holds, Holds::Series);
    let batch = tempfile::tempdir().unwrap();
    let sub = batch.path().join("a");
    fs::create_dir(&sub).unwrap();
    fs::create_dir(batch.path().join("b")).unwrap();
    assert_eq!(holds(batch.path()).holds, Holds::Others);
    fs::copy(reference("dicom/enhanced.dcm"), sub.join("IM1")).unwrap();
    let found = holds(batch.path());
    assert_eq!(
        found.holds,
        Holds::Folders([("a".to_owned(), sub.clone())].into())
    );
    assert_eq!(found.ignored, [batch.path().join("b")]);
    fs::copy(reference("dicom/enhanced.dcm"), batch.path().join("IM2")).unwrap();
    assert_eq!(holds(batch.path()).holds, Holds::Series);
    fs::copy(reference("nifti/uint8.nii"), batch.path().join("scan.nii")).unwrap();
    let mixed = holds(batch.path());
    assert_eq!(mixed.holds, Holds::Others);
    assert_eq!(mixed.ignored, [batch.path().join("IM2")]);
}

fn items(object: &InMemDicomObject, tag: Tag) -> &[InMemDicomObject] {
    object
        .element(tag)
        .unwrap()
        .items()
        .unwrap_or_else(|| panic!("{tag} is no sequence"))
}

/// The only item of a sequence.
fn item(object: &InMemDicomObject, tag: Tag) -> &InMemDicomObject {
    let [item] = items(object, tag) else {
        panic!("{tag} has not one item");
    };
    item
}

fn code(object: &InMemDicomObject, tag: Tag) -> (String, String, String) {
    let item = item(object, tag);
    let part = |tag| text(item, tag);
    (
        part(tags::CODING_SCHEME_DESIGNATOR),
        part(tags::CODE_VALUE),
        part(tags::CODE_MEANING),
    )
}

/// The labels that a segmentation of a series has, each frame's references and places compared with the images'.
fn decoded(seg: &DefaultDicomObject, name: &str, values: &[i32], geometry: &Geometry) -> Vec<i32> {
    let [x, y, z] = geometry.shape;
    let about = &expected()[name];
    let instances: Vec<&str> = about["instances"]
        .as_array()
        .unwrap()
        .iter()
        .map(|uid| uid.as_str().unwrap())
        .collect();
    let number = |tag| seg.element(tag).unwrap().to_int::<usize>().unwrap();
    assert_eq!((number(tags::COLUMNS), number(tags::ROWS)), (x, y));
    assert_eq!((number(tags::BITS_ALLOCATED), number(tags::BITS_STORED)), (1, 1));
    let frames = items(seg, tags::PER_FRAME_FUNCTIONAL_GROUPS_SEQUENCE);
    assert_eq!(frames.len(), number(tags::NUMBER_OF_FRAMES));
    let bits = seg.element(tags::PIXEL_DATA).unwrap().to_bytes().unwrap();
    assert_eq!(bits.len(), (frames.len() * x * y).div_ceil(8).next_multiple_of(2));
    let mut labels = vec![0; x * y * z];
    let mut before = (0, 0);
    for (n, frame) in frames.iter().enumerate() {
        let source = item(
            item(frame, tags::DERIVATION_IMAGE_SEQUENCE),
            tags::SOURCE_IMAGE_SEQUENCE,
        );
        let index = item(frame, tags::FRAME_CONTENT_SEQUENCE)
            .element(tags::DIMENSION_INDEX_VALUES)
            .unwrap();
        let index = index.to_multi_int::<usize>().unwrap();
        let [segment, place] = index[..] else {
            panic!("{index:?}")
        };
        assert!((segment, place) > before, "frames are in order");
        before = (segment, place);
        let k = place - 1;
        let identified = item(frame, tags::SEGMENT_IDENTIFICATION_SEQUENCE);
        assert_eq!(
            numbers(identified, tags::REFERENCED_SEGMENT_NUMBER),
            [segment as f64]
        );
        assert_eq!(text(source, tags::REFERENCED_SOP_INSTANCE_UID), instances[k]);
        if let Some(frames) = about.get("frames") {
            assert_eq!(
                numbers(source, tags::REFERENCED_FRAME_NUMBER),
                [frames[k].as_f64().unwrap()]
            );
        }
        assert_eq!(text(source, tags::SPATIAL_LOCATIONS_PRESERVED), "YES");
        let at = numbers(
            item(frame, tags::PLANE_POSITION_SEQUENCE),
            tags::IMAGE_POSITION_PATIENT,
        );
        let corner = geometry.affine.transform_point3(glam::dvec3(0.0, 0.0, k as f64));
        let apart = glam::dvec3(-at[0], -at[1], at[2]).distance(corner);
        assert!(apart < 1e-3, "{name} frame {n}: {apart} mm");
        let mut any = false;
        for j in 0..y {
            for i in 0..x {
                let bit = n * x * y + j * x + i;
                if bits[bit / 8] >> (bit % 8) & 1 == 1 {
                    let label = &mut labels[(i * y + j) * z + k];
                    assert_eq!(*label, 0, "segments do not overlap");
                    *label = values[segment - 1];
                    any = true;
                }
            }
        }
        assert!(any || frames.len() == 1, "empty frames are left out");
    }
    labels
}

fn names() -> Vec<Label> {
    let label = |value: i32, name: &str| Label {
        value,
        name: name.into(),
    };
    vec![
        label(0, "background"),
        label(1, "left_kidney"),
        label(2, "Ödem \\ rest"),
        label(7, "liver"),
        label(9, "unseen"),
    ]
}

#[test]
fn segmentations_have_every_voxel_and_refer_to_its_image() {
    for name in STACKS {
        let series = open(name);
        let shape = series.geometry().shape;
        let noise = noise(&shape, 5).data;
        let value = |(at, v): (usize, &f32)| match (at % shape[2] > 2, (v * 4.0) as i32) {
            (true, 1) => 1,
            (_, 2) => 2,
            (true, -1 | -2) if at % shape[2] != 5 => 7,
            _ => 0,
        };
        let labels: Vec<i32> = noise.iter().enumerate().map(value).collect();
        assert!([0, 1, 2, 7].iter().all(|value| labels.contains(value)));
        let bytes = series.encode_segmentation(&labels, &names()).unwrap();
        let again = open(name).encode_segmentation(&labels, &names()).unwrap();
        assert!(bytes == again, "{name}: the same bytes");
        let seg = dicom_object::from_reader(&bytes[..]).unwrap();
        let back = decoded(&seg, name, &[1, 2, 7, 9], series.geometry());
        assert!(back == labels, "{name}: voxels differ");

        let path = reference("dicom").join(name);
        let image = match path.is_dir() {
            true => fs::read_dir(path).unwrap().next().unwrap().unwrap().path(),
            false => path,
        };
        let image = open_file(image).unwrap();
        for tag in [
            tags::PATIENT_NAME,
            tags::PATIENT_ID,
            tags::PATIENT_BIRTH_DATE,
            tags::STUDY_INSTANCE_UID,
            tags::STUDY_DATE,
            tags::FRAME_OF_REFERENCE_UID,
        ] {
            assert_eq!(text(&seg, tag), text(&image, tag), "{tag}");
        }
        assert_eq!(text(&seg, tags::PATIENT_NAME), "Müller^Test");
        assert_eq!(text(&seg, tags::CONTENT_DATE), "20200102");
        assert_eq!(text(&seg, tags::SOP_CLASS_UID), uids::SEGMENTATION_STORAGE);
        assert_eq!(
            text(&seg, tags::SOP_INSTANCE_UID),
            seg.meta().media_storage_sop_instance_uid()
        );
        assert_ne!(
            text(&seg, tags::SERIES_INSTANCE_UID),
            text(&image, tags::SERIES_INSTANCE_UID)
        );
        let referenced = item(&seg, tags::REFERENCED_SERIES_SEQUENCE);
        assert_eq!(
            text(referenced, tags::SERIES_INSTANCE_UID),
            text(&image, tags::SERIES_INSTANCE_UID)
        );
        let mut referenced: Vec<String> = items(referenced, tags::REFERENCED_INSTANCE_SEQUENCE)
            .iter()
            .map(|item| text(item, tags::REFERENCED_SOP_INSTANCE_UID))
            .collect();
        let instances = expected()[name]["instances"].clone();
        let mut instances: Vec<String> = serde_json::from_value(instances).unwrap();
        instances.sort();
        instances.dedup();
        referenced.sort();
        assert_eq!(referenced, instances);

        let segments = items(&seg, tags::SEGMENT_SEQUENCE);
        let labelled: Vec<String> = segments
            .iter()
            .map(|segment| text(segment, tags::SEGMENT_LABEL))
            .collect();
        assert_eq!(labelled, ["left_kidney", "Ödem  rest", "liver", "unseen"]);
        let kind = |n: usize| code(&segments[n], tags::SEGMENTED_PROPERTY_TYPE_CODE_SEQUENCE);
        let coded = |value: &str, meaning: &str| ("SCT".to_owned(), value.to_owned(), meaning.to_owned());
        assert_eq!(kind(0), coded("64033007", "Kidney"));
        assert_eq!(kind(2), coded("10200004", "Liver"));
        assert_eq!(kind(3), coded("123037004", "Anatomical Structure"));
        let side = item(&segments[0], tags::SEGMENTED_PROPERTY_TYPE_CODE_SEQUENCE);
        let side = code(side, tags::SEGMENTED_PROPERTY_TYPE_MODIFIER_CODE_SEQUENCE);
        assert_eq!(side, coded("7771000", "Left"));

        // Other labels are another file; none are a frame without voxels; labels without a name are refused.
        let other = series
            .encode_segmentation(&vec![0; labels.len()], &names())
            .unwrap();
        let other = dicom_object::from_reader(&other[..]).unwrap();
        assert_ne!(
            text(&other, tags::SOP_INSTANCE_UID),
            text(&seg, tags::SOP_INSTANCE_UID)
        );
        assert!(
            decoded(&other, name, &[1, 2, 7, 9], series.geometry())
                .iter()
                .all(|v| *v == 0)
        );
        let unknown = series
            .encode_segmentation(&vec![3; labels.len()], &names())
            .unwrap_err();
        assert!(unknown.contains("label 3 has no name"), "{unknown}");
        assert!(series.encode_segmentation(&labels[1..], &names()).is_err());
    }
}

/// The same labels as those of the same scans in NIfTI files, one by one and as a folder, and in segmentations.
#[cfg(feature = "cli")]
#[test]
fn predictions_are_those_of_nifti_files() {
    if !adapter() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for sub in ["series", "scans"] {
        fs::create_dir(at(sub)).unwrap();
    }
    // As it lies, and turned on all axes.
    let turn = DMat3::from_euler(EulerRot::XYZ, 0.3, -0.4, 0.2);
    let turned = changed("ct", |_, file| {
        let each = |tag| {
            let numbers = numbers(file, tag);
            let vectors = numbers
                .chunks(3)
                .map(|v| (turn * DVec3::from_slice(v)).to_array());
            let texts: Vec<String> = vectors.flatten().map(|n| format!("{n:.9}")).collect();
            texts.join("\\")
        };
        let [at, along] = [tags::IMAGE_POSITION_PATIENT, tags::IMAGE_ORIENTATION_PATIENT].map(each);
        put(file, tags::IMAGE_POSITION_PATIENT, VR::DS, &at);
        put(file, tags::IMAGE_ORIENTATION_PATIENT, VR::DS, &along);
        put(file, tags::SERIES_NUMBER, VR::IS, "3");
        put(file, tags::SERIES_INSTANCE_UID, VR::UI, "1.2.3");
    });
    for (name, from) in [("ct", &*reference("dicom/ct")), ("oblique", turned.path())] {
        crate::program::copy(from, &at("series").join(name));
        let scan = volume::read(from).unwrap();
        let path = at("scans").join(format!("{name}.nii.gz"));
        volume::write_image(&path, &scan.data, &scan.geometry, false).unwrap();
    }
    let weights = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/weights/hippocampus.safetensors");
    let predict = |arguments: &[&str]| {
        let model = ["predict", "--model", weights.to_str().unwrap()];
        obelisk_in(folder.path(), &[&model[..], arguments].concat())
    };
    done(&predict(&["--input", "scans", "--output", "expected"]));
    done(&predict(&["--input", "series", "--output", "labels"]));
    done(&predict(&[
        "--input",
        "series",
        "--output",
        "segs",
        "--format",
        "dicom-seg",
    ]));
    done(&predict(&["--input", "series/ct", "--output", "one.dcm"]));
    assert_eq!(
        fs::read(at("one.dcm")).unwrap(),
        fs::read(at("segs/ct.dcm")).unwrap()
    );
    for name in ["ct", "oblique"] {
        let read = |sub: &str| volume::read(&at(sub).join(format!("{name}.nii.gz"))).unwrap();
        let (expected, labels) = (read("expected"), read("labels"));
        assert!(expected.data == labels.data, "{name}: labels differ");
        assert!(
            expected.data.iter().any(|v| *v > 0.0),
            "{name}: there are labels to compare"
        );
        assert!(expected.geometry.difference(&labels.geometry, 1e-5).is_none());
        let seg = open_file(at(&format!("segs/{name}.dcm"))).unwrap();
        let back = decoded(&seg, "ct", &[1, 2], &labels.geometry);
        assert!(
            back == labels.labels().unwrap(),
            "{name}: the segmentation differs"
        );
    }

    let of_nifti = predict(&["--input", "scans/ct.nii.gz", "--output", "new.dcm"]);
    refused(&of_nifti, 2, "refers to the images of a series");
    let folder_of_nifti = predict(&["--input", "scans", "--output", "new", "--format", "dicom-seg"]);
    refused(&folder_of_nifti, 2, "refers to the images of a series");
    refused(
        &predict(&["--input", "series/ct", "--output", "new.png"]),
        2,
        ".dcm",
    );
    let named_otherwise = predict(&[
        "--input",
        "series/ct",
        "--output",
        "new.nii",
        "--format",
        "dicom-seg",
    ]);
    refused(&named_otherwise, 2, "ends in .dcm");
    refused(
        &predict(&["--input", "scans", "--output", "new", "--series", "3"]),
        2,
        "--series is for DICOM",
    );
    // Two series in one folder.
    for entry in fs::read_dir(at("series/oblique")).unwrap() {
        let entry = entry.unwrap();
        let name = format!("o{}", entry.file_name().to_string_lossy());
        fs::copy(entry.path(), at("series/ct").join(name)).unwrap();
    }
    let both = predict(&["--input", "series/ct", "--output", "new.nii"]);
    refused(&both, 1, "2 series");
    refused(&both, 1, "--series NUMBER or UID chooses one");
    assert!(!at("new.nii").exists() && !at("new.dcm").exists());
    let chosen = predict(&[
        "--input",
        "series/ct",
        "--output",
        "chosen.nii.gz",
        "--series",
        "3",
    ]);
    done(&chosen);
    let chosen = volume::read(&at("chosen.nii.gz")).unwrap();
    let expected = volume::read(&at("expected/oblique.nii.gz")).unwrap();
    assert_eq!(chosen.data, expected.data);
    // An image of the series is never written over.
    let over = predict(&[
        "--input",
        "series/oblique",
        "--output",
        "series/oblique/00.dcm",
        "--force",
    ]);
    refused(&over, 2, "which is never written to");
}

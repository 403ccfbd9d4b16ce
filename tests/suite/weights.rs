//! Weight files: every flipped bit is found, records of other versions are read, and records and numbers that can't be are
//! refused by whatever reads them.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use obelisk::tensor::Tensor;
use obelisk::weights::{Model, WeightsError};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};

fn trained() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/weights/hippocampus.safetensors")
}

fn record_of(bytes: &[u8]) -> Value {
    let (_, header) = SafeTensors::read_metadata(bytes).unwrap();
    serde_json::from_str(&header.metadata().as_ref().unwrap()["obelisk"]).unwrap()
}

/// A file as another program or version writes it: no checksum, any record.
fn with_record(record: &Value, tensors: &HashMap<String, Tensor>) -> Vec<u8> {
    let views = tensors.iter().map(|(name, t)| {
        let data = bytemuck::cast_slice(&t.data);
        (name, TensorView::new(Dtype::F32, t.shape.clone(), data).unwrap())
    });
    let metadata = HashMap::from([("obelisk".to_owned(), record.to_string())]);
    safetensors::serialize(views, Some(metadata)).unwrap()
}

/// What each way of reading a file says of these bytes.
fn readers(bytes: &[u8]) -> [Result<Model, WeightsError>; 3] {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.safetensors");
    std::fs::write(&path, bytes).unwrap();
    [
        Model::load(&path),
        Model::open(&path, None),
        Model::from_bytes(bytes, Path::new("w.safetensors")),
    ]
}

/// That every way of reading a file refuses it with these words.
fn refused(bytes: &[u8], words: &str) {
    for result in readers(bytes) {
        let text = result
            .err()
            .unwrap_or_else(|| panic!("`{words}`: it was read"))
            .to_string();
        assert!(text.contains(words), "`{words}` is not in: {text}");
        assert!(text.contains("w.safetensors: ") && text.len() < 400, "{text}");
        assert!(
            !text.contains("--") && !text.chars().any(char::is_control),
            "{text}"
        );
    }
}

fn small() -> Model {
    let mut model = Model::load(&trained()).unwrap();
    model.info.training = None;
    model.tensors = HashMap::from([
        (
            "a.weight".to_owned(),
            Tensor::new(&[2, 3], vec![0.5, -1.0, 3.0, 1e-30, 0.0, -0.0]),
        ),
        ("a.running_var".to_owned(), Tensor::new(&[2], vec![1.0, 0.25])),
    ]);
    model.batches = BTreeMap::from([("a.num_batches_tracked".to_owned(), 7)]);
    model
}

#[test]
fn every_flipped_bit_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.safetensors");
    let whole = small().to_bytes(&path).unwrap();
    std::fs::write(&path, &whole).unwrap();
    assert_eq!(Model::load(&path).unwrap().tensors, small().tensors);
    for bit in 0..8 * whole.len() {
        let mut flipped = whole.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(Model::from_bytes(&flipped, &path).is_err(), "bit {bit}");
        if bit % 7 == 0 {
            std::fs::write(&path, &flipped).unwrap();
            assert!(Model::load(&path).is_err(), "bit {bit}");
        }
    }
    for length in 0..whole.len() {
        assert!(
            Model::from_bytes(&whole[..length], &path).is_err(),
            "cut to {length} bytes"
        );
    }
}

#[test]
fn files_depend_on_the_contents_alone_and_any_reader_of_safetensors_reads_them() {
    let model = Model::load(&trained()).unwrap();
    let bytes = model.to_bytes(Path::new("w")).unwrap();
    assert_eq!(bytes, model.clone().to_bytes(Path::new("elsewhere")).unwrap());
    let file = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(file.len(), model.tensors.len());
    assert_eq!(record_of(&bytes)["format"], 2);
    // Format 1, from before there were checksums, is still read.
    let before = std::fs::read(trained()).unwrap();
    assert_eq!(record_of(&before)["format"], 1);
    let again = Model::from_bytes(&before, Path::new("w")).unwrap();
    assert_eq!((&again.info, &again.tensors), (&model.info, &model.tensors));
    let again = Model::from_bytes(&bytes, Path::new("w")).unwrap();
    assert_eq!((again.info, again.tensors), (model.info, model.tensors));
}

#[test]
fn records_of_other_versions_are_read() {
    let bytes = std::fs::read(trained()).unwrap();
    let model = Model::from_bytes(&bytes, Path::new("w")).unwrap();
    let mut record = record_of(&bytes);
    record["colour"] = json!({"depth": [1, 2, {"deep": null}]});
    record["preprocessing"]["filter"] = json!("none");
    record["preprocessing"]["labels"][1]["parent"] = json!(0);
    record["preprocessing"]["channels"][0]["unit"] = json!("HU");
    record["training"]["gpu_hours"] = json!(1.5);
    for read in readers(&with_record(&record, &model.tensors)) {
        assert_eq!(read.unwrap().info, model.info);
    }
    for field in [
        "dataset",
        "epochs",
        "seed",
        "fold",
        "trained_on",
        "held_out",
        "dice",
    ] {
        let mut record = record_of(&bytes);
        record["training"].as_object_mut().unwrap().remove(field);
        for read in readers(&with_record(&record, &model.tensors)) {
            assert!(read.unwrap().info.training.is_some(), "{field}");
        }
    }
    let mut record = record_of(&bytes);
    for number in [3, 999, u64::MAX] {
        record["format"] = json!(number);
        record["preprocessing"] = json!("of another kind");
        let file = with_record(&record, &model.tensors);
        refused(&file, "a newer version of this program wrote it");
        for error in readers(&file) {
            assert!(matches!(error, Err(WeightsError::Newer { .. })));
        }
    }
}

#[test]
fn records_that_can_not_be_are_refused() {
    let bytes = std::fs::read(trained()).unwrap();
    let tensors = Model::from_bytes(&bytes, Path::new("w")).unwrap().tensors;
    let cases: Vec<(&str, Value, &str)> = vec![
        ("/format", json!(0), "format 0"),
        ("/format", json!(-1), "unreadable"),
        ("/format", json!("2"), "unreadable"),
        ("/format", json!(2), "its checksum is missing"),
        ("/arch", json!(""), "unusable name"),
        ("/arch", json!("a\u{1b}[2J"), "unusable name"),
        ("/preprocessing/spacing", json!([-1.0, 1.0, 1.0]), "spacing"),
        ("/preprocessing/spacing", json!([1.0, 0.0, 1.0]), "spacing"),
        ("/preprocessing/spacing", json!([1.0, 1.0]), "unreadable"),
        ("/preprocessing/grid", json!([40, 0, 40]), "the size"),
        (
            "/preprocessing/grid",
            json!([4294967296u64, 4294967296u64, 1]),
            "the size",
        ),
        ("/preprocessing/grid", json!([2048, 2048, 2048]), "the size"),
        ("/preprocessing/grid", json!([-8, 8, 8]), "unreadable"),
        ("/preprocessing/channels", json!([]), "no channel"),
        ("/preprocessing/channels/0/name", json!("a\nb"), "is no name"),
        (
            "/preprocessing/channels/0/intensity",
            json!({"kind": "linear", "divisor": 0.0, "offset": 1.0}),
            "is divided by",
        ),
        (
            "/preprocessing/channels/0/intensity",
            json!({"kind": "linear", "divisor": 1e-42, "offset": 1.0}),
            "is divided by",
        ),
        (
            "/preprocessing/channels/0/intensity",
            json!({"kind": "linear", "divisor": 1.0, "offset": 1e60}),
            "is divided by",
        ),
        (
            "/preprocessing/channels/0/intensity",
            json!({"kind": "cubic"}),
            "unreadable",
        ),
        ("/preprocessing/labels", json!([]), "0 labels"),
        (
            "/preprocessing/labels",
            json!([{"value": 0, "name": "background"}]),
            "1 labels",
        ),
        (
            "/preprocessing/labels/2/value",
            json!(1),
            "two labels have the value 1",
        ),
        ("/preprocessing/labels/2/name", json!("\u{7}"), "is no name"),
        ("/preprocessing/ignore", json!(2), "two labels have the value 2"),
        ("/preprocessing/orientation", json!("RAX"), "unreadable"),
    ];
    for (place, value, words) in cases {
        let mut record = record_of(&bytes);
        match record.pointer_mut(place) {
            Some(found) => *found = value,
            None => record["preprocessing"]["ignore"] = value,
        }
        refused(&with_record(&record, &tensors), words);
    }
    for (parent, field) in [
        ("", "arch"),
        ("", "preprocessing"),
        ("/preprocessing", "labels"),
        ("/preprocessing", "channels"),
    ] {
        let mut record = record_of(&bytes);
        record
            .pointer_mut(parent)
            .unwrap()
            .as_object_mut()
            .unwrap()
            .remove(field);
        refused(&with_record(&record, &tensors), "unreadable");
    }
    // A record that its tensors contradict, or that names no network: whoever would predict with it is told.
    for (place, value, words) in [
        ("/arch", json!("unet"), "not those of unet"),
        ("/arch", json!("nonesuch"), "nonesuch"),
        ("/preprocessing/labels/2", json!(null), "unreadable"),
    ] {
        let mut record = record_of(&bytes);
        *record.pointer_mut(place).unwrap() = value;
        let error = Model::from_bytes(&with_record(&record, &tensors), Path::new("w")).unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
    }
}

#[test]
fn numbers_that_can_not_be_are_refused_when_read_and_when_written() {
    let bytes = std::fs::read(trained()).unwrap();
    let model = Model::from_bytes(&bytes, Path::new("w")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("there.safetensors");
    model.save(&path, false).unwrap();
    let good = std::fs::read(&path).unwrap();
    let variance = model
        .tensors
        .keys()
        .find(|name| name.ends_with("running_var"))
        .unwrap();
    let weight = model
        .tensors
        .keys()
        .find(|name| name.starts_with("conv"))
        .unwrap();
    for (name, value, words) in [
        (weight, f32::NAN, "not finite"),
        (weight, f32::INFINITY, "not finite"),
        (variance, f32::NEG_INFINITY, "not finite"),
        (variance, -f32::NAN, "not finite"),
        (variance, -0.001, "-0.001"),
    ] {
        for at_end in [false, true] {
            let mut bad = model.clone();
            let data = &mut bad.tensors.get_mut(name).unwrap().data;
            let index = if at_end { data.len() - 1 } else { 0 };
            data[index] = value;
            let file = with_record(&record_of(&bytes), &bad.tensors);
            refused(&file, words);
            refused(&file, name);
            let error = bad.save(&path, true).unwrap_err().to_string();
            assert!(error.contains(words) && error.contains(name.as_str()), "{error}");
            assert_eq!(std::fs::read(&path).unwrap(), good, "what was there stays");
        }
    }
    // Records are checked when they are written, too.
    let mut bad = model.clone();
    bad.info.preprocessing.spacing = Some([1.0, f64::NAN, 1.0]);
    assert!(bad.save(&path, true).unwrap_err().to_string().contains("spacing"));
    assert_eq!(std::fs::read(&path).unwrap(), good);
}

/// Every place in a JSON value, as pointers.
fn places(value: &Value, at: String, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => fields
            .iter()
            .for_each(|(name, v)| places(v, format!("{at}/{name}"), found)),
        Value::Array(items) => items
            .iter()
            .enumerate()
            .for_each(|(i, v)| places(v, format!("{at}/{i}"), found)),
        _ => {}
    }
    found.push(at);
}

#[test]
fn any_value_anywhere_in_a_record_gives_a_model_or_an_error() {
    let bytes = std::fs::read(trained()).unwrap();
    let tensors = Model::from_bytes(&bytes, Path::new("w")).unwrap().tensors;
    let record = record_of(&bytes);
    let mut found = Vec::new();
    places(&record, String::new(), &mut found);
    let values = [
        json!(null),
        json!(true),
        json!(-1),
        json!(0),
        json!(1),
        json!(0.5),
        json!(1e308),
        json!(u64::MAX),
        json!(i64::MIN),
        json!(""),
        json!("x".repeat(100_000)),
        json!([]),
        json!([1, 1, 1]),
        json!([1e300, 1e300, 1e300]),
        json!({}),
        json!([[[[[[[[]]]]]]]]),
    ];
    let (mut read, mut refused) = (0, 0);
    for place in &found {
        for value in &values {
            let mut changed = record.clone();
            *changed.pointer_mut(place).unwrap() = value.clone();
            match Model::from_bytes(&with_record(&changed, &tensors), Path::new("w")) {
                Ok(model) => {
                    model
                        .parameter_count()
                        .expect("a model that is read can be built");
                    read += 1;
                }
                Err(_) => refused += 1,
            }
        }
    }
    eprintln!("{} places, {read} read, {refused} refused", found.len());
    assert!(found.len() > 30 && read > 50 && refused > 200);
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 3000,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(15),
        ..Default::default()
    })]

    /// Headers of files without a checksum, since a checksum would find every change before the header is read.
    #[test]
    fn changed_headers_never_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in prop::option::weighted(0.1, any::<prop::sample::Index>()),
        tail in prop::collection::vec(any::<u8>(), 0..3),
    ) {
        let model = small();
        let mut record = record_of(&model.to_bytes(Path::new("w")).unwrap());
        record["format"] = json!(1);
        let mut changed = with_record(&record, &model.tensors);
        let header = changed.len() - 32;
        for (index, value) in changes {
            let at = index.index(header);
            changed[at] = value;
        }
        if let Some(cut) = cut {
            changed.truncate(cut.index(changed.len()));
        }
        changed.extend(tail);
        let _ = readers(&changed);
    }
}

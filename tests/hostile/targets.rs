//! What is given damaged bytes: one function a kind of input. Each takes any bytes, says whether they were read, and panics
//! only where the program is wrong. `main.rs` damages the seeds at random; `fuzz/` has a coverage-guided fuzzer for each.
//!
//! Where a checksum would refuse every change at once, it is made right again, so that what lies behind it is reached.

use std::cell::LazyCell;
use std::collections::HashMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use obelisk::crossval;
use obelisk::dataset::{Dataset, Label};
use obelisk::nnunet::{self, Description, Plan};
use obelisk::predict::points::table::{self, Axes};
use obelisk::prepare::cropping_list;
use obelisk::preprocess::{Overrides, Preprocessing};
use obelisk::train::{Settings, checkpointed};
use obelisk::volume::dicom::Series;
use obelisk::volume::{self, Volume};
use obelisk::weights::Model;
use obelisk::weights::pth::Checkpoint;
use safetensors::tensor::{Dtype, TensorView};
use tempfile::TempDir;

/// A kind of input.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name; also that of its fuzzer.
    pub name: &'static str,
    /// Good inputs and odd ones, to be damaged.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Whether the bytes were read.
    pub read: fn(&[u8]) -> bool,
}

macro_rules! targets {
    ($($name:ident: $seeds:expr),+ $(,)?) => {
        /// All of them.
        pub const TARGETS: &[Target] = &[$(Target { name: stringify!($name), seeds: $seeds, read: $name }),+];
    };
}

targets! {
    nifti: || files("tests/reference/nifti", ".nii"),
    gzip: || files("tests/reference/nifti", ".nii.gz"),
    nifti_in_gzip: || files("tests/reference/nifti", ".nii"),
    mgh: || files("tests/reference/volumes", ".mgh"),
    nrrd: || files("tests/reference/volumes", ".nrrd"),
    dicom: slices,
    dataset: || texts(&[DECATHLON, NNUNET]),
    splits: || texts(&[
        r#"[{"train": ["a", "b"], "val": ["c"]}, {"train": ["b", "c"], "val": ["a"]}]"#,
        "[]",
    ]),
    config: || texts(&[&settings("unet"), &settings("obelisk"), FULL_CONFIG]),
    recipe: || files("recipes", ".toml"),
    weights: || [texts(&[WEIGHTS, OLDER_WEIGHTS]), vec![from_record(WEIGHTS)], files("tests/reference/pth", ".safetensors")].concat(),
    checkpoint: || [texts(&[CHECKPOINT]), vec![from_record(CHECKPOINT)]].concat(),
    zip: zips,
    pickle: pickles,
    points: || texts(&[
        "x,y,z\n1,2,3\n4,5.5,-6\n",
        "id;z;y;x\n7;1;2;3\n8;4;5.5;-6\n",
        "1 2 3\n4 5 6\n",
        "k\tj\ti\n1\t2\t3\n",
        "\u{feff}\"x\",\"y\",\"z\"\r\n1,2,3\r\n",
    ]),
    crops: || files("recipes", ".csv"),
    plans: || {
        let models = repository().join("tests/reference/nnunet");
        let mut paths: Vec<_> = models.read_dir().unwrap().map(|model| model.unwrap().path().join("model")).collect();
        // A dataset's folder in each, and a configuration's in that.
        for _ in 0..2 {
            paths.iter_mut().for_each(|path| *path = path.read_dir().unwrap().next().unwrap().unwrap().path());
        }
        paths.sort();
        paths.iter().map(|path| fs::read(path.join("plans.json")).unwrap()).collect()
    },
    brainchop: || texts(&[MESHNET]),
}

/// The target of this name.
pub fn find(name: &str) -> Target {
    *TARGETS
        .iter()
        .find(|target| target.name == name)
        .expect("a target")
}

fn repository() -> &'static Path {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    match folder.ends_with("fuzz") {
        true => folder.parent().expect("the repository"),
        false => folder,
    }
}

/// The files of a folder and of those within whose names end so.
fn files(folder: &str, ending: &str) -> Vec<Vec<u8>> {
    let mut folders = vec![repository().join(folder)];
    let mut paths: Vec<PathBuf> = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false => paths.push(path),
            }
        }
    }
    paths.retain(|path| path.to_string_lossy().ends_with(ending));
    paths.sort();
    paths.into_iter().map(|path| fs::read(path).unwrap()).collect()
}

/// Writes a new file: some file systems wait for the disk where an old one is cut and written again.
fn put(path: &Path, bytes: &[u8]) {
    let _ = fs::remove_file(path);
    fs::write(path, bytes).unwrap();
}

fn texts(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

/// A scan.
pub fn nifti(bytes: &[u8]) -> bool {
    volume::read_bytes(bytes, Path::new("a.nii")).is_ok_and(|volume| sound(&volume))
}

/// A compressed scan.
pub fn gzip(bytes: &[u8]) -> bool {
    volume::read_bytes(bytes, Path::new("a.nii.gz")).is_ok_and(|volume| sound(&volume))
}

/// A scan whose damage was compressed with it, behind right checksums.
pub fn nifti_in_gzip(bytes: &[u8]) -> bool {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    gzip(&encoder.finish().unwrap())
}

/// A scan of FreeSurfer's.
pub fn mgh(bytes: &[u8]) -> bool {
    volume::read_bytes(bytes, Path::new("a.mgh")).is_ok_and(|volume| sound(&volume))
}

/// A scan of NRRD's.
pub fn nrrd(bytes: &[u8]) -> bool {
    volume::read_bytes(bytes, Path::new("a.nrrd")).is_ok_and(|volume| sound(&volume))
}

const SERIES: &str = "tests/reference/dicom/oblique";
/// Slices of it; one number more is a file of many frames.
const SLICES: u8 = 10;

/// Slices in several transfer syntaxes, each behind its number, and a file of many frames.
fn slices() -> Vec<Vec<u8>> {
    let mut all = files(SERIES, ".dcm");
    assert_eq!(all.len(), usize::from(SLICES));
    all.extend(files("tests/reference/dicom", "enhanced.dcm"));
    let numbered = |(number, bytes): (u8, Vec<u8>)| [vec![number], bytes].concat();
    (0..).zip(all).map(numbered).collect()
}

/// A slice of a DICOM series among the others, or all of a series in one file, and its segmentation.
pub fn dicom(bytes: &[u8]) -> bool {
    let Some((number, bytes)) = bytes.split_first() else {
        return false;
    };
    let number = number % (SLICES + 1);
    DICOM.with(|folder| {
        let path = folder.path().join(format!("{number:03}.dcm"));
        let good = fs::read(&path);
        put(&path, bytes);
        let series = match number {
            SLICES => Series::open(&path, None),
            _ => Series::open(folder.path(), None),
        };
        let scan = series.and_then(|series| Ok((series.volume()?, series)));
        match good {
            Ok(good) => put(&path, &good),
            Err(_) => fs::remove_file(&path).unwrap(),
        }
        scan.is_ok_and(|(scan, series)| {
            let name = "a label".into();
            let _ = series.encode_segmentation(&vec![1; scan.data.len()], &[Label { value: 1, name }]);
            sound(&scan)
        })
    })
}

/// A read volume holds nothing that later steps can't have.
fn sound(volume: &Volume) -> bool {
    let geometry = &volume.geometry;
    assert_eq!(volume.data.len(), volume.channels * geometry.voxels());
    assert!(volume.data.iter().all(|v| v.is_finite()));
    assert!(geometry.affine.is_finite() && geometry.affine.inverse().is_finite());
    assert!(geometry.spacing.iter().all(|s| s.is_finite() && *s >= 0.0));
    let bytes = volume::encode_labels(&vec![1; geometry.voxels()], geometry, false).unwrap();
    let back = volume::read_bytes(&bytes, Path::new("back.nii")).unwrap();
    assert_eq!(back.geometry.shape, geometry.shape);
    true
}

const DECATHLON: &str = r#"{"name": "n", "modality": {"0": "CT"}, "labels": {"0": "background", "1": "liver", "7": "ignore"},
 "numTraining": 3, "training": [{"image": "./imagesTr/a.nii", "label": "./labelsTr/a.nii"},
 {"image": "./imagesTr/b.nii", "label": "./labelsTr/b.nii"}, {"image": "imagesTr/c.nii", "label": "labelsTr/c.nii"}]}"#;
const NNUNET: &str = r#"{"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1, "ignore": 2}, "numTraining": 3,
 "file_ending": ".nii"}"#;

/// A folder with three tiny cases in both layouts.
fn cases() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let scan = fs::read(repository().join("tests/reference/nifti/uint8.nii")).unwrap();
    let put = |name: String| fs::write(folder.path().join(name), &scan).unwrap();
    for sub in ["imagesTr", "labelsTr"] {
        fs::create_dir(folder.path().join(sub)).unwrap();
    }
    for id in ["a", "b", "c"] {
        put(format!("imagesTr/{id}.nii"));
        put(format!("imagesTr/{id}_0000.nii"));
        put(format!("labelsTr/{id}.nii"));
    }
    folder
}

thread_local! {
    static DICOM: LazyCell<TempDir> = LazyCell::new(|| {
        let folder = tempfile::tempdir().unwrap();
        for (number, bytes) in files(SERIES, ".dcm").iter().enumerate() {
            fs::write(folder.path().join(format!("{number:03}.dcm")), bytes).unwrap();
        }
        folder
    });
    static DATASET: LazyCell<TempDir> = LazyCell::new(cases);
    static SPLITS: LazyCell<TempDir> = LazyCell::new(|| {
        let folder = cases();
        fs::write(folder.path().join("dataset.json"), DECATHLON).unwrap();
        folder
    });
    static RUN: LazyCell<TempDir> = LazyCell::new(|| tempfile::tempdir().unwrap());
}

fn opened(folder: &Path) -> bool {
    let Ok(dataset) = Dataset::open(folder) else {
        return false;
    };
    assert!(dataset.labels.len() >= 2 && dataset.labels[0].value == 0 && !dataset.channels.is_empty());
    if let Ok(folds) = dataset.folds(None) {
        assert!(!folds.is_empty());
    }
    for fold in [0, 1, usize::MAX] {
        let _ = dataset.fold(None, fold);
    }
    if let Ok(preprocessing) = Preprocessing::derive(&dataset, Overrides::default()) {
        preprocessing
            .validate()
            .expect("weights of this dataset can be written");
    }
    true
}

/// `dataset.json`, of either layout.
pub fn dataset(bytes: &[u8]) -> bool {
    DATASET.with(|folder| {
        put(&folder.path().join("dataset.json"), bytes);
        opened(folder.path())
    })
}

/// `splits_final.json`.
pub fn splits(bytes: &[u8]) -> bool {
    SPLITS.with(|folder| {
        put(&folder.path().join("splits_final.json"), bytes);
        opened(folder.path())
    })
}

const FULL_CONFIG: &str = r#"dataset = "data"
arch = "obelisk-hybrid"
fold = 0
folds = "loo"
epochs = 3
batch = 1
samples = 64
steps = 8
seed = 7
learning_rate = 1e-3
schedule = "exponential"
loss = "dice"
orientation = "RAS"
spacing = [1.5, 1.0, 1.0]
size = [40, 56, 40]
stored_spacing = true
[forms]
texels = true
"#;

fn settings(arch: &str) -> String {
    toml::to_string(&Settings::new("data".into(), arch)).unwrap()
}

/// A training's `config.toml`.
pub fn config(bytes: &[u8]) -> bool {
    let Ok((settings, _)) = Settings::parse(&String::from_utf8_lossy(bytes)) else {
        return false;
    };
    can_be(&settings);
    let text = toml::to_string(&settings).expect("settings are a table");
    assert_eq!(Settings::parse(&text).unwrap().0, settings);
    true
}

/// Settings that have been read are of the kind that options give.
fn can_be(settings: &Settings) {
    assert!(settings.epochs > 0 && settings.batch > 0 && settings.validate_every > 0);
    assert!(settings.learning_rate > 0.0 && settings.learning_rate.is_finite());
    for number in [settings.weight_decay, settings.affine] {
        assert!(number >= 0.0 && number.is_finite());
    }
}

/// A cross-validation's recipe.
pub fn recipe(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    [false, true].into_iter().any(|paper| {
        crossval::rows(&text, Some(Path::new("data")), &[], paper).is_ok_and(|rows| {
            for row in &rows {
                assert!(
                    !row.name.contains(['/', '\\']) && !row.name.starts_with('.'),
                    "{}",
                    row.name
                );
                can_be(&row.settings);
            }
            !rows.is_empty()
        })
    })
}

/// What safetensors files of this program begin with behind their length, and what stands for the digits of their checksum
/// while it is computed.
const SEALED: &[u8] = br#"{"__metadata__":{"obelisk":"{\"checksum\":\""#;
const ZEROS: &[u8] = b"00000000";

/// The file with its own checksum, if it is one with a checksum.
fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
    let digits = 8 + SEALED.len()..8 + SEALED.len() + ZEROS.len();
    if bytes.get(8..digits.start) == Some(SEALED) && bytes.len() >= digits.end {
        bytes[digits.clone()].copy_from_slice(ZEROS);
        let checksum = format!("{:08x}", crc32fast::hash(&bytes));
        bytes[digits].copy_from_slice(checksum.as_bytes());
    }
    bytes
}

/// A file with this record and a tensor.
fn from_record(record: &str) -> Vec<u8> {
    let data = [0; 8];
    let view = TensorView::new(Dtype::F32, vec![2], &data).unwrap();
    let metadata = HashMap::from([("obelisk".to_owned(), record.to_owned())]);
    sealed(safetensors::serialize([("a.weight", view)], Some(metadata)).unwrap())
}

/// Bytes are a whole file or, from a brace on, the record of one: the file's header begins with its length.
fn safetensors_file(bytes: &[u8]) -> Vec<u8> {
    match bytes.first() {
        Some(b'{') => from_record(&String::from_utf8_lossy(bytes)),
        _ => sealed(bytes.to_vec()),
    }
}

const WEIGHTS: &str = r#"{"checksum":"00000000","format":2,"arch":"obelisk","preprocessing":{"orientation":"RAS",
 "spacing":[1.0,1.0,1.0],"grid":[16,16,16],"channels":[{"name":"CT","intensity":{"kind":"linear","divisor":1024.0,"offset":1.0}}],
 "labels":[{"value":0,"name":"background"},{"value":1,"name":"liver"}],"ignore":2},"training":{"dataset":"d","epochs":2,"seed":1,
 "fold":0,"trained_on":["a","b"],"held_out":["c"],"dice":0.87},"source":"w.pth"}"#;
const OLDER_WEIGHTS: &str = r#"{"format":1,"arch":"unet","preprocessing":{"channels":[{"name":"MRI","intensity":{"kind":"z-score"}}],
 "labels":[{"value":0,"name":"background"},{"value":4,"name":"b"}]},"dice":null}"#;

/// Weights: a file's record, or the whole file.
pub fn weights(bytes: &[u8]) -> bool {
    let file = safetensors_file(bytes);
    RUN.with(|folder| {
        let path = folder.path().join("weights.safetensors");
        put(&path, &file);
        let _ = Model::from_bytes(&file, &path); // builds the network, which the few tensors are not of
        Model::load(&path).is_ok_and(|model| {
            model.info.preprocessing.validate().unwrap();
            let _ = model.parameter_count();
            let again = model.to_bytes(&path).unwrap();
            put(&path, &again);
            assert_eq!(Model::load(&path).unwrap().info, model.info);
            true
        })
    })
}

const CHECKPOINT: &str = r#"{"checksum":"00000000","format":2,"settings":{"dataset":"data","arch":"obelisk","fold":0,"folds":4,
 "epochs":50,"batch":3,"samples":192,"steps":64,"seed":1,"learning_rate":0.002,"schedule":"cosine","weight_decay":1e-5,
 "loss":"hard-mining","affine":0.075,"validate_every":1,"spacing":[1.0,1.0,1.0],"size":[16,16,16],"forms":{"texels":true}},
 "epochs_done":2,"best":0.5,"log":[{"epoch":1,"learning_rate":0.002,"loss":1.5,"dice":[0.5],"dice_mean":0.5,"train_seconds":1.0,
 "validation_seconds":0.5,"offset_sigma":{"offset1":0.05}},{"epoch":2}]}"#;

/// A training's checkpoint: its record, or the whole file.
pub fn checkpoint(bytes: &[u8]) -> bool {
    RUN.with(|folder| {
        put(
            &folder.path().join("checkpoint.safetensors"),
            &safetensors_file(bytes),
        );
        checkpointed(folder.path()).is_ok_and(|found| {
            let (settings, epochs) = found.expect("a checkpoint is there");
            can_be(&settings);
            assert!(epochs > 0);
            true
        })
    })
}

/// A PyTorch checkpoint that is a zip archive.
pub fn zip(bytes: &[u8]) -> bool {
    let mut bytes = bytes.to_vec();
    right_checksums(&mut bytes);
    pytorch(&bytes)
}

/// Gives the entries of a zip archive the checksums of their bytes, as far as the archive says where these are.
fn right_checksums(bytes: &mut [u8]) {
    let number = |bytes: &[u8], at: usize, count: usize| {
        let field = bytes.get(at..at + count)?;
        Some(field.iter().rev().fold(0, |n, b| n << 8 | *b as usize))
    };
    for at in 0..bytes.len() {
        if !bytes[at..].starts_with(b"PK\x01\x02") {
            continue;
        }
        let right = |bytes: &[u8]| {
            let local = number(bytes, at + 42, 4)?;
            let start = local + 30 + number(bytes, local + 26, 2)? + number(bytes, local + 28, 2)?;
            let data = bytes.get(start..start + number(bytes, at + 20, 4)?)?;
            Some(crc32fast::hash(data).to_le_bytes())
        };
        if let Some(checksum) = right(bytes) {
            bytes[at + 16..at + 20].copy_from_slice(&checksum);
        }
    }
}

fn zips() -> Vec<Vec<u8>> {
    let mut seeds = files("tests/reference/pth", ".pth");
    seeds.retain(|bytes| bytes.starts_with(b"PK"));
    seeds
}

/// Pickles of the magic number, the version and the facts of the system, which a PyTorch checkpoint of the older kind begins with.
const BEFORE: &[u8] = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02N.";

/// What follows them: the pickles of the object and of its storages' names, and the storages.
pub fn pickle(bytes: &[u8]) -> bool {
    pytorch(&[BEFORE, bytes].concat())
}

fn pickles() -> Vec<Vec<u8>> {
    let seeds = files("tests/reference/pth", ".pth")
        .into_iter()
        .filter(|bytes| !bytes.starts_with(b"PK"));
    // The facts are a dict, and what follows it begins as every pickle does.
    let behind = |bytes: Vec<u8>| {
        let facts = BEFORE.len() - b"\x80\x02N.".len();
        let end = bytes
            .get(facts + 2..)?
            .windows(3)
            .position(|w| w == b".\x80\x02")?;
        Some(bytes[facts + 2 + end + 1..].to_vec())
    };
    seeds.filter_map(behind).collect()
}

fn pytorch(bytes: &[u8]) -> bool {
    let read = Checkpoint::read(bytes);
    if let Ok(checkpoint) = &read {
        for tensor in checkpoint.tensors.values() {
            assert_eq!(tensor.data.len(), tensor.shape.iter().product::<usize>());
        }
        let _ = Model::from_bytes(bytes, Path::new("w.pth")); // looks for the network of these tensors
    }
    read.is_ok()
}

/// nnU-Net's plans, with a dataset of regions.
pub fn plans(bytes: &[u8]) -> bool {
    let dataset = r#"{"channel_names": {"0": "MRI"}, "labels": {"background": 0, "whole": [1, 2], "part": [2]},
        "regions_class_order": [1, 2]}"#;
    let dataset = Description::parse(dataset).unwrap();
    let Ok(plans) = serde_json::from_slice(bytes) else {
        return false;
    };
    let plan = Plan::new(&plans, &dataset, "3d_fullres", Some(vec![0, 1, 2]));
    if let Ok(plan) = &plan {
        plan.check().unwrap();
        let _ = nnunet::graph(plan);
        let _ = nnunet::tile_count(
            plan,
            &volume::SpatialHeader::from_affine(glam::DMat4::IDENTITY)
                .geometry([64; 3])
                .unwrap(),
        );
    }
    plan.is_ok()
}

const MESHNET: &str = r#"{"format": "layers-model", "modelTopology": {"model_config": {"class_name": "Functional", "config": {"layers": [
 {"class_name": "InputLayer", "config": {"batch_input_shape": [null, 8, 9, 10, 1], "name": "in"}, "inbound_nodes": []},
 {"class_name": "Conv3D", "config": {"name": "a", "filters": 2, "kernel_size": [3, 3, 3], "strides": [1, 1, 1],
  "dilation_rate": [2, 2, 2], "padding": "same", "data_format": "channels_last", "activation": "linear", "use_bias": true},
  "inbound_nodes": [[["in", 0, 0, {}]]]},
 {"class_name": "Activation", "config": {"name": "b", "activation": "elu"}, "inbound_nodes": [[["a", 0, 0, {}]]]},
 {"class_name": "Conv3D", "config": {"name": "c", "filters": 3, "kernel_size": [1, 1, 1], "strides": [1, 1, 1],
  "dilation_rate": [1, 1, 1], "padding": "same", "data_format": "channels_last", "activation": "linear", "use_bias": true},
  "inbound_nodes": [[["b", 0, 0, {}]]]}]}}},
 "weightsManifest": [{"paths": ["w.bin"], "weights": [{"name": "a/kernel", "shape": [3, 3, 3, 1, 2], "dtype": "float32"},
 {"name": "a/bias", "shape": [2], "dtype": "float32"}, {"name": "c/kernel", "shape": [1, 1, 1, 2, 3], "dtype": "float32"},
 {"name": "c/bias", "shape": [3], "dtype": "float32"}]}]}"#;

/// The graph of a network of brainchop's, beside weights that fit the seed.
pub fn brainchop(bytes: &[u8]) -> bool {
    let files = [
        ("model.json".to_owned(), bytes.to_vec()),
        ("w.bin".to_owned(), vec![0; 65 * 4]),
    ];
    let model = Model::from_brainchop(&files.into(), "model5_gw_ae", None);
    if let Ok(model) = &model {
        model.parameter_count().unwrap();
    }
    model.is_ok()
}

/// A table of points, of either axes.
pub fn points(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    [Axes::World, Axes::Voxels].into_iter().any(|axes| {
        table::read(&text, axes).is_ok_and(|points| {
            assert!(!points.is_empty() && points.iter().all(|p| p.at.iter().all(|v| v.is_finite())));
            true
        })
    })
}

/// A list of crops.
pub fn crops(bytes: &[u8]) -> bool {
    cropping_list(&String::from_utf8_lossy(bytes)).is_ok()
}

//! Weights from elsewhere: recognised by their tensors, written as this program's weight files with the authors' names,
//! shapes and bytes, and refused with what differs where they fit no network.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};

use crate::common::shared;
#[cfg(feature = "cli")]
use crate::program::{adapter, obelisk_in};
use obelisk::graph::Graph;
use obelisk::model::{self, Builder};
use obelisk::predict::inference_graph;
use obelisk::tensor::Tensor;
use obelisk::weights::{self, Model};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

/// Type, shape and bytes of every tensor by name.
type Contents = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

fn stored(path: &Path) -> Contents {
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensor = |t: &TensorView| (t.dtype(), t.shape().to_vec(), t.data().to_vec());
    file.iter()
        .map(|(name, t)| (name.to_owned(), tensor(&t)))
        .collect()
}

/// A safetensors file without this program's record, as PyTorch code writes it.
fn foreign(path: &Path, tensors: &HashMap<String, Tensor>) {
    let views = tensors.iter().map(|(name, t)| {
        let data = bytemuck::cast_slice(&t.data);
        (name, TensorView::new(Dtype::F32, t.shape.clone(), data).unwrap())
    });
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

fn published() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference/obeliskhybrid_tcia_fold1")
}

fn trained() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/weights/hippocampus.safetensors")
}

fn refusal(path: &Path, arch: Option<&str>) -> String {
    let error = Model::open(path, arch).expect_err("a refusal").to_string();
    assert!(error.contains(path.to_str().unwrap()), "{error}");
    error
}

/// Folder, network, parameters (the authors' counts), and whether the file counts batches.
const PUBLISHED: [(&str, &str, usize, bool); 4] = [
    ("obeliskhybrid_tcia_fold1", "obeliskhybrid_tcia", 229_217, true),
    (
        "obeliskhybrid_visceral_fold1",
        "obeliskhybrid_visceral",
        230_208,
        true,
    ),
    ("obelisk_visceral_fold1", "obelisk_visceral", 131_464, true),
    ("allconvunet_tcia_fold1", "allconvunet_tcia", 883_740, false),
];

#[test]
fn the_authors_checkpoints_are_recognised_and_keep_their_names_shapes_and_bytes() {
    let Some(reference) = shared("reference") else {
        return;
    };
    let out = tempfile::tempdir().unwrap();
    for (folder, arch, parameters, counts) in PUBLISHED {
        let checkpoint = reference.join(folder).join("weights.pth");
        let model = Model::open(&checkpoint, None).unwrap();
        assert_eq!(model.info.arch, arch);
        assert_eq!(model.parameter_count().unwrap(), parameters, "{arch}");
        assert_eq!(!model.batches.is_empty(), counts, "{arch}");
        assert_eq!(model.info.training, None, "nobody knows how it was trained");
        assert_eq!(model.info.source.as_deref(), Some("weights.pth"));

        let written = out.path().join(format!("{arch}.safetensors"));
        model.save(&written, false).unwrap();
        let authors = reference.join(folder).join("weights.safetensors");
        assert_eq!(stored(&written), stored(&authors), "{arch}");
        // The authors' tensors as safetensors are recognised alike, and the written file says itself what it is.
        for path in [&authors, &written] {
            let again = Model::open(path, None).unwrap();
            assert_eq!(again.info.arch, arch);
            assert_eq!(again.info.preprocessing, model.info.preprocessing);
            assert_eq!(again.tensors, model.tensors);
            assert_eq!(again.batches, model.batches);
        }
        assert_eq!(Model::load(&written).unwrap().info, model.info);
    }
}

/// The lengths' low bytes are those that pickles (0x80) and zip archives (`PK`) begin with, too.
#[test]
fn weights_are_read_back_whatever_the_length_of_their_header() {
    let mut model = Model::load(&trained()).unwrap();
    model.info.source = Some(String::new());
    let length = |bytes: &[u8]| u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let shortest = length(&model.to_bytes(Path::new("w")).unwrap());
    let zip = usize::from(u16::from_le_bytes(*b"PK"));
    let longer = (0..256)
        .step_by(8)
        .chain([zip - 8, zip, zip + 8].map(|wanted| wanted - shortest));
    let mut first_bytes = HashSet::new();
    for longer in longer {
        model.info.source = Some("x".repeat(longer));
        let bytes = model.to_bytes(Path::new("w")).unwrap();
        assert_eq!(length(&bytes), shortest + longer);
        first_bytes.insert([bytes[0], bytes[1]]);
        let read = Model::from_bytes(&bytes, Path::new("w"))
            .unwrap_or_else(|e| panic!("a header of {:x?} bytes: {e}", &bytes[..8]));
        assert_eq!((&read.info, &read.tensors), (&model.info, &model.tensors));
    }
    let has = |wanted: fn(&[u8; 2]) -> bool| first_bytes.iter().any(wanted);
    assert!(has(|b| b[0] == 0x80) && has(|b| b == b"PK"));
}

#[test]
fn a_file_without_counts_of_batches_stays_without() {
    let folder = tempfile::tempdir().unwrap();
    let (with, without) = (
        folder.path().join("with.safetensors"),
        folder.path().join("without.safetensors"),
    );
    let model = Model::open(&published().join("weights.pth"), None).unwrap();
    model.save(&with, false).unwrap();
    foreign(&without, &model.tensors);
    let bare = Model::open(&without, None).unwrap();
    bare.save(&without, true).unwrap();
    let mut expected = stored(&with);
    assert_eq!(expected, stored(&published().join("weights.safetensors")));
    assert_eq!(expected.len(), 117);
    expected.retain(|name, _| !name.ends_with("num_batches_tracked"));
    assert_eq!(stored(&without), expected);
    // Both names and shapes are those of the network, no more and no fewer.
    let network = &model::find("obeliskhybrid_tcia").unwrap();
    let graph = inference_graph(network, &model.info.preprocessing, [144; 3]).unwrap();
    let needed: BTreeMap<_, _> = graph
        .parameters()
        .chain(graph.states())
        .map(|(_, v)| (&v.name, &v.spec.shape))
        .collect();
    let found: BTreeMap<_, _> = expected
        .iter()
        .map(|(name, (_, shape, _))| (name, shape))
        .collect();
    assert_eq!(found, needed);
}

#[test]
fn what_fits_no_network_is_told_by_name_and_shape() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("changed.safetensors");
    let model = Model::open(&published().join("weights.pth"), None).unwrap();
    let mut tensors = model.tensors.clone();
    let moved = tensors.remove("conv0.weight").unwrap();
    tensors.insert("first.weight".into(), moved);
    tensors.insert("linear1a.weight".into(), Tensor::zeros(&[128, 32, 1, 1, 1]));
    foreign(&path, &tensors);
    for arch in [None, Some("obeliskhybrid_tcia")] {
        let error = refusal(&path, arch);
        for part in [
            "obeliskhybrid_tcia",
            "missing: `conv0.weight`",
            "surplus: `first.weight`",
            "`linear1a.weight` is [128, 32, 1, 1, 1] instead of [128, 64, 1, 1, 1]",
        ] {
            assert!(error.contains(part), "`{part}` is not in: {error}");
        }
    }
    // Many differences are counted, not listed.
    let error = refusal(&path, Some("unet"));
    assert!(error.contains(" more") && error.len() < 1000, "{error}");
    assert!(refusal(&path, Some("nonesuch")).contains("obelisk-hybrid"));

    let mut tensors = model.tensors.clone();
    tensors.get_mut("batch1.running_var").unwrap().data[3] = f32::NAN;
    foreign(&path, &tensors);
    assert!(refusal(&path, None).contains("`batch1.running_var` has values that are not finite"));

    foreign(&path, &HashMap::from([("weight".into(), Tensor::zeros(&[2]))]));
    assert!(refusal(&path, None).contains("no network has its tensors"));
    assert!(refusal(&folder.path().join("absent.pth"), None).contains("absent.pth"));
}

#[test]
fn weights_whose_preprocessing_nobody_published_take_that_of_another_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("elsewhere.safetensors");
    let like = Model::load(&trained()).unwrap();
    foreign(&path, &like.tensors);
    let error = refusal(&path, None);
    assert!(
        error.contains("obelisk-hybrid") && error.contains("from the weights of a training run"),
        "{error}"
    );
    let model = Model::open_like(&path, None, &like.info).unwrap();
    assert_eq!(model.info.arch, like.info.arch);
    assert_eq!(model.info.preprocessing, like.info.preprocessing);
    assert_eq!(model.tensors, like.tensors);
    assert_eq!(model.info.training, None);

    // Other labels than the other file's.
    let mut graph = Graph::new();
    let image = graph
        .input("image", obelisk::tensor::Spec::flat(&[1, 1, 16, 16, 16]))
        .unwrap();
    let mut builder = Builder::new(&mut graph, false);
    model::find("obelisk-hybrid")
        .unwrap()
        .build(&mut builder, image, 5)
        .unwrap();
    foreign(&path, &weights::initialise(&graph, 1));
    let error = Model::open_like(&path, None, &like.info).unwrap_err().to_string();
    assert!(error.contains("`batch7U.bias` is [5] instead of [3]"), "{error}");
    assert!(
        refusal(&path, None).contains("its network is obelisk-hybrid"),
        "recognised by any number of labels"
    );

    // A file that knows itself takes no other's word, and no network that it does not fit.
    assert!(Model::open_like(&trained(), None, &like.info).is_err());
    assert!(refusal(&trained(), Some("unet")).contains("not those of unet"));
    assert_eq!(
        Model::open(&trained(), Some("obelisk-hybrid")).unwrap().tensors,
        like.tensors
    );
}

#[cfg(feature = "cli")]
#[test]
fn the_program_imports_and_keeps_what_exists() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = published().join("weights.pth");
    let checkpoint = checkpoint.to_str().unwrap();
    let run = |more: &[&str], code: i32| {
        let output = obelisk_in(folder.path(), &[&["import", checkpoint], more].concat());
        let text = [output.stdout, output.stderr].map(|t| String::from_utf8_lossy(&t).into_owned());
        assert_eq!(output.status.code(), Some(code), "{more:?}: {text:?}");
        text
    };
    let [out, _] = run(&["--output", "a.safetensors"], 0);
    for part in ["obeliskhybrid_tcia", "229217 parameters", "9 labels", "pancreas"] {
        assert!(out.contains(part), "{out}");
    }
    assert!(run(&["--output", "a.safetensors"], 1)[1].contains("--force"));
    let [json, _] = run(&["--output", "a.safetensors", "--force", "--json"], 0);
    let report: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(report["arch"], "obeliskhybrid_tcia");
    assert_eq!(report["parameters"], 229_217);
    assert_eq!(report["labels"].as_array().unwrap().len(), 9);
    assert_eq!(
        stored(&folder.path().join("a.safetensors")),
        stored(&published().join("weights.safetensors"))
    );

    assert!(run(&["--output", "a.pth"], 2)[1].contains(".safetensors"));
    assert!(run(&["--output", "b.safetensors", "--arch", "nonesuch"], 2)[1].contains("obelisk-hybrid"));
    assert!(run(&["--output", "b.safetensors", "--arch", "unet"], 1)[1].contains("not those of unet"));
    let like = trained();
    let [_, error] = run(
        &["--output", "b.safetensors", "--like", like.to_str().unwrap()],
        1,
    );
    assert!(error.contains("`batch7U.bias` is [9] instead of [3]"), "{error}");
    assert!(!folder.path().join("b.safetensors").exists());

    // A preprocessing that has to come from elsewhere, and a record that its tensors contradict.
    let bare = Model::load(&like).unwrap();
    foreign(&folder.path().join("bare.safetensors"), &bare.tensors);
    let output = obelisk_in(
        folder.path(),
        &["import", "bare.safetensors", "--output", "c.safetensors"],
    );
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("obelisk import FILE --like WEIGHTS"), "{error}");
    let mut contradicted = bare;
    contradicted.info.arch = "unet".into();
    contradicted
        .save(&folder.path().join("unet.safetensors"), false)
        .unwrap();
    let output = obelisk_in(
        folder.path(),
        &["import", "unet.safetensors", "--output", "c.safetensors"],
    );
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("not those of unet"), "{error}");
    // A cause is told once.
    let output = obelisk_in(
        folder.path(),
        &["import", "absent.pth", "--output", "c.safetensors"],
    );
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(error.matches("No such file").count(), 1, "{error}");
    assert!(!folder.path().join("c.safetensors").exists());
}

#[cfg(feature = "cli")]
#[test]
fn the_program_executes_nothing_of_a_hostile_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let hostile = here.join("tests/reference/pth/hostile");
    let scan = here.join("examples/data/imagesTs/hippocampus_041.nii.gz");
    std::fs::copy(scan, folder.path().join("scan.nii.gz")).unwrap();
    for name in [
        "system_reduce.pth",
        "system_reduce_legacy.pth",
        "system_inst.pth",
        "popen.pth",
    ] {
        let file = hostile.join(name);
        let file = file.to_str().unwrap();
        for arguments in [
            &["import", file, "--output", "out.safetensors"][..],
            &[
                "predict",
                "--model",
                file,
                "--input",
                "scan.nii.gz",
                "--output",
                "labels.nii.gz",
            ],
        ] {
            let output = obelisk_in(folder.path(), arguments);
            let error = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{error}");
            assert!(
                error.contains(name) && error.contains("nothing was executed"),
                "{error}"
            );
        }
    }
    // Their code would make a file beside the scan.
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[cfg(feature = "cli")]
#[test]
fn a_checkpoint_predicts_what_its_imported_file_does() {
    let folder = tempfile::tempdir().unwrap();
    if !adapter() {
        return;
    }
    let Some(reference) = shared("reference/obelisk_visceral_fold1") else {
        return;
    };
    let checkpoint = reference.join("weights.pth");
    let checkpoint = checkpoint.to_str().unwrap();
    let scan = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/data/imagesTs/hippocampus_041.nii.gz");
    let imported = obelisk_in(
        folder.path(),
        &["import", checkpoint, "--output", "imported.safetensors"],
    );
    assert!(imported.status.success(), "{imported:?}");
    for (model, output) in [(checkpoint, "a"), ("imported.safetensors", "b")] {
        let (labels, logits) = (format!("{output}.nii.gz"), format!("{output}.safetensors"));
        let files = [
            "--model",
            model,
            "--input",
            scan.to_str().unwrap(),
            "--output",
            &labels,
            "--logits",
            &logits,
        ];
        let done = obelisk_in(folder.path(), &[&["predict"], &files[..]].concat());
        assert!(done.status.success(), "{done:?}");
    }
    let [a, b] = ["a.safetensors", "b.safetensors"].map(|name| stored(&folder.path().join(name)));
    assert_eq!(a["logits"].1[0], 8);
    assert_eq!(a, b);
}

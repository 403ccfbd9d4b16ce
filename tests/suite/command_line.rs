//! The program as its users meet it: train, predict, evaluate, their files and their exit codes. On small settings of
//! the sample scans, since training here is to show that everything holds together.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::LazyLock;

use obelisk::volume::{self, Geometry, SpatialHeader};

use crate::program::*;

fn text(path: &Path) -> &str {
    path.to_str().expect("temporary paths are UTF-8")
}

/// A training of two epochs on six of the cases and a small grid, unless `more` says otherwise.
fn train(run: &Path, more: &[&str]) -> Output {
    static CASES: LazyLock<PathBuf> = LazyLock::new(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("six cases");
        few(&folder, 6);
        folder
    });
    let mut arguments = vec!["train", text(&CASES), "--out", text(run), "--size", "24,32,24"];
    if !more.contains(&"--epochs") {
        arguments.extend(["--epochs", "2"]);
    }
    arguments.extend(["--seed", "5"]);
    arguments.extend(more);
    obelisk(&arguments)
}

/// A copy of a run that several tests look at, trained by the first of them: fold 0 on the small grid.
fn trained(run: &Path) {
    static TRAINED: LazyLock<PathBuf> = LazyLock::new(|| {
        let run = Path::new(env!("CARGO_TARGET_TMPDIR")).join("trained");
        done(&train(&run, &["--fold", "0", "--force"]));
        run
    });
    copy(&TRAINED, run);
}

/// Kills a training after its first checkpoint and resumes it.
fn train_killed_and_resumed(config: &Path, run: &Path, more: &[&str]) {
    for _ in 0..5 {
        let mut training = command();
        training
            .args(["train", "--config", text(config), "--out", text(run)])
            .args(more);
        if killed_when(&mut training, || run.join("checkpoint.safetensors").exists()) {
            done(&obelisk(&["train", "--resume", "--out", text(run)]));
            return;
        }
        std::fs::remove_dir_all(run).unwrap();
    }
    panic!("five trainings ended before they could be killed");
}

#[test]
fn training_again_gives_the_same_bytes_though_killed_and_resumed() {
    if !adapter() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    trained(&path("a"));
    let weights = |run: &str| std::fs::read(path(run).join("last.safetensors")).unwrap();
    let config = std::fs::read_to_string(path("a").join("config.toml")).unwrap();
    assert!(
        config.contains("obelisk-hybrid") && config.contains("seed = 5"),
        "{config}"
    );
    let log = std::fs::read_to_string(path("a").join("log.csv")).unwrap();
    assert_eq!(log.lines().count(), 3, "{log}");
    assert!(
        log.starts_with("epoch,learning_rate,loss") && log.contains("dice_Anterior"),
        "{log}"
    );
    assert!(
        log.lines()
            .next()
            .unwrap()
            .ends_with(",offset1_sigma,offset2_sigma")
    );
    for line in log.lines().skip(1) {
        let sigma = line.rsplit(',').next().unwrap().parse::<f64>().unwrap();
        assert!((sigma - 0.05).abs() < 0.02, "two epochs from N(0, 0.05²): {line}");
    }
    for file in [
        "best.safetensors",
        "checkpoint.safetensors",
        "curve.png",
        "offsets.png",
    ] {
        assert!(path("a").join(file).exists(), "{file}");
    }

    // Another training, killed after the first epoch's checkpoint and resumed.
    train_killed_and_resumed(&path("a").join("config.toml"), &path("b"), &[]);
    assert_eq!(weights("a"), weights("b"));

    refused(&train(&path("a"), &[]), 1, "holds a run");
    // Held-out cases are named in the file.
    let (info, _) =
        obelisk::weights::load::<obelisk::weights::ModelInfo>(&path("a").join("best.safetensors")).unwrap();
    let training = info.training.unwrap();
    assert_eq!(training.held_out.len(), 2);
    assert_eq!(training.trained_on.len(), 4);
}

#[test]
fn a_training_records_its_forms_and_resuming_obeys_them() {
    if !adapter() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let config = |run: &str| std::fs::read_to_string(path(run).join("config.toml")).unwrap();
    let resume = |run: &str, more: &[&str]| {
        let run = path(run);
        obelisk(&[&["-vv", "train", "--resume", "--out", text(&run)], more].concat())
    };
    let opened_with = |output: &Output, texels: bool| {
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        match output.status.success() {
            true => assert!(told.contains(&format!("texels: {texels} }}")), "{told}"),
            // A GPU has no textures to read through.
            false => assert!(texels && told.contains("--forms"), "{told}"),
        }
    };
    trained(&path("a"));
    let built_in = config("a").contains("[forms]\ntexels = true\n");
    assert!(
        built_in || config("a").contains("[forms]\ntexels = false\n"),
        "{}",
        config("a")
    );
    copy(&path("a"), &path("b"));
    opened_with(&resume("b", &[]), built_in);
    // The record decides, unless --forms does. The run is finished, so that no kernel of other forms is compiled.
    let records =
        |texels: bool| config("a").replace(&format!("texels = {built_in}"), &format!("texels = {texels}"));
    std::fs::write(path("b").join("config.toml"), records(!built_in)).unwrap();
    opened_with(&resume("b", &[]), !built_in);
    let given = if built_in { "texels=on" } else { "texels=off" };
    opened_with(&resume("b", &["--forms", given]), built_in);
    assert_eq!(
        config("b"),
        records(!built_in),
        "what the run was begun with stays on record"
    );

    // Another run does not take them over. Its settings are on record before its first step.
    let (run, settings) = (path("c"), path("b").join("config.toml"));
    let train = ["train", "--config", text(&settings), "--out", text(&run)];
    let record = run.join("config.toml");
    assert!(killed_when(command().args(train), || record.exists()));
    assert!(
        config("c").contains(&format!("texels = {built_in}")),
        "{}",
        config("c")
    );

    // Nor do runs that older versions wrote miss them: these had what is built in.
    let (before, _) = config("a")
        .split_once("[forms]")
        .map(|(a, b)| (a.to_owned(), b.to_owned()))
        .unwrap();
    std::fs::write(path("b").join("config.toml"), &before).unwrap();
    opened_with(&resume("b", &[]), built_in);
    // What another version recorded is resumed as far as this one knows it; what someone writes is looked at twice.
    let other = format!("warmup = 3\n{}fills = 4099\n", records(built_in));
    std::fs::write(path("b").join("config.toml"), &other).unwrap();
    let output = resume("b", &[]);
    opened_with(&output, built_in);
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(told.contains("warmup, forms.fills"), "{told}");
    refused(&obelisk(&train), 2, "warmup");
}

#[test]
fn a_training_that_failed_at_its_start_does_not_block_the_corrected_command() {
    if !adapter() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let weights = |run: &str| std::fs::read(path(run).join("last.safetensors")).unwrap();
    let config = |run: &str| std::fs::read_to_string(path(run).join("config.toml")).unwrap();
    let resume = |run: &str, more: &[&str]| {
        let run = path(run);
        obelisk(&[&["train", "--resume", "--out", text(&run)], more].concat())
    };
    let begin = |rate: &str| {
        let more = ["--arch", TINY, "--learning-rate", rate, "--epochs", "1"];
        train(&path("again"), &more)
    };
    let failed = begin("1e30");
    refused(&failed, 1, "diverged");
    refused(&failed, 1, "lower --learning-rate");
    let left = std::fs::read_dir(path("again")).unwrap();
    let left = left.map(|e| e.unwrap().file_name().into_string().unwrap());
    assert_eq!(
        left.collect::<BTreeSet<_>>(),
        BTreeSet::from(["config.toml", "lock"].map(String::from))
    );
    copy(&path("again"), &path("resumed"));
    done(&begin("0.001"));
    let resumed = resume("resumed", &["--learning-rate", "0.001"]);
    done(&resumed);
    assert!(String::from_utf8_lossy(&resumed.stderr).contains("no checkpoint yet"));
    assert_eq!(weights("again"), weights("resumed"));
    assert_eq!(config("again"), config("resumed"));

    // Once there is a checkpoint, only the rate may change, and is on record then.
    refused(&train(&path("again"), &[]), 1, "holds a run");
    refused(&resume("again", &["--batch", "7"]), 2, "`batch` is 2 and not 7");
    assert_eq!(config("again"), config("resumed"));
    done(&resume("again", &["--learning-rate", "0.0005"]));
    assert_eq!(
        config("again"),
        config("resumed").replace("learning_rate = 0.001", "learning_rate = 0.0005")
    );

    // A setting of another version does not keep a run from going on; in a file that a person gives it is a mistake.
    let newer = format!("lookahead = 0.5\n{}", config("again"));
    std::fs::write(path("again").join("config.toml"), &newer).unwrap();
    let resumed = resume("again", &[]);
    done(&resumed);
    assert!(String::from_utf8_lossy(&resumed.stderr).contains("lookahead"));
    assert_eq!(config("again"), newer);
    let (given, run) = (path("again").join("config.toml"), path("other"));
    let given = obelisk(&["train", "--config", text(&given), "--out", text(&run)]);
    refused(&given, 2, "unknown settings: lookahead");
    assert!(!run.exists());
}

#[test]
fn options_override_the_papers_settings() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let data = data();
    let refusal = obelisk(&["train", text(&data), "--out", text(&run), "--paper", "--resume"]);
    refused(&refusal, 2, "--paper");
    if !adapter() {
        return;
    }
    done(&train(&run, &["--paper", "--batch", "3", "--affine", "0.1"]));
    let config = std::fs::read_to_string(run.join("config.toml")).unwrap();
    for line in [
        "epochs = 2",
        "batch = 3",
        "affine = 0.1",
        "schedule = \"exponential\"",
        "loss = \"hard-mining\"",
    ] {
        assert!(config.contains(line), "{line} is not in {config}");
    }
    let log = std::fs::read_to_string(run.join("log.csv")).unwrap();
    assert!(log.contains("\n2,0.0019800,"), "{log}");
}

#[test]
fn sparse_training_again_gives_the_same_bytes_though_killed_and_resumed() {
    if !adapter() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let weights = |run: &str| std::fs::read(path(run).join("last.safetensors")).unwrap();
    let sparse = [
        "--arch",
        "obelisk",
        "--samples",
        "40",
        "--steps",
        "12",
        "--fold",
        "0",
    ];
    let first = train(&path("a"), &sparse);
    done(&first);
    let told = String::from_utf8_lossy(&first.stderr).into_owned();
    assert!(told.contains("scans uploaded and smoothed"), "{told}");
    let config = std::fs::read_to_string(path("a").join("config.toml")).unwrap();
    assert!(
        config.contains("samples = 40") && config.contains("steps = 12"),
        "{config}"
    );
    train_killed_and_resumed(&path("a").join("config.toml"), &path("b"), &[]);
    assert_eq!(weights("a"), weights("b"));

    // Its weights answer at single points, the same by world coordinates and by voxels, and on any grid.
    let model = path("a").join("last.safetensors");
    let scans = obelisk::dataset::scans(&data().join("imagesTs"), 1).unwrap();
    let scan = &scans.values().next().unwrap()[0];
    let geometry = volume::read(scan).unwrap().geometry;
    let voxels: Vec<glam::DVec3> = (0..20)
        .map(|i| glam::DVec3::new(i as f64, (2 * i) as f64, 20.5 - i as f64))
        .collect();
    let table = |name: &str, points: Vec<glam::DVec3>| {
        let lines: String = points
            .iter()
            .map(|p| format!("{},{},{}\n", p.x, p.y, p.z))
            .collect();
        std::fs::write(path(name), lines).unwrap();
    };
    table("voxels.csv", voxels.clone());
    let world = |v: &glam::DVec3| geometry.affine.transform_point3(*v);
    table("world.csv", voxels.iter().map(world).collect());
    table("far.csv", vec![glam::DVec3::splat(9000.0)]);
    let predict = |output: &str, more: &[&str]| {
        let output = path(output);
        let mut arguments = vec!["predict", "--model", text(&model), "--input", text(scan)];
        arguments.extend(["--output", text(&output)]);
        arguments.extend(more);
        obelisk(&arguments)
    };
    done(&predict(
        "v.csv",
        &["--points", text(&path("voxels.csv")), "--voxels"],
    ));
    done(&predict("w.csv", &["--points", text(&path("world.csv"))]));
    let labels = |name: &str| -> Vec<String> {
        let text = std::fs::read_to_string(path(name)).unwrap();
        let lines = text.lines().skip(1);
        lines.map(|l| l.split(',').nth(3).unwrap().to_owned()).collect()
    };
    assert_eq!(labels("v.csv").len(), 20);
    assert_eq!(labels("v.csv"), labels("w.csv"));
    refused(
        &predict("f.csv", &["--points", text(&path("far.csv"))]),
        1,
        "line 1",
    );
    refused(
        &predict("v.csv", &["--points", text(&path("far.csv"))]),
        1,
        "--force",
    );
    done(&predict("fine.nii.gz", &["--grid-spacing", "2.5"]));
    let shape = volume::read(&path("fine.nii.gz")).unwrap().geometry.shape;
    assert_eq!(shape, geometry.shape);

    // Other networks can't, and this one can be told not to.
    refused(&train(&path("d"), &["--samples", "40"]), 2, "obelisk-unary");
    refused(
        &train(&path("d"), &["--arch", "obelisk", "--dense", "--steps", "3"]),
        2,
        "--dense",
    );
    done(&train(
        &path("e"),
        &["--arch", "obelisk", "--dense", "--epochs", "1"],
    ));
    let config = std::fs::read_to_string(path("e").join("config.toml")).unwrap();
    assert!(!config.contains("samples"), "{config}");
}

#[test]
fn predictions_have_the_scans_geometry_and_turned_scans_the_same_anatomy() {
    if !adapter() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    trained(&path("run"));
    let model = path("run").join("last.safetensors");

    // Turned twins of two scans: the same voxels, stored along other axes.
    std::fs::create_dir(path("scans")).unwrap();
    let scans = obelisk::dataset::scans(&data().join("imagesTs"), 1).unwrap();
    for (id, files) in scans.iter().take(2) {
        let scan = volume::read(&files[0]).unwrap();
        // Whole numbers: the label writer is what tests have to store a scan with.
        for (code, name) in [
            ("RAS", String::new()),
            ("LPI", "_LPI".into()),
            ("ASR", "_ASR".into()),
        ] {
            let turn = scan.geometry.orientation.to(code.parse().unwrap());
            let voxels: Vec<i32> = turn
                .apply(&scan.data, 1, scan.geometry.shape)
                .iter()
                .map(|v| *v as i32)
                .collect();
            let geometry = turned(&scan.geometry, code);
            volume::write_labels(
                &path("scans").join(format!("{id}{name}.nii.gz")),
                &voxels,
                &geometry,
                false,
            )
            .unwrap();
        }
    }
    let predict = |more: &[&str]| {
        let (scans, labels) = (path("scans"), path("labels"));
        let mut arguments = vec![
            "predict",
            "--model",
            text(&model),
            "--input",
            text(&scans),
            "--output",
            text(&labels),
        ];
        arguments.extend(more);
        obelisk(&arguments)
    };
    let overlays = path("overlays");
    assert_eq!(done(&predict(&["--overlay", text(&overlays)])).lines().count(), 6);
    assert_eq!(std::fs::read_dir(&overlays).unwrap().count(), 6);
    let modified = |id: &str| {
        std::fs::metadata(path("labels").join(id))
            .unwrap()
            .modified()
            .unwrap()
    };
    for id in scans.keys().take(2) {
        let name = format!("{id}.nii.gz");
        let plain = volume::read(&path("labels").join(&name)).unwrap();
        assert!(plain.data.iter().any(|v| *v != 0.0), "{id} has labels");
        for file in [
            name.clone(),
            format!("{id}_LPI.nii.gz"),
            format!("{id}_ASR.nii.gz"),
        ] {
            let scan = volume::read(&path("scans").join(&file)).unwrap();
            let labels = volume::read(&path("labels").join(&file)).unwrap();
            assert_eq!(labels.geometry.difference(&scan.geometry, 1e-6), None, "{file}");
            assert_eq!(labels.geometry.orientation, scan.geometry.orientation, "{file}");
            let back = labels.geometry.orientation.to(plain.geometry.orientation);
            assert!(
                back.apply(&labels.data, 1, labels.geometry.shape) == plain.data,
                "{file}: another anatomy"
            );
        }
    }

    // Run again: nothing is done twice, and nothing is replaced.
    let before = modified(&format!("{}.nii.gz", scans.keys().next().unwrap()));
    assert_eq!(done(&predict(&[])), "");
    assert_eq!(
        before,
        modified(&format!("{}.nii.gz", scans.keys().next().unwrap()))
    );

    // One scan with its logits; an output that exists is refused.
    let scan = path("scans").join(format!("{}.nii.gz", scans.keys().next().unwrap()));
    let (out, logits) = (path("one.nii.gz"), path("logits.safetensors"));
    let one = [
        "predict",
        "--model",
        text(&model),
        "--input",
        text(&scan),
        "--output",
        text(&out),
        "--logits",
        text(&logits),
    ];
    done(&obelisk(&one));
    let bytes = std::fs::read(&logits).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let shape = volume::read(&scan).unwrap().geometry.shape;
    assert_eq!(
        file.tensor("logits").unwrap().shape(),
        [3, shape[0], shape[1], shape[2]]
    );
    refused(&obelisk(&one), 1, "--force");

    // The two against their labels.
    let (unseen, report) = (path("unseen"), path("report.json"));
    std::fs::create_dir(&unseen).unwrap();
    let labels = path("references");
    std::fs::create_dir(&labels).unwrap();
    for id in scans.keys().take(2) {
        let name = format!("{id}.nii.gz");
        std::fs::copy(path("labels").join(&name), unseen.join(&name)).unwrap();
        std::fs::copy(data().join("labelsTs").join(&name), labels.join(&name)).unwrap();
    }
    let evaluate = [
        "evaluate",
        "--predictions",
        text(&unseen),
        "--labels",
        text(&labels),
        "--json",
        text(&report),
    ];
    assert!(done(&obelisk(&evaluate)).contains("mean"));
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(report).unwrap()).unwrap();
    assert_eq!(report["cases"].as_array().unwrap().len(), 2);
    // Labels against themselves score 1.
    let itself = done(&obelisk(&[
        "evaluate",
        "--predictions",
        text(&labels),
        "--labels",
        text(&labels),
    ]));
    assert!(itself.contains("1.000"), "{itself}");
}

/// The geometry of a scan's voxels stored along other axes.
fn turned(geometry: &Geometry, code: &str) -> Geometry {
    let turn = geometry.orientation.to(code.parse().unwrap());
    let shape = turn.permute(geometry.shape);
    // The corners of the voxel grid tell the new affine: origin and steps, through the turn of an index volume.
    let index: Vec<i32> = (0..geometry.voxels() as i32).collect();
    let moved = turn.apply(&index, 1, geometry.shape);
    let world = |at: [usize; 3]| {
        let old = moved[(at[0] * shape[1] + at[1]) * shape[2] + at[2]] as usize;
        let [_, h, w] = geometry.shape;
        let voxel = glam::DVec3::new((old / w / h) as f64, (old / w % h) as f64, (old % w) as f64);
        geometry.affine.transform_point3(voxel)
    };
    let origin = world([0, 0, 0]);
    let step = |at| (world(at) - origin).extend(0.0);
    let affine = glam::DMat4::from_cols(
        step([1, 0, 0]),
        step([0, 1, 0]),
        step([0, 0, 1]),
        origin.extend(1.0),
    );
    SpatialHeader::from_affine(affine).geometry(shape).unwrap()
}

#[test]
fn the_reach_of_offsets_is_drawn_and_measured() {
    if !adapter() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let picture = folder.path().join("offsets.png");
    let weights = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/weights/hippocampus.safetensors");
    let offsets = |more: &[&str]| {
        let arguments = ["offsets", "--model", text(&weights), "--output", text(&picture)];
        obelisk(&[&arguments[..], more].concat())
    };
    let report: serde_json::Value = serde_json::from_str(&done(&offsets(&["--json"]))).unwrap();
    assert!(picture.exists());
    let layers = report["layers"].as_array().unwrap();
    assert_eq!(layers.len(), 2);
    // the standard deviations of the stored tensors as numpy gives them
    for (layer, sigma) in layers
        .iter()
        .zip([[0.074577, 0.073564, 0.079547], [0.055987, 0.046842, 0.054460]])
    {
        for (axis, expected) in sigma.iter().enumerate() {
            let found = layer["sigma"][axis].as_f64().unwrap();
            assert!((found - expected).abs() < 1e-5, "{layer}");
            let before = layer["initial_sigma"][axis].as_f64().unwrap();
            assert!((before - 0.05).abs() < 0.01, "{layer}");
        }
    }
    refused(&offsets(&[]), 1, "--force");
    let text = done(&offsets(&["--force", "--spacing", "1,2,3"]));
    assert!(text.contains("40×56×48 voxels of 1×2×3 mm"), "{text}");
    assert!(text.contains("offset2: 512 offsets"), "{text}");
}

#[test]
fn mistakes_are_told_from_failures_by_exit_codes() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    refused(&obelisk(&["predict"]), 2, "--model");
    for (forms, part) in [
        ("fast", "built-in"),
        ("fills=0", "texels=on"),
        ("texels=maybe", "texels=off"),
    ] {
        refused(&obelisk(&["info", "--forms", forms]), 2, part);
    }
    refused(&obelisk(&["train", "--out", text(&path("run"))]), 2, "DATASET");
    let data = data();
    refused(
        &obelisk(&[
            "train",
            text(&data),
            "--out",
            text(&path("run")),
            "--arch",
            "nonesuch",
        ]),
        2,
        "obelisk-hybrid",
    );
    refused(
        &obelisk(&["train", text(&path("missing")), "--out", text(&path("run"))]),
        1,
        "dataset.json",
    );
    assert!(!path("run").exists(), "a refused training leaves no folder");
    std::fs::write(path("weights.safetensors"), b"not weights").unwrap();
    let (weights, scan) = (path("weights.safetensors"), path("scan.nii.gz"));
    std::fs::write(&scan, b"not a scan").unwrap();
    let predict = |output: &str| {
        obelisk(&[
            "predict",
            "--model",
            text(&weights),
            "--input",
            text(&scan),
            "--output",
            text(&path(output)),
        ])
    };
    refused(&predict("labels.nii.gz"), 1, "no safetensors file");
}

//! `obelisk crossval` as its users meet it, on ten sample cases in two folds, with one epoch of two networks.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::SystemTime;

use obelisk::crossval::{Table, finished};
use obelisk::dataset::{Dataset, Folds};
use obelisk::evaluate::{Options, evaluate};
use serde_json::json;

use crate::program::*;

/// A dataset of ten sample cases, unseen ones too.
fn dataset(folder: &Path) -> PathBuf {
    let data = data();
    let mut description: serde_json::Value =
        serde_json::from_slice(&std::fs::read(data.join("dataset.json")).unwrap()).unwrap();
    let mut cases = Vec::new();
    for (images, labels) in [("imagesTr", "labelsTr"), ("imagesTs", "labelsTs")] {
        let entries = std::fs::read_dir(data.join(images)).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        for name in names.into_iter().take(5) {
            let name = name.into_string().unwrap();
            let file = |folder: &str| data.join(folder).join(&name);
            cases.push(json!({"image": file(images), "label": file(labels)}));
        }
    }
    assert_eq!(cases.len(), 10);
    description["training"] = cases.into();
    let samples = folder.join("Samples");
    std::fs::create_dir(&samples).unwrap();
    std::fs::write(samples.join("dataset.json"), description.to_string()).unwrap();
    // all reference labels in one folder, for evaluate
    let references = folder.join("references");
    std::fs::create_dir(&references).unwrap();
    for case in Dataset::open(&samples).unwrap().cases {
        std::fs::copy(&case.label, references.join(case.label.file_name().unwrap())).unwrap();
    }
    samples
}

const NETWORKS: [&str; 2] = ["obelisk-hybrid", "meshnet"];

#[test]
fn folds_are_trained_once_and_the_table_has_evaluates_numbers() {
    if !adapter() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let samples = dataset(folder.path());
    std::fs::write(
        path("recipe.toml"),
        "folds = 2\nepochs = 1\nspacing = [3.0, 3.0, 3.0]\nsize = [16, 24, 16]\nseed = 5\n\n[networks.obelisk-hybrid]\ntitle = \"Hybrid\"\n\n\
         [networks.meshnet]\nloss = \"cross-entropy\"\nbatch = 3\n",
    )
    .unwrap();
    let command = |out: &str, more: &[&str]| {
        let mut command = command();
        command
            .arg("crossval")
            .arg(&samples)
            .arg("--config")
            .arg(path("recipe.toml"));
        command.arg("--out").arg(path(out)).args(more);
        command
    };
    let run = |out: &str, more: &[&str]| command(out, more).output().unwrap();
    let written = |out: &str| times(&path(out));

    // One fold alone: a table that says what it covers.
    let note = "Only part of the folds is finished: Hybrid has 1 of 2 (fold 1); meshnet has 1 of 2 (fold 1). All rows";
    let table = done(&run("one", &["--fold", "1"]));
    assert!(table.starts_with(&format!("**{note}")), "{table}");
    assert!(
        table.contains("| Hybrid | 226,529 |") && table.contains("weights: those of the last epoch"),
        "{table}"
    );
    assert_eq!(std::fs::read_to_string(path("one/table.md")).unwrap(), table);
    refused(&run("one", &["--fold", "2"]), 2, "they are 0 to 1");
    // What is trained later in the folder has the forms of what is there. It is stopped once the device says so: other forms
    // take a minute to compile on software Vulkan.
    copy(&path("one"), &path("forms"));
    std::fs::remove_dir_all(path("forms/meshnet")).unwrap();
    let recorded = path("forms/obelisk-hybrid/fold_1/config.toml");
    let config = std::fs::read_to_string(&recorded).unwrap();
    let (before, after) = match config.contains("texels = true") {
        true => ("texels = true", "texels = false"),
        false => ("texels = false", "texels = true"),
    };
    assert!(config.contains(before), "{config}");
    std::fs::write(&recorded, config.replace(before, after)).unwrap();
    let mut child = command("forms", &["--fold", "1", "-vv"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let told = std::io::BufReader::new(child.stderr.take().unwrap());
    // A GPU has no textures to read through and refuses.
    let opened = std::io::BufRead::lines(told)
        .map(|line| line.unwrap())
        .find(|line| line.contains("device opened") || line.contains("records forms of another adapter"))
        .expect("the device opens, or refuses the forms");
    child.kill().unwrap();
    child.wait().unwrap();
    let texels = after.replace(" =", ":");
    assert!(
        opened.contains(&texels) || opened.contains("texels=on"),
        "{opened}"
    );

    // The other fold is killed after its first training, and goes on from there: what is finished stays untouched.
    let result = path("two/obelisk-hybrid/fold_0/result.json");
    assert!(killed_when(&mut command("two", &["--fold", "0"]), || result.exists()));
    assert!(!path("two/meshnet/fold_0/result.json").exists());
    let first = written("two/obelisk-hybrid");
    // As if it had been killed between the last checkpoint and the predictions: they are made without training again.
    let trained = modified(&path("two/obelisk-hybrid/fold_0/checkpoint.safetensors"));
    let (result, kept) = (path("two/obelisk-hybrid/fold_0/result.json"), path("result.json"));
    std::fs::rename(&result, &kept).unwrap();
    done(&run("two", &["--fold", "0"]));
    assert_eq!(
        trained,
        modified(&path("two/obelisk-hybrid/fold_0/checkpoint.safetensors"))
    );
    assert_ne!(first, written("two/obelisk-hybrid"));
    let scores = |file: &Path| -> serde_json::Value {
        let result: serde_json::Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
        let cases = result["cases"].as_array().unwrap().iter();
        cases.map(|case| json!([case["case"], case["dice"]])).collect()
    };
    assert_eq!(
        scores(&result),
        scores(&kept),
        "the resumed fold gives the same labels"
    );

    // Merged by copying, everything is finished: a call trains nothing and makes the whole table.
    copy(&path("one"), &path("two"));
    let before = NETWORKS.map(|network| written(&format!("two/{network}")));
    let table = done(&run("two", &[]));
    assert_eq!(before, NETWORKS.map(|network| written(&format!("two/{network}"))));
    assert!(!table.contains("Only part"), "{table}");

    // The table is evaluate's report of the predictions.
    let table: Table = serde_json::from_slice(&std::fs::read(path("two/table.json")).unwrap()).unwrap();
    assert_eq!((table.folds, table.complete, table.labels.len()), (2, true, 2));
    let markdown = std::fs::read_to_string(path("two/table.md")).unwrap();
    let cases = std::fs::read_to_string(path("two/cases.csv")).unwrap();
    assert_eq!(cases.lines().count(), 1 + 20, "{cases}");
    let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-12, "{a} against {b}");
    for (row, network) in table.rows.iter().zip(NETWORKS) {
        let predictions = path("two").join(network).join("predictions");
        let report = evaluate(
            &predictions,
            &path("references"),
            &Options {
                labels: Some(&table.labels),
                ..Options::default()
            },
        )
        .unwrap();
        assert_eq!((row.cases, report.cases.len()), (10, 10));
        near(row.scores[0].unwrap().mean, report.means[0].unwrap());
        assert!(
            markdown.contains(&format!("{:.2} ± ", 100.0 * report.means[0].unwrap())),
            "{markdown}"
        );
        for (label, want) in row.label_scores[0].iter().zip(&report.label_means[0]) {
            near(label.unwrap().mean, want.unwrap());
        }
        let printed = done(&obelisk(&[
            "evaluate",
            "--dataset",
            samples.to_str().unwrap(),
            "--predictions",
            predictions.to_str().unwrap(),
            "--labels",
            path("references").to_str().unwrap(),
        ]));
        assert_eq!(printed, format!("{report}\n"));
        assert!(printed.contains("1 Anterior"), "{printed}");
        for case in &report.cases {
            let line = format!("{},{:.6},", case.case, case.means[0].unwrap());
            assert!(cases.contains(&line), "{line} is not in {cases}");
        }
        assert!(row.training_seconds > 0.0 && row.prediction_seconds > 0.0);
        assert!(row.inference_bytes < row.training_bytes && row.training_bytes < row.training_peak);
        assert!(row.inference_bytes <= row.inference_peak);
    }
    // Each case is held out by the fold that KFold says, and the network has not seen it.
    let dataset = Dataset::open(&samples).unwrap();
    for row in finished(&path("two")).unwrap() {
        for (k, fold) in row.iter().enumerate() {
            let want = dataset.fold(Some(Folds::Count(2)), k).unwrap().validation;
            let want: Vec<&str> = want.iter().map(|i| dataset.cases[*i].id.as_str()).collect();
            assert_eq!(
                fold.cases.iter().map(|c| c.case.as_str()).collect::<Vec<_>>(),
                want
            );
            let weights = path("two")
                .join(&fold.name)
                .join(format!("fold_{k}/last.safetensors"));
            let info = obelisk::weights::Model::load(&weights)
                .unwrap()
                .info
                .training
                .unwrap();
            assert_eq!(info.held_out, want);
            assert!(info.trained_on.iter().all(|id| !want.contains(&id.as_str())));
        }
    }

    // Metrics that were not asked for come from the predictions, without training; the rest stays as it was.
    let weights = modified(&path("two/meshnet/fold_0/last.safetensors"));
    let asked = ["--table", "--metrics", "dice,nsd,hd95", "--tolerance", "2"];
    let markdown = done(&run("two", &asked));
    for part in ["| Dice % |", "| HD95 mm |", "surface Dice within 2 mm"] {
        assert!(markdown.contains(part), "`{part}` is not in {markdown}");
    }
    let scored = written("two/meshnet");
    done(&run("two", &asked));
    assert_eq!(
        scored,
        written("two/meshnet"),
        "what is scored is not scored again"
    );
    assert_eq!(weights, modified(&path("two/meshnet/fold_0/last.safetensors")));
    let table: Table = serde_json::from_slice(&std::fs::read(path("two/table.json")).unwrap()).unwrap();
    let predictions = path("two/meshnet/predictions");
    let surfaces = obelisk::metrics::Surfaces {
        tolerance: 2.0,
        ..Default::default()
    };
    let scoring = obelisk::metrics::Scoring::new(obelisk::metrics::Choice::all(), surfaces);
    let options = Options {
        labels: Some(&table.labels),
        ignore: None,
        scoring,
    };
    let report = evaluate(&predictions, &path("references"), &options).unwrap();
    let row = table.rows.iter().find(|r| r.name == "meshnet").unwrap();
    for (metric, score) in row.scores.iter().enumerate() {
        if let Some(score) = score {
            let want = report.means[metric].unwrap();
            assert!(score.mean == want || (score.mean - want).abs() < 1e-9, "{metric}");
        }
    }
    assert_eq!(row.scores.iter().flatten().count(), 3);
    let scores: serde_json::Value =
        serde_json::from_slice(&std::fs::read(path("two/scores.json")).unwrap()).unwrap();
    // a pair of networks, three metrics, two labels and their mean
    assert_eq!(scores["tests"].as_array().unwrap().len(), 9);
    let latex = std::fs::read_to_string(path("two/table.tex")).unwrap();
    assert!(
        latex.contains("Hybrid & ") && latex.contains("\\toprule"),
        "{latex}"
    );

    // Other settings don't mix with what is there; --table needs no training.
    refused(&run("two", &["--epochs", "2"]), 1, "other settings");
    refused(&run("two", &["--folds", "3"]), 1, "other folds");
    done(&run("two", &["--table", "--arch", "meshnet"]));
    refused(&run("none", &["--table"]), 1, "no fold is finished");
    refused(
        &run("two", &["--arch", "nonesuch"]),
        2,
        "there is no network `nonesuch`",
    );
}

/// Every file with the time it was written.
fn times(folder: &Path) -> Vec<(PathBuf, SystemTime)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(times(&path)),
            false => found.push((path.clone(), modified(&path))),
        }
    }
    found.sort();
    found
}

fn modified(path: &Path) -> SystemTime {
    std::fs::metadata(path).unwrap().modified().unwrap()
}

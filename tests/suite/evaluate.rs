//! Scoring folders of label maps.

use std::fs;
use std::path::Path;

use obelisk::dataset::Label;
use obelisk::evaluate::{EvaluateError, Options, Report};
use obelisk::volume;

fn labels_ts() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/data/labelsTs")
}

fn evaluate(
    predictions: &Path,
    references: &Path,
    labels: Option<&[Label]>,
) -> Result<Report, EvaluateError> {
    let options = Options {
        labels,
        ..Options::default()
    };
    obelisk::evaluate::evaluate(predictions, references, &options)
}

/// The references shifted by one voxel along z, without the last case.
fn predictions(folder: &Path) -> Vec<String> {
    let mut files: Vec<_> = fs::read_dir(labels_ts())
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    files.sort();
    let missing = files.pop().unwrap();
    for file in &files {
        let map = volume::read(file).unwrap();
        let mut shifted = map.labels().unwrap();
        shifted.rotate_left(1);
        // .nii instead of .nii.gz: the ending is not part of the name
        let name = format!("{}.nii", volume::stem(file).unwrap());
        volume::write_labels(&folder.join(name), &shifted, &map.geometry, false).unwrap();
    }
    vec![volume::stem(&missing).unwrap().to_string()]
}

#[test]
fn a_folder_is_scored_and_what_is_missing_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let missing = predictions(folder.path());
    // the others' mean would be another one
    let message = evaluate(folder.path(), &labels_ts(), None)
        .unwrap_err()
        .to_string();
    for part in ["1 of 6 references", "labelsTs", &missing[0]] {
        assert!(message.contains(part), "`{part}` is not in {message}");
    }
    let map = volume::read(&labels_ts().join(format!("{}.nii.gz", missing[0]))).unwrap();
    let path = folder.path().join(format!("{}.nii.gz", missing[0]));
    volume::write_labels(&path, &vec![0; map.data.len()], &map.geometry, false).unwrap();
    let report = evaluate(folder.path(), &labels_ts(), None).unwrap();
    let empty = report.cases.iter().find(|case| case.case == missing[0]).unwrap();
    assert_eq!(empty.means[0], Some(0.0), "an empty map counts");
    fs::remove_file(&path).unwrap();
    let copies = tempfile::tempdir().unwrap();
    for file in fs::read_dir(labels_ts()).unwrap().map(|e| e.unwrap().path()) {
        if volume::stem(&file).unwrap() != missing[0] {
            fs::copy(&file, copies.path().join(file.file_name().unwrap())).unwrap();
        }
    }
    let report = evaluate(folder.path(), copies.path(), None).unwrap();
    assert_eq!(report.labels.iter().map(|l| l.value).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(report.cases.len(), 5);
    for case in &report.cases {
        // the reference by another way: direct counts of both maps
        let file = folder.path().join(format!("{}.nii", case.case));
        let a = volume::read(&file).unwrap().labels().unwrap();
        let b = volume::read(&labels_ts().join(format!("{}.nii.gz", case.case)))
            .unwrap()
            .labels()
            .unwrap();
        for (label, dice) in [1, 2].iter().zip(&case.scores[0]) {
            let count = |m: &[i32]| m.iter().filter(|v| *v == label).count() as f64;
            let both = a.iter().zip(&b).filter(|(a, b)| a == b && *a == label).count() as f64;
            let want = 2.0 * both / (count(&a) + count(&b));
            assert!((dice.unwrap() - want).abs() < 1e-12, "{} {label}", case.case);
            assert!(want > 0.5 && want < 1.0);
        }
    }
    let named = [Label {
        value: 2,
        name: "Posterior".into(),
    }];
    let posterior = evaluate(folder.path(), copies.path(), Some(&named)).unwrap();
    assert_eq!(posterior.label_means[0], report.label_means[0][1..]);
}

#[test]
fn other_grids_and_missing_references_are_errors_that_name_both_files() {
    let folder = tempfile::tempdir().unwrap();
    let missing = format!("{}.nii.gz", predictions(folder.path())[0]);
    fs::copy(labels_ts().join(&missing), folder.path().join(&missing)).unwrap();
    let first = fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.extension().is_some_and(|ending| ending == "nii"))
        .unwrap();
    let mut map = volume::read(&first).unwrap();
    let values = map.labels().unwrap();
    map.geometry.header.rows[0][3] += 0.01;
    map.geometry.header.sform_code = 1;
    volume::write_labels(&first, &values, &map.geometry, true).unwrap();
    let message = evaluate(folder.path(), &labels_ts(), None)
        .unwrap_err()
        .to_string();
    let name = volume::stem(&first).unwrap();
    assert!(
        message.contains(&format!("{name}.nii ")) && message.contains(&format!("{name}.nii.gz")),
        "{message}"
    );
    assert!(
        message.contains("voxels of 1 × 1 × 1 mm") && message.contains("against"),
        "{message}"
    );

    fs::rename(&first, folder.path().join("a.nii")).unwrap();
    let message = evaluate(folder.path(), &labels_ts(), None)
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("a.nii has no reference in") && message.contains("labelsTs"),
        "{message}"
    );
    let empty = tempfile::tempdir().unwrap();
    let message = evaluate(empty.path(), &labels_ts(), None)
        .unwrap_err()
        .to_string();
    assert!(message.contains("holds no .nii"), "{message}");
}

/// What is read and written again is the same text: records of runs, models and tables have the fields they always had.
#[test]
fn records_keep_their_fields() {
    fn keeps<T: serde::Serialize + serde::de::DeserializeOwned>(text: &str) {
        let record: T = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&record).unwrap(), text);
    }
    keeps::<obelisk::evaluate::Report>(
        r#"{"labels":[{"value":1,"name":"a"}],"cases":[{"case":"x","dice":[0.5],"mean":0.5},{"case":"y","dice":[null],"mean":null}],"label_means":[0.5],"mean":0.5}"#,
    );
    keeps::<obelisk::train::EpochRecord>(
        r#"{"epoch":1,"learning_rate":0.002,"loss":1.5,"dice":[null,0.25],"mean_dice":0.25,"train_seconds":2.0,"validation_seconds":1.0,"offset_sigma":{"offset1":0.05}}"#,
    );
    keeps::<obelisk::train::EpochRecord>(
        r#"{"epoch":2,"learning_rate":0.002,"loss":1.5,"dice":[],"mean_dice":null,"train_seconds":2.0,"validation_seconds":0.0,"offset_sigma":{}}"#,
    );
    for score in ["null", "0.75"] {
        keeps::<obelisk::weights::TrainingRecord>(&format!(
            r#"{{"dataset":"d","epochs":4,"seed":18446744073709551615,"fold":null,"trained_on":["a"],"held_out":[],"dice":{score}}}"#,
        ));
    }
    keeps::<obelisk::crossval::HeldOut>(r#"{"case":"x","dice":[0.5,null],"mean":0.5,"seconds":0.25}"#);
    keeps::<obelisk::crossval::Table>(
        r#"{"dataset":"d","folds":2,"complete":true,"labels":[{"value":1,"name":"a"}],"rows":[{"name":"n","method":"m","arch":"unet","parameters":3,"folds":[0,1],"cases":2,"dice":{"mean":0.5,"deviation":0.1},"label_dice":[{"mean":0.5,"deviation":null}],"training_bytes":4,"inference_bytes":5,"training_peak":6,"inference_peak":7,"training_seconds":1.5,"prediction_seconds":0.5,"weights":"last","epochs":1,"adapters":["a"]}]}"#,
    );
}

#[cfg(feature = "cli")]
mod program {
    use super::*;
    use crate::program::{done, obelisk, refused};

    /// The references, shifted along z by `steps` voxels; one case lacks a label.
    fn shifted(folder: &Path, steps: usize, missing: bool) {
        fs::create_dir(folder).unwrap();
        let files = fs::read_dir(labels_ts()).unwrap().map(|e| e.unwrap().path());
        for (i, file) in files.enumerate() {
            let map = volume::read(&file).unwrap();
            let mut labels = map.labels().unwrap();
            labels.rotate_left(steps);
            if missing && i == 2 {
                labels.iter_mut().filter(|v| **v == 2).for_each(|v| *v = 0);
            }
            let path = folder.join(file.file_name().unwrap());
            volume::write_labels(&path, &labels, &map.geometry, false).unwrap();
        }
    }

    #[test]
    fn methods_are_compared_and_written_as_csv_json_and_latex() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        shifted(&folder.path().join("near"), 1, false);
        shifted(&folder.path().join("far"), 3, true);
        let references = labels_ts().to_str().unwrap().to_owned();
        let (near, far) = (path("near"), path("far"));
        let (json, csv, latex) = (path("a.json"), path("a.csv"), path("a.tex"));
        let scored = ["evaluate", "--predictions", &near, "--labels", &references];
        let files = ["--json", &json, "--csv", &csv, "--latex", &latex];

        let one = done(&obelisk(&[&scored[..], &files].concat()));
        for part in [
            "Dice\ncase",
            "surface Dice within 1 mm",
            "HD95 mm",
            "95 % interval",
        ] {
            assert!(one.contains(part), "`{part}` is not in {one}");
        }
        let report: Report = serde_json::from_slice(&fs::read(&json).unwrap()).unwrap();
        assert_eq!(one, format!("{report}\n"));
        assert_eq!(fs::read_to_string(&csv).unwrap().lines().count(), 1 + 6 * 2);
        assert!(!fs::read_to_string(&latex).unwrap().contains("textbf"));
        refused(
            &obelisk(&[&scored[..], &files].concat()),
            1,
            "--force replaces it",
        );

        let both = [
            &scored[..],
            &["--against", &far, "--metrics", "dice,hd95", "--force"],
            &files,
        ]
        .concat();
        let table = done(&obelisk(&both));
        for part in ["near", "far", "against near", "inf [", "(1 infinite, median"] {
            assert!(table.contains(part), "`{part}` is not in {table}");
        }
        assert!(!table.contains("Jaccard"), "{table}");
        let value: serde_json::Value = serde_json::from_slice(&fs::read(&json).unwrap()).unwrap();
        let methods: obelisk::evaluate::Methods = serde_json::from_value(value.clone()).unwrap();
        assert_eq!(methods.to_string() + "\n", table);
        // two metrics, two labels and their mean
        assert_eq!(methods.tests.len(), 6);
        let missed = methods.methods[1].report.summary.iter();
        let missed: Vec<usize> = missed
            .filter(|s| s.metric == "hd95")
            .map(|s| s.infinite)
            .collect();
        assert_eq!(missed, [0, 1, 1]);
        for test in methods.tests {
            assert_eq!((test.cases, test.p, test.exact), (6, 2.0 / 64.0, true));
            assert_eq!(test.p_holm, 3.0 * test.p);
        }
        let lines = fs::read_to_string(&csv).unwrap();
        assert!(
            lines.starts_with("method,case,label,name,dice,hd95\n") && lines.contains(",inf\n"),
            "{lines}"
        );
        assert_eq!(lines.lines().count(), 1 + 2 * 6 * 2);
        let latex = fs::read_to_string(&latex).unwrap();
        assert!(
            latex.contains("near & \\textbf{") && latex.contains("$\\infty$"),
            "{latex}"
        );
        // the same call gives the same bytes
        let before = fs::read(&json).unwrap();
        done(&obelisk(&both));
        assert_eq!(fs::read(&json).unwrap(), before);

        let with = |more: &[&str]| obelisk(&[&scored[..], more].concat());
        refused(
            &with(&["--metrics", "dice,hausdorff"]),
            2,
            "there is no metric `hausdorff`",
        );
        refused(&with(&["--tolerance=-1"]), 2, "0 or above");
        refused(
            &with(&["--against", &near]),
            2,
            "two methods are named near; give --names",
        );
        refused(
            &with(&["--against", &far, "--names", "a"]),
            2,
            "1 names for 2 folders",
        );
        let named = done(&with(&[
            "--against",
            &near,
            "--names",
            "a,b",
            "--metrics",
            "dice",
        ]));
        assert!(named.contains("1.0000"), "the same scores don't differ: {named}");
    }
}

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

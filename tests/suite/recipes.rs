//! The recipes of the paper's tables: every row's network can be planned at the paper's size, and the lists beside them
//! agree with each other.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use obelisk::crossval::{Row, rows};
use obelisk::dataset::{Folds, Label};
use obelisk::model;
use obelisk::op::Caps;
use obelisk::plan::Plan;
use obelisk::predict::inference_graph;
use obelisk::prepare::{cropping_list, number};
use obelisk::preprocess::{Channel, Intensity, Preprocessing};
use obelisk::train::{Loss, Schedule, step_graph};

fn recipes(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes").join(name)
}

fn recipe(name: &str) -> Vec<Row> {
    let text = std::fs::read_to_string(recipes(name)).unwrap();
    rows(&text, Some(Path::new("data")), &[], false).unwrap()
}

/// Plans a step and the inference on a card that takes bindings of 4 GiB.
fn plan(row: &Row, labels: usize) -> (Plan, Plan) {
    let settings = &row.settings;
    let preprocessing = Preprocessing {
        orientation: None,
        spacing: None,
        grid: settings.size,
        ignore: None,
        channels: vec![Channel {
            name: "CT".into(),
            intensity: Intensity::CT,
        }],
        labels: (0..labels as i32)
            .map(|value| Label {
                value,
                name: value.to_string(),
            })
            .collect(),
    };
    let caps = Caps {
        max_binding: 4 << 30,
        max_buffer: 4 << 30,
        ..Caps::PORTABLE
    };
    let network = &model::find(&settings.arch).unwrap();
    let step = step_graph(settings, &preprocessing).unwrap_or_else(|e| panic!("{}: {e}", row.name));
    let inference = inference_graph(network, &preprocessing, settings.size.unwrap()).unwrap();
    let plan = |graph| Plan::new(graph, &caps).unwrap_or_else(|e| panic!("{}: {e}", row.name));
    (plan(&step), plan(&inference))
}

#[test]
fn every_row_is_the_papers_network_and_training() {
    // Trained numbers as the specification's layers have them; the paper's own counts are rounded.
    let tcia = [
        ("obelisk", 0.130),
        ("obelisk-hybrid", 0.230),
        ("unet", 0.880),
        ("unet-lean", 0.220),
        ("unet-global-fc", 16.0),
    ];
    let visceral = [
        ("obelisk-unary", 0.126),
        ("obelisk-random", 0.124),
        ("obelisk", 0.130),
        ("obelisk", 0.130),
        ("obelisk-hybrid", 0.230),
        ("unet", 0.880),
        ("unet", 0.880),
        ("unet-global-fc", 13.0),
        ("unet-global-fc", 13.0),
    ];
    for (name, labels, want) in [("tcia.toml", 9, &tcia[..]), ("visceral.toml", 8, &visceral[..])] {
        let rows = recipe(name);
        assert_eq!(
            rows.iter().map(|r| r.settings.arch.as_str()).collect::<Vec<_>>(),
            want.iter().map(|w| w.0).collect::<Vec<_>>()
        );
        for (row, (_, millions)) in rows.iter().zip(want) {
            let settings = &row.settings;
            let sparse = settings.samples.is_some();
            assert_eq!(
                (settings.epochs, settings.batch),
                if sparse { (50, 3) } else { (300, 4) },
                "{}",
                row.name
            );
            assert_eq!(
                (settings.learning_rate, settings.schedule),
                (0.002, Schedule::Exponential)
            );
            let mined = settings.arch.starts_with("obelisk");
            assert_eq!(
                settings.loss,
                if mined {
                    Loss::HardMining
                } else {
                    Loss::CrossEntropy
                }
            );
            let augmented = name == "tcia.toml" || row.title.ends_with("++");
            assert_eq!(
                settings.affine,
                if augmented { 0.075 } else { 0.0 },
                "{}",
                row.name
            );
            let (step, inference) = plan(row, labels);
            let count: usize = step
                .parameters
                .entries
                .iter()
                .map(|(_, s, _)| s.shape.iter().product::<usize>())
                .sum();
            let count = count as f64 / 1e6;
            assert!(
                (count / millions - 1.0).abs() < 0.3,
                "{}: {count} against {millions} million parameters",
                row.name
            );
            eprintln!(
                "{name} {}: {count:.3} million parameters, training {} MiB, inference {} MiB",
                row.name,
                step.device_bytes() >> 20,
                inference.device_bytes() >> 20
            );
        }
    }
    assert!(
        recipe("tcia.toml")
            .iter()
            .all(|r| r.settings.folds == Some(Folds::Splits))
    );
    assert!(
        recipe("visceral.toml")
            .iter()
            .all(|r| r.settings.folds == Some(Folds::LeaveOneOut))
    );
}

#[test]
fn the_published_folds_hold_out_each_listed_scan_once() {
    let text = std::fs::read_to_string(recipes("tcia_cropping.csv")).unwrap();
    let list = cropping_list(&text).unwrap();
    let listed: Vec<u64> = list
        .iter()
        .filter(|c| c.data_set == "Pancreas-CT")
        .map(|c| c.number)
        .collect();
    assert_eq!((list.len(), listed.len()), (90, 43));
    let text = std::fs::read_to_string(recipes("tcia_splits_final.json")).unwrap();
    let folds: Vec<std::collections::BTreeMap<String, Vec<String>>> = serde_json::from_str(&text).unwrap();
    assert_eq!(
        folds.iter().map(|f| f["val"].len()).collect::<Vec<_>>(),
        [10, 11, 11, 11]
    );
    let held_out: Vec<u64> = folds
        .iter()
        .flat_map(|f| &f["val"])
        .map(|id| number(id).unwrap())
        .collect();
    assert_eq!(held_out, listed);
    for fold in &folds {
        let all: BTreeSet<&String> = fold["train"].iter().chain(&fold["val"]).collect();
        assert_eq!((all.len(), fold["train"].len() + fold["val"].len()), (43, 43));
    }
}

//! Metrics against DeepMind's surface-distance, MONAI and scipy, on real masks and degenerate ones.

use std::io::Read;

use obelisk::metrics::{Choice, Comparison, METRICS, Scoring, Surface, Surfaces};
use obelisk::statistics::wilcoxon;
use serde_json::Value;

use crate::common::reference;

/// Label maps by name: shape and labels.
fn masks() -> Vec<(String, Vec<usize>, Vec<i32>)> {
    let file = std::fs::File::open(reference("metrics/masks.safetensors.gz")).unwrap();
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(file)
        .read_to_end(&mut bytes)
        .unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let labels = |view: &[u8]| view.iter().map(|v| i32::from(*v)).collect();
    file.iter()
        .map(|(name, view)| (name.to_owned(), view.shape().to_vec(), labels(view.data())))
        .collect()
}

fn json(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(reference(name)).unwrap()).unwrap()
}

/// A stored score: `"inf"` is infinite, null not defined.
fn stored(value: &Value) -> Option<f64> {
    match value {
        Value::Null => None,
        Value::String(text) => {
            assert_eq!(text, "inf");
            Some(f64::INFINITY)
        }
        number => Some(number.as_f64().unwrap()),
    }
}

fn same(ours: Option<f64>, theirs: Option<f64>) -> bool {
    match (ours, theirs) {
        (Some(a), Some(b)) => a == b || (a - b).abs() <= 1e-6 * b.abs().max(1.0),
        (None, None) => true,
        _ => false,
    }
}

#[test]
fn scores_are_those_of_surface_distance_and_monai() {
    let (masks, scores) = (masks(), json("metrics/scores.json"));
    let map = |name: String| masks.iter().find(|m| m.0 == name).unwrap();
    let cases = scores.as_object().unwrap();
    assert!(cases.len() > 25);
    let (mut compared, mut different) = (0, Vec::new());
    for (case, expected) in cases {
        let prediction = map(format!("{case}.prediction"));
        let reference = map(format!("{case}.reference"));
        let shape: [usize; 3] = prediction.1.clone().try_into().unwrap();
        let spacing: [f64; 3] = serde_json::from_value(expected["spacing"].clone()).unwrap();
        let maps = Comparison::new(&prediction.2, &reference.2, shape, spacing, None);
        for definition in [Surface::Elements, Surface::Voxels] {
            let surfaces = Surfaces {
                definition,
                tolerance: expected["tolerance"].as_f64().unwrap(),
                ..Surfaces::default()
            };
            let ours = maps
                .scores(&Scoring::new(Choice::all(), surfaces), |_| true)
                .unwrap();
            for (label, theirs) in expected["labels"].as_object().unwrap() {
                let packages: &[&str] = match definition {
                    Surface::Elements => &["elements", "subvoxels", "overlap"],
                    Surface::Voxels => &["voxels"],
                };
                for package in packages {
                    for (name, theirs) in theirs[package].as_object().unwrap() {
                        let metric = METRICS.iter().position(|m| m.name == name).unwrap();
                        let ours = ours.get(&label.parse().unwrap());
                        let score = ours.and_then(|scores| scores[metric]);
                        // A volume of nothing is 0 there; here a label that no map has is not scored at all.
                        if ours.is_none() {
                            assert!(matches!(stored(theirs), None | Some(0.0)));
                            continue;
                        }
                        // surface-distance divides no distance by no area on the empty side, and MONAI interpolates between
                        // infinities
                        let theirs = match (name.as_str(), *package, stored(theirs)) {
                            ("assd", "elements", None) | ("hd95", "voxels", None) => Some(f64::INFINITY),
                            (_, _, theirs) => theirs,
                        };
                        if !same(score, theirs) {
                            different.push(format!(
                                "{case} {package} {label} {name}: {score:?}, not {theirs:?}"
                            ));
                        }
                        compared += 1;
                    }
                }
            }
        }
    }
    assert!(different.is_empty(), "{}", different.join("\n"));
    assert!(compared > 500, "{compared}");
}

/// What a metric is where there is little to score, by hand: prediction, reference, and by metric the scores.
#[test]
fn degenerate_labels_have_the_scores_that_the_documentation_says() {
    const INF: f64 = f64::INFINITY;
    type Row<'a> = (&'a str, [i32; 4], [i32; 4], [Option<f64>; 12]);
    // voxels of 1 × 1 × 2 mm in a row: dice, jaccard, precision, recall, nsd, hd, hd95, assd, volume in µl, reference's, errors
    let one = Some(1.0);
    let (zero, inf) = (Some(0.0), Some(INF));
    #[rustfmt::skip]
    let rows: [Row; 4] = [
        ("identical", [0, 1, 1, 0], [0, 1, 1, 0],
            [one, one, one, one, one, zero, zero, zero, Some(4.0), Some(4.0), zero, zero]),
        ("disjoint", [1, 0, 0, 0], [0, 0, 0, 1],
            [zero, zero, zero, zero, zero, Some(6.0), Some(6.0), Some(5.0), Some(2.0), Some(2.0), zero, zero]),
        ("prediction empty", [0, 0, 0, 0], [0, 1, 0, 0],
            [zero, zero, None, zero, zero, inf, inf, inf, zero, Some(2.0), Some(2.0), one]),
        ("reference empty", [0, 1, 0, 0], [0, 0, 0, 0],
            [zero, zero, zero, None, zero, inf, inf, inf, Some(2.0), zero, Some(2.0), None]),
    ];
    for (what, prediction, reference, want) in rows {
        let maps = Comparison::new(&prediction, &reference, [1, 1, 4], [1.0, 1.0, 2.0], None);
        let scores = maps.scores(&Scoring::all(), |_| true).unwrap();
        for ((metric, want), score) in METRICS.iter().zip(want).zip(&scores[&1]) {
            let thousandth = metric.name.contains("volume") && !metric.name.contains("relative");
            let want = want.map(|w| if thousandth { w / 1000.0 } else { w });
            assert!(
                same(*score, want),
                "{what} {}: {score:?}, not {want:?}",
                metric.name
            );
        }
    }
    let empty = Comparison::new(&[0; 4], &[0; 4], [1, 1, 4], [1.0; 3], None);
    assert!(empty.scores(&Scoring::all(), |_| true).unwrap().is_empty());
    // a challenge's distance instead of an infinite one
    let surfaces = Surfaces {
        missing: 374.0,
        ..Surfaces::default()
    };
    let missed = Comparison::new(&[0; 4], &[0, 1, 0, 0], [1, 1, 4], [1.0; 3], None);
    let scores = missed
        .scores(&Scoring::new(Choice::all(), surfaces), |_| true)
        .unwrap();
    assert_eq!(
        scores[&1][4..8],
        [Some(0.0), Some(374.0), Some(374.0), Some(374.0)]
    );
}

#[test]
fn ignored_voxels_are_of_no_surface() {
    let scores = |prediction: [i32; 5], reference: [i32; 5], ignore| {
        let maps = Comparison::new(&prediction, &reference, [1, 1, 5], [1.0; 3], ignore);
        maps.scores(&Scoring::all(), |_| true).unwrap()
    };
    // what is predicted where the reference says nothing does not count
    let ignored = scores([1, 1, 0, 1, 1], [1, 1, 0, 9, 9], Some(9));
    assert_eq!(ignored[&1][5], Some(0.0));
    assert_eq!(scores([1, 1, 0, 1, 1], [1, 1, 0, 9, 9], None)[&1][5], Some(3.0));
    assert_eq!(ignored.len(), 1);
}

#[test]
fn paired_tests_are_scipys() {
    let tests = json("metrics/tests.json");
    let tests = tests.as_array().unwrap();
    assert!(tests.len() > 12);
    let mut exact = 0;
    for test in tests {
        let differences: Vec<f64> = serde_json::from_value(test["differences"].clone()).unwrap();
        let ours = wilcoxon(&differences);
        let (statistic, p) = (test["statistic"].as_f64().unwrap(), test["p"].as_f64().unwrap());
        assert_eq!(ours.statistic, statistic, "{differences:?}");
        assert!(
            (ours.p - p).abs() <= 1e-9 * p,
            "{}, not {p}: {differences:?}",
            ours.p
        );
        exact += usize::from(ours.exact);
    }
    assert!(exact > 3 && exact < tests.len());
}

/// A pair of a large scan with ten labels takes seconds. `cargo test --release --test suite -- --ignored a_large_scan`
#[test]
#[ignore = "measures time"]
fn a_large_scan_takes_seconds() {
    let shape = [512usize, 512, 300];
    let spheres: Vec<([f64; 3], f64)> = (0..10)
        .map(|i| {
            let (a, b) = (i % 4, i / 4);
            let centre = [
                70.0 + 120.0 * a as f64,
                90.0 + 160.0 * b as f64,
                80.0 + 30.0 * (i % 5) as f64,
            ];
            (centre, 45.0 + 3.0 * i as f64)
        })
        .collect();
    let draw = |shift: f64| {
        let mut map = vec![0i32; shape.iter().product()];
        for (i, (centre, radius)) in spheres.iter().enumerate() {
            let range = |a: usize| {
                let low = (centre[a] - radius - 4.0).max(0.0) as usize;
                low..((centre[a] + radius + 4.0) as usize).min(shape[a])
            };
            for x in range(0) {
                for y in range(1) {
                    for z in range(2) {
                        let wave = 2.0 * ((x + y) as f64 / 7.0 + shift).sin();
                        let d = [x, y, z].into_iter().zip(centre);
                        let square: f64 = d.map(|(p, c)| (p as f64 - c - shift).powi(2)).sum();
                        if square.sqrt() < radius + wave {
                            map[(x * shape[1] + y) * shape[2] + z] = i as i32 + 1;
                        }
                    }
                }
            }
        }
        map
    };
    let (prediction, reference) = (draw(1.0), draw(0.0));
    for definition in [Surface::Elements, Surface::Voxels] {
        let surfaces = Surfaces {
            definition,
            ..Surfaces::default()
        };
        let start = std::time::Instant::now();
        let maps = Comparison::new(&prediction, &reference, shape, [0.8, 0.8, 1.5], None);
        let counted = start.elapsed().as_secs_f64();
        let scores = maps
            .scores(&Scoring::new(Choice::all(), surfaces), |_| true)
            .unwrap();
        let seconds = start.elapsed().as_secs_f64();
        assert_eq!(scores.len(), 10);
        eprintln!("{definition:?}: {counted:.2} s to count, {seconds:.2} s in all");
        assert!(seconds < 60.0);
    }
}

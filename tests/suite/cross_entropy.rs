//! Cross-entropy with class weights, hard example mining, arg max.

use crate::common::*;
use obelisk::graph::{Graph, Value};
use obelisk::op::arg_max::ArgMax;
use obelisk::op::cross_entropy::{class_weights, cross_entropy, hard_mining};
use obelisk::op::hard_mining::HardestVoxels;
use obelisk::op::{Caps, StepScalars};
use obelisk::plan::Plan;
use obelisk::tensor::{Spec, Tensor};

/// Classes that fill, underfill and overflow blocks of four; planes of odd sizes.
const SHAPES: [[usize; 5]; 6] = [
    [2, 3, 3, 5, 7],
    [1, 2, 2, 1, 3],
    [1, 4, 5, 3, 3],
    [2, 9, 1, 11, 13],
    [1, 13, 3, 4, 2],
    [1, 40, 2, 3, 3],
];

/// Random logits; labels of every class, and some voxels ignored; weights of every size, one of them 0.
fn scene([n, classes, d, h, w]: [usize; 5]) -> Data {
    let shape = [n, 1, d, h, w];
    let mut logits = noise(&[n, classes, d, h, w], 3);
    logits.data.iter_mut().for_each(|v| *v *= 3.0);
    let pick = noise(&shape, 4);
    let labels = Tensor::from_fn(&shape, |i| {
        (((pick.data[i] + 1.0) / 2.0 * (classes + 1) as f32) as usize).min(classes) as f32 - 1.0
    });
    let weights = Tensor::from_fn(&[classes], |l| {
        if l == 1 && classes > 3 {
            0.0
        } else {
            0.3 + 0.4 * l as f32
        }
    });
    Data::from([
        ("logits".into(), logits),
        ("labels".into(), labels),
        ("class_weights".into(), weights),
    ])
}

fn inputs(g: &mut Graph, data: &Data) -> [Value; 3] {
    let logits = g.input("logits", Spec::map(data["logits"].ncdhw())).unwrap();
    let labels = g.input("labels", Spec::flat(&data["labels"].shape)).unwrap();
    let weights = g
        .input("class_weights", Spec::flat(&data["class_weights"].shape))
        .unwrap();
    [logits, labels, weights]
}

fn mined(g: &mut Graph, data: &Data, keep: f32) -> Value {
    let [logits, labels, weights] = inputs(g, data);
    hard_mining(g, logits, labels, Some(weights), keep).unwrap()
}

fn plain(g: &mut Graph, data: &Data) -> Value {
    let [logits, labels, weights] = inputs(g, data);
    cross_entropy(g, logits, labels, Some(weights)).unwrap()
}

/// Keeps the loss and its gradient by the logits.
fn with_gradient(g: &mut Graph, loss: Value) {
    let logits = g.find("logits").unwrap();
    let gradient = g.gradients(loss, &[logits]).unwrap()[0].unwrap();
    g.keep("loss", loss);
    g.keep("gradient", gradient);
}

#[test]
fn losses_equal_pytorch() {
    let goldens = Goldens::load("cross_entropy");
    assert!(goldens.cases.len() > 3);
    for case in goldens.cases.keys() {
        let data = goldens.data(case);
        // Logits of ±150 leave 1e-5 of a voxel's loss in f32.
        let tolerance = if case.contains("large") { 3e-5 } else { 5e-6 };
        check_golden(&goldens, case, |g| plain(g, &data), &["logits"], tolerance);
    }
    let goldens = Goldens::load("hard_mining");
    assert!(goldens.cases.len() > 3);
    for (case, attributes) in &goldens.cases {
        let data = goldens.data(case);
        let keep = attributes["fraction"].as_f64().unwrap() as f32;
        check_golden(&goldens, case, |g| mined(g, &data, keep), &["logits"], 5e-6);

        let mut g = Graph::new();
        let [logits, labels, _] = inputs(&mut g, &data);
        let kept = g
            .push1(HardestVoxels::new(keep).unwrap(), &[logits, labels])
            .unwrap();
        g.keep("kept", kept);
        let want = Tensor::from_fn(&data["labels"].shape, |i| {
            if data["keep"].data[i] > 0.5 {
                data["labels"].data[i]
            } else {
                -1.0
            }
        });
        for device in devices() {
            let left = run_on(device, &g, &data, &StepScalars::default());
            assert_eq!(left["kept"], want, "{case}");
        }
    }
}

#[test]
fn losses_agree_with_their_references_and_central_differences_on_odd_shapes() {
    for shape in SHAPES {
        let data = scene(shape);
        check_op(|g| vec![plain(g, &data)], &data, &["logits"], 1e-5, 1e-2, 2e-3);
        // A step that lets other voxels in would show; the hardest quarter's edge is wider than 1e-3 here.
        check_op(
            |g| vec![mined(g, &data, 0.25)],
            &data,
            &["logits"],
            1e-5,
            1e-3,
            1e-2,
        );
    }
}

#[test]
fn without_weights_every_voxel_counts_alike() {
    let mut data = scene([1, 5, 3, 4, 5]);
    data.insert("class_weights".into(), Tensor::full(&[5], 1.0));
    let mut g = Graph::new();
    let [logits, labels, weights] = inputs(&mut g, &data);
    let weighted = cross_entropy(&mut g, logits, labels, Some(weights)).unwrap();
    let unweighted = cross_entropy(&mut g, logits, labels, None).unwrap();
    let values = evaluate(&g, &data, &StepScalars::default());
    assert_eq!(values[weighted.index()], values[unweighted.index()]);
}

#[test]
fn nothing_to_count_gives_zero_and_no_gradient() {
    let mut data = scene([2, 3, 2, 5, 3]);
    let ignored = Tensor::full(&data["labels"].shape.clone(), -1.0);
    let unweighted = Tensor::zeros(&[3]);
    for (name, tensor) in [("labels", ignored), ("class_weights", unweighted)] {
        let before = data.insert(name.into(), tensor).unwrap();
        for loss in [plain as fn(&mut Graph, &Data) -> Value, |g, d| mined(g, d, 0.25)] {
            let mut g = Graph::new();
            let loss = loss(&mut g, &data);
            with_gradient(&mut g, loss);
            for device in devices() {
                let left = run_on(device, &g, &data, &StepScalars::default());
                assert_eq!(left["loss"].data, [0.0]);
                assert!(left["gradient"].data.iter().all(|v| *v == 0.0));
            }
        }
        data.insert(name.into(), before);
    }
}

#[test]
fn values_larger_than_a_binding_are_split() {
    // Five runs; partial results and counts still fit.
    for shape in [[2, 9, 10, 16, 24], [1, 3, 33, 16, 8]] {
        let data = scene(shape);
        let binding = Spec::map(shape).bytes() / 5 + 4096;
        for loss in [plain as fn(&mut Graph, &Data) -> Value, |g, d| mined(g, d, 0.25)] {
            let mut g = Graph::new();
            let loss = loss(&mut g, &data);
            with_gradient(&mut g, loss);
            let logits = g.find("logits").unwrap();
            let labels = g.push1(ArgMax, &[logits]).unwrap();
            g.keep("arg max", labels);
            check_with_binding(&g, &data, &StepScalars::default(), 1e-5, binding);
        }
    }
}

#[test]
fn mining_keeps_the_first_of_many_equal_losses() {
    // 30,000 voxels of one loss, every third ignored: a quarter of 20,000, the first ones.
    let shape = [1, 2, 3, 100, 100];
    let mut data = scene(shape);
    data.insert("logits".into(), Tensor::zeros(&shape));
    let labels = Tensor::from_fn(&[1, 1, 3, 100, 100], |i| (i % 3) as f32 - 1.0);
    data.insert("labels".into(), labels.clone());
    let mut g = Graph::new();
    let [logits, labels_in, _] = inputs(&mut g, &data);
    for (name, keep) in [("quarter", 0.25), ("all", 1.0), ("none", 0.0)] {
        let kept = g
            .push1(HardestVoxels::new(keep).unwrap(), &[logits, labels_in])
            .unwrap();
        g.keep(name, kept);
    }
    for device in devices() {
        let left = run_on(device, &g, &data, &StepScalars::default());
        for (i, label) in labels.data.iter().enumerate() {
            let expected = if i < 7500 { *label } else { -1.0 };
            assert_eq!(left["quarter"].data[i], expected, "voxel {i}");
        }
        assert_eq!(left["all"], labels);
        assert!(left["none"].data.iter().all(|l| *l == -1.0));
    }
    assert!(HardestVoxels::new(1.5).is_err() && HardestVoxels::new(f32::NAN).is_err());
}

#[test]
fn mining_finds_the_hardest_of_many_different_losses() {
    let data = scene([2, 3, 8, 60, 70]);
    let mut g = Graph::new();
    let [logits, labels, _] = inputs(&mut g, &data);
    for keep in [0.25, 0.01, 0.9] {
        let kept = g
            .push1(HardestVoxels::new(keep).unwrap(), &[logits, labels])
            .unwrap();
        g.keep(&format!("{keep}"), kept);
    }
    // The losses at the cuts lie 1e-4 apart, a thousand times what f32 leaves of them.
    check_on_devices(&g, &data, &StepScalars::default(), 0.0);
}

#[test]
fn a_scan_of_144_with_9_classes_trains() {
    let data = scene([1, 9, 144, 144, 144]);
    let mut g = Graph::new();
    let loss = plain(&mut g, &data);
    with_gradient(&mut g, loss);
    let logits = g.find("logits").unwrap();
    let labels = g.push1(ArgMax, &[logits]).unwrap();
    g.keep("arg max", labels);
    check_on_devices(&g, &data, &StepScalars::default(), 2e-5);
}

#[test]
fn plans_of_40_million_voxels_and_of_many_classes_stay_within_the_limits() {
    let caps = Caps {
        max_buffer: 8 << 30,
        ..Caps::PORTABLE
    };
    for shape in [[4, 2, 216, 216, 216], [1, 9, 344, 344, 344], [1, 120, 96, 96, 96]] {
        let [n, classes, d, h, w] = shape;
        let mut g = Graph::new();
        let logits = g.input("logits", Spec::map(shape)).unwrap();
        let labels = g.input("labels", Spec::flat(&[n, 1, d, h, w])).unwrap();
        let weights = g.input("class_weights", Spec::flat(&[classes])).unwrap();
        let loss = hard_mining(&mut g, logits, labels, Some(weights), 0.25).unwrap();
        with_gradient(&mut g, loss);
        let labels = g.push1(ArgMax, &[logits]).unwrap();
        g.keep("arg max", labels);
        Plan::new(&g, &caps).unwrap();
    }
}

#[test]
fn arg_max_takes_the_first_of_equal_logits_and_never_a_padding_lane() {
    for shape in SHAPES {
        let mut logits = noise(&shape, 5);
        // All negative: a padding lane's 0 would win. Rounded: many are equal.
        logits
            .data
            .iter_mut()
            .for_each(|v| *v = (*v * 2.0).round() - 10.0);
        let data = Data::from([("logits".into(), logits)]);
        let mut g = Graph::new();
        let logits = g.input("logits", Spec::map(shape)).unwrap();
        let labels = g.push1(ArgMax, &[logits]).unwrap();
        g.keep("labels", labels);
        check_on_devices(&g, &data, &StepScalars::default(), 0.0);
    }
    let mut g = Graph::new();
    let flat = g.input("flat", Spec::flat(&[1, 3, 2, 2, 2])).unwrap();
    let error = g.push1(ArgMax, &[flat]).unwrap_err().to_string();
    assert!(error.contains("arg_max") && error.contains("map"), "{error}");
}

#[test]
fn class_weights_follow_the_published_rule() {
    // 1/√ of 10000, 100, 25, 0: 0.01, 0.1, 0.2, nothing; the mean of those that occur is 0.31 / 3.
    let weights = class_weights(&[10_000, 100, 25, 0]);
    let expected = [0.5, 0.1 * 3.0 / 0.31, 0.2 * 3.0 / 0.31, 0.0];
    for (weight, expected) in weights.iter().zip(expected) {
        assert!((weight - expected).abs() < 1e-6, "{weights:?}");
    }
    assert_eq!(class_weights(&[0, 0]), [0.0, 0.0]);
    assert_eq!(class_weights(&[]), [0f32; 0]);
}

#[test]
fn losses_name_what_does_not_fit() {
    let mut g = Graph::new();
    let logits = g.input("logits", Spec::map([1, 3, 2, 2, 2])).unwrap();
    let labels = g.input("labels", Spec::flat(&[1, 1, 2, 2, 3])).unwrap();
    let error = cross_entropy(&mut g, logits, labels, None)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("cross_entropy") && error.contains("[1, 1, 2, 2, 3]"),
        "{error}"
    );
    let labels = g.input("right labels", Spec::flat(&[1, 1, 2, 2, 2])).unwrap();
    let weights = g.input("weights", Spec::flat(&[4])).unwrap();
    let error = cross_entropy(&mut g, logits, labels, Some(weights))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("class weights") && error.contains("[4]"),
        "{error}"
    );
}

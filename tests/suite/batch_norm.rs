//! Batch norm in training and inference, its folding into convolutions, and leaky ReLU.

use crate::common::*;
use obelisk::graph::{Graph, GraphError, Init, Value};
use obelisk::op::StepScalars;
use obelisk::op::batch_norm::{batch_norm, fold_batch_norm};
use obelisk::tensor::{Spec, Tensor};

/// One, a few and many channels; planes smaller and larger than a workgroup; axes of one.
const SHAPES: [[usize; 5]; 6] = [
    [2, 5, 3, 4, 5],
    [1, 1, 2, 1, 1],
    [3, 9, 1, 7, 11],
    [1, 13, 5, 3, 1],
    [2, 4, 2, 25, 30],
    [1, 66, 2, 2, 3],
];

fn add(g: &mut Graph, shape: [usize; 5], slope: Option<f32>, training: bool) -> Value {
    let c = &shape[1..2];
    let x = g.input("input", Spec::map(shape)).unwrap();
    let gamma = parameter(g, "weight", c);
    let beta = parameter(g, "bias", c);
    let mean = g.state("running_mean", c, Init::Constant(0.0)).unwrap();
    let variance = g.state("running_var", c, Init::Constant(1.0)).unwrap();
    batch_norm(g, x, gamma, beta, mean, variance, slope, training).unwrap()
}

/// Activations stay clear of the leaky ReLU's kink: |x| ≥ 0.5, |γ| ≥ 0.5, β small.
fn data(shape: [usize; 5]) -> Data {
    let away = |mut t: Tensor| {
        t.data
            .iter_mut()
            .for_each(|v| *v = (0.5 + 0.5 * v.abs()) * v.signum());
        t
    };
    let near = |seed, base: f32| {
        let mut t = noise(&shape[1..2], seed);
        t.data.iter_mut().for_each(|v| *v = base + 0.05 * *v);
        t
    };
    Data::from([
        ("input".into(), away(noise(&shape, 1))),
        ("weight".into(), away(noise(&shape[1..2], 2))),
        ("bias".into(), near(3, 0.0)),
        ("running_mean".into(), near(4, 0.0)),
        ("running_var".into(), near(5, 1.0)),
    ])
}

#[test]
fn equals_pytorch() {
    let goldens = Goldens::load("batch_norm");
    for (case, attributes) in &goldens.cases {
        let shape = goldens.get(case, "input").ncdhw();
        let training = attributes["training"].as_bool().unwrap();
        // A mean of 1000 leaves x − μ with 4 digits in f32 (μ's own rounding is 3e-5).
        let tolerance = if case.contains("1000") { 2e-4 } else { 5e-6 };
        let build = |g: &mut Graph| add(g, shape, None, training);
        check_golden(&goldens, case, build, &["input", "weight", "bias"], tolerance);
        if training {
            let mut g = Graph::new();
            let y = add(&mut g, shape, None, true);
            g.keep("y", y);
            let step = StepScalars::default();
            for device in devices() {
                let left = run_on(device, &g, &goldens.data(case), &step);
                for name in ["running_mean", "running_var"] {
                    let want = goldens.get(case, &format!("new_{name}"));
                    assert_close(&format!("{case}: {name}"), &left[name], want, 1e-6);
                }
            }
        }
    }
}

#[test]
fn device_and_central_differences_agree_with_the_reference_on_odd_shapes() {
    for shape in SHAPES {
        for slope in [None, Some(0.0), Some(0.1)] {
            for training in [true, false] {
                let build = |g: &mut Graph| vec![add(g, shape, slope, training)];
                // Two values a channel normalise to ±1 exactly, and the gradient by x cancels to nothing.
                let wanted: &[&str] = if shape[2..].iter().product::<usize>() * shape[0] < 3 && training {
                    &["weight", "bias"]
                } else {
                    &["input", "weight", "bias"]
                };
                check_op(build, &data(shape), wanted, 2e-5, 1e-2, 2e-3);
            }
        }
    }
}

#[test]
fn values_larger_than_a_binding_are_split() {
    for shape in [[2, 5, 7, 9, 11], [1, 9, 33, 16, 16]] {
        // Partial results are 3/8 of the map at this size, and are not split.
        let binding = Spec::map(shape).bytes() * 3 / 5;
        let mut g = Graph::new();
        let y = add(&mut g, shape, Some(0.1), true);
        let dy = g.input("dy", Spec::map(shape)).unwrap();
        let wrt = ["input", "weight", "bias"].map(|n| g.find(n).unwrap());
        let gradients = g.gradients_from(&[(y, dy)], &wrt).unwrap();
        g.keep("y", y);
        for (i, gradient) in gradients.into_iter().enumerate() {
            g.keep(&format!("gradient {i}"), gradient.unwrap());
        }
        let mut data = data(shape);
        data.insert("dy".into(), noise(&shape, 9));
        check_with_binding(&g, &data, &StepScalars::default(), 2e-5, binding);
    }
}

#[test]
fn statistics_of_raw_hounsfield_units_do_not_cancel() {
    // Air at −1024 with noise of 1 and a few metal voxels of 3071 up front, where an invocation takes its shift.
    let shape = [1, 2, 16, 24, 24];
    let mut x = noise(&shape, 3);
    x.data.iter_mut().for_each(|v| *v -= 1024.0);
    x.data[..5].fill(3071.0);
    let mut data = data(shape);
    data.insert("input".into(), x);
    let mut g = Graph::new();
    let y = add(&mut g, shape, None, true);
    g.keep("y", y);
    check_on_devices(&g, &data, &StepScalars::default(), 1e-4);
}

#[test]
fn a_map_of_143_mb_normalises() {
    let shape = [1, 12, 144, 144, 144];
    assert!(Spec::map(shape).bytes() > 128 << 20);
    let mut g = Graph::new();
    let y = add(&mut g, shape, Some(0.025), true);
    g.keep("y", y);
    // Smaller bindings are tested on smaller maps.
    check_with_binding(&g, &data(shape), &StepScalars::default(), 2e-5, u64::MAX);
}

#[test]
fn one_value_a_channel_is_refused_in_training() {
    let mut g = Graph::new();
    let x = g.input("x", Spec::map([1, 3, 1, 1, 1])).unwrap();
    let p = parameter(&mut g, "p", &[3]);
    let s = g.state("s", &[3], Init::Constant(0.0)).unwrap();
    let error = batch_norm(&mut g, x, p, p, s, s, None, true).unwrap_err();
    assert!(
        matches!(error, GraphError::Shape { op: "batch_norm", .. }),
        "{error}"
    );
    assert!(error.to_string().contains("more than one value"), "{error}");
    let error = batch_norm(&mut g, x, p, s, p, s, None, true).unwrap_err();
    assert!(error.to_string().contains("[1, 3, 1, 1, 1]"), "{error}");
}

#[test]
fn folding_gives_the_same_numbers() {
    let mut g = Graph::new();
    let shape = [6, 3, 3, 1, 3];
    let w = parameter(&mut g, "w", &shape);
    let b = parameter(&mut g, "b", &[6]);
    let vectors = ["gamma", "beta"].map(|n| parameter(&mut g, n, &[6]));
    let [mean, variance] = ["mean", "variance"].map(|n| g.state(n, &[6], Init::Constant(0.0)).unwrap());
    let (w1, b1) = fold_batch_norm(&mut g, w, Some(b), vectors[0], vectors[1], mean, variance).unwrap();
    let (w2, b2) = fold_batch_norm(&mut g, w, None, vectors[0], vectors[1], mean, variance).unwrap();
    for (name, v) in [("w1", w1), ("b1", b1), ("w2", w2), ("b2", b2)] {
        g.keep(name, v);
    }
    let mut data = Data::from([
        ("w".into(), noise(&shape, 1)),
        ("variance".into(), Tensor::full(&[6], 0.3)),
    ]);
    for (i, name) in ["b", "gamma", "beta", "mean"].into_iter().enumerate() {
        data.insert(name.into(), noise(&[6], 10 + i as u32));
    }
    check_on_devices(&g, &data, &StepScalars::default(), 1e-6);
    // The reference itself: normalising w·x + b equals w′·x + b′, for x the unit vector along the first weight.
    let values = evaluate(&g, &data, &StepScalars::default());
    let fan_in = 27;
    for o in 0..6 {
        let of = |name: &str| data[name].data[o] as f64;
        let (w, b) = (data["w"].data[o * fan_in] as f64, of("b"));
        let direct = (w + b - of("mean")) / (0.3f32 as f64 + 1e-5).sqrt() * of("gamma") + of("beta");
        let [w, b] = [w1, b1].map(|v| values[v.index()].as_ref().unwrap());
        assert!((w.data[o * fan_in] as f64 + b.data[o] as f64 - direct).abs() < 1e-5);
    }
}

//! Augmentation: its operations against their references, what it does to scans, and trainings with all of it.

use crate::common::*;
use obelisk::graph::Graph;
use obelisk::op::StepScalars;
use obelisk::op::axis_filter::AxisFilter;
use obelisk::op::intensities::intensities;
use obelisk::op::paint::paint;
use obelisk::op::warp_grid::WarpGrid;
use obelisk::tensor::{Spec, Tensor};

const STEP: StepScalars = StepScalars {
    step: 7,
    seed: 3,
    learning_rate: 0.0,
    weight_decay: 0.0,
};

/// A graph of one operation on inputs of these shapes, checked on every device.
fn check(
    inputs: &[(&str, Tensor)],
    build: impl Fn(&mut Graph, &[obelisk::graph::Value]) -> obelisk::graph::Value,
) -> Tensor {
    let mut g = Graph::new();
    let values: Vec<_> = inputs
        .iter()
        .map(|(name, tensor)| g.input(name, Spec::flat(&tensor.shape)).unwrap())
        .collect();
    let y = build(&mut g, &values);
    g.keep("output", y);
    let data: Data = inputs.iter().map(|(n, t)| ((*n).to_owned(), t.clone())).collect();
    check_on_devices(&g, &data, &STEP, 1e-5);
    evaluate(&g, &data, &STEP)[y.index()].clone().unwrap()
}

#[test]
fn warped_grids_agree_with_the_reference() {
    for (size, coarse) in [
        ([5, 7, 6], [3, 2, 4]),
        ([1, 4, 9], [2, 2, 2]),
        ([8, 3, 2], [1, 5, 1]),
    ] {
        let [a, b, c] = coarse;
        let theta = noise(&[2, 3, 4], 1);
        check(&[("theta", theta), ("u", noise(&[2, 3, a, b, c], 2))], |g, v| {
            g.push1(WarpGrid { size }, v).unwrap()
        });
    }
    let mut g = Graph::new();
    let theta = g.input("theta", Spec::flat(&[2, 3, 4])).unwrap();
    let u = g.input("u", Spec::flat(&[1, 3, 2, 2, 2])).unwrap();
    let error = g.push1(WarpGrid { size: [2, 2, 2] }, &[theta, u]).unwrap_err();
    assert!(error.to_string().contains("displacement"), "{error}");
}

#[test]
fn a_constant_displacement_moves_the_grid() {
    let theta = Tensor::from_fn(&[1, 3, 4], |i| if i % 5 == 0 { 1.0 } else { 0.0 });
    let u = Tensor::from_fn(&[1, 3, 2, 2, 2], |i| [0.1, -0.2, 0.3][i / 8]);
    let grid = check(&[("theta", theta), ("u", u)], |g, v| {
        g.push1(WarpGrid { size: [3, 3, 3] }, v).unwrap()
    });
    assert_close(
        "the centre",
        &Tensor::new(&[3], grid.data[39..42].to_vec()),
        &Tensor::new(&[3], vec![0.1, -0.2, 0.3]),
        1e-6,
    );
}

#[test]
fn axis_filters_agree_with_the_reference() {
    let shape = [2, 2, 5, 6, 7];
    for axis in 2..5 {
        let (n, length, most) = (2, shape[axis], 4);
        let weights = noise(&[n, length, 2 + most], 5);
        let taps = Tensor::from_fn(&[n, length, 2 + most], |i| match i % (2 + most) {
            0 => (i / (2 + most) % length) as f32 - 2.0, // beyond both ends
            1 => (i / (2 + most) % (most + 1)) as f32,
            _ => weights.data[i],
        });
        check(&[("x", noise(&shape, 4)), ("taps", taps)], |g, v| {
            g.push1(AxisFilter { axis }, v).unwrap()
        });
    }
}

#[test]
fn intensities_agree_with_the_reference_and_noise_has_its_spread() {
    let shape = [2, 2, 6, 9, 7];
    let curve = Tensor::from_fn(&[2, 2, 7], |i| match i % 7 {
        0 => -0.4,
        1 => 0.6,
        k => (k as f32).sqrt() * (1.0 + i as f32 / 30.0),
    });
    let sigma = Tensor::new(&[2, 2], vec![0.0, 0.3, 0.1, 0.0]);
    let inputs = [
        ("x", noise(&shape, 8)),
        ("curve", curve),
        ("sigma", sigma),
        ("bias", noise(&[2, 1, 2, 3, 2], 9)),
    ];
    check(&inputs, |g, v| intensities(g, [v[0], v[1], v[2], v[3]]).unwrap());

    let flat = [
        ("x", Tensor::zeros(&[1, 1, 30, 30, 30])),
        ("curve", Tensor::new(&[1, 1, 4], vec![-1.0, 1.0, -1.0, 1.0])),
        ("sigma", Tensor::new(&[1, 1], vec![0.5])),
        ("bias", Tensor::zeros(&[1, 1, 2, 2, 2])),
    ];
    let y = check(&flat, |g, v| intensities(g, [v[0], v[1], v[2], v[3]]).unwrap());
    let count = y.data.len() as f64;
    let mean = y.data.iter().map(|v| f64::from(*v)).sum::<f64>() / count;
    let sd = (y.data.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>() / count).sqrt();
    assert!(mean.abs() < 0.02 && (sd - 0.5).abs() < 0.01, "{mean} ± {sd}");
}

#[test]
fn painted_labels_agree_with_the_reference() {
    let labels = Tensor::from_fn(&[2, 1, 4, 5, 3], |i| (i * 7 % 6) as f32 - 1.0); // −1 to 4
    let table = noise(&[2, 4, 2], 10);
    check(&[("labels", labels.clone()), ("table", table)], |g, v| {
        paint(g, v[0], v[1]).unwrap()
    });
    let names = Tensor::from_fn(&[2, 5, 2], |i| {
        if i % 2 == 0 {
            [0.0, 2.0, 2.0, 1.0, 0.0][i / 2 % 5]
        } else {
            0.0
        }
    });
    let others = check(&[("labels", labels.clone()), ("table", names)], |g, v| {
        paint(g, v[0], v[1]).unwrap()
    });
    for (label, other) in labels.data.iter().zip(others.data) {
        assert_eq!(other, [0.0, 2.0, 2.0, 1.0, 0.0][label.max(0.0) as usize]);
    }
}

//! Instance norm with leaky ReLU: devices against the reference, the reference against differences and PyTorch.

use crate::common::*;
use obelisk::graph::{Graph, Value};
use obelisk::op::StepScalars;
use obelisk::op::instance_norm::instance_norm;
use obelisk::tensor::{Spec, Tensor};

fn add(g: &mut Graph, shape: [usize; 5], slope: Option<f32>) -> Value {
    let x = g.input("input", Spec::map(shape)).unwrap();
    let gamma = parameter(g, "weight", &shape[1..2]);
    let beta = parameter(g, "bias", &shape[1..2]);
    instance_norm(g, x, gamma, beta, slope).unwrap()
}

/// Activations stay clear of the leaky ReLU's kink: |x| ≥ 0.5, |γ| ≥ 0.5, β small. Samples differ in scale.
fn data(shape: [usize; 5]) -> Data {
    let away = |mut t: Tensor| {
        t.data
            .iter_mut()
            .for_each(|v| *v = (0.5 + 0.5 * v.abs()) * v.signum());
        t
    };
    let mut x = away(noise(&shape, 1));
    let sample = x.data.len() / shape[0];
    for (i, v) in x.data.iter_mut().enumerate() {
        *v *= (1 + i / sample) as f32;
    }
    let mut beta = noise(&shape[1..2], 3);
    beta.data.iter_mut().for_each(|v| *v *= 0.05);
    Data::from([
        ("input".into(), x),
        ("weight".into(), away(noise(&shape[1..2], 2))),
        ("bias".into(), beta),
    ])
}

#[test]
fn equals_pytorch() {
    let goldens = Goldens::load("instance_norm");
    for case in goldens.cases.keys() {
        let shape = goldens.get(case, "input").ncdhw();
        // A mean of 1000 leaves x − μ with 4 digits in f32 (μ's own rounding is 3e-5).
        let tolerance = if case.contains("1000") { 2e-4 } else { 5e-6 };
        let build = |g: &mut Graph| add(g, shape, None);
        check_golden(&goldens, case, build, &["input", "weight", "bias"], tolerance);
    }
}

#[test]
fn devices_and_central_differences_agree_with_the_reference_on_odd_shapes() {
    for shape in [
        [2, 5, 3, 4, 5],
        [3, 9, 1, 7, 11],
        [1, 13, 5, 3, 1],
        [2, 4, 2, 25, 30],
    ] {
        for slope in [None, Some(0.01)] {
            let build = |g: &mut Graph| vec![add(g, shape, slope)];
            check_op(
                build,
                &data(shape),
                &["input", "weight", "bias"],
                2e-5,
                1e-2,
                2e-3,
            );
        }
    }
}

#[test]
fn samples_that_bindings_cut_keep_their_statistics() {
    // Both cut a sample, and bind parts of two at once.
    for shape in [[2, 5, 7, 9, 11], [3, 9, 4, 16, 16]] {
        let binding = Spec::map(shape).bytes() * 3 / 5;
        let mut g = Graph::new();
        let y = add(&mut g, shape, Some(0.1));
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
fn a_map_of_one_voxel_is_refused() {
    let mut g = Graph::new();
    let x = g.input("x", Spec::map([2, 3, 1, 1, 1])).unwrap();
    let [gamma, beta] = ["gamma", "beta"].map(|name| parameter(&mut g, name, &[3]));
    let error = instance_norm(&mut g, x, gamma, beta, None).unwrap_err();
    assert!(error.to_string().contains("more than one voxel"), "{error}");
}

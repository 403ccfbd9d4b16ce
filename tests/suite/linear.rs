//! Fully-connected layers.

use crate::common::*;
use obelisk::graph::{Graph, Value};
use obelisk::op::linear::linear;
use obelisk::op::{Caps, StepScalars};
use obelisk::plan::Plan;
use obelisk::tensor::Spec;

fn add(g: &mut Graph, shape: &[usize], outputs: usize, bias: bool) -> Value {
    let x = g.input("input", Spec::flat(shape)).unwrap();
    let fan_in = shape[1..].iter().product();
    let w = parameter(g, "weight", &[outputs, fan_in]);
    let b = bias.then(|| parameter(g, "bias", &[outputs]));
    linear(g, x, w, b).unwrap()
}

fn data(shape: &[usize], outputs: usize) -> Data {
    Data::from([
        ("input".into(), noise(shape, 1)),
        ("weight".into(), noise(&[outputs, shape[1..].iter().product()], 2)),
        ("bias".into(), noise(&[outputs], 3)),
    ])
}

#[test]
fn equals_pytorch() {
    let goldens = Goldens::load("linear");
    assert!(goldens.cases.len() > 2);
    for (case, attributes) in &goldens.cases {
        let shape = &goldens.get(case, "input").shape;
        let outputs = goldens.get(case, "weight").shape[0];
        let bias = attributes["bias"].as_bool().unwrap();
        let wanted: &[&str] = if bias {
            &["input", "weight", "bias"]
        } else {
            &["input", "weight"]
        };
        check_golden(&goldens, case, |g| add(g, shape, outputs, bias), wanted, 2e-6);
    }
}

#[test]
fn agrees_with_its_reference_and_central_differences_on_odd_sizes() {
    for (shape, outputs) in [
        (&[1, 1][..], 1),
        (&[5, 67], 3),
        (&[4, 3], 65),
        (&[9, 2, 3, 1, 5], 7),
        (&[2, 130], 600),
    ] {
        let build = |g: &mut Graph| vec![add(g, shape, outputs, true)];
        let wanted = ["input", "weight", "bias"];
        check_op(build, &data(shape, outputs), &wanted, 1e-5, 1e-2, 2e-3);
    }
}

#[test]
fn the_global_network_s_layers_run_there_and_back() {
    // 20 channels of 9³ to 400 numbers and back (method section 2).
    let (wide, narrow) = (20 * 9 * 9 * 9, 400);
    for (inputs, outputs) in [(wide, narrow), (narrow, wide)] {
        let mut g = Graph::new();
        let y = add(&mut g, &[2, inputs], outputs, true);
        let upstream = g.input("upstream", Spec::flat(&[2, outputs])).unwrap();
        let wrt = ["input", "weight", "bias"].map(|n| g.find(n).unwrap());
        let gradients = g.gradients_from(&[(y, upstream)], &wrt).unwrap();
        g.keep("y", y);
        for (name, gradient) in ["dx", "dw", "db"].into_iter().zip(gradients) {
            g.keep(name, gradient.unwrap());
        }
        let mut data = data(&[2, inputs], outputs);
        data.insert("upstream".into(), noise(&[2, outputs], 5));
        check_on_devices(&g, &data, &StepScalars::default(), 1e-5);
    }
}

#[test]
fn the_largest_layers_stay_within_the_limits() {
    let caps = Caps {
        max_buffer: 2 << 30,
        max_binding: 2 << 30,
        ..Caps::PORTABLE
    };
    for (inputs, outputs) in [(16_000, 16_000), (16_000, 400), (400, 16_000)] {
        let mut g = Graph::new();
        let y = add(&mut g, &[4, inputs], outputs, true);
        let wrt = ["input", "weight", "bias"].map(|n| g.find(n).unwrap());
        let gradients = g.gradients_from(&[(y, y)], &wrt).unwrap();
        for gradient in gradients {
            g.keep("gradient", gradient.unwrap());
        }
        Plan::new(&g, &caps).unwrap();
    }
}

#[test]
fn sizes_that_do_not_fit_are_named() {
    let mut g = Graph::new();
    let x = g.input("x", Spec::flat(&[2, 5])).unwrap();
    let w = parameter(&mut g, "w", &[3, 6]);
    let error = linear(&mut g, x, w, None).unwrap_err().to_string();
    assert!(
        error.contains("linear") && error.contains("[2, 5]") && error.contains("[3, 6]"),
        "{error}"
    );
}

//! Sums, constants and the optimiser.

use crate::common::*;
use obelisk::graph::{Graph, Init};
use obelisk::op::StepScalars;
use obelisk::op::add::Add;
use obelisk::op::average::average;
use obelisk::op::optimiser::{Optimiser, optimise};
use obelisk::op::scale::Scale;
use obelisk::tensor::Spec;

#[test]
fn a_value_used_twice_sums_its_gradients() {
    for spec in [Spec::map([2, 5, 3, 4, 5]), Spec::flat(&[7])] {
        let data = Data::from([
            ("a".into(), noise(&spec.shape, 1)),
            ("b".into(), noise(&spec.shape, 2)),
        ]);
        let build = |g: &mut Graph| {
            let a = g.input("a", spec.clone()).unwrap();
            let b = g.input("b", spec.clone()).unwrap();
            let sum = g.push1(Add, &[a, b]).unwrap();
            vec![g.push1(Add, &[sum, a]).unwrap()]
        };
        check_op(build, &data, &["a", "b"], 1e-6, 1e-2, 1e-4);
    }
}

#[test]
fn a_scaled_value_scales_its_gradient() {
    for spec in [Spec::map([2, 5, 3, 4, 5]), Spec::flat(&[7])] {
        let data = Data::from([("x".into(), noise(&spec.shape, 1))]);
        let build = |g: &mut Graph| {
            let x = g.input("x", spec.clone()).unwrap();
            vec![g.push1(Scale { factor: -0.75 }, &[x]).unwrap()]
        };
        check_op(build, &data, &["x"], 1e-6, 1e-2, 1e-4);
    }
}

#[test]
fn adding_different_shapes_names_the_op_and_both_shapes() {
    let mut g = Graph::new();
    let a = g.input("a", Spec::flat(&[3])).unwrap();
    let b = g.input("b", Spec::flat(&[4])).unwrap();
    let error = g.push1(Add, &[a, b]).unwrap_err().to_string();
    assert!(
        error.contains("add") && error.contains("[3]") && error.contains("[4]"),
        "{error}"
    );
}

#[test]
fn optimisers_on_the_device_equal_their_references_at_early_and_late_steps() {
    let sgd = Optimiser::Sgd { momentum: 0.9 };
    for (optimiser, clip) in [
        (Optimiser::Adam, None),
        (Optimiser::Adam, Some(0.1)),
        (sgd, None),
        (sgd, Some(0.1)),
        (sgd, Some(1e6)),
    ] {
        check_optimiser(optimiser, clip);
    }
}

fn check_optimiser(optimiser: Optimiser, clip: Option<f32>) {
    let mut g = Graph::new();
    let p = parameter(&mut g, "p", &[5, 3]);
    let q = parameter(&mut g, "q", &[70]);
    let a = g.input("a", Spec::flat(&[5, 3])).unwrap();
    let b = g.input("b", Spec::flat(&[70])).unwrap();
    let y = g.push1(Add, &[p, a]).unwrap();
    let z = g.push1(Add, &[q, b]).unwrap();
    // d(Σ a·y)/dp = a: the gradients are the uploaded numbers.
    let gradients = g.gradients_from(&[(y, a), (z, b)], &[p, q]).unwrap();
    assert_eq!(gradients, [Some(a), Some(b)]);
    let zero = g.push1(obelisk::op::fill::Fill::new(&[5, 3], 0.0), &[]).unwrap();
    let zeros = g.push1(obelisk::op::fill::Fill::new(&[70], 0.0), &[]).unwrap();
    let gp = g.push1(Add, &[a, zero]).unwrap();
    let gq = g.push1(Add, &[b, zeros]).unwrap();
    g.place_gradient(p, gp);
    g.place_gradient(q, gq);
    optimise(&mut g, optimiser, clip).unwrap();
    g.state("s", &[9], Init::Constant(0.0)).unwrap();
    average(&mut g, 0.99).unwrap();
    for step in [0, 1, 99, 5000] {
        let mut data = Data::from([
            ("p".into(), noise(&[5, 3], 1)),
            ("q".into(), noise(&[70], 2)),
            ("a".into(), noise(&[5, 3], 3)),
            ("b".into(), noise(&[70], 4)),
            ("s".into(), noise(&[9], 7)),
            ("ema.p".into(), noise(&[5, 3], 8)),
            ("ema.q".into(), noise(&[70], 9)),
            ("ema.s".into(), noise(&[9], 10)),
        ]);
        for (name, shape, seed) in [("p", &[5, 3][..], 5), ("q", &[70], 6)] {
            data.insert(format!("adam.0.{name}"), noise(shape, seed));
            let mut square = noise(shape, seed + 10);
            square.data.iter_mut().for_each(|v| *v = v.abs());
            data.insert(format!("adam.1.{name}"), square);
        }
        let scalars = StepScalars {
            step,
            seed: 0,
            learning_rate: 0.002,
            weight_decay: 0.01,
        };
        check_on_devices(&g, &data, &scalars, 1e-6);
    }
}

//! Activations: devices against the reference, the reference against differences and PyTorch.

use crate::common::*;
use obelisk::graph::{Graph, Value};
use obelisk::op::StepScalars;
use obelisk::op::activation::{Activation, leaky_relu};
use obelisk::tensor::Spec;

const SMOOTH: [(&str, Activation); 2] = [("elu", Activation::Elu), ("gelu", Activation::Gelu)];

fn golden(name: &str, add: impl Fn(&mut Graph, Value, Option<f32>) -> Value) {
    let goldens = Goldens::load(name);
    for (case, attributes) in &goldens.cases {
        let slope = attributes
            .get("negative_slope")
            .map(|v| v.as_f64().unwrap() as f32);
        let shape = goldens.get(case, "input").ncdhw();
        for spec in [Spec::map(shape), Spec::flat(&shape)] {
            let build = |g: &mut Graph| {
                let x = g.input("input", spec.clone()).unwrap();
                add(g, x, slope)
            };
            check_golden(&goldens, case, build, &["input"], 1e-6);
        }
    }
}

#[test]
fn equal_pytorch() {
    for name in ["leaky_relu", "relu"] {
        golden(name, |g, x, slope| {
            leaky_relu(g, x, slope.unwrap_or(0.0)).unwrap()
        });
    }
    for (name, activation) in SMOOTH {
        golden(name, |g, x, _| g.push1(activation, &[x]).unwrap());
    }
}

#[test]
fn devices_and_central_differences_agree_with_the_reference() {
    for spec in [Spec::map([2, 5, 3, 7, 5]), Spec::flat(&[37]), Spec::flat(&[3, 2])] {
        let mut x = noise(&spec.shape, 4);
        for (i, v) in x.data.iter_mut().enumerate() {
            // From where exp(x) − 1 has few digits to where it is nearly −1; clear of the kink.
            *v = if v.abs() < 0.02 {
                0.5
            } else {
                *v * [0.05, 1.0, 4.0][i % 3]
            };
            *v += 0.02 * v.signum();
        }
        let data = Data::from([("x".into(), x)]);
        let leaky = Activation::LeakyRelu { slope: 0.1 };
        for activation in [leaky, Activation::Elu, Activation::Gelu] {
            let build = |g: &mut Graph| {
                let x = g.input("x", spec.clone()).unwrap();
                vec![g.push1(activation, &[x]).unwrap()]
            };
            check_op(build, &data, &["x"], 1e-6, 1e-2, 1e-3);
            let mut g = Graph::new();
            let y = build(&mut g)[0];
            g.keep("y", y);
            check_with_binding(&g, &data, &StepScalars::default(), 1e-6, 256);
        }
    }
}

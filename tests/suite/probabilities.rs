//! Softmax and sigmoid: devices against the reference, the reference against differences and PyTorch.

use crate::common::*;
use obelisk::graph::Graph;
use obelisk::op::StepScalars;
use obelisk::op::probabilities::Probabilities;
use obelisk::tensor::{Spec, Tensor};

const KINDS: [(&str, Probabilities); 2] = [
    ("softmax", Probabilities::Softmax),
    ("sigmoid", Probabilities::Sigmoid),
];

#[test]
fn equal_pytorch() {
    let goldens = Goldens::load("probabilities");
    for (case, attributes) in &goldens.cases {
        let (_, op) = KINDS
            .into_iter()
            .find(|(kind, _)| attributes["kind"] == *kind)
            .unwrap();
        let shape = goldens.get(case, "input").ncdhw();
        let build = |g: &mut Graph| {
            let x = g.input("input", Spec::map(shape)).unwrap();
            g.push1(op, &[x]).unwrap()
        };
        check_golden(&goldens, case, build, &["input"], 2e-6);
    }
}

#[test]
fn devices_and_central_differences_agree_with_the_reference_on_odd_shapes() {
    for shape in [[2, 5, 3, 4, 5], [1, 1, 2, 3, 7], [2, 13, 5, 1, 3]] {
        for (_, op) in KINDS {
            let build = |g: &mut Graph| {
                let x = g.input("x", Spec::map(shape)).unwrap();
                vec![g.push1(op, &[x]).unwrap()]
            };
            let data = Data::from([("x".into(), noise(&shape, 5))]);
            check_op(build, &data, &["x"], 2e-6, 1e-2, 1e-3);
        }
    }
}

#[test]
fn large_logits_have_finite_probabilities() {
    let shape = [1, 3, 1, 1, 2];
    let mut g = Graph::new();
    let x = g.input("x", Spec::map(shape)).unwrap();
    let y = g.push1(Probabilities::Softmax, &[x]).unwrap();
    g.keep("y", y);
    let x = Tensor::new(&shape, vec![3e4, -3e4, 0.0, -3e4, -1e3, -2e3]);
    let data = Data::from([("x".into(), x)]);
    for device in devices() {
        let y = &run_on(device, &g, &data, &StepScalars::default())["y"];
        assert_eq!(y.data, [1.0, 0.0, 0.0, 0.0, 0.0, 1.0]);
    }
}

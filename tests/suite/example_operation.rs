//! The operation that ARCHITECTURE.md adds passes the checks of every operation.

#[allow(dead_code)] // its main is not run here
#[path = "../../examples/add_an_operation.rs"]
mod example;

use crate::common::*;
use obelisk::graph::{Graph, Init};
use obelisk::op::fill::Fill;
use obelisk::tensor::Spec;

#[test]
fn an_operation_from_outside_the_crate_passes_the_checks_of_every_operation() {
    for spec in [Spec::map([2, 5, 3, 4, 5]), Spec::flat(&[7])] {
        let data = Data::from([("x".into(), noise(&spec.shape, 1))]);
        let build = |g: &mut Graph| {
            let x = g.input("x", spec.clone()).unwrap();
            vec![g.push1(example::Square, &[x]).unwrap()]
        };
        check_op(build, &data, &["x"], 1e-6, 1e-2, 1e-3);
    }
}

#[test]
fn an_operation_without_a_gradient_says_so() {
    let mut graph = Graph::new();
    let x = graph.parameter("x", &[7], Init::Constant(1.0)).unwrap();
    let y = graph.push1(example::Square, &[x]).unwrap();
    let ones = graph.push1(Fill::new(&[7], 1.0), &[]).unwrap();
    let dx = graph.gradients_from(&[(y, ones)], &[x]).unwrap()[0].unwrap();
    let error = graph.gradients_from(&[(dx, ones)], &[x]).unwrap_err().to_string();
    assert!(error.starts_with("square_gradient has no gradient"), "{error}");
}

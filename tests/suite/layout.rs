//! Between maps and dense numbers.

use crate::common::*;
use obelisk::graph::Graph;
use obelisk::op::StepScalars;
use obelisk::op::layout::{to_flat, to_map};
use obelisk::tensor::Spec;

#[test]
fn maps_and_dense_numbers_hold_the_same_whatever_the_channels() {
    for shape in [
        [2, 5, 3, 4, 5],
        [1, 1, 1, 1, 1],
        [3, 8, 2, 7, 1],
        [1, 14, 1, 3, 9],
        [2, 3, 5, 8, 8],
    ] {
        let data = Data::from([("x".into(), noise(&shape, 1))]);
        let flat = |g: &mut Graph| {
            let x = g.input("x", Spec::map(shape)).unwrap();
            vec![to_flat(g, x).unwrap()]
        };
        check_op(flat, &data, &["x"], 0.0, 1e-2, 1e-4);
        // From two axes, as a fully-connected layer leaves them.
        let rows = [shape[0], shape[1..].iter().product()];
        let data = Data::from([("x".into(), noise(&rows, 1))]);
        let map = |g: &mut Graph| {
            let x = g.input("x", Spec::flat(&rows)).unwrap();
            vec![to_map(g, x, shape).unwrap()]
        };
        check_op(map, &data, &["x"], 0.0, 1e-2, 1e-4);
    }
}

#[test]
fn a_map_larger_than_a_binding_is_split() {
    let shape = [2, 5, 8, 16, 16]; // 128 KiB as a map with its padding, 80 KiB dense
    let mut g = Graph::new();
    let x = g.input("x", Spec::map(shape)).unwrap();
    let flat = to_flat(&mut g, x).unwrap();
    let back = to_map(&mut g, flat, shape).unwrap();
    g.keep("flat", flat);
    g.keep("back", back);
    let data = Data::from([("x".into(), noise(&shape, 1))]);
    check_with_binding(&g, &data, &StepScalars::default(), 0.0, 84 << 10);
}

#[test]
fn counts_that_differ_are_named() {
    let mut g = Graph::new();
    let x = g.input("x", Spec::flat(&[2, 7])).unwrap();
    let error = to_map(&mut g, x, [2, 3, 1, 1, 2]).unwrap_err().to_string();
    assert!(
        error.contains("to_map") && error.contains("[2, 7]") && error.contains("[2, 3, 1, 1, 2]"),
        "{error}"
    );
    assert!(
        to_flat(&mut g, x)
            .unwrap_err()
            .to_string()
            .contains("takes one map")
    );
}

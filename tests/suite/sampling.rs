//! General grid sampling and affine grids against stored PyTorch numbers, references and central differences.

use crate::common::*;
use obelisk::graph::{Graph, Value};
use obelisk::op::StepScalars;
use obelisk::op::affine_grid::AffineGrid;
use obelisk::op::grid_sample::{GridSample, Mode, Padding};
use obelisk::tensor::{Spec, Tensor};

/// Compares output and gradients of a one-output graph with a golden case, then the devices with the references.
fn check_golden(goldens: &Goldens, case: &str, data: &Data, build: impl Fn(&mut Graph) -> Value) {
    let mut g = Graph::new();
    let y = build(&mut g);
    let spec = g.spec(y).clone();
    let upstream = g.input("upstream", spec.clone()).unwrap();
    let mut data = data.clone();
    data.insert(
        "upstream".into(),
        Tensor::new(&spec.shape, goldens.get(case, "upstream").data.clone()),
    );
    let names: Vec<String> = data
        .keys()
        .filter(|n| goldens.try_get(case, &format!("grad_{n}")).is_some())
        .cloned()
        .collect();
    let wrt: Vec<Value> = names.iter().map(|n| g.find(n).unwrap()).collect();
    let gradients = g.gradients_from(&[(y, upstream)], &wrt).unwrap();
    g.keep("output", y);
    let values = evaluate(&g, &data, &StepScalars::default());
    let value = |v: Value| values[v.index()].as_ref().unwrap();
    let output = Tensor::new(&spec.shape, goldens.get(case, "output").data.clone());
    assert_close(case, value(y), &output, 1e-5);
    for (name, gradient) in names.iter().zip(gradients) {
        let gradient = gradient.unwrap();
        assert_close(
            &format!("{case} d {name}"),
            value(gradient),
            goldens.get(case, &format!("grad_{name}")),
            1e-5,
        );
        g.keep(name, gradient);
    }
    check_on_devices(&g, &data, &StepScalars::default(), 1e-5);
}

#[test]
fn grid_sample_equals_pytorch() {
    let goldens = Goldens::load("grid_sample");
    for (case, attributes) in &goldens.cases {
        let sample = GridSample {
            mode: if attributes["mode"] == "nearest" {
                Mode::Nearest
            } else {
                Mode::Trilinear
            },
            padding: if attributes["padding_mode"] == "border" {
                Padding::Border
            } else {
                Padding::Zeros
            },
            align_corners: attributes["align_corners"].as_bool().unwrap(),
        };
        let data: Data = ["input", "grid"]
            .iter()
            .map(|n| (n.to_string(), goldens.get(case, n).clone()))
            .collect();
        check_golden(&goldens, case, &data, |g| {
            let image = g.input("input", Spec::flat(&data["input"].shape)).unwrap();
            let grid = g.input("grid", Spec::flat(&data["grid"].shape)).unwrap();
            g.push1(sample, &[image, grid]).unwrap()
        });
    }
}

#[test]
fn affine_grid_equals_pytorch() {
    let goldens = Goldens::load("affine_grid");
    for (case, attributes) in &goldens.cases {
        let size: Vec<usize> = attributes["size"]
            .as_array()
            .unwrap()
            .iter()
            .map(|v| v.as_u64().unwrap() as usize)
            .collect();
        let grid = AffineGrid {
            size: [size[2], size[3], size[4]],
            align_corners: attributes["align_corners"].as_bool().unwrap(),
        };
        let data = Data::from([("theta".into(), goldens.get(case, "theta").clone())]);
        check_golden(&goldens, case, &data, |g| {
            let theta = g.input("theta", Spec::flat(&data["theta"].shape)).unwrap();
            g.push1(grid, &[theta]).unwrap()
        });
    }
}

#[test]
fn sampling_agrees_with_central_differences() {
    for (padding, align_corners) in [(Padding::Zeros, true), (Padding::Border, false)] {
        let sample = GridSample {
            mode: Mode::Trilinear,
            padding,
            align_corners,
        };
        let grid = AffineGrid {
            size: [2, 3, 2],
            align_corners,
        };
        let theta = noise(&[2, 3, 4], 9);
        let theta = Tensor::from_fn(&[2, 3, 4], |i| {
            0.31 * theta.data[i] + if i % 12 % 5 == 0 { 0.83 } else { 0.0 }
        });
        let data = Data::from([
            ("image".into(), noise(&[2, 2, 4, 3, 5], 1)),
            ("theta".into(), theta),
        ]);
        let build = |g: &mut Graph| {
            let image = g.input("image", Spec::flat(&[2, 2, 4, 3, 5])).unwrap();
            let theta = g.input("theta", Spec::flat(&[2, 3, 4])).unwrap();
            let at = g.push1(grid, &[theta]).unwrap();
            vec![g.push1(sample, &[image, at]).unwrap()]
        };
        check_op(build, &data, &["image", "theta"], 1e-5, 1e-3, 2e-2);
    }
}

#[test]
fn the_image_gradient_is_exact_where_many_samples_meet() {
    // 4096 locations in one cell, of values whose float sum depends on the order.
    let n = 4096;
    let mut g = Graph::new();
    let image = g.input("image", Spec::flat(&[1, 1, 2, 2, 2])).unwrap();
    let grid = g.input("grid", Spec::flat(&[1, n, 1, 1, 3])).unwrap();
    let sample = GridSample {
        mode: Mode::Trilinear,
        padding: Padding::Zeros,
        align_corners: true,
    };
    let y = g.push1(sample, &[image, grid]).unwrap();
    let upstream = g.input("upstream", Spec::flat(&[1, 1, n, 1, 1])).unwrap();
    let gradient = g.gradients_from(&[(y, upstream)], &[image]).unwrap()[0].unwrap();
    g.keep("gradient", gradient);
    let data = Data::from([
        ("image".into(), noise(&[1, 1, 2, 2, 2], 1)),
        ("grid".into(), noise(&[1, n, 1, 1, 3], 2)),
        (
            "upstream".into(),
            Tensor::from_fn(&[1, 1, n, 1, 1], |i| {
                (i as f32 - 2000.0) * 1e-4 + 3e3 * (i % 2) as f32
            }),
        ),
    ]);
    check_on_devices(&g, &data, &StepScalars::default(), 1e-6);
}

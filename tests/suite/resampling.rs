//! Trilinear upsampling, resampling to the nearest voxel, average and max pooling.

use crate::common::*;
use obelisk::graph::{Graph, Value};
use obelisk::op::Target;
use obelisk::op::avg_pool3d::AvgPool3d;
use obelisk::op::max_pool3d::{MaxPool, max_pool3d};
use obelisk::op::nearest::{Nearest, NearestGradient};
use obelisk::op::upsample::Upsample;
use obelisk::op::{Caps, StepScalars};
use obelisk::plan::Plan;
use obelisk::tensor::{Layout, Spec};
use proptest::prelude::*;

fn upsample(shape: [usize; 5], size: [usize; 3]) -> impl Fn(&mut Graph) -> Vec<Value> {
    move |g| {
        let x = g.input("x", Spec::map(shape)).unwrap();
        vec![g.push1(Upsample { size }, &[x]).unwrap()]
    }
}

fn pool(shape: [usize; 5], layout: Layout, pool: AvgPool3d) -> impl Fn(&mut Graph) -> Vec<Value> {
    move |g| {
        let spec = Spec {
            shape: shape.to_vec(),
            layout,
        };
        let x = g.input("x", spec).unwrap();
        vec![g.push1(pool, &[x]).unwrap()]
    }
}

fn input(shape: [usize; 5]) -> Data {
    Data::from([("x".into(), noise(&shape, 1))])
}

/// Output and input gradient against PyTorch's, by the reference and on every device.
fn check_golden(
    goldens: &Goldens,
    case: &str,
    tolerance: f32,
    build: impl Fn(&mut Graph, Value) -> Value,
    spec: Spec,
) {
    let mut graph = Graph::new();
    let x = graph.input("x", spec).unwrap();
    let y = build(&mut graph, x);
    let upstream = graph.input("upstream", graph.spec(y).clone()).unwrap();
    let gradient = graph.gradients_from(&[(y, upstream)], &[x]).unwrap()[0].unwrap();
    graph.keep("output", y);
    graph.keep("grad_input", gradient);
    let data = Data::from([
        ("x".into(), goldens.get(case, "input").clone()),
        ("upstream".into(), goldens.get(case, "upstream").clone()),
    ]);
    let values = evaluate(&graph, &data, &StepScalars::default());
    for (name, value) in graph.kept() {
        let expected = goldens.get(case, name);
        assert_close(
            &format!("{case}: reference's {name}"),
            values[value.index()].as_ref().unwrap(),
            expected,
            1e-6,
        );
    }
    for device in devices() {
        let actual = run_on(device, &graph, &data, &StepScalars::default());
        for (name, _) in graph.kept() {
            assert_close(
                &format!("{case}: {name}"),
                &actual[name],
                goldens.get(case, name),
                tolerance,
            );
        }
    }
}

fn three(value: &serde_json::Value) -> [usize; 3] {
    serde_json::from_value(value.clone()).unwrap()
}

#[test]
fn upsampling_equals_pytorch() {
    let goldens = Goldens::load("upsample_trilinear");
    for (case, attributes) in &goldens.cases {
        let size = three(&attributes["size"]);
        let shape = goldens.get(case, "input").ncdhw();
        check_golden(
            &goldens,
            case,
            2e-6,
            |g, x| g.push1(Upsample { size }, &[x]).unwrap(),
            Spec::map(shape),
        );
    }
}

#[test]
fn average_pooling_equals_pytorch_in_both_layouts() {
    let goldens = Goldens::load("avg_pool3d");
    for (case, attributes) in &goldens.cases {
        let of = |name: &str| three(&attributes[name])[0];
        let op = AvgPool3d {
            kernel: of("kernel"),
            stride: of("stride"),
            padding: of("padding"),
        };
        let shape = goldens.get(case, "input").ncdhw();
        for spec in [Spec::map(shape), Spec::flat(&shape)] {
            check_golden(&goldens, case, 2e-6, |g, x| g.push1(op, &[x]).unwrap(), spec);
        }
    }
}

#[test]
fn nearest_voxels_equal_pytorchs_in_both_layouts() {
    let goldens = Goldens::load("nearest");
    for (case, attributes) in &goldens.cases {
        let size = three(&attributes["size"]);
        let shape = goldens.get(case, "input").ncdhw();
        for spec in [Spec::map(shape), Spec::flat(&shape)] {
            let build = |g: &mut Graph, x| g.push1(Nearest { size }, &[x]).unwrap();
            check_golden(&goldens, case, 2e-6, build, spec);
        }
    }
}

#[test]
fn max_pooling_equals_pytorch_in_both_layouts() {
    let goldens = Goldens::load("max_pool3d");
    for (case, attributes) in &goldens.cases {
        let of = |name: &str| three(&attributes[name]);
        let pool = MaxPool {
            kernel: of("kernel"),
            stride: of("stride"),
            padding: of("padding"),
        };
        let shape = goldens.get(case, "input").ncdhw();
        for spec in [Spec::map(shape), Spec::flat(&shape)] {
            let build = |g: &mut Graph, x| max_pool3d(g, x, pool).unwrap();
            check_golden(&goldens, case, 2e-6, build, spec);
        }
    }
}

#[test]
fn gradients_of_nearest_voxels_and_max_pooling_equal_central_differences() {
    // Values further apart than the differences' step, so that no other one becomes the highest.
    let apart = |shape: [usize; 5]| {
        let mut x = noise(&shape, 3);
        let mut order: Vec<usize> = (0..x.data.len()).collect();
        order.sort_by(|a, b| x.data[*a].total_cmp(&x.data[*b]));
        for (rank, i) in order.into_iter().enumerate() {
            x.data[i] = 0.05 * rank as f32 - 2.0;
        }
        Data::from([("x".into(), x)])
    };
    for layout in [Layout::Flat, Layout::Map] {
        let input_of = |g: &mut Graph, shape: [usize; 5]| {
            let shape = shape.to_vec();
            g.input("x", Spec { shape, layout }).unwrap()
        };
        let shape = [2, 3, 3, 4, 2];
        for size in [[5, 7, 5], [3, 4, 2], [2, 9, 1]] {
            let build = |g: &mut Graph| {
                let x = input_of(g, shape);
                vec![g.push1(Nearest { size }, &[x]).unwrap()]
            };
            check_op(build, &input(shape), &["x"], 2e-6, 1e-2, 1e-3);
            let build = |g: &mut Graph| {
                let x = input_of(g, shape);
                vec![g.push1(NearestGradient { size }, &[x]).unwrap()]
            };
            check_op(build, &input(shape), &["x"], 2e-6, 1e-2, 1e-3);
        }
        let shape = [1, 2, 4, 5, 3];
        for (kernel, stride, padding) in [
            ([2; 3], [2; 3], [0; 3]),
            ([3; 3], [2; 3], [1; 3]),
            ([3, 1, 2], [1, 2, 1], [1, 0, 0]),
            ([2, 2, 2], [3, 3, 1], [1, 0, 1]),
        ] {
            let build = |g: &mut Graph| {
                let x = input_of(g, shape);
                let pool = MaxPool {
                    kernel,
                    stride,
                    padding,
                };
                vec![max_pool3d(g, x, pool).unwrap()]
            };
            check_op(build, &apart(shape), &["x"], 2e-6, 1e-2, 1e-3);
        }
    }
}

#[test]
fn max_pooling_says_what_it_takes() {
    let mut g = Graph::new();
    let x = g.input("x", Spec::map([1, 2, 4, 2, 5])).unwrap();
    let pool = |kernel, stride, padding| MaxPool {
        kernel: [kernel; 3],
        stride: [stride; 3],
        padding: [padding; 3],
    };
    for (pool, part) in [
        (pool(3, 2, 0), "shorter than the kernel 3"),
        (pool(3, 0, 1), "at least 1"),
        (pool(2, 2, 2), "at most half the kernel"),
    ] {
        let error = max_pool3d(&mut g, x, pool).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn gradients_equal_central_differences() {
    let shape = [2, 3, 3, 4, 2];
    for size in [[5, 7, 5], [3, 4, 2], [2, 9, 1]] {
        check_op(upsample(shape, size), &input(shape), &["x"], 2e-6, 1e-2, 1e-3);
    }
    let shape = [1, 2, 4, 5, 3];
    for (kernel, stride, padding) in [(3, 1, 1), (2, 3, 0), (3, 2, 1), (1, 2, 0)] {
        let op = AvgPool3d {
            kernel,
            stride,
            padding,
        };
        for layout in [Layout::Flat, Layout::Map] {
            check_op(pool(shape, layout, op), &input(shape), &["x"], 2e-6, 1e-2, 1e-3);
        }
    }
}

#[test]
fn the_gradients_own_gradients_are_the_operations() {
    let shape = [1, 5, 3, 2, 4];
    let build = |g: &mut Graph| {
        let x = g.input("x", Spec::map(shape)).unwrap();
        let up = obelisk::op::upsample::UpsampleGradient { size: [2, 5, 2] };
        let pool = obelisk::op::avg_pool3d::AvgPool3dGradient {
            pool: AvgPool3d {
                kernel: 3,
                stride: 2,
                padding: 1,
            },
            size: [5, 4, 8],
        };
        vec![g.push1(up, &[x]).unwrap(), g.push1(pool, &[x]).unwrap()]
    };
    check_op(build, &input(shape), &["x"], 2e-6, 1e-2, 1e-3);
}

proptest! {
    #![proptest_config(random_cases(12))]

    #[test]
    fn odd_sizes_agree_with_the_reference(
        shape in [1..3usize, 1..10usize, 1..8usize, 1..8usize, 1..8usize],
        size in [1..15usize, 1..15usize, 1..15usize], doubled: bool,
        kernel in 1..5usize, stride in 1..4usize,
    ) {
        let size = if doubled { [size[0], 2 * shape[3], 2 * shape[4]] } else { size };
        let padding = kernel / 2;
        let x = input(shape);
        let op = AvgPool3d { kernel, stride, padding };
        for build in [
            &upsample(shape, size) as &dyn Fn(&mut Graph) -> Vec<Value>,
            &pool(shape, Layout::Map, op),
            &pool(shape, Layout::Flat, op),
        ] {
            let mut graph = Graph::new();
            let y = build(&mut graph)[0];
            let x_value = graph.find("x").unwrap();
            let upstream = graph.input("upstream", graph.spec(y).clone()).unwrap();
            let gradient = graph.gradients_from(&[(y, upstream)], &[x_value]).unwrap()[0].unwrap();
            graph.keep("output", y);
            graph.keep("gradient", gradient);
            let mut data = x.clone();
            data.insert("upstream".into(), noise(graph.shape(y), 2));
            check_on_devices(&graph, &data, &StepScalars::default(), 2e-6);
        }
    }
}

#[test]
fn values_beyond_a_binding_are_cut_into_ranges() {
    for (shape, size, target) in [
        ([2, 9, 4, 5, 3], [7, 9, 5], Target::Gpu),
        ([1, 5, 6, 7, 5], [6, 3, 11], Target::Gpu),
        ([2, 9, 4, 5, 2], [7, 10, 4], Target::Cpu),
    ] {
        let caps = Caps {
            max_binding: 7168,
            target,
            ..Caps::PORTABLE
        };
        let mut graph = Graph::new();
        let up = upsample(shape, size)(&mut graph)[0];
        let x = graph.find("x").unwrap();
        let averaged = graph
            .push1(
                AvgPool3d {
                    kernel: 3,
                    stride: 1,
                    padding: 1,
                },
                &[up],
            )
            .unwrap();
        let upstream = graph.input("upstream", graph.spec(averaged).clone()).unwrap();
        let gradient = graph.gradients_from(&[(averaged, upstream)], &[x]).unwrap()[0].unwrap();
        graph.keep("output", averaged);
        graph.keep("gradient", gradient);
        let mut data = input(shape);
        data.insert("upstream".into(), noise(graph.shape(averaged), 2));
        let plan = Plan::new(&graph, &caps).unwrap();
        let in_one = Plan::new(
            &graph,
            &Caps {
                target,
                ..Caps::PORTABLE
            },
        )
        .unwrap()
        .launches
        .len();
        assert!(plan.launches.len() > in_one);
        assert!(
            plan.launches
                .iter()
                .flat_map(|l| &l.bound)
                .all(|b| b.size <= 7168)
        );
        let expected = evaluate(&graph, &data, &StepScalars::default());
        for device in devices() {
            let actual = run_plan_on(device, plan.clone(), &data, &StepScalars::default());
            for (name, value) in graph.kept() {
                let want = expected[value.index()].as_ref().unwrap();
                assert_close(name, &actual[name], want, 2e-6);
            }
        }
    }
    let mut graph = Graph::new();
    let up = upsample([1, 9, 4, 9, 9], [8, 18, 18])(&mut graph)[0];
    graph.keep("output", up);
    let error = Plan::new(
        &graph,
        &Caps {
            max_binding: 256,
            ..Caps::PORTABLE
        },
    )
    .unwrap_err()
    .to_string();
    assert!(error.contains("upsample") && error.contains("binding"), "{error}");
}

#[test]
fn twelve_channels_at_144_fit_the_portable_limits() {
    let mut graph = Graph::new();
    let y = upsample([1, 12, 72, 72, 72], [144; 3])(&mut graph)[0];
    let x = graph.find("x").unwrap();
    let upstream = graph.input("upstream", graph.spec(y).clone()).unwrap();
    let gradient = graph.gradients_from(&[(y, upstream)], &[x]).unwrap()[0].unwrap();
    graph.keep("output", y);
    graph.keep("gradient", gradient);
    let plan = Plan::new(&graph, &Caps::PORTABLE).unwrap();
    assert!(
        plan.launches
            .iter()
            .flat_map(|l| &l.bound)
            .all(|b| b.size <= 128 << 20)
    );
}

#[test]
fn wrong_inputs_are_refused_with_the_reason() {
    let mut g = Graph::new();
    let flat = g.input("flat", Spec::flat(&[1, 2, 3, 4, 5])).unwrap();
    let vector = g.input("vector", Spec::flat(&[3])).unwrap();
    let error = g.push1(Upsample { size: [2; 3] }, &[flat]).unwrap_err();
    assert!(error.to_string().contains("map"), "{error}");
    let op = |kernel, stride, padding| AvgPool3d {
        kernel,
        stride,
        padding,
    };
    for (op, x) in [
        (op(0, 1, 0), flat),
        (op(3, 0, 1), flat),
        (op(3, 1, 2), flat),
        (op(6, 1, 1), flat),
        (op(3, 1, 1), vector),
    ] {
        let error = g.push1(op, &[x]).unwrap_err().to_string();
        assert!(error.contains("avg_pool3d"), "{error}");
    }
}

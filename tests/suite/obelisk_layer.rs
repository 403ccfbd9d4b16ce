//! OBELISK sampling.

use crate::common::*;
use obelisk::graph::{Graph, Value};
use obelisk::op::Target;
use obelisk::op::obelisk_layer::{
    ObeliskLayer, ObeliskLayerGradients, ObeliskLayerOffsetGradient, ObeliskLayerWeightGradient,
    obelisk_layer,
};
use obelisk::op::obelisk_sample::{Locations, ObeliskSample};
use obelisk::op::{Caps, StepScalars};
use obelisk::plan::{Launch, Plan};
use obelisk::tensor::{Layout, Spec, Tensor};

/// Declares image, offsets and points as far as `data` has them and samples.
fn sample(g: &mut Graph, data: &Data, layout: Layout, locations: Locations) -> Value {
    let spec = |name: &str| Spec::flat(&data[name].shape);
    let image = Spec {
        layout,
        ..spec("input")
    };
    let mut inputs = vec![
        g.input("input", image).unwrap(),
        g.input("offsets", spec("offsets")).unwrap(),
    ];
    if locations == Locations::Points {
        inputs.push(g.input("points", spec("points")).unwrap());
    }
    g.push1(ObeliskSample::new(locations), &inputs).unwrap()
}

/// [`sample`] that stores slopes.
fn sample_with_slopes(g: &mut Graph, data: &Data, layout: Layout, locations: Locations) -> [Value; 2] {
    let x = sample(g, data, layout, locations);
    let inputs = g.producer::<ObeliskSample>(x).unwrap().1.to_vec();
    let op = ObeliskSample {
        locations,
        slopes: true,
    };
    g.push(op, &inputs).unwrap().try_into().unwrap()
}

/// The offsets as a parameter has them: [K, 3] → [1, K, 1, 1, 3], [K, 2, 3] → [1, K, 1, 2, 3].
fn as_parameter(offsets: &Tensor) -> Tensor {
    let terms = if offsets.shape.len() == 3 { 2 } else { 1 };
    Tensor::new(&[1, offsets.shape[0], 1, terms, 3], offsets.data.clone())
}

/// A stored [N, CK, S] as the map [N, CK, 1, 1, S].
fn as_map(t: &Tensor) -> Tensor {
    match t.shape[..] {
        [n, c, s] => Tensor::new(&[n, c, 1, 1, s], t.data.clone()),
        _ => t.clone(),
    }
}

#[test]
fn sampling_and_its_gradients_equal_pytorch() {
    for file in ["obelisk_unary", "obelisk_binary"] {
        let goldens = Goldens::load(file);
        for (case, attributes) in &goldens.cases {
            let locations = match attributes.get("grid") {
                Some(grid) => Locations::Grid(serde_json::from_value(grid.clone()).unwrap()),
                None => Locations::Points,
            };
            for layout in [Layout::Flat, Layout::Map] {
                let mut data = Data::from([
                    ("input".into(), goldens.get(case, "input").clone()),
                    ("offsets".into(), as_parameter(goldens.get(case, "offsets"))),
                    ("upstream".into(), as_map(goldens.get(case, "upstream"))),
                ]);
                if let Some(points) = goldens.try_get(case, "points") {
                    data.insert("points".into(), points.clone());
                }
                let mut graph = Graph::new();
                let x = sample(&mut graph, &data, layout, locations);
                let upstream = graph.input("upstream", graph.spec(x).clone()).unwrap();
                let wrt = [("grad_offsets", "offsets"), ("grad_input", "input")]
                    .map(|(name, of)| (name, graph.find(of).unwrap()));
                let values: Vec<Value> = wrt.iter().map(|(_, v)| *v).collect();
                let gradients = graph.gradients_from(&[(x, upstream)], &values).unwrap();
                graph.keep("output", x);
                for ((name, _), gradient) in wrt.iter().zip(gradients) {
                    graph.keep(name, gradient.unwrap());
                }
                let expected = |name: &str| {
                    let golden = goldens.get(case, name);
                    if name == "grad_offsets" {
                        as_parameter(golden)
                    } else {
                        as_map(golden)
                    }
                };
                let values = evaluate(&graph, &data, &StepScalars::default());
                for (name, value) in graph.kept() {
                    let what = format!("{file} {case} {layout:?}: reference's {name}");
                    assert_close(
                        &what,
                        values[value.index()].as_ref().unwrap(),
                        &expected(name),
                        2e-6,
                    );
                }
                for device in devices() {
                    let actual = run_on(device, &graph, &data, &StepScalars::default());
                    for (name, _) in graph.kept() {
                        let what = format!("{file} {case} {layout:?}: {name}");
                        assert_close(&what, &actual[name], &expected(name), 1e-5);
                    }
                }
            }
        }
    }
}

/// Offsets whose samples keep `margin` voxels away from cell borders on every axis, for central differences.
fn offsets_off_borders(
    k: usize,
    terms: usize,
    size: [usize; 3],
    locations: Locations,
    margin: f64,
) -> Tensor {
    let (grid, cells) = match locations {
        Locations::Grid(grid) => (grid, false),
        Locations::Cells(grid) => (grid, true),
        Locations::Points => unreachable!("points lie anywhere"),
    };
    let mut seed = 0;
    let mut data = Vec::new();
    for i in 0..k * terms * 3 {
        let axis = 2 - i % 3;
        let extent = (size[axis] - 1) as f64;
        loop {
            seed += 1;
            let offset = noise(&[1], seed).data[0] * 0.7;
            let clear = (0..grid[axis]).all(|s| {
                let location = match grid[axis] {
                    n if cells => (s as f64 + 0.5) * size[axis] as f64 / n as f64 - 0.5,
                    1 => extent / 2.0,
                    n => s as f64 * extent / (n - 1) as f64,
                };
                let at = location + offset as f64 / 2.0 * extent;
                (at - at.round()).abs() > margin || size[axis] == 1
            });
            if clear {
                data.push(offset);
                break;
            }
        }
    }
    Tensor::new(&[1, k, 1, terms, 3], data)
}

#[test]
fn odd_sizes_agree_with_the_reference_and_central_differences() {
    for (n, c, size, k, grid) in [
        (1, 1, [7, 9, 6], 5, [4, 3, 3]),
        (2, 4, [5, 4, 7], 3, [2, 1, 4]),
        (1, 5, [4, 1, 6], 2, [3, 2, 2]),
        (1, 2, [3, 5, 2], 7, [3, 5, 2]),
        (2, 18, [6, 8, 7], 3, [3, 2, 3]), // sparse, five blocks of channels
        (1, 1, [4, 4, 4], 4, [7, 2, 4]),
        (3, 3, [2, 6, 5], 1, [1, 1, 1]),
        // Points more than two voxels apart; more than eight offsets.
        (1, 1, [8, 10, 12], 4, [3, 4, 4]),
        (2, 5, [4, 6, 19], 9, [2, 2, 5]),
    ] {
        for terms in [1, 2] {
            for layout in [Layout::Flat, Layout::Map] {
                for locations in [Locations::Grid(grid), Locations::Cells(grid)] {
                    let shape = [n, c, size[0], size[1], size[2]];
                    let offsets = offsets_off_borders(k, terms, size, locations, 0.02);
                    let data = Data::from([("input".into(), noise(&shape, 1)), ("offsets".into(), offsets)]);
                    let build = |g: &mut Graph| vec![sample(g, &data, layout, locations)];
                    check_op(build, &data, &["input", "offsets"], 1e-5, 2e-3, 2e-3);
                }
            }
        }
    }
}

/// The image's gradient of `upstream` [1, K, 1, 1, S] at random points of a 2 × 3 × 2 image.
#[test]
fn stored_slopes_give_the_offsets_gradient() {
    for (n, c, size, k, grid) in [
        (1, 1, [7, 9, 6], 4, [4, 3, 3]),
        (2, 3, [5, 4, 7], 8, [2, 1, 4]),
        (3, 5, [2, 6, 5], 12, [1, 1, 11]),
    ] {
        for terms in [1, 2] {
            for layout in [Layout::Flat, Layout::Map] {
                let locations = Locations::Grid(grid);
                let shape = [n, c, size[0], size[1], size[2]];
                let offsets = offsets_off_borders(k, terms, size, locations, 0.02);
                let data = Data::from([("input".into(), noise(&shape, 1)), ("offsets".into(), offsets)]);
                let build = |g: &mut Graph| vec![sample_with_slopes(g, &data, layout, locations)[0]];
                check_op(build, &data, &["input", "offsets"], 1e-5, 2e-3, 2e-3);
                let mut graph = Graph::new();
                let [_, slopes] = sample_with_slopes(&mut graph, &data, layout, locations);
                graph.keep("slopes", slopes);
                check_on_devices(&graph, &data, &StepScalars::default(), 1e-5);
            }
        }
    }
}

#[test]
fn stored_slopes_beyond_a_binding_are_cut_into_depth_ranges() {
    let (size, grid) = ([6, 5, 7], [5, 3, 4]);
    let offsets = offsets_off_borders(8, 2, size, Locations::Grid(grid), 0.01);
    let data = Data::from([
        ("input".into(), noise(&[2, 1, 6, 5, 7], 1)),
        ("offsets".into(), offsets),
        ("upstream".into(), noise(&[2, 8, 5, 3, 4], 4)),
    ]);
    let mut graph = Graph::new();
    let [x, _] = sample_with_slopes(&mut graph, &data, Layout::Flat, Locations::Grid(grid));
    let upstream = graph.input("upstream", graph.spec(x).clone()).unwrap();
    let offsets = graph.find("offsets").unwrap();
    let gradient = graph.gradients_from(&[(x, upstream)], &[offsets]).unwrap()[0];
    graph.keep("gradient", gradient.unwrap());
    // Eight of the ten slices of 2,304 bytes.
    check_with_binding(&graph, &data, &StepScalars::default(), 1e-5, 22_000);
}

fn scattered(upstream: Tensor) -> (Graph, Data) {
    let [_, k, _, _, s] = upstream.ncdhw();
    let data = Data::from([
        ("input".into(), noise(&[1, 1, 2, 3, 2], 1)),
        ("offsets".into(), noise(&[1, k, 1, 1, 3], 2)),
        ("points".into(), noise(&[1, s, 3], 3)),
        ("upstream".into(), upstream),
    ]);
    let mut graph = Graph::new();
    let x = sample(&mut graph, &data, Layout::Flat, Locations::Points);
    let upstream = graph.input("upstream", graph.spec(x).clone()).unwrap();
    let image = graph.find("input").unwrap();
    let gradient = graph.gradients_from(&[(x, upstream)], &[image]).unwrap()[0];
    graph.keep("gradient", gradient.unwrap());
    (graph, data)
}

#[test]
fn crowded_scatters_are_exact_to_a_float_at_any_scale_and_repeat_to_the_bit() {
    // 20,000 samples into 12 voxels, nearly cancelling, of magnitudes from 1e-30 to 1e30.
    for magnitude in [1e-30, 1e-10, 1.0, 1e30f32] {
        let mut upstream = noise(&[1, 5, 1, 1, 4000], 4);
        upstream.data.iter_mut().for_each(|v| *v *= magnitude);
        let (graph, data) = scattered(upstream);
        let expected = evaluate(&graph, &data, &StepScalars::default());
        let expected = expected[graph.kept()[0].1.index()].as_ref().unwrap();
        let unit = |t: &Tensor| {
            let scaled = t.data.iter().map(|v| v / magnitude).collect();
            Tensor::new(&t.shape, scaled)
        };
        for device in devices() {
            let first = run_on(device, &graph, &data, &StepScalars::default());
            let again = run_on(device, &graph, &data, &StepScalars::default());
            assert_eq!(first["gradient"], again["gradient"]);
            // Each weight is rounded as a float before it is added.
            assert_close("crowded", &unit(&first["gradient"]), &unit(expected), 3e-6);
        }
    }
}

#[test]
fn undefined_gradients_stay_undefined() {
    let mut upstream = noise(&[1, 2, 1, 1, 7], 4);
    upstream.data[3] = f32::NAN;
    let (graph, data) = scattered(upstream);
    for device in devices() {
        let out = run_on(device, &graph, &data, &StepScalars::default());
        assert!(out["gradient"].data.iter().all(|v| v.is_nan()));
    }
}

#[test]
fn samples_on_cell_borders_take_the_upper_cell_on_every_device() {
    // 5 voxels, 9 and 3 points: offsets of whole and half voxels put every sample of a plane on a border.
    let offsets = [0.0, 0.5, -0.5, 0.25, 0.0, 1.0, -0.25, 0.75, 0.0];
    let data = Data::from([
        ("input".into(), noise(&[1, 1, 5, 5, 5], 3)),
        ("offsets".into(), Tensor::new(&[1, 3, 1, 1, 3], offsets.to_vec())),
        ("upstream".into(), noise(&[1, 3, 9, 3, 5], 4)),
    ]);
    let mut graph = Graph::new();
    let x = sample(&mut graph, &data, Layout::Flat, Locations::Grid([9, 3, 5]));
    let upstream = graph.input("upstream", graph.spec(x).clone()).unwrap();
    let offsets = graph.find("offsets").unwrap();
    let gradient = graph.gradients_from(&[(x, upstream)], &[offsets]).unwrap()[0];
    graph.keep("output", x);
    graph.keep("gradient", gradient.unwrap());
    check_on_devices(&graph, &data, &StepScalars::default(), 1e-5);
}

#[test]
fn samples_beyond_a_binding_are_cut_into_depth_ranges() {
    let (size, grid) = ([6, 5, 7], [16, 8, 8]);
    let data = Data::from([
        ("input".into(), noise(&[2, 1, 6, 5, 7], 1)),
        (
            "offsets".into(),
            offsets_off_borders(2, 1, size, Locations::Grid(grid), 0.01),
        ),
        ("upstream".into(), noise(&[2, 2, 16, 8, 8], 4)),
    ]);
    let mut graph = Graph::new();
    let x = sample(&mut graph, &data, Layout::Flat, Locations::Grid(grid));
    let upstream = graph.input("upstream", graph.spec(x).clone()).unwrap();
    let names = ["offsets", "input"];
    let wrt = names.map(|name| graph.find(name).unwrap());
    let gradients = graph.gradients_from(&[(x, upstream)], &wrt).unwrap();
    graph.keep("output", x);
    for (name, gradient) in names.iter().zip(gradients) {
        graph.keep(&format!("gradient of {name}"), gradient.unwrap());
    }
    let caps = Caps {
        max_binding: 8192,
        ..Caps::PORTABLE
    };
    let plan = Plan::new(&graph, &caps).unwrap();
    assert_eq!(plan.launches.len(), 4 + 4 + 1 + 4);
    let expected = evaluate(&graph, &data, &StepScalars::default());
    for device in devices() {
        let actual = run_plan_on(device, plan.clone(), &data, &StepScalars::default());
        for (name, value) in graph.kept() {
            let want = expected[value.index()].as_ref().unwrap();
            assert_close(name, &actual[name], want, 1e-5);
        }
    }
}

#[test]
fn the_image_gradient_of_sparse_grids_adds_up_over_depth_ranges() {
    let (size, grid) = ([6, 9, 17], [3, 4, 8]);
    for layout in [Layout::Flat, Layout::Map] {
        let data = Data::from([
            ("input".into(), noise(&[2, 1, 6, 9, 17], 1)),
            (
                "offsets".into(),
                offsets_off_borders(40, 1, size, Locations::Grid(grid), 0.01),
            ),
            ("upstream".into(), noise(&[2, 40, 3, 4, 8], 4)),
        ]);
        let mut graph = Graph::new();
        let x = sample(&mut graph, &data, layout, Locations::Grid(grid));
        let upstream = graph.input("upstream", graph.spec(x).clone()).unwrap();
        let image = graph.find("input").unwrap();
        let gradient = graph.gradients_from(&[(x, upstream)], &[image]).unwrap()[0];
        graph.keep("gradient", gradient.unwrap());
        // Two of the six slices of 5,120 bytes, so that a range holds the end of one scan and the start of the next; a
        // map's image takes 29,376 bytes.
        let binding = if layout == Layout::Flat { 12_000 } else { 30_000 };
        check_with_binding(&graph, &data, &StepScalars::default(), 1e-5, binding);
        for device in devices() {
            let plan = Plan::new(&graph, device.caps()).unwrap();
            let kernel = match device.caps().target == Target::CpuLanes(8) {
                true => "obelisk_gather_lanes",
                false => "obelisk_gather_sparse",
            };
            let is_there = |l: &Launch| l.dispatch.shader().name() == kernel;
            assert!(plan.launches.iter().any(is_there), "{kernel}");
        }
    }
}

#[test]
fn wrong_inputs_are_refused_with_the_reason() {
    let mut g = Graph::new();
    let image = g.input("image", Spec::flat(&[2, 1, 4, 5, 6])).unwrap();
    let offsets = g.input("offsets", Spec::flat(&[1, 8, 1, 1, 3])).unwrap();
    let triple = g.input("triple", Spec::flat(&[1, 8, 1, 3, 3])).unwrap();
    let points = g.input("points", Spec::flat(&[3, 10, 3])).unwrap();
    let grid = Locations::Grid([2; 3]);
    for (locations, inputs, says) in [
        (grid, vec![image], "takes"),
        (grid, vec![offsets, image], "offsets"),
        (grid, vec![image, triple], "offsets"),
        (grid, vec![points, offsets], "image"),
        (Locations::Grid([2, 0, 2]), vec![image, offsets], "grid"),
        (Locations::Points, vec![image, offsets], "points"),
        (Locations::Points, vec![image, offsets, points], "points"),
    ] {
        let error = g
            .push1(ObeliskSample::new(locations), &inputs)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("obelisk_sample") && error.contains(says),
            "{error}"
        );
    }
}

/// Declares the layer's inputs as far as `data` has them and adds it.
fn layer(g: &mut Graph, data: &Data, layout: Layout, locations: Locations, groups: usize) -> Value {
    let spec = |name: &str| Spec::flat(&data[name].shape);
    let image = Spec {
        layout,
        ..spec("input")
    };
    let image = g.input("input", image).unwrap();
    let offsets = g.input("offsets", spec("offsets")).unwrap();
    let weight = g.input("weight", spec("weight")).unwrap();
    let points = (locations == Locations::Points).then(|| g.input("points", spec("points")).unwrap());
    obelisk_layer(g, image, offsets, weight, points, locations, groups).unwrap()
}

#[test]
fn layers_sample_images_of_several_bindings() {
    let (size, grid) = ([12, 16, 16], [6, 4, 4]);
    // Three parts: of eight planes of 1 KiB, the last of which hold the second scan's, and of ten planes of 4 KiB.
    for (layout, channels, binding) in [(Layout::Flat, 1, 9_000), (Layout::Map, 3, 42_000)] {
        let data = Data::from([
            ("input".into(), noise(&[2, channels, 12, 16, 16], 1)),
            (
                "offsets".into(),
                offsets_off_borders(8, 2, size, Locations::Grid(grid), 0.01),
            ),
            ("weight".into(), noise(&[8, 8 * channels, 1, 1, 1], 5)),
        ]);
        let mut graph = Graph::new();
        let f = layer(&mut graph, &data, layout, Locations::Grid(grid), 1);
        graph.keep("output", f);
        for target in [Target::Gpu, Target::CpuLanes(8)] {
            let caps = Caps {
                max_binding: binding,
                target,
                ..Caps::PORTABLE
            };
            let plan = Plan::new(&graph, &caps).unwrap();
            assert!(
                plan.launches
                    .iter()
                    .any(|launch| launch.variant.ends_with("parts"))
            );
            let caps = Caps {
                max_binding: binding / 2,
                ..caps
            };
            let refused = Plan::new(&graph, &caps).unwrap_err();
            assert!(refused.to_string().contains("as a whole"), "{refused}");
        }
        check_with_binding(&graph, &data, &StepScalars::default(), 1e-5, binding);
    }
}

#[test]
fn fused_layers_and_their_gradients_equal_pytorch() {
    let goldens = Goldens::load("obelisk_layer");
    for (case, attributes) in &goldens.cases {
        let locations = match attributes.get("grid") {
            Some(grid) => Locations::Grid(serde_json::from_value(grid.clone()).unwrap()),
            None => Locations::Points,
        };
        let groups = attributes["groups"].as_u64().unwrap() as usize;
        let as_weight = |t: &Tensor| Tensor::new(&[t.shape[0], t.shape[1], 1, 1, 1], t.data.clone());
        for layout in [Layout::Flat, Layout::Map] {
            let mut data = Data::from([
                ("input".into(), goldens.get(case, "input").clone()),
                ("offsets".into(), as_parameter(goldens.get(case, "offsets"))),
                ("weight".into(), as_weight(goldens.get(case, "weight"))),
                ("upstream".into(), as_map(goldens.get(case, "upstream"))),
            ]);
            if let Some(points) = goldens.try_get(case, "points") {
                data.insert("points".into(), points.clone());
            }
            let mut graph = Graph::new();
            let f = layer(&mut graph, &data, layout, locations, groups);
            let upstream = graph.input("upstream", graph.spec(f).clone()).unwrap();
            let names = ["input", "offsets", "weight"];
            let wrt = names.map(|name| graph.find(name).unwrap());
            let gradients = graph.gradients_from(&[(f, upstream)], &wrt).unwrap();
            graph.keep("output", f);
            for (name, gradient) in names.iter().zip(gradients) {
                graph.keep(&format!("grad_{name}"), gradient.unwrap());
            }
            if groups == 1 || data["weight"].shape[0] % (4 * groups) == 0 {
                fused_gradients(&mut graph, locations, groups, upstream);
            }
            let expected = |name: &str| {
                let name = name.trim_start_matches("fused ").trim_start_matches("both ");
                let golden = goldens.get(case, name);
                match name {
                    "grad_offsets" => as_parameter(golden),
                    "grad_weight" => as_weight(golden),
                    _ => as_map(golden),
                }
            };
            let values = evaluate(&graph, &data, &StepScalars::default());
            for (name, value) in graph.kept() {
                let what = format!("{case} {layout:?}: reference's {name}");
                assert_close(
                    &what,
                    values[value.index()].as_ref().unwrap(),
                    &expected(name),
                    2e-6,
                );
            }
            for device in devices() {
                let actual = run_on(device, &graph, &data, &StepScalars::default());
                for (name, _) in graph.kept() {
                    let what = format!("{case} {layout:?}: {name}");
                    assert_close(&what, &actual[name], &expected(name), 1e-5);
                }
            }
        }
    }
}

#[test]
fn fused_layers_of_odd_sizes_agree_with_the_reference_and_central_differences() {
    for (n, c, size, k, grid, groups, outputs) in [
        (1, 1, [7, 9, 6], 6, [4, 3, 3], 2, 8),
        (2, 4, [5, 4, 7], 3, [2, 1, 4], 1, 7),
        (1, 5, [4, 1, 6], 2, [3, 2, 2], 1, 70),
        (1, 1, [4, 4, 4], 12, [7, 2, 4], 4, 16),
        (1, 1, [6, 5, 7], 9, [9, 8, 5], 1, 36),
        (1, 3, [3, 6, 5], 2, [1, 1, 1], 2, 6),
        // Locations of a grid of multiples of four in tiles.
        (2, 2, [6, 9, 7], 3, [4, 8, 4], 1, 9),
        // The image's gradient with interleaved channels: a sparse grid, a multiple of four channels; more than eight offsets.
        (1, 4, [5, 9, 19], 9, [2, 3, 4], 1, 5),
        (2, 12, [4, 4, 11], 3, [2, 2, 3], 1, 8),
        (1, 4, [4, 6, 8], 2, [2, 2, 3], 2, 8),
        // Weights beyond 64 KiB: of one group, of several, and with groups that start between multiples of 256 bytes.
        (1, 1, [4, 5, 6], 300, [2, 3, 2], 1, 64),
        (2, 1, [4, 5, 6], 280, [1, 2, 2], 2, 128),
        (1, 1, [3, 4, 5], 918, [1, 2, 2], 2, 72),
    ] {
        for terms in [1, 2] {
            let shape = [n, c, size[0], size[1], size[2]];
            let data = Data::from([
                ("input".into(), noise(&shape, 1)),
                (
                    "offsets".into(),
                    offsets_off_borders(k, terms, size, Locations::Grid(grid), 0.02),
                ),
                ("weight".into(), noise(&[outputs, c * k / groups, 1, 1, 1], 3)),
            ]);
            let build = |g: &mut Graph| vec![layer(g, &data, Layout::Flat, Locations::Grid(grid), groups)];
            check_op(build, &data, &["input", "offsets", "weight"], 1e-5, 2e-3, 2e-3);
            if groups == 1 || outputs % (4 * groups) == 0 {
                let mut graph = Graph::new();
                let f = build(&mut graph)[0];
                let upstream = graph.input("upstream", graph.spec(f).clone()).unwrap();
                let mut data = data.clone();
                data.insert("upstream".into(), noise(graph.shape(f), 6));
                fused_gradients(&mut graph, Locations::Grid(grid), groups, upstream);
                check_on_devices(&graph, &data, &StepScalars::default(), 1e-5);
            }
        }
    }
}

#[test]
fn samples_far_outside_an_image_that_is_sampled_often_are_zeros() {
    // More than twelve samples a cell: on llvmpipe the layer packs the image.
    let (size, grid, k) = ([3, 4, 5], [6, 7, 8], 5);
    for n in [1, 2] {
        let data = Data::from([
            ("input".into(), noise(&[n, 1, size[0], size[1], size[2]], 1)),
            (
                "offsets".into(),
                Tensor::from_fn(&[1, k, 1, 2, 3], |i| noise(&[30], 2).data[i] * 4.0),
            ),
            ("weight".into(), noise(&[8, k, 1, 1, 1], 3)),
        ]);
        let mut graph = Graph::new();
        let f = layer(&mut graph, &data, Layout::Flat, Locations::Grid(grid), 1);
        graph.keep("output", f);
        check_on_devices(&graph, &data, &StepScalars::default(), 1e-5);
        for device in devices() {
            let caps = device.caps();
            let plan = Plan::new(&graph, caps).unwrap();
            let packs = |l: &Launch| l.dispatch.shader().name() == "obelisk_cells_pack";
            assert_eq!(
                plan.launches.iter().any(packs),
                caps.forms.texels && matches!(caps.target, Target::CpuLanes(_))
            );
        }
    }
}

/// The gradients of offsets and weights by the kernels that sample inside, which small layers don't take by themselves.
fn fused_gradients(graph: &mut Graph, locations: Locations, groups: usize, upstream: Value) {
    let op = ObeliskLayer { locations, groups };
    let named = |graph: &Graph, name: &str| graph.find(name).unwrap();
    let mut inputs = vec![named(graph, "input"), named(graph, "offsets")];
    inputs.extend(graph.find("points"));
    inputs.extend([named(graph, "weight"), upstream]);
    let offsets = graph.push1(ObeliskLayerOffsetGradient(op), &inputs).unwrap();
    let weight = graph.push1(ObeliskLayerWeightGradient(op), &inputs).unwrap();
    let both = graph.push(ObeliskLayerGradients(op), &inputs).unwrap();
    graph.keep("fused grad_offsets", offsets);
    graph.keep("fused grad_weight", weight);
    graph.keep("both grad_offsets", both[0]);
    graph.keep("both grad_weight", both[1]);
}

#[test]
fn fused_layers_beyond_a_binding_are_cut_into_depth_ranges_on_adapters_with_shuffles() {
    let (size, grid) = ([6, 5, 7], [40, 8, 8]);
    let data = Data::from([
        ("input".into(), noise(&[1, 1, 6, 5, 7], 1)),
        (
            "offsets".into(),
            offsets_off_borders(3, 2, size, Locations::Grid(grid), 0.01),
        ),
        ("weight".into(), noise(&[64, 3, 1, 1, 1], 5)),
        ("upstream".into(), noise(&[1, 64, 40, 8, 8], 4)),
    ]);
    let mut graph = Graph::new();
    let f = layer(&mut graph, &data, Layout::Flat, Locations::Grid(grid), 1);
    let upstream = graph.input("upstream", graph.spec(f).clone()).unwrap();
    graph.keep("output", f);
    fused_gradients(&mut graph, Locations::Grid(grid), 1, upstream);
    check_with_binding(&graph, &data, &StepScalars::default(), 2e-5, 400_000);
}

#[test]
fn fused_layers_beyond_a_binding_are_cut_into_depth_ranges() {
    let (size, grid) = ([6, 5, 7], [16, 8, 8]);
    let data = Data::from([
        ("input".into(), noise(&[2, 1, 6, 5, 7], 1)),
        (
            "offsets".into(),
            offsets_off_borders(2, 1, size, Locations::Grid(grid), 0.01),
        ),
        ("weight".into(), noise(&[3, 2, 1, 1, 1], 5)),
        ("upstream".into(), noise(&[2, 3, 16, 8, 8], 4)),
    ]);
    let mut graph = Graph::new();
    let f = layer(&mut graph, &data, Layout::Flat, Locations::Grid(grid), 1);
    let upstream = graph.input("upstream", graph.spec(f).clone()).unwrap();
    graph.keep("output", f);
    fused_gradients(&mut graph, Locations::Grid(grid), 1, upstream);
    let caps = Caps {
        max_binding: 16384,
        ..Caps::PORTABLE
    };
    let plan = Plan::new(&graph, &caps).unwrap();
    assert_eq!(plan.launches.len(), (1 + 2) + 2 * ((1 + 2 + 1) + (2 + 1)));
    let expected = evaluate(&graph, &data, &StepScalars::default());
    for device in devices() {
        let actual = run_plan_on(device, plan.clone(), &data, &StepScalars::default());
        for (name, value) in graph.kept() {
            let want = expected[value.index()].as_ref().unwrap();
            assert_close(name, &actual[name], want, 1e-5);
        }
    }
}

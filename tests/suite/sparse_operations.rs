//! Operations of sparse training: cases joined into a batch, offsets turned by an affine matrix, resident inputs.

use crate::common::*;
use obelisk::gpu::{Executable, Resident, Weights};
use obelisk::graph::Graph;
use obelisk::op::StepScalars;
use obelisk::op::add::Add;
use obelisk::op::join::join;
use obelisk::op::turn_offsets::turn_offsets;
use obelisk::plan::Plan;
use obelisk::tensor::{Spec, Tensor};

#[test]
fn joined_maps_and_their_gradients_keep_their_order() {
    for (cases, rest) in [
        (vec![1, 1, 1], [5, 1, 1, 7]),
        (vec![2, 1], [8, 3, 2, 5]),
        (vec![1, 3, 2, 1], [1, 1, 4, 3]),
    ] {
        let names: Vec<String> = (0..cases.len()).map(|i| format!("map {i}")).collect();
        let shape = |i: usize| [cases[i], rest[0], rest[1], rest[2], rest[3]];
        let data: Data = (0..cases.len())
            .map(|i| (names[i].clone(), noise(&shape(i), i as u32)))
            .collect();
        let build = |g: &mut Graph| {
            let maps: Vec<_> = (0..cases.len())
                .map(|i| g.input(&names[i], Spec::map(shape(i))).unwrap())
                .collect();
            vec![join(g, &maps).unwrap()]
        };
        let wrt: Vec<&str> = names.iter().map(String::as_str).collect();
        check_op(build, &data, &wrt, 0.0, 1e-2, 1e-4);
        let mut graph = Graph::new();
        let joined = build(&mut graph)[0];
        let values = evaluate(&graph, &data, &StepScalars::default());
        let all: Vec<f32> = names.iter().flat_map(|n| data[n].data.clone()).collect();
        assert_eq!(values[joined.index()].as_ref().unwrap().data, all);
    }
    let mut g = Graph::new();
    let a = g.input("a", Spec::map([1, 3, 1, 1, 4])).unwrap();
    let b = g.input("b", Spec::map([1, 3, 1, 1, 5])).unwrap();
    let error = join(&mut g, &[a, b]).unwrap_err().to_string();
    assert!(error.contains("join") && error.contains("differ in N"), "{error}");
}

#[test]
fn turned_offsets_and_their_gradient_equal_pytorch_and_central_differences() {
    let goldens = Goldens::load("turn_offsets");
    for case in goldens.cases.keys() {
        let build = |g: &mut Graph| {
            let offsets = parameter(g, "offsets", &goldens.get(case, "offsets").shape);
            let theta = g.input("theta", Spec::flat(&[1, 3, 4])).unwrap();
            turn_offsets(g, offsets, theta).unwrap()
        };
        check_golden(&goldens, case, build, &["offsets"], 1e-6);
    }
    for shape in [[1, 67, 1, 2, 3], [1, 1, 1, 1, 3]] {
        let data = Data::from([
            ("offsets".into(), noise(&shape, 3)),
            ("theta".into(), noise(&[1, 3, 4], 4)),
        ]);
        let build = |g: &mut Graph| {
            let offsets = g.input("offsets", Spec::flat(&shape)).unwrap();
            let theta = g.input("theta", Spec::flat(&[1, 3, 4])).unwrap();
            vec![turn_offsets(g, offsets, theta).unwrap()]
        };
        check_op(build, &data, &["offsets"], 1e-6, 1e-2, 1e-4);
    }
}

#[test]
fn a_resident_input_is_the_buffer_bound_last_and_must_be_bound() {
    let shape = [3, 5];
    let mut graph = Graph::new();
    let a = graph.resident("a", Spec::flat(&shape)).unwrap();
    let b = graph.resident("b", Spec::flat(&shape)).unwrap();
    let sum = graph.push1(Add, &[a, b]).unwrap();
    graph.keep("sum", sum);
    for device in devices() {
        pollster::block_on(async {
            let plan = Plan::new(&graph, device.caps()).unwrap();
            assert_eq!(
                plan.slot_bytes(),
                Spec::flat(&shape)
                    .bytes()
                    .next_multiple_of(obelisk::tensor::ALIGNMENT),
                "only the sum has a slot"
            );
            let weights = Weights::new(device, &plan, false).await.unwrap();
            let mut executable = Executable::new(device, plan, &weights).await.unwrap();
            let step = StepScalars::default();
            let data: Vec<Tensor> = (0..3).map(|i| noise(&shape, i)).collect();
            let mut residents = Vec::new();
            for tensor in &data {
                residents.push(
                    Resident::upload(device, tensor, Spec::flat(&shape))
                        .await
                        .unwrap(),
                );
            }
            executable.bind(device, "a", &residents[0]).await.unwrap();
            let error = executable.submit(device, &step).unwrap_err().to_string();
            assert!(error.contains("`b` was not bound"), "{error}");
            for (i, j) in [(0, 1), (2, 1), (1, 1), (2, 0)] {
                executable.bind(device, "a", &residents[i]).await.unwrap();
                executable.bind(device, "b", &residents[j]).await.unwrap();
                executable.submit(device, &step).unwrap();
                let sum = executable.read(device, "sum").await.unwrap();
                let expected = Tensor::from_fn(&shape, |e| data[i].data[e] + data[j].data[e]);
                assert_eq!(sum, expected, "residents {i} and {j}");
            }
            // What a graph computed becomes resident without a way over the host, and stays as it was.
            let kept = executable.resident(device, "sum").await.unwrap();
            executable.bind(device, "a", &kept).await.unwrap();
            executable.submit(device, &step).unwrap();
            let sum = executable.read(device, "sum").await.unwrap();
            let expected = Tensor::from_fn(&shape, |e| data[2].data[e] + data[0].data[e] + data[0].data[e]);
            assert_eq!(sum, expected);
            let other = Resident::upload(device, &noise(&[4], 1), Spec::flat(&[4]))
                .await
                .unwrap();
            let error = executable
                .bind(device, "a", &other)
                .await
                .unwrap_err()
                .to_string();
            assert!(error.contains("[4]") && error.contains("[3, 5]"), "{error}");
        });
    }
}

#[test]
fn a_resident_moves_between_a_texture_and_a_buffer_as_plans_read_it() {
    // More than four rows of texels, and not whole ones.
    let shape = [7, 9_999];
    let mut graph = Graph::new();
    let a = graph.resident("a", Spec::flat(&shape)).unwrap();
    let b = graph.input("b", Spec::flat(&shape)).unwrap();
    let sum = graph.push1(Add, &[a, b]).unwrap();
    graph.keep("sum", sum);
    let (resident_data, data) = (noise(&shape, 1), noise(&shape, 2));
    let expected = Tensor::from_fn(&shape, |e| resident_data.data[e] + data.data[e]);
    for device in devices() {
        pollster::block_on(async {
            let spec = Spec::flat(&shape);
            let resident = Resident::upload(device, &resident_data, spec).await.unwrap();
            for texels in [true, false, true, false] {
                let mut caps = *device.caps();
                caps.forms.texels &= texels;
                let plan = Plan::new(&graph, &caps).unwrap();
                assert_eq!(plan.residents[0].texel.is_some(), caps.forms.texels);
                let weights = Weights::new(device, &plan, false).await.unwrap();
                let mut executable = Executable::new(device, plan, &weights).await.unwrap();
                executable.bind(device, "a", &resident).await.unwrap();
                executable.upload(device, "b", &data).unwrap();
                executable.submit(device, &StepScalars::default()).unwrap();
                let sum = executable.read(device, "sum").await.unwrap();
                assert_eq!(sum, expected, "through textures: {texels}");
            }
        });
    }
}

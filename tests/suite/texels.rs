//! A kernel that reads its inputs in every way there is gives the same through textures and through buffers.

use crate::common::*;
use obelisk::gpu::{Executable, Weights};
use obelisk::graph::{Graph, GraphError};
use obelisk::op::*;
use obelisk::plan::Plan;
use obelisk::shader::Params;

obelisk::params! {
    struct ReadsParams { count: u32 }
}

const SHADER: Shader = Shader::new("reads", &[TEXT], &[ReadsParams::STRUCT]);

const TEXT: &str = "
@group(0) @binding(0) var<uniform> params: ReadsParams;
@group(0) @binding(1) var<storage, read> one: array<f32>;
@group(0) @binding(2) var<storage, read> four: array<vec4f>;
@group(0) @binding(3) var<storage, read_write> output: array<f32>;

fn by_component(i: i32) -> f32 { return one[i] + four[i / 4][i % 4]; }

fn through_pointers(i: u32) -> f32 {
    let p = &four[i / 4u];
    let q = &one;
    return (*p).y - (*p)[i % 4u] + (*q)[params.count - 1u - i] + dot((*p).wz, four[1].xy);
}

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) at: vec3u) {
    let i = at.x;
    if (i >= params.count) { return; }
    var sum = by_component(i32(i)) + through_pointers(i);
    // A number that was read is an index.
    sum += one[u32(abs(one[i]) * f32(params.count - 1u))];
    for (var k = 0; k < 4; k++) {
        if (one[k] > 0.0 && four[k].w > 0.0) { sum += four[k].x; } else { sum -= one[k]; }
        switch k {
            case 1: { sum += 2.0 * four[2][k]; continue; }
            case 2, 3: { sum += by_component(k); }
            default: { sum -= four[3].z; }
        }
        sum += 0.5 * one[k];
    }
    var k = 0u;
    loop {
        sum += one[k];
        continuing {
            k += 1u + u32(four[k].x > 0.0);
            break if k > 40u || one[k] > 0.9;
        }
    }
    output[i] = sum;
}";

/// The kernel over a flat value, which it reads as f32 and as vec4f.
#[derive(Debug)]
struct Reads;

impl Op for Reads {
    fn name(&self) -> &'static str {
        "reads"
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>, GraphError> {
        Ok(vec![inputs[0].clone()])
    }

    fn dispatches(&self, io: &mut Io, _: &Caps) -> Result<Vec<Dispatch>, GraphError> {
        let count = io.outputs[0].count();
        let mut dispatch = Dispatch::new(SHADER, "main")
            .with_params(ReadsParams { count: int(count) })
            .with_bindings(vec![
                read(BufferRef::Input(0)),
                read(BufferRef::Input(1)),
                write(BufferRef::Output(0)),
            ])
            .with_workgroups(linear_groups(count, 64));
        dispatch.iterations = 64;
        Ok(vec![dispatch])
    }

    fn reference(&self, inputs: &[&Tensor], _: &StepScalars) -> Vec<Tensor> {
        let [one, numbers] = [0, 1].map(|i| &inputs[i].data);
        let count = one.len();
        let four = |i: usize, c: usize| numbers[4 * i + c];
        let by_component = |i: usize| one[i] + numbers[i];
        let value = |i: usize| {
            let p = |c| four(i / 4, c);
            let mut sum = by_component(i) + p(1) - numbers[i] + one[count - 1 - i];
            sum += p(3) * four(1, 0) + p(2) * four(1, 1);
            sum += one[(one[i].abs() * (count - 1) as f32) as usize];
            for k in 0..4 {
                match one[k] > 0.0 && four(k, 3) > 0.0 {
                    true => sum += four(k, 0),
                    false => sum -= one[k],
                }
                match k {
                    1 => {
                        sum += 2.0 * four(2, k);
                        continue;
                    }
                    2 | 3 => sum += by_component(k),
                    _ => sum -= four(3, 2),
                }
                sum += 0.5 * one[k];
            }
            let mut k = 0;
            loop {
                sum += one[k];
                k += 1 + usize::from(four(k, 0) > 0.0);
                if k > 40 || one[k] > 0.9 {
                    return sum;
                }
            }
        };
        vec![Tensor::from_fn(&inputs[0].shape, value)]
    }
}

#[test]
fn textures_and_buffers_give_the_same() {
    // More than four rows of numbers, and more than one of four.
    let spec = Spec::flat(&[20_004]);
    let mut graph = Graph::new();
    let inputs = ["one", "four"].map(|name| graph.input(name, spec.clone()).unwrap());
    let output = graph.push1(Reads, &inputs).unwrap();
    graph.keep("output", output);
    let data = Data::from([
        ("one".into(), noise(&spec.shape, 1)),
        ("four".into(), noise(&spec.shape, 2)),
    ]);
    let values = evaluate(&graph, &data, &StepScalars::default());
    let expected = values[output.index()].as_ref().unwrap();
    for device in devices() {
        pollster::block_on(async {
            let mut caps = *device.caps();
            let mut results = Vec::new();
            for texels in [caps.forms.texels, false] {
                caps.forms.texels = texels;
                let plan = Plan::new(&graph, &caps).unwrap();
                let read = plan.launches[0].dispatch.texels();
                match texels {
                    true => assert_eq!(read, [(1, Texel::One), (2, Texel::Four)]),
                    false => assert_eq!(read, []),
                }
                reflect(&plan);
                let weights = Weights::new(device, &plan, false).await.unwrap();
                let executable = Executable::new(device, plan, &weights).await.unwrap();
                for (name, tensor) in &data {
                    executable.upload(device, name, tensor).unwrap();
                }
                executable.submit(device, &StepScalars::default()).unwrap();
                results.push(executable.read(device, "output").await.unwrap());
            }
            assert_close("read in every way", &results[0], expected, 1e-5);
            assert_eq!(results[0], results[1]);
        });
    }
}

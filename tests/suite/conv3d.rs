//! Convolutions: GPU against reference in every form, reference against finite differences and PyTorch.

use crate::common::*;
use obelisk::graph::{Graph, Value};
use obelisk::op::Target;
use obelisk::op::activation::leaky_relu;
use obelisk::op::arg_max::ArgMax;
use obelisk::op::conv3d::{Conv3dConfig, conv3d};
use obelisk::op::{Caps, StepScalars};
use obelisk::plan::Plan;
use obelisk::tensor::Spec;

/// A convolution to test: batch, channels of the sources, size, output channels, kernel, configuration.
struct Case {
    batch: usize,
    sources: &'static [usize],
    size: [usize; 3],
    outputs: usize,
    kernel: [usize; 3],
    config: Conv3dConfig,
    bias: bool,
    image: bool,
}

const PLAIN: Case = Case {
    batch: 1,
    sources: &[4],
    size: [4, 5, 6],
    outputs: 4,
    kernel: [3; 3],
    config: Conv3dConfig {
        stride: [1; 3],
        padding: [1; 3],
        dilation: [1; 3],
        groups: 1,
    },
    bias: true,
    image: false,
};

fn strided(stride: usize) -> Conv3dConfig {
    Conv3dConfig::same(3, stride)
}

impl Case {
    fn build(&self, graph: &mut Graph) -> Vec<Value> {
        let [d, h, w] = self.size;
        let sources: Vec<Value> = self
            .sources
            .iter()
            .enumerate()
            .map(|(i, c)| {
                let shape = [self.batch, *c, d, h, w];
                let spec = if self.image {
                    Spec::flat(&shape)
                } else {
                    Spec::map(shape)
                };
                graph.input(&format!("x{i}"), spec).unwrap()
            })
            .collect();
        let weight = parameter(graph, "weight", &self.weight_shape());
        let bias = self.bias.then(|| parameter(graph, "bias", &[self.outputs]));
        vec![conv3d(graph, &sources, weight, bias, self.config).unwrap()]
    }

    fn weight_shape(&self) -> [usize; 5] {
        let inputs = self.sources.iter().sum::<usize>() / self.config.groups;
        let [kd, kh, kw] = self.kernel;
        [self.outputs, inputs, kd, kh, kw]
    }

    fn data(&self) -> Data {
        let [d, h, w] = self.size;
        let mut data = Data::new();
        for (i, c) in self.sources.iter().enumerate() {
            data.insert(format!("x{i}"), noise(&[self.batch, *c, d, h, w], 3 + i as u32));
        }
        data.insert("weight".into(), noise(&self.weight_shape(), 1));
        data.insert("bias".into(), noise(&[self.outputs], 2));
        data
    }

    fn check(&self) {
        let mut names: Vec<String> = vec!["weight".into()];
        if self.bias {
            names.push("bias".into());
        }
        if !self.image {
            names.extend((0..self.sources.len()).map(|i| format!("x{i}")));
        }
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        check_op(|graph| self.build(graph), &self.data(), &names, 2e-5, 0.5, 1e-4);
    }
}

#[test]
fn three_cubed() {
    PLAIN.check();
    Case {
        batch: 2,
        sources: &[5],
        size: [3, 7, 4],
        outputs: 9,
        bias: false,
        ..PLAIN
    }
    .check();
    Case {
        sources: &[17],
        size: [4, 9, 3],
        outputs: 18,
        ..PLAIN
    }
    .check();
}

#[test]
fn strides_of_two_and_three() {
    Case {
        batch: 2,
        sources: &[4],
        size: [5, 8, 7],
        outputs: 16,
        config: strided(2),
        ..PLAIN
    }
    .check();
    Case {
        sources: &[6],
        size: [6, 7, 9],
        outputs: 5,
        config: strided(2),
        ..PLAIN
    }
    .check();
    Case {
        sources: &[3],
        size: [7, 8, 10],
        outputs: 2,
        config: strided(3),
        ..PLAIN
    }
    .check();
    // More stride than kernel: some inputs are seen by no output.
    let config = Conv3dConfig {
        stride: [3, 2, 2],
        ..Default::default()
    };
    Case {
        sources: &[3],
        size: [7, 5, 6],
        kernel: [1, 1, 1],
        config,
        ..PLAIN
    }
    .check();
}

#[test]
fn one_cubed() {
    let config = Conv3dConfig::default();
    Case {
        batch: 2,
        sources: &[9],
        size: [3, 5, 4],
        outputs: 3,
        kernel: [1; 3],
        config,
        ..PLAIN
    }
    .check();
    Case {
        sources: &[33],
        size: [2, 3, 3],
        outputs: 20,
        kernel: [1; 3],
        config,
        bias: false,
        ..PLAIN
    }
    .check();
}

#[test]
fn several_sources_are_one_concatenation() {
    Case {
        batch: 2,
        sources: &[5, 16, 3],
        size: [3, 6, 5],
        outputs: 12,
        ..PLAIN
    }
    .check();
    Case {
        sources: &[4, 2],
        size: [4, 5, 5],
        outputs: 7,
        config: strided(2),
        ..PLAIN
    }
    .check();
}

#[test]
fn images_feed_convolutions_as_they_are() {
    Case {
        batch: 2,
        sources: &[1],
        size: [4, 6, 5],
        image: true,
        ..PLAIN
    }
    .check();
    Case {
        sources: &[3],
        size: [4, 5, 5],
        outputs: 10,
        image: true,
        config: strided(2),
        ..PLAIN
    }
    .check();
}

#[test]
fn groups() {
    let grouped = |groups| Conv3dConfig {
        groups,
        ..Conv3dConfig::same(3, 1)
    };
    Case {
        sources: &[16],
        outputs: 32,
        size: [3, 4, 3],
        config: grouped(4),
        ..PLAIN
    }
    .check();
    Case {
        sources: &[6],
        outputs: 9,
        size: [3, 4, 3],
        config: grouped(3),
        ..PLAIN
    }
    .check();
    Case {
        sources: &[40],
        outputs: 80,
        size: [2, 3, 3],
        config: Conv3dConfig {
            groups: 8,
            ..strided(2)
        },
        ..PLAIN
    }
    .check();
    Case {
        sources: &[8, 4],
        outputs: 8,
        size: [3, 4, 3],
        config: grouped(4),
        ..PLAIN
    }
    .check();
}

#[test]
fn any_kernel_padding_and_dilation() {
    let config = Conv3dConfig {
        stride: [1, 2, 3],
        padding: [2, 0, 3],
        dilation: [2, 1, 2],
        groups: 1,
    };
    Case {
        sources: &[3],
        size: [6, 7, 8],
        outputs: 5,
        kernel: [2, 4, 3],
        config,
        ..PLAIN
    }
    .check();
    let config = Conv3dConfig {
        stride: [2; 3],
        padding: [4; 3],
        dilation: [3; 3],
        groups: 1,
    };
    Case {
        sources: &[2],
        size: [5, 6, 7],
        outputs: 4,
        kernel: [3, 3, 2],
        config,
        ..PLAIN
    }
    .check();
    let config = Conv3dConfig {
        stride: [4, 4, 2],
        padding: [2; 3],
        dilation: [2, 1, 1],
        groups: 1,
    };
    Case {
        sources: &[2],
        size: [9, 9, 8],
        outputs: 4,
        kernel: [5, 5, 5],
        config,
        ..PLAIN
    }
    .check();
}

#[test]
fn labels_need_no_logits_where_a_kernel_has_all_of_a_voxel() {
    let odd = Case {
        batch: 2,
        sources: &[5],
        size: [3, 7, 9],
        outputs: 9,
        ..PLAIN
    };
    let cases = [
        (Case { bias: false, ..odd }, None),
        (
            Case {
                size: [4, 6, 16],
                outputs: 16,
                ..odd
            },
            None,
        ),
        (
            Case {
                sources: &[4, 3, 6],
                outputs: 2,
                ..odd
            },
            None,
        ),
        (Case { image: true, ..odd }, None),
        (Case { ..odd }, Some(9)),
        (
            Case {
                sources: &[8, 3],
                outputs: 14,
                ..odd
            },
            Some(3),
        ),
        (
            Case {
                size: [5, 4, 8],
                outputs: 4,
                ..odd
            },
            Some(21),
        ),
        // More outputs than one invocation has.
        (Case { outputs: 17, ..odd }, None),
    ];
    for (case, pointwise) in cases {
        let mut graph = Graph::new();
        let mut logits = case.build(&mut graph)[0];
        logits = leaky_relu(&mut graph, logits, 0.1).unwrap();
        let mut data = case.data();
        if let Some(labels) = pointwise {
            let shape = [labels, case.outputs, 1, 1, 1];
            data.insert("last".into(), noise(&shape, 11));
            data.insert("last bias".into(), noise(&[labels], 12));
            let weight = parameter(&mut graph, "last", &shape);
            let bias = parameter(&mut graph, "last bias", &[labels]);
            logits = conv3d(&mut graph, &[logits], weight, Some(bias), Conv3dConfig::default()).unwrap();
        }
        let labels = graph.push1(ArgMax, &[logits]).unwrap();
        graph.keep("labels", labels);
        let values = evaluate(&graph, &data, &StepScalars::default());
        let [logits, expected] = [logits, labels].map(|v| values[v.index()].as_ref().unwrap());
        let [_, classes, d, h, w] = logits.ncdhw();
        let volume = d * h * w;
        for device in devices() {
            let plan = Plan::new(&graph, device.caps()).unwrap();
            let told = plan.launches.iter().any(|l| l.op == "conv3d labels");
            assert_eq!(
                told,
                device.caps().target == Target::CpuLanes(8) && case.outputs <= 16
            );
            reflect(&plan);
            let made = &run_plan_on(device, plan, &data, &StepScalars::default())["labels"];
            assert_eq!(made.shape, expected.shape);
            for (voxel, (made, expected)) in made.data.iter().zip(&expected.data).enumerate() {
                let (n, p) = (voxel / volume, voxel % volume);
                let logit = |label: f32| logits.data[(n * classes + label as usize) * volume + p];
                assert!(
                    logit(*expected) - logit(*made) < 1e-5,
                    "voxel {voxel} of {:?} to {} and {pointwise:?}: {made}, not {expected}",
                    case.sources,
                    case.outputs,
                );
            }
        }
        // Where a logit is not finite there is no label. Winograd's sums spread it to neighbours.
        for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut data = data.clone();
            data.get_mut("x0").unwrap().data[0] = wrong;
            let values = evaluate(&graph, &data, &StepScalars::default());
            let expected = &values[labels.index()].as_ref().unwrap().data;
            assert_eq!(expected[0], ArgMax::NONE);
            for device in devices() {
                let made = &run_on(device, &graph, &data, &StepScalars::default())["labels"].data;
                let none = |labels: &[f32]| labels.iter().filter(|l| **l == ArgMax::NONE).count();
                let missed = expected
                    .iter()
                    .zip(made)
                    .position(|(e, m)| *e == ArgMax::NONE && *m != *e);
                assert_eq!(missed, None, "{wrong}");
                assert!(
                    none(made) <= 5 * none(expected),
                    "{wrong}: {} and {}",
                    none(made),
                    none(expected)
                );
            }
        }
        // Logits that are wanted stay.
        graph.keep("logits", logits_of(&graph, labels));
        let caps = Caps {
            target: Target::CpuLanes(8),
            ..Caps::PORTABLE
        };
        let plan = Plan::new(&graph, &caps).unwrap();
        assert!(plan.launches.iter().any(|l| l.op == "arg_max"));
    }
}

fn logits_of(graph: &Graph, labels: Value) -> Value {
    graph.producer::<ArgMax>(labels).expect("labels").1[0]
}

#[test]
fn oversize_tensors_are_cut_along_depth() {
    let case = Case {
        batch: 2,
        sources: &[5, 4],
        size: [9, 40, 32],
        outputs: 6,
        ..PLAIN
    };
    for config in [strided(1), strided(2)] {
        let case = Case {
            config,
            sources: case.sources,
            ..case
        };
        let mut graph = Graph::new();
        let output = case.build(&mut graph)[0];
        let spec = graph.spec(output).clone();
        let mut data = case.data();
        data.insert("upstream".into(), noise(&spec.shape, 9));
        let upstream = graph.input("upstream", spec).unwrap();
        graph.keep("y", output);
        let wrt: Vec<Value> = ["weight", "bias", "x0", "x1"]
            .map(|n| graph.find(n).unwrap())
            .to_vec();
        for (i, g) in graph
            .gradients_from(&[(output, upstream)], &wrt)
            .unwrap()
            .into_iter()
            .enumerate()
        {
            graph.keep(&format!("gradient {i}"), g.unwrap());
        }
        let expected = evaluate(&graph, &data, &StepScalars::default());
        for device in devices() {
            for target in [device.caps().target, Target::Gpu] {
                // Five planes of x0, of its 18, of which two are halo; and the forms that a GPU gets.
                let caps = Caps {
                    max_binding: 5 * 2 * 1280 * 16 + 256,
                    target,
                    ..*device.caps()
                };
                let plan = Plan::new(&graph, &caps).unwrap();
                let count = plan.launches.len();
                assert!(count > 20, "cut into pieces: {count}");
                let actual = run_plan_on(device, plan, &data, &StepScalars::default());
                for (name, value) in graph.kept() {
                    let want = expected[value.index()].as_ref().unwrap();
                    assert_close(name, &actual[name], want, 2e-5);
                }
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_explained() {
    let mut graph = Graph::new();
    let x = graph.input("x", Spec::map([1, 4, 2, 5, 5])).unwrap();
    let w = parameter(&mut graph, "w", &[4, 4, 3, 3, 3]);
    let error = conv3d(&mut graph, &[x], w, None, Conv3dConfig::default()).unwrap_err();
    assert!(error.to_string().contains("reaches beyond the input"), "{error}");
    let w = parameter(&mut graph, "w2", &[4, 3, 3, 3, 3]);
    let error = conv3d(&mut graph, &[x], w, None, Conv3dConfig::same(3, 1)).unwrap_err();
    assert!(error.to_string().contains("4 channels in 1 groups"), "{error}");
}

#[test]
fn pytorch_gives_the_same() {
    let goldens = Goldens::load("conv3d");
    for (case, attributes) in &goldens.cases {
        let axes = |name: &str| -> [usize; 3] {
            serde_json::from_value(attributes[name].clone()).unwrap_or_else(|e| panic!("{case}/{name}: {e}"))
        };
        let config = Conv3dConfig {
            stride: axes("stride"),
            padding: axes("padding"),
            dilation: axes("dilation"),
            groups: attributes["groups"].as_u64().unwrap() as usize,
        };
        let count = attributes["sources"].as_u64().unwrap() as usize;
        let mut names: Vec<String> = if count == 1 && goldens.try_get(case, "x").is_some() {
            vec!["x".into()]
        } else {
            (0..count).map(|i| format!("x{i}")).collect()
        };
        let mut graph = Graph::new();
        let mut data = Data::new();
        let sources: Vec<Value> = names
            .iter()
            .map(|name| {
                let tensor = goldens.get(case, name);
                data.insert(name.clone(), tensor.clone());
                graph.input(name, Spec::map(tensor.ncdhw())).unwrap()
            })
            .collect();
        names.push("weight".into());
        if goldens.try_get(case, "bias").is_some() {
            names.push("bias".into());
        }
        let parameters: Vec<Value> = names[sources.len()..]
            .iter()
            .map(|name| {
                let tensor = goldens.get(case, name);
                data.insert(name.clone(), tensor.clone());
                parameter(&mut graph, name, &tensor.shape)
            })
            .collect();
        let output = conv3d(
            &mut graph,
            &sources,
            parameters[0],
            parameters.get(1).copied(),
            config,
        )
        .unwrap();
        let upstream = graph.input("upstream", graph.spec(output).clone()).unwrap();
        data.insert("upstream".into(), goldens.get(case, "upstream").clone());
        let wrt: Vec<Value> = names.iter().map(|n| graph.find(n).unwrap()).collect();
        let gradients = graph.gradients_from(&[(output, upstream)], &wrt).unwrap();
        let values = evaluate(&graph, &data, &StepScalars::default());
        let value = |v: Value| values[v.index()].as_ref().unwrap();
        assert_close(
            &format!("{case}/output"),
            value(output),
            goldens.get(case, "output"),
            1e-5,
        );
        for (name, gradient) in names.iter().zip(gradients) {
            let golden = goldens.get(case, &format!("grad_{name}"));
            assert_close(
                &format!("{case}/grad_{name}"),
                value(gradient.unwrap()),
                golden,
                1e-5,
            );
        }
    }
}

#[test]
fn a_whole_scan_fits_default_limits() {
    // conv7U of the hybrid at 144³: the input takes 182 MiB, bindings end at 128.
    let case = Case {
        sources: &[16],
        size: [144; 3],
        outputs: 9,
        ..PLAIN
    };
    let mut graph = Graph::new();
    let y = case.build(&mut graph)[0];
    graph.keep("y", y);
    let data = case.data();
    let (x, w, b) = (&data["x0"], &data["weight"], &data["bias"]);
    let Some(device) = devices().first() else { return };
    let actual = run_on(device, &graph, &data, &StepScalars::default())["y"].clone();
    // 500 voxels spread over the volume, its faces among them.
    let chosen = (0..500).map(|i| {
        let at = |k: usize| (i * k) % 146;
        [i % 9, at(31).min(143), at(57).min(143), at(101).min(143)]
    });
    let (mut got, mut want) = (vec![], vec![]);
    for [o, z, y, x_at] in chosen {
        let mut sum = b.data[o] as f64;
        for c in 0..16 {
            for tap in 0..27 {
                let [iz, iy, ix] = [z + tap / 9, y + tap / 3 % 3, x_at + tap % 3];
                if [iz, iy, ix].iter().all(|i| (1..=144).contains(i)) {
                    let weight = w.data[(o * 16 + c) * 27 + tap] as f64;
                    sum += weight * x.at(0, c, iz - 1, iy - 1, ix - 1) as f64;
                }
            }
        }
        want.push(sum as f32);
        got.push(actual.at(0, o, z, y, x_at));
    }
    let tensor = |v: Vec<f32>| obelisk::tensor::Tensor::new(&[500], v);
    assert_close("144³", &tensor(got), &tensor(want), 2e-5);
}

/// The planes between the first tap and the last exceed a binding, those of one tap do not.
#[test]
fn a_dilated_kernel_goes_tap_by_tap_where_bindings_are_small() {
    for (channels, outputs, stride) in [(9, 5, 1), (4, 13, 2)] {
        let mut g = Graph::new();
        let x = g.input("x", Spec::map([2, channels, 15, 16, 18])).unwrap();
        let weight = parameter(&mut g, "weight", &[outputs, channels, 3, 3, 3]);
        let bias = parameter(&mut g, "bias", &[outputs]);
        let config = Conv3dConfig {
            stride: [stride; 3],
            padding: [6; 3],
            dilation: [6; 3],
            groups: 1,
        };
        let y = conv3d(&mut g, &[x], weight, Some(bias), config).unwrap();
        let y = leaky_relu(&mut g, y, 0.1).unwrap();
        let dy = g.input("dy", g.spec(y).clone()).unwrap();
        let gradient = g.gradients_from(&[(y, dy)], &[x]).unwrap()[0].unwrap();
        g.keep("y", y);
        g.keep("dx", gradient);
        let data = Data::from([
            ("x".into(), noise(&[2, channels, 15, 16, 18], 1)),
            ("weight".into(), noise(&[outputs, channels, 3, 3, 3], 2)),
            ("bias".into(), noise(&[outputs], 3)),
            ("dy".into(), noise(&g.spec(dy).shape.clone(), 4)),
        ]);
        check_with_binding(&g, &data, &StepScalars::default(), 2e-5, 40 << 10);
    }
}

//! Transposed convolutions: devices against the reference, the reference against differences and PyTorch.

use crate::common::*;
use obelisk::graph::{Graph, Value};
use obelisk::op::conv3d::{Conv3dConfig, conv_transpose3d};
use obelisk::tensor::Spec;

/// Batch, channels, size, outputs, kernel, configuration, output padding.
struct Case {
    batch: usize,
    channels: usize,
    size: [usize; 3],
    outputs: usize,
    kernel: [usize; 3],
    config: Conv3dConfig,
    more: [usize; 3],
    bias: bool,
}

/// nnU-Net's: the kernel is the stride.
const DOUBLED: Case = Case {
    batch: 1,
    channels: 8,
    size: [3, 4, 5],
    outputs: 4,
    kernel: [2; 3],
    config: Conv3dConfig {
        stride: [2; 3],
        padding: [0; 3],
        dilation: [1; 3],
        groups: 1,
    },
    more: [0; 3],
    bias: true,
};

impl Case {
    fn build(&self, g: &mut Graph) -> Value {
        let [d, h, w] = self.size;
        let x = g
            .input("x", Spec::map([self.batch, self.channels, d, h, w]))
            .unwrap();
        let weight = parameter(g, "weight", &self.weight());
        let bias = self.bias.then(|| parameter(g, "bias", &[self.outputs]));
        conv_transpose3d(g, x, weight, bias, self.config, self.more).unwrap()
    }

    fn weight(&self) -> [usize; 5] {
        let [kd, kh, kw] = self.kernel;
        [self.channels, self.outputs / self.config.groups, kd, kh, kw]
    }

    fn check(&self) {
        let [d, h, w] = self.size;
        let data = Data::from([
            ("x".into(), noise(&[self.batch, self.channels, d, h, w], 1)),
            ("weight".into(), noise(&self.weight(), 2)),
            ("bias".into(), noise(&[self.outputs], 3)),
        ]);
        let wanted = ["x", "weight", "bias"];
        let wanted = &wanted[..2 + self.bias as usize];
        check_op(|g| vec![self.build(g)], &data, wanted, 2e-5, 0.5, 1e-4);
    }
}

#[test]
fn odd_shapes_agree_with_the_reference_and_central_differences() {
    DOUBLED.check();
    Case {
        batch: 2,
        channels: 5,
        outputs: 18,
        bias: false,
        ..DOUBLED
    }
    .check();
    // By axis, as for scans of thick slices.
    Case {
        channels: 9,
        kernel: [1, 2, 4],
        config: Conv3dConfig {
            stride: [1, 2, 4],
            ..DOUBLED.config
        },
        ..DOUBLED
    }
    .check();
    // Overlapping, with rows that the convolution never sees, in groups.
    Case {
        batch: 2,
        channels: 6,
        outputs: 4,
        kernel: [3, 2, 1],
        config: Conv3dConfig {
            stride: [2, 3, 2],
            padding: [1, 0, 0],
            dilation: [1, 2, 1],
            groups: 2,
        },
        more: [1, 2, 0],
        ..DOUBLED
    }
    .check();
}

#[test]
fn pytorch_gives_the_same() {
    let goldens = Goldens::load("conv_transpose3d");
    for (case, attributes) in &goldens.cases {
        let axes = |name: &str| -> [usize; 3] { serde_json::from_value(attributes[name].clone()).unwrap() };
        let config = Conv3dConfig {
            stride: axes("stride"),
            padding: axes("padding"),
            dilation: axes("dilation"),
            groups: attributes["groups"].as_u64().unwrap() as usize,
        };
        let bias = goldens.try_get(case, "bias");
        let build = |g: &mut Graph| {
            let x = g.input("x", Spec::map(goldens.get(case, "x").ncdhw())).unwrap();
            let weight = parameter(g, "weight", &goldens.get(case, "weight").shape);
            let bias = bias.map(|bias| parameter(g, "bias", &bias.shape));
            conv_transpose3d(g, x, weight, bias, config, axes("output_padding")).unwrap()
        };
        let wanted = ["x", "weight", "bias"];
        let wanted = &wanted[..2 + bias.is_some() as usize];
        check_golden(&goldens, case, build, wanted, 5e-6);
    }
}

#[test]
fn what_does_not_fit_is_explained() {
    let mut g = Graph::new();
    let x = g.input("x", Spec::map([1, 4, 2, 2, 2])).unwrap();
    let weight = parameter(&mut g, "weight", &[4, 3, 2, 2, 2]);
    let other = parameter(&mut g, "other", &[3, 4, 2, 2, 2]);
    let bias = parameter(&mut g, "bias", &[4]);
    let config = DOUBLED.config;
    let mut refused = |weight, bias, config, more, part: &str| {
        let error = conv_transpose3d(&mut g, x, weight, bias, config, more).unwrap_err();
        assert!(error.to_string().contains(part), "{error}");
    };
    refused(other, None, config, [0; 3], "a flat weight [4, Cout / 1");
    refused(weight, Some(bias), config, [0; 3], "the bias is flat, [3]");
    refused(weight, None, config, [2, 0, 0], "below the stride");
    let padded = Conv3dConfig {
        padding: [0, 2, 0],
        ..config
    };
    refused(weight, None, padded, [0; 3], "leaves nothing");
    let still = Conv3dConfig {
        stride: [0, 1, 1],
        ..config
    };
    refused(weight, None, still, [0; 3], "at least 1");
}

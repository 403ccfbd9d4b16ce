//! What networks are built with: convolutions, norms and other layers under the names of their parameters.

use super::{Fixed, shrink};
use crate::graph::{Graph, GraphError, Init, Value};
use crate::op::activation::leaky_relu;
use crate::op::avg_pool3d::AvgPool3d;
use crate::op::batch_norm::batch_norm;
use crate::op::conv3d::{Conv3dConfig, conv_transpose3d, conv3d};
use crate::op::dropout::{channel_dropout, dropout};
use crate::op::instance_norm::instance_norm;
use crate::op::linear::linear;
use crate::op::upsample::Upsample;

/// What the network functions build with: a graph, and whether it is for training. Training and inference are two
/// graphs of one function, with the same parameters and states in the same order.
#[derive(Debug)]
pub struct Builder<'g> {
    /// Where nodes go.
    pub graph: &'g mut Graph,
    /// Batch statistics and their running averages, or the running averages only.
    pub training: bool,
    /// Logits (maps) of fewer voxels than the network's own that a training scores as well, the finest first
    /// ([`Builder::auxiliary`]).
    pub auxiliary: Vec<Value>,
}

/// A convolution's numbers, and how its blocks differ.
#[derive(Clone, Copy, Debug)]
pub struct Conv {
    /// Output channels.
    pub out: usize,
    /// Kernel width on each axis, odd; the padding keeps the size at stride 1.
    pub kernel: [usize; 3],
    /// Step on each axis.
    pub stride: [usize; 3],
    /// Voxels between neighbouring taps.
    pub dilation: usize,
    /// Channel groups.
    pub groups: usize,
    /// Whether it has a bias.
    pub bias: bool,
}

impl Conv {
    /// 3×3×3, with bias.
    pub fn k3(out: usize) -> Self {
        Conv {
            out,
            kernel: [3; 3],
            stride: [1; 3],
            dilation: 1,
            groups: 1,
            bias: true,
        }
    }

    /// 1×1×1, without bias.
    pub fn k1(out: usize) -> Self {
        Conv {
            out,
            kernel: [1; 3],
            stride: [1; 3],
            dilation: 1,
            groups: 1,
            bias: false,
        }
    }

    /// With this step on every axis.
    pub fn stride(self, stride: usize) -> Self {
        Conv {
            stride: [stride; 3],
            ..self
        }
    }

    /// With so many voxels between neighbouring taps.
    pub fn dilation(self, dilation: usize) -> Self {
        Conv { dilation, ..self }
    }

    /// In so many groups.
    pub fn groups(self, groups: usize) -> Self {
        Conv { groups, ..self }
    }

    /// With a bias.
    pub fn with_bias(self) -> Self {
        Conv { bias: true, ..self }
    }
}

impl<'g> Builder<'g> {
    /// Builds into that graph.
    pub fn new(graph: &'g mut Graph, training: bool) -> Self {
        Builder {
            graph,
            training,
            auxiliary: Vec::new(),
        }
    }

    /// Logits of a map that only a training scores (deep supervision), by a 1×1×1 convolution with parameters `NAME.weight` and
    /// `NAME.bias`. Finer ones come later.
    pub fn auxiliary(&mut self, name: &str, x: Value, outputs: usize) -> Result<(), GraphError> {
        // Both graphs have the same parameters; plans leave out what nothing depends on.
        let logits = self.conv(name, &[x], Conv::k1(outputs).with_bias())?;
        if self.training {
            self.auxiliary.insert(0, logits);
        }
        Ok(())
    }

    /// Convolution of the channel-wise concatenation of `sources`; parameters `NAME.weight` and `NAME.bias`.
    pub fn conv(&mut self, name: &str, sources: &[Value], conv: Conv) -> Result<Value, GraphError> {
        let inputs: usize = sources.iter().map(|v| self.graph.shape(*v)[1]).sum();
        let Conv {
            out,
            kernel,
            stride,
            dilation,
            groups,
            bias,
        } = conv;
        if !inputs.is_multiple_of(groups) || !out.is_multiple_of(groups) {
            let specs: Vec<_> = sources.iter().map(|v| self.graph.spec(*v).clone()).collect();
            let reason =
                format!("`{name}` can't split {inputs} input and {out} output channels into {groups} groups");
            return Err(GraphError::shape("conv3d", &specs, reason));
        }
        let [kd, kh, kw] = kernel;
        let shape = [out, inputs / groups, kd, kh, kw];
        let (weight, bias) = self.weight(name, &shape, bias.then_some(out))?;
        conv3d(
            self.graph,
            sources,
            weight,
            bias,
            Conv3dConfig {
                stride,
                padding: kernel.map(|k| k / 2 * dilation),
                dilation: [dilation; 3],
                groups,
            },
        )
    }

    /// Transposed convolution whose kernel is its stride, so that each voxel becomes a box of that size; parameters
    /// `NAME.weight` and, where it has a bias, `NAME.bias`.
    pub fn conv_transpose(
        &mut self,
        name: &str,
        x: Value,
        out: usize,
        stride: [usize; 3],
        bias: bool,
    ) -> Result<Value, GraphError> {
        let [d, h, w] = stride;
        let shape = [self.graph.shape(x)[1], out, d, h, w];
        let (weight, bias) = self.weight(name, &shape, bias.then_some(out))?;
        let config = Conv3dConfig {
            stride,
            ..Default::default()
        };
        conv_transpose3d(self.graph, x, weight, bias, config, [0; 3])
    }

    /// The weight `NAME.weight` of that shape, and the bias `NAME.bias` of so many outputs.
    fn weight(
        &mut self,
        name: &str,
        shape: &[usize],
        bias: Option<usize>,
    ) -> Result<(Value, Option<Value>), GraphError> {
        let volume: usize = shape[2..].iter().product();
        let init = Init::XavierNormal {
            fan_in: shape[1] * volume,
            fan_out: shape[0] * volume,
        };
        let weight = self.graph.parameter(&format!("{name}.weight"), shape, init)?;
        let bias = bias
            .map(|out| {
                self.graph
                    .parameter(&format!("{name}.bias"), &[out], Init::Constant(0.0))
            })
            .transpose()?;
        Ok((weight, bias))
    }

    /// Scale and shift by channel, `NAME.weight` and `NAME.bias`.
    fn affine(&mut self, name: &str, channels: usize) -> Result<(Value, Value), GraphError> {
        let gamma = self
            .graph
            .parameter(&format!("{name}.weight"), &[channels], Init::Constant(1.0))?;
        let beta = self
            .graph
            .parameter(&format!("{name}.bias"), &[channels], Init::Constant(0.0))?;
        Ok((gamma, beta))
    }

    /// Instance norm, then leaky ReLU of that slope; `None` for no activation. Parameters `NAME.weight` and `NAME.bias`.
    pub fn instance_norm(&mut self, name: &str, x: Value, slope: Option<f32>) -> Result<Value, GraphError> {
        let (gamma, beta) = self.affine(name, self.graph.shape(x)[1])?;
        instance_norm(self.graph, x, gamma, beta, slope)
    }

    /// Batch norm, then leaky ReLU of that slope; `None` for no activation. Parameters `NAME.weight`, `NAME.bias`,
    /// states `NAME.running_mean`, `NAME.running_var`.
    pub fn norm(&mut self, name: &str, x: Value, slope: Option<f32>) -> Result<Value, GraphError> {
        let channels = [self.graph.shape(x)[1]];
        let (gamma, beta) = self.affine(name, channels[0])?;
        let mean = self
            .graph
            .state(&format!("{name}.running_mean"), &channels, Init::Constant(0.0))?;
        let variance = self
            .graph
            .state(&format!("{name}.running_var"), &channels, Init::Constant(1.0))?;
        batch_norm(self.graph, x, gamma, beta, mean, variance, slope, self.training)
    }

    /// A convolution, batch norm and leaky ReLU under the authors' names: `convNUMBER` and `batchNUMBER`.
    pub fn layer(
        &mut self,
        number: &str,
        sources: &[Value],
        conv: Conv,
        slope: f32,
    ) -> Result<Value, GraphError> {
        let x = self.conv(&format!("conv{number}"), sources, conv)?;
        self.norm(&format!("batch{number}"), x, Some(slope))
    }

    /// Fully-connected layer: flat `[N, …]` to flat `[N, outputs]`; parameters `NAME.weight` and `NAME.bias`.
    pub fn linear(&mut self, name: &str, x: Value, outputs: usize) -> Result<Value, GraphError> {
        let inputs = self.graph.shape(x)[1..].iter().product();
        let init = Init::XavierNormal {
            fan_in: inputs,
            fan_out: outputs,
        };
        let weight = self
            .graph
            .parameter(&format!("{name}.weight"), &[outputs, inputs], init)?;
        let bias = self
            .graph
            .parameter(&format!("{name}.bias"), &[outputs], Init::Constant(0.0))?;
        linear(self.graph, x, weight, Some(bias))
    }

    /// In training, drops each element with that probability.
    pub fn dropout(&mut self, x: Value, rate: f32) -> Result<Value, GraphError> {
        match self.training {
            true => dropout(self.graph, x, rate),
            false => Ok(x),
        }
    }

    /// In training, drops each channel of each sample with that probability.
    pub fn channel_dropout(&mut self, x: Value, rate: f32) -> Result<Value, GraphError> {
        match self.training {
            true => channel_dropout(self.graph, x, rate),
            false => Ok(x),
        }
    }

    /// Mean over 3³ voxels at every `stride`-th; the zeros of the padding count.
    pub fn smooth(&mut self, image: Value, stride: usize) -> Result<Value, GraphError> {
        let pool = AvgPool3d {
            kernel: 3,
            stride,
            padding: 1,
        };
        self.graph.push1(pool, &[image])
    }

    /// Leaky ReLU.
    pub fn leaky(&mut self, x: Value, slope: f32) -> Result<Value, GraphError> {
        leaky_relu(self.graph, x, slope)
    }

    /// Trilinear upsampling to a size, align_corners false.
    pub fn upsample(&mut self, x: Value, size: [usize; 3]) -> Result<Value, GraphError> {
        self.graph.push1(Upsample { size }, &[x])
    }

    /// Refuses any other image and number of labels for the network `name`; `instead` takes any.
    pub(super) fn only(
        &self,
        name: &'static str,
        image: Value,
        labels: usize,
        fixed: Fixed,
        instead: &str,
    ) -> Result<(), GraphError> {
        let seen = |size: [usize; 3]| shrink(size, 1 + fixed.halved as usize);
        let channels = self.graph.shape(image)[1];
        if channels == 1 && seen(self.size(image)) == seen(fixed.size) && labels == fixed.labels {
            return Ok(());
        }
        let [d, h, w] = fixed.size;
        let reason = format!(
            "is as published: one channel of {d}×{h}×{w} voxels and {} labels (here {labels}); resample or crop the \
             scan to that size, or train `{instead}`, which takes any",
            fixed.labels
        );
        Err(GraphError::shape(name, &[self.graph.spec(image).clone()], reason))
    }

    /// `[D, H, W]` of a value.
    pub fn size(&self, x: Value) -> [usize; 3] {
        let s = self.graph.shape(x);
        [s[2], s[3], s[4]]
    }
}

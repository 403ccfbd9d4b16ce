//! nnU-Net's networks as graphs: PlainConvUNet and ResidualEncoderUNet (dynamic_network_architectures), with their tensors'
//! names.

use super::plan::{Architecture, Class, Plan};
use crate::graph::{Graph, GraphError, Value};
use crate::model::{Builder, Conv};
use crate::op::add::Add;
use crate::op::conv3d::{Conv3dConfig, conv3d};
use crate::op::fill::Fill;
use crate::tensor::Spec;

/// The network for inference on a tile: `image` `[1, C, D, H, W]` in, `logits` kept.
///
/// # Errors
/// Numbers of the plan that contradict each other.
pub fn graph(plan: &Plan) -> Result<Graph, GraphError> {
    let mut graph = Graph::new();
    let [d, h, w] = plan.patch;
    let image = graph.input("image", Spec::flat(&[1, plan.channels.len(), d, h, w]))?;
    let outputs = plan.labels.names().len();
    let mut builder = Builder {
        graph: &mut graph,
        training: false,
    };
    let logits = plan.network.build(&mut builder, image, outputs)?;
    graph.keep("logits", logits);
    Ok(graph)
}

impl Architecture {
    fn build(&self, b: &mut Builder, image: Value, outputs: usize) -> Result<Value, GraphError> {
        let mut x = image;
        if self.class == Class::Residual {
            x = self.layer(b, "encoder.stem.convs.0", &[x], 0, [1; 3], true)?;
        }
        let mut skips = Vec::new();
        for stage in 0..self.features.len() {
            x = match self.class {
                Class::Plain => self.convolutions(b, stage, x)?,
                Class::Residual => self.blocks(b, stage, x)?,
            };
            skips.push(x);
        }
        let mut x = skips.pop().expect("two stages at least");
        for (i, convolutions) in self.decoder.iter().enumerate() {
            let stage = self.features.len() - 2 - i;
            let skip = skips.pop().expect("as many stages as decoders");
            let (out, stride) = (self.features[stage], self.strides[stage + 1]);
            x = b.conv_transpose(&format!("decoder.transpconvs.{i}"), x, out, stride, self.bias)?;
            for c in 0..*convolutions {
                let name = format!("decoder.stages.{i}.convs.{c}");
                let sources = if c == 0 { vec![x, skip] } else { vec![x] };
                x = self.layer(b, &name, &sources, stage, [1; 3], true)?;
            }
        }
        // The others are for training.
        let last = format!("decoder.seg_layers.{}", self.decoder.len() - 1);
        b.conv(&last, &[x], Conv::k1(outputs).with_bias())
    }

    /// The step of a stage's convolution or block.
    fn stride(&self, stage: usize, index: usize) -> [usize; 3] {
        if index == 0 { self.strides[stage] } else { [1; 3] }
    }

    fn convolutions(&self, b: &mut Builder, stage: usize, mut x: Value) -> Result<Value, GraphError> {
        for c in 0..self.encoder[stage] {
            let name = format!("encoder.stages.{stage}.0.convs.{c}");
            x = self.layer(b, &name, &[x], stage, self.stride(stage, c), true)?;
        }
        Ok(x)
    }

    /// BasicBlockD: two convolutions with the input added, which is pooled and mixed where the shape changes.
    fn blocks(&self, b: &mut Builder, stage: usize, mut x: Value) -> Result<Value, GraphError> {
        for block in 0..self.encoder[stage] {
            let name = format!("encoder.stages.{stage}.blocks.{block}");
            let stride = self.stride(stage, block);
            let first = self.layer(b, &format!("{name}.conv1"), &[x], stage, stride, true)?;
            let second = self.layer(b, &format!("{name}.conv2"), &[first], stage, [1; 3], false)?;
            let skip = self.skip(b, &format!("{name}.skip"), x, stage, stride)?;
            let sum = b.graph.push1(Add, &[second, skip])?;
            x = b.leaky(sum, self.slope)?;
        }
        Ok(x)
    }

    fn skip(
        &self,
        b: &mut Builder,
        name: &str,
        x: Value,
        stage: usize,
        stride: [usize; 3],
    ) -> Result<Value, GraphError> {
        let strided = stride != [1; 3];
        let pooled = match strided {
            true => average(b, x, stride)?,
            false => x,
        };
        if b.graph.shape(x)[1] == self.features[stage] {
            return Ok(pooled);
        }
        // The pooling has no parameters, but a number.
        let name = format!("{name}.{}", strided as usize);
        let mixed = b.conv(&format!("{name}.conv"), &[pooled], Conv::k1(self.features[stage]))?;
        b.instance_norm(&format!("{name}.norm"), mixed, None)
    }

    /// A convolution to a stage's channels with its kernel, instance norm and, where `active`, leaky ReLU.
    fn layer(
        &self,
        b: &mut Builder,
        name: &str,
        sources: &[Value],
        stage: usize,
        stride: [usize; 3],
        active: bool,
    ) -> Result<Value, GraphError> {
        let conv = Conv {
            out: self.features[stage],
            kernel: self.kernels[stage],
            stride,
            dilation: 1,
            groups: 1,
            bias: self.bias,
        };
        let x = b.conv(&format!("{name}.conv"), sources, conv)?;
        b.instance_norm(&format!("{name}.norm"), x, active.then_some(self.slope))
    }
}

/// Means of boxes of the stride's size: a convolution in as many groups as there are channels.
fn average(b: &mut Builder, x: Value, stride: [usize; 3]) -> Result<Value, GraphError> {
    let channels = b.graph.shape(x)[1];
    let [d, h, w] = stride;
    let fill = Fill::new(&[channels, 1, d, h, w], 1.0 / (d * h * w) as f32);
    let weight = b.graph.push1(fill, &[])?;
    let config = Conv3dConfig {
        stride,
        groups: channels,
        ..Default::default()
    };
    conv3d(b.graph, &[x], weight, None, config)
}

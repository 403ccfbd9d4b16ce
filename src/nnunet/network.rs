//! nnU-Net's networks as graphs: PlainConvUNet and ResidualEncoderUNet (dynamic_network_architectures), with their tensors'
//! names.

use super::plan::{Architecture, Class, Plan};
use crate::graph::{Graph, GraphError, Init, Value};
use crate::op::add::Add;
use crate::op::conv3d::{Conv3dConfig, conv_transpose3d, conv3d};
use crate::op::instance_norm::instance_norm;
use crate::op::leaky_relu::leaky_relu;
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
    let logits = Builder {
        graph: &mut graph,
        network: &plan.network,
    }
    .build(image, outputs)?;
    graph.keep("logits", logits);
    Ok(graph)
}

struct Builder<'a> {
    graph: &'a mut Graph,
    network: &'a Architecture,
}

impl Builder<'_> {
    fn build(&mut self, image: Value, outputs: usize) -> Result<Value, GraphError> {
        let network = self.network;
        let mut x = image;
        if network.class == Class::Residual {
            x = self.layer(
                "encoder.stem.convs.0",
                &[x],
                network.features[0],
                network.kernels[0],
                [1; 3],
                true,
            )?;
        }
        let mut skips = Vec::new();
        for stage in 0..network.features.len() {
            x = match network.class {
                Class::Plain => self.convolutions(stage, x)?,
                Class::Residual => self.blocks(stage, x)?,
            };
            skips.push(x);
        }
        let mut x = skips.pop().expect("two stages at least");
        for (i, convolutions) in network.decoder.iter().enumerate() {
            let stage = network.features.len() - 2 - i;
            let skip = skips.pop().expect("as many stages as decoders");
            let up = self.transposed(i, x, network.features[stage], network.strides[stage + 1])?;
            x = up;
            for c in 0..*convolutions {
                let name = format!("decoder.stages.{i}.convs.{c}");
                let sources = if c == 0 { vec![up, skip] } else { vec![x] };
                x = self.layer(
                    &name,
                    &sources,
                    network.features[stage],
                    network.kernels[stage],
                    [1; 3],
                    true,
                )?;
            }
        }
        // The others are for training.
        let last = network.decoder.len() - 1;
        self.convolution(
            &format!("decoder.seg_layers.{last}"),
            &[x],
            outputs,
            [1; 3],
            [1; 3],
            true,
        )
    }

    fn convolutions(&mut self, stage: usize, mut x: Value) -> Result<Value, GraphError> {
        let network = self.network;
        for c in 0..network.encoder[stage] {
            let name = format!("encoder.stages.{stage}.0.convs.{c}");
            let stride = if c == 0 { network.strides[stage] } else { [1; 3] };
            x = self.layer(
                &name,
                &[x],
                network.features[stage],
                network.kernels[stage],
                stride,
                true,
            )?;
        }
        Ok(x)
    }

    /// BasicBlockD: two convolutions with the input added, which is pooled and mixed where the shape changes.
    fn blocks(&mut self, stage: usize, mut x: Value) -> Result<Value, GraphError> {
        let network = self.network;
        let (features, kernel) = (network.features[stage], network.kernels[stage]);
        for b in 0..network.encoder[stage] {
            let name = format!("encoder.stages.{stage}.blocks.{b}");
            let stride = if b == 0 { network.strides[stage] } else { [1; 3] };
            let first = self.layer(&format!("{name}.conv1"), &[x], features, kernel, stride, true)?;
            let second = self.layer(
                &format!("{name}.conv2"),
                &[first],
                features,
                kernel,
                [1; 3],
                false,
            )?;
            let skip = self.skip(&format!("{name}.skip"), x, features, stride)?;
            let sum = self.graph.push1(Add, &[second, skip])?;
            x = leaky_relu(self.graph, sum, network.slope)?;
        }
        Ok(x)
    }

    fn skip(
        &mut self,
        name: &str,
        x: Value,
        features: usize,
        stride: [usize; 3],
    ) -> Result<Value, GraphError> {
        let strided = stride != [1; 3];
        let pooled = match strided {
            true => self.average(x, stride)?,
            false => x,
        };
        if self.graph.shape(x)[1] == features {
            return Ok(pooled);
        }
        // The pooling has no parameters, but a number.
        let name = format!("{name}.{}", strided as usize);
        let mixed = self.convolution(
            &format!("{name}.conv"),
            &[pooled],
            features,
            [1; 3],
            [1; 3],
            false,
        )?;
        self.norm(&format!("{name}.norm"), mixed, None)
    }

    /// Means of boxes of the stride's size: a convolution in as many groups as there are channels.
    fn average(&mut self, x: Value, stride: [usize; 3]) -> Result<Value, GraphError> {
        let channels = self.graph.shape(x)[1];
        let [d, h, w] = stride;
        let share = 1.0 / (d * h * w) as f32;
        let fill = crate::op::fill::Fill::new(&[channels, 1, d, h, w], share);
        let weight = self.graph.push1(fill, &[])?;
        let config = Conv3dConfig {
            stride,
            groups: channels,
            ..Default::default()
        };
        conv3d(self.graph, &[x], weight, None, config)
    }

    /// A convolution, instance norm and, where `active`, leaky ReLU.
    fn layer(
        &mut self,
        name: &str,
        sources: &[Value],
        out: usize,
        kernel: [usize; 3],
        stride: [usize; 3],
        active: bool,
    ) -> Result<Value, GraphError> {
        let bias = self.network.bias;
        let x = self.convolution(&format!("{name}.conv"), sources, out, kernel, stride, bias)?;
        self.norm(&format!("{name}.norm"), x, active.then_some(self.network.slope))
    }

    fn norm(&mut self, name: &str, x: Value, slope: Option<f32>) -> Result<Value, GraphError> {
        let channels = [self.graph.shape(x)[1]];
        let gamma = self
            .graph
            .parameter(&format!("{name}.weight"), &channels, Init::Constant(1.0))?;
        let beta = self
            .graph
            .parameter(&format!("{name}.bias"), &channels, Init::Constant(0.0))?;
        instance_norm(self.graph, x, gamma, beta, slope)
    }

    fn convolution(
        &mut self,
        name: &str,
        sources: &[Value],
        out: usize,
        kernel: [usize; 3],
        stride: [usize; 3],
        bias: bool,
    ) -> Result<Value, GraphError> {
        let inputs: usize = sources.iter().map(|v| self.graph.shape(*v)[1]).sum();
        let [weight, bias] = self.parameters(name, [out, inputs], kernel, bias.then_some(out))?;
        let config = Conv3dConfig {
            stride,
            padding: kernel.map(|k| (k - 1) / 2),
            ..Default::default()
        };
        conv3d(self.graph, sources, weight.expect("always there"), bias, config)
    }

    /// The upsampling of a decoder's stage: kernel and stride are the same.
    fn transposed(
        &mut self,
        stage: usize,
        x: Value,
        out: usize,
        stride: [usize; 3],
    ) -> Result<Value, GraphError> {
        let inputs = self.graph.shape(x)[1];
        let name = format!("decoder.transpconvs.{stage}");
        let bias = self.network.bias.then_some(out);
        let [weight, bias] = self.parameters(&name, [inputs, out], stride, bias)?;
        let config = Conv3dConfig {
            stride,
            ..Default::default()
        };
        conv_transpose3d(self.graph, x, weight.expect("always there"), bias, config, [0; 3])
    }

    /// A weight `[A, B, KD, KH, KW]`, and a bias of so many outputs.
    fn parameters(
        &mut self,
        name: &str,
        [a, b]: [usize; 2],
        [kd, kh, kw]: [usize; 3],
        bias: Option<usize>,
    ) -> Result<[Option<Value>; 2], GraphError> {
        let volume = kd * kh * kw;
        let init = Init::XavierNormal {
            fan_in: b * volume,
            fan_out: a * volume,
        };
        let weight = self
            .graph
            .parameter(&format!("{name}.weight"), &[a, b, kd, kh, kw], init)?;
        let bias = match bias {
            Some(out) => Some(
                self.graph
                    .parameter(&format!("{name}.bias"), &[out], Init::Constant(0.0))?,
            ),
            None => None,
        };
        Ok([Some(weight), bias])
    }
}

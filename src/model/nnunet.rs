//! nnU-Net's networks (Isensee et al. 2021 and 2024): PlainConvUNet and ResidualEncoderUNet of
//! dynamic_network_architectures, with their tensors' names.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Builder, Conv, Network};
use crate::graph::{GraphError, Value};
use crate::op::add::Add;
use crate::op::conv3d::{Conv3dConfig, conv3d};
use crate::op::fill::Fill;

pub const NNUNET: Network = Network::new(
    "nnunet",
    "nnU-Net's U-Net with deep supervision; nnunet:32,64,128,256,320 names other stages",
    |b, image, labels| usual(Class::Plain).build(b, image, labels, true),
)
.multiple_of([8; 3]);

pub const NNUNET_RESENC: Network = Network::new(
    "nnunet-resenc",
    "nnU-Net's residual encoder U-Net with deep supervision; nnunet-resenc:32x1,64x3,128x4 names other stages",
    |b, image, labels| usual(Class::Residual).build(b, image, labels, true),
)
.multiple_of([8; 3]);

/// What nnU-Net plans for small scans such as the hippocampus: four stages.
fn usual(class: Class) -> Architecture {
    let stages: Vec<String> = [32, 64, 128, 256].map(|features| features.to_string()).to_vec();
    let name = format!("{}:{}", class.name(), stages.join(","));
    Architecture::parse(&name).expect("a name as it is written")
}

/// The network's class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// PlainConvUNet.
    Plain,
    /// ResidualEncoderUNet.
    Residual,
}

/// A network, by stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Architecture {
    /// Its class.
    pub class: Class,
    /// Channels of each stage.
    pub features: Vec<usize>,
    /// Kernels of each stage's convolutions.
    pub kernels: Vec<[usize; 3]>,
    /// Steps of each stage's first convolution.
    pub strides: Vec<[usize; 3]>,
    /// Convolutions, or residual blocks, of each stage of the encoder.
    pub encoder: Vec<usize>,
    /// Convolutions of each stage of the decoder, from the deepest on.
    pub decoder: Vec<usize>,
    /// Whether convolutions have a bias.
    pub bias: bool,
    /// Slope of the leaky ReLU; 0 is a ReLU.
    pub slope: f32,
}

/// Slope of the leaky ReLUs that nnU-Net plans.
const SLOPE: f32 = 0.01;
/// Most stages.
const MOST: usize = 12;

/// The stages of an [`Architecture`] that a name lists, in a [`Network`], which can be copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stages {
    class: Class,
    count: usize,
    features: [u16; MOST],
    kernels: [[u8; 3]; MOST],
    strides: [[u8; 3]; MOST],
    encoder: [u8; MOST],
}

impl From<&Architecture> for Stages {
    /// Numbers of an architecture that was checked fit.
    fn from(architecture: &Architecture) -> Stages {
        let mut stages = Stages {
            class: architecture.class,
            count: architecture.features.len(),
            features: [0; MOST],
            kernels: [[0; 3]; MOST],
            strides: [[0; 3]; MOST],
            encoder: [0; MOST],
        };
        for i in 0..stages.count {
            stages.features[i] = architecture.features[i] as u16;
            stages.kernels[i] = architecture.kernels[i].map(|k| k as u8);
            stages.strides[i] = architecture.strides[i].map(|s| s as u8);
            stages.encoder[i] = architecture.encoder[i] as u8;
        }
        stages
    }
}

impl From<Stages> for Architecture {
    fn from(stages: Stages) -> Architecture {
        let axes = |of: &[[u8; 3]]| of.iter().map(|axes| axes.map(usize::from)).collect();
        let count = stages.count;
        Architecture {
            class: stages.class,
            features: stages.features[..count].iter().map(|n| usize::from(*n)).collect(),
            kernels: axes(&stages.kernels[..count]),
            strides: axes(&stages.strides[..count]),
            encoder: stages.encoder[..count].iter().map(|n| usize::from(*n)).collect(),
            decoder: vec![stages.class.decoder(); count - 1],
            bias: true,
            slope: SLOPE,
        }
    }
}

impl Class {
    fn name(self) -> &'static str {
        match self {
            Class::Plain => NNUNET.name,
            Class::Residual => NNUNET_RESENC.name,
        }
    }

    /// Convolutions or blocks of a stage where none are named (nnU-Net's planners).
    fn usual(self, stage: usize) -> usize {
        match (self, stage) {
            (Class::Plain, _) => 2,
            (Class::Residual, 0) => 1,
            (Class::Residual, 1) => 3,
            (Class::Residual, 2) => 4,
            (Class::Residual, _) => 6,
        }
    }

    /// Convolutions of the decoder's stages.
    fn decoder(self) -> usize {
        match self {
            Class::Plain => 2,
            Class::Residual => 1,
        }
    }
}

/// A kernel or a step as names have it: a digit an axis.
fn digits(text: &str) -> Option<[usize; 3]> {
    let digits: Option<Vec<usize>> = text.chars().map(|c| Some(c.to_digit(10)? as usize)).collect();
    digits?.try_into().ok()
}

impl Architecture {
    /// The network of a name such as `nnunet:32,64,128` or `nnunet-resenc:32x1,64k133s122x3`: its stages from the first on, each
    /// its channels and, where it differs from the usual, `k` with the kernel's width on each axis (333), `s` with the step on
    /// each axis (222, in the first stage 111), and `x` with the number of convolutions or residual blocks. Convolutions have a
    /// bias, leaky ReLUs slope 0.01.
    ///
    /// # Errors
    /// Anything else, with what is meant.
    pub fn parse(name: &str) -> Result<Architecture, String> {
        let meant = || {
            format!(
                "`{name}` should be like nnunet:32,64,128,256 or nnunet-resenc:32x1,64k133s122x3: the channels of each stage, \
                 with k and the kernel's three widths, s and the three steps, x and the number of convolutions or blocks"
            )
        };
        let (class, stages) = name.split_once(':').ok_or_else(meant)?;
        let class = [Class::Plain, Class::Residual]
            .into_iter()
            .find(|own| own.name() == class)
            .ok_or_else(meant)?;
        let mut own = Architecture {
            class,
            features: Vec::new(),
            kernels: Vec::new(),
            strides: Vec::new(),
            encoder: Vec::new(),
            decoder: Vec::new(),
            bias: true,
            slope: SLOPE,
        };
        for (i, stage) in stages.split(',').enumerate() {
            let (stage, count) = match stage.split_once('x') {
                Some((stage, count)) => (stage, count.parse().map_err(|_| meant())?),
                None => (stage, class.usual(i)),
            };
            let (stage, step) = match stage.split_once('s') {
                Some((stage, step)) => (stage, digits(step).ok_or_else(meant)?),
                None => (stage, [if i == 0 { 1 } else { 2 }; 3]),
            };
            let (stage, kernel) = match stage.split_once('k') {
                Some((stage, kernel)) => (stage, digits(kernel).ok_or_else(meant)?),
                None => (stage, [3; 3]),
            };
            own.features.push(stage.parse().map_err(|_| meant())?);
            own.kernels.push(kernel);
            own.strides.push(step);
            own.encoder.push(count);
        }
        own.decoder = vec![class.decoder(); own.features.len() - 1];
        // Steps are checked before they are multiplied.
        own.check([0; 3])?;
        Ok(own)
    }

    /// What each axis of an image is a multiple of: the product of the steps along it.
    pub fn multiple(&self) -> [usize; 3] {
        std::array::from_fn(|axis| self.strides.iter().map(|stride| stride[axis]).product())
    }

    /// Whether it can be built on such a patch.
    ///
    /// # Errors
    /// The first number that can't be.
    pub(crate) fn check(&self, patch: [usize; 3]) -> Result<(), String> {
        let stages = self.features.len();
        if !(2..=MOST).contains(&stages) {
            return Err(format!("its network has {stages} stages"));
        }
        for (what, count, wanted) in [
            ("kernel_sizes", self.kernels.len(), stages),
            ("strides", self.strides.len(), stages),
            ("convolutions of the encoder", self.encoder.len(), stages),
            ("convolutions of the decoder", self.decoder.len(), stages - 1),
        ] {
            if count != wanted {
                return Err(format!("{what}: {count} for a network of {stages} stages"));
            }
        }
        if self.features.iter().any(|n| !(1..=4096).contains(n)) {
            return Err(format!("its stages have {:?} channels", self.features));
        }
        if self
            .encoder
            .iter()
            .chain(&self.decoder)
            .any(|n| !(1..=64).contains(n))
        {
            return Err(format!(
                "its stages have {:?} and {:?} convolutions",
                self.encoder, self.decoder
            ));
        }
        if self
            .kernels
            .iter()
            .flatten()
            .any(|k| k.is_multiple_of(2) || *k > 31)
        {
            return Err(format!(
                "its kernels are {:?}; odd ones up to 31 are run here",
                self.kernels
            ));
        }
        if self.strides.iter().flatten().any(|s| !(1..=16).contains(s)) {
            return Err(format!("its strides are {:?}", self.strides));
        }
        if !(0.0..1.0).contains(&self.slope) {
            return Err(format!("its leaky ReLU has slope {}", self.slope));
        }
        for (axis, steps) in self.multiple().into_iter().enumerate() {
            if !patch[axis].is_multiple_of(steps) {
                return Err(format!(
                    "its patch of {} voxels on axis {axis} can't be divided by {steps}, the product of its strides",
                    patch[axis]
                ));
            }
        }
        Ok(())
    }

    /// Adds the network to a graph: image `[N, C, D, H, W]` (flat) to logits `[N, outputs, D, H, W]` (map). A network with
    /// `heads` gives a training the logits of its decoder's other stages as well ([`Builder::auxiliary`]), all but those of the
    /// lowest resolution, whose loss nnU-Net weighs with zero.
    ///
    /// # Errors
    /// An image whose size its steps don't divide.
    pub fn build(
        &self,
        b: &mut Builder,
        image: Value,
        outputs: usize,
        heads: bool,
    ) -> Result<Value, GraphError> {
        let (size, multiple) = (b.size(image), self.multiple());
        if (0..3).any(|axis| !size[axis].is_multiple_of(multiple[axis])) {
            let [d, h, w] = multiple;
            let fits: Vec<String> = (0..3)
                .map(|axis| size[axis].next_multiple_of(multiple[axis]).to_string())
                .collect();
            let reason = format!(
                "its {} stages take sizes that are multiples of {d}×{h}×{w}: {} would do",
                self.features.len(),
                fits.join("×")
            );
            return Err(GraphError::shape(
                "nnunet",
                &[b.graph.spec(image).clone()],
                reason,
            ));
        }
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
            let head = format!("decoder.seg_layers.{i}");
            if stage == 0 {
                return b.conv(&head, &[x], Conv::k1(outputs).with_bias());
            } else if heads && i > 0 {
                b.auxiliary(&head, x, outputs)?;
            }
        }
        unreachable!("two stages at least")
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

impl fmt::Display for Architecture {
    /// The name that [`Architecture::parse`] reads. Other slopes, decoders and convolutions without bias have none of their own.
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}", self.class.name())?;
        for (i, features) in self.features.iter().enumerate() {
            write!(f, "{}{features}", if i == 0 { ':' } else { ',' })?;
            let digits = |axes: [usize; 3]| axes.map(|n| n.to_string()).concat();
            if self.kernels[i] != [3; 3] {
                write!(f, "k{}", digits(self.kernels[i]))?;
            }
            if self.strides[i] != [if i == 0 { 1 } else { 2 }; 3] {
                write!(f, "s{}", digits(self.strides[i]))?;
            }
            if self.encoder[i] != self.class.usual(i) {
                write!(f, "x{}", self.encoder[i])?;
            }
        }
        Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for name in [
            "nnunet:32,64",
            "nnunet:32k133,64k133s122x3,128s122,320",
            "nnunet-resenc:32,64x2,128x4,256x6,320",
        ] {
            assert_eq!(
                Architecture::parse(name).unwrap().to_string(),
                name.replace("128x4,256x6", "128,256")
            );
        }
        for name in [
            "nnunet:",
            "nnunet:32",
            "nnunet:32,",
            "nnunet:32,0",
            "nnunet:32,64k23",
            "nnunet:32,64k222",
            "nnunet:32,64s200",
            "nnunet:32,64x0",
            "nnunet:32,64x99",
            "nnunet:1,1,1,1,1,1,1,1,1,1,1,1,1",
            "resenc:32,64",
        ] {
            assert!(Architecture::parse(name).is_err(), "{name}");
        }
        assert_eq!(NNUNET.multiple, usual(Class::Plain).multiple());
        assert_eq!(NNUNET_RESENC.multiple, usual(Class::Residual).multiple());
    }
}

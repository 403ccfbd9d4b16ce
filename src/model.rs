//! Networks: functions that add nodes. A network is added in one file and one line of [`NETWORKS`].

mod global_fc;
mod hybrid;
mod obelisk;
pub mod published;
mod summary;
mod unet;

pub use summary::{Layer, PlannedMemory, Summary};

use crate::graph::{Graph, GraphError, Init, Value};
use crate::op::avg_pool3d::AvgPool3d;
use crate::op::batch_norm::batch_norm;
use crate::op::conv3d::{Conv3dConfig, conv3d};
use crate::op::dropout::{channel_dropout, dropout};
use crate::op::leaky_relu::leaky_relu;
use crate::op::linear::linear;
use crate::op::upsample::Upsample;
use crate::preprocess::Preprocessing;

/// A network by name.
#[derive(Clone, Copy)]
pub struct Network {
    /// Name in `--arch` and in weight files.
    pub name: &'static str,
    /// One line for `obelisk info`.
    pub about: &'static str,
    /// Adds the network to a graph: image `[N, C, D, H, W]` (flat) to logits `[N, labels, D, H, W]` (map).
    pub build: Build,
    /// For networks that are as published: how the authors' script reads scans, for weights that say nothing of it.
    pub published: Option<fn() -> Preprocessing>,
    /// For networks that take one size of scan only.
    pub fixed: Option<Fixed>,
    /// For networks that train and predict at any locations: the network without its regular grid.
    pub points: Option<PointNetwork>,
    /// Whether it has OBELISK layers: parameters or states named `offset…`, shape `[1, K, 1, P, 3]`.
    pub obelisk_layers: bool,
}

/// The one size that a network takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fixed {
    /// Voxels of the scan along D, H, W.
    pub size: [usize; 3],
    /// Labels, the background included.
    pub labels: usize,
    /// Whether the network halves the scan first, so that an odd size of one voxel less does as well.
    pub halved: bool,
}

/// A network whose logits at a location depend on no other location's.
#[derive(Clone, Copy, Debug)]
pub struct PointNetwork {
    /// What a scan goes through once, whatever the locations: image `[N, C, D, H, W]` (flat) to one of the same shape.
    /// Has no parameters.
    pub smooth: fn(&mut Graph, image: Value) -> Result<Value, GraphError>,
    /// Logits at the sites' locations, one site after the other along N: a map `[ΣN, labels, d, h, w]`, with
    /// [`At::Points`] `[ΣN, labels, 1, 1, S]`. All sites have as many locations.
    pub at: fn(&mut Builder, sites: &[Site], labels: usize) -> Result<Value, GraphError>,
    /// Where a regular grid (d, h, w) that is upsampled to the image has its points.
    pub grid: fn([usize; 3]) -> At,
}

/// Smoothed images and where a [`PointNetwork`] looks at them.
#[derive(Clone, Copy, Debug)]
pub struct Site {
    /// Flat `[N, C, D, H, W]`, smoothed.
    pub image: Value,
    /// The locations.
    pub at: At,
    /// Flat `[1, 3, 4]`: the offsets are multiplied by its first three columns (affine augmentation); `None` leaves them.
    pub theta: Option<Value>,
}

/// Locations in an image.
#[derive(Clone, Copy, Debug)]
pub enum At {
    /// A regular grid (d, h, w) whose outer points are the centres of the outer voxels.
    Grid([usize; 3]),
    /// The centres of the cells of a regular grid (d, h, w) that divides the image evenly.
    Cells([usize; 3]),
    /// Flat `[N, S, 3]`: (x, y, z) with x along W, −1 and +1 at the centres of the outer voxels.
    Points(Value),
}

/// A network's function; see [`Network::build`].
pub type Build = fn(&mut Builder, image: Value, labels: usize) -> Result<Value, GraphError>;

impl Network {
    const fn new(name: &'static str, about: &'static str, build: Build) -> Self {
        Network {
            name,
            about,
            build,
            published: None,
            fixed: None,
            points: None,
            obelisk_layers: false,
        }
    }

    const fn at_points(self, points: PointNetwork) -> Self {
        Network {
            points: Some(points),
            obelisk_layers: true,
            ..self
        }
    }

    const fn fixed(self, fixed: Fixed) -> Self {
        Network {
            fixed: Some(fixed),
            ..self
        }
    }

    /// As published, for the authors' weights.
    const fn published(self, preprocessing: fn() -> Preprocessing) -> Self {
        Network {
            published: Some(preprocessing),
            ..self
        }
    }

    const fn with_obelisk_layers(self) -> Self {
        Network {
            obelisk_layers: true,
            ..self
        }
    }
}

impl std::fmt::Debug for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// Every network that `--arch` names.
pub const NETWORKS: &[Network] = &[
    Network::new(
        "obelisk",
        "the original OBELISK: 1024 pairs of offsets and a 1×1×1 dense-net; trains at random locations (130 k parameters)",
        obelisk::obelisk,
    )
    .at_points(obelisk::BINARY),
    Network::new(
        "obelisk-unary",
        "the same with 1024 single offsets (paper: Unary OBELISK + dense)",
        obelisk::obelisk_unary,
    )
    .at_points(obelisk::UNARY),
    Network::new(
        "obelisk-random",
        "the same with 1024 frozen single offsets (paper: Random offsets + dense)",
        obelisk::obelisk_random,
    )
    .at_points(obelisk::RANDOM),
    Network::new(
        "obelisk_visceral",
        "the original OBELISK exactly as published for the VISCERAL scans, for any size",
        obelisk::obelisk_visceral,
    )
    .at_points(obelisk::VISCERAL)
    .published(published::obelisk_visceral),
    Network::new(
        "obelisk-hybrid",
        "shallow U-Net with two OBELISK layers, for any size (paper: Hybrid OBELISK-CNN, 230 k parameters)",
        hybrid::obelisk_hybrid,
    )
    .with_obelisk_layers(),
    Network::new(
        "obeliskhybrid_tcia",
        "the hybrid exactly as published for the TCIA scans: 144³, 9 labels, its own 18×36×18 grid",
        hybrid::obeliskhybrid_tcia,
    )
    .fixed(published::TCIA)
    .published(published::obeliskhybrid_tcia)
    .with_obelisk_layers(),
    Network::new(
        "obeliskhybrid_visceral",
        "the hybrid exactly as published for the VISCERAL scans of about 1.5 mm, which it halves; for any size",
        hybrid::obeliskhybrid_visceral,
    )
    .published(published::obeliskhybrid_visceral)
    .with_obelisk_layers(),
    Network::new(
        "unet",
        "all-convolutional U-Net of the paper's table 1 (880 k parameters)",
        unet::unet,
    ),
    Network::new(
        "unet-lean",
        "the same with grouped convolutions (paper: Leaner all-conv U-Net)",
        unet::unet_lean,
    ),
    Network::new(
        "unet-global-fc",
        "U-Net whose bottleneck passes through fully-connected layers, sized for the training grid (paper: Global FC U-Net)",
        global_fc::unet_global_fc,
    ),
    Network::new(
        "allconvunet_tcia",
        "the all-convolutional U-Net exactly as published for the TCIA scans: 144³, 9 labels",
        unet::allconvunet_tcia,
    )
    .fixed(published::TCIA)
    .published(published::unet_tcia),
    Network::new(
        "allconvunet_visceral",
        "the all-convolutional U-Net exactly as published for the VISCERAL scans: 312×230×320, which it halves, 8 labels",
        unet::allconvunet_visceral,
    )
    .fixed(published::VISCERAL_HALVED)
    .published(published::unet_visceral),
    Network::new(
        "globalfcnet_tcia",
        "the global FC U-Net exactly as published for the TCIA scans: 144³, 9 labels",
        global_fc::globalfcnet_tcia,
    )
    .fixed(published::TCIA)
    .published(published::unet_tcia),
    Network::new(
        "globalfcnet_visceral",
        "the global FC U-Net exactly as published for the VISCERAL scans: 156×115×160, 8 labels",
        global_fc::globalfcnet_visceral,
    )
    .fixed(published::VISCERAL)
    .published(published::unet_visceral),
];

impl Network {
    /// The size of scan and the number of labels that it is described with: the published ones, or 144³ and 9.
    pub fn usual(&self) -> ([usize; 3], usize) {
        match (self.fixed, self.published) {
            (Some(fixed), _) => (fixed.size, fixed.labels),
            (None, Some(preprocessing)) => ([144; 3], preprocessing().labels.len()),
            (None, None) => ([144; 3], 9),
        }
    }
}

/// The network of that name, or the names there are.
pub fn find(name: &str) -> Result<&'static Network, GraphError> {
    NETWORKS.iter().find(|n| n.name == name).ok_or_else(|| {
        let names: Vec<&str> = NETWORKS.iter().map(|n| n.name).collect();
        GraphError::Name(format!(
            "there is no network `{name}`; choose one of {}",
            names.join(", ")
        ))
    })
}

/// Names of the networks that train and predict at any locations.
pub fn point_networks() -> Vec<&'static str> {
    let points = NETWORKS.iter().filter(|n| n.points.is_some());
    points.map(|n| n.name).collect()
}

/// What the network functions build with: a graph, and whether it is for training. Training and inference are two
/// graphs of one function, with the same parameters and states in the same order.
#[derive(Debug)]
pub struct Builder<'g> {
    /// Where nodes go.
    pub graph: &'g mut Graph,
    /// Batch statistics and their running averages, or the running averages only.
    pub training: bool,
}

/// A convolution's numbers, and how its blocks differ.
#[derive(Clone, Copy, Debug)]
pub struct Conv {
    /// Output channels.
    pub out: usize,
    /// Kernel width on every axis; the padding keeps the size at stride 1.
    pub kernel: usize,
    /// Step on every axis.
    pub stride: usize,
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
            kernel: 3,
            stride: 1,
            groups: 1,
            bias: true,
        }
    }

    /// 1×1×1, without bias.
    pub fn k1(out: usize) -> Self {
        Conv {
            out,
            kernel: 1,
            stride: 1,
            groups: 1,
            bias: false,
        }
    }

    /// With this step.
    pub fn stride(self, stride: usize) -> Self {
        Conv { stride, ..self }
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

impl Builder<'_> {
    /// Convolution of the channel-wise concatenation of `sources`; parameters `NAME.weight` and `NAME.bias`.
    pub fn conv(&mut self, name: &str, sources: &[Value], conv: Conv) -> Result<Value, GraphError> {
        let inputs: usize = sources.iter().map(|v| self.graph.shape(*v)[1]).sum();
        let Conv {
            out,
            kernel: k,
            stride,
            groups,
            bias,
        } = conv;
        if !inputs.is_multiple_of(groups) || !out.is_multiple_of(groups) {
            let specs: Vec<_> = sources.iter().map(|v| self.graph.spec(*v).clone()).collect();
            let reason =
                format!("`{name}` can't split {inputs} input and {out} output channels into {groups} groups");
            return Err(GraphError::shape("conv3d", &specs, reason));
        }
        let volume = k * k * k;
        let init = Init::XavierNormal {
            fan_in: inputs / groups * volume,
            fan_out: out * volume,
        };
        let weight =
            self.graph
                .parameter(&format!("{name}.weight"), &[out, inputs / groups, k, k, k], init)?;
        let bias = match bias {
            true => Some(
                self.graph
                    .parameter(&format!("{name}.bias"), &[out], Init::Constant(0.0))?,
            ),
            false => None,
        };
        conv3d(
            self.graph,
            sources,
            weight,
            bias,
            Conv3dConfig {
                groups,
                ..Conv3dConfig::same(k, stride)
            },
        )
    }

    /// Batch norm, then leaky ReLU of that slope; `None` for no activation. Parameters `NAME.weight`, `NAME.bias`,
    /// states `NAME.running_mean`, `NAME.running_var`.
    pub fn norm(&mut self, name: &str, x: Value, slope: Option<f32>) -> Result<Value, GraphError> {
        let channels = [self.graph.shape(x)[1]];
        let gamma = self
            .graph
            .parameter(&format!("{name}.weight"), &channels, Init::Constant(1.0))?;
        let beta = self
            .graph
            .parameter(&format!("{name}.bias"), &channels, Init::Constant(0.0))?;
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
    fn only(
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

/// `ceil(n / by)` on every axis.
fn shrink(size: [usize; 3], by: usize) -> [usize; 3] {
    size.map(|n| n.div_ceil(by))
}

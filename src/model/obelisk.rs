//! The original OBELISK networks (method section 2): one layer of sparse offsets into the smoothed image, then a
//! 1×1×1 dense-net. No location depends on another, so they train and predict at any set of them.

use super::{At, Builder, Conv, Network, PointNetwork, Site, published, shrink};
use crate::graph::{Graph, GraphError, Init, Value};
use crate::op::Op;
use crate::op::avg_pool3d::AvgPool3d;
use crate::op::concat::concat;
use crate::op::conv3d::{Conv3dConfig, conv3d};
use crate::op::join::join;
use crate::op::obelisk_layer::obelisk_layer;
use crate::op::obelisk_sample::{Locations, ObeliskSample};
use crate::op::turn_offsets::turn_offsets;
use crate::tensor::Spec;

/// Offsets start as N(0, 0.05²) in normalised coordinates (method section 1).
const OFFSET_SIGMA: f32 = 0.05;
/// Frozen offsets are N(0, 0.2²): they can't grow by training, and trained ones reach up to half the image.
const FROZEN_SIGMA: f32 = 0.2;
/// Coefficients of the OBELISK layer.
const COEFFICIENTS: usize = 1024;
/// Bytes of a site's slopes above which the gradient samples the image again instead: 24 KiB a location of pairs, 682 locations.
const MOST_SLOPES: u64 = 16 << 20;
/// Groups of the convolution that mixes them.
const GROUPS: usize = 4;

/// Two trained offsets a coefficient.
const BINARY: PointNetwork = PointNetwork {
    smooth: twice,
    at: |b, sites, labels| head(b, sites, labels, Offsets::Binary),
    grid: At::Cells,
};

/// One trained offset a coefficient.
const UNARY: PointNetwork = PointNetwork {
    smooth: twice,
    at: |b, sites, labels| head(b, sites, labels, Offsets::Unary),
    grid: At::Cells,
};

/// One frozen offset a coefficient.
const RANDOM: PointNetwork = PointNetwork {
    smooth: twice,
    at: |b, sites, labels| head(b, sites, labels, Offsets::Frozen),
    grid: At::Cells,
};

/// [`BINARY`] with the smoothing and the grid of the published VISCERAL script, which samples at [`At::Grid`] what it
/// upsamples as [`At::Cells`]: labels at a quarter grid's outer points come out up to 1.5 voxels further in.
const VISCERAL: PointNetwork = PointNetwork {
    smooth: |graph, image| smooth(graph, image, &[5, 5, 3]),
    at: |b, sites, labels| head(b, sites, labels, Offsets::Binary),
    grid: At::Grid,
};

pub const OBELISK: Network = Network::new(
    "obelisk",
    "the original OBELISK: 1024 pairs of offsets and a 1×1×1 dense-net; trains at random locations (130 k parameters)",
    obelisk,
)
.at_points(BINARY);

/// The original OBELISK with the paper's smoothing.
fn obelisk(b: &mut Builder, image: Value, labels: usize) -> Result<Value, GraphError> {
    dense(b, image, labels, &BINARY)
}

pub const OBELISK_UNARY: Network = Network::new(
    "obelisk-unary",
    "the same with 1024 single offsets (paper: Unary OBELISK + dense)",
    obelisk_unary,
)
.at_points(UNARY);

/// One offset a coefficient.
fn obelisk_unary(b: &mut Builder, image: Value, labels: usize) -> Result<Value, GraphError> {
    dense(b, image, labels, &UNARY)
}

pub const OBELISK_RANDOM: Network = Network::new(
    "obelisk-random",
    "the same with 1024 frozen single offsets (paper: Random offsets + dense)",
    obelisk_random,
)
.at_points(RANDOM);

/// One offset a coefficient, none of them trained.
fn obelisk_random(b: &mut Builder, image: Value, labels: usize) -> Result<Value, GraphError> {
    dense(b, image, labels, &RANDOM)
}

pub const OBELISK_VISCERAL: Network = Network::new(
    "obelisk_visceral",
    "the original OBELISK exactly as published for the VISCERAL scans, for any size",
    obelisk_visceral,
)
.at_points(VISCERAL)
.published(published::obelisk_visceral);

/// As published for the VISCERAL scans, whatever their size.
fn obelisk_visceral(b: &mut Builder, image: Value, labels: usize) -> Result<Value, GraphError> {
    dense(b, image, labels, &VISCERAL)
}

/// Logits on the quarter grid, upsampled to half and then to the image's size.
fn dense(b: &mut Builder, image: Value, labels: usize, network: &PointNetwork) -> Result<Value, GraphError> {
    let full = b.size(image);
    let image = (network.smooth)(b.graph, image)?;
    let site = Site {
        image,
        at: (network.grid)(shrink(full, 4)),
        theta: None,
    };
    let x = (network.at)(b, &[site], labels)?;
    let x = b.upsample(x, shrink(full, 2))?;
    b.upsample(x, full)
}

/// The paper's: two 3³ average poolings.
fn twice(graph: &mut Graph, image: Value) -> Result<Value, GraphError> {
    smooth(graph, image, &[3, 3])
}

fn smooth(graph: &mut Graph, mut image: Value, kernels: &[usize]) -> Result<Value, GraphError> {
    for &kernel in kernels {
        let pool = AvgPool3d {
            kernel,
            stride: 1,
            padding: kernel / 2,
        };
        image = graph.push1(pool, &[image])?;
    }
    Ok(image)
}

/// What a coefficient of the layer is.
#[derive(Clone, Copy)]
enum Offsets {
    /// The difference of the image at two offsets.
    Binary,
    /// The image at one.
    Unary,
    /// The image at one that is not trained.
    Frozen,
}

impl Offsets {
    fn declare(self, graph: &mut Graph) -> Result<Value, GraphError> {
        let terms = match self {
            Offsets::Binary => 2,
            Offsets::Unary | Offsets::Frozen => 1,
        };
        let shape = [1, COEFFICIENTS, 1, terms, 3];
        match self {
            Offsets::Frozen => graph.state("offset1", &shape, Init::Normal(FROZEN_SIGMA)),
            _ => graph.parameter("offset1", &shape, Init::Normal(OFFSET_SIGMA)),
        }
    }
}

/// From smoothed images to logits at their locations: the OBELISK layer, then the dense-net of table 2.
fn head(b: &mut Builder, sites: &[Site], labels: usize, offsets: Offsets) -> Result<Value, GraphError> {
    let trained = b.training && !matches!(offsets, Offsets::Frozen);
    let offsets = offsets.declare(b.graph)?;
    let x = layer(b, sites, offsets, trained)?;
    let x = b.norm("BN1", x, Some(0.0))?;
    let x = b.conv("LIN2", &[x], Conv::k1(128))?;
    let x = b.norm("BN2", x, None)?;
    let mut y = dense_layer(b, "LIN3a", x, x)?;
    for (norm, linear) in [("BN3a", "LIN3b"), ("BN3b", "LIN3c"), ("BN3c", "LIN3d")] {
        let x = b.norm(norm, y, None)?;
        y = dense_layer(b, linear, y, x)?;
    }
    let x = b.norm("BN3d", y, None)?;
    b.conv("LIN4", &[x], Conv::k1(labels).with_bias())
}

/// `y` with 32 channels more, relu of a convolution of `x`.
fn dense_layer(b: &mut Builder, linear: &str, y: Value, x: Value) -> Result<Value, GraphError> {
    let grown = b.conv(linear, &[x], Conv::k1(32))?;
    let grown = b.leaky(grown, 0.0)?;
    concat(b.graph, &[y, grown])
}

/// LIN1 of the samples at every site, to 256 channels. Samples of several sites meet in one batch before they are mixed,
/// so that one convolution serves all; at a single site, which may be a whole grid, they are never stored.
fn layer(b: &mut Builder, sites: &[Site], offsets: Value, trained: bool) -> Result<Value, GraphError> {
    let Some(first) = sites.first() else {
        return Err(GraphError::Name(
            "an OBELISK network needs an image to look at".into(),
        ));
    };
    let columns = b.graph.shape(first.image)[1] * COEFFICIENTS / GROUPS;
    let init = Init::XavierNormal {
        fan_in: columns,
        fan_out: 256,
    };
    let weight = b.graph.parameter("LIN1.weight", &[256, columns, 1, 1, 1], init)?;
    let mut samples = Vec::new();
    for site in sites {
        let offsets = match site.theta {
            Some(theta) => turn_offsets(b.graph, offsets, theta)?,
            None => offsets,
        };
        let (locations, points) = match site.at {
            At::Grid(grid) => (Locations::Grid(grid), None),
            At::Cells(grid) => (Locations::Cells(grid), None),
            At::Points(points) => (Locations::Points, Some(points)),
        };
        if sites.len() == 1 {
            return obelisk_layer(b.graph, site.image, offsets, weight, points, locations, GROUPS);
        }
        let inputs: Vec<Value> = [site.image, offsets].into_iter().chain(points).collect();
        let specs: Vec<Spec> = inputs.iter().map(|v| b.graph.spec(*v).clone()).collect();
        let with_slopes = ObeliskSample {
            locations,
            slopes: true,
        };
        let sample = match trained && with_slopes.outputs(&specs)?[1].bytes() <= MOST_SLOPES {
            true => with_slopes,
            false => ObeliskSample::new(locations),
        };
        samples.push(b.graph.push(sample, &inputs)?[0]);
    }
    let x = join(b.graph, &samples)?;
    let config = Conv3dConfig {
        groups: GROUPS,
        ..Default::default()
    };
    conv3d(b.graph, &[x], weight, None, config)
}

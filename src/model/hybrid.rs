//! Hybrid OBELISK-CNN (method section 2): a shallow U-Net plus two unary OBELISK layers.

use super::{Builder, Conv, Network, published, shrink};
use crate::graph::{GraphError, Init, Value};
use crate::op::concat::concat;
use crate::op::obelisk_layer::obelisk_layer;
use crate::op::obelisk_sample::Locations;

/// Leakage of the hybrid and of the published one for TCIA.
const SLOPE: f32 = 0.025;
/// Leakage of the published one for VISCERAL; its dense blocks have plain ReLU.
const VISCERAL_SLOPE: f32 = 0.05;
/// Offsets start as N(0, 0.05²) in normalised coordinates (method section 1).
const OFFSET_SIGMA: f32 = 0.05;

pub const OBELISK_HYBRID: Network = Network::new(
    "obelisk-hybrid",
    "shallow U-Net with two OBELISK layers, for any size (paper: Hybrid OBELISK-CNN, 230 k parameters)",
    obelisk_hybrid,
)
.with_obelisk_layers();

/// For any size: OBELISK grids of ceil(n/8) and ceil(n/4) on every axis.
fn obelisk_hybrid(b: &mut Builder, image: Value, labels: usize) -> Result<Value, GraphError> {
    let size = b.size(image);
    hybrid(b, image, labels, shrink(size, 8))
}

pub const OBELISKHYBRID_TCIA: Network = Network::new(
    "obeliskhybrid_tcia",
    "the hybrid exactly as published for the TCIA scans: 144³, 9 labels, its own 18×36×18 grid",
    obeliskhybrid_tcia,
)
.fixed(published::TCIA)
.published(published::obeliskhybrid_tcia)
.with_obelisk_layers();

/// As published: only 144³ and 9 labels, since its coarse grid is 18×36×18.
fn obeliskhybrid_tcia(b: &mut Builder, image: Value, labels: usize) -> Result<Value, GraphError> {
    b.only(
        "obeliskhybrid_tcia",
        image,
        labels,
        published::TCIA,
        "obelisk-hybrid",
    )?;
    hybrid(b, image, labels, [18, 36, 18])
}

/// Both OBELISK layers sample the smoothed image, which needs no gradient.
fn hybrid(b: &mut Builder, image: Value, labels: usize, coarse: [usize; 3]) -> Result<Value, GraphError> {
    let full = b.size(image);
    let (half, quarter) = (shrink(full, 2), shrink(full, 4));
    let x0 = b.smooth(image, 1)?;
    let x00 = b.smooth(x0, 1)?;

    let x1 = b.layer("0", &[image], Conv::k3(4), SLOPE)?;
    let x = b.layer("1", &[x1], Conv::k3(16).stride(2), SLOPE)?;
    let x2 = b.layer("11", &[x], Conv::k3(16), SLOPE)?;
    let x = b.layer("2", &[x2], Conv::k3(32).stride(2), SLOPE)?;
    let x = b.layer("22", &[x], Conv::k3(32), SLOPE)?;
    let x = b.layer("3", &[x], Conv::k3(32), SLOPE)?;

    let o1 = Branch {
        number: 1,
        offsets: 128,
        groups: 2,
        out: 16,
        slope: SLOPE,
    };
    let o1 = o1.add(b, x0, quarter)?;
    let o1 = b.upsample(o1, half)?;
    let o2 = Branch {
        number: 2,
        offsets: 512,
        groups: 4,
        out: 32,
        slope: SLOPE,
    };
    let o2 = o2.add(b, x00, coarse)?;
    let o2 = b.upsample(o2, quarter)?;

    let x = b.layer("6bU", &[x, o2], Conv::k3(32), SLOPE)?;
    let x = b.upsample(x, half)?;
    let x = b.layer("6U", &[x, o1, x2], Conv::k3(12), SLOPE)?;
    let x = b.upsample(x, full)?;
    let x = b.layer("7U", &[x, x1], Conv::k3(labels), SLOPE)?;
    b.conv("conv77U", &[x], Conv::k1(labels).with_bias())
}

pub const OBELISKHYBRID_VISCERAL: Network = Network::new(
    "obeliskhybrid_visceral",
    "the hybrid exactly as published for the VISCERAL scans of about 1.5 mm, which it halves; for any size",
    obeliskhybrid_visceral,
)
.published(published::obeliskhybrid_visceral)
.with_obelisk_layers();

/// As published, for any size: everything sees the image halved by average pooling, the first OBELISK layer the map x1.
fn obeliskhybrid_visceral(b: &mut Builder, image: Value, labels: usize) -> Result<Value, GraphError> {
    let scan = b.size(image);
    let image = b.smooth(image, 2)?;
    let full = b.size(image);
    let (half, quarter, eighth) = (shrink(full, 2), shrink(full, 4), shrink(full, 8));
    let x00 = b.smooth(image, 1)?;

    let x1 = b.layer("0", &[image], Conv::k3(4), VISCERAL_SLOPE)?;
    let x = b.layer("1", &[x1], Conv::k3(16).stride(2), VISCERAL_SLOPE)?;
    let x2 = b.layer("11", &[x], Conv::k3(16), VISCERAL_SLOPE)?;
    let x = b.layer("2", &[x2], Conv::k3(32).stride(2), VISCERAL_SLOPE)?;

    let branch = |number, offsets| Branch {
        number,
        offsets,
        groups: 4,
        out: 32,
        slope: 0.0,
    };
    let o1 = branch(1, 128).add(b, x1, quarter)?;
    let o1 = b.upsample(o1, half)?;
    let o2 = branch(2, 512).add(b, x00, eighth)?;
    let o2 = b.upsample(o2, quarter)?;

    let x = b.layer("6bU", &[x, o2], Conv::k3(32), VISCERAL_SLOPE)?;
    let x = b.upsample(x, half)?;
    let x = b.layer("6U", &[x, o1, x2], Conv::k3(32), VISCERAL_SLOPE)?;
    let x = b.conv("conv8", &[x], Conv::k1(labels).with_bias())?;
    let x = b.upsample(x, full)?;
    b.upsample(x, scan)
}

/// An OBELISK layer of unary offsets, mixed to 128 channels in groups, and the 1×1×1 dense block after it:
/// y ← cat(y, lrelu(linear(batch_norm(y)))) three times, and a last layer to `out` channels.
struct Branch {
    /// In the parameters' names.
    number: usize,
    offsets: usize,
    groups: usize,
    out: usize,
    slope: f32,
}

impl Branch {
    /// Samples the image or map at a grid's points.
    fn add(&self, b: &mut Builder, image: Value, grid: [usize; 3]) -> Result<Value, GraphError> {
        let number = self.number;
        let shape = [1, self.offsets, 1, 1, 3];
        let offset = b
            .graph
            .parameter(&format!("offset{number}"), &shape, Init::Normal(OFFSET_SIGMA))?;
        let columns = b.graph.shape(image)[1] * self.offsets / self.groups;
        let init = Init::XavierNormal {
            fan_in: columns,
            fan_out: 128,
        };
        let weight = b
            .graph
            .parameter(&format!("linear{number}a.weight"), &[128, columns, 1, 1, 1], init)?;
        let locations = Locations::Grid(grid);
        let x = obelisk_layer(b.graph, image, offset, weight, None, locations, self.groups)?;
        let mut y = b.leaky(x, self.slope)?;
        for (norm, linear) in [("a", "b"), ("b", "c"), ("c", "d")] {
            let grown = self.dense_layer(b, norm, linear, y, 32)?;
            y = concat(b.graph, &[y, grown])?;
        }
        self.dense_layer(b, "d", "e", y, self.out)
    }

    fn dense_layer(
        &self,
        b: &mut Builder,
        norm: &str,
        linear: &str,
        y: Value,
        out: usize,
    ) -> Result<Value, GraphError> {
        let number = self.number;
        let x = b.norm(&format!("batch{number}{norm}"), y, None)?;
        let x = b.conv(&format!("linear{number}{linear}"), &[x], Conv::k1(out))?;
        b.leaky(x, self.slope)
    }
}

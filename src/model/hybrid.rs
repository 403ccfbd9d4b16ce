//! Hybrid OBELISK-CNN (method section 2): a shallow U-Net plus two unary OBELISK layers that see the smoothed image.

use super::*;
use crate::op::avg_pool3d::AvgPool3d;
use crate::op::concat::concat;
use crate::op::obelisk_layer::obelisk_layer;
use crate::op::obelisk_sample::Locations;

const SLOPE: f32 = 0.025;

/// Offsets start as N(0, 0.05²) in normalised coordinates (method section 1).
const OFFSET_SIGMA: f32 = 0.05;

/// For any size: OBELISK grids of ceil(n/8) and ceil(n/4) on every axis.
pub fn obelisk_hybrid(b: &mut Builder, image: Value, labels: usize) -> Result<Value, GraphError> {
    let size = b.size(image);
    hybrid(b, image, labels, shrink(size, 8))
}

/// As published: only 144³ and 9 labels, since its coarse grid is 18×36×18.
pub fn obeliskhybrid_tcia(b: &mut Builder, image: Value, labels: usize) -> Result<Value, GraphError> {
    if b.graph.shape(image)[1..] != [1, 144, 144, 144] || labels != 9 {
        let reason = "is as published: one channel of 144×144×144 voxels and 9 labels; resample the scan to that size, \
            or train `obelisk-hybrid`, which takes any";
        return Err(GraphError::shape(
            "obeliskhybrid_tcia",
            &[b.graph.spec(image).clone()],
            reason,
        ));
    }
    hybrid(b, image, labels, [18, 36, 18])
}

fn hybrid(b: &mut Builder, image: Value, labels: usize, coarse: [usize; 3]) -> Result<Value, GraphError> {
    let full = b.size(image);
    let (half, quarter) = (shrink(full, 2), shrink(full, 4));
    let smooth = AvgPool3d {
        kernel: 3,
        stride: 1,
        padding: 1,
    };
    let x0 = b.graph.push1(smooth, &[image])?;
    let x00 = b.graph.push1(smooth, &[x0])?;

    let x1 = conv_norm(b, "conv0", "batch0", &[image], Conv::k3(4))?;
    let x = conv_norm(b, "conv1", "batch1", &[x1], Conv::k3(16).stride(2))?;
    let x2 = conv_norm(b, "conv11", "batch11", &[x], Conv::k3(16))?;
    let x = conv_norm(b, "conv2", "batch2", &[x2], Conv::k3(32).stride(2))?;
    let x = conv_norm(b, "conv22", "batch22", &[x], Conv::k3(32))?;
    let x = conv_norm(b, "conv3", "batch3", &[x], Conv::k3(32))?;

    let o1 = obelisk(b, "1", x0, 128, quarter, 2, 16)?;
    let o1 = b.upsample(o1, half)?;
    let o2 = obelisk(b, "2", x00, 512, coarse, 4, 32)?;
    let o2 = b.upsample(o2, quarter)?;

    let x = conv_norm(b, "conv6bU", "batch6bU", &[x, o2], Conv::k3(32))?;
    let x = b.upsample(x, half)?;
    let x = conv_norm(b, "conv6U", "batch6U", &[x, o1, x2], Conv::k3(12))?;
    let x = b.upsample(x, full)?;
    let x = conv_norm(b, "conv7U", "batch7U", &[x, x1], Conv::k3(labels))?;
    b.conv("conv77U", &[x], Conv::k1(labels).with_bias())
}

fn conv_norm(
    b: &mut Builder,
    conv: &str,
    norm: &str,
    sources: &[Value],
    spec: Conv,
) -> Result<Value, GraphError> {
    let x = b.conv(conv, sources, spec)?;
    b.norm(norm, x, Some(SLOPE))
}

/// OBELISK layer `number`: `offsets` unary samples of the image on a grid, mixed to 128 channels in groups, then the
/// 1×1×1 dense block: y ← cat(y, lrelu(linear(batch_norm(y)))) three times, and a last layer to `out` channels.
fn obelisk(
    b: &mut Builder,
    number: &str,
    image: Value,
    offsets: usize,
    grid: [usize; 3],
    groups: usize,
    out: usize,
) -> Result<Value, GraphError> {
    let shape = [1, offsets, 1, 1, 3];
    let offset = b
        .graph
        .parameter(&format!("offset{number}"), &shape, Init::Normal(OFFSET_SIGMA))?;
    let columns = b.graph.shape(image)[1] * offsets / groups;
    let init = Init::XavierNormal {
        fan_in: columns,
        fan_out: 128,
    };
    let weight = b
        .graph
        .parameter(&format!("linear{number}a.weight"), &[128, columns, 1, 1, 1], init)?;
    let x = obelisk_layer(
        b.graph,
        image,
        offset,
        weight,
        None,
        Locations::Grid(grid),
        groups,
    )?;
    let mut y = b.leaky(x, SLOPE)?;
    for (norm, linear) in [("a", "b"), ("b", "c"), ("c", "d")] {
        let grown = dense_layer(b, number, norm, linear, y, 32)?;
        y = concat(b.graph, &[y, grown])?;
    }
    dense_layer(b, number, "d", "e", y, out)
}

fn dense_layer(
    b: &mut Builder,
    number: &str,
    norm: &str,
    linear: &str,
    y: Value,
    out: usize,
) -> Result<Value, GraphError> {
    let x = b.norm(&format!("batch{number}{norm}"), y, None)?;
    let x = b.conv(&format!("linear{number}{linear}"), &[x], Conv::k1(out))?;
    b.leaky(x, SLOPE)
}

//! The global FC U-Net (method section 2): its bottleneck passes through a fully-connected layer of 400 and back, so that
//! every coarse voxel sees the whole scan.

use super::unet::{decoder, encoder, layer};
use super::{Builder, Conv, Network, published};
use crate::graph::{GraphError, Value};
use crate::op::layout::{to_flat, to_map};

/// Outputs of fc1.
const WIDTH: usize = 400;
/// Probability that training drops an output of fc1 and of fc2U.
const DROPOUT: f32 = 0.5;

pub const UNET_GLOBAL_FC: Network = Network::new(
    "unet-global-fc",
    "U-Net whose bottleneck passes through fully-connected layers, sized for the training grid (paper: Global FC U-Net)",
    unet_global_fc,
);

/// For any size; the fully-connected layers are as large as a sixteenth of it, so the weights fit that size only.
fn unet_global_fc(b: &mut Builder, image: Value, labels: usize) -> Result<Value, GraphError> {
    let mut skips = encoder(b, image, &[10, 30, 50, 20].map(|out| [Conv::k3(out); 2]), layer)?;
    let coarse = skips.pop().expect("four levels");
    let x = fully_connected(b, coarse)?;
    let x = layer(b, "6dU", &[x, coarse], Conv::k3(20))?;
    decoder(b, x, &skips, &[20, 10, 8, labels].map(Conv::k3), layer)
}

pub const GLOBALFCNET_TCIA: Network = Network::new(
    "globalfcnet_tcia",
    "the global FC U-Net exactly as published for the TCIA scans: 144³, 9 labels",
    globalfcnet_tcia,
)
.fixed(published::TCIA)
.published(published::unet_tcia);

/// As published for TCIA.
fn globalfcnet_tcia(b: &mut Builder, image: Value, labels: usize) -> Result<Value, GraphError> {
    b.only(
        "globalfcnet_tcia",
        image,
        labels,
        published::TCIA,
        "unet-global-fc",
    )?;
    unet_global_fc(b, image, labels)
}

pub const GLOBALFCNET_VISCERAL: Network = Network::new(
    "globalfcnet_visceral",
    "the global FC U-Net exactly as published for the VISCERAL scans: 156×115×160, 8 labels",
    globalfcnet_visceral,
)
.fixed(published::VISCERAL)
.published(published::unet_visceral);

/// As published for VISCERAL.
fn globalfcnet_visceral(b: &mut Builder, image: Value, labels: usize) -> Result<Value, GraphError> {
    b.only(
        "globalfcnet_visceral",
        image,
        labels,
        published::VISCERAL,
        "unet-global-fc",
    )?;
    unet_global_fc(b, image, labels)
}

/// fc1 and fc2U over all channels and voxels of a map, with dropout after each and nothing between.
fn fully_connected(b: &mut Builder, map: Value) -> Result<Value, GraphError> {
    let shape = b.graph.spec(map).ncdhw().expect("a map");
    let x = to_flat(b.graph, map)?;
    let x = b.linear("fc1", x, WIDTH)?;
    let x = b.dropout(x, DROPOUT)?;
    let x = b.linear("fc2U", x, shape[1..].iter().product())?;
    let x = b.dropout(x, DROPOUT)?;
    to_map(b.graph, x, shape)
}

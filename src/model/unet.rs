//! The all-convolutional U-Nets: the paper's table 1, its leaner variant, and the published ones.

use super::{Builder, Conv, Network, published};
use crate::graph::{GraphError, Value};

const SLOPE: f32 = 0.1;
/// Probability that allconvunet_tcia drops a channel in training.
const CHANNEL_DROPOUT: f32 = 0.5;

pub const UNET: Network = Network::new(
    "unet",
    "all-convolutional U-Net of the paper's table 1 (880 k parameters)",
    unet,
);

/// Table 1, for any size, halves rounded up: nine encoder and five decoder 3×3×3 convolutions.
fn unet(b: &mut Builder, image: Value, labels: usize) -> Result<Value, GraphError> {
    let levels = [16, 32, 64, 80].map(|out| [Conv::k3(out); 2]);
    let up = [64, 32, 9, labels].map(Conv::k3);
    all_conv(b, image, &levels, &up, layer)
}

pub const UNET_LEAN: Network = Network::new(
    "unet-lean",
    "the same with grouped convolutions (paper: Leaner all-conv U-Net)",
    unet_lean,
);

/// Table 1 with groups of 4 in its layers #6, #7 and #11, of 8 in #8 to #10.
fn unet_lean(b: &mut Builder, image: Value, labels: usize) -> Result<Value, GraphError> {
    let levels = [(16, 1), (32, 1), (64, 4), (80, 8)].map(|(out, groups)| [Conv::k3(out).groups(groups); 2]);
    let up = [(64, 8), (32, 4), (9, 1), (labels, 1)].map(|(out, groups)| Conv::k3(out).groups(groups));
    all_conv(b, image, &levels, &up, layer)
}

pub const ALLCONVUNET_TCIA: Network = Network::new(
    "allconvunet_tcia",
    "the all-convolutional U-Net exactly as published for the TCIA scans: 144³, 9 labels",
    allconvunet_tcia,
)
.fixed(published::TCIA)
.published(published::unet_tcia);

/// As published for TCIA: five levels, and channel dropout after every leaky ReLU, so that skips carry it. The
/// published script leaves it on in inference; here inference is without.
fn allconvunet_tcia(b: &mut Builder, image: Value, labels: usize) -> Result<Value, GraphError> {
    b.only("allconvunet_tcia", image, labels, published::TCIA, "unet")?;
    let levels = [14, 28, 42, 56, 70].map(|out| [Conv::k3(out); 2]);
    let up = [56, 42, 28, 14, labels].map(Conv::k3);
    all_conv(b, image, &levels, &up, |b, number, sources, conv| {
        let x = layer(b, number, sources, conv)?;
        b.channel_dropout(x, CHANNEL_DROPOUT)
    })
}

pub const ALLCONVUNET_VISCERAL: Network = Network::new(
    "allconvunet_visceral",
    "the all-convolutional U-Net exactly as published for the VISCERAL scans: 312×230×320, which it halves, 8 labels",
    allconvunet_visceral,
)
.fixed(published::VISCERAL_HALVED)
.published(published::unet_visceral);

/// As published for VISCERAL: the scan is halved by average pooling first, the logits are upsampled to it.
fn allconvunet_visceral(b: &mut Builder, image: Value, labels: usize) -> Result<Value, GraphError> {
    b.only(
        "allconvunet_visceral",
        image,
        labels,
        published::VISCERAL_HALVED,
        "unet",
    )?;
    let scan = b.size(image);
    let image = b.smooth(image, 2)?;
    let levels = [16, 32, 64, 80].map(|out| [Conv::k3(out); 2]);
    let up = [64, 32, 8, labels].map(Conv::k3);
    let x = all_conv(b, image, &levels, &up, layer)?;
    b.upsample(x, scan)
}

fn all_conv(
    b: &mut Builder,
    image: Value,
    levels: &[[Conv; 2]],
    up: &[Conv],
    layer: Layer,
) -> Result<Value, GraphError> {
    let mut skips = encoder(b, image, levels, layer)?;
    let x = skips.pop().expect("conv0's map at least");
    decoder(b, x, &skips, up, layer)
}

/// Adds a convolution with what follows it: number, sources, numbers.
pub(super) type Layer = fn(&mut Builder, &str, &[Value], Conv) -> Result<Value, GraphError>;

/// A convolution, batch norm and leaky ReLU of leakage 0.1.
pub(super) fn layer(
    b: &mut Builder,
    number: &str,
    sources: &[Value],
    conv: Conv,
) -> Result<Value, GraphError> {
    b.layer(number, sources, conv, SLOPE)
}

/// conv0 to 5 channels at full size, then at each level a convolution of stride 2 (convN) and one more (convNN): the
/// last map of every size, the largest first.
pub(super) fn encoder(
    b: &mut Builder,
    image: Value,
    levels: &[[Conv; 2]],
    layer: Layer,
) -> Result<Vec<Value>, GraphError> {
    let mut x = layer(b, "0", &[image], Conv::k3(5))?;
    let mut maps = vec![x];
    for (level, [down, same]) in (1..).zip(levels) {
        x = layer(b, &format!("{level}"), &[x], down.stride(2))?;
        x = layer(b, &format!("{level}{level}"), &[x], *same)?;
        maps.push(x);
    }
    Ok(maps)
}

/// From the smallest skip to the largest: upsamples to its size, concatenates it, convolves (…, conv6cU, conv6bU, conv6U,
/// conv7U); then conv77U to as many channels as the last of `up`.
pub(super) fn decoder(
    b: &mut Builder,
    mut x: Value,
    skips: &[Value],
    up: &[Conv],
    layer: Layer,
) -> Result<Value, GraphError> {
    let numbers = ["6dU", "6cU", "6bU", "6U", "7U"];
    let numbers = &numbers[numbers.len() - up.len()..];
    for ((number, conv), skip) in numbers.iter().zip(up).zip(skips.iter().rev()) {
        let size = b.size(*skip);
        x = b.upsample(x, size)?;
        x = layer(b, number, &[x, *skip], *conv)?;
    }
    let labels = b.graph.shape(x)[1];
    b.conv("conv77U", &[x], Conv::k3(labels))
}

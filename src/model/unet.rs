//! The all-convolutional U-Net of the paper's table 1.

use super::*;

const SLOPE: f32 = 0.1;

/// Nine encoder and five decoder 3×3×3 convolutions, strided, with batch norm and leaky ReLU but for the last; trilinear
/// upsampling, skips by concatenation; any size, halves rounded up.
pub fn unet(b: &mut Builder, image: Value, labels: usize) -> Result<Value, GraphError> {
    let x1 = layer(b, "0", &[image], Conv::k3(5))?;
    let x = layer(b, "1", &[x1], Conv::k3(16).stride(2))?;
    let x3 = layer(b, "11", &[x], Conv::k3(16))?;
    let x = layer(b, "2", &[x3], Conv::k3(32).stride(2))?;
    let x5 = layer(b, "22", &[x], Conv::k3(32))?;
    let x = layer(b, "3", &[x5], Conv::k3(64).stride(2))?;
    let x7 = layer(b, "33", &[x], Conv::k3(64))?;
    let x = layer(b, "4", &[x7], Conv::k3(80).stride(2))?;
    let x = layer(b, "44", &[x], Conv::k3(80))?;

    let x = up(b, "6cU", x, x7, 64)?;
    let x = up(b, "6bU", x, x5, 32)?;
    let x = up(b, "6U", x, x3, 9)?;
    let x = up(b, "7U", x, x1, labels)?;
    b.conv("conv77U", &[x], Conv::k3(labels))
}

fn layer(b: &mut Builder, number: &str, sources: &[Value], spec: Conv) -> Result<Value, GraphError> {
    let x = b.conv(&format!("conv{number}"), sources, spec)?;
    b.norm(&format!("batch{number}"), x, Some(SLOPE))
}

/// Upsamples to the skip's size, concatenates the skip, convolves.
fn up(b: &mut Builder, number: &str, x: Value, skip: Value, out: usize) -> Result<Value, GraphError> {
    let size = b.size(skip);
    let x = b.upsample(x, size)?;
    layer(b, number, &[x, skip], Conv::k3(out))
}

//! Convolutions on the host, sums in f64: slow and obvious.

use super::Conv3dConfig;
use crate::tensor::Tensor;

/// The sources behind each other along the channels.
pub(super) fn concatenate(sources: &[&Tensor]) -> Tensor {
    let [n, _, d, h, w] = sources[0].ncdhw();
    let channels = sources.iter().map(|s| s.shape[1]).sum();
    let mut out = Vec::with_capacity(n * channels * d * h * w);
    for i in 0..n {
        for source in sources {
            let size = source.shape[1] * d * h * w;
            out.extend_from_slice(&source.data[i * size..(i + 1) * size]);
        }
    }
    Tensor::new(&[n, channels, d, h, w], out)
}

/// One product of the sum: flat indices of an input element, a weight element and an output element.
struct Product {
    x: usize,
    w: usize,
    y: usize,
}

/// Calls `visit` for every product of the convolution.
fn products(
    config: &Conv3dConfig,
    x: [usize; 5],
    w: [usize; 5],
    y: [usize; 5],
    mut visit: impl FnMut(Product),
) {
    let input = |axis: usize, out: usize, tap: usize| {
        let at = out * config.stride[axis] + tap * config.dilation[axis];
        at.checked_sub(config.padding[axis]).filter(|i| *i < x[2 + axis])
    };
    let outputs_a_group = w[0] / config.groups;
    for n in 0..y[0] {
        for o in 0..y[1] {
            for local in 0..w[1] {
                let c = o / outputs_a_group * w[1] + local;
                for tap in 0..w[2] * w[3] * w[4] {
                    let (kz, ky, kx) = (tap / (w[3] * w[4]), tap / w[4] % w[3], tap % w[4]);
                    let w_at = (o * w[1] + local) * w[2] * w[3] * w[4] + tap;
                    for oz in 0..y[2] {
                        let Some(iz) = input(0, oz, kz) else { continue };
                        for oy in 0..y[3] {
                            let Some(iy) = input(1, oy, ky) else { continue };
                            let x_row = (((n * x[1] + c) * x[2] + iz) * x[3] + iy) * x[4];
                            let y_row = (((n * y[1] + o) * y[2] + oz) * y[3] + oy) * y[4];
                            for ox in 0..y[4] {
                                let Some(ix) = input(2, ox, kx) else { continue };
                                visit(Product {
                                    x: x_row + ix,
                                    w: w_at,
                                    y: y_row + ox,
                                });
                            }
                        }
                    }
                }
            }
        }
    }
}

fn rounded(shape: &[usize], sums: Vec<f64>) -> Tensor {
    Tensor::new(shape, sums.into_iter().map(|v| v as f32).collect())
}

pub(super) fn forward(config: &Conv3dConfig, x: &Tensor, w: &Tensor, bias: Option<&Tensor>) -> Tensor {
    let (xs, ws) = (x.ncdhw(), w.ncdhw());
    let size = [0, 1, 2].map(|a| {
        config
            .output(a, xs[2 + a], ws[2 + a])
            .expect("checked on insertion")
    });
    let shape = [xs[0], ws[0], size[0], size[1], size[2]];
    let volume: usize = size.iter().product();
    let mut sums: Vec<f64> = (0..shape.iter().product())
        .map(|i| bias.map_or(0.0, |b| b.data[i / volume % ws[0]] as f64))
        .collect();
    products(config, xs, ws, shape, |p| {
        sums[p.y] += w.data[p.w] as f64 * x.data[p.x] as f64;
    });
    rounded(&shape, sums)
}

/// With respect to the channels from `first` on that `source` `[N, C, D, H, W]` has.
pub(super) fn input_gradient(
    config: &Conv3dConfig,
    source: &[usize],
    first: usize,
    g: &Tensor,
    w: &Tensor,
) -> Tensor {
    let ws = w.ncdhw();
    let channels = ws[1] * config.groups;
    let whole = [source[0], channels, source[2], source[3], source[4]];
    let mut sums = vec![0.0; whole.iter().product()];
    products(config, whole, ws, g.ncdhw(), |p| {
        sums[p.x] += w.data[p.w] as f64 * g.data[p.y] as f64;
    });
    let volume: usize = source[2..].iter().product();
    let own = (0..source[0]).flat_map(|n| {
        let from = (n * channels + first) * volume;
        sums[from..from + source[1] * volume].to_vec()
    });
    rounded(source, own.collect())
}

pub(super) fn weight_gradient(config: &Conv3dConfig, weight: &[usize], x: &Tensor, g: &Tensor) -> Tensor {
    let ws: [usize; 5] = weight.try_into().expect("five axes");
    let mut sums = vec![0.0; weight.iter().product()];
    products(config, x.ncdhw(), ws, g.ncdhw(), |p| {
        sums[p.w] += g.data[p.y] as f64 * x.data[p.x] as f64;
    });
    rounded(weight, sums)
}

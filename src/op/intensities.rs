//! Changes of a scan's intensities: a curve, a smooth field that multiplies them (bias field), noise.

use super::random::{normal, stream_of};
use super::warp_grid::field;
use super::*;

params! {
    /// The uniform of `intensities.wgsl`.
    struct Params {
        /// N · C · D · H · W.
        count: u32,
        channels: u32,
        depth: u32,
        height: u32,
        width: u32,
        /// Of the field.
        d: u32,
        h: u32,
        w: u32,
        /// Numbers of a curve, its ends included.
        row: u32,
        id: u32,
    }
}

#[derive(Clone, Copy, Debug)]
struct Intensities {
    /// Tells the nodes of a graph apart.
    id: u32,
}

/// y = c₀ + (c(x) − c₀) · exp(b(p)) + σ · n(p). Inputs: an image, flat `[N, C, D, H, W]`; by batch item and channel a curve c, flat
/// `[N, C, 2 + K]`: the intensities of its first and last point, and its K values, between which it is linear, and constant
/// beyond them; σ, flat `[N, C]`; a field b, flat `[N, 1, d, h, w]`, trilinear between its voxels, whose corners are the image's.
/// c₀ is the curve's first value, n(p) are normal random numbers by seed, step, node and voxel. For augmentation: no gradient.
///
/// # Errors
/// Shapes that don't fit.
pub fn intensities(graph: &mut Graph, inputs: [Value; 4]) -> Result<Value, GraphError> {
    let id = graph.nodes().len() as u32;
    graph.push1(Intensities { id }, &inputs)
}

impl Op for Intensities {
    fn name(&self) -> &'static str {
        "intensities"
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>, GraphError> {
        if let [x, curve, noise, field] = inputs
            && let Some([n, c, ..]) = x.ncdhw()
            && x.layout == Layout::Flat
            && field.layout == Layout::Flat
            && curve.shape.len() == 3
            && curve.shape[..2] == [n, c]
            && curve.shape[2] >= 4
            && noise.shape == [n, c]
            && field.shape.len() == 5
            && field.shape[..2] == [n, 1]
        {
            return Ok(vec![x.clone()]);
        }
        Err(GraphError::shape(
            "intensities",
            inputs,
            "takes a flat image [N, C, D, H, W], curves [N, C, 2 + K] of two points or more, σ [N, C] and a field [N, 1, d, h, w]",
        ))
    }

    fn dispatches(&self, io: &mut Io, _: &Caps) -> Result<Vec<Dispatch>, GraphError> {
        use BufferRef::*;
        let [n, channels, depth, height, width] = io.inputs[0].ncdhw().expect("an image");
        let (curve, field) = (&io.inputs[1].shape, &io.inputs[3].shape);
        let count = n * channels * depth * height * width;
        Ok(vec![Dispatch {
            params: Params {
                count: int(count),
                channels: int(channels),
                depth: int(depth),
                height: int(height),
                width: int(width),
                d: int(field[2]),
                h: int(field[3]),
                w: int(field[4]),
                row: int(curve[2]),
                id: self.id,
            }
            .into(),
            bindings: vec![
                step(),
                read(Input(0)),
                read(Input(1)),
                read(Input(2)),
                read(Input(3)),
                write(Output(0)),
            ],
            workgroups: linear_groups(count, 64),
            flops: (count * 60) as u64,
            ..Dispatch::new(
                shader!("intensities", "common/random", "common/normal", "common/field"; Params, StepScalars),
                "main",
            )
        }])
    }

    fn reference(&self, inputs: &[&Tensor], step: &StepScalars) -> Vec<Tensor> {
        let [x, curve, noise, bias] = inputs[..] else {
            unreachable!("four inputs")
        };
        let [_, channels, d, h, w] = x.ncdhw();
        let coarse = [bias.shape[2], bias.shape[3], bias.shape[4]];
        let (volume, row) = (d * h * w, curve.shape[2]);
        let coarse_volume: usize = coarse.iter().product();
        let key = stream_of(self.id, step);
        vec![Tensor::from_fn(&x.shape, |i| {
            let slot = i / volume;
            let curve = &curve.data[slot * row..][..row];
            let (low, high, values) = (curve[0] as f64, curve[1] as f64, &curve[2..]);
            let last = (values.len() - 1) as f64;
            let at = ((x.data[i] as f64 - low) / (high - low) * last).clamp(0.0, last);
            let before = (at.floor() as usize).min(values.len() - 2);
            let share = at - before as f64;
            let value = values[before] as f64 * (1.0 - share) + values[before + 1] as f64 * share;
            let voxel = i % volume;
            let b = field(
                &bias.data[slot / channels * coarse_volume..][..coarse_volume],
                coarse,
                [voxel / w / h, voxel / w % h, voxel % w],
                [d, h, w],
            );
            let zero = values[0] as f64;
            (zero + (value - zero) * b.exp() + noise.data[slot] as f64 * normal(i as u32, key)) as f32
        })]
    }
}

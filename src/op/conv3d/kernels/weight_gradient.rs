//! The weight gradient of one source in two stages. In the first, chunks of the outputs each leave a partial sum; the second
//! (reduce.rs) adds them in order.

use super::axis::flatten;
use super::source::{Grouping, Source, pieces};
use super::{Axis, GROUP, Tile, WeightVariant};
use crate::graph::GraphError;
use crate::op::{BufferRef, Caps, Dispatch, Io, linear_groups, read, write};
use crate::tensor::Spec;

/// The weight gradient of one source.
pub struct WeightGradient {
    pub op: &'static str,
    pub axes: [Axis; 3],
    /// The source.
    pub x: (BufferRef, Spec),
    /// The upstream gradient, a map.
    pub g: (BufferRef, Spec),
    /// The weight's shape.
    pub weight: [usize; 5],
    /// First channel and number of channels of the source among the weight's inputs.
    pub source: (usize, usize),
    /// Whether the source is all the weight's inputs.
    pub whole: bool,
    pub groups: usize,
}

/// How invocations go through x and g: by rows along one axis, columns along the other.
pub struct Geometry {
    /// z, along columns, along rows.
    pub axes: [Axis; 3],
    /// Rows and columns of x and of g, and elements from one to the next.
    pub in_size: [usize; 2],
    pub size: [usize; 2],
    pub x_strides: [usize; 2],
    pub g_strides: [usize; 2],
    /// How x lies.
    pub source: Source,
}

/// What the dispatches of the first stage share.
pub struct Stage<'a> {
    pub gradient: &'a WeightGradient,
    pub variant: WeightVariant,
    pub geometry: Geometry,
    pub tile: Tile,
    /// Taps along y and x that an invocation unrolls, and loaded rows between two outputs.
    pub taps: usize,
    pub taps_x: usize,
    pub step: usize,
    pub block_groups: usize,
    pub grouping: Grouping,
    pub lanes: usize,
    pub lane_stride: usize,
    /// Vec4s that an invocation sums.
    pub sums: usize,
}

/// A dispatch of the first stage: its chunks, and the columns along y, or the strips of rows along x, that they divide.
pub struct Part {
    pub first_chunk: usize,
    pub chunks: usize,
    pub units: usize,
    pub units_a_chunk: usize,
    pub first_plane: usize,
    pub planes: usize,
    pub x_bytes: (u64, u64),
    pub g_bytes: (u64, u64),
}

impl WeightGradient {
    pub fn geometry(&self, along_x: bool) -> Geometry {
        let [_, _, _, h, w] = self.x.1.ncdhw().expect("checked on insertion");
        let [_, _, _, gh, gw] = self.g.1.ncdhw().expect("checked on insertion");
        let [az, ay, ax] = self.axes;
        let source = Source::of(&self.x.1);
        if along_x {
            return Geometry {
                axes: [az, ax, ay],
                in_size: [w, h],
                size: [gw, gh],
                x_strides: [1, w],
                g_strides: [1, gw],
                source,
            };
        }
        let (ay, ax, in_size, size) = flatten(ay, ax, [h, w], [gh, gw]);
        Geometry {
            axes: [az, ay, ax],
            in_size,
            size,
            x_strides: [in_size[1], 1],
            g_strides: [size[1], 1],
            source,
        }
    }

    pub fn dispatches(
        &self,
        variant: WeightVariant,
        io: &mut Io,
        caps: &Caps,
    ) -> Result<Vec<Dispatch>, GraphError> {
        let stage = Stage::new(self, variant);
        let [batch, _, depth, ..] = self.g.1.ncdhw().expect("checked on insertion");
        let planes = io.planes.clone().unwrap_or(0..batch * depth);
        let adds = planes.start > 0;
        let cut = pieces(self.op, planes, caps, |from, to| stage.touched(from, to))?;
        let (units_a_plane, steps_a_unit) = stage.units();
        // Chunks enough to occupy the device, few enough that the second stage stays small and fits a binding.
        let partial_bytes = (stage.block_groups * stage.sums * stage.lanes * 16) as u64;
        let occupied = if caps.target.is_cpu() { 2048 } else { 1 << 16 };
        let wanted = (occupied / (stage.lane_stride * stage.block_groups)).max(1);
        let most = (caps.max_binding / partial_bytes).max(1) as usize;
        let mut all_chunks = 0;
        let parts: Vec<Part> = cut
            .iter()
            .map(|piece| {
                let units = piece.planes * units_a_plane;
                let needed = (units * steps_a_unit).div_ceil(60_000);
                let chunks = (wanted.min(most) / cut.len()).max(needed).clamp(1, units);
                let chunks = units.div_ceil(units.div_ceil(chunks));
                all_chunks += chunks;
                Part {
                    first_chunk: all_chunks - chunks,
                    chunks,
                    units,
                    units_a_chunk: units.div_ceil(chunks),
                    first_plane: piece.first,
                    planes: piece.planes,
                    x_bytes: piece.bytes[0],
                    g_bytes: piece.bytes[1],
                }
            })
            .collect();
        let partial = io.scratch(partial_bytes * all_chunks as u64);
        let mut dispatches: Vec<_> = parts.iter().map(|part| stage.dispatch(part, partial)).collect();
        dispatches.push(stage.reduce(partial, all_chunks, adds));
        Ok(dispatches)
    }
}

impl<'a> Stage<'a> {
    pub fn new(gradient: &'a WeightGradient, variant: WeightVariant) -> Self {
        let tile = variant.tile();
        let geometry = gradient.geometry(variant.is_along_x());
        let [az, ay, ax] = geometry.axes;
        let (taps, step) = ay.unrolled();
        let taps_x = if matches!(variant, WeightVariant::Sliding(_)) {
            3
        } else {
            1
        };
        let (outputs, inputs) = (gradient.g.1.shape[1], gradient.weight[1] * gradient.groups);
        let source = &geometry.source;
        let grouping = Grouping::new(
            gradient.groups,
            gradient.whole,
            outputs,
            inputs,
            tile.blocks,
            source,
        );
        let lanes = grouping.blocks * az.taps * (ay.taps / taps) * (ax.taps / taps_x);
        Stage {
            gradient,
            variant,
            tile,
            taps,
            taps_x,
            step,
            block_groups: gradient.g.1.blocks().div_ceil(tile.blocks),
            grouping,
            lanes,
            lane_stride: match variant {
                WeightVariant::DirectLanes(_, subgroup) => lanes.next_multiple_of(subgroup as usize),
                _ => lanes,
            },
            sums: taps_x * taps * tile.blocks * source.channels,
            geometry,
        }
    }

    /// Whether subgroups of that many lanes gain by sharing upstream gradients. With few lanes most of a subgroup would idle.
    pub fn shares(&self, subgroup: u32) -> bool {
        // Instructions of a step for eight invocations, at 120 a load.
        const LOAD: usize = 120;
        let Tile { rows, blocks } = self.tile;
        let products = 2 * 4 * rows * self.sums;
        let shared = products + LOAD * (rows * self.step + (rows * blocks).div_ceil(8));
        let own = products + LOAD * (rows * self.step + rows * blocks);
        shared * self.lanes.next_multiple_of(subgroup as usize) <= own * self.lanes
    }

    /// Columns or strips of a plane, and steps of the innermost loop in each.
    fn units(&self) -> (usize, usize) {
        let [height, width] = self.geometry.size;
        let row_groups = height.div_ceil(self.tile.rows);
        match self.variant {
            WeightVariant::Sliding(_) => (row_groups, width + 2),
            _ => (width, row_groups),
        }
    }

    /// Bytes of x and g that output planes `from` to `to` (inclusive) touch.
    fn touched(&self, from: usize, to: usize) -> [(u64, u64); 2] {
        let (x, g) = (&self.gradient.x.1, &self.gradient.g.1);
        let (in_depth, depth, az) = (x.shape[2], g.shape[2], self.geometry.axes[0]);
        let low = from / depth * in_depth + az.sees(from % depth, from % depth, in_depth).0;
        let high = to / depth * in_depth + az.sees(to % depth, to % depth, in_depth).1;
        [
            self.geometry.source.range(x, low.min(high), high),
            Source::of(g).range(g, from, to),
        ]
    }

    fn dispatch(&self, part: &Part, partial: BufferRef) -> Dispatch {
        let gradient = self.gradient;
        let [az, ay, ax] = self.geometry.axes;
        let outputs = gradient.g.1.shape[1];
        let macs = gradient.source.1 * outputs / gradient.groups * (az.taps * ay.taps * ax.taps);
        let area: usize = self.geometry.size.iter().product();
        let [x, y, _] = linear_groups(self.lane_stride * part.chunks, GROUP);
        Dispatch {
            bindings: vec![
                read(gradient.x.0).range(part.x_bytes.0, part.x_bytes.1),
                read(gradient.g.0).range(part.g_bytes.0, part.g_bytes.1),
                write(partial),
            ],
            workgroups: [x, y, self.block_groups as u32],
            iterations: (part.units_a_chunk * (self.units().1 + 1)) as u64,
            flops: 2 * (macs * part.planes * area) as u64,
            ..self.kernel(part)
        }
    }
}

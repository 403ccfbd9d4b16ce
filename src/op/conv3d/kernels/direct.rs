//! conv3d.wgsl: the sum as it stands, a tile of points along y and of output blocks an invocation.

use super::axis::flatten;
use super::pack::Packing;
use super::source::{Grouping, Piece, Source, last_outputs, pieces};
use super::{Axis, GROUP, Lattice, Tile};
use crate::graph::GraphError;
use crate::op::{BufferRef, Caps, Dispatch, Io, Shader, int, linear_groups, params, read, shader, write};
use crate::tensor::Layout;

params! {
    struct Params {
        /// Tiles along y times points along x times planes.
        total: u32,
        /// Of the lattice, counted over the batch.
        first_plane: u32,
        /// Points of the lattice.
        depth: u32,
        height: u32,
        width: u32,
        /// Tiles along y.
        row_groups: u32,
        /// Size of x.
        in_depth: i32,
        in_height: i32,
        in_width: i32,
        in_blocks: u32,
        /// The element of x that the binding starts at.
        x_base: i32,
        x_stride_n: i32,
        x_stride_c: i32,
        x_stride_z: i32,
        /// The sum's axes: [`Axis`].
        start_z: i32,
        start_y: i32,
        start_x: i32,
        stride_z: i32,
        stride_y: i32,
        stride_x: i32,
        step_z: i32,
        step_y: i32,
        step_x: i32,
        /// Rows of x between two that are loaded.
        row_step: i32,
        /// Taps that are loops: along y, those that are not unrolled.
        taps_z: i32,
        taps_y: i32,
        taps_x: i32,
        /// Input blocks that an output sees, and the group's channels ([`Grouping`]).
        blocks: u32,
        group_outputs: u32,
        group_inputs: u32,
        /// Size of y.
        out_depth: u32,
        out_height: u32,
        out_width: u32,
        out_blocks: u32,
        /// Where the lattice lies in y: [`Axis`].
        offset_z: u32,
        offset_y: u32,
        offset_x: u32,
        scale_z: u32,
        scale_y: u32,
        scale_x: u32,
        /// The vec4 of y that the binding starts at.
        y_base: u32,
        /// The first vec4 of the bias behind the weights.
        bias_base: u32,
        /// 0: y = sum; 1: y = bias + sum; 2: y += sum.
        mode: u32,
        /// Channels between blocks: 4 in a map, whatever CHANNELS it has; 1 in an image.
        block_channels: u32,
        /// Of a leaky ReLU behind the sum; 1 for none.
        slope: f32,
    }
}

fn module(in_place: bool, x: Layout, lanes: bool) -> (Shader, &'static str) {
    macro_rules! direct {
        ($x:literal) => {
            match lanes {
                true => (shader!("conv3d", $x, "common/conv3d_lanes"; Params), "lanes"),
                false => (shader!("conv3d", $x, "common/conv3d_plain"; Params), "plain"),
            }
        };
    }
    match x {
        _ if in_place => direct!("common/conv3d_in_place"),
        Layout::Map => direct!("common/conv3d_map"),
        Layout::Flat => direct!("common/conv3d_image"),
    }
}

/// A lattice's axes, y and x as one where they can be, and the sizes of x and y on them.
pub struct Flat {
    pub axes: [Axis; 3],
    read: [usize; 3],
    written: [usize; 3],
}

/// What the dispatches of one lattice share.
struct Direct<'a> {
    lattice: &'a Lattice,
    flat: Flat,
    source: Source,
    target: Source,
    tile: Tile,
    block_groups: usize,
    grouping: Grouping,
    /// The bias's place behind the packed weights.
    bias_base: usize,
    /// Steps of the kernel's loop.
    steps: usize,
}

impl Lattice {
    pub fn flat(&self) -> Flat {
        let [_, _, in_depth, h, w] = self.x.1.ncdhw().expect("checked on insertion");
        let [_, _, out_depth, oh, ow] = self.y.1.ncdhw().expect("checked on insertion");
        let [az, ay, ax] = self.axes;
        let (ay, ax, [in_height, in_width], [out_height, out_width]) = flatten(ay, ax, [h, w], [oh, ow]);
        Flat {
            axes: [az, ay, ax],
            read: [in_depth, in_height, in_width],
            written: [out_depth, out_height, out_width],
        }
    }

    pub fn direct(
        &self,
        tile: Tile,
        lanes: bool,
        io: &mut Io,
        caps: &Caps,
    ) -> Result<Vec<Dispatch>, GraphError> {
        let flat = self.flat();
        let [az, ay, ax] = flat.axes;
        let (source, target) = (Source::of(&self.x.1), Source::of(&self.y.1));
        let (taps, _) = ay.unrolled();
        let block_groups = target.blocks.div_ceil(tile.blocks);
        let [w_out, w_in, ..] = self.weight.1;
        let [outputs, inputs] = match self.transposed {
            true => [w_in * self.groups, w_out],
            false => [w_out, w_in * self.groups],
        };
        let grouping = Grouping::new(self.groups, self.whole, outputs, inputs, tile.blocks, &source);
        let steps = az.taps * (ay.taps / taps) * ax.taps * grouping.blocks;
        let packed_len = block_groups * steps * tile.blocks * taps * source.channels;
        // Only lattices of all planes are asked for some.
        let planes = io.planes.clone().unwrap_or(0..self.x.1.shape[0] * az.count);
        let direct = Direct {
            lattice: self,
            flat,
            source,
            target,
            tile,
            block_groups,
            grouping,
            bias_base: packed_len,
            steps,
        };
        let cut = match pieces(self.op, planes, caps, |from, to| direct.touched(from, to)) {
            Err(_) if az.taps > 1 => return self.tap_by_tap(tile, lanes, io, caps),
            cut => cut?,
        };
        // Eight more: lanes read past the last weights.
        let packed = io.scratch(((packed_len + block_groups * tile.blocks + 8) * 16) as u64);
        let packing = Packing {
            blocks: tile.blocks,
            taps,
            channels: direct.source.channels,
            block_channels: direct.source.block_channels,
            in_blocks: direct.source.blocks,
            grouping,
            bias_base: packed_len,
        };
        let mut dispatches = Vec::new();
        if packed_len > 0 {
            dispatches.push(self.pack("main", self.weight.0, packed, packed_len, &packing));
        }
        if let Some(bias) = self.bias {
            dispatches.push(self.pack("bias", bias, packed, direct.target.blocks, &packing));
        }
        let of = |piece| direct.dispatch(piece, packed, lanes, io.in_place);
        dispatches.extend(cut.iter().map(of));
        Ok(dispatches)
    }

    /// One tap along z after the other, each added to the ones before: where the planes that lie between the taps of a dilated
    /// kernel exceed a binding.
    fn tap_by_tap(
        &self,
        tile: Tile,
        lanes: bool,
        io: &mut Io,
        caps: &Caps,
    ) -> Result<Vec<Dispatch>, GraphError> {
        let [az, ay, ax] = self.axes;
        let mut dispatches = Vec::new();
        for tap in 0..az.taps {
            let one = Axis {
                taps: 1,
                first: az.first + tap as i32 * az.tap_step,
                start: az.start + (tap * az.step) as i32,
                ..az
            };
            let lattice = Lattice {
                axes: [one, ay, ax],
                bias: self.bias.filter(|_| tap == 0),
                add: self.add || tap > 0,
                slope: if tap + 1 == az.taps { self.slope } else { 1.0 },
                ..self.clone()
            };
            dispatches.extend(lattice.direct(tile, lanes, io, caps)?);
        }
        Ok(dispatches)
    }
}

impl Direct<'_> {
    /// Bytes of x and y that lattice planes `from` to `to` (inclusive) touch.
    fn touched(&self, from: usize, to: usize) -> [(u64, u64); 2] {
        let az = self.flat.axes[0];
        let (in_depth, out_depth) = (self.flat.read[0], self.flat.written[0]);
        let (a, b) = (from % az.count, to % az.count);
        let low = from / az.count * in_depth + az.sees(a, a, in_depth).0;
        let high = to / az.count * in_depth + az.sees(b, b, in_depth).1;
        let plane_y = |p: usize| p / az.count * out_depth + az.offset + az.scale * (p % az.count);
        [
            self.source.range(&self.lattice.x.1, low.min(high), high),
            self.target.range(&self.lattice.y.1, plane_y(from), plane_y(to)),
        ]
    }

    fn dispatch(&self, piece: &Piece<2>, packed: BufferRef, lanes: bool, in_place: bool) -> Dispatch {
        let lattice = self.lattice;
        let [az, ay, ax] = self.flat.axes;
        let (taps, step) = ay.unrolled();
        let Tile { rows, blocks } = self.tile;
        let [x_bytes, y_bytes] = piece.bytes;
        let macs = lattice.source.1 * lattice.weight.1[0] / lattice.groups * az.taps * ay.taps * ax.taps;
        let params = self.params(piece);
        let [x, y, _] = linear_groups(params.total as usize, GROUP);
        let (module, entry) = module(in_place, lattice.x.1.layout, lanes);
        Dispatch {
            constants: vec![
                ("ROWS", rows as u32),
                ("BLOCKS", blocks as u32),
                ("TAPS", taps as u32),
                ("STEP", step as u32),
                ("LOOP_Y", (ay.taps > taps) as u32),
                (
                    "OUTPUTS",
                    last_outputs(lattice.y.1.shape[1], blocks, self.block_groups),
                ),
                ("CHANNELS", self.source.channels as u32),
            ],
            subgroups: lanes,
            params: params.into(),
            bindings: vec![
                // In place the shader has no binding 1.
                match in_place {
                    true => read(packed),
                    false => read(lattice.x.0).range(x_bytes.0, x_bytes.1),
                },
                read(packed),
                write(lattice.y.0).range(y_bytes.0, y_bytes.1),
            ],
            workgroups: [x, y, self.block_groups as u32],
            iterations: (self.steps + 2 * rows * blocks) as u64,
            flops: 2 * (macs * piece.planes * ay.count * ax.count) as u64,
            ..Dispatch::new(module, entry)
        }
    }

    fn params(&self, piece: &Piece<2>) -> Params {
        let [az, ay, ax] = self.flat.axes;
        let [in_depth, in_height, in_width] = self.flat.read;
        let [out_depth, out_height, out_width] = self.flat.written;
        let row_groups = ay.count.div_ceil(self.tile.rows);
        Params {
            total: int(piece.planes * row_groups * ax.count),
            first_plane: int(piece.first),
            depth: int(az.count),
            height: int(ay.count),
            width: int(ax.count),
            row_groups: int(row_groups),
            in_depth: int(in_depth),
            in_height: int(in_height),
            in_width: int(in_width),
            in_blocks: int(self.source.blocks),
            x_base: int(self.source.base(piece.bytes[0])),
            x_stride_n: int(self.source.strides[0]),
            x_stride_c: int(self.source.strides[1]),
            x_stride_z: int(self.source.strides[2]),
            start_z: az.start,
            start_y: ay.start,
            start_x: ax.start,
            stride_z: int(az.stride),
            stride_y: int(ay.stride),
            stride_x: int(ax.stride),
            step_z: int(az.step),
            step_y: int(ay.step),
            step_x: int(ax.step),
            row_step: int(ay.row_step()),
            taps_z: int(az.taps),
            taps_y: int(ay.taps / ay.unrolled().0),
            taps_x: int(ax.taps),
            blocks: int(self.grouping.blocks),
            group_outputs: self.grouping.outputs,
            group_inputs: self.grouping.inputs,
            out_depth: int(out_depth),
            out_height: int(out_height),
            out_width: int(out_width),
            out_blocks: int(self.target.blocks),
            offset_z: int(az.offset),
            offset_y: int(ay.offset),
            offset_x: int(ax.offset),
            scale_z: int(az.scale),
            scale_y: int(ay.scale),
            scale_x: int(ax.scale),
            y_base: int(self.target.base(piece.bytes[1])),
            bias_base: int(self.bias_base),
            mode: self.lattice.mode(),
            block_channels: int(self.source.block_channels),
            slope: self.lattice.slope,
        }
    }
}

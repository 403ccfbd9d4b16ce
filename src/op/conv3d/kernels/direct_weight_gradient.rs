//! conv3d_weight_gradient.wgsl: a first stage of the weight gradient whose invocations slide along the rows of columns.

use super::Tile;
use super::source::{Source, last_outputs};
use super::weight_gradient::{Geometry, Part, Stage};
use crate::op::{Dispatch, Shader, int, params, shader};
use crate::tensor::Layout;

params! {
    struct Params {
        /// Invocations that share an upstream gradient: (input block, kz, ky / TAPS, kx).
        lanes: u32,
        /// Invocations between chunks: lanes, or the next multiple of the subgroup size.
        lane_stride: u32,
        chunks: u32,
        first_chunk: u32,
        columns: u32,
        columns_a_chunk: u32,
        /// Of the outputs, counted over the batch.
        first_plane: u32,
        block_groups: u32,
        in_blocks: u32,
        /// Input blocks that an output sees, and the group's channels ([`Grouping`]).
        blocks: u32,
        group_outputs: u32,
        group_inputs: u32,
        /// Channels between blocks: 4 in a map, whatever CHANNELS it has; 1 in an image.
        block_channels: u32,
        /// Size of g; here and below, y is the axis that rows follow each other on.
        depth: i32,
        height: i32,
        width: i32,
        out_blocks: i32,
        /// The vec4 of g that the binding starts at.
        g_base: i32,
        /// Size of x.
        in_depth: i32,
        in_height: i32,
        in_width: i32,
        /// The element of x that the binding starts at.
        x_base: i32,
        x_stride_n: i32,
        x_stride_c: i32,
        x_stride_z: i32,
        x_stride_row: i32,
        x_stride_column: i32,
        g_stride_row: i32,
        g_stride_column: i32,
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
        /// Taps that lanes divide among themselves: along y, those that are not unrolled.
        taps_z: u32,
        taps_y: u32,
        taps_x: u32,
    }
}

fn module(x: Layout, lanes: bool) -> (Shader, &'static str) {
    macro_rules! direct {
        ($x:literal) => {
            match lanes {
                true => (shader!("conv3d_weight_gradient", $x, "common/conv3d_upstream_lanes"; Params), "lanes"),
                false => (shader!("conv3d_weight_gradient", $x, "common/conv3d_upstream_plain"; Params), "plain"),
            }
        };
    }
    match x {
        Layout::Map => direct!("common/conv3d_map"),
        Layout::Flat => direct!("common/conv3d_image"),
    }
}

impl Stage<'_> {
    /// Shader, constants and uniform. `lanes`: eight of them hand upstream gradients round by shuffles.
    pub fn direct(&self, part: &Part, lanes: bool) -> Dispatch {
        let Tile { rows, blocks } = self.tile;
        let outputs = self.gradient.g.1.shape[1];
        let (module, entry) = module(self.gradient.x.1.layout, lanes);
        Dispatch {
            constants: vec![
                ("ROWS", rows as u32),
                ("BLOCKS", blocks as u32),
                ("TAPS", self.taps as u32),
                ("STEP", self.step as u32),
                ("OUTPUTS", last_outputs(outputs, blocks, self.block_groups)),
                ("CHANNELS", self.geometry.source.channels as u32),
            ],
            subgroups: lanes,
            params: self.params(part).into(),
            ..Dispatch::new(module, entry)
        }
    }

    fn params(&self, part: &Part) -> Params {
        let (x, g) = (&self.gradient.x.1, &self.gradient.g.1);
        let Geometry {
            axes: [az, ay, ax],
            in_size,
            size,
            x_strides,
            g_strides,
            source,
        } = &self.geometry;
        Params {
            lanes: int(self.lanes),
            lane_stride: int(self.lane_stride),
            chunks: int(part.chunks),
            first_chunk: int(part.first_chunk),
            columns: int(part.units),
            columns_a_chunk: int(part.units_a_chunk),
            first_plane: int(part.first_plane),
            block_groups: int(self.block_groups),
            in_blocks: int(source.blocks),
            blocks: int(self.grouping.blocks),
            group_outputs: self.grouping.outputs,
            group_inputs: self.grouping.inputs,
            block_channels: int(source.block_channels),
            depth: int(g.shape[2]),
            height: int(size[0]),
            width: int(size[1]),
            out_blocks: int(g.blocks()),
            g_base: int(Source::of(g).base(part.g_bytes)),
            in_depth: int(x.shape[2]),
            in_height: int(in_size[0]),
            in_width: int(in_size[1]),
            x_base: int(source.base(part.x_bytes)),
            x_stride_n: int(source.strides[0]),
            x_stride_c: int(source.strides[1]),
            x_stride_z: int(source.strides[2]),
            x_stride_row: int(x_strides[0]),
            x_stride_column: int(x_strides[1]),
            g_stride_row: int(g_strides[0]),
            g_stride_column: int(g_strides[1]),
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
            taps_y: int(ay.taps / self.taps),
            taps_x: int(ax.taps),
        }
    }
}

//! conv3d_slide_weight_gradient.wgsl: a first stage of the weight gradient for up to four outputs and three taps without stride
//! along y and x, whose invocations slide along x over strips of rows.

use super::source::Source;
use super::weight_gradient::{Geometry, Part, Stage};
use crate::op::{Dispatch, int, params, shader};
use crate::tensor::Layout;

params! {
    struct Params {
        /// Invocations of a chunk: (input block, kz).
        lanes: u32,
        chunks: u32,
        first_chunk: u32,
        strips: u32,
        strips_a_chunk: u32,
        /// Of the outputs, counted over the batch.
        first_plane: u32,
        /// Strips of a plane.
        row_groups: u32,
        /// Size of g.
        depth: i32,
        height: i32,
        width: i32,
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
        /// The sum's axes: [`Axis`](super::Axis).
        start_z: i32,
        start_y: i32,
        start_x: i32,
        stride_z: i32,
        step_z: i32,
        taps_z: u32,
    }
}

impl Stage<'_> {
    /// Shader, constants and uniform.
    pub fn sliding(&self, part: &Part) -> Dispatch {
        let (x, g) = (&self.gradient.x.1, &self.gradient.g.1);
        let Geometry {
            axes: [az, ay, ax],
            in_size,
            size,
            source,
            ..
        } = &self.geometry;
        let params = Params {
            lanes: int(self.lanes),
            chunks: int(part.chunks),
            first_chunk: int(part.first_chunk),
            strips: int(part.units),
            strips_a_chunk: int(part.units_a_chunk),
            first_plane: int(part.first_plane),
            row_groups: int(size[0].div_ceil(self.tile.rows)),
            depth: int(g.shape[2]),
            height: int(size[0]),
            width: int(size[1]),
            g_base: int(Source::of(g).base(part.g_bytes)),
            in_depth: int(x.shape[2]),
            in_height: int(in_size[0]),
            in_width: int(in_size[1]),
            x_base: int(source.base(part.x_bytes)),
            x_stride_n: int(source.strides[0]),
            x_stride_c: int(source.strides[1]),
            x_stride_z: int(source.strides[2]),
            start_z: az.start,
            start_y: ay.start,
            start_x: ax.start,
            stride_z: int(az.stride),
            step_z: int(az.step),
            taps_z: int(az.taps),
        };
        let module = match x.layout {
            Layout::Map => shader!("conv3d_slide_weight_gradient", "common/conv3d_map"; Params),
            Layout::Flat => shader!("conv3d_slide_weight_gradient", "common/conv3d_image"; Params),
        };
        Dispatch {
            constants: vec![
                ("OUTPUTS", g.shape[1] as u32),
                ("CHANNELS", source.channels as u32),
            ],
            params: params.into(),
            ..Dispatch::new(module, "main")
        }
    }
}

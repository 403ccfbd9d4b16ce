//! conv3d_pack.wgsl: weights and biases in the order in which the kernels read them.

use super::source::Grouping;
use super::{GROUP, Lattice};
use crate::op::{BufferRef, Dispatch, int, linear_groups, params, read, shader, write};

params! {
    struct Params {
        /// Invocations.
        total: u32,
        /// The weight [Cout, Cin / groups, KD, KH, KW].
        weight_outputs: u32,
        weight_inputs: u32,
        kernel_z: u32,
        kernel_y: u32,
        kernel_x: u32,
        /// Outputs of a group of the weight.
        outputs_a_group: u32,
        /// First channel of this source among the weight's inputs over all groups, and its channels.
        source_first: u32,
        source_channels: u32,
        /// 1: outputs of the sum are the weight's inputs.
        transposed: u32,
        /// Tap k of the sum is tap first + k·step of the weight.
        first_z: i32,
        first_y: i32,
        first_x: i32,
        step_z: i32,
        step_y: i32,
        step_x: i32,
        /// Taps of the sum; along y, those that the kernel does not unroll.
        taps_z: u32,
        taps_y: u32,
        taps_x: u32,
        /// Input blocks that an output sees, and the group's channels ([`Grouping`]).
        blocks: u32,
        group_outputs: u32,
        group_inputs: u32,
        /// The first vec4 of the bias behind the weights.
        bias_base: u32,
        /// Channels between blocks: 4 in a map, whatever CHANNELS it has; 1 in an image.
        block_channels: u32,
        in_blocks: u32,
    }
}

/// How weights lie for a kernel.
pub struct Packing {
    pub blocks: usize,
    /// Taps along y that the kernel unrolls.
    pub taps: usize,
    /// Channels that lie together.
    pub channels: usize,
    pub block_channels: usize,
    pub in_blocks: usize,
    pub grouping: Grouping,
    /// Where the bias lies.
    pub bias_base: usize,
}

impl Lattice {
    pub fn pack(
        &self,
        entry: &'static str,
        from: BufferRef,
        to: BufferRef,
        total: usize,
        packing: &Packing,
    ) -> Dispatch {
        let [az, ay, ax] = self.axes;
        let [w_out, w_in, kd, kh, kw] = self.weight.1;
        let params = Params {
            total: int(total),
            weight_outputs: int(w_out),
            weight_inputs: int(w_in),
            kernel_z: int(kd),
            kernel_y: int(kh),
            kernel_x: int(kw),
            outputs_a_group: int(w_out / self.groups),
            source_first: int(self.source.0),
            source_channels: int(self.source.1),
            transposed: self.transposed as u32,
            first_z: az.first,
            first_y: ay.first,
            first_x: ax.first,
            step_z: az.tap_step,
            step_y: ay.tap_step,
            step_x: ax.tap_step,
            taps_z: int(az.taps),
            taps_y: int(ay.taps / packing.taps),
            taps_x: int(ax.taps),
            blocks: int(packing.grouping.blocks),
            group_outputs: packing.grouping.outputs,
            group_inputs: packing.grouping.inputs,
            bias_base: int(packing.bias_base),
            block_channels: int(packing.block_channels),
            in_blocks: int(packing.in_blocks),
        };
        Dispatch {
            constants: vec![
                ("BLOCKS", packing.blocks as u32),
                ("TAPS", packing.taps as u32),
                ("CHANNELS", packing.channels as u32),
            ],
            params: params.into(),
            bindings: vec![read(from), write(to)],
            workgroups: linear_groups(total, GROUP),
            ..Dispatch::new(shader!("conv3d_pack"; Params), entry)
        }
    }
}

//! conv3d_reduce.wgsl: the second stage of the weight gradient, which sums what the chunks of the first left.

use super::GROUP;
use super::weight_gradient::Stage;
use crate::op::{BufferRef, Dispatch, int, linear_groups, params, read, shader, write};

params! {
    struct Params {
        /// Vec4s of a chunk.
        total: u32,
        chunks: u32,
        lanes: u32,
        taps_z: u32,
        taps_y: u32,
        taps_x: u32,
        /// The weight [Cout, Cin / groups, KD, KH, KW]; KH is taps_y · TAPS, KW is taps_x · TAPS_X (ROWS_ALONG_X: KW and KH).
        outputs: u32,
        inputs: u32,
        outputs_a_group: u32,
        /// First channel of this source among the weight's inputs over all groups, and its channels.
        source_first: u32,
        source_channels: u32,
        /// Channels of a group ([`Grouping`](super::source::Grouping)).
        group_outputs: u32,
        group_inputs: u32,
        /// Channels between blocks: 4 in a map, whatever CHANNELS it has; 1 in an image.
        block_channels: u32,
        in_blocks: u32,
        /// Input blocks that an output sees.
        blocks: u32,
        /// 1: add to what other planes gave.
        add: u32,
    }
}

impl Stage<'_> {
    /// Adds the chunks in `partial` to the gradient, or writes it.
    pub fn reduce(&self, partial: BufferRef, chunks: usize, add: bool) -> Dispatch {
        let gradient = self.gradient;
        let (source, grouping) = (&self.geometry.source, &self.grouping);
        let [az, ay, ax] = self.geometry.axes;
        let (along_x, outputs) = (self.variant.is_along_x(), gradient.g.1.shape[1]);
        let total = self.block_groups * self.sums * self.lanes;
        let params = Params {
            total: int(total),
            chunks: int(chunks),
            lanes: int(self.lanes),
            taps_z: int(az.taps),
            taps_y: int(ay.taps / self.taps),
            taps_x: int(ax.taps / self.taps_x),
            outputs: int(outputs),
            inputs: int(gradient.weight[1]),
            outputs_a_group: int(outputs / gradient.groups),
            source_first: int(gradient.source.0),
            source_channels: int(gradient.source.1),
            group_outputs: grouping.outputs,
            group_inputs: grouping.inputs,
            block_channels: int(source.block_channels),
            in_blocks: int(source.blocks),
            blocks: int(grouping.blocks),
            add: add as u32,
        };
        // The first stage goes along x on a GPU alone, and a GPU needs a workgroup reduction to fill its time.
        let (entry, vectors) = if along_x {
            ("shared_sum", 16)
        } else {
            ("main", GROUP)
        };
        Dispatch {
            constants: vec![
                ("BLOCKS", self.tile.blocks as u32),
                ("TAPS", self.taps as u32),
                ("TAPS_X", self.taps_x as u32),
                ("CHANNELS", source.channels as u32),
                ("ROWS_ALONG_X", along_x as u32),
            ],
            params: params.into(),
            bindings: vec![read(partial), write(BufferRef::Output(0))],
            workgroups: linear_groups(total, vectors),
            iterations: (chunks + 20) as u64,
            flops: (total * chunks * 4) as u64,
            ..Dispatch::new(shader!("conv3d_reduce"; Params), entry)
        }
    }
}

//! conv3d_winograd.wgsl: Winograd's F(2×2, 3×3) along z and y on software Vulkan with subgroups of eight, of up to three
//! sources at once, and the labels of the highest outputs in place of the outputs.

use std::ops::Range;

use super::pack::Packing;
use super::source::{Grouping, Piece, Source, block_groups, last_outputs, pieces};
use super::{GROUP, Lattice, Pointwise};
use crate::graph::GraphError;
use crate::op::{
    Binding, BufferRef, Caps, Dispatch, Io, Shader, Target, int, linear_groups, params, read, shader, write,
};
use crate::tensor::{Layout, Spec};

/// Rows along y of an invocation, in each of two planes.
const ROWS: usize = 4;

params! {
    struct Params {
        /// Pairs of planes times tiles along y times points along x.
        total: u32,
        /// Of the outputs, counted over the batch.
        first_plane: u32,
        /// Behind the last, in the same entry of the batch.
        end_plane: u32,
        /// Size of the outputs.
        depth: u32,
        height: u32,
        width: u32,
        /// Tiles along y.
        row_groups: u32,
        /// Size of the sources.
        in_depth: i32,
        in_height: i32,
        /// Of each source: the element that its binding starts at, where its parts lie, and its channels.
        x_base: i32,
        x_stride_n: i32,
        x_stride_c: i32,
        x_stride_z: i32,
        channels: u32,
        x1_base: i32,
        x1_stride_n: i32,
        x1_stride_z: i32,
        x1_channels: u32,
        x2_base: i32,
        x2_stride_n: i32,
        x2_stride_z: i32,
        x2_channels: u32,
        /// The first plane and row that output 0 sees.
        start_z: i32,
        start_y: i32,
        out_blocks: u32,
        /// The element of the outputs that the binding starts at.
        y_base: u32,
        /// The first vec4 of the bias behind the weights.
        bias_base: u32,
        /// 0: y = sum; 1: y = bias + sum; 2: y += sum.
        mode: u32,
        /// Of a leaky ReLU behind the sum; 1 for none.
        slope: f32,
        /// Of a 1×1×1 convolution behind it, for labels: its outputs, and where its weights lie.
        classes: u32,
        pointwise_base: u32,
    }
}

fn module(x: Layout, sources: usize, labels: bool) -> Shader {
    macro_rules! winograd {
        ($x:literal, $sources:literal) => {
            match labels {
                true => shader!("conv3d_winograd", $x, $sources, "common/conv3d_lanes", "common/conv3d_labels"; Params),
                false => shader!("conv3d_winograd", $x, $sources, "common/conv3d_lanes", "common/conv3d_store"; Params),
            }
        };
    }
    match (x, sources) {
        (Layout::Flat, _) => winograd!("common/conv3d_image", "common/conv3d_sources1"),
        (Layout::Map, 1) => winograd!("common/conv3d_map", "common/conv3d_sources1"),
        (Layout::Map, 2) => winograd!("common/conv3d_map", "common/conv3d_sources2"),
        (Layout::Map, _) => winograd!("common/conv3d_map", "common/conv3d_sources3"),
    }
}

/// What the dispatches of one lattice share.
struct Winograd<'a> {
    lattice: &'a Lattice,
    sources: Vec<(BufferRef, &'a Spec, Source)>,
    /// The outputs, or the labels.
    written: &'a (BufferRef, Spec),
    target: Source,
    /// Blocks of outputs an invocation, and such groups.
    blocks: usize,
    block_groups: usize,
    channels: usize,
    packed: BufferRef,
}

impl Lattice {
    /// Whether conv3d_winograd.wgsl takes it: three taps without stride or dilation, and rows of the same length on both sides,
    /// because lanes beside each other hold neighbours along x.
    pub fn fits_winograd(&self, caps: &Caps) -> bool {
        let [_, _, ax] = self.axes;
        let packed = (self.winograd_weights() + 16 * self.y.1.blocks() + 8 * self.classes()) * 16;
        let mut sources = self.more.iter().chain([&self.x]);
        let joined = self.more.len() <= 2 && sources.all(|(_, s)| s.layout == Layout::Map);
        caps.target == Target::CpuLanes(8)
            && (self.more.is_empty() || joined)
            && packed as u64 <= caps.max_binding
            && self.groups == 1
            && self.axes.iter().all(|a| a.is_whole() && a.slides())
            && (ax.start, ax.count) == (-1, self.x.1.shape[4])
    }

    /// Vec4s that the weights take, packed: 16 combinations of three planes and rows for each tap along x.
    fn winograd_weights(&self) -> usize {
        let channels = |(_, spec): &(BufferRef, Spec)| spec.shape[1];
        let channels = channels(&self.x) + self.more.iter().map(channels).sum::<usize>();
        let (blocks, block_groups) = block_groups(self.y.1.blocks(), 4);
        block_groups * blocks * channels * 3 * 16
    }

    fn pointwise(&self) -> Option<&Pointwise> {
        self.labels.as_ref()?.pointwise.as_ref()
    }

    /// Outputs of the 1×1×1 convolution behind, if there is one.
    fn classes(&self) -> usize {
        self.pointwise().map_or(0, |pointwise| pointwise.weight.1[0])
    }

    pub fn winograd(&self, io: &mut Io, caps: &Caps) -> Result<Vec<Dispatch>, GraphError> {
        let az = self.axes[0];
        let written = self.labels.as_ref().map_or(&self.y, |labels| &labels.labels);
        let sources: Vec<_> = std::iter::once(&self.x)
            .chain(&self.more)
            .map(|(buffer, spec)| (*buffer, spec, Source::of(spec)))
            .collect();
        let (blocks, block_groups) = block_groups(self.y.1.blocks(), 4);
        // Eight more: lanes read past the last weights.
        let packed_len = self.winograd_weights() + block_groups * blocks + 8 * self.classes() + 8;
        let winograd = Winograd {
            lattice: self,
            channels: sources.iter().map(|(_, spec, _)| spec.shape[1]).sum(),
            sources,
            written,
            target: Source::of(&written.1),
            blocks,
            block_groups,
            packed: io.scratch((packed_len * 16) as u64),
        };
        let mut dispatches = winograd.pack();
        let planes = io.planes.clone().unwrap_or(0..self.x.1.shape[0] * az.count);
        for piece in pieces(self.op, planes, caps, |from, to| winograd.touched(from, to))? {
            // Pairs of planes lie in one entry of the batch.
            let last = piece.first + piece.planes;
            let mut from = piece.first;
            while from < last {
                let end = last.min((from / az.count + 1) * az.count);
                dispatches.push(winograd.dispatch(&piece, from..end));
                from = end;
            }
        }
        Ok(dispatches)
    }
}

impl Winograd<'_> {
    /// Where the weights of the 1×1×1 convolution lie, behind the bias.
    fn pointwise_base(&self) -> usize {
        self.lattice.winograd_weights() + self.block_groups * self.blocks
    }

    fn pack(&self) -> Vec<Dispatch> {
        let lattice = self.lattice;
        let packed_len = lattice.winograd_weights();
        let packing = Packing {
            blocks: self.blocks,
            taps: 3,
            channels: 1,
            block_channels: 1,
            in_blocks: self.channels,
            grouping: Grouping::none(self.channels),
            bias_base: packed_len,
        };
        let packed = self.packed;
        let mut dispatches =
            vec![lattice.pack("combined", lattice.weight.0, packed, packed_len / 16, &packing)];
        if let Some(bias) = lattice.bias {
            dispatches.push(lattice.pack("bias", bias, packed, lattice.y.1.blocks(), &packing));
        }
        if let Some(Pointwise { weight, bias }) = lattice.pointwise() {
            let behind = Lattice {
                weight: *weight,
                source: (0, weight.1[1]),
                ..lattice.clone()
            };
            let packing = Packing {
                bias_base: self.pointwise_base(),
                ..packing
            };
            let classes = lattice.classes();
            dispatches.push(behind.pack("pointwise", weight.0, packed, 4 * classes, &packing));
            dispatches.push(behind.pack("pointwise_bias", *bias, packed, classes, &packing));
        }
        dispatches
    }

    /// Bytes of the outputs and of each source that output planes `from` to `to` (inclusive) touch.
    fn touched(&self, from: usize, to: usize) -> [(u64, u64); 4] {
        let in_depth = self.lattice.x.1.shape[2];
        let seen = self.lattice.axes[0].planes_seen(&(from..to + 1), in_depth);
        let mut bytes = [(0, 0); 4];
        bytes[0] = self.target.range(&self.written.1, from, to);
        for (bytes, (_, spec, source)) in bytes[1..].iter_mut().zip(&self.sources) {
            *bytes = source.range(spec, seen.start, seen.end - 1);
        }
        bytes
    }

    /// The first source, the weights, what is written, then the other sources.
    fn bindings(&self, piece: &Piece<4>) -> Vec<Binding> {
        let [y_bytes, x_bytes @ ..] = piece.bytes;
        let sources = self.sources.iter().zip(x_bytes);
        let mut bindings: Vec<_> = sources
            .map(|((buffer, ..), (from, to))| read(*buffer).range(from, to))
            .collect();
        let written = write(self.written.0).range(y_bytes.0, y_bytes.1);
        bindings.splice(1..1, [read(self.packed), written]);
        bindings
    }

    fn dispatch(&self, piece: &Piece<4>, planes: Range<usize>) -> Dispatch {
        let lattice = self.lattice;
        let [_, ay, ax] = lattice.axes;
        let (outputs, classes) = (lattice.y.1.shape[1], lattice.classes());
        let labels = lattice.labels.is_some();
        let mut constants = vec![
            ("BLOCKS", self.blocks as u32),
            ("OUTPUTS", last_outputs(outputs, self.blocks, self.block_groups)),
            ("CHANNELS", self.sources[0].2.block_channels as u32),
            ("WRAPS", (ax.count % 8 > 0) as u32),
        ];
        if labels {
            constants.push(("POINTWISE", lattice.pointwise().is_some() as u32));
        }
        let macs = (self.channels * 27 + classes) * outputs;
        let flops = 2 * (macs * planes.len() * ay.count * ax.count) as u64;
        let params = self.params(piece, planes);
        let [x, y, _] = linear_groups(params.total as usize, GROUP);
        Dispatch {
            constants,
            subgroups: true,
            params: params.into(),
            bindings: self.bindings(piece),
            workgroups: [x, y, self.block_groups as u32],
            iterations: (self.channels * self.blocks + classes) as u64,
            flops,
            ..Dispatch::new(module(lattice.x.1.layout, self.sources.len(), labels), "lanes")
        }
    }

    fn params(&self, piece: &Piece<4>, planes: Range<usize>) -> Params {
        let lattice = self.lattice;
        let [az, ay, ax] = lattice.axes;
        let row_groups = ay.count.div_ceil(ROWS);
        // [base, stride of n, stride of z, channels], zero where there is no such source.
        let [x, x1, x2] = [0, 1, 2].map(|i| match self.sources.get(i) {
            Some((_, spec, s)) => [
                s.base(piece.bytes[1 + i]),
                s.strides[0],
                s.strides[2],
                spec.shape[1],
            ],
            None => [0; 4],
        });
        Params {
            total: int(planes.len().div_ceil(2) * row_groups * ax.count),
            first_plane: int(planes.start),
            end_plane: int(planes.end),
            depth: int(az.count),
            height: int(ay.count),
            width: int(ax.count),
            row_groups: int(row_groups),
            in_depth: int(lattice.x.1.shape[2]),
            in_height: int(lattice.x.1.shape[3]),
            x_base: int(x[0]),
            x_stride_n: int(x[1]),
            x_stride_c: int(self.sources[0].2.strides[1]),
            x_stride_z: int(x[2]),
            channels: int(x[3]),
            x1_base: int(x1[0]),
            x1_stride_n: int(x1[1]),
            x1_stride_z: int(x1[2]),
            x1_channels: int(x1[3]),
            x2_base: int(x2[0]),
            x2_stride_n: int(x2[1]),
            x2_stride_z: int(x2[2]),
            x2_channels: int(x2[3]),
            start_z: az.start,
            start_y: ay.start,
            out_blocks: int(lattice.y.1.blocks()),
            y_base: int(self.target.base(piece.bytes[0])),
            bias_base: int(lattice.winograd_weights()),
            mode: lattice.mode(),
            slope: lattice.slope,
            classes: int(lattice.classes()),
            pointwise_base: int(self.pointwise_base()),
        }
    }
}

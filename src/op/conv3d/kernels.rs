//! From a convolution to dispatches: which form of the kernels, how the weights are packed, how an oversize tensor is
//! cut along depth.

use std::ops::Range;

use super::Conv3dConfig;
use crate::graph::GraphError;
use crate::op::shader;
use crate::op::{self, Walk, params};
use crate::op::{
    BufferRef, Caps, Dispatch, Io, PLANES_AT_ONCE, Shader, Slices, Target, Word, linear_groups, read, slices,
    together, walk, walk_threads, write,
};
use crate::tensor::{ALIGNMENT, Layout, Spec};

/// Invocations below which a GPU has idle units, so that each rather has fewer outputs: 132 units of 256, say, since WebGPU tells
/// no number. From 2¹² to 2¹⁷ this is the fastest on an NVIDIA H200. The order of a sum does not depend on it.
const OCCUPANCY: usize = 1 << 15;
/// Invocations of every workgroup here.
const GROUP: usize = 64;
/// In place of the channels of a group where all blocks see all channels: first_output / this is 0.
const UNGROUPED: u32 = 1 << 30;

/// One axis of the sum in conv3d.wgsl: lattice points i < count at output `offset + scale·i` see input
/// `start + stride·i + step·k` through tap `first + tap_step·k` of the weight, k < taps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Axis {
    count: usize,
    taps: usize,
    first: i32,
    tap_step: i32,
    start: i32,
    stride: usize,
    step: usize,
    offset: usize,
    scale: usize,
}

impl Axis {
    pub(super) fn forward(config: &Conv3dConfig, axis: usize, outputs: usize, kernel: usize) -> Self {
        Axis {
            count: outputs,
            taps: kernel,
            first: 0,
            tap_step: 1,
            start: -(config.padding[axis] as i32),
            stride: config.stride[axis],
            step: config.dilation[axis],
            offset: 0,
            scale: 1,
        }
    }

    /// The input voxels q of one residue modulo the stride s see output p through tap k where q + padding − k·dilation =
    /// p·s. The taps that do are an arithmetic sequence, and so are their p: each residue is a convolution of its own.
    pub(super) fn gradient(config: &Conv3dConfig, axis: usize, inputs: usize, kernel: usize) -> Vec<Self> {
        let (stride, padding, dilation) = (
            config.stride[axis],
            config.padding[axis] as i32,
            config.dilation[axis] as i32,
        );
        let s = stride as i32;
        (0..stride.min(inputs))
            .map(|residue| {
                let ahead = |k: i32| residue as i32 + padding - k * dilation;
                // Descending taps, so that the outputs they reach ascend.
                let taps: Vec<i32> = (0..kernel as i32)
                    .rev()
                    .filter(|&k| ahead(k).rem_euclid(s) == 0)
                    .collect();
                let apart = if taps.len() > 1 { taps[0] - taps[1] } else { 0 };
                Axis {
                    count: (inputs - residue).div_ceil(stride),
                    taps: taps.len(),
                    first: taps.first().copied().unwrap_or(0),
                    tap_step: -apart,
                    start: taps.first().map_or(0, |&k| ahead(k) / s),
                    stride: 1,
                    step: (apart * dilation / s).max(1) as usize,
                    offset: residue,
                    scale: stride,
                }
            })
            .collect()
    }

    /// Input positions that lattice points from `from` to `to` (inclusive) see, clamped to the input.
    fn sees(&self, from: usize, to: usize, size: usize) -> (usize, usize) {
        let clamp = |v: i64| v.clamp(0, size as i64 - 1) as usize;
        let at = |i: usize, tap: usize| self.start as i64 + (i * self.stride + tap * self.step) as i64;
        (clamp(at(from, 0)), clamp(at(to, self.taps.saturating_sub(1))))
    }

    /// Input planes (n, z) that lattice planes read, of an input of that depth.
    pub(super) fn planes_seen(&self, planes: &Range<usize>, depth: usize) -> Range<usize> {
        let at = |plane: usize| {
            let (low, high) = self.sees(plane % self.count, plane % self.count, depth);
            (
                plane / self.count * depth + low,
                plane / self.count * depth + high,
            )
        };
        let (first, last) = (at(planes.start).0, at(planes.end - 1).1);
        first.min(last)..last + 1
    }

    /// Whether the lattice is all of what is written.
    pub(super) fn is_whole(&self) -> bool {
        (self.offset, self.scale) == (0, 1)
    }

    /// Whether each point sees itself alone.
    pub(super) fn is_pointwise(&self) -> bool {
        (self.taps, self.start, self.stride, self.offset, self.scale) == (1, 0, 1, 0, 1)
    }

    /// Taps that one invocation unrolls along this axis while they share rows, and the rows between two points.
    fn unrolled(&self) -> (usize, usize) {
        if (2..=3).contains(&self.taps) && self.step == 1 && self.stride <= 2 {
            (self.taps, self.stride)
        } else {
            (1, 1)
        }
    }

    /// Whether conv3d_winograd.wgsl and conv3d_slide_weight_gradient.wgsl cover it.
    fn slides(&self) -> bool {
        (self.taps, self.stride, self.step, self.offset, self.scale) == (3, 1, 1, 0, 1)
    }

    /// Input rows between two rows that the kernel loads.
    fn row_step(&self) -> usize {
        if self.unrolled().0 > 1 { 1 } else { self.stride }
    }
}

/// The axes y and x as one where neither has more than one tap, padding or stride, else as they are; and the sizes on
/// them of the tensors that the sums read and write. One long axis leaves few rows over when it is cut into ROWS.
fn flatten(
    ay: Axis,
    ax: Axis,
    read: [usize; 2],
    written: [usize; 2],
) -> (Axis, Axis, [usize; 2], [usize; 2]) {
    if !(ay.is_pointwise() && ax.is_pointwise() && read == written) {
        return (ay, ax, read, written);
    }
    let size = [read[0] * read[1], 1];
    let (y, x) = (Axis { count: size[0], ..ay }, Axis { count: 1, ..ax });
    (y, x, size, size)
}

/// Blocks of four outputs that an invocation owns (`most` at most), and how many such groups there are.
fn block_groups(out_blocks: usize, most: usize) -> (usize, usize) {
    let groups = out_blocks.div_ceil(most);
    let blocks = out_blocks.div_ceil(groups);
    (blocks, out_blocks.div_ceil(blocks))
}

/// Outputs in the last block where there is one group of blocks; 4, which is always right, where there are more.
fn last_outputs(outputs: usize, blocks: usize, block_groups: usize) -> u32 {
    if block_groups == 1 {
        (outputs - 4 * (blocks - 1)) as u32
    } else {
        4
    }
}

/// Whether no more than an eighth more rows lie past the last by eight than by four.
fn goes_by_eight(rows: usize) -> bool {
    8 * rows.next_multiple_of(8) < 9 * rows.next_multiple_of(4)
}

/// Whether weights and upstream gradients go round by shuffles. It pays on software Vulkan (64 against 22 GFLOP/s),
/// where a uniform address is read lane by lane; a GPU reads it once.
fn shuffles(caps: &Caps) -> bool {
    matches!(caps.target, Target::CpuLanes(_))
}

/// How a source of the kernels lies in memory.
struct Source {
    /// Channels that a load brings and the kernels multiply.
    channels: usize,
    /// Channels between blocks.
    block_channels: usize,
    /// Loads over all channels.
    blocks: usize,
    /// Elements between batch entries, channel blocks and planes.
    strides: [usize; 3],
    /// Bytes of a plane (n, z), `None` where planes are not contiguous.
    plane_bytes: Option<u64>,
    /// Bytes of an element.
    element: u64,
}

impl Source {
    fn of(spec: &Spec) -> Self {
        let [_, c, d, h, w] = spec.ncdhw().expect("checked on insertion");
        let area = h * w;
        match spec.layout {
            Layout::Map => {
                let blocks = spec.blocks();
                Source {
                    // Never 1: that is what tells an image's pipeline from a map's.
                    channels: c.clamp(2, 4),
                    block_channels: 4,
                    blocks,
                    strides: [d * blocks * area, area, blocks * area],
                    plane_bytes: spec.plane_bytes(),
                    element: 16,
                }
            }
            Layout::Flat => Source {
                channels: 1,
                block_channels: 1,
                blocks: c,
                strides: [c * d * area, d * area, area],
                plane_bytes: spec.plane_bytes(),
                element: 4,
            },
        }
    }

    /// The bytes that hold planes `from` to `to` (inclusive), from a multiple of what bindings may start at.
    fn range(&self, spec: &Spec, from: usize, to: usize) -> (u64, u64) {
        match self.plane_bytes {
            Some(bytes) => (
                from as u64 * bytes / ALIGNMENT * ALIGNMENT,
                (to as u64 + 1) * bytes,
            ),
            None => (0, spec.bytes()),
        }
    }
}

/// A range of lattice planes, and the bytes of the tensors that it touches.
struct Piece<const TENSORS: usize> {
    first: usize,
    planes: usize,
    bytes: [(u64, u64); TENSORS],
}

/// Cuts planes into the fewest equal pieces whose ranges fit [`Caps::part`], or else a binding.
fn pieces<const TENSORS: usize>(
    op: &'static str,
    all: Range<usize>,
    caps: &Caps,
    touched: impl Fn(usize, usize) -> [(u64, u64); TENSORS],
) -> Result<Vec<Piece<TENSORS>>, GraphError> {
    let planes = all.len();
    let cut = |count: usize| -> Vec<Piece<TENSORS>> {
        let each = match planes.div_ceil(count) {
            1 => 1,
            each => each.next_multiple_of(PLANES_AT_ONCE),
        };
        (0..planes.div_ceil(each))
            .map(|i| {
                let (first, end) = (all.start + i * each, all.end.min(all.start + (i + 1) * each));
                Piece {
                    first,
                    planes: end - first,
                    bytes: touched(first, end - 1),
                }
            })
            .collect()
    };
    let fits = |p: &Piece<TENSORS>, most: u64| p.bytes.iter().all(|(from, to)| to - from <= most);
    for most in [caps.part(), caps.max_binding] {
        let found = (1..=planes)
            .map(&cut)
            .find(|cut| cut.iter().all(|p| fits(p, most)));
        if let Some(found) = found {
            return Ok(found);
        }
    }
    let reason = format!(
        "one plane with all its channels exceeds this adapter's largest binding of {} MiB; use a smaller grid",
        caps.max_binding >> 20
    );
    Err(GraphError::Limit { op, reason })
}

/// Which input channels an output block group sees: how the kernels find the first, and how many blocks it has.
#[derive(Clone, Copy)]
struct Grouping {
    outputs: u32,
    inputs: u32,
    blocks: usize,
}

impl Grouping {
    /// All outputs see all `blocks`.
    fn none(blocks: usize) -> Self {
        Grouping {
            outputs: UNGROUPED,
            inputs: 0,
            blocks,
        }
    }

    /// Of `groups` groups over `outputs` and `inputs` channels where both are whole; `in_blocks` loads of `channels`.
    fn new(
        groups: usize,
        whole: bool,
        outputs: usize,
        inputs: usize,
        blocks: usize,
        source: &Source,
    ) -> Self {
        if groups == 1 || !whole {
            return Grouping::none(source.blocks);
        }
        let (out_each, in_each) = (outputs / groups, inputs / groups);
        let seen = (0..outputs.div_ceil(4 * blocks)).map(|g| {
            let first = g * 4 * blocks;
            let last = outputs.min(first + 4 * blocks) - 1;
            let end = ((last / out_each + 1) * in_each).div_ceil(source.block_channels);
            end - first / out_each * in_each / source.block_channels
        });
        Grouping {
            outputs: out_each as u32,
            inputs: in_each as u32,
            blocks: seen.max().expect("at least one output"),
        }
    }
}

/// The label of the highest output, of the convolution itself or of a 1×1×1 convolution with a bias behind it.
#[derive(Clone)]
pub(super) struct Labels {
    /// Flat, one channel.
    pub labels: (BufferRef, Spec),
    pub pointwise: Option<Pointwise>,
}

/// A 1×1×1 convolution with a bias.
#[derive(Clone)]
pub(super) struct Pointwise {
    /// `[L, C, 1, 1, 1]`.
    pub weight: (BufferRef, [usize; 5]),
    pub bias: BufferRef,
}

/// One dispatch family of conv3d.wgsl: a convolution, or the part of its input gradient for one residue.
#[derive(Clone)]
pub(super) struct Lattice {
    pub op: &'static str,
    pub axes: [Axis; 3],
    /// What the sum reads.
    pub x: (BufferRef, Spec),
    /// Sources behind x, all maps, that conv3d_winograd.wgsl reads too.
    pub more: Vec<(BufferRef, Spec)>,
    /// What it writes, a map.
    pub y: (BufferRef, Spec),
    /// What it writes in place of y.
    pub labels: Option<Labels>,
    /// The convolution's weight `[Cout, Cin / groups, KD, KH, KW]`.
    pub weight: (BufferRef, [usize; 5]),
    pub bias: Option<BufferRef>,
    /// Outputs are the weight's inputs.
    pub transposed: bool,
    /// First channel and number of channels of the source among the weight's inputs.
    pub source: (usize, usize),
    /// Whether the source is all the weight's inputs.
    pub whole: bool,
    pub groups: usize,
    /// Add to what is there.
    pub add: bool,
    /// Of a leaky ReLU behind the sum; 1 for none.
    pub slope: f32,
}

impl Lattice {
    pub(super) fn dispatches(&self, io: &mut Io, caps: &Caps) -> Result<Vec<Dispatch>, GraphError> {
        if self.is_winograd(caps) {
            return self.winograd(io, caps);
        }
        let az = self.axes[0];
        let (x_spec, y_spec) = (&self.x.1, &self.y.1);
        let [batch, _, in_depth, h, w] = x_spec.ncdhw().expect("checked on insertion");
        let [_, _, out_depth, oh, ow] = y_spec.ncdhw().expect("checked on insertion");
        let (ay, ax, [in_height, in_width], [out_height, out_width]) =
            flatten(self.axes[1], self.axes[2], [h, w], [oh, ow]);
        let source = Source::of(x_spec);
        let target = Source::of(y_spec);
        let out_blocks = target.blocks;
        let (taps, step) = ay.unrolled();
        let shuffle = shuffles(caps);
        // 64 sums an invocation: a GPU has registers for no more, and on a CPU 112 or 128 gain under 3 %. With one tap,
        // eight blocks halve the loads of x.
        let (mut blocks, mut block_groups) =
            block_groups(out_blocks, if shuffle && taps == 1 { 8 } else { 4 });
        let points = batch * az.count * ay.count * ax.count;
        // In place, an invocation has all outputs.
        let few = !caps.target.is_cpu() && !io.in_place && points / 4 * block_groups < OCCUPANCY;
        if few {
            (blocks, block_groups) = (1, out_blocks);
        }
        let taps_y = ay.taps / taps;
        let [w_out, w_in, ..] = self.weight.1;
        let all_inputs = w_in * self.groups;
        let grouping = if self.transposed {
            Grouping::new(self.groups, self.whole, all_inputs, w_out, blocks, &source)
        } else {
            Grouping::new(self.groups, self.whole, w_out, all_inputs, blocks, &source)
        };

        let steps = az.taps * taps_y * ax.taps * grouping.blocks;
        let packed_len = block_groups * steps * blocks * taps * source.channels;
        // Eight more: lanes read past the last weights.
        let packed = io.scratch(((packed_len + block_groups * blocks + 8) * 16) as u64);
        let mut dispatches = Vec::new();
        let packing = Packing {
            blocks,
            taps,
            channels: source.channels,
            block_channels: source.block_channels,
            in_blocks: source.blocks,
            grouping,
            bias_base: packed_len,
        };
        if packed_len > 0 {
            dispatches.push(self.pack("main", self.weight.0, packed, packed_len, &packing));
        }
        if let Some(bias) = self.bias {
            dispatches.push(self.pack("bias", bias, packed, out_blocks, &packing));
        }

        // On software Vulkan eight rows gain an eighth, unless more than that lies past the last; but the driver takes up to 2 s
        // to compile them the first time, longer than four, which small maps never win back.
        let large = caps.forms.texels && points >= 1 << 17 && goes_by_eight(ay.count);
        let rows = match () {
            _ if few && points / 4 * block_groups < OCCUPANCY => 1,
            _ if few => 4,
            _ if ay.count > 4 && blocks <= 2 || large && blocks <= 4 => 8,
            _ => 4,
        };
        let row_groups = ay.count.div_ceil(rows);
        let plane_y = |p: usize| p / az.count * out_depth + az.offset + az.scale * (p % az.count);
        let touched = |from: usize, to: usize| {
            let (a, b) = (from % az.count, to % az.count);
            let low = from / az.count * in_depth + az.sees(a, a, in_depth).0;
            let high = to / az.count * in_depth + az.sees(b, b, in_depth).1;
            [
                source.range(x_spec, low.min(high), high),
                target.range(y_spec, plane_y(from), plane_y(to)),
            ]
        };
        // Only lattices of all planes are asked for some.
        let planes = io.planes.clone().unwrap_or(0..batch * az.count);
        for piece in pieces(self.op, planes, caps, touched)? {
            let [x_bytes, y_bytes] = piece.bytes;
            let macs = self.source.1 * w_out / self.groups * az.taps * ay.taps * ax.taps;
            let strides = source.strides;
            let in_place = io.in_place;
            let bindings = vec![
                // In place the shader has no binding 1.
                match in_place {
                    true => read(packed),
                    false => read(self.x.0).range(x_bytes.0, x_bytes.1),
                },
                read(packed),
                write(self.y.0).range(y_bytes.0, y_bytes.1),
            ];
            let flops = 2 * (macs * piece.planes * ay.count * ax.count) as u64;
            let (module, entry) = match in_place {
                true => in_place_module(shuffle),
                false => forward_module(x_spec.layout, shuffle),
            };
            let total = piece.planes * row_groups * ax.count;
            let [x, y, _] = linear_groups(total, GROUP);
            let last = last_outputs(y_spec.shape[1], blocks, block_groups);
            dispatches.push(Dispatch {
                constants: vec![
                    ("ROWS", rows as u32),
                    ("BLOCKS", blocks as u32),
                    ("TAPS", taps as u32),
                    ("STEP", step as u32),
                    ("LOOP_Y", (taps_y > 1) as u32),
                    ("OUTPUTS", last),
                    ("CHANNELS", source.channels as u32),
                ],
                subgroups: shuffle,
                params: vec![
                    ("total", total.into()),
                    ("first_plane", piece.first.into()),
                    ("depth", az.count.into()),
                    ("height", ay.count.into()),
                    ("width", ax.count.into()),
                    ("row_groups", row_groups.into()),
                    ("in_depth", int(in_depth)),
                    ("in_height", int(in_height)),
                    ("in_width", int(in_width)),
                    ("in_blocks", source.blocks.into()),
                    ("x_base", int((x_bytes.0 / source.element) as usize)),
                    ("x_stride_n", int(strides[0])),
                    ("x_stride_c", int(strides[1])),
                    ("x_stride_z", int(strides[2])),
                    ("start_z", az.start.into()),
                    ("start_y", ay.start.into()),
                    ("start_x", ax.start.into()),
                    ("stride_z", int(az.stride)),
                    ("stride_y", int(ay.stride)),
                    ("stride_x", int(ax.stride)),
                    ("step_z", int(az.step)),
                    ("step_y", int(ay.step)),
                    ("step_x", int(ax.step)),
                    ("row_step", int(ay.row_step())),
                    ("taps_z", int(az.taps)),
                    ("taps_y", int(taps_y)),
                    ("taps_x", int(ax.taps)),
                    ("blocks", grouping.blocks.into()),
                    ("group_outputs", grouping.outputs.into()),
                    ("group_inputs", grouping.inputs.into()),
                    ("out_depth", out_depth.into()),
                    ("out_height", out_height.into()),
                    ("out_width", out_width.into()),
                    ("out_blocks", out_blocks.into()),
                    ("offset_z", az.offset.into()),
                    ("offset_y", ay.offset.into()),
                    ("offset_x", ax.offset.into()),
                    ("scale_z", az.scale.into()),
                    ("scale_y", ay.scale.into()),
                    ("scale_x", ax.scale.into()),
                    ("y_base", ((y_bytes.0 / 16) as usize).into()),
                    ("bias_base", packed_len.into()),
                    ("mode", self.mode().into()),
                    ("block_channels", source.block_channels.into()),
                    ("slope", self.slope.into()),
                ]
                .into(),
                bindings,
                workgroups: [x, y, block_groups as u32],
                iterations: (steps + 2 * rows * blocks) as u64,
                flops,
                ..Dispatch::new(module, entry)
            });
        }
        Ok(dispatches)
    }
    /// 0: y = sum; 1: y = bias + sum; 2: y += sum.
    fn mode(&self) -> u32 {
        match (self.add, self.bias) {
            (true, _) => 2,
            (false, Some(_)) => 1,
            (false, None) => 0,
        }
    }

    /// Vectors that Winograd's weights take, packed: 16 combinations of three planes and rows for each tap along x.
    fn winograd_weights(&self) -> usize {
        let channels = |(_, spec): &(BufferRef, Spec)| spec.shape[1];
        let channels = channels(&self.x) + self.more.iter().map(channels).sum::<usize>();
        let (blocks, block_groups) = block_groups(self.y.1.blocks(), 4);
        block_groups * blocks * channels * 3 * 16
    }

    /// Whether conv3d_winograd.wgsl takes it: lanes beside each other hold neighbours along x, in rows of the same length on
    /// both sides.
    pub(super) fn is_winograd(&self, caps: &Caps) -> bool {
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

    fn pointwise(&self) -> Option<&Pointwise> {
        self.labels.as_ref()?.pointwise.as_ref()
    }

    /// Outputs of the 1×1×1 convolution behind, if there is one.
    fn classes(&self) -> usize {
        self.pointwise().map_or(0, |pointwise| pointwise.weight.1[0])
    }

    /// Whether it can tell labels: an invocation of conv3d_winograd.wgsl has all outputs of its voxels.
    pub(super) fn has_labels(&self, caps: &Caps) -> bool {
        self.y.1.blocks() <= 4 && self.is_winograd(caps)
    }

    fn winograd(&self, io: &mut Io, caps: &Caps) -> Result<Vec<Dispatch>, GraphError> {
        const ROWS: usize = 4;
        let [az, ay, ax] = self.axes;
        let [batch, _, in_depth, in_height, _] = self.x.1.ncdhw().expect("checked on insertion");
        let (written, written_spec) = match &self.labels {
            Some(labels) => &labels.labels,
            None => &self.y,
        };
        let target = Source::of(written_spec);
        let sources: Vec<(BufferRef, &Spec, Source)> = std::iter::once(&self.x)
            .chain(&self.more)
            .map(|(buffer, spec)| (*buffer, spec, Source::of(spec)))
            .collect();
        let out_blocks = self.y.1.blocks();
        let (blocks, block_groups) = block_groups(out_blocks, 4);
        let channels: usize = sources.iter().map(|(_, spec, _)| spec.shape[1]).sum();
        let packed_len = self.winograd_weights();
        let pointwise = self.pointwise();
        let classes = self.classes();
        let pointwise_base = packed_len + block_groups * blocks;
        // Eight more: lanes read past the last weights.
        let packed = io.scratch(((pointwise_base + 8 * classes + 8) * 16) as u64);
        let packing = Packing {
            blocks,
            taps: 3,
            channels: 1,
            block_channels: 1,
            in_blocks: channels,
            grouping: Grouping::none(channels),
            bias_base: packed_len,
        };
        let mut dispatches = vec![self.pack("combined", self.weight.0, packed, packed_len / 16, &packing)];
        if let Some(bias) = self.bias {
            dispatches.push(self.pack("bias", bias, packed, out_blocks, &packing));
        }
        if let Some(Pointwise { weight, bias }) = pointwise {
            let lattice = Lattice {
                weight: *weight,
                source: (0, weight.1[1]),
                ..self.clone()
            };
            let behind = Packing {
                bias_base: pointwise_base,
                ..packing
            };
            dispatches.push(lattice.pack("pointwise", weight.0, packed, 4 * classes, &behind));
            dispatches.push(lattice.pack("pointwise_bias", *bias, packed, classes, &behind));
        }
        let row_groups = ay.count.div_ceil(ROWS);
        let touched = |from: usize, to: usize| {
            let seen = az.planes_seen(&(from..to + 1), in_depth);
            let mut bytes = [(0, 0); 4];
            bytes[0] = target.range(written_spec, from, to);
            for (bytes, (_, spec, source)) in bytes[1..].iter_mut().zip(&sources) {
                *bytes = source.range(spec, seen.start, seen.end - 1);
            }
            bytes
        };
        let outputs = last_outputs(self.y.1.shape[1], blocks, block_groups);
        let module = winograd_module(self.x.1.layout, sources.len(), self.labels.is_some());
        let macs = (channels * 27 + classes) * self.y.1.shape[1];
        let planes = io.planes.clone().unwrap_or(0..batch * az.count);
        for piece in pieces(self.op, planes, caps, touched)? {
            let (y_bytes, x_bytes) = (piece.bytes[0], &piece.bytes[1..]);
            let mut bindings = vec![read(packed), write(*written).range(y_bytes.0, y_bytes.1)];
            for (i, ((buffer, ..), bytes)) in sources.iter().zip(x_bytes).enumerate() {
                let at = if i == 0 { 0 } else { bindings.len() };
                bindings.insert(at, read(*buffer).range(bytes.0, bytes.1));
            }
            // [base, stride of n, stride of z, channels], zero where there is no such source.
            let place = |i: usize| match sources.get(i) {
                Some((_, spec, s)) => [
                    (x_bytes[i].0 / s.element) as usize,
                    s.strides[0],
                    s.strides[2],
                    spec.shape[1],
                ],
                None => [0; 4],
            };
            let [x, x1, x2] = [0, 1, 2].map(place);
            // Pairs of planes lie in one entry of the batch.
            let last = piece.first + piece.planes;
            let mut from = piece.first;
            while from < last {
                let end = last.min((from / az.count + 1) * az.count);
                let total = (end - from).div_ceil(2) * row_groups * ax.count;
                let [groups_x, groups_y, _] = linear_groups(total, GROUP);
                let mut constants = vec![
                    ("BLOCKS", blocks as u32),
                    ("OUTPUTS", outputs),
                    ("CHANNELS", sources[0].2.block_channels as u32),
                    ("WRAPS", (ax.count % 8 > 0) as u32),
                ];
                if self.labels.is_some() {
                    constants.push(("POINTWISE", pointwise.is_some() as u32));
                }
                dispatches.push(Dispatch {
                    constants,
                    subgroups: true,
                    params: vec![
                        ("total", total.into()),
                        ("first_plane", from.into()),
                        ("end_plane", end.into()),
                        ("depth", az.count.into()),
                        ("height", ay.count.into()),
                        ("width", ax.count.into()),
                        ("row_groups", row_groups.into()),
                        ("in_depth", int(in_depth)),
                        ("in_height", int(in_height)),
                        ("x_base", int(x[0])),
                        ("x_stride_n", int(x[1])),
                        ("x_stride_c", int(sources[0].2.strides[1])),
                        ("x_stride_z", int(x[2])),
                        ("channels", x[3].into()),
                        ("x1_base", int(x1[0])),
                        ("x1_stride_n", int(x1[1])),
                        ("x1_stride_z", int(x1[2])),
                        ("x1_channels", x1[3].into()),
                        ("x2_base", int(x2[0])),
                        ("x2_stride_n", int(x2[1])),
                        ("x2_stride_z", int(x2[2])),
                        ("x2_channels", x2[3].into()),
                        ("start_z", az.start.into()),
                        ("start_y", ay.start.into()),
                        ("out_blocks", out_blocks.into()),
                        ("y_base", ((y_bytes.0 / target.element) as usize).into()),
                        ("bias_base", packed_len.into()),
                        ("mode", self.mode().into()),
                        ("slope", self.slope.into()),
                        ("classes", classes.into()),
                        ("pointwise_base", pointwise_base.into()),
                    ]
                    .into(),
                    bindings: bindings.clone(),
                    workgroups: [groups_x, groups_y, block_groups as u32],
                    iterations: (channels * blocks + classes) as u64,
                    flops: 2 * (macs * (end - from) * ay.count * ax.count) as u64,
                    ..Dispatch::new(module, "lanes")
                });
                from = end;
            }
        }
        Ok(dispatches)
    }

    fn pack(
        &self,
        entry: &'static str,
        from: BufferRef,
        to: BufferRef,
        total: usize,
        packing: &Packing,
    ) -> Dispatch {
        let [az, ay, ax] = self.axes;
        let [w_out, w_in, kd, kh, kw] = self.weight.1;
        Dispatch {
            constants: vec![
                ("BLOCKS", packing.blocks as u32),
                ("TAPS", packing.taps as u32),
                ("CHANNELS", packing.channels as u32),
            ],
            params: vec![
                ("total", total.into()),
                ("weight_outputs", w_out.into()),
                ("weight_inputs", w_in.into()),
                ("kernel_z", kd.into()),
                ("kernel_y", kh.into()),
                ("kernel_x", kw.into()),
                ("outputs_a_group", (w_out / self.groups).into()),
                ("source_first", self.source.0.into()),
                ("source_channels", self.source.1.into()),
                ("transposed", (self.transposed as u32).into()),
                ("first_z", az.first.into()),
                ("first_y", ay.first.into()),
                ("first_x", ax.first.into()),
                ("step_z", az.tap_step.into()),
                ("step_y", ay.tap_step.into()),
                ("step_x", ax.tap_step.into()),
                ("taps_z", az.taps.into()),
                ("taps_y", (ay.taps / packing.taps).into()),
                ("taps_x", ax.taps.into()),
                ("blocks", packing.grouping.blocks.into()),
                ("group_outputs", packing.grouping.outputs.into()),
                ("group_inputs", packing.grouping.inputs.into()),
                ("bias_base", packing.bias_base.into()),
                ("block_channels", packing.block_channels.into()),
                ("in_blocks", packing.in_blocks.into()),
            ]
            .into(),
            bindings: vec![read(from), write(to)],
            workgroups: linear_groups(total, GROUP),
            ..Dispatch::new(shader!("conv3d_pack"), entry)
        }
    }
}

/// How conv3d_pack.wgsl lays weights out.
struct Packing {
    blocks: usize,
    /// Taps along y that a kernel unrolls.
    taps: usize,
    /// Channels that lie together.
    channels: usize,
    block_channels: usize,
    in_blocks: usize,
    grouping: Grouping,
    /// Where the bias lies.
    bias_base: usize,
}

/// The weight gradient of one source.
pub(super) struct WeightGradient {
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

impl WeightGradient {
    pub(super) fn dispatches(&self, io: &mut Io, caps: &Caps) -> Result<Vec<Dispatch>, GraphError> {
        let az = self.axes[0];
        let (x_spec, g_spec) = (&self.x.1, &self.g.1);
        let [batch, _, in_depth, h, w] = x_spec.ncdhw().expect("checked on insertion");
        let [_, outputs, depth, gh, gw] = g_spec.ncdhw().expect("checked on insertion");
        let (mut ay, mut ax, [mut in_height, mut in_width], [mut height, mut width]) = if caps.target.is_cpu()
        {
            flatten(self.axes[1], self.axes[2], [h, w], [gh, gw])
        } else {
            (self.axes[1], self.axes[2], [h, w], [gh, gw])
        };
        let (mut x_strides, mut g_strides) = ([in_width, 1], [width, 1]);
        // A GPU brings whole cache lines: there the rows that an invocation goes through lie along x. And it needs many
        // invocations, which is why y and x stay two axes.
        let along_x = !caps.target.is_cpu();
        if along_x {
            (ay, ax) = (ax, ay);
            for pair in [(&mut in_height, &mut in_width), (&mut height, &mut width)] {
                std::mem::swap(pair.0, pair.1);
            }
            x_strides.reverse();
            g_strides.reverse();
        }
        let source = Source::of(x_spec);
        let upstream = Source::of(g_spec);
        let out_blocks = upstream.blocks;
        let (taps, step) = ay.unrolled();
        // On a CPU 192 sums an invocation are best (85 GFLOP/s against 65 with 96); a GPU has 256 registers at most, and
        // sums of outputs that there are not take none.
        let most = match (shuffles(caps), taps) {
            (true, 1) => 8,
            _ if caps.target.is_cpu() => 4,
            _ if taps * source.channels * outputs <= 144 => 4,
            _ => 2,
        };
        let (blocks, block_groups) = block_groups(out_blocks, most);
        let taps_y = ay.taps / taps;
        let w_in = self.weight[1];
        let grouping = Grouping::new(
            self.groups,
            self.whole,
            outputs,
            w_in * self.groups,
            blocks,
            &source,
        );
        // A GPU takes longer for four rows, unless many of eight lie past the last: 5.1 and 4.1 ms in the hybrid's step at 144³
        // on an NVIDIA H200.
        let rows = if blocks == 1 || !caps.target.is_cpu() && goes_by_eight(height) {
            8
        } else {
            4
        };
        let slide = caps.target.is_cpu() && out_blocks == 1 && [ay, ax].iter().all(Axis::slides);
        let taps_x = if slide { 3 } else { 1 };
        let sums = taps_x * taps * blocks * source.channels;

        let lanes = grouping.blocks * az.taps * taps_y * (ax.taps / taps_x);
        // Invocations between chunks, so that a subgroup has one.
        let subgroup = match caps.target {
            Target::CpuLanes(lanes) => lanes as usize,
            _ => 8,
        };
        let shared_stride = lanes.next_multiple_of(subgroup);
        // With few lanes most of a subgroup would idle; then each invocation reads its own g. Instructions of a step for
        // eight invocations, at 120 a load.
        let products = 2 * 4 * rows * sums;
        let load = 120;
        let shared = (products + load * (rows * step + (rows * blocks).div_ceil(8))) * shared_stride;
        let own = (products + load * (rows * step + rows * blocks)) * lanes;
        let shuffle = shuffles(caps) && !slide && shared <= own;
        let lane_stride = if shuffle { shared_stride } else { lanes };

        let touched = |from: usize, to: usize| {
            let low = from / depth * in_depth + az.sees(from % depth, from % depth, in_depth).0;
            let high = to / depth * in_depth + az.sees(to % depth, to % depth, in_depth).1;
            [
                source.range(x_spec, low.min(high), high),
                upstream.range(g_spec, from, to),
            ]
        };
        let planes = io.planes.clone().unwrap_or(0..batch * depth);
        let adds = planes.start > 0;
        let cut = pieces(self.op, planes, caps, touched)?;

        // Chunks enough to occupy the device, few enough that the second stage stays small and fits a binding.
        let partial_bytes = (block_groups * sums * lanes * 16) as u64;
        let occupied = if caps.target.is_cpu() { 2048 } else { 1 << 16 };
        let wanted = (occupied / (lane_stride * block_groups)).max(1);
        let most = (caps.max_binding / partial_bytes).max(1) as usize;
        // A chunk is a number of columns along y, or of strips of rows along x.
        let row_groups = height.div_ceil(rows);
        let (units_a_plane, steps_a_unit) = if slide {
            (row_groups, width + 2)
        } else {
            (width, row_groups)
        };
        let chunks_of = |units: usize| {
            let needed = (units * steps_a_unit).div_ceil(60_000);
            let chunks = (wanted.min(most) / cut.len()).max(needed).clamp(1, units);
            units.div_ceil(units.div_ceil(chunks))
        };
        let chunks: Vec<usize> = cut.iter().map(|p| chunks_of(p.planes * units_a_plane)).collect();
        let all_chunks: usize = chunks.iter().sum();
        let partial = io.scratch(partial_bytes * all_chunks as u64);

        let (module, entry) = weight_gradient_module(x_spec.layout, shuffle);
        let mut dispatches = Vec::new();
        let mut first_chunk = 0;
        for (piece, &chunks) in cut.iter().zip(&chunks) {
            let units = piece.planes * units_a_plane;
            let [x_bytes, g_bytes] = piece.bytes;
            let each = units.div_ceil(chunks);
            let [x, y, _] = linear_groups(lane_stride * chunks, GROUP);
            let strides = source.strides;
            let bindings = vec![
                read(self.x.0).range(x_bytes.0, x_bytes.1),
                read(self.g.0).range(g_bytes.0, g_bytes.1),
                write(partial),
            ];
            let iterations = (each * (steps_a_unit + 1)) as u64;
            let macs = self.source.1 * outputs / self.groups * (az.taps * ay.taps * ax.taps);
            let flops = 2 * (macs * piece.planes * height * width) as u64;
            first_chunk += chunks;
            if slide {
                dispatches.push(Dispatch {
                    constants: vec![("OUTPUTS", outputs as u32), ("CHANNELS", source.channels as u32)],
                    params: vec![
                        ("lanes", lanes.into()),
                        ("chunks", chunks.into()),
                        ("first_chunk", (first_chunk - chunks).into()),
                        ("strips", units.into()),
                        ("strips_a_chunk", each.into()),
                        ("first_plane", piece.first.into()),
                        ("row_groups", row_groups.into()),
                        ("depth", int(depth)),
                        ("height", int(height)),
                        ("width", int(width)),
                        ("g_base", int((g_bytes.0 / 16) as usize)),
                        ("in_depth", int(in_depth)),
                        ("in_height", int(in_height)),
                        ("in_width", int(in_width)),
                        ("x_base", int((x_bytes.0 / source.element) as usize)),
                        ("x_stride_n", int(strides[0])),
                        ("x_stride_c", int(strides[1])),
                        ("x_stride_z", int(strides[2])),
                        ("start_z", az.start.into()),
                        ("start_y", ay.start.into()),
                        ("start_x", ax.start.into()),
                        ("stride_z", int(az.stride)),
                        ("step_z", int(az.step)),
                        ("taps_z", az.taps.into()),
                    ]
                    .into(),
                    bindings,
                    workgroups: [x, y, 1],
                    iterations,
                    flops,
                    ..Dispatch::new(slide_weight_gradient_module(x_spec.layout), "main")
                });
                continue;
            }
            dispatches.push(Dispatch {
                constants: vec![
                    ("ROWS", rows as u32),
                    ("BLOCKS", blocks as u32),
                    ("TAPS", taps as u32),
                    ("STEP", step as u32),
                    ("OUTPUTS", last_outputs(outputs, blocks, block_groups)),
                    ("CHANNELS", source.channels as u32),
                ],
                subgroups: shuffle,
                params: vec![
                    ("lanes", lanes.into()),
                    ("lane_stride", lane_stride.into()),
                    ("chunks", chunks.into()),
                    ("first_chunk", (first_chunk - chunks).into()),
                    ("columns", units.into()),
                    ("columns_a_chunk", each.into()),
                    ("first_plane", piece.first.into()),
                    ("block_groups", block_groups.into()),
                    ("in_blocks", source.blocks.into()),
                    ("blocks", grouping.blocks.into()),
                    ("group_outputs", grouping.outputs.into()),
                    ("group_inputs", grouping.inputs.into()),
                    ("block_channels", source.block_channels.into()),
                    ("depth", int(depth)),
                    ("height", int(height)),
                    ("width", int(width)),
                    ("out_blocks", int(out_blocks)),
                    ("g_base", int((g_bytes.0 / 16) as usize)),
                    ("in_depth", int(in_depth)),
                    ("in_height", int(in_height)),
                    ("in_width", int(in_width)),
                    ("x_base", int((x_bytes.0 / source.element) as usize)),
                    ("x_stride_n", int(strides[0])),
                    ("x_stride_c", int(strides[1])),
                    ("x_stride_z", int(strides[2])),
                    ("x_stride_row", int(x_strides[0])),
                    ("x_stride_column", int(x_strides[1])),
                    ("g_stride_row", int(g_strides[0])),
                    ("g_stride_column", int(g_strides[1])),
                    ("start_z", az.start.into()),
                    ("start_y", ay.start.into()),
                    ("start_x", ax.start.into()),
                    ("stride_z", int(az.stride)),
                    ("stride_y", int(ay.stride)),
                    ("stride_x", int(ax.stride)),
                    ("step_z", int(az.step)),
                    ("step_y", int(ay.step)),
                    ("step_x", int(ax.step)),
                    ("row_step", int(ay.row_step())),
                    ("taps_z", az.taps.into()),
                    ("taps_y", taps_y.into()),
                    ("taps_x", ax.taps.into()),
                ]
                .into(),
                bindings,
                workgroups: [x, y, block_groups as u32],
                iterations,
                flops,
                ..Dispatch::new(module, entry)
            });
        }
        let total = block_groups * sums * lanes;
        let (entry, vectors) = if caps.target.is_cpu() {
            ("main", GROUP)
        } else {
            ("shared_sum", 16)
        };
        dispatches.push(Dispatch {
            constants: vec![
                ("BLOCKS", blocks as u32),
                ("TAPS", taps as u32),
                ("TAPS_X", taps_x as u32),
                ("CHANNELS", source.channels as u32),
                ("ROWS_ALONG_X", along_x as u32),
            ],
            params: vec![
                ("total", total.into()),
                ("chunks", all_chunks.into()),
                ("lanes", lanes.into()),
                ("taps_z", az.taps.into()),
                ("taps_y", taps_y.into()),
                ("taps_x", (ax.taps / taps_x).into()),
                ("outputs", outputs.into()),
                ("inputs", w_in.into()),
                ("outputs_a_group", (outputs / self.groups).into()),
                ("source_first", self.source.0.into()),
                ("source_channels", self.source.1.into()),
                ("group_outputs", grouping.outputs.into()),
                ("group_inputs", grouping.inputs.into()),
                ("block_channels", source.block_channels.into()),
                ("in_blocks", source.blocks.into()),
                ("blocks", grouping.blocks.into()),
                ("add", (adds as u32).into()),
            ]
            .into(),
            bindings: vec![read(partial), write(BufferRef::Output(0))],
            workgroups: linear_groups(total, vectors),
            iterations: (all_chunks + 20) as u64,
            flops: (total * all_chunks * 4) as u64,
            ..Dispatch::new(shader!("conv3d_reduce"), entry)
        });
        Ok(dispatches)
    }
}

params! {
    /// The uniform of `conv3d_bias_gradient.wgsl`.
    struct BiasGradient {
        walk: Walk,
        /// Position of this dispatch's partials.
        first: u32,
        /// Partials a block, over all dispatches.
        partials: u32,
    }
}

/// Both stages of the bias gradient of input 0.
pub(super) fn bias_gradient(io: &mut Io, caps: &Caps) -> Vec<Dispatch> {
    let spec = &io.inputs[0];
    let (blocks, plane) = (spec.blocks(), spec.shape[3] * spec.shape[4]);
    let runs = slices(&[spec], caps);
    let threads = |run: &Slices| walk_threads(run.count * plane, blocks, caps);
    let (each, together) = together(caps);
    let partials = runs.iter().map(threads).sum::<usize>() / each;
    let sums = io.scratch((blocks * partials * 16) as u64);
    let params = |slices: usize, threads: usize, first: usize| BiasGradient {
        walk: walk(slices, plane, blocks, threads),
        first: op::int(first),
        partials: op::int(partials),
    };
    let shader = shader!(
        "conv3d_bias_gradient",
        "common/sum64",
        "common/together",
        "common/walk"; BiasGradient
    );
    let mut first = 0;
    let mut dispatches: Vec<Dispatch> = runs
        .iter()
        .map(|run| {
            let threads = threads(run);
            first += threads / each;
            Dispatch {
                constants: vec![together],
                params: params(run.count, threads, first - threads / each).into(),
                bindings: vec![run.of(spec, read(BufferRef::Input(0))), write(sums)],
                workgroups: [(threads / GROUP) as u32, blocks as u32, 1],
                iterations: (run.count * plane).div_ceil(threads) as u64,
                flops: (run.count * plane * blocks * 4) as u64,
                ..Dispatch::new(shader, "partial")
            }
        })
        .collect();
    dispatches.push(Dispatch {
        params: params(1, partials, 0).into(),
        bindings: vec![read(sums), write(BufferRef::Output(0))],
        workgroups: [blocks as u32, 1, 1],
        iterations: partials.div_ceil(GROUP) as u64 + 6,
        flops: (partials * blocks * 4) as u64,
        ..Dispatch::new(shader, "reduce")
    });
    dispatches
}

fn forward_module(x: Layout, shuffle: bool) -> (Shader, &'static str) {
    match (x, shuffle) {
        (Layout::Map, true) => (
            shader!("conv3d", "common/conv3d_map", "common/conv3d_lanes"),
            "lanes",
        ),
        (Layout::Map, false) => (
            shader!("conv3d", "common/conv3d_map", "common/conv3d_plain"),
            "plain",
        ),
        (Layout::Flat, true) => (
            shader!("conv3d", "common/conv3d_image", "common/conv3d_lanes"),
            "lanes",
        ),
        (Layout::Flat, false) => (
            shader!("conv3d", "common/conv3d_image", "common/conv3d_plain"),
            "plain",
        ),
    }
}

/// The kernel of [`in_place`].
fn in_place_module(shuffle: bool) -> (Shader, &'static str) {
    match shuffle {
        true => (
            shader!("conv3d", "common/conv3d_in_place", "common/conv3d_lanes"),
            "lanes",
        ),
        false => (
            shader!("conv3d", "common/conv3d_in_place", "common/conv3d_plain"),
            "plain",
        ),
    }
}

/// Whether a convolution of one source, or its input gradient, may write over what it reads: each invocation then reads all
/// channels of its voxels, and of no others, before it writes them.
pub(super) fn in_place(axes: &[Axis; 3], x: &Spec, y: &Spec, groups: usize) -> bool {
    let blocks = y.blocks();
    axes.iter().all(Axis::is_pointwise)
        && groups == 1
        && x.layout == Layout::Map
        && x.blocks() == blocks
        && blocks <= 4
}

fn winograd_module(x: Layout, sources: usize, labels: bool) -> Shader {
    macro_rules! winograd {
        ($x:literal, $sources:literal) => {
            if labels {
                shader!(
                    "conv3d_winograd",
                    $x,
                    $sources,
                    "common/conv3d_lanes",
                    "common/conv3d_labels"
                )
            } else {
                shader!(
                    "conv3d_winograd",
                    $x,
                    $sources,
                    "common/conv3d_lanes",
                    "common/conv3d_store"
                )
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

fn slide_weight_gradient_module(x: Layout) -> Shader {
    match x {
        Layout::Map => shader!("conv3d_slide_weight_gradient", "common/conv3d_map"),
        Layout::Flat => shader!("conv3d_slide_weight_gradient", "common/conv3d_image"),
    }
}

fn weight_gradient_module(x: Layout, shuffle: bool) -> (Shader, &'static str) {
    match (x, shuffle) {
        (Layout::Map, true) => (
            shader!(
                "conv3d_weight_gradient",
                "common/conv3d_map",
                "common/conv3d_upstream_lanes"
            ),
            "lanes",
        ),
        (Layout::Map, false) => (
            shader!(
                "conv3d_weight_gradient",
                "common/conv3d_map",
                "common/conv3d_upstream_plain"
            ),
            "plain",
        ),
        (Layout::Flat, true) => (
            shader!(
                "conv3d_weight_gradient",
                "common/conv3d_image",
                "common/conv3d_upstream_lanes"
            ),
            "lanes",
        ),
        (Layout::Flat, false) => (
            shader!(
                "conv3d_weight_gradient",
                "common/conv3d_image",
                "common/conv3d_upstream_plain"
            ),
            "plain",
        ),
    }
}

/// A size as the kernels' signed coordinates take it.
fn int(size: usize) -> Word {
    Word::I32(i32::try_from(size).expect("sizes on the device fit 31 bits"))
}

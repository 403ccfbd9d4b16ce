//! Which kernels a convolution and its gradients run: for each of them one function from shapes and the target to a variant
//! with a name, and from there to dispatches. A variant is a file here, a kernel in shaders/, and its lines below.

mod axis;
mod bias_gradient;
mod direct;
mod direct_weight_gradient;
mod pack;
mod reduce;
mod sliding_weight_gradient;
mod source;
mod weight_gradient;
mod winograd;

use crate::graph::GraphError;
use crate::op::{BufferRef, Caps, Dispatch, Io, Target, workgroup_reduction};
use crate::tensor::{Layout, Spec};

pub use axis::Axis;
pub use bias_gradient::bias_gradient;
use source::block_groups;
pub use weight_gradient::WeightGradient;
use weight_gradient::{Part, Stage};

/// Invocations below which a GPU has idle units, so that each rather has fewer outputs. WebGPU does not say how many it has;
/// benches/conv3d.md says what was measured. The order of a sum does not depend on it.
const OCCUPANCY: usize = 1 << 15;
/// Invocations of every workgroup here.
const GROUP: usize = 64;

/// What one invocation owns: points along one axis, and blocks of four outputs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tile {
    rows: usize,
    blocks: usize,
}

/// Kernels of a convolution, or of its input gradient.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum SumVariant {
    /// Winograd's F(2×2, 3×3) along z and y; neighbours along x share what they load.
    Winograd,
    /// The sum as it stands. Eight lanes load the weights and hand them round by shuffles, because software Vulkan reads a
    /// uniform address lane by lane.
    DirectLanes(Tile),
    /// The sum as it stands. Weights are read where they are used: a GPU reads a uniform address once.
    Direct(Tile),
    /// The same with one block of outputs an invocation, for more occupancy.
    DirectBlock,
    /// The same with one block of outputs of one point.
    DirectPoint,
}

impl SumVariant {
    /// As plans print it.
    pub fn name(self) -> &'static str {
        match self {
            SumVariant::Winograd => "winograd",
            SumVariant::DirectLanes(_) => "direct lanes",
            SumVariant::Direct(_) => "direct",
            SumVariant::DirectBlock => "direct block",
            SumVariant::DirectPoint => "direct point",
        }
    }
}

/// A sum over a lattice of points: a convolution, or the part of its input gradient for one residue modulo the stride.
#[derive(Clone)]
pub struct Lattice {
    pub op: &'static str,
    pub axes: [Axis; 3],
    /// What the sum reads.
    pub x: (BufferRef, Spec),
    /// Sources behind x that the same kernel reads too; only Winograd's can.
    pub more: Vec<(BufferRef, Spec)>,
    /// What it writes, a map.
    pub y: (BufferRef, Spec),
    /// What it writes in place of y; only Winograd's kernel can.
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

/// The label of the highest output, of the convolution itself or of a 1×1×1 convolution with a bias behind it.
#[derive(Clone)]
pub struct Labels {
    /// Flat, one channel.
    pub labels: (BufferRef, Spec),
    pub pointwise: Option<Pointwise>,
}

/// A 1×1×1 convolution with a bias.
#[derive(Clone)]
pub struct Pointwise {
    /// `[L, C, 1, 1, 1]`.
    pub weight: (BufferRef, [usize; 5]),
    pub bias: BufferRef,
}

impl Lattice {
    /// The kernels for this sum.
    pub fn variant(&self, in_place: bool, caps: &Caps) -> SumVariant {
        if self.fits_winograd(caps) {
            return SumVariant::Winograd;
        }
        let [az, ay, ax] = self.flat().axes;
        let out_blocks = self.y.1.blocks();
        let points = self.x.1.shape[0] * az.count * ay.count * ax.count;
        let lanes = caps.target.lanes().is_some();
        // 64 sums an invocation: a GPU has registers for no more, and a CPU hardly gains by more. With one tap, eight blocks
        // halve the loads of x.
        let most = if lanes && ay.unrolled().0 == 1 { 8 } else { 4 };
        let (blocks, groups) = block_groups(out_blocks, most);
        let idle = |groups: usize| caps.target == Target::Gpu && points / 4 * groups < OCCUPANCY;
        // In place, an invocation has all outputs.
        if !in_place && idle(groups) {
            return if idle(out_blocks) {
                SumVariant::DirectPoint
            } else {
                SumVariant::DirectBlock
            };
        }
        // On software Vulkan eight rows gain an eighth, unless more than that lies past the last; but the driver takes longer to
        // compile them the first time than four, which small maps never win back.
        let large = caps.forms.texels && points >= 1 << 17 && goes_by_eight(ay.count);
        let eight = ay.count > 4 && blocks <= 2 || large && blocks <= 4;
        let tile = Tile {
            rows: if eight { 8 } else { 4 },
            blocks,
        };
        if lanes {
            SumVariant::DirectLanes(tile)
        } else {
            SumVariant::Direct(tile)
        }
    }

    fn dispatches(&self, variant: SumVariant, io: &mut Io, caps: &Caps) -> Result<Vec<Dispatch>, GraphError> {
        match variant {
            SumVariant::Winograd => self.winograd(io, caps),
            SumVariant::DirectLanes(tile) => self.direct(tile, true, io, caps),
            SumVariant::Direct(tile) => self.direct(tile, false, io, caps),
            SumVariant::DirectBlock => self.direct(Tile { rows: 4, blocks: 1 }, false, io, caps),
            SumVariant::DirectPoint => self.direct(Tile { rows: 1, blocks: 1 }, false, io, caps),
        }
    }

    /// 0: y = sum; 1: y = bias + sum; 2: y += sum.
    fn mode(&self) -> u32 {
        match (self.add, self.bias) {
            (true, _) => 2,
            (false, Some(_)) => 1,
            (false, None) => 0,
        }
    }
}

/// The dispatches of sums, one after the other.
pub fn dispatches(
    sums: Vec<(Lattice, SumVariant)>,
    io: &mut Io,
    caps: &Caps,
) -> Result<Vec<Dispatch>, GraphError> {
    let mut dispatches = Vec::new();
    for (lattice, variant) in sums {
        dispatches.extend(lattice.dispatches(variant, io, caps)?);
    }
    Ok(dispatches)
}

/// The variant that plans print for sums: the first's.
pub fn name(sums: &[(Lattice, SumVariant)]) -> &'static str {
    sums[0].1.name()
}

/// Whether a convolution of one source, or its input gradient, may write over what it reads: each invocation then reads all
/// channels of its voxels, and of no others, before it writes them.
pub fn in_place(axes: &[Axis; 3], x: &Spec, y: &Spec, groups: usize) -> bool {
    let blocks = y.blocks();
    axes.iter().all(Axis::is_pointwise)
        && groups == 1
        && x.layout == Layout::Map
        && x.blocks() == blocks
        && blocks <= 4
}

/// First stages of the weight gradient.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum WeightVariant {
    /// Up to four outputs on a CPU: columns slide along x past three by three taps.
    Sliding(Tile),
    /// Columns along y; eight lanes load the upstream gradient and hand it round by shuffles. A chunk has whole subgroups of
    /// that many lanes.
    DirectLanes(Tile, u32),
    /// Columns along y; each invocation reads its own upstream gradient.
    Direct(Tile),
    /// The same along x, for a GPU, which brings whole cache lines. It needs many invocations: y and x stay two axes.
    DirectAlongX(Tile),
}

impl WeightVariant {
    /// As plans print it.
    pub fn name(self) -> &'static str {
        match self {
            WeightVariant::Sliding(_) => "sliding",
            WeightVariant::DirectLanes(..) => "direct lanes",
            WeightVariant::Direct(_) => "direct",
            WeightVariant::DirectAlongX(_) => "direct along x",
        }
    }
}

impl WeightVariant {
    fn tile(self) -> Tile {
        match self {
            WeightVariant::Sliding(tile)
            | WeightVariant::DirectLanes(tile, _)
            | WeightVariant::Direct(tile)
            | WeightVariant::DirectAlongX(tile) => tile,
        }
    }

    /// Whether the rows that an invocation goes through lie along x.
    fn is_along_x(self) -> bool {
        matches!(self, WeightVariant::DirectAlongX(_))
    }
}

impl Stage<'_> {
    /// Shader, constants and uniform of a dispatch.
    fn kernel(&self, part: &Part) -> Dispatch {
        match self.variant {
            WeightVariant::Sliding(_) => self.sliding(part),
            WeightVariant::DirectLanes(..) => self.direct(part, true),
            WeightVariant::Direct(_) | WeightVariant::DirectAlongX(_) => self.direct(part, false),
        }
    }
}

impl WeightGradient {
    /// The kernels for this gradient.
    pub fn variant(&self, caps: &Caps) -> WeightVariant {
        let gpu = caps.target == Target::Gpu;
        let geometry = self.geometry(gpu);
        let [_, ay, ax] = geometry.axes;
        let (taps, outputs, out_blocks) = (ay.unrolled().0, self.g.1.shape[1], self.g.1.blocks());
        // A GPU has 256 registers at most, and sums of outputs that there are not take none.
        let most = match caps.target {
            Target::CpuLanes(_) if taps == 1 => 8,
            Target::Gpu if taps * geometry.source.channels * outputs > 144 => 2,
            _ => 4,
        };
        let (blocks, _) = block_groups(out_blocks, most);
        // A GPU takes longer for four rows, unless many of eight lie past the last.
        let eight = blocks == 1 || gpu && goes_by_eight(geometry.size[0]);
        let tile = Tile {
            rows: if eight { 8 } else { 4 },
            blocks,
        };
        match caps.target {
            Target::Gpu => WeightVariant::DirectAlongX(tile),
            _ if out_blocks == 1 && ay.slides() && ax.slides() => WeightVariant::Sliding(tile),
            Target::CpuLanes(lanes) if Stage::new(self, WeightVariant::Direct(tile)).shares(lanes) => {
                WeightVariant::DirectLanes(tile, lanes)
            }
            _ => WeightVariant::Direct(tile),
        }
    }
}

/// What an invocation or a workgroup leaves of the bias gradient's first stage, as plans print it.
pub fn bias_variant(caps: &Caps) -> &'static str {
    match workgroup_reduction(caps) {
        (1, _) => "invocation sums",
        _ => "workgroup reduction",
    }
}

/// Whether no more than an eighth more rows lie past the last by eight than by four.
fn goes_by_eight(rows: usize) -> bool {
    8 * rows.next_multiple_of(8) < 9 * rows.next_multiple_of(4)
}

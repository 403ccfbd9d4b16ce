//! How a convolution's tensors lie in memory, how they are cut along depth, and which input channels an output sees.

use std::ops::Range;

use crate::graph::GraphError;
use crate::op::{Caps, PLANES_AT_ONCE};
use crate::tensor::{ALIGNMENT, Layout, Spec};

/// In place of the channels of a group where all blocks see all channels: first_output / this is 0.
const UNGROUPED: u32 = 1 << 30;

/// How a source of the kernels lies in memory.
pub struct Source {
    /// Channels that a load brings and the kernels multiply.
    pub channels: usize,
    /// Channels between blocks.
    pub block_channels: usize,
    /// Loads over all channels.
    pub blocks: usize,
    /// Elements between batch entries, channel blocks and planes.
    pub strides: [usize; 3],
    /// Bytes of a plane (n, z), `None` where planes are not contiguous.
    pub plane_bytes: Option<u64>,
    /// Bytes of an element.
    pub element: u64,
}

impl Source {
    pub fn of(spec: &Spec) -> Self {
        let [_, c, d, h, w] = spec.ncdhw().expect("checked on insertion");
        let area = h * w;
        match spec.layout {
            Layout::Map => {
                let blocks = spec.blocks();
                Source {
                    // Never 1, which marks the pipeline of an image.
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
    pub fn range(&self, spec: &Spec, from: usize, to: usize) -> (u64, u64) {
        match self.plane_bytes {
            Some(bytes) => (
                from as u64 * bytes / ALIGNMENT * ALIGNMENT,
                (to as u64 + 1) * bytes,
            ),
            None => (0, spec.bytes()),
        }
    }

    /// Elements before a range of bytes.
    pub fn base(&self, bytes: (u64, u64)) -> usize {
        (bytes.0 / self.element) as usize
    }
}

/// A range of lattice planes, and the bytes of the tensors that it touches.
pub struct Piece<const TENSORS: usize> {
    pub first: usize,
    pub planes: usize,
    pub bytes: [(u64, u64); TENSORS],
}

/// Cuts planes into the fewest equal pieces whose ranges fit [`Caps::part`], or else a binding.
pub fn pieces<const TENSORS: usize>(
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
        "one plane with all its channels exceeds this adapter's largest binding of {} MiB",
        caps.max_binding >> 20
    );
    Err(GraphError::Limit { op, reason })
}

/// Which input channels an output block group sees: how the kernels find the first, and how many blocks it has.
#[derive(Clone, Copy)]
pub struct Grouping {
    pub outputs: u32,
    pub inputs: u32,
    pub blocks: usize,
}

impl Grouping {
    /// All outputs see all `blocks`.
    pub fn none(blocks: usize) -> Self {
        Grouping {
            outputs: UNGROUPED,
            inputs: 0,
            blocks,
        }
    }

    /// Of `groups` groups over `outputs` and `inputs` channels where both are whole; `in_blocks` loads of `channels`.
    pub fn new(
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

/// Blocks of four outputs that an invocation owns (`most` at most), and how many such groups there are.
pub fn block_groups(out_blocks: usize, most: usize) -> (usize, usize) {
    let groups = out_blocks.div_ceil(most);
    let blocks = out_blocks.div_ceil(groups);
    (blocks, out_blocks.div_ceil(blocks))
}

/// Outputs in the last block where there is one group of blocks; 4, which is always right, where there are more.
pub fn last_outputs(outputs: usize, blocks: usize, block_groups: usize) -> u32 {
    if block_groups == 1 {
        (outputs - 4 * (blocks - 1)) as u32
    } else {
        4
    }
}

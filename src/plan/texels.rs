//! Reading through textures ([`Forms::texels`](crate::op::Forms::texels)): which bindings, and which texture holds what when.

use super::{Bound, Launch, PlanBuffer, ResidentInput, Texture};
use crate::op::{Access, BufferRef, Dispatch, Texel};

/// Storage textures that a kernel may read: WebGPU promises four.
const MOST: usize = 4;

/// What a launch reads through a texture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Texels {
    /// Position among the launch's bindings.
    pub binding: usize,
    /// The texture.
    pub held: Held,
    /// Whether the binding's bytes have to be copied there first.
    pub copy: bool,
}

/// A texture that a launch reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// That of this position in [`super::Plan::textures`].
    Texture(usize),
    /// That of the resident input of this position in [`super::Plan::residents`].
    Resident(usize),
}

/// Makes a kernel read its inputs and temporaries through textures; `bytes` gives their sizes.
pub(super) fn read_texels(dispatch: &mut Dispatch, bytes: impl Fn(BufferRef) -> Option<u64>) {
    let size = |i: usize| {
        let binding = &dispatch.bindings[i];
        let whole = bytes(binding.buffer)?;
        Some(binding.range.map_or(whole, |(from, to)| to - from))
    };
    let mut found: Vec<(u64, usize, Texel)> = (0..dispatch.bindings.len())
        .filter(|i| dispatch.bindings[*i].access == Access::Read)
        .filter_map(|i| Some((size(i)?, i, dispatch.shader.texel(i + 1)?)))
        .filter(|(size, _, texel)| *size <= texel.most_bytes())
        .collect();
    found.sort_by_key(|(size, i, _)| (std::cmp::Reverse(*size), *i));
    for (_, i, texel) in found.into_iter().take(MOST) {
        dispatch.bindings[i].access = Access::Texels(texel);
    }
}

/// Finds the resident inputs that no kernel needs as a buffer.
pub(super) fn settle(residents: &mut [ResidentInput], launches: &[Launch]) {
    for (i, resident) in residents.iter_mut().enumerate() {
        let reads = launches
            .iter()
            .flat_map(|l| l.bound.iter().zip(&l.dispatch.bindings));
        let mut texels = reads
            .filter(|(bound, _)| bound.buffer == PlanBuffer::Resident(i))
            .map(|(bound, binding)| match binding.access {
                Access::Texels(texel) if (bound.offset, bound.size) == (0, resident.spec.bytes()) => {
                    Some(texel)
                }
                _ => None,
            });
        let first = texels.next().flatten();
        resident.texel = first.filter(|_| texels.all(|texel| texel == first));
    }
}

/// Gives the launches textures, as few and small ones as they need; what one still holds is not copied again.
pub(super) fn assign(launches: &mut [Launch], residents: &[ResidentInput]) -> Vec<Texture> {
    let mut textures: Vec<Texture> = Vec::new();
    let mut holds: Vec<Option<Bound>> = Vec::new();
    // The launch that last read each.
    let mut read: Vec<usize> = Vec::new();
    for (now, launch) in launches.iter_mut().enumerate() {
        for (binding, bound) in launch.bound.iter().enumerate() {
            let Access::Texels(texel) = launch.dispatch.bindings[binding].access else {
                continue;
            };
            if let PlanBuffer::Resident(i) = bound.buffer
                && residents[i].texel.is_some()
            {
                launch.texels.push(Texels {
                    binding,
                    held: Held::Resident(i),
                    copy: false,
                });
                continue;
            }
            let rows = Texture::of(texel, bound.size).rows;
            let held = |t: &usize| textures[*t].texel == texel && holds[*t].as_ref() == Some(bound);
            let texture = match (0..textures.len()).find(held) {
                Some(texture) => {
                    launch.texels.push(Texels {
                        binding,
                        held: Held::Texture(texture),
                        copy: false,
                    });
                    texture
                }
                None => {
                    // One that is large enough, the smallest of them, or the largest; of equals the one unread for longest.
                    let free = (0..textures.len())
                        .filter(|t| textures[*t].texel == texel)
                        .filter(|t| launch.texels.iter().all(|used| used.held != Held::Texture(*t)));
                    let best = free.min_by_key(|t| {
                        let has = textures[*t].rows;
                        (rows.saturating_sub(has), has, read[*t])
                    });
                    let texture = best.unwrap_or_else(|| {
                        textures.push(Texture { texel, rows });
                        holds.push(None);
                        read.push(now);
                        textures.len() - 1
                    });
                    textures[texture].rows = textures[texture].rows.max(rows);
                    holds[texture] = Some(bound.clone());
                    launch.texels.push(Texels {
                        binding,
                        held: Held::Texture(texture),
                        copy: true,
                    });
                    texture
                }
            };
            read[texture] = now;
        }
        for (bound, binding) in launch.bound.iter().zip(&launch.dispatch.bindings) {
            if binding.access == Access::ReadWrite {
                for held in &mut holds {
                    let overlaps = |held: &Bound| {
                        held.buffer == bound.buffer
                            && held.offset < bound.offset + bound.size
                            && bound.offset < held.offset + held.size
                    };
                    *held = held.take().filter(|held| !overlaps(held));
                }
            }
        }
    }
    textures
}

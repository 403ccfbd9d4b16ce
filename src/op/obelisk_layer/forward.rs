//! The kernels of a layer: obelisk_layer.wgsl for GPUs, obelisk_layer_lanes.wgsl for software Vulkan, and
//! obelisk_cells_pack.wgsl, which packs the image for the latter.

use super::layer::Layer;
use crate::op::obelisk_sample::Sampling;
use crate::op::*;

params! {
    /// The uniform of `obelisk_cells_pack.wgsl`.
    struct CellsPack {
        count: u32,
        size_x: u32,
        size_y: u32,
        size_z: u32,
    }
}

/// Samples of a cell from which on packing the image costs less than it saves; benches/kernels.md has the measurement.
const SAMPLES_A_CELL: usize = 6;

/// Bindings that a kernel has for the image, of the eight that WebGPU promises.
const MOST_PARTS: usize = 4;

/// Kernels of a layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum LayerVariant {
    /// Eight lanes share offsets and weights by shuffles, because software Vulkan reads a uniform address lane by lane. The image
    /// is packed first, so that a sample takes two loads instead of eight.
    LanesCells,
    /// The same from the image as it is.
    Lanes,
    /// The same from an image in several bindings.
    LanesParts,
    /// Workgroups of four by four by four locations, which share more of a GPU's cache lines; runs of slices that are no
    /// multiple of four go by rows.
    Tiles,
    /// Workgroups of 64 locations along x.
    Rows,
    /// The same from an image in several bindings.
    RowsParts,
}

impl LayerVariant {
    /// As plans print it.
    pub fn name(self) -> &'static str {
        match self {
            LayerVariant::LanesCells => "lanes, packed cells",
            LayerVariant::Lanes => "lanes",
            LayerVariant::LanesParts => "lanes, parts",
            LayerVariant::Tiles => "tiles",
            LayerVariant::Rows => "rows",
            LayerVariant::RowsParts => "rows, parts",
        }
    }

    fn lanes(self) -> bool {
        use LayerVariant::{Lanes, LanesCells, LanesParts};
        matches!(self, LanesCells | Lanes | LanesParts)
    }

    fn kernel(self) -> (Shader, &'static str) {
        match self {
            LayerVariant::LanesCells => (
                shader!(
                    "obelisk_layer_lanes",
                    "common/divide",
                    "common/obelisk",
                    "common/trilinear",
                    "common/obelisk_cells",
                    "common/conv3d_lanes"; Sampling),
                "lanes",
            ),
            LayerVariant::Lanes => (
                shader!(
                    "obelisk_layer_lanes",
                    "common/divide",
                    "common/obelisk",
                    "common/trilinear",
                    "common/obelisk_voxels",
                    "common/conv3d_lanes"; Sampling),
                "lanes",
            ),
            LayerVariant::LanesParts => (
                shader!(
                    "obelisk_layer_lanes",
                    "common/divide",
                    "common/obelisk",
                    "common/trilinear",
                    "common/obelisk_parts",
                    "common/conv3d_lanes"; Sampling),
                "lanes",
            ),
            LayerVariant::Tiles | LayerVariant::Rows => (
                shader!(
                    "obelisk_layer",
                    "common/divide",
                    "common/obelisk",
                    "common/trilinear",
                    "common/obelisk_voxels",
                    "common/conv3d_plain"; Sampling),
                "plain",
            ),
            LayerVariant::RowsParts => (
                shader!(
                    "obelisk_layer",
                    "common/divide",
                    "common/obelisk",
                    "common/trilinear",
                    "common/obelisk_parts",
                    "common/conv3d_plain"; Sampling),
                "plain",
            ),
        }
    }
}

impl Layer {
    /// The kernels for this layer.
    pub fn variant(&self, caps: &Caps) -> LayerVariant {
        let [_, h, w] = self.g.grid;
        let parts = self.in_parts(caps);
        match caps.target {
            Target::CpuLanes(_) if parts => LayerVariant::LanesParts,
            Target::CpuLanes(_) if self.packs_cells(caps) => LayerVariant::LanesCells,
            Target::CpuLanes(_) => LayerVariant::Lanes,
            Target::Gpu | Target::Cpu if parts => LayerVariant::RowsParts,
            Target::Gpu
                if h % 4 == 0 && w % 4 == 0 && self.runs(None, caps).iter().any(|run| run.count % 4 == 0) =>
            {
                LayerVariant::Tiles
            }
            Target::Gpu | Target::Cpu => LayerVariant::Rows,
        }
    }

    /// Slices of the features to make. What is only written needs no part that a texture could hold.
    fn runs(&self, planes: Option<Range<usize>>, caps: &Caps) -> Vec<Slices> {
        let features = self.features();
        let planes = planes.unwrap_or(0..features.planes());
        slices_of(&[&features], planes, &caps.whole())
    }

    /// The image's planes by what one binding holds; none where that is all.
    ///
    /// # Errors
    /// An image that needs more bindings than a kernel has for it.
    fn parts(&self, caps: &Caps) -> Result<Vec<Slices>, GraphError> {
        if !self.in_parts(caps) {
            return Ok(Vec::new());
        }
        // What lanes read is quicker in textures, which hold a row less.
        let most = match caps.forms.texels {
            true => caps.max_binding.min(Texel::One.most_bytes()),
            false => caps.max_binding,
        };
        let caps = Caps {
            max_binding: most,
            ..caps.whole()
        };
        let parts = slices(&[&self.image], &caps);
        match parts.len() <= MOST_PARTS {
            true => Ok(parts),
            false => Err(GraphError::Limit {
                op: "obelisk_layer",
                reason: format!(
                    "it looks at {:?} as a whole, which takes {} MiB, and this adapter binds {MOST_PARTS} times {} MiB",
                    self.image,
                    self.image.bytes() >> 20,
                    most >> 20
                ),
            }),
        }
    }

    /// Whether one binding does not hold the image.
    fn in_parts(&self, caps: &Caps) -> bool {
        self.image.bytes() > caps.max_binding && self.image.plane_bytes().is_some()
    }

    /// Whether lanes that load through textures sample the image so often that it pays to pack it, and the plan has memory to
    /// give for time.
    fn packs_cells(&self, caps: &Caps) -> bool {
        let samples = self.g.locations() * self.g.k * self.g.terms;
        let pays = caps.forms.texels && samples >= SAMPLES_A_CELL * self.cells();
        let fits = self.cells() as u64 * 16 <= caps.spare.min(caps.max_binding);
        pays && fits && self.g.c == 1 && self.image.layout == Layout::Flat
    }

    /// Cells of the packed image.
    fn cells(&self) -> usize {
        let [d, h, w] = self.g.size;
        self.g.n * (d + 4) * (h + 3) * (w + 3)
    }

    fn pack_cells(&self, cells: BufferRef) -> Dispatch {
        let [d, h, w] = self.g.size;
        // Four cells along y an invocation.
        let threads = self.g.n * (d + 4) * (h + 3).div_ceil(4) * (w + 3);
        Dispatch {
            params: CellsPack {
                count: int(threads),
                size_x: int(w),
                size_y: int(h),
                size_z: int(d),
            }
            .into(),
            bindings: vec![read(BufferRef::Input(0)), write(cells)],
            workgroups: linear_groups(threads, 64),
            iterations: 4,
            ..Dispatch::new(shader!("obelisk_cells_pack", "common/divide"; CellsPack), "main")
        }
    }

    /// The layer's features.
    pub fn forward(&self, io: &mut Io, caps: &Caps) -> Result<Vec<Dispatch>, GraphError> {
        let variant = self.variant(caps);
        let image = self.parts(caps)?;
        // A kernel for an image in parts has all of their bindings; those that are left over bind a few bytes of it.
        let part = |i: usize| match image.get(i) {
            Some(part) => part.of(&self.image, read(BufferRef::Input(0))),
            None => read(BufferRef::Input(0)).range(0, ALIGNMENT),
        };
        let weight = io.inputs.len() - 1;
        let (pieces, run) = self.pieces(16);
        let z = self.groups * pieces;
        // Locations of an invocation, and columns that it takes at once.
        let (locations, columns) = if variant.lanes() { (2, 4) } else { (1, 1) };
        let vectors = z * self.columns.next_multiple_of(columns) * run;
        // Eight more: lanes read past the last weights.
        let packed = io.scratch((vectors + 8) as u64 * 16);
        let mut pack = self.pack("by_outputs", run, pieces, vectors, weight, packed);
        pack.constants.push(("COLUMNS", columns as u32));
        let cells = (variant == LayerVariant::LanesCells).then(|| io.scratch(self.cells() as u64 * 16));
        let mut dispatches = vec![pack];
        dispatches.extend(cells.map(|cells| self.pack_cells(cells)));
        let (features, (shader, entry)) = (self.features(), variant.kernel());
        for slab in self.runs(io.planes.clone(), caps) {
            let count = self.locations(&slab);
            let threads = match variant.lanes() {
                true => 8 * count.div_ceil(8 * locations),
                false => count,
            };
            let [x, y, _] = linear_groups(threads, 64);
            let mut constants = self.constants(run);
            if variant == LayerVariant::Tiles && slab.count % 4 == 0 {
                constants.push(("TILED", 1));
            }
            dispatches.push(Dispatch {
                constants,
                subgroups: variant.lanes(),
                params: Sampling {
                    count: int(count),
                    first: int(slab.first),
                    part: image.first().map_or(0, |part| {
                        int(part.count * (self.image.bytes() / 4) as usize / self.image.planes())
                    }),
                    threads: int(threads),
                    pieces: int(pieces),
                    ..self.params()
                }
                .into(),
                bindings: [
                    // The offsets stand in for an image that is packed, and for points where there are none.
                    match image.is_empty() {
                        true => read(BufferRef::Input(cells.is_some() as usize)),
                        false => part(0),
                    },
                    read(packed),
                    read(BufferRef::Input(1)),
                    read(BufferRef::Input(weight - 1)),
                    slab.of(&features, write(BufferRef::Output(0))),
                ]
                .into_iter()
                .chain(cells.map(read))
                .chain((1..MOST_PARTS).map(part).filter(|_| !image.is_empty()))
                .collect(),
                workgroups: [x, y, z as u32],
                iterations: self.columns.div_ceil(columns) as u64,
                flops: (count * self.columns * z * (run * 8 + self.g.terms * 32)) as u64,
                ..Dispatch::new(shader, entry)
            });
        }
        Ok(dispatches)
    }
}

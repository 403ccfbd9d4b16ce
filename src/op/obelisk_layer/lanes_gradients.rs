//! obelisk_layer_gradients.wgsl: the gradients of offsets and weights in one kernel, for software Vulkan with lanes.

use super::gradients::TOTAL;
use super::layer::Layer;
use crate::op::obelisk_sample::Sampling;
use crate::op::*;

/// Columns of a lane; with four the upstream gradient costs a quarter of the loads of samples.
const COLUMNS: usize = 4;

/// How the first stage divides the sums.
struct Split {
    runs: Vec<Slices>,
    /// Chunks of each run's locations.
    chunks: Vec<usize>,
    /// Chunks of all runs: partial sums of each number.
    partials: usize,
    /// Runs of a group's outputs,
    pieces: usize,
    /// and vec4s of each.
    run: usize,
    /// Groups times pieces.
    z: usize,
    /// Eight lanes' columns that make a group.
    blocks: usize,
}

impl Split {
    fn new(layer: &Layer, caps: &Caps) -> Self {
        let (pieces, run) = layer.pieces(16);
        let z = layer.groups * pieces;
        let blocks = layer.columns.div_ceil(8 * COLUMNS);
        let runs = slices(&[&layer.features()], caps);
        // Chunks enough for a few dozen cores, few enough that their partial sums stay small and fit a binding.
        let most = (caps.max_binding as usize / (z * blocks * 8 * COLUMNS * run * 16) / runs.len()).max(1);
        let chunks = |run: &Slices| {
            let count = layer.locations(run);
            let wanted = (1024 / (blocks * z)).max(8).min(most).max(count.div_ceil(60_000));
            count.div_ceil(count.div_ceil(wanted))
        };
        let chunks: Vec<usize> = runs.iter().map(chunks).collect();
        Split {
            partials: chunks.iter().sum(),
            runs,
            chunks,
            pieces,
            run,
            z,
            blocks,
        }
    }
}

impl Layer {
    /// Both gradients into `offsets` and `weights`. The last input is dL/dF, the one before it the weight.
    pub fn lanes_gradients(
        &self,
        io: &mut Io,
        caps: &Caps,
        offsets: BufferRef,
        weights: BufferRef,
    ) -> Vec<Dispatch> {
        let split = Split::new(self, caps);
        let (padded, partials, pieces) = (split.blocks * 8 * COLUMNS, split.partials, split.pieces);
        let weight_sums = io.scratch((split.z * padded * split.run * partials * 16) as u64);
        let offset_sums =
            io.scratch((self.groups * padded * self.g.terms * 3 * pieces * partials * 4) as u64);
        let mut dispatches = self.lanes_sums(io, &split, weight_sums, offset_sums);
        let total = |entry, sums, output, count: usize, partials: usize, each: usize| Dispatch {
            constants: self.column_constants(split.run, 8 * COLUMNS),
            params: Sampling {
                count: int(count),
                partials: int(partials),
                pieces: int(pieces),
                ..self.params()
            }
            .into(),
            bindings: vec![read(sums), write(output)],
            workgroups: linear_groups(count, 64),
            iterations: (each * (partials + 1)) as u64,
            flops: (count * each * partials) as u64,
            ..Dispatch::new(TOTAL, entry)
        };
        let (count, numbers) = (self.weight.count(), self.g.k * self.g.terms * 3);
        dispatches.push(total("weights_total", weight_sums, weights, count, partials, 1));
        let all = partials * pieces;
        dispatches.push(total(
            "offsets_total",
            offset_sums,
            offsets,
            numbers,
            all,
            self.g.c,
        ));
        dispatches
    }

    /// The first stage.
    fn lanes_sums(
        &self,
        io: &Io,
        split: &Split,
        weight_sums: BufferRef,
        offset_sums: BufferRef,
    ) -> Vec<Dispatch> {
        let upstream = io.inputs.len() - 1;
        let features = self.features();
        let mut partial_base = 0;
        let mut dispatches = Vec::new();
        for (part, &threads) in split.runs.iter().zip(&split.chunks) {
            let count = self.locations(part);
            let [x, y, _] = linear_groups(8 * split.blocks * threads, 64);
            dispatches.push(Dispatch {
                constants: self.column_constants(split.run, COLUMNS),
                subgroups: true,
                params: Sampling {
                    count: int(count),
                    first: int(part.first),
                    partials: int(split.partials),
                    partial_base: int(partial_base),
                    threads: int(threads),
                    pieces: int(split.pieces),
                    ..self.params()
                }
                .into(),
                bindings: vec![
                    read(BufferRef::Input(0)),
                    read(BufferRef::Input(upstream - 1)),
                    read(BufferRef::Input(1)),
                    read(BufferRef::Input(upstream - 2)), // the offsets stand in for points where there are none
                    part.of(&features, read(BufferRef::Input(upstream))),
                    write(weight_sums),
                    write(offset_sums),
                ],
                workgroups: [x, y, split.z as u32],
                iterations: (count.div_ceil(threads) + 8 * split.run) as u64,
                flops: (count * self.columns * split.z * (split.run * 16 + self.g.terms * 60)) as u64,
                ..Dispatch::new(
                    shader!(
                        "obelisk_layer_gradients",
                        "common/divide",
                        "common/obelisk",
                        "common/trilinear"; Sampling),
                    "main",
                )
            });
            partial_base += threads;
        }
        dispatches
    }
}

//! What the kernels of a layer share: its sizes, its uniform, and obelisk_layer_pack.wgsl, which packs its weights.

use super::ObeliskLayer;
use crate::op::obelisk_sample::{Geometry, Sampling, geometry};
use crate::op::*;

params! {
    /// The uniform of `obelisk_layer_pack.wgsl`.
    struct Pack {
        count: u32,
        /// Of all groups.
        outputs: u32,
        group_outputs: u32,
        /// Of one group.
        columns: u32,
        /// Runs that make a group's outputs.
        pieces: u32,
        /// Vec4s that make a group's columns.
        column_blocks: u32,
    }
}

/// The sizes of a layer.
pub struct Layer {
    pub g: Geometry,
    pub image: Spec,
    pub weight: Spec,
    pub groups: usize,
    pub outputs: usize,
    /// Channels of X in a group.
    pub columns: usize,
    /// Vec4s of outputs in a group.
    pub blocks: usize,
}

impl Layer {
    pub fn new(op: &'static str, inputs: &[Spec], layer: &ObeliskLayer) -> Result<Self, GraphError> {
        let Some((weight, rest)) = inputs.split_last() else {
            return Err(GraphError::shape(
                op,
                inputs,
                "takes image, offsets, points if any, and weight",
            ));
        };
        let g = geometry(op, rest, layer.locations)?;
        let (groups, channels) = (layer.groups, g.c * g.k);
        match weight.shape[..] {
            [outputs, columns, 1, 1, 1]
                if weight.layout == Layout::Flat
                    && columns > 0
                    && columns * groups == channels
                    && outputs > 0
                    && (groups == 1 || outputs % (4 * groups) == 0) =>
            {
                Ok(Layer {
                    image: rest[0].clone(),
                    weight: weight.clone(),
                    groups,
                    outputs,
                    columns,
                    blocks: (outputs / groups).div_ceil(4),
                    g,
                })
            }
            _ => {
                let reason = format!(
                    "{channels} samples in {groups} groups want a weight [O, {channels} / {groups}, 1, 1, 1], O a multiple \
                     of {} with several groups",
                    4 * groups
                );
                Err(GraphError::shape(op, inputs, reason))
            }
        }
    }

    pub fn features(&self) -> Spec {
        let [d, h, w] = self.g.grid;
        Spec::map([self.g.n, self.outputs, d, h, w])
    }

    /// The uniform; what differs between dispatches is zero.
    pub fn params(&self) -> Sampling {
        Sampling {
            columns: int(self.columns),
            blocks: int(self.blocks),
            outputs: int(self.outputs),
            ..self.g.params(&self.image)
        }
    }

    /// Locations in a run of slices of the features.
    pub fn locations(&self, run: &Slices) -> usize {
        run.count * self.g.grid[1] * self.g.grid[2]
    }

    /// Constants of the kernels whose invocations have so many vec4s of outputs.
    pub fn constants(&self, run: usize) -> Vec<(&'static str, u32)> {
        let mut constants = self.g.constants();
        constants.push(("RUN", run as u32));
        constants
    }

    /// The pieces of a group's outputs, and the vec4s of each, at most `most`.
    pub fn pieces(&self, most: usize) -> (usize, usize) {
        let pieces = self.blocks.div_ceil(most);
        (pieces, self.blocks.div_ceil(pieces))
    }

    /// Packs the weights: `vectors` vec4s, by `entry`'s order.
    pub fn pack(
        &self,
        entry: &'static str,
        run: usize,
        pieces: usize,
        vectors: usize,
        weight: usize,
        to: BufferRef,
    ) -> Dispatch {
        Dispatch {
            constants: vec![("RUN", run as u32)],
            params: Pack {
                count: int(vectors),
                outputs: int(self.outputs),
                group_outputs: int(self.outputs / self.groups),
                columns: int(self.columns),
                pieces: int(pieces),
                column_blocks: int(self.columns.div_ceil(4)),
            }
            .into(),
            bindings: vec![read(BufferRef::Input(weight)), write(to)],
            workgroups: linear_groups(vectors, 64),
            ..Dispatch::new(shader!("obelisk_layer_pack"; Pack), entry)
        }
    }

    /// The same of gradients whose first stage has so many columns an invocation.
    pub fn column_constants(&self, run: usize, columns: usize) -> Vec<(&'static str, u32)> {
        let mut constants = self.constants(run);
        constants.push(("COLUMNS", columns as u32));
        constants
    }

    pub fn check_upstream(&self, op: &'static str, inputs: &[Spec]) -> Result<(), GraphError> {
        if inputs.last() == Some(&self.features()) {
            return Ok(());
        }
        let reason = format!("the last input must be {:?}", self.features());
        Err(GraphError::shape(op, inputs, reason))
    }

    /// Invocations that share each run of locations: at least 16 locations for each, enough invocations to fill a GPU
    /// with `columns` of them side by side, partial sums of at most 16 MiB for `numbers`.
    pub fn threads(&self, runs: &[Slices], columns: usize, numbers: usize) -> Vec<usize> {
        let most = (65_536 / columns).min((4 << 20) / numbers / runs.len());
        runs.iter()
            .map(|run| {
                self.locations(run)
                    .div_ceil(16)
                    .min(most)
                    .max(1)
                    .next_multiple_of(64)
            })
            .collect()
    }
}

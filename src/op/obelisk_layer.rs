//! A fused OBELISK layer (method section 1): sampling and the grouped 1×1×1 convolution in one kernel. The sampled tensor
//! X, K·C numbers a location, is never kept from the forward pass to the gradients: they sample again.

use super::conv3d::{Conv3dConfig, Conv3dInputGradient, conv3d};
use super::interleave::Interleave;
use super::obelisk_sample::{Geometry, Locations, ObeliskImageGradient, ObeliskSample, Sampling, geometry};
use super::*;

params! {
    /// The uniform of `obelisk_cells_pack.wgsl`.
    struct CellsPack {
        count: u32,
        size_x: u32,
        size_y: u32,
        size_z: u32,
    }
}

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

/// Adds an OBELISK layer, F[n, o, s] = Σ W[o, c·K + k] · X[n, c·K + k, s] with X of [`ObeliskSample`], to the graph.
///
/// `image` flat `[N, C, D, H, W]` or a map, `offsets` `[1, K, 1, 1, 3]` or `[1, K, 1, 2, 3]`, `weight`
/// `[O, C·K / groups, 1, 1, 1]`, `points` `[N, S, 3]` with [`Locations::Points`]. The result is a map
/// `[N, O, d, h, w]`. Groups of outputs that are not a multiple of four are sampled and convolved in two steps.
pub fn obelisk_layer(
    graph: &mut Graph,
    image: Value,
    offsets: Value,
    weight: Value,
    points: Option<Value>,
    locations: Locations,
    groups: usize,
) -> Result<Value, GraphError> {
    let outputs = graph.shape(weight).first().copied().unwrap_or(0);
    if groups > 1 && outputs % (4 * groups) != 0 {
        let inputs: Vec<Value> = [image, offsets].into_iter().chain(points).collect();
        let x = graph.push1(ObeliskSample::new(locations), &inputs)?;
        let config = Conv3dConfig {
            groups,
            ..Default::default()
        };
        return conv3d(graph, &[x], weight, None, config);
    }
    let inputs: Vec<Value> = [image, offsets]
        .into_iter()
        .chain(points)
        .chain([weight])
        .collect();
    graph.push1(ObeliskLayer { locations, groups }, &inputs)
}

/// The fused layer; see [`obelisk_layer()`]. Inputs: image, offsets, the points if any, weight. With more than one group
/// each has a multiple of four outputs. X and dL/dX are in memory in no pass but for the image's
/// gradient, which goes through dL/dX.
#[derive(Clone, Copy, Debug)]
pub struct ObeliskLayer {
    /// The sampling locations p.
    pub locations: Locations,
    /// Groups of the convolution.
    pub groups: usize,
}

/// dL/do of [`ObeliskLayer`]. Inputs: its inputs, then dL/dF.
#[derive(Clone, Copy, Debug)]
pub struct ObeliskLayerOffsetGradient(pub ObeliskLayer);

/// dL/dW of [`ObeliskLayer`]. Inputs: its inputs, then dL/dF.
#[derive(Clone, Copy, Debug)]
pub struct ObeliskLayerWeightGradient(pub ObeliskLayer);

/// dL/do and dL/dW of [`ObeliskLayer`], which one kernel computes together where that pays. Inputs: its inputs, then dL/dF.
#[derive(Clone, Copy, Debug)]
pub struct ObeliskLayerGradients(pub ObeliskLayer);

/// Samples of a cell from which on packing it costs less than it saves: a layer of 1024 pairs of offsets with 15 takes
/// 0.455 s on 2 cores instead of 0.566, one of 512 offsets with 8 takes 0.180 s instead of 0.193.
const SAMPLES_A_CELL: usize = 6;

/// The numbers of a layer.
struct Layer {
    g: Geometry,
    image: Spec,
    weight: Spec,
    groups: usize,
    outputs: usize,
    /// Channels of X in a group.
    columns: usize,
    /// Vec4s of outputs in a group.
    blocks: usize,
}

impl Layer {
    fn new(op: &'static str, inputs: &[Spec], layer: &ObeliskLayer) -> Result<Self, GraphError> {
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

    fn features(&self) -> Spec {
        let [d, h, w] = self.g.grid;
        Spec::map([self.g.n, self.outputs, d, h, w])
    }

    /// The uniform; what differs between dispatches is zero.
    fn params(&self) -> Sampling {
        Sampling {
            columns: int(self.columns),
            blocks: int(self.blocks),
            outputs: int(self.outputs),
            ..self.g.params(&self.image)
        }
    }

    /// Locations in a run of slices of the features.
    fn locations(&self, run: &Slices) -> usize {
        run.count * self.g.grid[1] * self.g.grid[2]
    }

    fn constants(&self, run: usize) -> Vec<(&'static str, u32)> {
        let mut constants = self.g.constants();
        constants.push(("RUN", run as u32));
        constants
    }

    /// The pieces of a group's outputs, and the vec4s of each, at most `most`.
    fn pieces(&self, most: usize) -> (usize, usize) {
        let pieces = self.blocks.div_ceil(most);
        (pieces, self.blocks.div_ceil(pieces))
    }

    fn pack(
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

    /// Constants of the second stage where the first stage's invocations have so many columns.
    fn total_constants(&self, run: usize, columns: usize) -> Vec<(&'static str, u32)> {
        let mut constants = self.constants(run);
        constants.push(("COLUMNS", columns as u32));
        constants
    }

    /// Both gradients at once, where shuffles hand the upstream gradient round. The last input is dL/dF, the one before
    /// it the weight.
    fn gradients(&self, io: &mut Io, caps: &Caps, offsets: BufferRef, weights: BufferRef) -> Vec<Dispatch> {
        let upstream = io.inputs.len() - 1;
        let (pieces, run) = self.pieces(16);
        let z = self.groups * pieces;
        // Of a lane; with four the upstream gradient costs a quarter of the loads of samples.
        let columns = 4;
        let blocks = self.columns.div_ceil(8 * columns);
        let features = self.features();
        let runs = slices(&[&features], caps);
        // Chunks enough for a few dozen cores, few enough that their partial sums stay small and fit a binding.
        let padded = blocks * 8 * columns;
        let most = (caps.max_binding as usize / (z * padded * run * 16) / runs.len()).max(1);
        let chunks = |run: &Slices| {
            let count = self.locations(run);
            let wanted = (1024 / (blocks * z)).max(8).min(most).max(count.div_ceil(60_000));
            count.div_ceil(count.div_ceil(wanted))
        };
        let partials: usize = runs.iter().map(chunks).sum();
        let weight_sums = io.scratch((z * padded * run * partials * 16) as u64);
        let offset_sums =
            io.scratch((self.groups * padded * self.g.terms * 3 * pieces * partials * 4) as u64);
        let mut constants = self.constants(run);
        constants.push(("COLUMNS", columns as u32));
        let mut partial_base = 0;
        let mut dispatches = Vec::new();
        for part in &runs {
            let (count, threads) = (self.locations(part), chunks(part));
            let [x, y, _] = linear_groups(8 * blocks * threads, 64);
            dispatches.push(Dispatch {
                constants: constants.clone(),
                subgroups: true,
                params: Sampling {
                    count: int(count),
                    first: int(part.first),
                    partials: int(partials),
                    partial_base: int(partial_base),
                    threads: int(threads),
                    pieces: int(pieces),
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
                workgroups: [x, y, z as u32],
                iterations: (count.div_ceil(threads) + 8 * run) as u64,
                flops: (count * self.columns * z * (run * 16 + self.g.terms * 60)) as u64,
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
        let total = |entry, sums, output, count: usize, partials: usize, each: usize| Dispatch {
            constants: self.total_constants(run, 8 * columns),
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
        let numbers = self.g.k * self.g.terms * 3;
        dispatches.push(total(
            "weights_total",
            weight_sums,
            weights,
            self.weight.count(),
            partials,
            1,
        ));
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

    /// Memory for the cells of the image, where kernels that load through textures sample it so often
    /// that it pays to pack it, and the plan has memory to give for time.
    fn cells(&self, io: &mut Io, caps: &Caps) -> Option<BufferRef> {
        let [d, h, w] = self.g.size;
        let count = self.g.n * (d + 4) * (h + 3) * (w + 3);
        let samples = self.g.locations() * self.g.k * self.g.terms;
        let pays = caps.target.lanes().is_some() && caps.forms.texels && samples >= SAMPLES_A_CELL * count;
        let fits = count as u64 * 16 <= caps.spare.min(caps.max_binding);
        let flat = self.g.c == 1 && self.image.layout == Layout::Flat;
        (pays && fits && flat).then(|| io.scratch(count as u64 * 16))
    }

    fn check_upstream(&self, op: &'static str, inputs: &[Spec]) -> Result<(), GraphError> {
        if inputs.last() == Some(&self.features()) {
            return Ok(());
        }
        let reason = format!("the last input must be {:?}", self.features());
        Err(GraphError::shape(op, inputs, reason))
    }

    /// Invocations that share each run of locations: at least 16 locations for each, enough invocations to fill a GPU
    /// with `columns` of them side by side, partial sums of at most 16 MiB for `numbers`.
    fn threads(&self, runs: &[Slices], columns: usize, numbers: usize) -> Vec<usize> {
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

impl Op for ObeliskLayer {
    fn name(&self) -> &'static str {
        "obelisk_layer"
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>, GraphError> {
        Ok(vec![Layer::new(self.name(), inputs, self)?.features()])
    }

    fn dispatches(&self, io: &mut Io, caps: &Caps) -> Result<Vec<Dispatch>, GraphError> {
        let layer = Layer::new(self.name(), io.inputs, self)?;
        let weight = io.inputs.len() - 1;
        let (pieces, run) = layer.pieces(16);
        let z = layer.groups * pieces;
        let lanes = caps.target.lanes().is_some();
        // Locations of an invocation, and columns that it takes at once.
        let (locations, columns) = if lanes { (2, 4) } else { (1, 1) };
        let vectors = z * layer.columns.next_multiple_of(columns) * run;
        // Eight more: lanes read past the last weights.
        let packed = io.scratch((vectors + 8) as u64 * 16);
        let mut pack = layer.pack("by_outputs", run, pieces, vectors, weight, packed);
        pack.constants.push(("COLUMNS", columns as u32));
        let mut dispatches = vec![pack];
        let cells = layer.cells(io, caps);
        if let Some(cells) = cells {
            let [d, h, w] = layer.g.size;
            // Four cells along y an invocation.
            let threads = layer.g.n * (d + 4) * (h + 3).div_ceil(4) * (w + 3);
            dispatches.push(Dispatch {
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
            });
        }
        let (shader, entry) = if lanes {
            (
                match cells {
                    Some(_) => shader!(
                        "obelisk_layer_lanes",
                        "common/divide",
                        "common/obelisk",
                        "common/trilinear",
                        "common/obelisk_cells",
                        "common/conv3d_lanes"; Sampling),
                    None => shader!(
                        "obelisk_layer_lanes",
                        "common/divide",
                        "common/obelisk",
                        "common/trilinear",
                        "common/obelisk_voxels",
                        "common/conv3d_lanes"; Sampling),
                },
                "lanes",
            )
        } else {
            (
                shader!(
                    "obelisk_layer",
                    "common/divide",
                    "common/obelisk",
                    "common/trilinear",
                    "common/conv3d_plain"; Sampling),
                "plain",
            )
        };
        let features = layer.features();
        // What is only written needs no part that a texture could hold.
        for part in slices(&[&features], &caps.whole()) {
            let count = layer.locations(&part);
            let threads = match lanes {
                true => 8 * count.div_ceil(8 * locations),
                false => count,
            };
            let [x, y, _] = linear_groups(threads, 64);
            let mut constants = layer.constants(run);
            let [_, h, w] = layer.g.grid;
            if !caps.target.is_cpu() && [part.count, h, w].iter().all(|size| size % 4 == 0) {
                constants.push(("TILED", 1));
            }
            dispatches.push(Dispatch {
                constants,
                subgroups: lanes,
                params: Sampling {
                    count: int(count),
                    first: int(part.first),
                    threads: int(threads),
                    pieces: int(pieces),
                    ..layer.params()
                }
                .into(),
                bindings: [
                    // The offsets stand in for an image that is packed, and for points where there are none.
                    read(BufferRef::Input(cells.is_some() as usize)),
                    read(packed),
                    read(BufferRef::Input(1)),
                    read(BufferRef::Input(weight - 1)),
                    part.of(&features, write(BufferRef::Output(0))),
                ]
                .into_iter()
                .chain(cells.map(read))
                .collect(),
                workgroups: [x, y, z as u32],
                iterations: layer.columns.div_ceil(columns) as u64,
                flops: (count * layer.columns * z * (run * 8 + layer.g.terms * 32)) as u64,
                ..Dispatch::new(shader, entry)
            });
        }
        Ok(dispatches)
    }

    fn gradient(
        &self,
        graph: &mut Graph,
        node: &NodeView,
        upstream: &[Option<Value>],
        wanted: &[bool],
    ) -> Result<Vec<Gradient>, GraphError> {
        let upstream = upstream[0].expect("the one output has a gradient");
        let weight = node.inputs.len() - 1;
        let inputs = [&node.inputs[..], &[upstream]].concat();
        let mut flows = vec![Gradient::Stops; node.inputs.len()];
        match (wanted[1], wanted[weight]) {
            (true, true) => {
                let both = graph.push(ObeliskLayerGradients(*self), &inputs)?;
                (flows[1], flows[weight]) = (Gradient::Flows(both[0]), Gradient::Flows(both[1]));
            }
            (true, false) => {
                flows[1] = Gradient::Flows(graph.push1(ObeliskLayerOffsetGradient(*self), &inputs)?);
            }
            (false, true) => {
                flows[weight] = Gradient::Flows(graph.push1(ObeliskLayerWeightGradient(*self), &inputs)?);
            }
            (false, false) => {}
        }
        if wanted[0] {
            let specs: Vec<Spec> = node.inputs.iter().map(|v| graph.spec(*v).clone()).collect();
            let g = Layer::new(self.name(), &specs, self)?.g;
            let config = Conv3dConfig {
                groups: self.groups,
                ..Default::default()
            };
            let op = Conv3dInputGradient {
                config,
                first: 0,
                whole: true,
                source: g.samples(),
            };
            // Between groups columns can't change places.
            let interleaved = self.groups == 1 && ObeliskImageGradient::interleaves(&g);
            let weights = match interleaved {
                true => graph.push1(Interleave { channels: g.c }, &[node.inputs[weight]])?,
                false => node.inputs[weight],
            };
            let dx = graph.push1(op, &[upstream, weights])?;
            let op = ObeliskImageGradient {
                locations: self.locations,
                image: specs[0].clone(),
                interleaved,
            };
            let inputs = [&node.inputs[1..weight], &[dx]].concat();
            flows[0] = Gradient::Flows(graph.push1(op, &inputs)?);
        }
        Ok(flows)
    }

    fn reference(&self, inputs: &[&Tensor], step: &StepScalars) -> Vec<Tensor> {
        let layer = self.host_layer(inputs);
        let (weight, rest) = inputs.split_last().expect("checked on insertion");
        let x = self.samples(rest, step);
        let mut features = Tensor::zeros(&layer.features().shape);
        let locations: usize = layer.g.grid.iter().product();
        let group_outputs = layer.outputs / layer.groups;
        for (i, f) in features.data.iter_mut().enumerate() {
            let (n, o, s) = (
                i / locations / layer.outputs,
                i / locations % layer.outputs,
                i % locations,
            );
            let first = o / group_outputs * layer.columns;
            *f = (0..layer.columns)
                .map(|column| {
                    let channel = n * layer.g.c * layer.g.k + first + column;
                    weight.data[o * layer.columns + column] as f64 * x.data[channel * locations + s] as f64
                })
                .sum::<f64>() as f32;
        }
        vec![features]
    }
}

impl ObeliskLayer {
    fn host_layer(&self, inputs: &[&Tensor]) -> Layer {
        let specs: Vec<Spec> = inputs.iter().map(|t| Spec::flat(&t.shape)).collect();
        Layer::new("obelisk_layer", &specs, self).expect("checked on insertion")
    }

    fn samples(&self, inputs: &[&Tensor], step: &StepScalars) -> Tensor {
        ObeliskSample::new(self.locations)
            .reference(inputs, step)
            .remove(0)
    }
}

impl Op for ObeliskLayerOffsetGradient {
    fn name(&self) -> &'static str {
        "obelisk_layer_offset_gradient"
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>, GraphError> {
        let layer = Layer::new(self.name(), &inputs[..inputs.len().saturating_sub(1)], &self.0)?;
        layer.check_upstream(self.name(), inputs)?;
        Ok(vec![inputs[1].clone()])
    }

    fn dispatches(&self, io: &mut Io, caps: &Caps) -> Result<Vec<Dispatch>, GraphError> {
        let upstream = io.inputs.len() - 1;
        let weight = upstream - 1;
        let layer = Layer::new(self.name(), &io.inputs[..upstream], &self.0)?;
        if caps.target.lanes().is_some() {
            let unused = io.scratch(layer.weight.bytes());
            return Ok(layer.gradients(io, caps, BufferRef::Output(0), unused));
        }
        let (pieces, run) = layer.pieces(8);
        let z = layer.groups * layer.columns.div_ceil(4);
        let vectors = z * pieces * run * 4;
        let packed = io.scratch((vectors + 8) as u64 * 16);
        let features = layer.features();
        let runs = slices(&[&features], caps);
        let numbers = z * 4 * layer.g.terms * 3;
        let threads = layer.threads(&runs, z, numbers);
        let partials: usize = threads.iter().sum();
        let sums = io.scratch((numbers * partials * 4) as u64);
        let mut dispatches = vec![layer.pack("by_columns", run, pieces, vectors, weight, packed)];
        let mut partial_base = 0;
        for (part, threads) in runs.iter().zip(threads) {
            let count = layer.locations(part);
            let [x, y, _] = linear_groups(threads, 64);
            dispatches.push(Dispatch {
                constants: layer.constants(run),
                params: Sampling {
                    count: int(count),
                    first: int(part.first),
                    partials: int(partials),
                    partial_base: int(partial_base),
                    threads: int(threads),
                    pieces: int(pieces),
                    ..layer.params()
                }
                .into(),
                bindings: vec![
                    read(BufferRef::Input(0)),
                    read(packed),
                    read(BufferRef::Input(1)),
                    read(BufferRef::Input(weight - 1)), // the offsets stand in for points where there are none
                    part.of(&features, read(BufferRef::Input(upstream))),
                    write(sums),
                ],
                workgroups: [x, y, z as u32],
                iterations: (count.div_ceil(threads) * (5 + pieces) + 8) as u64,
                flops: (count * layer.columns * (layer.outputs * 2 + layer.groups * layer.g.terms * 50))
                    as u64,
                ..Dispatch::new(
                    shader!(
                        "obelisk_layer_offset_gradient",
                        "common/divide",
                        "common/obelisk",
                        "common/trilinear",
                        "common/conv3d_plain"; Sampling),
                    "plain",
                )
            });
            partial_base += threads;
        }
        let count = layer.g.k * layer.g.terms * 3;
        let (entry, shares) = match caps.target.is_cpu() {
            true => ("offsets_total", 1),
            false => ("offsets_shared_total", 64),
        };
        dispatches.push(Dispatch {
            constants: layer.total_constants(run, 4),
            params: Sampling {
                count: int(count),
                partials: int(partials),
                ..layer.params()
            }
            .into(),
            bindings: vec![read(sums), write(BufferRef::Output(0))],
            workgroups: linear_groups(count, 64 / shares),
            iterations: (layer.g.c * (partials.div_ceil(shares) + 1) + 6) as u64,
            flops: (numbers * partials) as u64,
            ..Dispatch::new(TOTAL, entry)
        });
        Ok(dispatches)
    }

    fn reference(&self, inputs: &[&Tensor], _: &StepScalars) -> Vec<Tensor> {
        let (upstream, rest) = inputs.split_last().expect("checked on insertion");
        let layer = self.0.host_layer(rest);
        let g = &layer.g;
        let (weight, rest) = rest.split_last().expect("checked on insertion");
        let image = rest[0];
        let locations: usize = g.grid.iter().product();
        let group_outputs = layer.outputs / layer.groups;
        let mut sums = vec![0f64; g.k * g.terms * 3];
        g.visit(rest[1], rest.get(2).copied(), |n, k, j, s, position| {
            let sign = if j == 0 { 1.0 } else { -1.0 };
            for c in 0..g.c {
                let channel = c * g.k + k;
                let group = channel / layer.columns;
                let dx: f64 = (group * group_outputs..(group + 1) * group_outputs)
                    .map(|o| {
                        weight.data[o * layer.columns + channel % layer.columns] as f64
                            * upstream.data[(n * layer.outputs + o) * locations + s] as f64
                    })
                    .sum();
                g.corners(position, |[z, y, x], _, slopes| {
                    let value = sign * dx * image.at(n, c, z, y, x) as f64;
                    for axis in 0..3 {
                        let extent = (g.size[axis] - 1) as f64;
                        sums[(k * g.terms + j) * 3 + 2 - axis] += value * slopes[axis] * extent / 2.0;
                    }
                });
            }
        });
        let sums = sums.into_iter().map(|v| v as f32).collect();
        vec![Tensor::new(&rest[1].shape, sums)]
    }
}

const TOTAL: Shader = shader!(
    "obelisk_layer_total",
    "common/divide",
    "common/obelisk",
    "common/sum64",
    "common/trilinear"; Sampling);

impl Op for ObeliskLayerWeightGradient {
    fn name(&self) -> &'static str {
        "obelisk_layer_weight_gradient"
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>, GraphError> {
        let layer = Layer::new(self.name(), &inputs[..inputs.len().saturating_sub(1)], &self.0)?;
        layer.check_upstream(self.name(), inputs)?;
        Ok(vec![layer.weight])
    }

    fn dispatches(&self, io: &mut Io, caps: &Caps) -> Result<Vec<Dispatch>, GraphError> {
        let upstream = io.inputs.len() - 1;
        let layer = Layer::new(self.name(), &io.inputs[..upstream], &self.0)?;
        if caps.target.lanes().is_some() {
            let unused = io.scratch(io.inputs[1].bytes());
            return Ok(layer.gradients(io, caps, unused, BufferRef::Output(0)));
        }
        let (pieces, run) = layer.pieces(8);
        let z = layer.groups * pieces * layer.columns.div_ceil(2);
        let features = layer.features();
        let runs = slices(&[&features], caps);
        let numbers = z * 2 * run * 4;
        let threads = layer.threads(&runs, z, numbers);
        let partials: usize = threads.iter().sum();
        let sums = io.scratch((numbers * partials * 4) as u64);
        let mut dispatches = Vec::new();
        let mut partial_base = 0;
        for (part, threads) in runs.iter().zip(threads) {
            let count = layer.locations(part);
            dispatches.push(Dispatch {
                constants: layer.constants(run),
                params: Sampling {
                    count: int(count),
                    first: int(part.first),
                    partials: int(partials),
                    partial_base: int(partial_base),
                    threads: int(threads),
                    pieces: int(pieces),
                    ..layer.params()
                }
                .into(),
                bindings: vec![
                    read(BufferRef::Input(0)),
                    part.of(&features, read(BufferRef::Input(upstream))),
                    read(BufferRef::Input(1)),
                    read(BufferRef::Input(upstream - 2)), // the offsets stand in for points where there are none
                    write(sums),
                ],
                workgroups: [(threads / 64) as u32, 1, z as u32],
                iterations: count.div_ceil(threads) as u64,
                flops: (count
                    * layer.columns
                    * (layer.outputs * 2 + layer.groups * pieces * layer.g.terms * 32))
                    as u64,
                ..Dispatch::new(
                    shader!(
                        "obelisk_layer_weight_gradient",
                        "common/divide",
                        "common/obelisk",
                        "common/trilinear"; Sampling),
                    "main",
                )
            });
            partial_base += threads;
        }
        let count = layer.weight.count();
        dispatches.push(Dispatch {
            constants: layer.total_constants(run, 2),
            params: Sampling {
                count: int(count),
                partials: int(partials),
                pieces: int(pieces),
                ..layer.params()
            }
            .into(),
            bindings: vec![read(sums), write(BufferRef::Output(0))],
            workgroups: linear_groups(count, 64),
            iterations: partials as u64,
            flops: (count * partials) as u64,
            ..Dispatch::new(TOTAL, "weights_total")
        });
        Ok(dispatches)
    }

    fn reference(&self, inputs: &[&Tensor], step: &StepScalars) -> Vec<Tensor> {
        let (upstream, rest) = inputs.split_last().expect("checked on insertion");
        let layer = self.0.host_layer(rest);
        let x = self.0.samples(&rest[..rest.len() - 1], step);
        let locations: usize = layer.g.grid.iter().product();
        let channels = layer.g.c * layer.g.k;
        let group_outputs = layer.outputs / layer.groups;
        let gradient = Tensor::from_fn(&layer.weight.shape, |i| {
            let (o, column) = (i / layer.columns, i % layer.columns);
            let channel = o / group_outputs * layer.columns + column;
            (0..layer.g.n * locations)
                .map(|j| {
                    let (n, s) = (j / locations, j % locations);
                    upstream.data[(n * layer.outputs + o) * locations + s] as f64
                        * x.data[(n * channels + channel) * locations + s] as f64
                })
                .sum::<f64>() as f32
        });
        vec![gradient]
    }
}

impl Op for ObeliskLayerGradients {
    fn name(&self) -> &'static str {
        "obelisk_layer_gradients"
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>, GraphError> {
        let offsets = ObeliskLayerOffsetGradient(self.0).outputs(inputs)?;
        Ok([offsets, ObeliskLayerWeightGradient(self.0).outputs(inputs)?].concat())
    }

    fn dispatches(&self, io: &mut Io, caps: &Caps) -> Result<Vec<Dispatch>, GraphError> {
        if caps.target.lanes().is_some() {
            let inputs = &io.inputs[..io.inputs.len() - 1];
            let layer = Layer::new(self.name(), inputs, &self.0)?;
            return Ok(layer.gradients(io, caps, BufferRef::Output(0), BufferRef::Output(1)));
        }
        let mut dispatches = ObeliskLayerOffsetGradient(self.0).dispatches(io, caps)?;
        let mut weights = ObeliskLayerWeightGradient(self.0).dispatches(io, caps)?;
        for binding in weights.iter_mut().flat_map(|d| &mut d.bindings) {
            if binding.buffer == BufferRef::Output(0) {
                binding.buffer = BufferRef::Output(1);
            }
        }
        dispatches.extend(weights);
        Ok(dispatches)
    }

    fn reference(&self, inputs: &[&Tensor], step: &StepScalars) -> Vec<Tensor> {
        let offsets = ObeliskLayerOffsetGradient(self.0).reference(inputs, step);
        [
            offsets,
            ObeliskLayerWeightGradient(self.0).reference(inputs, step),
        ]
        .concat()
    }
}

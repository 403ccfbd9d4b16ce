//! Tiles through the network, and their logits to labels (`predict_from_raw_data.py`, `export_prediction.py`).

use std::collections::VecDeque;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use half::f16;
use half::slice::HalfFloatSliceExt;

use super::plan::{Labels, Plan};
use super::prepare::{Placement, PrepareError, Prepared, padded_size, prepare, signed};
use super::resample::Pair;
use super::{Model, network};
use crate::gpu::{Device, Executable, GpuError, Reading, Weights};
use crate::graph::GraphError;
use crate::host_memory::{self, TooLarge};
use crate::op::StepScalars;
use crate::preprocess::crop_or_pad_values;
use crate::tensor::Tensor;
use crate::volume::{Geometry, Reorientation, Volume};

/// The share of a patch between two tiles, where the scan does not want less.
pub const STEP: f64 = 0.5;
/// The Gaussian's standard deviation over the patch, how many of them are taken on each side, and its peak.
const SIGMA: f64 = 1.0 / 8.0;
const TRUNCATED: f64 = 4.0;
const PEAK: f64 = 10.0;
/// Parts of an axis that are tried for the columns of a scan.
const MOST_PARTS: usize = 64;
/// Bytes of logits where the system does not say what is free, as in a browser.
const WITHOUT_A_LIMIT: u64 = 1 << 30;

/// What can go wrong while predicting.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NnunetError {
    /// The scan does not fit the model.
    #[error(transparent)]
    Prepare(#[from] PrepareError),
    /// The network can't be built or planned.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// The device failed.
    #[error(transparent)]
    Gpu(#[from] GpuError),
    /// There is no memory for the logits.
    #[error("the scan's logits are too large: {0}")]
    Memory(#[from] TooLarge),
    /// The network gave what is no number.
    #[error("the logits of the scan are not finite: its weights or the scan are damaged")]
    NotFinite,
    /// The caller said so.
    #[error("stopped before the end")]
    Stopped,
}

/// A model ready to segment scans.
#[derive(Debug)]
pub struct Segmenter {
    model: Arc<Model>,
    weights: Weights,
    executable: Executable,
    /// The fold whose tensors are on the device.
    loaded: usize,
    gaussian: Vec<f32>,
    /// How a tile is mirrored, pass by pass.
    mirrored: Vec<Reorientation>,
}

/// Logits of a scan on the network's grid, in half precision. nnU-Net adds its tiles up in it, which shows in a scan's corners:
/// there a tile counts so little that its products with the weight lose most of their digits.
#[derive(Debug)]
pub struct Logits {
    /// `[outputs, D, H, W]`.
    data: Vec<f16>,
    prepared: Prepared,
}

impl Logits {
    /// How many outputs there are.
    pub fn outputs(&self) -> usize {
        self.data.len() / self.prepared.size.iter().product::<usize>()
    }
}

impl Segmenter {
    /// Plans the network. `mirroring` runs each tile along all the axes that the model allows.
    ///
    /// # Errors
    /// Tensors that are missing or of other shapes, and a device that has not the memory.
    pub async fn new(device: &Device, model: Arc<Model>, mirroring: bool) -> Result<Segmenter, NnunetError> {
        let graph = network::graph(&model.plan)?;
        let plan = crate::plan::Plan::new(&graph, device.caps())?;
        tracing::debug!("inference plan:\n{plan}");
        let weights = Weights::new(device, &plan, false).await?;
        weights.upload(device, &model.folds[0])?;
        let axes = match mirroring {
            true => model.plan.mirrored_axes(),
            false => vec![Vec::new()],
        };
        Ok(Segmenter {
            executable: Executable::new(device, plan, &weights).await?,
            weights,
            loaded: 0,
            gaussian: gaussian(model.plan.patch),
            mirrored: axes.iter().map(|axes| Reorientation::mirror(axes)).collect(),
            model,
        })
    }

    /// Label values `[X, Y, Z]` of a scan on its own grid. `watch` hears the share of the tiles that are done; `Break` ends it.
    ///
    /// Logits never exist as a whole: tiles go along the first axis, planes that no further tile reaches are resampled and
    /// compared, output by output, and dropped. Where the planes of a tile's depth take more memory than there is, the scan is
    /// done in columns, for which the tiles at their borders are computed again.
    ///
    /// # Errors
    /// A scan that does not fit the model, no memory, the device's failures.
    pub async fn labels(
        &mut self,
        device: &Device,
        scans: Vec<Volume>,
        watch: &mut dyn FnMut(f64) -> ControlFlow<()>,
    ) -> Result<Vec<i32>, NnunetError> {
        self.labels_within(device, scans, None, watch).await
    }

    /// [`Segmenter::labels`] with at most so many bytes for logits, where that is enough for one column.
    ///
    /// # Errors
    /// As [`Segmenter::labels`].
    pub async fn labels_within(
        &mut self,
        device: &Device,
        scans: Vec<Volume>,
        most: Option<u64>,
        watch: &mut dyn FnMut(f64) -> ControlFlow<()>,
    ) -> Result<Vec<i32>, NnunetError> {
        let model = self.model.clone();
        let plan = &model.plan;
        let prepared = prepare(plan, scans)?;
        let (_, inner) = prepared.inner;
        let (box_size, spacing) = (prepared.placement.size(), prepared.placement.spacing);
        let Some(pairs) = plan
            .logits_resampling
            .pairs((inner, plan.spacing), (box_size, spacing))
        else {
            // A cubic spline sees all of a line.
            let logits = self.logits_of(device, prepared, watch).await?;
            return self.labels_of(&logits);
        };
        host_memory::require(host_memory::bytes(&box_size, 2))?;
        let mut labels = vec![0u16; box_size.iter().product()];
        let columns = self.columns(&prepared, &pairs, most)?;
        let tiles: usize = columns
            .iter()
            .map(|c| self.tiles_of(&prepared, &c.read).len())
            .sum();
        let mut report = self.report(tiles, watch);
        for column in columns {
            let mut painter = Painter::new(&plan.labels, &prepared, &pairs, &column, &mut labels);
            self.sweep(device, &prepared, &column.read, &mut report, |plane| {
                painter.plane(plane)
            })
            .await?;
        }
        let Prepared { placement, data, .. } = prepared;
        drop(data);
        restored(&plan.labels, labels, &placement)
    }

    /// Logits of a scan on the network's grid, the mean over the folds, all in memory.
    ///
    /// # Errors
    /// As [`Segmenter::labels`].
    pub async fn logits(
        &mut self,
        device: &Device,
        scans: Vec<Volume>,
        watch: &mut dyn FnMut(f64) -> ControlFlow<()>,
    ) -> Result<Logits, NnunetError> {
        let prepared = prepare(&self.model.plan, scans)?;
        self.logits_of(device, prepared, watch).await
    }

    async fn logits_of(
        &mut self,
        device: &Device,
        prepared: Prepared,
        watch: &mut dyn FnMut(f64) -> ControlFlow<()>,
    ) -> Result<Logits, NnunetError> {
        let outputs = self.model.plan.labels.names().len();
        let [depth, height, width] = prepared.size;
        let (volume, area) = (depth * height * width, height * width);
        host_memory::require(host_memory::bytes(&[outputs, volume], 2))?;
        let whole = Region {
            rows: 0..height,
            columns: 0..width,
        };
        let mut data = vec![f16::ZERO; outputs * volume];
        let mut report = self.report(self.tiles_of(&prepared, &whole).len(), watch);
        let mut at = 0;
        let mut keep = |plane: Vec<f16>| {
            for (own, to) in plane.chunks_exact(area).zip(data.chunks_exact_mut(volume)) {
                to[at..at + area].copy_from_slice(own);
            }
            at += area;
            Ok(())
        };
        self.sweep(device, &prepared, &whole, &mut report, &mut keep)
            .await?;
        Ok(Logits { data, prepared })
    }

    /// Calls `watch` with the share of the passes through the network that are done, after each of them.
    fn report<'w>(
        &self,
        tiles: usize,
        watch: &'w mut dyn FnMut(f64) -> ControlFlow<()>,
    ) -> impl FnMut() -> ControlFlow<()> + use<'w> {
        let passes = (self.model.folds.len() * tiles * self.mirrored.len()) as f64;
        let mut done = 0;
        move || {
            done += 1;
            watch(f64::from(done) / passes)
        }
    }

    /// First voxels of the tiles that touch a region, plane by plane.
    fn tiles_of(&self, prepared: &Prepared, region: &Region) -> Vec<[usize; 3]> {
        let patch = self.model.plan.patch;
        let touches = |start: usize, axis: usize, range: &Range<usize>| {
            start < range.end && start + patch[axis] > range.start
        };
        let mut tiles = tiles(prepared.size, patch);
        tiles.retain(|[_, y, x]| touches(*y, 1, &region.rows) && touches(*x, 2, &region.columns));
        tiles
    }

    /// Runs the tiles that touch a region and hands on its logits plane by plane, `[outputs, rows, columns]`.
    async fn sweep(
        &mut self,
        device: &Device,
        prepared: &Prepared,
        region: &Region,
        report: &mut impl FnMut() -> ControlFlow<()>,
        mut each: impl FnMut(Vec<f16>) -> Result<(), NnunetError>,
    ) -> Result<(), NnunetError> {
        let patch = self.model.plan.patch;
        let folds = self.model.folds.len();
        let tiles = self.tiles_of(prepared, region);
        let mut open = Open {
            planes: VecDeque::new(),
            first: 0,
            region,
            patch,
            outputs: self.model.plan.labels.names().len(),
        };
        // The host adds a pass up while the device computes the next, where there is memory for the logits of both.
        let pass = host_memory::bytes(&[open.outputs, patch.iter().product()], 4);
        let ahead = host_memory::available() / 8 > pass;
        let rows: Vec<&[[usize; 3]]> = tiles.chunk_by(|a, b| a[0] == b[0]).collect();
        for (i, row) in rows.iter().enumerate() {
            open.reach(row[0][0] + patch[0], folds);
            let mut before: Option<Pass> = None;
            let mut sum = Vec::new();
            for fold in 0..folds {
                if self.loaded != fold {
                    self.weights.upload(device, &self.model.folds[fold])?;
                    self.loaded = fold;
                }
                for origin in row.iter() {
                    let tile = crop_or_pad_values(&prepared.data, prepared.size, signed(*origin), patch, 0.0);
                    for mirror in 0..self.mirrored.len() {
                        let pass = Pass {
                            logits: self.begin(device, &tile, mirror).await?,
                            origin: *origin,
                            fold,
                            mirror,
                        };
                        let done = if ahead { before.replace(pass) } else { Some(pass) };
                        if let Some(done) = done {
                            self.finish(device, done, &mut sum, &mut open).await?;
                        }
                        if report().is_break() {
                            return Err(NnunetError::Stopped);
                        }
                    }
                }
            }
            if let Some(last) = before {
                self.finish(device, last, &mut sum, &mut open).await?;
            }
            let end = rows.get(i + 1).map_or(prepared.size[0], |row| row[0][0]);
            for sums in open.planes.drain(..end - open.first) {
                each(sums.mean(folds)?)?;
            }
            open.first = end;
        }
        Ok(())
    }

    /// The columns of the scan's box that are done by themselves: as few tiles as memory allows.
    fn columns(
        &self,
        prepared: &Prepared,
        pairs: &[Vec<Pair>; 3],
        most: Option<u64>,
    ) -> Result<Vec<Column>, TooLarge> {
        let patch = self.model.plan.patch;
        let (outputs, folds) = (self.model.plan.labels.names().len(), self.model.folds.len());
        // Of a voxel: sums and weights of the planes of a tile, finished planes, two planes and the best in single precision.
        let voxel = (2 * patch[0] * (outputs * folds + 1) + 8 * outputs + 16) as u64;
        // Beside them there are a tile's logits: on a device in the host's memory, on the way from it, and here.
        let tile = 3 * host_memory::bytes(&[outputs, patch.iter().product()], 4);
        let free = match host_memory::available() {
            u64::MAX => WITHOUT_A_LIMIT,
            available => (available / 10 * 9).saturating_sub(tile),
        };
        let budget = most.unwrap_or(free);
        let cut = |parts: [usize; 2]| -> Vec<Column> {
            let [rows, columns] = [0, 1].map(|axis| {
                let all = pairs[axis + 1].len();
                (0..parts[axis])
                    .map(|i| i * all / parts[axis]..(i + 1) * all / parts[axis])
                    .collect::<Vec<_>>()
            });
            let column = |rows: &Range<usize>, columns: &Range<usize>| {
                let read = |axis: usize, range: &Range<usize>| {
                    let offset = prepared.inner.0[axis];
                    let own = &pairs[axis][range.clone()];
                    offset + own[0].low..offset + own[own.len() - 1].high + 1
                };
                Column {
                    read: Region {
                        rows: read(1, rows),
                        columns: read(2, columns),
                    },
                    written: Region {
                        rows: rows.clone(),
                        columns: columns.clone(),
                    },
                }
            };
            rows.iter()
                .flat_map(|r| columns.iter().map(move |c| column(r, c)))
                .collect()
        };
        let needed = |columns: &[Column]| {
            let areas = columns.iter().map(|c| c.read.area().max(c.written.area()) as u64);
            areas.max().unwrap_or(0) * voxel
        };
        let limits = [1, 2].map(|axis| pairs[axis].len().min(MOST_PARTS));
        let mut best: Option<(usize, usize, Vec<Column>)> = None;
        let mut least = u64::MAX;
        for rows in 1..=limits[0] {
            for columns in 1..=limits[1] {
                // In order of the parts, so that the fewest win among equals.
                let columns = cut([rows, columns]);
                least = least.min(needed(&columns));
                if needed(&columns) > budget {
                    continue;
                }
                let tiles: usize = columns
                    .iter()
                    .map(|c| self.tiles_of(prepared, &c.read).len())
                    .sum();
                if best
                    .as_ref()
                    .is_none_or(|(t, n, _)| (tiles, columns.len()) < (*t, *n))
                {
                    best = Some((tiles, columns.len(), columns));
                }
                break; // more columns cost more tiles
            }
        }
        match best {
            Some((.., columns)) => Ok(columns),
            None => {
                host_memory::require(least.saturating_add(tile))?;
                // Nine tenths of what is free do not do.
                Ok(cut(limits))
            }
        }
    }

    /// Starts a pass of a tile through the network.
    async fn begin(&self, device: &Device, tile: &[f32], mirror: usize) -> Result<Reading, NnunetError> {
        let patch = self.model.plan.patch;
        let shape = [1, self.model.plan.channels.len(), patch[0], patch[1], patch[2]];
        let image = Tensor::new(&shape, self.mirrored[mirror].apply(tile, shape[1], patch));
        self.executable.upload(device, "image", &image)?;
        self.executable.submit(device, &StepScalars::default())?;
        Ok(self.executable.begin_read(device, "logits").await?)
    }

    /// Adds a pass to the sum over its tile's mirror images, and the last one's mean to the planes.
    async fn finish(
        &self,
        device: &Device,
        pass: Pass,
        sum: &mut Vec<f32>,
        open: &mut Open<'_>,
    ) -> Result<(), NnunetError> {
        let found = pass.logits.finish(device).await?.data;
        let found = self.mirrored[pass.mirror].apply_owned(found, open.outputs, open.patch);
        match pass.mirror {
            0 => *sum = found,
            _ => sum.iter_mut().zip(&found).for_each(|(sum, v)| *sum += v),
        }
        let images = self.mirrored.len();
        if pass.mirror + 1 == images {
            if images > 1 {
                sum.iter_mut().for_each(|v| *v /= images as f32);
            }
            open.add(pass.origin, pass.fold, sum, &self.gaussian);
        }
        Ok(())
    }

    /// Labels `[X, Y, Z]` from logits, which are all in memory: each output is resampled to the scan's box by itself, against the
    /// best so far.
    ///
    /// # Errors
    /// No memory for an output at the scan's size.
    pub fn labels_of(&self, logits: &Logits) -> Result<Vec<i32>, NnunetError> {
        let placement = &logits.prepared.placement;
        let voxels: usize = placement.size().iter().product();
        host_memory::require(3 * host_memory::bytes(&[voxels], 4))?;
        let names = &self.model.plan.labels;
        let mut labels = vec![0; voxels];
        let mut best = vec![0.0; voxels];
        for output in 0..names.names().len() {
            let own = self.output(logits, output)?;
            choose(names, output, &own, &mut best, &mut labels);
        }
        restored(names, labels, placement)
    }

    /// Logits of one output at the size of the scan's box, `[D, H, W]`, axes transposed.
    ///
    /// # Errors
    /// No memory for them.
    pub fn output(&self, logits: &Logits, output: usize) -> Result<Vec<f32>, NnunetError> {
        let prepared = &logits.prepared;
        let volume: usize = prepared.size.iter().product();
        let (first, size) = prepared.inner;
        let own = &logits.data[output * volume..(output + 1) * volume];
        host_memory::require(host_memory::bytes(&size, 6))?;
        let inner = crop_or_pad_values(own, prepared.size, signed(first), size, f16::ZERO);
        let inner: Vec<f32> = inner.into_iter().map(f16::to_f32).collect();
        let placement = &prepared.placement;
        let mut resampled = self.model.plan.logits_resampling.apply(
            &inner,
            (size, self.model.plan.spacing),
            (placement.size(), placement.spacing),
        )?;
        resampled.iter_mut().for_each(|v| *v = f16::from_f32(*v).to_f32());
        Ok(resampled)
    }
}

/// How many tiles cover a scan of this geometry, at most: what is zero around it is left out.
///
/// # Errors
/// A scan that is too large on the plan's grid.
pub fn tile_count(plan: &Plan, geometry: &Geometry) -> Result<usize, PrepareError> {
    let size = padded_size(plan, geometry)?;
    Ok(tiles(size, plan.patch).len())
}

/// Rows and columns of all planes of a volume.
#[derive(Clone, Debug, PartialEq)]
struct Region {
    rows: Range<usize>,
    columns: Range<usize>,
}

impl Region {
    fn area(&self) -> usize {
        self.rows.len() * self.columns.len()
    }
}

/// A part of the scan's box, and the part of the network's grid that its logits come from.
#[derive(Clone, Debug)]
struct Column {
    read: Region,
    written: Region,
}

/// A tile on its way through the network.
struct Pass {
    logits: Reading,
    origin: [usize; 3],
    fold: usize,
    mirror: usize,
}

/// The planes of a region to which tiles are still added.
struct Open<'a> {
    planes: VecDeque<Sums>,
    /// The number of the first one.
    first: usize,
    region: &'a Region,
    patch: [usize; 3],
    outputs: usize,
}

impl Open<'_> {
    /// Opens all planes before that one.
    fn reach(&mut self, end: usize, folds: usize) {
        while self.first + self.planes.len() < end {
            let sums = Sums::new(folds * self.outputs, self.region.area());
            self.planes.push_back(sums);
        }
    }

    /// Adds a fold's logits of a tile, weighted, and once for all folds the weights.
    fn add(&mut self, origin: [usize; 3], fold: usize, logits: &[f32], weights: &[f32]) {
        let part = Part::new(self.region, origin, self.patch);
        let (area, volume) = (self.region.area(), self.patch.iter().product());
        let start = origin[0] - self.first;
        for (d, plane) in self.planes.range_mut(start..start + self.patch[0]).enumerate() {
            if fold == 0 {
                part.add(&mut plane.weights, d, weights, None);
            }
            let own = plane.sums[fold * self.outputs * area..].chunks_exact_mut(area);
            for (own, logits) in own.zip(logits.chunks_exact(volume)) {
                part.add(own, d, logits, Some(weights));
            }
        }
    }
}

/// A plane of a region to which tiles are still added.
struct Sums {
    /// `[folds, outputs, rows, columns]`
    sums: Vec<f16>,
    /// `[rows, columns]`
    weights: Vec<f16>,
}

impl Sums {
    fn new(outputs: usize, area: usize) -> Sums {
        Sums {
            sums: vec![f16::ZERO; outputs * area],
            weights: vec![f16::ZERO; area],
        }
    }

    /// Over their weights, and the mean of the folds: `[outputs, rows, columns]`. Each step is rounded, as nnU-Net's is.
    fn mean(self, folds: usize) -> Result<Vec<f16>, NnunetError> {
        let Sums { mut sums, weights } = self;
        let area = weights.len();
        let mut weight = vec![0.0; area];
        weights.convert_to_f32_slice(&mut weight);
        let (mut own, mut other) = (vec![0.0; area], vec![0.0; area]);
        for sums in sums.chunks_exact_mut(area) {
            sums.convert_to_f32_slice(&mut own);
            own.iter_mut()
                .zip(&weight)
                .for_each(|(sum, weight)| *sum /= weight);
            sums.convert_from_f32_slice(&own);
        }
        let each = sums.len() / folds;
        let (first, others) = sums.split_at_mut(each);
        for (i, to) in first.chunks_exact_mut(area).enumerate() {
            if folds > 1 {
                to.convert_to_f32_slice(&mut own);
                for fold in others.chunks_exact(each) {
                    fold[i * area..(i + 1) * area].convert_to_f32_slice(&mut other);
                    own.iter_mut().zip(&other).for_each(|(all, own)| *all += own);
                    to.convert_from_f32_slice(&own);
                    to.convert_to_f32_slice(&mut own);
                }
                own.iter_mut().for_each(|v| *v /= folds as f32);
                to.convert_from_f32_slice(&own);
            }
            if !to.iter().all(|v| v.is_finite()) {
                return Err(NnunetError::NotFinite);
            }
        }
        sums.truncate(each);
        Ok(sums)
    }
}

/// What a tile and a region have in common, in each plane.
struct Part {
    patch: [usize; 3],
    /// First row and column in the tile and in the region, and how many.
    rows: [usize; 3],
    columns: [usize; 3],
    /// Columns of the region.
    width: usize,
}

impl Part {
    fn new(region: &Region, origin: [usize; 3], patch: [usize; 3]) -> Part {
        let common = |axis: usize, range: &Range<usize>| {
            let first = range.start.max(origin[axis]);
            let end = range.end.min(origin[axis] + patch[axis]);
            [first - origin[axis], first - range.start, end - first]
        };
        Part {
            patch,
            rows: common(1, &region.rows),
            columns: common(2, &region.columns),
            width: region.columns.len(),
        }
    }

    /// Adds plane `d` of a tile's values, each times its weight, to a plane of the region.
    fn add(&self, to: &mut [f16], d: usize, values: &[f32], weights: Option<&[f32]>) {
        let [_, height, width] = self.patch;
        let [from_column, to_column, columns] = self.columns;
        let mut sums = vec![0.0f32; columns];
        for row in 0..self.rows[2] {
            let at = (d * height + self.rows[0] + row) * width + from_column;
            let start = (self.rows[1] + row) * self.width + to_column;
            let to = &mut to[start..start + columns];
            to.convert_to_f32_slice(&mut sums);
            let values = &values[at..at + columns];
            match weights {
                Some(weights) => sums
                    .iter_mut()
                    .zip(values.iter().zip(&weights[at..at + columns]))
                    .for_each(|(sum, (value, weight))| *sum += value * weight),
                None => sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += value),
            }
            to.convert_from_f32_slice(&sums);
        }
    }
}

/// Turns the planes of a column's logits into labels of the scan's box, as soon as the planes around one are there.
struct Painter<'a> {
    labels: &'a Labels,
    pairs: &'a [Vec<Pair>; 3],
    /// Where the scan begins in the padded grid, and its size there.
    inner: ([usize; 3], [usize; 3]),
    column: &'a Column,
    /// Indices of outputs, or of regions counted from 1, `[D, H, W]` of the box.
    to: &'a mut [u16],
    size: [usize; 3],
    /// Finished planes by their number, those that are still needed.
    held: VecDeque<(usize, Vec<f16>)>,
    /// Planes that came so far, padding included.
    came: usize,
    /// The next plane of the box.
    next: usize,
}

impl<'a> Painter<'a> {
    fn new(
        labels: &'a Labels,
        prepared: &Prepared,
        pairs: &'a [Vec<Pair>; 3],
        column: &'a Column,
        to: &'a mut [u16],
    ) -> Painter<'a> {
        Painter {
            labels,
            pairs,
            inner: prepared.inner,
            column,
            to,
            size: prepared.placement.size(),
            held: VecDeque::new(),
            came: 0,
            next: 0,
        }
    }

    fn plane(&mut self, logits: Vec<f16>) -> Result<(), NnunetError> {
        let number = self.came.checked_sub(self.inner.0[0]);
        self.came += 1;
        let Some(number) = number.filter(|number| *number < self.inner.1[0]) else {
            return Ok(());
        };
        self.held.push_back((number, logits));
        while let Some(pair) = self.pairs[0].get(self.next).filter(|pair| pair.high <= number) {
            self.paint(pair);
            self.next += 1;
        }
        let needed = self.pairs[0].get(self.next).map_or(usize::MAX, |pair| pair.low);
        while self.held.front().is_some_and(|(number, _)| *number < needed) {
            self.held.pop_front();
        }
        Ok(())
    }

    /// The next plane of the box, between two planes of logits.
    fn paint(&mut self, across: &Pair) {
        let held = |number: usize| {
            let found = self.held.iter().find(|(own, _)| *own == number);
            &found.expect("planes come in order").1[..]
        };
        let (low, high) = (held(across.low), held(across.high));
        let read = &self.column.read;
        let written = &self.column.written;
        let (area, width) = (read.area(), read.columns.len());
        let columns = written.columns.len();
        let (mut plane, mut other) = (vec![0.0f32; area], vec![0.0f32; area]);
        let (mut row, mut values) = (vec![0.0f32; width], vec![0.0f32; columns]);
        let mut rounded = vec![f16::ZERO; columns];
        let mut best = vec![0.0f32; written.area()];
        let [_, first_row, first_column] = self.inner.0;
        let in_row = |voxel: usize| first_row + voxel - read.rows.start;
        let in_column = |voxel: usize| first_column + voxel - read.columns.start;
        for output in 0..self.labels.names().len() {
            low[output * area..(output + 1) * area].convert_to_f32_slice(&mut plane);
            if across.share > 0.0 {
                high[output * area..(output + 1) * area].convert_to_f32_slice(&mut other);
                let between = |(low, high): (&mut f32, &f32)| *low = across.between(*low, *high);
                plane.iter_mut().zip(&other).for_each(between);
            }
            for (i, y) in written.rows.clone().enumerate() {
                let pair = &self.pairs[1][y];
                let [low, high] = [pair.low, pair.high].map(|voxel| &plane[in_row(voxel) * width..][..width]);
                let between = |(to, (low, high)): (&mut f32, (&f32, &f32))| *to = pair.between(*low, *high);
                row.iter_mut().zip(low.iter().zip(high)).for_each(between);
                for (to, pair) in values.iter_mut().zip(&self.pairs[2][written.columns.clone()]) {
                    *to = pair.between(row[in_column(pair.low)], row[in_column(pair.high)]);
                }
                // nnU-Net's resampled logits are in half precision, too.
                rounded.convert_from_f32_slice(&values);
                rounded.convert_to_f32_slice(&mut values);
                let start = (self.next * self.size[1] + y) * self.size[2] + written.columns.start;
                let labels = &mut self.to[start..start + columns];
                let best = &mut best[i * columns..(i + 1) * columns];
                choose(self.labels, output, &values, best, labels);
            }
        }
    }
}

/// Lets an output compete for voxels: `labels` are indices of the outputs before it, or of regions counted from 1, and `best`
/// their logits.
fn choose(names: &Labels, output: usize, logits: &[f32], best: &mut [f32], labels: &mut [u16]) {
    match names {
        Labels::Exclusive(_) if output == 0 => best.copy_from_slice(logits),
        Labels::Exclusive(_) => {
            for ((label, best), logit) in labels.iter_mut().zip(best).zip(logits) {
                if logit > best {
                    (*label, *best) = (output as u16, *logit);
                }
            }
        }
        // A probability above a half.
        Labels::Regions(_) => {
            for (label, _) in labels.iter_mut().zip(logits).filter(|(_, logit)| **logit > 0.0) {
                *label = output as u16 + 1;
            }
        }
    }
}

/// Label values `[X, Y, Z]` of the scan from indices in its box.
fn restored(names: &Labels, labels: Vec<u16>, placement: &Placement) -> Result<Vec<i32>, NnunetError> {
    let background = matches!(names, Labels::Regions(_)).then_some(0);
    let values = names.names().iter().map(|name| name.value);
    let values: Vec<i32> = background.into_iter().chain(values).collect();
    let labels = placement.restore(labels, 0)?;
    host_memory::require(host_memory::bytes(&[labels.len()], 4))?;
    let value = |index: u16| values[usize::from(index)];
    Ok(labels.into_iter().map(value).collect())
}

/// First voxels of the tiles that cover a volume: as far apart as [`STEP`] allows, evenly.
fn tiles(size: [usize; 3], patch: [usize; 3]) -> Vec<[usize; 3]> {
    let [d, h, w] = [0, 1, 2].map(|a| starts(size[a], patch[a]));
    let rows = d.iter().flat_map(|d| h.iter().map(move |h| (*d, *h)));
    rows.flat_map(|(d, h)| w.iter().map(move |w| [d, h, *w]))
        .collect()
}

fn starts(size: usize, patch: usize) -> Vec<usize> {
    let most = (size - patch) as f64;
    let count = (most / (patch as f64 * STEP)).ceil() as usize + 1;
    let apart = most / (count.max(2) - 1) as f64;
    (0..count)
        .map(|i| (apart * i as f64).round_ties_even() as usize)
        .collect()
}

/// How much a tile's voxels count: nnU-Net's, which has them in half precision.
fn gaussian(patch: [usize; 3]) -> Vec<f32> {
    let axes = patch.map(|size| {
        let sigma = size as f64 * SIGMA;
        let radius = (TRUNCATED * sigma + 0.5) as usize;
        let at = |i: usize| (-0.5 * (i as f64 / sigma).powi(2)).exp();
        let centre = size / 2;
        let one = |i: usize| {
            let distance = i.abs_diff(centre);
            if distance <= radius { at(distance) } else { 0.0 }
        };
        (0..size).map(one).collect::<Vec<f64>>()
    });
    let [d, h, w] = &axes;
    let mut weights: Vec<f32> = Vec::with_capacity(patch.iter().product());
    for z in d {
        for y in h {
            weights.extend(
                w.iter()
                    .map(|x| f16::from_f32((PEAK * z * y * x) as f32).to_f32()),
            );
        }
    }
    let least = weights
        .iter()
        .copied()
        .filter(|v| *v > 0.0)
        .fold(f32::INFINITY, f32::min);
    weights.iter_mut().filter(|v| **v == 0.0).for_each(|v| *v = least);
    weights
}

#[cfg(test)]
mod tests {
    use super::*;

    /// nnU-Net's own example: 110 voxels, tiles of 64.
    #[test]
    fn tiles_begin_where_nnunets_do() {
        assert_eq!(starts(110, 64), [0, 23, 46]);
        assert_eq!(starts(64, 64), [0]);
        assert_eq!(starts(65, 64), [0, 1]);
    }

    #[test]
    fn weights_are_highest_in_the_middle_and_never_zero() {
        let weights = gaussian([8, 6, 32]);
        assert_eq!(weights[(4 * 6 + 3) * 32 + 16], 10.0);
        assert!(weights.iter().all(|w| *w > 0.0 && *w <= 10.0));
    }
}

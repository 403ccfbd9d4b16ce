//! Prediction at any set of locations, at a cost in proportion to their number.

pub mod table;

use std::collections::HashMap;

use crate::finite::is_finite;
use crate::gpu::{Device, Executable, GpuError, Resident, Weights};
use crate::graph::{Graph, GraphError};
use crate::model::{At, Builder, Network, PointNetwork, Site};
use crate::op::StepScalars;
use crate::op::upsample::Upsample;
use crate::plan::Plan;
use crate::preprocess::{
    Placement, Prepared, Preprocessing, TileMerger, check_grid, check_tiles, crop_or_pad, tiles,
};
use crate::tensor::{Spec, Tensor};
use crate::volume::Volume;

use super::PredictError;

/// Locations of the largest plan; more run in turns.
const MOST_POINTS: usize = 16_384;
/// Locations of the smallest plan.
const LEAST_POINTS: usize = 64;

/// What a scan goes through once before any location of it is looked at: uploaded and smoothed on the device, where it
/// stays in a buffer of its own.
#[derive(Debug)]
pub struct Smoother {
    executable: Executable,
}

impl Smoother {
    /// Plans the smoothing of images `[C, D, H, W]` of that shape.
    pub async fn new(
        device: &Device,
        network: &PointNetwork,
        shape: [usize; 4],
    ) -> Result<Smoother, PredictError> {
        let mut graph = Graph::new();
        let [c, d, h, w] = shape;
        let image = graph.input("image", Spec::flat(&[1, c, d, h, w]))?;
        let smoothed = (network.smooth)(&mut graph, image)?;
        graph.keep("smoothed", smoothed);
        let plan = Plan::new(&graph, device.caps())?;
        let weights = Weights::new(device, &plan, false).await?;
        let executable = Executable::new(device, plan, &weights).await?;
        Ok(Smoother { executable })
    }

    /// The smoothed image, on the device.
    pub async fn smooth(&self, device: &Device, mut image: Tensor) -> Result<Resident, GpuError> {
        image.shape.insert(0, 1);
        self.executable.upload(device, "image", &image)?;
        self.executable.submit(device, &StepScalars::default())?;
        self.executable.resident(device, "smoothed").await
    }
}

/// A network that gives logits at any locations of a scan. The scan is smoothed on the device once; then locations, or
/// regular grids, can be asked for again and again, each at a cost in proportion to its number of locations.
#[derive(Debug)]
pub struct PointPredictor {
    network: Network,
    points: PointNetwork,
    preprocessing: Preprocessing,
    tensors: HashMap<String, Tensor>,
    weights: Option<Weights>,
    /// Of the grid that the scan was cut to.
    smoother: Option<([usize; 3], Smoother)>,
    planned: HashMap<Where, Executable>,
    scan: Option<LoadedScan>,
}

/// What a plan looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Where {
    /// So many points.
    Points(usize),
    /// A regular grid, upsampled to the tile.
    Grid([usize; 3]),
}

#[derive(Debug)]
struct LoadedScan {
    placement: Placement,
    /// Millimetres of the prepared array's voxels.
    spacing: [f64; 3],
    /// What each tile's first voxel is in the prepared array, and its smoothed image.
    tiles: Vec<([isize; 3], Resident)>,
}

fn finite(logits: Tensor) -> Result<Tensor, PredictError> {
    match is_finite(&logits) {
        true => Ok(logits),
        false => Err(PredictError::NotFinite { layer: None }),
    }
}

impl PointPredictor {
    /// A predictor with weights by name; nothing is planned before a scan is there.
    ///
    /// # Errors
    /// A network that sees whole images only.
    pub fn new(
        network: &Network,
        preprocessing: &Preprocessing,
        tensors: &HashMap<String, Tensor>,
    ) -> Result<PointPredictor, PredictError> {
        Ok(PointPredictor {
            network: *network,
            points: *point_network(network)?,
            preprocessing: preprocessing.clone(),
            tensors: tensors.clone(),
            weights: None,
            smoother: None,
            planned: HashMap::new(),
            scan: None,
        })
    }

    /// Preprocesses a scan and smooths it on the device, in place of the scan before.
    pub async fn load(&mut self, device: &Device, scan: &Volume) -> Result<(), PredictError> {
        let prepared = self.preprocessing.prepare_image(scan)?;
        let spacing = prepared.placement.spacing(scan.geometry.spacing);
        self.load_prepared(device, &prepared, spacing).await
    }

    /// [`PointPredictor::load`] of a preprocessed scan; `spacing` is the prepared array's in mm (D, H, W).
    pub async fn load_prepared(
        &mut self,
        device: &Device,
        prepared: &Prepared,
        spacing: [f64; 3],
    ) -> Result<(), PredictError> {
        self.scan = None; // its memory is free for the next
        let shape = prepared.placement.shape();
        let grid = self.preprocessing.grid.unwrap_or(shape);
        check_tiles(shape, grid).map_err(PredictError::Grid)?;
        if self.smoother.as_ref().is_none_or(|(planned, _)| *planned != grid) {
            self.planned.clear();
            self.smoother = None;
            let [d, h, w] = grid;
            let shape = [self.preprocessing.channels.len(), d, h, w];
            self.smoother = Some((grid, Smoother::new(device, &self.points, shape).await?));
        }
        let (_, smoother) = self.smoother.as_ref().expect("planned above");
        let mut smoothed = Vec::new();
        for origin in tiles(shape, grid) {
            let image = crop_or_pad(&prepared.image, origin, grid, 0.0);
            smoothed.push((origin, smoother.smooth(device, image).await?));
        }
        self.scan = Some(LoadedScan {
            placement: prepared.placement,
            spacing,
            tiles: smoothed,
        });
        Ok(())
    }

    /// Logits `[L, S]` at positions in the scan's own voxels (i, j, k; whole numbers are centres). A position that several
    /// tiles of a large scan hold is looked at in the one whose middle is nearest.
    ///
    /// # Errors
    /// No scan is loaded, or a position lies outside it.
    pub async fn at(&mut self, device: &Device, voxels: &[[f64; 3]]) -> Result<Tensor, PredictError> {
        let (scan, grid) = self.loaded()?;
        let shape = scan.placement.shape();
        let mut by_tile: Vec<Vec<(usize, [f64; 3])>> = vec![Vec::new(); scan.tiles.len()];
        for (i, voxel) in voxels.iter().enumerate() {
            let position = scan.placement.position(*voxel);
            let inside = |axis: usize| {
                position[axis] >= -0.5 - 1e-6 && position[axis] <= shape[axis] as f64 - 0.5 + 1e-6
            };
            if !(0..3).all(inside) {
                return Err(PredictError::Outside {
                    index: i,
                    voxel: *voxel,
                });
            }
            let origins = scan.tiles.iter().map(|(origin, _)| *origin);
            by_tile[nearest(position, origins, grid)].push((i, position));
        }
        let classes = self.preprocessing.labels.len();
        let mut logits = Tensor::zeros(&[classes, voxels.len()]);
        for (tile, points) in by_tile.iter().enumerate() {
            for chunk in points.chunks(MOST_POINTS) {
                let found = self.at_tile(device, tile, chunk).await?;
                let planned = found.data.len() / classes;
                for (j, (i, _)) in chunk.iter().enumerate() {
                    for class in 0..classes {
                        logits.data[class * voxels.len() + i] = found.data[class * planned + j];
                    }
                }
            }
        }
        Ok(logits)
    }

    /// Logits `[L, planned]` of at most [`MOST_POINTS`] positions; those past the last repeat the first.
    async fn at_tile(
        &mut self,
        device: &Device,
        tile: usize,
        points: &[(usize, [f64; 3])],
    ) -> Result<Tensor, PredictError> {
        let planned = planned_points(points.len());
        let (scan, grid) = self.loaded()?;
        let (origin, image) = scan.tiles[tile].clone();
        let normalised = |position: [f64; 3]| {
            [2, 1, 0].map(|axis| match grid[axis] {
                1 => 0.0,
                n => ((position[axis] - origin[axis] as f64) * 2.0 / (n - 1) as f64 - 1.0) as f32,
            })
        };
        let data: Vec<f32> = (0..planned)
            .flat_map(|i| normalised(points.get(i).unwrap_or(&points[0]).1))
            .collect();
        let executable = self.plan_for(device, Where::Points(planned)).await?;
        executable.bind(device, "image", &image).await?;
        executable.upload(device, "points", &Tensor::new(&[1, planned, 3], data))?;
        executable.submit(device, &StepScalars::default())?;
        finite(executable.read(device, "logits").await?)
    }

    /// Logits `[L, D, H, W]` on the prepared grid, from a regular grid of about `spacing` mm that is upsampled to it.
    ///
    /// # Errors
    /// No scan is loaded, it declares no spacing, or the grid's spacing is not positive or too fine.
    pub async fn grid(&mut self, device: &Device, spacing: f64) -> Result<Tensor, PredictError> {
        let (scan, grid) = self.loaded()?;
        if !(spacing > 0.0 && spacing.is_finite() && scan.spacing.iter().all(|s| *s > 0.0)) {
            let message = format!(
                "a grid of {spacing} mm can't be laid over voxels of {:?} mm",
                scan.spacing
            );
            return Err(GraphError::Name(message).into());
        }
        let cells: [usize; 3] = std::array::from_fn(|axis| {
            ((grid[axis] as f64 * scan.spacing[axis] / spacing).round() as usize).max(1)
        });
        check_grid(cells).map_err(|problem| {
            let millimetres = scan.spacing;
            GraphError::Name(format!(
                "a grid of {spacing} mm over {grid:?} voxels of {millimetres:?} mm: {problem}; take a coarser one"
            ))
        })?;
        let (shape, tiles) = (scan.placement.shape(), scan.tiles.clone());
        let mut merger = TileMerger::new(self.preprocessing.labels.len(), shape, grid)?;
        let executable = self.plan_for(device, Where::Grid(cells)).await?;
        for (origin, image) in tiles {
            executable.bind(device, "image", &image).await?;
            executable.submit(device, &StepScalars::default())?;
            let logits = finite(executable.read(device, "logits").await?)?;
            merger.add(origin, &logits.data);
        }
        Ok(merger.finish())
    }

    /// Label values `[X, Y, Z]` of a scan on its own grid with the logits on the prepared one, from a regular grid of about
    /// `spacing` mm.
    pub async fn segment(
        &mut self,
        device: &Device,
        scan: &Volume,
        spacing: f64,
    ) -> Result<(Vec<i32>, Tensor), PredictError> {
        self.load(device, scan).await?;
        let logits = self.grid(device, spacing).await?;
        let (scan, _) = self.loaded()?;
        Ok((
            self.preprocessing.restore_labels(&logits, &scan.placement),
            logits,
        ))
    }

    /// The preprocessing that scans go through.
    pub fn preprocessing(&self) -> &Preprocessing {
        &self.preprocessing
    }

    /// The scan and the grid that it was cut to.
    fn loaded(&self) -> Result<(&LoadedScan, [usize; 3]), PredictError> {
        match (&self.scan, &self.smoother) {
            (Some(scan), Some((grid, _))) => Ok((scan, *grid)),
            _ => Err(GraphError::Name(format!(
                "{}: load a scan before asking for points",
                self.network.name
            ))
            .into()),
        }
    }

    async fn plan_for(&mut self, device: &Device, what: Where) -> Result<&mut Executable, PredictError> {
        if !self.planned.contains_key(&what) {
            let (_, grid) = self.loaded()?;
            let plan = Plan::new(&self.graph(grid, what)?, device.caps())?;
            if self.weights.is_none() {
                let weights = Weights::new(device, &plan, false).await?;
                weights.upload(device, &self.tensors)?;
                self.weights = Some(weights);
            }
            let weights = self.weights.as_ref().expect("made above");
            self.planned
                .insert(what, Executable::new(device, plan, weights).await?);
        }
        Ok(self.planned.get_mut(&what).expect("planned above"))
    }

    /// From the resident `image` of a tile to `logits`.
    fn graph(&self, grid: [usize; 3], what: Where) -> Result<Graph, GraphError> {
        let mut graph = Graph::new();
        let [d, h, w] = grid;
        let channels = self.preprocessing.channels.len();
        let image = graph.resident("image", Spec::flat(&[1, channels, d, h, w]))?;
        let at = match what {
            Where::Points(count) => At::Points(graph.input("points", Spec::flat(&[1, count, 3]))?),
            Where::Grid(cells) => (self.points.grid)(cells),
        };
        let mut builder = Builder::new(&mut graph, false);
        let site = Site {
            image,
            at,
            theta: None,
        };
        let mut logits = (self.points.at)(&mut builder, &[site], self.preprocessing.labels.len())?;
        if let Where::Grid(_) = what {
            logits = graph.push1(Upsample { size: grid }, &[logits])?;
        }
        graph.keep("logits", logits);
        Ok(graph)
    }
}

/// Locations of the plan that looks at `points` of them: at most a sixteenth more beyond a thousand, and
/// few different plans, each of which keeps its memory.
fn planned_points(points: usize) -> usize {
    let part = (points.next_power_of_two() / 32).max(LEAST_POINTS);
    points.next_multiple_of(part).clamp(LEAST_POINTS, MOST_POINTS)
}

/// The tile whose middle is nearest to a position.
fn nearest(position: [f64; 3], origins: impl Iterator<Item = [isize; 3]>, grid: [usize; 3]) -> usize {
    let distance = |origin: [isize; 3]| -> f64 {
        (0..3)
            .map(|a| ((position[a] - origin[a] as f64 + 0.5) / grid[a] as f64 - 0.5).powi(2))
            .sum()
    };
    let tiles = origins.map(distance).enumerate();
    tiles.min_by(|a, b| a.1.total_cmp(&b.1)).map_or(0, |(i, _)| i)
}

/// The network's own locations, or why it has none.
pub(crate) fn point_network(network: &Network) -> Result<&PointNetwork, GraphError> {
    network.points.as_ref().ok_or_else(|| {
        GraphError::Name(format!(
            "`{}` sees whole images only; networks for single locations are {}",
            network.name,
            crate::model::point_networks().join(", ")
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans_are_few_and_hardly_larger_than_what_they_look_at() {
        let mut sizes = std::collections::BTreeSet::new();
        for points in 1..=MOST_POINTS {
            let planned = planned_points(points);
            assert!((points..=MOST_POINTS).contains(&planned), "{points}: {planned}");
            let most = LEAST_POINTS.max(points / 16 + 1);
            assert!(planned - points < most, "{points}: {planned}");
            sizes.insert(planned);
        }
        assert_eq!(planned_points(36 * 36), 1344);
        assert!(sizes.len() <= 80, "{} plans", sizes.len());
    }
}

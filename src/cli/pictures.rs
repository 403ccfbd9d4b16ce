//! Pictures that several commands draw.

use std::collections::HashMap;
use std::path::Path;

use obelisk::model;
use obelisk::offsets::{LayerOffsets, layers};
use obelisk::picture::{self, CurvePoint};
use obelisk::predict::inference_graph;
use obelisk::tensor::Tensor;
use obelisk::train::{EpochRecord, Settings, TrainingData};
use obelisk::weights::{self, Model, ModelInfo};

/// Draws the run's curve.png and, where the network has OBELISK layers, its last offsets as offsets.png.
pub fn draw_run(
    run: &Path,
    settings: &Settings,
    data: &TrainingData,
    log: &[EpochRecord],
) -> anyhow::Result<()> {
    let names = data.preprocessing.foreground_names();
    let points: Vec<CurvePoint> = log.iter().map(CurvePoint::from).collect();
    let title = format!("{} on {}", settings.arch, data.dataset);
    picture::training_curve(&run.join("curve.png"), &title, &points, &names, true)?;
    let last = Model::load(&run.join("last.safetensors"))?;
    draw_offsets(&run.join("offsets.png"), &last.info, &last.tensors, true)?;
    Ok(())
}

/// Draws the offsets of a network before and after training, and returns them; draws nothing where there are none.
pub fn draw_offsets(
    path: &Path,
    info: &ModelInfo,
    tensors: &HashMap<String, Tensor>,
    force: bool,
) -> anyhow::Result<Vec<LayerOffsets>> {
    let network = &model::find(&info.arch)?;
    let grid = info.preprocessing.grid.unwrap_or([1; 3]);
    let graph = inference_graph(network, &info.preprocessing, grid)?;
    // Weights from elsewhere come without their initial offsets: another draw of the same distribution stands for them.
    let (seed, before) = match &info.training {
        Some(record) => (record.seed, "before"),
        None => (0, "before (another draw)"),
    };
    let initial = weights::initialise(&graph, seed);
    let layers = layers(&initial, tensors, grid, info.preprocessing.spacing);
    if !layers.is_empty() {
        let title = format!("Offsets of {} {before} and after training", info.arch);
        picture::offset_density(path, &title, &layers, force)?;
    }
    Ok(layers)
}

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use clap::Args;
use obelisk::gpu::DeviceOptions;
use obelisk::offsets::{LayerOffsets, layers};
use obelisk::predict::inference_graph;
use obelisk::receptive_field::{ReceptiveField, Subject, receptive_fields};
use obelisk::tensor::Tensor;
use obelisk::weights::{self, Model, ModelInfo};
use obelisk::{model, picture};
use serde::Serialize;

use super::train::three;
use super::{Usage, open_device, refuse_existing};

/// `obelisk offsets`
#[derive(Debug, Args)]
pub struct Offsets {
    /// Weights of a training run (.safetensors), or a PyTorch checkpoint (.pth)
    #[arg(long, value_name = "WEIGHTS")]
    model: PathBuf,
    /// The picture
    #[arg(long, value_name = "PNG")]
    output: PathBuf,
    /// The network, where the weights name none or another one is meant
    #[arg(long, value_name = "NAME")]
    arch: Option<String>,
    /// Grid in voxels, for weights that take scans of any size
    #[arg(long, value_name = "D,H,W", value_parser = three::<usize>)]
    size: Option<[usize; 3]>,
    /// Millimetres a voxel, for weights that take scans of any spacing
    #[arg(long, value_name = "D,H,W", value_parser = three::<f64>)]
    spacing: Option<[f64; 3]>,
    /// Replace a picture that exists
    #[arg(long)]
    force: bool,
    /// Print the numbers as JSON
    #[arg(long)]
    json: bool,
}

/// What the command prints.
#[derive(Debug, Serialize)]
struct Report {
    arch: String,
    grid: [usize; 3],
    spacing: Option<[f64; 3]>,
    layers: Vec<LayerOffsets>,
    receptive_fields: Vec<ReceptiveField>,
}

impl Offsets {
    pub fn run(&self, options: &DeviceOptions) -> anyhow::Result<()> {
        if let Some(name) = &self.arch {
            model::find(name).map_err(|e| Usage(e.to_string()))?;
        }
        let mut model = Model::open(&self.model, self.arch.as_deref())?;
        let network = model::find(&model.info.arch)?;
        let preprocessing = &mut model.info.preprocessing;
        preprocessing.grid = self.size.or(preprocessing.grid).or(network.fixed.map(|f| f.size));
        preprocessing.spacing = self.spacing.or(preprocessing.spacing);
        let Some(grid) = preprocessing.grid else {
            let message = format!(
                "{} takes scans of any size; give --size D,H,W",
                self.model.display()
            );
            return Err(Usage(message).into());
        };
        if network.obelisk_layers {
            refuse_existing(&self.output, self.force)?;
        }
        let device = open_device(options)?;
        let subject = Subject {
            network,
            channels: model.info.preprocessing.channels.len(),
            classes: model.info.preprocessing.labels.len(),
            grid,
            spacing: model.info.preprocessing.spacing,
            tensors: &model.tensors,
        };
        let report = Report {
            arch: network.name.into(),
            grid,
            spacing: subject.spacing,
            receptive_fields: pollster::block_on(receptive_fields(&device, &subject))?,
            layers: draw(&self.output, &model.info, &model.tensors, self.force)?,
        };
        match self.json {
            true => println!("{}", serde_json::to_string_pretty(&report)?),
            false => print!("{report}"),
        }
        if report.layers.is_empty() {
            eprintln!("{} has no OBELISK layer: no picture", network.name);
        }
        Ok(())
    }
}

/// Draws the offsets of a network before and after training, and returns them; draws nothing where there are none.
pub(super) fn draw(
    path: &Path,
    info: &ModelInfo,
    tensors: &HashMap<String, Tensor>,
    force: bool,
) -> anyhow::Result<Vec<LayerOffsets>> {
    let network = model::find(&info.arch)?;
    let grid = info.preprocessing.grid.unwrap_or([1; 3]);
    let graph = inference_graph(network, &info.preprocessing, grid)?;
    // weights from elsewhere don't tell their own start: another draw of the same distribution stands for it
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

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [d, h, w] = self.grid;
        write!(f, "{} on {d}×{h}×{w} voxels", self.arch)?;
        if let Some([d, h, w]) = self.spacing {
            write!(f, " of {d}×{h}×{w} mm")?;
        }
        writeln!(f)?;
        for layer in &self.layers {
            let samples = if layer.samples == 1 { "" } else { " pairs of" };
            writeln!(
                f,
                "\n{}: {}{samples} offsets (x along W)",
                layer.name, layer.coefficients
            )?;
            for (when, [x, y, z]) in [("before", layer.initial_sigma), ("after", layer.sigma)] {
                writeln!(f, "  σ {when:6}  x {x:.4}  y {y:.4}  z {z:.4}")?;
            }
            for extent in &layer.extents {
                write!(
                    f,
                    "  {:3.0} % within {:.4} normalised, {:.1} voxels",
                    extent.share * 100.0,
                    extent.normalised,
                    extent.voxels
                )?;
                match extent.mm {
                    Some(mm) => writeln!(f, ", {mm:.1} mm")?,
                    None => writeln!(f)?,
                }
            }
        }
        writeln!(f, "\nReceptive field of the output in the middle (D×H×W)")?;
        for field in &self.receptive_fields {
            let [d, h, w] = field.voxels;
            write!(f, "  {:20} {d}×{h}×{w} voxels", field.of)?;
            if let Some([d, h, w]) = field.mm {
                write!(f, ", {d:.0}×{h:.0}×{w:.0} mm")?;
            }
            write!(f, ", {:.1} % of them", field.density * 100.0)?;
            if field.reaches_border.contains(&true) {
                write!(f, ", to the image's border")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

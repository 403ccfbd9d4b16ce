use std::path::PathBuf;

use clap::Args;
use obelisk::model;
use obelisk::offsets::LayerOffsets;
use obelisk::receptive_field::{ReceptiveField, Subject, receptive_fields};
use obelisk::weights::Model;
use serde::Serialize;

use super::device::{self, DeviceArguments};
use super::files::{Files, claim};
use super::pictures::draw_offsets;
use super::print::{self, errln, outln};
use super::{Usage, examples, values};

/// `obelisk offsets`
#[derive(Debug, Args)]
#[command(after_help = examples!(
    "Where a training's layers look": "obelisk offsets --model run/best.safetensors --output offsets.png",
    "The published network's reach in millimetres":
        "obelisk offsets --model fold1.pth --output offsets.png --spacing 1.5,1,1 --json"
))]
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
    #[arg(long, value_name = "D,H,W", value_parser = values::grid)]
    size: Option<[usize; 3]>,
    /// Millimetres a voxel, for weights that take scans of any spacing
    #[arg(long, value_name = "D,H,W", value_parser = values::spacing)]
    spacing: Option<[f64; 3]>,
    /// Replace a picture that exists
    #[arg(long)]
    force: bool,
    /// Print the numbers as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    pub(super) device: DeviceArguments,
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
    pub fn run(&self) -> anyhow::Result<()> {
        if let Some(name) = &self.arch {
            model::find(name).map_err(|e| Usage(e.to_string()))?;
        }
        Files::new()
            .read("--model", &self.model)
            .write("--output", &self.output)
            .check()?;
        let mut model = Model::open(&self.model, self.arch.as_deref())?;
        let network = &model::find(&model.info.arch)?;
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
            claim(&self.output, self.force)?;
        }
        let device = device::open(&self.device.options())?;
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
            layers: draw_offsets(&self.output, &model.info, &model.tensors, self.force)?,
        };
        match self.json {
            true => outln!("{}", serde_json::to_string_pretty(&report)?),
            false => print::out(format_args!("{report}")),
        }
        if report.layers.is_empty() {
            errln!("{} has no OBELISK layer: no picture", network.name);
        }
        Ok(())
    }
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

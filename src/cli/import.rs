use std::path::PathBuf;

use clap::Args;
use obelisk::model;
use obelisk::weights::Model;

use super::files::{Files, claim};
use super::print::outln;
use super::{Usage, examples, how_to_import};

/// `obelisk import`
#[derive(Debug, Args)]
#[command(after_help = examples!(
    "The published network of fold 1": "obelisk import fold1.pth --output fold1.safetensors",
    "A checkpoint whose scans are prepared as those of a training":
        "obelisk import net.pth --output net.safetensors --like run/best.safetensors"
))]
pub struct Import {
    /// A PyTorch checkpoint (.pth, .pt) or a safetensors file from elsewhere; nothing in it is executed
    #[arg(value_name = "FILE")]
    input: PathBuf,
    /// The weights file to write
    #[arg(long, value_name = "FILE.safetensors")]
    output: PathBuf,
    /// Network, instead of recognising it by its tensors
    #[arg(long, value_name = "NAME")]
    arch: Option<String>,
    /// Take labels and preprocessing, and the network without --arch, from this weights file of a training run
    #[arg(long, value_name = "WEIGHTS")]
    like: Option<PathBuf>,
    /// Replace an output that exists
    #[arg(long)]
    force: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Import {
    pub fn run(&self) -> anyhow::Result<()> {
        if self.output.extension().is_none_or(|e| e != "safetensors") {
            let message = format!("--output {} must end in .safetensors", self.output.display());
            return Err(Usage(message).into());
        }
        Files::new()
            .read("FILE", &self.input)
            .read_all("--like", &self.like)
            .write("--output", &self.output)
            .check()?;
        claim(&self.output, self.force)?;
        let arch = self.arch.as_deref();
        if let Some(name) = arch {
            model::find(name).map_err(|e| Usage(e.to_string()))?;
        }
        let model = match &self.like {
            Some(like) => Model::open_like(&self.input, arch, &Model::load(like)?.info)?,
            None => Model::open(&self.input, arch).map_err(how_to_import)?,
        };
        let preprocessing = &model.info.preprocessing;
        let network = model::find(&model.info.arch)?;
        let parameters = model.parameter_count()?;
        let labels: Vec<&str> = preprocessing.labels.iter().map(|l| l.name.as_str()).collect();
        // When nothing can fail any more: a failure leaves no file.
        model.save(&self.output, self.force)?;
        if self.json {
            let report = serde_json::json!({
                "input": self.input.to_string_lossy(), "output": self.output.to_string_lossy(), "arch": network.name,
                "parameters": parameters, "labels": labels,
            });
            outln!("{report}");
        } else {
            outln!("{}: {}", network.name, network.about);
            outln!(
                "{parameters} parameters, {} labels: {}",
                labels.len(),
                labels.join(", ")
            );
        }
        Ok(())
    }
}

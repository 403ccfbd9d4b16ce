use std::path::PathBuf;

use clap::Args;
use obelisk::model;
use obelisk::weights::Model;

use super::{Usage, how_to_import, refuse_existing};

/// `obelisk import`
#[derive(Debug, Args)]
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
        refuse_existing(&self.output, self.force)?;
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
                "input": self.input, "output": self.output, "arch": network.name,
                "parameters": parameters, "labels": labels,
            });
            println!("{report}");
        } else {
            println!("{}: {}", network.name, network.about);
            println!(
                "{parameters} parameters, {} labels: {}",
                labels.len(),
                labels.join(", ")
            );
        }
        Ok(())
    }
}

use std::path::PathBuf;

use clap::Args;
use obelisk::weights::Model;
use obelisk::{model, nnunet};

use super::files::{Files, claim};
use super::predict::Foreign;
use super::print::outln;
use super::{Usage, examples};

/// `obelisk import`
#[derive(Debug, Args)]
#[command(after_help = examples!(
    "A checkpoint whose scans are prepared as those of a training":
        "obelisk import net.pth --output net.safetensors --like run/best.safetensors",
    "A model of nnU-Net": "obelisk import Dataset001_Hippo --output hippo.safetensors"
))]
pub struct Import {
    /// A PyTorch checkpoint (.pth, .pt) or a safetensors file from elsewhere, a model of nnU-Net v2 (its results folder,
    /// exported .zip or checkpoint), or the folder of a network of brainchop's; nothing in it is executed
    #[arg(value_name = "MODEL")]
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
    #[command(flatten)]
    foreign: Foreign,
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
            .read("MODEL", &self.input)
            .read_all("--like", &self.like)
            .write("--output", &self.output)
            .check()?;
        claim(&self.output, self.force)?;
        if nnunet::is_model(&self.input) {
            return self.nnunet();
        }
        let arch = self.arch.as_deref();
        if let Some(name) = arch {
            model::find(name).map_err(|e| Usage(e.to_string()))?;
        }
        let model = match &self.like {
            Some(like) => Model::open_like(&self.input, arch, &Model::load(like)?.info)?,
            None => self.foreign.open(&self.input, arch)?,
        };
        let preprocessing = &model.info.preprocessing;
        let network = &model::find(&model.info.arch)?;
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

    fn nnunet(&self) -> anyhow::Result<()> {
        if self.arch.is_some() || self.like.is_some() {
            let message = "--arch and --like are not for nnU-Net's models, whose plans say all of it";
            return Err(Usage(message.into()).into());
        }
        self.foreign.only_nnunet()?;
        let model = nnunet::Model::open(&self.input, &self.foreign.choice())?;
        let parameters: usize = model.folds[0].values().map(|t| t.data.len()).sum();
        let labels = model.plan.labels.names();
        let labels: Vec<&str> = labels.iter().map(|l| l.name.as_str()).collect();
        let folds = model.names.join(", ");
        model.save(&self.output, self.force)?;
        if self.json {
            let report = serde_json::json!({
                "input": self.input.to_string_lossy(), "output": self.output.to_string_lossy(),
                "dataset": model.plan.dataset, "configuration": model.plan.configuration, "folds": model.names,
                "parameters": parameters, "labels": labels,
            });
            outln!("{report}");
        } else {
            outln!(
                "nnU-Net: {}, {}, folds {folds}",
                model.plan.dataset,
                model.plan.configuration
            );
            outln!(
                "{parameters} parameters a fold, {} labels: {}",
                labels.len(),
                labels.join(", ")
            );
        }
        Ok(())
    }
}

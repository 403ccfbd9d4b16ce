use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use obelisk::export::{self, ExportError, Exported};
use obelisk::{file, nnunet};

use super::files::{Files, claim};
use super::predict::Foreign;
use super::print::outln;
use super::{Usage, examples, values};

/// `obelisk export`
#[derive(Debug, Args)]
#[command(after_help = examples!(
    "Weights of a training run, for onnxruntime": "obelisk export run/best.safetensors --onnx net.onnx",
    "One fold of a model of nnU-Net, with the labels as a second output":
        "obelisk export Dataset001_Hippo --folds 0 --labels --onnx hippo.onnx"
))]
pub struct Export {
    /// Weights (.safetensors) of a training run, a published network's (.safetensors, .pth), a model of nnU-Net v2 (its
    /// results folder, exported .zip or checkpoint .pth), or the folder of a network of brainchop's
    #[arg(value_name = "MODEL")]
    input: PathBuf,
    /// The ONNX file to write (opset 20), with what scans go through in its metadata
    #[arg(long, value_name = "FILE.onnx")]
    onnx: PathBuf,
    /// Network, instead of the one that the weights name or are recognised as
    #[arg(long, value_name = "NAME")]
    arch: Option<String>,
    /// The image's voxels [default: the model's grid; any where it has none and the network allows it]
    #[arg(long, value_name = "D,H,W", value_parser = values::grid)]
    size: Option<[usize; 3]>,
    /// Also give labels: the index of the highest logit
    #[arg(long)]
    labels: bool,
    #[command(flatten)]
    foreign: Foreign,
    /// Replace an output that exists
    #[arg(long)]
    force: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Export {
    pub fn run(&self) -> anyhow::Result<()> {
        if self.onnx.extension().is_none_or(|e| e != "onnx") {
            return Err(Usage(format!("--onnx {} must end in .onnx", self.onnx.display())).into());
        }
        Files::new()
            .read("MODEL", &self.input)
            .write("--onnx", &self.onnx)
            .check()?;
        claim(&self.onnx, self.force)?;
        let exported = match nnunet::is_model(&self.input) {
            true => self.nnunet()?,
            false => self.own()?,
        };
        file::write_beside(&self.onnx, &exported.bytes, self.force)
            .with_context(|| format!("{}", self.onnx.display()))?;
        self.report(&exported);
        Ok(())
    }

    fn own(&self) -> anyhow::Result<Exported> {
        let model = self.foreign.open(&self.input, self.arch.as_deref())?;
        export::model(&model, self.size, self.labels).map_err(|e| self.failed(e))
    }

    fn nnunet(&self) -> anyhow::Result<Exported> {
        let not_for_it = [("--arch", self.arch.is_some()), ("--size", self.size.is_some())];
        if let Some((option, _)) = not_for_it.iter().find(|(_, given)| *given) {
            let message = format!("{option} is not for nnU-Net's models, whose plans say all of it");
            return Err(Usage(message).into());
        }
        self.foreign.only_nnunet()?;
        let model = nnunet::Model::open(&self.input, &self.foreign.choice())?;
        export::nnunet(&model, self.labels).map_err(|e| self.failed(e))
    }

    fn failed(&self, error: ExportError) -> anyhow::Error {
        anyhow::Error::new(error).context(format!("{}", self.input.display()))
    }

    fn report(&self, exported: &Exported) {
        if self.json {
            let report = serde_json::json!({
                "input": self.input.to_string_lossy(), "output": self.onnx.to_string_lossy(),
                "image": exported.image, "logits": exported.outputs, "outputs": exported.names,
            });
            outln!("{report}");
            return;
        }
        let axis = |n: &Option<usize>| n.map_or("any".to_owned(), |n| n.to_string());
        let axes: Vec<String> = exported.image.iter().map(axis).collect();
        outln!(
            "{}: image [{}] to {} of {} labels",
            self.onnx.display(),
            axes.join(", "),
            exported.names.join(" and "),
            exported.outputs
        );
    }
}

use std::path::PathBuf;

use clap::Args;
use obelisk::dataset::{Dataset, scans};
use obelisk::evaluate;
use obelisk::file::write_beside;

use super::examples;
use super::files::{Files, claim};
use super::memory::MemoryArguments;
use super::print::outln;

/// `obelisk evaluate`
#[derive(Debug, Args)]
#[command(after_help = examples!(
    "Dice of each label that occurs": "obelisk evaluate --predictions out --labels labelsTs",
    "With the dataset's names, and as JSON":
        "obelisk evaluate --predictions out --labels labelsTs --dataset dataset --json scores.json"
))]
pub struct Evaluate {
    /// Folder of predicted label files
    #[arg(long, value_name = "FOLDER")]
    predictions: PathBuf,
    /// Folder of reference label files of the same names
    #[arg(long, value_name = "FOLDER")]
    labels: PathBuf,
    /// Score this dataset's labels by name, and leave out voxels of its ignore label
    #[arg(long, value_name = "FOLDER")]
    dataset: Option<PathBuf>,
    /// Also write the report as JSON here
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Replace a report that exists
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    pub(super) memory: MemoryArguments,
}

impl Evaluate {
    pub fn run(&self) -> anyhow::Result<()> {
        self.check_files()?;
        let dataset = self.dataset.as_deref().map(Dataset::open).transpose()?;
        let labels = dataset.as_ref().map(|d| d.labels.as_slice());
        let ignore = dataset.as_ref().and_then(|d| d.ignore);
        let report = evaluate::evaluate(&self.predictions, &self.labels, labels, ignore)?;
        if let Some(path) = &self.json {
            write_beside(
                path,
                serde_json::to_string_pretty(&report)?.as_bytes(),
                self.force,
            )?;
        }
        outln!("{report}");
        Ok(())
    }

    fn check_files(&self) -> anyhow::Result<()> {
        let mut files = Files::new();
        for (option, folder) in [("--predictions", &self.predictions), ("--labels", &self.labels)] {
            files
                .read(option, folder)
                .read_all(option, scans(folder, 1)?.values().flatten());
        }
        if let Some(dataset) = &self.dataset {
            files.read("--dataset", dataset.join("dataset.json"));
        }
        files.write_all("--json", &self.json).check()?;
        self.json.iter().try_for_each(|path| claim(path, self.force))
    }
}

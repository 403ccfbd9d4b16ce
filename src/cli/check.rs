use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use obelisk::check;
use obelisk::dataset::Dataset;
use obelisk::file::write_beside;
use obelisk::model;
use obelisk::preprocess::Preprocessing;
use obelisk::train::Settings;

use super::files::{Files, claim};
use super::memory::MemoryArguments;
use super::print::{errln, outln};
use super::train::derive_preprocessing;
use super::{Usage, examples};

/// `obelisk check`
#[derive(Debug, Args)]
#[command(after_help = examples!(
    "Every fault of a dataset, and what its scans are like": "obelisk check dataset",
    "Write the plan that follows, to be edited and given to `train --config`":
        "obelisk check dataset --plan plan.toml"
))]
pub struct Check {
    /// Folder with dataset.json (Medical Segmentation Decathlon or nnU-Net v2)
    dataset: PathBuf,
    /// Write the settings of a training that suit the dataset here, each of which can be edited
    #[arg(long, value_name = "FILE.toml")]
    plan: Option<PathBuf>,
    /// The network of the plan: `obelisk info` lists them
    #[arg(long, value_name = "NAME", default_value = model::DEFAULT)]
    arch: String,
    /// Also write what was found as JSON here
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Replace files that exist
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    pub(super) memory: MemoryArguments,
}

impl Check {
    pub fn run(&self) -> anyhow::Result<()> {
        model::find(&self.arch).map_err(|e| Usage(e.to_string()))?;
        let mut files = Files::new();
        files.read("DATASET", &self.dataset);
        let (mut dataset, faults) = Dataset::survey(&self.dataset)?;
        if dataset.synthesis.is_some() {
            let problem = "has label maps alone, no scans to check; `obelisk train --synthetic --show-batch FILE.png` draws images of them";
            return Err(Usage(format!("{} {problem}", self.dataset.display())).into());
        }
        files
            .read_dataset(&dataset)
            .write_all("--plan", &self.plan)
            .write_all("--json", &self.json)
            .check()?;
        let outputs = || self.plan.iter().chain(&self.json);
        outputs().try_for_each(|path| claim(path, self.force))?;
        let report = check::check(&mut dataset, &faults, |done, cases| {
            if done % 20 == 0 && done < cases {
                errln!("{done} of {cases} cases");
            }
        });
        for (kind, findings) in [("fault", &report.faults), ("remark", &report.remarks)] {
            for finding in findings {
                outln!("{kind}: {}: {}", finding.file.display(), finding.what);
            }
        }
        if let Some(fingerprint) = &report.fingerprint {
            outln!("{fingerprint}");
            let (settings, preprocessing) = self.plan(&dataset)?;
            outln!("{preprocessing}");
            if let Some(path) = &self.plan {
                let text = format!(
                    "# For `obelisk train --config` and its --fold: what suits {} cases of {}.\n{}",
                    fingerprint.cases,
                    self.dataset.display(),
                    toml::to_string(&settings)?
                );
                write_beside(path, text.as_bytes(), self.force)?;
            }
        }
        if let Some(path) = &self.json {
            write_beside(
                path,
                serde_json::to_string_pretty(&report)?.as_bytes(),
                self.force,
            )?;
        }
        match report.faults.len() {
            0 => Ok(()),
            1 => anyhow::bail!("there is one fault"),
            count => anyhow::bail!("there are {count} faults"),
        }
    }

    /// The defaults for the network, with what the scans say written out.
    fn plan(&self, dataset: &Dataset) -> anyhow::Result<(Settings, Preprocessing)> {
        let folder = self
            .dataset
            .canonicalize()
            .unwrap_or_else(|_| self.dataset.clone());
        let mut settings = Settings::new(folder, &self.arch);
        let mut derived = derive_preprocessing(dataset, &settings)?;
        let multiple = model::find(&self.arch).context("it was found before")?.multiple;
        if let Some(grid) = &mut derived.grid {
            for (voxels, multiple) in grid.iter_mut().zip(multiple) {
                *voxels = voxels.next_multiple_of(multiple);
            }
        }
        settings.orientation = derived.orientation.map(|code| code.to_string());
        settings.spacing = derived.spacing;
        settings.size = derived.grid;
        Ok((settings, derived))
    }
}

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use obelisk::dataset::{Dataset, scans};
use obelisk::evaluate::{self, Methods, Options};
use obelisk::file::write_beside;
use obelisk::metrics::{Choice, Scoring};

use super::files::{Files, claim};
use super::memory::MemoryArguments;
use super::print::{errln, outln};
use super::scoring::ScoringArguments;
use super::{Usage, examples};

/// Progress is told this often.
const PROGRESS: Duration = Duration::from_secs(10);

/// `obelisk evaluate`
#[derive(Debug, Args)]
#[command(after_help = examples!(
    "Every metric of the dataset's labels, surface Dice within 2 mm, and all numbers as JSON":
        "obelisk evaluate --predictions out --labels labelsTs --dataset dataset --tolerance 2 --json scores.json",
    "Two methods against ours, with tests, as a table for LaTeX":
        "obelisk evaluate --predictions ours --against unet,nnunet --labels labelsTs --latex table.tex"
))]
pub struct Evaluate {
    /// Folder of predicted label files
    #[arg(long, value_name = "FOLDER")]
    predictions: PathBuf,
    /// Folder of reference label files of the same names
    #[arg(long, value_name = "FOLDER")]
    labels: PathBuf,
    /// Folders of other methods' predictions, to test --predictions against
    #[arg(long, value_name = "A,B,C", value_delimiter = ',')]
    against: Vec<PathBuf>,
    /// Names of the methods, --predictions' first [default: those of their folders]
    #[arg(long, value_name = "A,B,C", value_delimiter = ',')]
    names: Vec<String>,
    /// Score this dataset's labels by name, and leave out voxels of its ignore label
    #[arg(long, value_name = "FOLDER")]
    dataset: Option<PathBuf>,
    /// Metrics by name with commas between them: dice, jaccard, precision, recall, nsd, hd, hd95, assd, volume,
    /// reference_volume, volume_error, relative_volume_error, or all
    #[arg(long, value_name = "A,B,C", default_value = "all", value_parser = Choice::parse)]
    metrics: Choice,
    #[command(flatten)]
    scoring: ScoringArguments,
    /// Also write all scores, means, intervals and tests as JSON here
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Also write every label of every case as CSV here
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
    /// Also write means and intervals as a LaTeX table here
    #[arg(long, value_name = "FILE")]
    latex: Option<PathBuf>,
    /// Replace files that exist
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    pub(super) memory: MemoryArguments,
}

impl Evaluate {
    pub fn run(&self) -> anyhow::Result<()> {
        let methods = self.methods()?;
        self.check_files()?;
        let dataset = self.dataset.as_deref().map(Dataset::open).transpose()?;
        let options = Options {
            labels: dataset.as_ref().map(|d| d.labels.as_slice()),
            ignore: dataset.as_ref().and_then(|d| d.ignore),
            scoring: Scoring::new(self.metrics.clone(), self.scoring.surfaces()),
        };
        let mut told = Instant::now();
        let methods = evaluate::evaluate_methods(&methods, &self.labels, &options, |done, all| {
            if told.elapsed() > PROGRESS && done < all {
                errln!("{done} of {all} cases");
                told = Instant::now();
            }
        })?;
        if let Some(path) = &self.json {
            write_beside(path, self.json_text(&methods)?.as_bytes(), self.force)?;
        }
        for (path, text) in [
            (&self.csv, Methods::csv as fn(&_) -> _),
            (&self.latex, Methods::latex),
        ] {
            if let Some(path) = path {
                write_beside(path, text(&methods).as_bytes(), self.force)?;
            }
        }
        outln!("{methods}");
        Ok(())
    }

    /// One method's report by itself, several methods with their tests.
    fn json_text(&self, methods: &Methods) -> serde_json::Result<String> {
        match methods.methods.as_slice() {
            [one] => serde_json::to_string_pretty(&one.report),
            _ => serde_json::to_string_pretty(methods),
        }
    }

    /// The methods' names and folders.
    fn methods(&self) -> anyhow::Result<Vec<(String, PathBuf)>> {
        let folders: Vec<&PathBuf> = std::iter::once(&self.predictions).chain(&self.against).collect();
        if !self.names.is_empty() && self.names.len() != folders.len() {
            let (names, folders) = (self.names.len(), folders.len());
            return Err(Usage(format!(
                "--names has {names} names for {folders} folders of predictions"
            ))
            .into());
        }
        let methods = folders.iter().enumerate().map(|(i, folder)| {
            let name = self.names.get(i).cloned();
            (name.unwrap_or_else(|| name_of(folder)), (*folder).clone())
        });
        let methods: Vec<(String, PathBuf)> = methods.collect();
        for (i, (name, _)) in methods.iter().enumerate() {
            if methods[..i].iter().any(|(other, _)| other == name) {
                return Err(Usage(format!("two methods are named {name}; give --names")).into());
            }
        }
        Ok(methods)
    }

    fn check_files(&self) -> anyhow::Result<()> {
        let mut files = Files::new();
        let against = self.against.iter().map(|folder| ("--against", folder));
        let folders = [("--predictions", &self.predictions), ("--labels", &self.labels)];
        for (option, folder) in folders.into_iter().chain(against) {
            files
                .read(option, folder)
                .read_all(option, scans(folder, 1)?.values().flatten());
        }
        if let Some(dataset) = &self.dataset {
            files.read("--dataset", dataset.join("dataset.json"));
        }
        let outputs = [
            ("--json", &self.json),
            ("--csv", &self.csv),
            ("--latex", &self.latex),
        ];
        for (option, path) in outputs {
            files.write_all(option, path);
        }
        files.check()?;
        let mut written = outputs.iter().filter_map(|(_, path)| path.as_ref());
        written.try_for_each(|path| claim(path, self.force))
    }
}

/// A folder's name; where it is `predictions`, as in a cross-validation, that of the folder around it.
fn name_of(folder: &Path) -> String {
    let whole = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
    let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
    let own = name(&whole).unwrap_or_else(|| folder.display().to_string());
    match whole.parent().and_then(name) {
        Some(parent) if own == "predictions" => parent,
        _ => own,
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;
    use obelisk::metrics::METRICS;

    use super::*;

    #[test]
    fn the_help_names_every_metric() {
        let mut all = crate::cli::Arguments::command();
        let help = all.find_subcommand_mut("evaluate").unwrap().render_long_help();
        let help = help.to_string().replace('\n', " ");
        for metric in METRICS {
            let named = [",", " or"]
                .iter()
                .any(|end| help.contains(&format!(" {}{end}", metric.name)));
            assert!(named, "{}: {help}", metric.name);
        }
    }

    #[test]
    fn methods_are_named_by_their_folders() {
        for (folder, name) in [
            ("a/ours", "ours"),
            ("runs/unet/predictions", "unet"),
            ("ours/", "ours"),
        ] {
            assert_eq!(name_of(Path::new(folder)), name);
        }
    }
}

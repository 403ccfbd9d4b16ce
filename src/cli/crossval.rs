use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use obelisk::crossval::{self, CrossvalError, Epoch, FoldResult, Job, Row, Table};
use obelisk::dataset::{Dataset, Fold};
use obelisk::gpu::{Device, DeviceOptions, FormsChoice};
use obelisk::metrics::{Choice, METRICS, Scoring};
use obelisk::picture;
use obelisk::preprocess::Preprocessing;
use obelisk::train::{Event, TrainError, TrainingData};

use super::device::{self, DeviceArguments, Losses};
use super::files::Files;
use super::interrupt::{self, Interrupted};
use super::pictures::draw_run;
use super::print::{self, errln, outln};
use super::scoring::ScoringArguments;
use super::train::{Progress, TrainingOptions, derive_preprocessing, no_fold, open_recorded};
use super::{Usage, examples, message};

/// `obelisk crossval`
#[derive(Debug, Args)]
#[command(after_help = examples!(
    "Five folds of two networks, and a table of their Dice":
        "obelisk crossval dataset --arch obelisk-hybrid,unet --out comparison",
    "One fold of a recipe, as one machine of several": "obelisk crossval --config recipe.toml --out comparison --fold 2"
))]
pub struct Crossval {
    /// Folder with dataset.json (Medical Segmentation Decathlon or nnU-Net v2); taken from --config when absent
    dataset: Option<PathBuf>,
    /// Networks to compare, or rows of the recipe [default: all rows of the recipe]
    #[arg(long, value_name = "A,B,C", value_delimiter = ',')]
    arch: Vec<String>,
    /// Folder of the runs, predictions and tables, made when absent; goes on where an earlier call stopped
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
    /// Settings for all networks, and for each its own in [networks.NAME]; other options override both
    #[arg(long, value_name = "RECIPE.toml")]
    config: Option<PathBuf>,
    /// Only this fold, from 0; folders of several machines merge by copying
    #[arg(long, value_name = "K")]
    fold: Option<usize>,
    /// The epoch whose weights segment the held-out cases
    #[arg(long, value_name = "EPOCH", default_value = "last")]
    weights: Epoch,
    /// Metrics of the table besides those that its folds have: names with commas, or `all` [default: dice]
    #[arg(long, value_name = "A,B,C", value_parser = Choice::parse)]
    metrics: Option<Choice>,
    #[command(flatten)]
    scoring: ScoringArguments,
    /// Train nothing, only make the table of what is finished
    #[arg(long)]
    table: bool,
    /// Train this call's folds anew, finished or not
    #[arg(long, conflicts_with = "table")]
    force: bool,
    #[command(flatten)]
    options: TrainingOptions,
    #[command(flatten)]
    pub(super) device: DeviceArguments,
}

impl Crossval {
    pub fn run(&self) -> anyhow::Result<()> {
        let rows = self.rows()?;
        self.refuse_other_tables()?;
        let dataset = Dataset::open(&rows[0].settings.dataset)?;
        if dataset.synthesis.is_some() {
            let problem = "has label maps alone, and held-out cases need scans; `obelisk train --synthetic --fold K` learns from it";
            return Err(Usage(format!("{} {problem}", dataset.folder.display())).into());
        }
        let folds = self.folds(&dataset, &rows)?;
        self.check_files(&dataset, &rows, &folds)?;
        self.score_again(&dataset, &rows)?;
        if !self.table {
            let failed = self.train(&self.device.options(), &dataset, &rows, &folds)?;
            if !failed.is_empty() {
                let table = self.write_table(&rows).map(|table| table.markdown());
                outln!("{}", table.unwrap_or_default());
                anyhow::bail!("{} failed; the same call tries again", failed.join(", "));
            }
        }
        print::out(format_args!("{}", self.write_table(&rows)?.markdown()));
        Ok(())
    }

    fn scoring(&self) -> Scoring {
        let metrics = self.metrics.clone().unwrap_or_else(Choice::first);
        Scoring::new(metrics, self.scoring.surfaces())
    }

    /// Scores what is finished by the metrics that it lacks.
    fn score_again(&self, dataset: &Dataset, rows: &[Row]) -> anyhow::Result<()> {
        let scoring = self.scoring();
        let finished = crossval::finished(&self.out)?;
        let ours = |fold: &&FoldResult| rows.iter().any(|row| row.name == fold.name);
        for fold in finished.iter().flatten().filter(ours) {
            if crossval::score_again(&self.out, dataset, fold, &scoring)?.is_some() {
                let k = fold.settings.fold.unwrap_or_default();
                errln!("{} fold {k}: scored again, from its predictions", fold.name);
            }
        }
        Ok(())
    }

    fn rows(&self) -> anyhow::Result<Vec<Row>> {
        let recipe = match &self.config {
            Some(path) => std::fs::read_to_string(path).with_context(|| format!("{}", path.display()))?,
            None => String::new(),
        };
        let names = networks(&self.arch);
        let mut rows =
            crossval::rows(&recipe, self.dataset.as_deref(), &names, self.options.paper).map_err(|e| {
                match &self.config {
                    _ if matches!(e, CrossvalError::NoNetworks) => {
                        Usage("name the networks: --arch a,b,c, or [networks.NAME] tables in a recipe".into())
                    }
                    Some(path) => Usage(format!("{}: {e}", path.display())),
                    None => Usage(e.to_string()),
                }
            })?;
        for row in &mut rows {
            self.options.apply(&mut row.settings)?;
            // the last epoch's weights need no other's score
            if self.weights == Epoch::Last && !row.validates && !self.options.gives("validate_every") {
                row.settings.validate_every = row.settings.epochs;
            }
        }
        let first = &rows[0].settings;
        if let Some(other) = rows
            .iter()
            .find(|r| (&r.settings.dataset, r.settings.folds) != (&first.dataset, first.folds))
        {
            let message = format!(
                "{} and {} differ in dataset or folds; one table compares on the same",
                rows[0].name, other.name
            );
            return Err(Usage(message).into());
        }
        Ok(rows)
    }

    fn check_files(&self, dataset: &Dataset, rows: &[Row], folds: &[(usize, Fold)]) -> anyhow::Result<()> {
        let mut files = Files::new();
        files.read_dataset(dataset).read_all("--config", &self.config);
        files.write("--out", &self.out);
        for name in Table::FILES {
            files.write("--out", self.out.join(name));
        }
        for row in rows {
            for (k, fold) in folds {
                let run = crossval::fold_folder(&self.out, &row.name, *k);
                files.write("--out", run.join("config.toml")).write("--out", run);
                for case in &fold.validation {
                    let id = &dataset.cases[*case].id;
                    files.write("--out", crossval::prediction(&self.out, &row.name, id));
                }
            }
        }
        files.check()
    }

    /// A folder with tables of something else is not written into.
    fn refuse_other_tables(&self) -> anyhow::Result<()> {
        let table = self.out.join("table.md");
        if table.exists() && !self.force && crossval::finished(&self.out)?.is_empty() {
            anyhow::bail!(
                "{} is not of a cross-validation in this folder; --force replaces it",
                table.display()
            );
        }
        Ok(())
    }

    /// The folds of this call by number.
    fn folds(&self, dataset: &Dataset, rows: &[Row]) -> anyhow::Result<Vec<(usize, Fold)>> {
        let folds = dataset.folds(rows[0].settings.folds)?;
        let count = folds.len();
        let mut held_out = vec![None; dataset.cases.len()];
        for (k, fold) in folds.iter().enumerate() {
            if fold.validation.is_empty() {
                anyhow::bail!(
                    "fold {k} of {} holds out no case; give --folds",
                    dataset.folder.display()
                );
            }
            for case in &fold.validation {
                if let Some(before) = held_out[*case].replace(k) {
                    let id = &dataset.cases[*case].id;
                    anyhow::bail!(
                        "folds {before} and {k} both hold out {id}; a cross-validation holds each case out once: give --folds"
                    );
                }
            }
        }
        match self.fold {
            None => Ok(folds.into_iter().enumerate().collect()),
            Some(k) => match folds.into_iter().nth(k) {
                Some(fold) => Ok(vec![(k, fold)]),
                None => Err(no_fold(k, count)),
            },
        }
    }

    /// Trains and predicts what is not finished; returns what failed.
    fn train(
        &self,
        options: &DeviceOptions,
        dataset: &Dataset,
        rows: &[Row],
        folds: &[(usize, Fold)],
    ) -> anyhow::Result<Vec<String>> {
        dataset.check()?;
        let total = dataset.folds(rows[0].settings.folds)?.len();
        let mut jobs = Vec::new();
        // fold by fold, so that a comparison that is cut short is over the same cases
        for (k, fold) in folds {
            for row in rows {
                let mut settings = row.settings.clone();
                settings.fold = Some(*k);
                let job = Job {
                    name: row.name.clone(),
                    title: row.title.clone(),
                    settings,
                    folds: total,
                    weights: self.weights,
                    scoring: self.scoring(),
                };
                let ids: Vec<&str> = fold
                    .validation
                    .iter()
                    .map(|i| dataset.cases[*i].id.as_str())
                    .collect();
                if self.force || !job.is_finished(&self.out, &ids)? {
                    jobs.push((job, *k, fold));
                }
            }
        }
        let all = rows.len() * folds.len();
        if jobs.len() < all {
            errln!(
                "{} of {all} folds are finished; --force trains them anew",
                all - jobs.len()
            );
        }
        if jobs.is_empty() {
            return Ok(Vec::new());
        }
        let begun = crossval::begun(&self.out)?;
        let mut device: Option<(FormsChoice, Device)> = None;
        let mut data: Option<(usize, TrainingData)> = None;
        let mut failed = Vec::new();
        let count = jobs.len();
        for (i, (job, k, fold)) in jobs.into_iter().enumerate() {
            let what = format!("{} fold {k}", job.name);
            errln!("{what} ({} of {count}, {total} folds in all)", i + 1);
            let preprocessing = derive_preprocessing(dataset, &job.settings)?;
            if data
                .as_ref()
                .is_none_or(|(of, d)| *of != k || d.preprocessing != preprocessing)
            {
                data = Some((k, load(dataset, preprocessing, fold)?));
            }
            let (_, data) = data.as_ref().context("loaded above")?;
            // As the fold was begun, or else as the first in the folder was: every fold runs with the same forms.
            let own = job.run(&self.out);
            let record = begun.iter().find(|run| **run == own).or(begun.first());
            let record = record.filter(|_| options.forms == FormsChoice::Auto);
            let forms = match record {
                Some(run) => crossval::run_settings(run)?.recorded_forms(),
                None => options.forms,
            };
            let open = || match record {
                Some(run) => open_recorded(options, forms, &run.join("config.toml")),
                None => device::open(options),
            };
            device = match device.take() {
                Some((of, open)) if of == forms => Some((of, open)),
                _ => Some((forms, open()?)),
            };
            let (_, device) = device.as_mut().context("opened above")?;
            match self.run_fold(device, open, dataset, data, &job) {
                Ok(result) => {
                    let mean = self.write_table(rows)?;
                    errln!(
                        "{what}: {} cases, {}",
                        result.cases.len(),
                        summary(&mean, &job.name)
                    );
                }
                Err(error) if error.is::<Interrupted>() => return Err(error),
                // A network that can't be trained does not keep the others from their rows.
                Err(error) => {
                    errln!("error: {what}: {}", message(&error));
                    failed.push(what);
                }
            }
        }
        Ok(failed)
    }

    fn run_fold(
        &self,
        device: &mut Device,
        open: impl Fn() -> anyhow::Result<Device>,
        dataset: &Dataset,
        data: &TrainingData,
        job: &Job,
    ) -> anyhow::Result<FoldResult> {
        let going_on = match self.force {
            false => "the same call goes on from there",
            true => "the same call without --force goes on from there",
        };
        interrupt::say(going_on.into());
        let names = data.preprocessing.foreground_names();
        let step = job.settings.batch.saturating_mul(job.settings.accumulate);
        let mut progress = Progress::new(job.settings.epochs, step, names);
        let mut losses = Losses::default();
        let mut anew = self.force;
        let outcome = loop {
            let report = |event: Event| progress.show(&event);
            let outcome = pollster::block_on(job.run_fold(device, dataset, data, &self.out, anew, report));
            match outcome {
                Err(error) if losses.repeat(device, progress.epochs_saved, &error) => {
                    (*device, anew) = (open()?, false);
                }
                ended => break ended,
            }
        };
        progress.finish();
        if let Err(
            stopped @ (CrossvalError::Train(TrainError::Stopped { .. }) | CrossvalError::Stopped { .. }),
        ) = outcome
        {
            return Err(Interrupted::after(format!("{stopped}; {going_on}")).into());
        }
        let (result, log) = outcome?;
        let run = crossval::fold_folder(&self.out, &job.name, job.settings.fold.unwrap_or_default());
        draw_run(&run, &job.settings, data, &log)?;
        Ok(result)
    }

    fn write_table(&self, rows: &[Row]) -> anyhow::Result<Table> {
        let names: Vec<&str> = rows.iter().map(|r| r.name.as_str()).collect();
        let table = Table::of_folder(&self.out, &names)?;
        table.save(&self.out)?;
        let methods: Vec<String> = table.rows.iter().map(|r| r.method.clone()).collect();
        let labels: Vec<String> = table.labels.iter().map(|l| l.name.clone()).collect();
        let part = if table.complete { "" } else { ", part of the folds" };
        let title = format!("{}, {}-fold cross-validation{part}", table.dataset, table.folds);
        for i in table.metrics() {
            let (metric, scores) = (&METRICS[i], table.scores(i));
            if scores.iter().flatten().flatten().any(|score| score.is_finite()) {
                let path = self.out.join(format!("{}.png", metric.name));
                picture::score_plot(&path, metric, &title, &methods, &labels, &scores, true)?;
            }
        }
        Ok(table)
    }
}

fn summary(table: &Table, name: &str) -> String {
    let score = table
        .rows
        .iter()
        .find(|r| r.name == name)
        .and_then(|r| r.scores[0]);
    match score {
        Some(score) => format!("{} so far {:.4}", METRICS[0].title, score.mean),
        None => "no label in any of them".into(),
    }
}

fn load(dataset: &Dataset, preprocessing: Preprocessing, fold: &Fold) -> Result<TrainingData, CrossvalError> {
    Ok(TrainingData::load(dataset, preprocessing, Some(fold))?)
}

/// Names of networks from parts between commas, of which those that begin with a digit belong to the name before:
/// `nnunet:32,64,unet` are two.
fn networks(parts: &[String]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for part in parts {
        match names.last_mut() {
            Some(name) if name.contains(':') && part.starts_with(|c: char| c.is_ascii_digit()) => {
                *name += &format!(",{part}");
            }
            _ => names.push(part.clone()),
        }
    }
    names
}

#[cfg(test)]
mod names {
    use super::networks;

    #[test]
    fn of_networks_with_stages_keep_their_commas() {
        let parts = ["meshnet:elu:5x1", "5x2", "unet", "nnunet:32", "64", "obelisk"].map(String::from);
        assert_eq!(
            networks(&parts),
            ["meshnet:elu:5x1,5x2", "unet", "nnunet:32,64", "obelisk"]
        );
    }
}

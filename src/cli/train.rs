use std::io::IsTerminal;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::builder::ArgPredicate;
use clap::{ArgMatches, Args, Command, FromArgMatches};
use indicatif::{ProgressBar, ProgressStyle};
use obelisk::dataset::{Dataset, Fold};
use obelisk::gpu::{Device, DeviceOptions, FormsChoice, GpuError};
use obelisk::metrics::METRICS;
use obelisk::model::{self, Architecture};
use obelisk::nnunet;
use obelisk::picture;
use obelisk::preprocess::{Overrides, Preprocessing};
use obelisk::train::tensorboard::TensorBoard;
use obelisk::train::{
    Event, Preset, RunFolder, Settings, TrainError, TrainingData, best_epoch, first_batch, has_checkpoint,
    train_on_ranks,
};

use super::device::{self, DeviceArguments, Losses};
use super::files::{self, Files};
use super::interrupt::{self, Finishing, Interrupted};
use super::pictures::draw_run;
use super::print::{errln, outln};
use super::ranks::Ranks;
use super::{Usage, examples};

/// `obelisk train`
#[derive(Debug, Args)]
#[command(after_help = examples!(
    "Train the default network and validate on a fifth of the cases": "obelisk train dataset --out run --fold 0",
    "Go on where the run stopped": "obelisk train --resume --out run"
))]
pub struct Train {
    /// Folder with dataset.json (Medical Segmentation Decathlon or nnU-Net v2); taken from --config when absent
    dataset: Option<PathBuf>,
    /// Network: `obelisk info` lists them; nnU-Net's plans.json is the network of its 3d_fullres [default: obelisk-hybrid]
    #[arg(long, value_name = "NAME|plans.json")]
    arch: Option<String>,
    /// Folder of the run, made when absent
    #[arg(
        long,
        value_name = "RUN",
        required = false,
        required_unless_present = "show_batch"
    )]
    #[arg(default_value_if("show_batch", ArgPredicate::IsPresent, "."))]
    out: PathBuf,
    /// Draw the first batch as the network gets it, augmented, a row a case, and train nothing
    #[arg(long, value_name = "FILE.png", conflicts_with_all = ["out", "resume"])]
    show_batch: Option<PathBuf>,
    /// Settings from a run's config.toml; other options override them
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Go on from the run's last checkpoint, with the run's settings
    #[arg(long)]
    resume: bool,
    /// Start anew in a folder that holds a run
    #[arg(long)]
    force: bool,
    /// Fold to validate on, from 0; absent to train on every case
    #[arg(long, value_name = "K")]
    fold: Option<usize>,
    /// Also write losses, rates and scores for TensorBoard into the run's folder
    #[arg(long)]
    tensorboard: bool,
    #[command(flatten)]
    options: TrainingOptions,
    #[command(flatten)]
    pub(super) device: DeviceArguments,
}

/// The options of a training, for `train` and `crossval`; what is absent stays as the settings have it.
#[derive(Debug, Args)]
pub(super) struct TrainingOptions {
    /// The paper's settings for the network (300 epochs, batch 4, ×0.99 an epoch; hard mining and class weights with
    /// OBELISK layers, else cross-entropy); other options override them
    #[arg(long)]
    pub(super) paper: bool,
    /// Train obelisk networks on all voxels instead of at random locations
    #[arg(long, conflicts_with_all = ["samples", "steps", "paper"])]
    pub(super) dense: bool,
    /// Augmentation as a whole, which options of its parts override [default: affine]
    #[arg(long, value_name = "PRESET")]
    augment: Option<Preset>,
    #[command(flatten)]
    given: Given,
}

/// Those of [`Settings`] that are given as options.
#[derive(Debug)]
struct Given(ArgMatches);

impl Args for Given {
    fn augment_args(command: Command) -> Command {
        Settings::augment_args_for_update(command)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Settings::augment_args_for_update(command)
    }
}

impl FromArgMatches for Given {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        Ok(Given(matches.clone()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.0 = matches.clone();
        Ok(())
    }
}

impl Train {
    pub fn run(&self) -> anyhow::Result<()> {
        let mut ranks = Ranks::join()?;
        let done = self.train(&mut ranks);
        ranks.leave(done)
    }

    fn train(&self, ranks: &mut Ranks) -> anyhow::Result<()> {
        let options = &self.device.options();
        let (read, mut settings) = self.settings()?;
        self.divide(&mut settings, ranks.size())?;
        // Seen before rank 0 writes.
        ranks.check_same(format!("{} {}", self.out.display(), toml::to_string(&settings)?))?;
        let is_first = ranks.is_first();
        let config_path = self.out.join("config.toml");
        if let Some(picture) = &self.show_batch {
            return self.draw_batch(&settings, picture);
        }
        let goes_on = self.resume && has_checkpoint(&self.out);
        if goes_on && let Some(difference) = read.difference(&settings) {
            let message =
                "a training goes on with its own settings, of which only --learning-rate may change";
            return Err(Usage(format!("{message}: in {}, {difference}", config_path.display())).into());
        }
        // A folder with settings alone is of a training that failed before its first checkpoint: nothing would be lost.
        if is_first && !self.resume && !self.force && holds_run(&self.out) {
            anyhow::bail!(
                "{} holds a run; --resume goes on with it, --force starts anew",
                self.out.display()
            );
        }
        model::find(&settings.arch).map_err(|e| Usage(e.to_string()))?;
        let dataset = open_dataset(&settings)?;
        if is_first {
            self.check_files(&dataset, &settings)?;
        }
        let fold = fold(&settings, &dataset)?;
        dataset.check()?;
        let preprocessing = derive_preprocessing(&dataset, &settings)?;
        let _lock = is_first.then(|| RunFolder::lock(&self.out)).transpose()?;
        let data = TrainingData::load(&dataset, preprocessing, fold.as_ref())?;
        if is_first {
            errln!("{}", data.preprocessing);
            errln!(
                "{}: {} cases to train, {} to validate",
                data.dataset,
                data.training.len(),
                data.validation.len()
            );
        }
        let recorded = settings.recorded_forms();
        let mut device = ranks.open(options, |options| {
            match self.resume && options.forms == FormsChoice::Auto {
                false => device::open(options),
                true => open_recorded(options, recorded, &config_path),
            }
        })?;
        let forms = Some(device.caps().forms);
        if is_first && (!goes_on || settings.learning_rate != read.learning_rate) {
            // The forms that a run was begun with stay on record.
            settings.forms = if goes_on { read.forms } else { forms };
            let text = toml::to_string(&settings)?;
            obelisk::file::write_beside(&config_path, text.as_bytes(), true)
                .with_context(|| format!("{}", config_path.display()))?;
        }
        settings.forms = forms;
        let names = data.preprocessing.foreground_names();
        let step = settings.batch.saturating_mul(settings.accumulate);
        let mut board = (self.tensorboard && is_first).then(|| TensorBoard::new(&self.out, names.clone()));
        let mut progress = Progress::new(settings.epochs, step, names);
        if !is_first {
            progress.silence();
        }
        let going_on = format!(
            "`obelisk train --resume --out {}` goes on from there",
            self.out.display()
        );
        if is_first {
            interrupt::say(going_on.clone());
        }
        let mut losses = Losses::default();
        let trained = loop {
            // A folder may have another training's checkpoints until this one has saved its own.
            let resume = self.resume || progress.epochs_saved > 0;
            let report = |event: Event| match board.as_mut().map(|board| board.hear(&event)) {
                Some(ControlFlow::Break(())) => ControlFlow::Break(()),
                _ => progress.show(&event),
            };
            let exchange = ranks.exchange();
            // Ranks repeat nothing by themselves: the others are further.
            let alone = exchange.size() == 1;
            let trained = train_on_ranks(&device, &settings, &data, &self.out, resume, exchange, report);
            match pollster::block_on(trained) {
                Err(error) if alone && losses.repeat(&device, progress.epochs_saved, &error) => {
                    let forms = settings.recorded_forms();
                    device = open_recorded(options, forms, &config_path)?;
                }
                ended => break ended,
            }
        };
        progress.finish();
        board.map_or(Ok(()), TensorBoard::finish)?;
        let log = match trained {
            Err(stopped @ TrainError::Stopped { .. }) => {
                return Err(Interrupted::after(format!("{stopped}; {going_on}")).into());
            }
            trained => trained.map_err(|error| self.advise(error))?,
        };
        if !is_first {
            return Ok(());
        }
        draw_run(&self.out, &settings, &data, &log)?;
        if let Some((best, epoch)) = best_epoch(&log) {
            outln!("best validation {} {best:.4} in epoch {epoch}", METRICS[0].title);
        }
        outln!("{}", self.out.join("best.safetensors").display());
        Ok(())
    }

    /// Draws the first batch that the settings make.
    fn draw_batch(&self, settings: &Settings, picture: &Path) -> anyhow::Result<()> {
        model::find(&settings.arch).map_err(|e| Usage(e.to_string()))?;
        let dataset = open_dataset(settings)?;
        let mut files = Files::new();
        files.read_dataset(&dataset).read_all("--config", &self.config);
        files.write("--show-batch", picture).check()?;
        files::claim(picture, self.force)?;
        dataset.check()?;
        let preprocessing = derive_preprocessing(&dataset, settings)?;
        let data = TrainingData::load(&dataset, preprocessing, fold(settings, &dataset)?.as_ref())?;
        let device = device::open(&self.device.options())?;
        let (images, labels) = pollster::block_on(first_batch(&device, settings, &data))?;
        let spacing = data.preprocessing.grid_spacing();
        picture::batch(picture, &images, &labels, spacing, self.force)?;
        outln!("{}", picture.display());
        Ok(())
    }

    /// Gives each rank its batches of a step: one where nothing says how many a step takes.
    fn divide(&self, settings: &mut Settings, ranks: usize) -> Result<(), Usage> {
        let is_given = self.resume || self.options.gives("accumulate");
        if !is_given && settings.accumulate == 1 {
            settings.accumulate = ranks;
        }
        if settings.accumulate.is_multiple_of(ranks) {
            return Ok(());
        }
        let batches = settings.accumulate;
        Err(Usage(match self.resume {
            true => format!(
                "{} takes {batches} batches a step, which {ranks} ranks can't divide evenly; go on with a number of ranks that \
                 divides {batches}",
                self.out.display()
            ),
            false => format!("--accumulate {batches} can't be divided evenly among {ranks} ranks"),
        }))
    }

    fn check_files(&self, dataset: &Dataset, settings: &Settings) -> anyhow::Result<()> {
        let mut files = Files::new();
        let start = &settings.warm_start;
        files
            .read_dataset(dataset)
            .read_all("--config", &self.config)
            .read_all("--warm-start", start);
        files
            .write("--out", &self.out)
            .write("--out", self.out.join("config.toml"))
            .check()
    }

    /// The settings to start from, and with what the options say instead.
    fn settings(&self) -> anyhow::Result<(Settings, Settings)> {
        if self.options.paper && (self.config.is_some() || self.resume) {
            return Err(
                Usage("--paper starts from the paper's settings, not from a config.toml".into()).into(),
            );
        }
        let arch = self.arch()?;
        let config = match (&self.config, self.resume) {
            (Some(_), true) => {
                return Err(Usage("--resume takes the run's own settings, not --config".into()).into());
            }
            (Some(path), false) => Some(path.clone()),
            (None, true) => Some(self.out.join("config.toml")),
            (None, false) => None,
        };
        let read = match config {
            Some(path) => {
                let text = std::fs::read_to_string(&path).with_context(|| format!("{}", path.display()))?;
                let (mut settings, unknown) =
                    Settings::parse(&text).with_context(|| format!("{}", path.display()))?;
                let unknown = (!unknown.is_empty())
                    .then(|| format!("{}: unknown settings: {}", path.display(), unknown.join(", ")));
                match unknown {
                    Some(problem) if !self.resume => return Err(Usage(problem).into()),
                    Some(problem) => tracing::warn!("{problem}; they are not used"),
                    None => {}
                }
                if !self.resume {
                    settings.forms = None; // another run's were for its adapter
                }
                settings
            }
            None => {
                let Some(dataset) = &self.dataset else {
                    return Err(Usage("name the DATASET folder, or --config".into()).into());
                };
                self.options
                    .start(dataset.clone(), arch.as_deref().unwrap_or(model::DEFAULT))?
            }
        };
        let mut settings = read.clone();
        if let Some(dataset) = &self.dataset {
            settings.dataset = dataset.clone();
        }
        if settings.dataset.as_os_str().is_empty() {
            return Err(Usage("name the DATASET folder".into()).into());
        }
        if let Some(arch) = arch {
            settings.arch = arch;
        }
        settings.fold = self.fold.or(settings.fold);
        self.options.apply(&mut settings)?;
        Ok((read, settings))
    }

    /// The name of the network that `--arch` gives, by itself or by plans.
    fn arch(&self) -> anyhow::Result<Option<String>> {
        let Some(arch) = &self.arch else {
            return Ok(None);
        };
        let path = Path::new(arch);
        if path.extension().is_none_or(|ending| ending != "json") {
            return Ok(Some(arch.clone()));
        }
        let planned = nnunet::planned_architecture(path, "3d_fullres")?;
        let name = planned.to_string();
        // A name has no slope, bias and decoder.
        if Architecture::parse(&name).ok() != Some(planned) {
            anyhow::bail!(
                "{arch}: its network has another decoder, another slope or no biases, which is not trained here; {name} is the nearest"
            );
        }
        Ok(Some(name))
    }

    /// What to do about an error where this run has something to go on from; `advice.rs` has the rest.
    fn advise(&self, error: TrainError) -> anyhow::Error {
        match error {
            TrainError::Diverged { .. } if has_checkpoint(&self.out) => anyhow::anyhow!(
                "{error}; `obelisk train --resume --out {} --learning-rate RATE` goes on from the last good epoch with a \
                lower rate",
                self.out.display()
            ),
            other => other.into(),
        }
    }
}

/// Whether the folder has what a training would replace.
fn holds_run(folder: &Path) -> bool {
    let weights = |name: &str| folder.join(name).exists();
    has_checkpoint(folder) || weights("best.safetensors") || weights("last.safetensors")
}

/// Opens the device with the forms of the kernels that are on record.
pub(super) fn open_recorded(
    options: &DeviceOptions,
    forms: FormsChoice,
    record: &Path,
) -> anyhow::Result<Device> {
    let options = DeviceOptions {
        forms,
        ..options.clone()
    };
    device::open(&options).map_err(|error| match error.downcast_ref() {
        Some(GpuError::Forms { .. }) => error.context(format!(
            "{} records forms of another adapter; resume there (--adapter), or go on with others (--forms), which may round \
             sums differently",
            record.display()
        )),
        _ => error,
    })
}

impl TrainingOptions {
    /// The settings that the options override: the paper's for a network, or the defaults.
    pub(super) fn start(&self, dataset: PathBuf, arch: &str) -> Result<Settings, Usage> {
        let network = &model::find(arch).map_err(|e| Usage(e.to_string()))?;
        Ok(match (self.paper, self.dense) {
            (true, _) => Settings::paper(dataset, network),
            (false, true) => Settings::dense(dataset, arch),
            (false, false) => Settings::new(dataset, arch),
        })
    }

    /// Whether one of the settings, by its name, was given.
    pub(super) fn gives(&self, setting: &str) -> bool {
        self.given.0.contains_id(setting)
    }

    /// Overrides the settings with what was given.
    pub(super) fn apply(&self, settings: &mut Settings) -> Result<(), Usage> {
        if self.dense {
            (settings.samples, settings.steps) = (None, None);
        }
        let makes = self.given.0.get_flag("synthetic").then_some(Preset::Synthetic);
        if let Some(preset) = self.augment.or(makes) {
            (settings.affine, settings.augment) = preset.parts();
        }
        settings.update(&self.given.0);
        if settings.stored_spacing && settings.spacing.is_some() {
            return Err(Usage(
                "a spacing and the stored spacing can't both be taken; leave one out".into(),
            ));
        }
        if settings.steps.is_some() && settings.samples.is_none() {
            return Err(Usage(
                "--steps belongs to sparse training: give --samples too".into(),
            ));
        }
        let network = &model::find(&settings.arch).map_err(|e| Usage(e.to_string()))?;
        if settings.samples.is_some() && network.points.is_none() {
            return Err(Usage(format!(
                "{} trains on whole scans only; sparse training is for {}",
                settings.arch,
                model::point_networks().join(", ")
            )));
        }
        if settings.samples == Some(0) || settings.steps == Some(0) {
            return Err(Usage("--samples and --steps are at least 1".into()));
        }
        if settings.epochs == 0 || settings.batch == 0 || settings.validate_every == 0 {
            return Err(Usage(
                "--epochs, --batch and --validate-every are at least 1".into(),
            ));
        }
        Ok(())
    }
}

/// Opens the settings' dataset, which must have scans, or label maps to make images of, as they say.
fn open_dataset(settings: &Settings) -> anyhow::Result<Dataset> {
    let dataset = Dataset::open(&settings.dataset)?;
    let folder = dataset.folder.display();
    match (settings.synthetic, dataset.synthesis.is_some()) {
        (true, false) => Err(Usage(format!(
            "{folder} has scans; --synthetic is for label maps, whose dataset.json has a `synthesis` table"
        ))
        .into()),
        (false, true) => Err(Usage(format!(
            "{folder} has label maps alone; --synthetic makes images of them"
        ))
        .into()),
        _ => Ok(dataset),
    }
}

/// The fold that the settings name, with its cases.
fn fold(settings: &Settings, dataset: &Dataset) -> anyhow::Result<Option<Fold>> {
    let Some(k) = settings.fold else {
        return Ok(None);
    };
    let folds = dataset.folds(settings.folds)?;
    let count = folds.len();
    match folds.into_iter().nth(k) {
        Some(fold) => Ok(Some(fold)),
        None => Err(no_fold(k, count)),
    }
}

/// The refusal of a fold that is not one of `count`.
pub(super) fn no_fold(k: usize, count: usize) -> anyhow::Error {
    Usage(match count {
        0 => format!("there is no fold {k}, nor any other"),
        _ => format!("there is no fold {k}: they are 0 to {}", count - 1),
    })
    .into()
}

/// What the dataset suggests, with what the settings say instead.
pub(super) fn derive_preprocessing(dataset: &Dataset, settings: &Settings) -> anyhow::Result<Preprocessing> {
    let orientation = settings.orientation.as_ref().map(|code| code.parse()).transpose();
    let overrides = Overrides {
        orientation: orientation.map_err(|e| Usage(format!("--orient: {e}")))?,
        spacing: settings.spacing,
        stored_spacing: settings.stored_spacing,
        grid: settings.size,
    };
    Ok(Preprocessing::derive(dataset, overrides)?)
}

/// Shows a training on the way: a bar on a terminal, plain lines otherwise. Tells it of signals.
pub(super) struct Progress {
    bar: Option<ProgressBar>,
    epochs: usize,
    batch: usize,
    names: Vec<String>,
    silent: bool,
    start: std::time::Instant,
    epochs_before: Option<usize>,
    finishing: Option<Finishing>,
    /// Epochs whose checkpoints have been written since the command began.
    pub(super) epochs_saved: usize,
}

impl Progress {
    pub(super) fn new(epochs: usize, batch: usize, names: Vec<String>) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = "{prefix} {bar:30} {pos}/{len} {msg}";
            ProgressBar::new(0).with_style(ProgressStyle::with_template(style).expect("a valid template"))
        });
        Progress {
            bar,
            epochs,
            batch,
            names,
            silent: false,
            start: std::time::Instant::now(),
            epochs_before: None,
            finishing: None,
            epochs_saved: 0,
        }
    }

    /// Shows nothing from now on: another rank does.
    fn silence(&mut self) {
        (self.bar, self.silent) = (None, true);
    }

    /// Shows an event; `Break` once a signal has come. Until the first step is done there is nothing to save, and a signal
    /// ends the program at once.
    pub(super) fn show(&mut self, event: &Event) -> ControlFlow<()> {
        if !self.silent {
            self.print(event);
        }
        match event {
            Event::Step { .. } | Event::Validation { .. } => {
                let first = || Finishing::first("what is at hand");
                self.finishing.get_or_insert_with(first);
            }
            Event::Epoch(_) => self.epochs_saved += 1,
            _ => {}
        }
        let finishing = self.finishing.as_ref();
        finishing.map_or(ControlFlow::Continue(()), Finishing::flow)
    }

    fn print(&mut self, event: &Event) {
        match event {
            Event::Step {
                epoch,
                done,
                steps,
                loss,
                learning_rate,
            } => {
                let before = *self.epochs_before.get_or_insert(epoch - 1);
                let Some(bar) = &self.bar else { return };
                let fraction = (epoch - 1 - before) as f64 + *done as f64 / *steps as f64;
                let elapsed = self.start.elapsed().as_secs_f64();
                let left = elapsed / fraction * ((self.epochs - before) as f64 - fraction);
                let rate = fraction * (*steps * self.batch) as f64 / elapsed;
                bar.set_length(*steps as u64);
                bar.set_position(*done as u64);
                bar.set_prefix(format!("epoch {epoch}/{}", self.epochs));
                bar.set_message(format!(
                    "loss {loss:.4}, rate {learning_rate:.5}, {rate:.1} samples/s, {} left",
                    duration(left)
                ));
            }
            Event::Resident(r) => errln!(
                "{} scans uploaded and smoothed in {:.1} s, {:.1} MiB on the device",
                r.scans,
                r.seconds,
                r.bytes as f64 / 1048576.0
            ),
            Event::Validation { done, cases } => {
                if let Some(bar) = &self.bar {
                    bar.set_length(*cases as u64);
                    bar.set_position(*done as u64);
                    bar.set_message("validating");
                }
            }
            Event::Epoch(line) => {
                let before = self.epochs_before.unwrap_or(0);
                let elapsed = self.start.elapsed().as_secs_f64();
                let left = elapsed / (line.epoch - before) as f64 * (self.epochs - line.epoch) as f64;
                let mut text = format!(
                    "epoch {}/{}: loss {:.4}, rate {:.5}, {:.1} s",
                    line.epoch, self.epochs, line.loss, line.learning_rate, line.train_seconds
                );
                for ((metric, mean), scores) in METRICS.iter().zip(&line.means).zip(&line.scores) {
                    let Some(mean) = mean else { continue };
                    let label = |(name, score): (&String, &Option<f64>)| {
                        format!("{name} {}", score.map_or("–".into(), |s| format!("{s:.4}")))
                    };
                    let labels: Vec<String> = self.names.iter().zip(scores).map(label).collect();
                    text.push_str(&format!(", {} {mean:.4} ({})", metric.title, labels.join(", ")));
                }
                text.push_str(&format!(", {} left", duration(left)));
                match &self.bar {
                    Some(bar) => bar.println(text),
                    None => errln!("{text}"),
                }
            }
            _ => {}
        }
    }

    /// Takes the bar away; a signal ends the program at once again.
    pub(super) fn finish(&mut self) {
        self.finishing = None;
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn duration(seconds: f64) -> String {
    let s = seconds.max(0.0) as u64;
    if s >= 3600 {
        format!("{} h {:02} min", s / 3600, s / 60 % 60)
    } else {
        format!("{} min {:02} s", s / 60, s % 60)
    }
}

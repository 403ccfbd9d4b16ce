use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use obelisk::crossval::Epoch;
use obelisk::dataset::{Dataset, Label, find_scans, read_channels, scans};
use obelisk::evaluate::{self, Method, Methods};
use obelisk::file::write_beside;
use obelisk::gpu::Device;
use obelisk::metrics::{Choice, LabelScores, Scoring};
use obelisk::model;
use obelisk::predict::Predictor;
use obelisk::report::{self, Attachment, Document, Hashes, Run, Source, View};
use obelisk::volume::{self, Volume};
use obelisk::weights::Model;

use super::device::{self, DeviceArguments};
use super::files::{Files, claim};
use super::print::{errln, outln};
use super::scoring::ScoringArguments;
use super::{Usage, examples};

/// Pixels of all scans' pictures together, which keeps a page below 10 MB: a grey pixel takes a byte at most, and its text four thirds
/// of one.
const PIXELS: usize = 5_000_000;

/// Of a plane's picture, however few there are.
const PIXELS_OF_PLANE: usize = 400_000;

/// Progress is told this often.
const PROGRESS: Duration = Duration::from_secs(10);

/// `obelisk report`
#[derive(Debug, Args)]
#[command(after_help = examples!(
    "A training or a cross-validation": "obelisk report run --output report.html",
    "Scores of `evaluate`, with the worst and best cases":
        "obelisk report scores.json --predictions out --images imagesTs --labels labelsTs --output report.html"
))]
pub struct Report {
    /// Folder of a training or of a cross-validation, or scores that `evaluate` wrote as JSON or CSV
    #[arg(value_name = "RUN|RUNS|SCORES")]
    input: PathBuf,
    /// The report
    #[arg(long, value_name = "FILE.html")]
    output: PathBuf,
    /// The heading [default: what it is of]
    #[arg(long, value_name = "TEXT")]
    title: Option<String>,
    /// The worst and the best cases to show, so many of each method
    #[arg(long, value_name = "N", default_value = "3")]
    cases: usize,
    /// Show no cases, and predict none: of a training alone there are no scores by case then
    #[arg(long)]
    no_overlays: bool,
    /// Leave out the hashes of the dataset's files, for which all of them are read
    #[arg(long)]
    no_hashes: bool,
    /// Folder of the dataset, where it is not where the training had it, or for scores of its training cases
    #[arg(long, value_name = "FOLDER")]
    dataset: Option<PathBuf>,
    /// Scores: folder of the predicted label files, of the first method
    #[arg(long, value_name = "FOLDER")]
    predictions: Option<PathBuf>,
    /// Scores: folder of the scans
    #[arg(
        long,
        value_name = "FOLDER",
        requires = "predictions",
        conflicts_with = "dataset"
    )]
    images: Option<PathBuf>,
    /// Scores: folder of the reference label files
    #[arg(long, value_name = "FOLDER", requires = "images")]
    labels: Option<PathBuf>,
    /// A training alone: the epoch whose weights segment its held-out cases
    #[arg(long, value_name = "EPOCH", default_value = "best")]
    weights: Epoch,
    /// A training alone: metrics by name with commas between them, or all
    #[arg(long, value_name = "A,B,C", default_value = "all", value_parser = Choice::parse)]
    metrics: Choice,
    #[command(flatten)]
    scoring: ScoringArguments,
    /// Replace a report that exists
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    pub(super) device: DeviceArguments,
}

/// Each case's scores.
type Scored = Vec<(String, LabelScores)>;

/// Where a case's scan and labels are.
enum Cases<'a> {
    Dataset(&'a Dataset),
    Folders {
        images: &'a Path,
        labels: Option<&'a Path>,
    },
}

impl Report {
    pub fn run(&self) -> anyhow::Result<()> {
        let source = Source::open(&self.input)?;
        let mut document = Document::default();
        let dataset = self.dataset(&source, &mut document)?;
        self.check_files(&source, dataset.as_ref())?;
        (document.commands, document.attachments) = source.repeat()?;
        document.versions.push((
            "This report".into(),
            concat!("obelisk ", env!("CARGO_PKG_VERSION")).into(),
        ));
        let mut segmenter = Segmenter::new(self);
        match &source {
            Source::Runs { runs, table } => {
                document.runs = runs.clone();
                document.scores = match table {
                    Some(_) => source.scores(),
                    None => self.score_runs(runs, dataset.as_ref(), &mut segmenter, &mut document)?,
                };
                if let Some(table) = table {
                    document.costs = table.rows.clone();
                    document.notes.extend(table.partial());
                }
                self.describe_runs(runs, &mut document)?;
            }
            Source::Scores(scores) => {
                document.scores = source.scores();
                self.describe_scores(scores, &mut document);
            }
        }
        if !self.no_overlays
            && let Some(scores) = &document.scores
        {
            document.views = self.views(&source, scores, dataset.as_ref(), &mut segmenter)?;
        }
        if !self.no_hashes {
            self.hash(&source, dataset.as_ref(), &mut document)?;
        }
        let html = document.html();
        write_beside(&self.output, html.as_bytes(), self.force)
            .with_context(|| format!("{}", self.output.display()))?;
        outln!("{} ({:.2} MB)", self.output.display(), html.len() as f64 / 1e6);
        Ok(())
    }

    /// The dataset, where one is needed and is there.
    fn dataset(&self, source: &Source, document: &mut Document) -> anyhow::Result<Option<Dataset>> {
        if let Some(folder) = &self.dataset {
            return Ok(Some(Dataset::open(folder)?));
        }
        let Source::Runs { runs, .. } = source else {
            return Ok(None);
        };
        let folders: BTreeSet<&Path> = runs.iter().map(|run| run.settings.dataset.as_path()).collect();
        let mut folders = folders.into_iter();
        let (Some(folder), None) = (folders.next(), folders.next()) else {
            document
                .notes
                .push("The runs were trained on several datasets: no case is shown.".into());
            return Ok(None);
        };
        match Dataset::open(folder) {
            Ok(dataset) => Ok(Some(dataset)),
            Err(error) if self.no_overlays => {
                if !self.no_hashes {
                    document.notes.push(format!(
                        "The dataset is not where the training had it: there are no hashes of it. ({error})"
                    ));
                }
                Ok(None)
            }
            Err(error) => Err(anyhow::anyhow!(
                "{error}; --dataset says where the dataset is, --no-overlays does without it"
            )),
        }
    }

    fn check_files(&self, source: &Source, dataset: Option<&Dataset>) -> anyhow::Result<()> {
        let mut files = Files::new();
        files.read("RUN|RUNS|SCORES", &self.input);
        if let Some(dataset) = dataset {
            files.read_dataset(dataset);
        }
        for (option, folder) in [
            ("--predictions", &self.predictions),
            ("--images", &self.images),
            ("--labels", &self.labels),
        ] {
            let Some(folder) = folder else { continue };
            if matches!(source, Source::Runs { .. }) {
                return Err(Usage(format!(
                    "{option} is for scores; a run's cases are those of its dataset"
                ))
                .into());
            }
            let found = find_scans(folder, 1)?;
            files
                .read(option, folder)
                .read_all(option, found.scans.values().flatten());
        }
        if let Source::Scores(_) = source
            && self.predictions.is_some()
            && self.images.is_none()
            && self.dataset.is_none()
        {
            return Err(Usage("--predictions needs their scans: --images, or --dataset".into()).into());
        }
        if let Source::Runs { runs, .. } = source {
            for run in runs {
                let names = ["config.toml", "log.csv", "result.json"];
                let own = names.map(|name| run.folder.join(name));
                let own: Vec<PathBuf> = own.into_iter().filter(|path| path.is_file()).collect();
                files.read_all("RUN", own.iter().chain(&run.weights()));
                let result = run.result.iter().flat_map(|result| &result.cases);
                let predictions: Vec<PathBuf> =
                    result.filter_map(|case| run.prediction(&case.case)).collect();
                files.read_all("RUN", &predictions);
            }
        }
        files.write("--output", &self.output).check()?;
        claim(&self.output, self.force)
    }

    /// Scores the held-out cases of runs that have no scores of them; `None` where nothing is held out, or is not to be predicted.
    fn score_runs(
        &self,
        runs: &[Run],
        dataset: Option<&Dataset>,
        segmenter: &mut Segmenter,
        document: &mut Document,
    ) -> anyhow::Result<Option<Methods>> {
        let Some(dataset) = dataset.filter(|_| !self.no_overlays) else {
            return Ok(None);
        };
        let scoring = Scoring::new(self.metrics.clone(), self.scoring.surfaces());
        let mut methods: Vec<(String, Vec<Label>, Scored)> = Vec::new();
        for run in runs {
            let Some(path) = self.weights_of(run) else {
                document.notes.push(format!(
                    "{} has no weights yet: its cases have no scores.",
                    run.name()
                ));
                continue;
            };
            let model = Model::load(&path)?;
            let training = model.info.training.clone().unwrap_or_default();
            if training.held_out.is_empty() {
                document.notes.push(format!(
                    "{} was trained on every case: none is left to score it by.",
                    run.name()
                ));
                continue;
            }
            document.notes.push(match self.weights {
                Epoch::Best => format!(
                    "{}: its cases are scored with the weights of epoch {}, which scored best on these cases themselves. That \
                     flatters them.",
                    run.name(),
                    training.epochs
                ),
                _ => format!(
                    "{}: its cases are scored with the weights of epoch {}.",
                    run.name(),
                    training.epochs
                ),
            });
            let all = training.held_out.len();
            let mut told = Instant::now();
            let scores = pollster::block_on(report::score_held_out(
                segmenter.device()?,
                dataset,
                &model,
                &training.held_out,
                &scoring,
                |done| {
                    if told.elapsed() > PROGRESS && done < all {
                        errln!("{}: {done} of {all} cases", run.name());
                        told = Instant::now();
                    }
                },
            ))?;
            let labels = model.info.preprocessing.labels.clone();
            match methods.iter_mut().find(|(method, ..)| *method == run.method) {
                Some((_, known, cases)) if *known == labels => cases.extend(scores),
                Some(_) => anyhow::bail!("the runs of {} have different labels", run.method),
                None => methods.push((run.method.clone(), labels, scores)),
            }
        }
        let Some(first) = methods.first().map(|(_, labels, _)| labels.clone()) else {
            return Ok(None);
        };
        if methods.iter().any(|(_, labels, _)| *labels != first) {
            anyhow::bail!(
                "{} has runs of different labels, which make no table; give one of them",
                self.input.display()
            );
        }
        let methods = methods.into_iter().map(|(name, labels, mut cases)| {
            cases.sort_by(|a, b| a.0.cmp(&b.0));
            Method {
                name,
                report: evaluate::Report::new(&labels, &cases, &scoring).summarise(),
            }
        });
        let methods: Vec<Method> = methods.collect();
        let pairs: Vec<(usize, usize)> = (0..methods.len())
            .flat_map(|first| (first + 1..methods.len()).map(move |second| (first, second)))
            .collect();
        Ok(Some(Methods::new(methods, &pairs)))
    }

    /// The weights that segment a run's held-out cases.
    fn weights_of(&self, run: &Run) -> Option<PathBuf> {
        let of = run.result.as_ref().map_or(self.weights, |result| result.weights);
        let name = match of {
            Epoch::Best => "best.safetensors",
            _ => "last.safetensors",
        };
        let path = run.folder.join(name);
        path.is_file().then_some(path)
    }

    fn describe_runs(&self, runs: &[Run], document: &mut Document) -> anyhow::Result<()> {
        let unique = |values: &mut dyn Iterator<Item = String>| {
            let mut found: Vec<String> = Vec::new();
            values.for_each(|value| {
                if !found.contains(&value) {
                    found.push(value);
                }
            });
            found
        };
        let infos = runs
            .iter()
            .filter_map(|run| run.weights().last().map(|path| Model::load(path)))
            .map(|model| model.map(|model| model.info))
            .collect::<Result<Vec<_>, _>>()?;
        let trainings = || infos.iter().filter_map(|info| info.training.as_ref());
        let dataset = |run: &Run| match run.settings.dataset.file_name() {
            Some(name) => name.to_string_lossy().into_owned(),
            None => run.settings.dataset.display().to_string(),
        };
        let datasets = unique(&mut runs.iter().map(dataset)).join(", ");
        let networks = unique(&mut runs.iter().map(|run| run.settings.arch.clone())).join(", ");
        let folds = runs.iter().filter_map(|run| run.result.as_ref()).map(|r| r.folds);
        let title = match folds.max() {
            Some(folds) => format!("{datasets}: {folds}-fold cross-validation of {networks}"),
            None => format!("{datasets}: training of {networks}"),
        };
        document.title = self.title.clone().unwrap_or(title);
        let mut fact = |name: &str, values: Vec<String>| {
            if !values.is_empty() {
                document.facts.push((name.into(), values.join(", ")));
            }
        };
        fact("Dataset", vec![datasets]);
        fact("Network", vec![networks]);
        let folds = |run: &Run| run.settings.fold.map(|fold| fold.to_string());
        let folds: BTreeSet<String> = runs.iter().filter_map(folds).collect();
        fact("Folds", folds.into_iter().collect());
        let epochs = |run: &Run| match run.log.epochs.last() {
            Some(last) if *last < run.settings.epochs => format!("{last} of {}", run.settings.epochs),
            Some(_) => run.settings.epochs.to_string(),
            None => format!("none of {}", run.settings.epochs),
        };
        fact("Epochs", unique(&mut runs.iter().map(epochs)));
        let trained_on = trainings().map(|t| t.trained_on.len());
        let held_out = trainings().map(|t| t.held_out.len());
        if let (Some(trained_on), Some(held_out)) = (range(trained_on), range(held_out)) {
            let cases = format!("{trained_on} trained on, {held_out} held out");
            fact(
                if runs.len() > 1 {
                    "Cases of a fold"
                } else {
                    "Cases"
                },
                vec![cases],
            );
        }
        let labels = infos.first().map(|info| info.preprocessing.foreground_names());
        fact("Labels", labels.unwrap_or_default());
        let used = runs
            .iter()
            .filter_map(|run| run.result.as_ref())
            .map(|r| match r.weights {
                Epoch::Best => "those that scored best on the held-out cases".to_owned(),
                _ => "those of the last epoch".to_owned(),
            });
        fact("Weights", unique(&mut used.into_iter()));
        let adapters = runs
            .iter()
            .filter_map(|run| run.result.as_ref())
            .map(|r| r.adapter.clone());
        let mut version = |name: &str, values: Vec<String>| {
            if !values.is_empty() {
                document.versions.push((name.into(), values.join(", ")));
            }
        };
        let trained = trainings().map(|t| match t.version.as_str() {
            "" => "obelisk, of a version that did not record it".to_owned(),
            version => format!("obelisk {version}"),
        });
        version("Training", unique(&mut trained.into_iter()));
        version("Adapter of the training", unique(&mut adapters.into_iter()));
        let forms = runs.iter().filter_map(|run| run.settings.forms);
        version(
            "Forms of kernels",
            unique(&mut forms.map(|forms| forms.to_string())),
        );
        let prepared = unique(&mut infos.iter().map(|info| info.preprocessing.to_string()));
        for (i, text) in prepared.iter().enumerate() {
            document.attachments.push(Attachment {
                title: match prepared.len() {
                    1 => "How scans are prepared".into(),
                    _ => format!("How scans are prepared, {} of {}", i + 1, prepared.len()),
                },
                file: "preprocessing.txt".into(),
                text: text.clone(),
            });
        }
        Ok(())
    }

    fn describe_scores(&self, scores: &Methods, document: &mut Document) {
        let names: Vec<&str> = scores.methods.iter().map(|m| m.name.as_str()).collect();
        let title = format!("Scores of {}", names.join(", "));
        document.title = self.title.clone().unwrap_or(title);
        let Some(first) = scores.methods.first() else {
            return;
        };
        document
            .facts
            .push(("Cases".into(), first.report.cases.len().to_string()));
        let labels: Vec<String> = first.report.labels.iter().map(|l| l.name.clone()).collect();
        document.facts.push(("Labels".into(), labels.join(", ")));
        document
            .facts
            .push(("Scores".into(), self.input.display().to_string()));
    }

    /// The worst and the best cases of each method whose labels are known.
    fn views(
        &self,
        source: &Source,
        scores: &Methods,
        dataset: Option<&Dataset>,
        segmenter: &mut Segmenter,
    ) -> anyhow::Result<Vec<View>> {
        let runs = match source {
            Source::Runs { runs, .. } => runs.as_slice(),
            Source::Scores(_) => &[],
        };
        let cases = match (dataset, &self.images) {
            (Some(dataset), _) => Cases::Dataset(dataset),
            (None, Some(images)) => Cases::Folders {
                images,
                labels: self.labels.as_deref(),
            },
            (None, None) => return Ok(Vec::new()),
        };
        // Scores say nothing of where the other methods' labels are.
        let methods = match source {
            Source::Runs { .. } => scores.methods.len(),
            Source::Scores(_) => usize::from(self.predictions.is_some()),
        };
        let methods = &scores.methods[..methods];
        let chosen: Vec<_> = methods
            .iter()
            .flat_map(|method| {
                let cases = report::chosen(&method.report, self.cases);
                cases.into_iter().map(move |(place, case)| (method, place, case))
            })
            .collect();
        let most = (PIXELS / (3 * chosen.len().max(1))).min(PIXELS_OF_PLANE);
        let predicted = self
            .predictions
            .as_deref()
            .map(|folder| scans(folder, 1))
            .transpose()?;
        let mut views = Vec::new();
        for (method, place, case) in chosen {
            let (scan, reference) = cases.read(&case.case)?;
            let labels = match &predicted {
                Some(found) => {
                    let Some(files) = found.get(&case.case) else {
                        anyhow::bail!(
                            "{} has no labels of {}, which {} scores",
                            self.predictions.as_deref().unwrap_or(Path::new("")).display(),
                            case.case,
                            self.input.display()
                        );
                    };
                    read_on_grid(&files[0], &scan)?
                }
                None => segmenter.labels(runs, &method.name, &case.case, &scan)?,
            };
            let of = (method.name.as_str(), place, case);
            let view = report::view(&method.report, of, &scan, &labels, reference.as_deref(), most);
            views.push(view.map_err(|problem| anyhow::anyhow!("{}: {problem}", case.case))?);
        }
        Ok(views)
    }

    fn hash(
        &self,
        source: &Source,
        dataset: Option<&Dataset>,
        document: &mut Document,
    ) -> anyhow::Result<()> {
        let mut add = |title: &str, files: Vec<(String, PathBuf)>| -> anyhow::Result<()> {
            let mut hashed = Vec::new();
            let mut told = Instant::now();
            for (name, path) in &files {
                hashed.push((name.clone(), report::of_file(path)?));
                if told.elapsed() > PROGRESS {
                    errln!("{} of {} files hashed ({title})", hashed.len(), files.len());
                    told = Instant::now();
                }
            }
            if !hashed.is_empty() {
                document.hashes.push(Hashes {
                    title: title.into(),
                    files: hashed,
                });
            }
            Ok(())
        };
        match source {
            Source::Runs { runs, .. } => {
                let weights = runs.iter().flat_map(|run| {
                    let weights = run.weights().into_iter();
                    weights.map(|path| (within(&self.input, &path), path))
                });
                add("Weights", weights.collect())?;
            }
            Source::Scores(_) => {
                add(
                    "Scores",
                    vec![(self.input.display().to_string(), self.input.clone())],
                )?;
            }
        }
        let folders = [
            ("Predictions", &self.predictions),
            ("Scans", &self.images),
            ("References", &self.labels),
        ];
        for (title, folder) in folders {
            let Some(folder) = folder else { continue };
            let found = find_scans(folder, 1)?.scans.into_values().flatten();
            add(title, found.map(|path| (within(folder, &path), path)).collect())?;
        }
        let Some(dataset) = dataset else { return Ok(()) };
        let mut files: BTreeSet<PathBuf> = dataset
            .cases
            .iter()
            .flat_map(|case| case.images.iter().chain([&case.label]).cloned())
            .collect();
        let own = ["dataset.json", "splits_final.json"].map(|name| dataset.folder.join(name));
        files.extend(own.into_iter().filter(|path| path.is_file()));
        let named = files.into_iter();
        add(
            "Dataset",
            named.map(|path| (within(&dataset.folder, &path), path)).collect(),
        )
    }
}

/// From the least to the most of some numbers, in words.
fn range(numbers: impl Iterator<Item = usize> + Clone) -> Option<String> {
    let (least, most) = (numbers.clone().min()?, numbers.max()?);
    Some(match least == most {
        true => least.to_string(),
        false => format!("{least} to {most}"),
    })
}

/// A file's path in a folder, with slashes on every system.
fn within(folder: &Path, path: &Path) -> String {
    let inner = path.strip_prefix(folder).unwrap_or(path);
    let parts: Vec<_> = inner
        .components()
        .filter(|part| !matches!(part, std::path::Component::CurDir))
        .map(|part| part.as_os_str().to_string_lossy())
        .collect();
    parts.join("/")
}

impl Cases<'_> {
    /// A case's scan and, where there is one, its reference.
    fn read(&self, id: &str) -> anyhow::Result<(Volume, Option<Vec<i32>>)> {
        match self {
            Cases::Dataset(dataset) => {
                let Some(case) = dataset.cases.iter().find(|case| case.id == id) else {
                    anyhow::bail!("{} has no case {id}", dataset.folder.display());
                };
                let scan = dataset.image(case)?;
                let reference = dataset.label(case, &scan.geometry)?.labels()?;
                Ok((scan, Some(reference)))
            }
            Cases::Folders { images, labels } => {
                // Scans of several files are CASE_0000 …, of which the first channel is shown.
                let found = find_scans(images, 1)?.scans;
                let first = format!("{id}_0000");
                let Some(files) = found.get(id).or_else(|| found.get(&first)) else {
                    anyhow::bail!("{} has no scan of {id}", images.display());
                };
                let scan = read_channels(files)?;
                let Some(labels) = labels else {
                    return Ok((scan, None));
                };
                let Some(files) = scans(labels, 1)?.remove(id) else {
                    anyhow::bail!("{} has no labels of {id}", labels.display());
                };
                let reference = read_on_grid(&files[0], &scan)?;
                Ok((scan, Some(reference)))
            }
        }
    }
}

/// Labels that lie on a scan's grid.
fn read_on_grid(path: &Path, scan: &Volume) -> anyhow::Result<Vec<i32>> {
    let map = volume::read(path)?;
    if let Some(difference) = map.geometry.difference(&scan.geometry, volume::SAME_PLACE) {
        anyhow::bail!(
            "{} is not on the grid of {}: {difference}",
            path.display(),
            scan.source.display()
        );
    }
    Ok(map.labels()?)
}

/// Segments cases of runs, with a device that is opened when the first is asked for.
struct Segmenter<'a> {
    command: &'a Report,
    device: Option<Device>,
    /// With the weights that it has, and the cases that these have not seen.
    predictor: Option<(PathBuf, Vec<String>, Predictor)>,
}

impl<'a> Segmenter<'a> {
    fn new(command: &'a Report) -> Self {
        Segmenter {
            command,
            device: None,
            predictor: None,
        }
    }

    fn device(&mut self) -> anyhow::Result<&Device> {
        if self.device.is_none() {
            self.device = Some(device::open(&self.command.device.options())?);
        }
        self.device.as_ref().context("opened above")
    }

    /// A case's labels by a method: those that its cross-validation has written, or predicted now.
    fn labels(&mut self, runs: &[Run], method: &str, case: &str, scan: &Volume) -> anyhow::Result<Vec<i32>> {
        let mut missing = None;
        // Methods of one title have their rows' names behind it.
        let of_method = |run: &&Run| {
            run.method == method
                || run
                    .result
                    .as_ref()
                    .is_some_and(|r| format!("{} ({})", r.title, r.name) == method)
        };
        for run in runs.iter().filter(of_method) {
            let finished = run.result.as_ref();
            if finished.is_some_and(|result| result.cases.iter().all(|c| c.case != case)) {
                continue;
            }
            if let Some(path) = run.prediction(case) {
                return read_on_grid(&path, scan);
            }
            let Some(path) = self.command.weights_of(run) else {
                missing = Some(run);
                continue;
            };
            if self.predictor.as_ref().is_none_or(|(of, ..)| *of != path) {
                let model = Model::load(&path)?;
                let training = model.info.training.clone().unwrap_or_default();
                let network = &model::find(&model.info.arch)?;
                let preprocessing = &model.info.preprocessing;
                let device = self.device()?;
                let predictor = Predictor::with_weights(device, network, preprocessing, &model.tensors);
                self.predictor = Some((path, training.held_out, pollster::block_on(predictor)?));
            }
            if let (Some(device), Some((_, held_out, predictor))) = (&self.device, &mut self.predictor)
                && held_out.iter().any(|id| id == case)
            {
                return Ok(pollster::block_on(predictor.labels(device, scan))?);
            }
        }
        match missing {
            Some(run) => anyhow::bail!(
                "{} has neither the predicted labels of {case} nor weights to predict them; --no-overlays does without",
                run.folder.display()
            ),
            None => anyhow::bail!("no run of {method} holds out {case}"),
        }
    }
}

pub mod maps;
mod nnunet;
mod points;

use std::cell::OnceCell;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Context, bail};
use clap::Args;
use obelisk::dataset::{DatasetError, Label, Part, find_scans, read_channels};
use obelisk::gpu::Device;
use obelisk::label_table::{self, Program};
use obelisk::nnunet::Choice;
use obelisk::predict::points::PointPredictor;
use obelisk::predict::{PredictError, Predictor};
use obelisk::preprocess::Intensity;
use obelisk::tensor::Tensor;
use obelisk::volume::dicom::{self, Folder, Holds, Series};
use obelisk::volume::{self, Orientation, Volume};
use obelisk::weights::{Model, brainchop};
use obelisk::{model, picture, weights};

use super::device::{self, DeviceArguments, Losses};
use super::files::{Files, claim, claim_folder};
use super::interrupt::{Finishing, Interrupted};
use super::print::{errln, outln};
use super::{Usage, examples, how_to_import, message, values};

/// `obelisk predict`
#[derive(Debug, Args)]
#[command(after_help = examples!(
    "A scan": "obelisk predict --model run/best.safetensors --input scan.nii.gz --output labels.nii.gz",
    "A folder of scans, with a picture of each":
        "obelisk predict --model net.safetensors --input scans --output labels --overlay pictures"
))]
pub struct Predict {
    /// Weights (.safetensors) of a training run, a published network's (.safetensors, .pth), a model of nnU-Net v2 (its
    /// results folder, exported .zip or checkpoint .pth), or the folder of a network of brainchop's. Several weights with commas
    /// between them, such as the folds of a cross-validation, are an ensemble: the mean of their probabilities counts
    #[arg(long, value_name = "MODEL,…")]
    model: PathBuf,
    /// A scan (.nii, .nii.gz, .mgz, .mgh, .nrrd, .nhdr, .hdr beside its .img, or the folder of a DICOM series), or a folder of
    /// scans; scans of several files are CASE_0000.nii.gz, CASE_0001.nii.gz …
    #[arg(long, value_name = "SCAN|FOLDER")]
    input: PathBuf,
    /// The label file (.nii.gz, .nii, .mgz, .mgh, .nrrd, or .dcm for a DICOM segmentation of a series), or the folder of label
    /// files
    #[arg(long, value_name = "LABELS|FOLDER")]
    output: PathBuf,
    /// The DICOM series to take where a folder holds several: its number or UID
    #[arg(long, value_name = "NUMBER|UID")]
    series: Option<String>,
    /// What label files of a folder of scans are [default: nifti]; one scan's is as its name says
    #[arg(long, value_enum, value_name = "FORMAT")]
    format: Option<Format>,
    #[arg(skip)]
    kind: OnceCell<Input>,
    /// Network, instead of the one that the weights name or are recognised as
    #[arg(long, value_name = "NAME")]
    arch: Option<String>,
    /// Turn scans to this orientation first, as nibabel names it (LAI is c3d's RPS), for networks that read them as
    /// stored; labels are turned back
    #[arg(long, value_name = "CODE")]
    orient: Option<Orientation>,
    /// Also write the logits (f32, [C, D, H, W]) on the preprocessed grid; one scan only
    #[arg(long, value_name = "FILE.safetensors")]
    logits: Option<PathBuf>,
    /// Also write a picture of each scan with its labels here
    #[arg(long, value_name = "FOLDER")]
    overlay: Option<PathBuf>,
    /// Also write the labels' names and colours, for ITK-SNAP (.txt, .label) or 3D Slicer (.ctbl)
    #[arg(long, value_name = "FILE", conflicts_with = "points")]
    label_table: Option<PathBuf>,
    /// Predict only at the points of this file and write a table: a line a point, x,y,z in millimetres of the scan's world
    /// (NIfTI: right, anterior, superior); for networks that look at points (`obelisk` …), one scan only
    #[arg(long, value_name = "FILE.csv", conflicts_with_all = ["logits", "overlay", "grid_spacing"])]
    points: Option<PathBuf>,
    /// The points are voxel indices i,j,k of the scan (from 0, fractions allowed) instead
    #[arg(long, requires = "points")]
    voxels: bool,
    /// Predict on a regular grid of this spacing instead of the network's own, upsampled to the scan; for the same networks
    #[arg(long, value_name = "MM", value_parser = values::positive::<f64>)]
    grid_spacing: Option<f64>,
    #[command(flatten)]
    foreign: Foreign,
    #[command(flatten)]
    maps: maps::Maps,
    /// nnU-Net: do not mirror tiles at test time, which takes an eighth of the time where the model allows three axes
    #[arg(long, conflicts_with = "mirroring")]
    no_mirroring: bool,
    /// Only part K of N, from 0, of a folder's scans, divided by their names, for as many machines; a scan stays in its part, and a
    /// part can be repeated
    #[arg(long, value_name = "K/N")]
    part: Option<Part>,
    /// Replace outputs that exist; without it, a folder's finished scans are skipped
    #[arg(long)]
    force: bool,
    /// Print one JSON object a scan
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    pub(super) device: DeviceArguments,
}

/// What label files are.
#[derive(Clone, Copy, Debug, PartialEq, clap::ValueEnum)]
enum Format {
    /// .nii.gz
    Nifti,
    /// DICOM segmentations, .dcm
    DicomSeg,
}

/// What `--input` is.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Input {
    /// A file of a scan.
    File,
    /// A DICOM series.
    Series,
    /// A folder of scans.
    Folder,
}

impl Predict {
    pub fn run(&self) -> anyhow::Result<()> {
        let members = members(&self.model);
        let mut files = Files::new();
        files
            .read_all("--model", &members)
            .read("--input", &self.input)
            .read_all("--points", &self.points)
            .write("--output", &self.output)
            .write_all("--logits", &self.logits)
            .write_all("--overlay", &self.overlay)
            .write_all("--label-table", &self.label_table);
        self.maps.write(&mut files).check()?;
        if let Some(path) = &self.label_table {
            let wrong = |problem| Usage(format!("--label-table {}: {problem}", path.display()));
            Program::of(path).map_err(wrong)?;
            claim(path, self.force)?;
        }
        if members.len() > 1 || self.maps.are_asked_for() {
            return maps::run(self, &members);
        }
        if obelisk::nnunet::is_model(&self.model) {
            return nnunet::run(self);
        }
        if self.no_mirroring {
            return Err(Usage("--no-mirroring is for models of nnU-Net's".into()).into());
        }
        let model = self.load_model(&self.model)?;
        if let Some(points) = &self.points {
            if self.maps.cleans() {
                return Err(Usage("the clean-up is for label maps, not for --points".into()).into());
            }
            return points::run(self, &model, points);
        }
        let preprocessing = &model.info.preprocessing;
        let jobs = self.jobs(preprocessing.channels.len())?;
        let load = |device: &Device| self.load_predictor(device, &model);
        let labels = |device: &Device, predictor: &mut Segmenter, _: &Job, scan: Volume| match &self.logits {
            None => Ok(predictor.labels(device, &scan)?),
            Some(path) => {
                let (labels, logits) = predictor.segment(device, &scan)?;
                let tensors = [("logits".to_owned(), logits)].into();
                weights::save(path, &model.info, &tensors, self.force)?;
                Ok(labels)
            }
        };
        self.segment_all(jobs, &preprocessing.labels, load, labels)
    }

    /// Segments one scan after the other, with what `load` makes ready on a device; `labels` are a scan's.
    fn segment_all<S>(
        &self,
        (jobs, incomplete): (Vec<Job>, usize),
        names: &[Label],
        load: impl Fn(&Device) -> anyhow::Result<S>,
        labels: impl Fn(&Device, &mut S, &Job, Volume) -> anyhow::Result<Vec<i32>>,
    ) -> anyhow::Result<()> {
        self.maps.check(names)?;
        let all = jobs.len() + incomplete;
        if jobs.is_empty() && incomplete == 0 {
            return self.write_table(names);
        }
        if jobs.is_empty() {
            bail!("{incomplete} of {all} scans failed");
        }
        let mut device = device::open(&self.device.options())?;
        let mut loaded = load(&device)?;
        let mut losses = Losses::default();
        let finishing = (jobs.len() > 1).then(|| Finishing::first("this scan"));
        let mut failed = Vec::new();
        for (done, job) in jobs.iter().enumerate() {
            if finishing.as_ref().is_some_and(|f| f.flow().is_break()) {
                let told = format!(
                    "{done} of {} scans are done; the same call does the others",
                    jobs.len()
                );
                return Err(Interrupted::after(told).into());
            }
            // One bad scan among many does not keep the others from their labels.
            let segmented = loop {
                match self.segment(job, names, |scan| labels(&device, &mut loaded, job, scan)) {
                    Err(error) if losses.repeat(&device, done, &message(&error)) => {
                        device = device::open(&self.device.options())?;
                        loaded = load(&device)?;
                    }
                    ended => break ended,
                }
            };
            if let Err(error) = segmented {
                if !self.is_folder() {
                    return Err(error);
                }
                errln!("error: {}", message(&error));
                failed.push(job.files[0].display().to_string());
            }
        }
        match failed.len() + incomplete {
            0 => self.write_table(names),
            count => bail!("{count} of {all} scans failed: {}", failed.join(", ")),
        }
    }

    /// Writes the labels' names and colours, where it is asked for.
    fn write_table(&self, names: &[Label]) -> anyhow::Result<()> {
        match &self.label_table {
            Some(path) => Ok(label_table::write(
                path,
                &label_table::coloured(names),
                self.force,
            )?),
            None => Ok(()),
        }
    }

    /// What `--input` is. What is ignored is said once.
    fn kind(&self) -> Input {
        *self.kind.get_or_init(|| {
            if !self.input.is_dir() {
                return match dicom::is_dicom(&self.input) {
                    true => Input::Series,
                    false => Input::File,
                };
            }
            // What can't be listed is told where it is read.
            let Ok(folder) = Folder::open(&self.input) else {
                return Input::Folder;
            };
            if !folder.ignored.is_empty() {
                let (count, names) = (folder.ignored.len(), dicom::names(&folder.ignored));
                let why = match folder.holds {
                    Holds::Series => "it holds a DICOM series; folders in it",
                    Holds::Folders(_) => "it holds folders of DICOM series; what else is there",
                    Holds::Others => {
                        "it holds scans of other formats; DICOM files, which need a folder of their own,"
                    }
                };
                errln!("{}: {why} are ignored ({count}): {names}", self.input.display());
            }
            match folder.holds {
                Holds::Series => Input::Series,
                _ => Input::Folder,
            }
        })
    }

    /// Whether `--input` is several scans.
    fn is_folder(&self) -> bool {
        self.kind() == Input::Folder
    }

    /// Whether label files are DICOM segmentations, which are of series alone.
    fn segmentations(&self) -> anyhow::Result<bool> {
        let output = self.output.display();
        let is_named = self
            .output
            .extension()
            .is_some_and(|e| e.eq_ignore_ascii_case("dcm"));
        let is_one = !self.is_folder();
        if is_one && !is_named {
            let wrong = |problem| {
                Usage(format!(
                    "--output {output}: {problem}, or in .dcm for a DICOM segmentation"
                ))
            };
            volume::check_written(&self.output).map_err(wrong)?;
        }
        match self.format {
            Some(Format::DicomSeg) if is_one && !is_named => {
                return Err(Usage(format!(
                    "--output {output}: a DICOM segmentation's name ends in .dcm"
                ))
                .into());
            }
            Some(Format::Nifti) if is_one && is_named => {
                return Err(Usage(format!(
                    "--output {output}: a NIfTI file's name ends in .nii.gz or .nii"
                ))
                .into());
            }
            _ => {}
        }
        let wanted = if is_one {
            is_named
        } else {
            self.format == Some(Format::DicomSeg)
        };
        if wanted && self.kind() == Input::File {
            return Err(Usage(format!(
                "--output {output}: a DICOM segmentation refers to the images of a series, and --input {} is none; write .nii.gz, or \
                 give the folder of the series",
                self.input.display()
            ))
            .into());
        }
        Ok(wanted)
    }

    /// The series of a job; `None` where it is of files of other formats.
    fn series(&self, job: &Job) -> anyhow::Result<Option<Rc<Series>>> {
        match &job.series {
            Some(series) => Ok(Some(series.clone())),
            None => Ok(series_of(&job.files[0], self.series.as_deref())?.map(Rc::new)),
        }
    }

    /// The scans to segment, those of a folder that have no labels yet, or one; and how many more lack a file.
    fn jobs(&self, channels: usize) -> anyhow::Result<(Vec<Job>, usize)> {
        let is_folder = self.is_folder();
        if self.part.is_some() && !is_folder {
            return Err(Usage("--part takes a folder, not one scan".into()).into());
        }
        let segmentations = self.segmentations()?;
        let ending = if segmentations { "dcm" } else { "nii.gz" };
        let mut incomplete = 0;
        let mut jobs: Vec<Job> = match is_folder {
            true if self.logits.is_some() => {
                return Err(Usage("--logits takes one scan, not a folder".into()).into());
            }
            true => {
                let mut found = find_scans(&self.input, channels)?;
                if let Some(part) = self.part {
                    let all = found.scans.len();
                    found.scans.retain(|id, _| part.has(id));
                    found.incomplete.retain(|error| match error {
                        DatasetError::Invalid { path, .. } => {
                            part.has(&path.file_name().unwrap_or_default().to_string_lossy())
                        }
                        _ => true,
                    });
                    errln!("part {part}: {} of {all} scans", found.scans.len());
                }
                // One scan that lacks a file does not keep the others from their labels.
                found.incomplete.iter().for_each(|error| errln!("error: {error}"));
                incomplete = found.incomplete.len();
                let job = |(id, files): (String, Vec<PathBuf>)| Job {
                    files,
                    series: None,
                    output: self.output.join(format!("{id}.{ending}")),
                };
                found.scans.into_iter().map(job).collect()
            }
            false => vec![Job {
                files: vec![self.input.clone()],
                output: self.output.clone(),
                series: None,
            }],
        };
        if segmentations
            && let Some(job) = jobs.iter().find(|job| !job.files[0].is_dir())
            && is_folder
        {
            return Err(Usage(format!(
                "--format dicom-seg: a DICOM segmentation refers to the images of a series, and {} is none",
                job.files[0].display()
            ))
            .into());
        }
        if self.series.is_some()
            && !jobs.iter().any(|job| job.files[0].is_dir())
            && self.kind() != Input::Series
        {
            return Err(Usage(format!(
                "--series is for DICOM, and {} holds none",
                self.input.display()
            ))
            .into());
        }
        if let (Input::Series, [job]) = (self.kind(), &mut jobs[..]) {
            job.series = self.series(job)?; // what is wrong with it is told before a device opens
        }
        let mut files = Files::new();
        for job in &jobs {
            files
                .read_all("--input", &job.files)
                .write("--output", &job.output);
            files.write_all("--overlay", &self.picture(&job.output));
            self.maps.write_of(job, is_folder, &mut files);
        }
        let all = jobs.len();
        files
            .read_all("--model", &members(&self.model))
            .write_all("--logits", &self.logits)
            .check()?;
        if let Some(folder) = &self.overlay {
            claim_folder(folder)?;
        }
        self.maps.claim(is_folder, self.force)?;
        if !is_folder {
            claim(&self.output, self.force)?;
            self.logits.iter().try_for_each(|path| claim(path, self.force))?;
            let picture = self.picture(&self.output);
            picture.iter().try_for_each(|path| claim(path, self.force))?;
            return Ok((jobs, 0));
        }
        claim_folder(&self.output)?;
        let jobs: Vec<Job> = jobs
            .into_iter()
            .filter(|job| self.force || !job.output.exists())
            .collect();
        if jobs.len() < all {
            let done = all - jobs.len();
            errln!("{done} of {all} scans have their labels already; --force does them again");
        }
        Ok((jobs, incomplete))
    }

    /// Where the picture of a scan with these labels goes.
    fn picture(&self, labels: &Path) -> Option<PathBuf> {
        let folder = self.overlay.as_ref()?;
        let stem = volume::stem(labels).or(labels.file_stem().map(|stem| stem.to_string_lossy()));
        Some(folder.join(format!("{}.png", stem?)))
    }

    /// The weights, with what `--arch` and `--orient` say instead of their record.
    fn load_model(&self, path: &Path) -> anyhow::Result<Model> {
        let mut model = self.foreign.open(path, self.arch.as_deref())?;
        if let Some(code) = self.orient {
            if let Some(own) = model.info.preprocessing.orientation {
                let message = format!(
                    "{} turns scans to {own} by itself; --orient is for networks that read scans as they are stored",
                    path.display()
                );
                return Err(Usage(message).into());
            }
            model.info.preprocessing.orientation = Some(code);
        }
        Ok(model)
    }

    fn load_predictor(&self, device: &Device, model: &Model) -> anyhow::Result<Segmenter> {
        let what = || format!("{}: {}", self.model.display(), model.info.arch);
        self.predictor(device, model).with_context(what)
    }

    fn predictor(&self, device: &Device, model: &Model) -> anyhow::Result<Segmenter> {
        let network = &model::find(&model.info.arch)?;
        let preprocessing = &model.info.preprocessing;
        if let Some(spacing) = self.grid_spacing {
            let predictor = PointPredictor::new(network, preprocessing, &model.tensors)?;
            return Ok(Segmenter::Grid(Box::new(predictor), spacing));
        }
        let predictor = Predictor::with_weights(device, network, preprocessing, &model.tensors);
        Ok(Segmenter::Own(Box::new(pollster::block_on(predictor)?)))
    }

    /// Writes a scan's labels and picture, and says that it is done.
    fn segment(
        &self,
        job: &Job,
        names: &[Label],
        labels: impl FnOnce(Volume) -> anyhow::Result<Vec<i32>>,
    ) -> anyhow::Result<()> {
        let start = std::time::Instant::now();
        let series = self.series(job)?;
        if let Some(series) = &series {
            let mut files = Files::new();
            for file in series.files() {
                files.read("--input", file);
            }
            files.write("--output", &job.output).check()?;
        }
        let read = || match &series {
            Some(series) => series.volume(),
            None => read_channels(&job.files),
        };
        let scan = read()?;
        let geometry = scan.geometry.clone();
        // The scan is given away: with its labels it may be more than there is memory for.
        let mut labels = labels(scan).with_context(|| format!("{}", job.files[0].display()))?;
        let cleaned = self.maps.clean(&mut labels, &geometry, names);
        cleaned.with_context(|| format!("{}", job.files[0].display()))?;
        match &series {
            Some(series) if self.segmentations()? => {
                series.write_segmentation(&job.output, &labels, names, self.force)?;
            }
            _ => volume::write_labels(&job.output, &labels, &geometry, self.force)?,
        }
        if let Some(path) = self.picture(&job.output) {
            let scan = read()?;
            picture::overlay(&path, &scan, &labels, None, names, self.force)?;
        }
        let seconds = start.elapsed().as_secs_f64();
        if self.json {
            let input: Vec<_> = job.files.iter().map(|file| file.to_string_lossy()).collect();
            let output = job.output.to_string_lossy();
            let line = serde_json::json!({ "input": input, "output": output, "seconds": seconds });
            outln!("{line}");
        } else {
            outln!("{}", job.output.display());
            errln!("{} in {seconds:.1} s", job.files[0].display());
        }
        Ok(())
    }
}

/// The models that `--model` names: the one file or folder of that name, or those between commas.
pub fn members(model: &Path) -> Vec<PathBuf> {
    match model.to_str().filter(|_| !model.exists()) {
        Some(names) => names.split(',').map(PathBuf::from).collect(),
        None => vec![model.to_owned()],
    }
}

/// The series at a path; `None` where it is a file of another format.
pub fn series_of(path: &Path, wanted: Option<&str>) -> anyhow::Result<Option<Series>> {
    match path.is_dir() || dicom::is_dicom(path) {
        true => Ok(Some(Series::open(path, wanted)?)),
        false => Ok(None),
    }
}

/// What a model from elsewhere leaves open.
#[derive(Debug, Default, Args)]
pub struct Foreign {
    /// nnU-Net: the configuration, such as 3d_fullres, where the model has several
    #[arg(long, value_name = "NAME")]
    configuration: Option<String>,
    /// nnU-Net: the folds whose mean counts, such as 0,1 or all [default: every one]
    #[arg(long, value_name = "K,…", value_delimiter = ',')]
    folds: Vec<String>,
    /// brainchop: how intensities are scaled, where the network is not one of its own: the whole range to 0 … 1, or the
    /// quantiles 0.05 and 0.95
    #[arg(long, value_enum, value_name = "HOW")]
    intensity: Option<Scaling>,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Scaling {
    Minmax,
    Quantile,
}

impl Foreign {
    /// What to take of a model of nnU-Net's.
    pub fn choice(&self) -> Choice {
        Choice {
            configuration: self.configuration.clone(),
            folds: self.folds.clone(),
        }
    }

    /// Refuses what is for other models than nnU-Net's.
    pub fn only_nnunet(&self) -> Result<(), Usage> {
        match self.intensity {
            Some(_) => Err(Usage("--intensity is for networks of brainchop's".into())),
            None => Ok(()),
        }
    }

    /// Reads any other model than nnU-Net's, as the network of that name where there is one.
    pub fn open(&self, path: &Path, arch: Option<&str>) -> anyhow::Result<Model> {
        if self.configuration.is_some() || !self.folds.is_empty() {
            return Err(Usage("--configuration and --folds are for models of nnU-Net's".into()).into());
        }
        if let Some(name) = arch {
            model::find(name).map_err(|e| Usage(e.to_string()))?;
        }
        let intensity = self.intensity.map(|scaling| match scaling {
            Scaling::Minmax => Intensity::MIN_MAX,
            Scaling::Quantile => brainchop::QUANTILES,
        });
        match intensity {
            None => Model::open(path, arch).map_err(how_to_import),
            Some(intensity) if brainchop::is_one(path) && arch.is_none() => {
                Ok(Model::open_brainchop(path, intensity)?)
            }
            Some(_) => Err(Usage("--intensity is for networks of brainchop's".into()).into()),
        }
    }
}

/// On the network's own grid, or on one of another spacing.
enum Segmenter {
    Own(Box<Predictor>),
    Grid(Box<PointPredictor>, f64),
}

impl Segmenter {
    fn labels(&mut self, device: &Device, scan: &Volume) -> Result<Vec<i32>, PredictError> {
        match self {
            Segmenter::Own(predictor) => pollster::block_on(predictor.labels(device, scan)),
            Segmenter::Grid(..) => Ok(self.segment(device, scan)?.0),
        }
    }

    fn segment(&mut self, device: &Device, scan: &Volume) -> Result<(Vec<i32>, Tensor), PredictError> {
        match self {
            Segmenter::Own(predictor) => pollster::block_on(predictor.segment(device, scan)),
            Segmenter::Grid(predictor, spacing) => {
                pollster::block_on(predictor.segment(device, scan, *spacing))
            }
        }
    }
}

/// The files of one scan and where its labels go.
struct Job {
    files: Vec<PathBuf>,
    output: PathBuf,
    /// Where it was opened already.
    series: Option<Rc<Series>>,
}

mod points;

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use obelisk::dataset::{find_scans, read_channels};
use obelisk::gpu::{Device, DeviceOptions};
use obelisk::predict::points::PointPredictor;
use obelisk::predict::{PredictError, Predictor};
use obelisk::tensor::Tensor;
use obelisk::volume::{self, Orientation, Volume};
use obelisk::weights::Model;
use obelisk::{model, picture, weights};

use super::{Usage, how_to_import, open_device, refuse_existing};

/// `obelisk predict`
#[derive(Debug, Args)]
pub struct Predict {
    /// Weights (.safetensors) of a training run, or a published network's (.safetensors, .pth)
    #[arg(long, value_name = "WEIGHTS")]
    model: PathBuf,
    /// A scan (.nii, .nii.gz), or a folder of scans; scans of several files are CASE_0000.nii.gz, CASE_0001.nii.gz …
    #[arg(long, value_name = "SCAN|FOLDER")]
    input: PathBuf,
    /// The label file, or the folder of label files
    #[arg(long, value_name = "LABELS|FOLDER")]
    output: PathBuf,
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
    /// Predict only at the points of this file and write a table: a line a point, x,y,z in millimetres of the scan's world
    /// (NIfTI: right, anterior, superior); for networks that look at points (`obelisk` …), one scan only
    #[arg(long, value_name = "FILE.csv", conflicts_with_all = ["logits", "overlay", "grid_spacing"])]
    points: Option<PathBuf>,
    /// The points are voxel indices i,j,k of the scan (from 0, fractions allowed) instead
    #[arg(long, requires = "points")]
    voxels: bool,
    /// Predict on a regular grid of this spacing instead of the network's own, upsampled to the scan; for the same networks
    #[arg(long, value_name = "MM")]
    grid_spacing: Option<f64>,
    /// Replace outputs that exist; without it, a folder's finished scans are skipped
    #[arg(long)]
    force: bool,
    /// Print one JSON object a scan
    #[arg(long)]
    json: bool,
}

impl Predict {
    pub fn run(&self, options: &DeviceOptions) -> anyhow::Result<()> {
        let model = self.load_model()?;
        if let Some(points) = &self.points {
            return points::run(self, &model, points, options);
        }
        let channels = model.info.preprocessing.channels.len();
        let mut incomplete = 0;
        let jobs = if self.input.is_dir() {
            if self.logits.is_some() {
                return Err(Usage("--logits takes one scan, not a folder".into()).into());
            }
            let output = |id: String| self.output.join(format!("{id}.nii.gz"));
            let found = find_scans(&self.input, channels)?;
            // One scan that lacks a file does not keep the others from their labels.
            found
                .incomplete
                .iter()
                .for_each(|error| eprintln!("error: {error}"));
            incomplete = found.incomplete.len();
            let jobs: Vec<Job> = found
                .scans
                .into_iter()
                .map(|(id, files)| Job {
                    files,
                    output: output(id),
                })
                .collect();
            std::fs::create_dir_all(&self.output).with_context(|| format!("{}", self.output.display()))?;
            jobs
        } else {
            if volume::stem(&self.output).is_none() {
                let message = format!("--output {} must end in .nii or .nii.gz", self.output.display());
                return Err(Usage(message).into());
            }
            refuse_existing(&self.output, self.force)?;
            self.logits
                .iter()
                .try_for_each(|p| refuse_existing(p, self.force))?;
            vec![Job {
                files: vec![self.input.clone()],
                output: self.output.clone(),
            }]
        };
        if let Some(folder) = &self.overlay {
            std::fs::create_dir_all(folder).with_context(|| format!("{}", folder.display()))?;
        }

        let all = jobs.len();
        let jobs: Vec<Job> = jobs
            .into_iter()
            .filter(|j| self.force || !j.output.exists())
            .collect();
        if jobs.len() < all {
            eprintln!(
                "{} of {all} scans have their labels already; --force does them again",
                all - jobs.len()
            );
        }
        if jobs.is_empty() && incomplete == 0 {
            return Ok(());
        }
        if jobs.is_empty() {
            anyhow::bail!("{incomplete} of {} scans failed", all + incomplete);
        }

        let device = open_device(options)?;
        let mut predictor = self
            .load_predictor(&device, &model)
            .with_context(|| format!("{}: {}", self.model.display(), model.info.arch))?;
        let mut failed = incomplete;
        for job in &jobs {
            match self.segment(&device, &mut predictor, &model, job) {
                Ok(()) => {}
                // One bad scan among many does not keep the others from their labels.
                Err(error) if all + incomplete > 1 => {
                    eprintln!("error: {}", super::told(&error));
                    failed += 1;
                }
                Err(error) => return Err(error),
            }
        }
        if failed > 0 {
            anyhow::bail!("{failed} of {} scans failed", jobs.len() + incomplete);
        }
        Ok(())
    }

    /// The weights, with what `--arch` and `--orient` say instead of their record.
    fn load_model(&self) -> anyhow::Result<Model> {
        if let Some(name) = &self.arch {
            model::find(name).map_err(|e| Usage(e.to_string()))?;
        }
        let mut model = Model::open(&self.model, self.arch.as_deref()).map_err(how_to_import)?;
        if let Some(code) = self.orient {
            if let Some(own) = model.info.preprocessing.orientation {
                let message = format!(
                    "{} turns scans to {own} by itself; --orient is for networks that read scans as they are stored",
                    self.model.display()
                );
                return Err(Usage(message).into());
            }
            model.info.preprocessing.orientation = Some(code);
        }
        Ok(model)
    }

    fn load_predictor(&self, device: &Device, model: &Model) -> anyhow::Result<Segmenter> {
        let network = model::find(&model.info.arch)?;
        let preprocessing = &model.info.preprocessing;
        if let Some(spacing) = self.grid_spacing {
            let predictor = PointPredictor::new(network, preprocessing, &model.tensors)?;
            return Ok(Segmenter::Grid(Box::new(predictor), spacing));
        }
        let predictor = Predictor::with_weights(device, network, preprocessing, &model.tensors);
        Ok(Segmenter::Own(Box::new(pollster::block_on(predictor)?)))
    }

    fn segment(
        &self,
        device: &Device,
        predictor: &mut Segmenter,
        model: &Model,
        job: &Job,
    ) -> anyhow::Result<()> {
        let start = std::time::Instant::now();
        let scan = read_channels(&job.files)?;
        let what = || format!("{}", job.files[0].display());
        let labels = match &self.logits {
            None => predictor.labels(device, &scan).with_context(what)?,
            Some(path) => {
                let (labels, logits) = predictor.segment(device, &scan).with_context(what)?;
                let tensors = [("logits".to_owned(), logits)].into();
                weights::save(path, &model.info, &tensors, self.force)?;
                labels
            }
        };
        volume::write_labels(&job.output, &labels, &scan.geometry, self.force)?;
        if let Some(folder) = &self.overlay {
            let stem = volume::stem(&job.output).context("an output without a name")?;
            let names = &model.info.preprocessing.labels;
            picture::overlay(
                &folder.join(format!("{stem}.png")),
                &scan,
                &labels,
                None,
                names,
                self.force,
            )?;
        }
        let seconds = start.elapsed().as_secs_f64();
        if self.json {
            let input: Vec<_> = job.files.iter().map(|file| file.to_string_lossy()).collect();
            let output = job.output.to_string_lossy();
            let line = serde_json::json!({ "input": input, "output": output, "seconds": seconds });
            println!("{line}");
        } else {
            println!("{}", job.output.display());
            eprintln!("{} in {seconds:.1} s", job.files[0].display());
        }
        Ok(())
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
}

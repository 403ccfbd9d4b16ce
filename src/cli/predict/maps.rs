//! `obelisk predict` by several networks or mirrored scans, what it says beside labels of how sure they are, and the clean-up.

use std::cell::RefCell;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, bail};
use clap::Args;
use obelisk::components::{self, Keep};
use obelisk::dataset::{Label, listed};
use obelisk::file::write_beside;
use obelisk::gpu::Device;
use obelisk::model;
use obelisk::predict::ensemble::{Agreed, Confidence, Ensemble};
use obelisk::volume::{self, Geometry, Volume};
use obelisk::weights::Model;

use super::{Files, Job, Predict, claim, claim_folder};
use crate::cli::{Usage, values};

/// What a prediction gives beside labels, and what is done to them.
#[derive(Debug, Default, Args)]
pub struct Maps {
    /// Predict each scan mirrored along these axes, too, and average the probabilities: all, or some of x,y,z, its axes once it
    /// is turned as the network reads it; n axes take 2ⁿ times as long [default: none; nnU-Net: those that its model allows]
    #[arg(long, value_name = "AXES", num_args = 0..=1, require_equals = true, default_missing_value = "all")]
    mirroring: Option<Axes>,
    /// Also write each label's probability (a fourth axis, steps of 1/255): a file for a scan, a folder for a folder
    #[arg(long, value_name = "FILE|FOLDER")]
    probabilities: Option<PathBuf>,
    /// Also write how unsure each voxel is, from 0 to 1 (entropy): a file for a scan, a folder for a folder
    #[arg(long, value_name = "FILE|FOLDER")]
    uncertainty: Option<PathBuf>,
    /// Also write a table of the scans, those first that a person should look at: the Dice that the probabilities let expect
    #[arg(long, value_name = "FILE.csv")]
    quality: Option<PathBuf>,
    /// Keep only the largest connected part of these labels (names or values), or of all
    #[arg(long, value_name = "LABEL,…|all", value_delimiter = ',')]
    largest_component: Vec<String>,
    /// Remove connected parts of a label that are smaller than this
    #[arg(long, value_name = "ML", value_parser = values::positive::<f64>)]
    min_volume: Option<f64>,
}

/// Axes of a prepared scan: 0 to 2.
#[derive(Clone, Debug, PartialEq)]
struct Axes(Vec<usize>);

impl FromStr for Axes {
    type Err = String;

    fn from_str(text: &str) -> Result<Axes, String> {
        if text == "all" {
            return Ok(Axes(vec![0, 1, 2]));
        }
        let axis = |name: &str| ["x", "y", "z"].iter().position(|own| *own == name.trim());
        let axes: Option<Vec<usize>> = text.split(',').map(axis).collect();
        let mut axes = axes.ok_or("it should be all, or some of x,y,z")?;
        axes.sort_unstable();
        axes.dedup();
        Ok(Axes(axes))
    }
}

impl Maps {
    /// Whether probabilities are needed.
    pub fn are_asked_for(&self) -> bool {
        let paths = [&self.probabilities, &self.uncertainty, &self.quality];
        self.mirroring.is_some() || paths.iter().any(|path| path.is_some())
    }

    /// Whether labels are changed after they were chosen.
    pub fn cleans(&self) -> bool {
        self.min_volume.is_some() || !self.largest_component.is_empty()
    }

    /// Notes what is written.
    pub fn write<'f>(&self, files: &'f mut Files) -> &'f mut Files {
        files
            .write_all("--probabilities", &self.probabilities)
            .write_all("--uncertainty", &self.uncertainty)
            .write_all("--quality", &self.quality)
    }

    /// Notes a scan's files in folders.
    pub(super) fn write_of(&self, job: &Job, is_folder: bool, files: &mut Files) {
        if is_folder {
            files
                .write_all("--probabilities", &of(&self.probabilities, job, is_folder))
                .write_all("--uncertainty", &of(&self.uncertainty, job, is_folder));
        }
    }

    /// Makes sure that all can be written.
    pub fn claim(&self, is_folder: bool, force: bool) -> anyhow::Result<()> {
        for (option, path) in [
            ("--probabilities", &self.probabilities),
            ("--uncertainty", &self.uncertainty),
        ] {
            let Some(path) = path else { continue };
            if is_folder {
                claim_folder(path)?;
            } else if !matches!(volume::ending(path), Some(".nii" | ".nii.gz")) {
                let message = format!("{option} {} must end in .nii or .nii.gz", path.display());
                return Err(Usage(message).into());
            } else {
                claim(path, force)?;
            }
        }
        self.quality.iter().try_for_each(|path| claim(path, force))
    }

    /// Whether there are labels of the names given.
    pub fn check(&self, names: &[Label]) -> anyhow::Result<()> {
        for name in &self.largest_component {
            if name != "all" && !names.iter().any(|label| is(label, name)) {
                let message = format!(
                    "--largest-component: there is no label `{name}`: {}",
                    listed(names)
                );
                return Err(Usage(message).into());
            }
        }
        Ok(())
    }

    /// Removes the parts of labels that are not to stay.
    ///
    /// # Errors
    /// A scan that does not say how large its voxels are, where a volume is asked for.
    pub fn clean(&self, labels: &mut [i32], geometry: &Geometry, names: &[Label]) -> anyhow::Result<()> {
        let voxel = geometry.spacing.iter().product::<f64>() / 1000.0;
        if self.min_volume.is_some() && voxel <= 0.0 {
            bail!("it does not declare the size of its voxels, which --min-volume needs");
        }
        for label in names.iter().filter(|label| label.value != 0) {
            if let Some(least) = self.min_volume {
                let voxels = (least / voxel).ceil() as usize;
                components::clean(labels, geometry.shape, label.value, Keep::AtLeast(voxels));
            }
            let named = self.largest_component.iter();
            if named.into_iter().any(|name| name == "all" || is(label, name)) {
                components::clean(labels, geometry.shape, label.value, Keep::Largest);
            }
        }
        Ok(())
    }

    /// Writes a scan's maps.
    fn save(&self, agreed: &Agreed, like: &Geometry, job: &Job, predict: &Predict) -> anyhow::Result<()> {
        let is_folder = predict.is_folder();
        if let Some(path) = of(&self.probabilities, job, is_folder) {
            let labels = agreed.probabilities.shape[0];
            let maps: Vec<Vec<f32>> = (0..labels).map(|label| agreed.probability(label)).collect();
            volume::write_shares(&path, &maps, like, predict.force)?;
        }
        if let Some(path) = of(&self.uncertainty, job, is_folder) {
            volume::write_shares(&path, &[agreed.uncertainty()], like, predict.force)?;
        }
        Ok(())
    }
}

fn is(label: &Label, name: &str) -> bool {
    label.name == name || label.value.to_string() == name
}

/// Where a scan's map goes.
fn of(given: &Option<PathBuf>, job: &Job, is_folder: bool) -> Option<PathBuf> {
    let given = given.as_ref()?;
    match is_folder {
        // Beside DICOM segmentations, which hold no such maps, they are NIfTI files all the same.
        true if job.output.extension().is_some_and(|ending| ending == "dcm") => {
            Some(given.join(job.output.with_extension("nii.gz").file_name()?))
        }
        true => Some(given.join(job.output.file_name()?)),
        false => Some(given.clone()),
    }
}

/// A network of an ensemble, and where it is from.
pub type Member = (PathBuf, Model);

/// Reads the networks of an ensemble.
///
/// # Errors
/// Weights that can't be read, and networks that don't fit together.
pub fn read(
    members: &[PathBuf],
    open: impl Fn(&Path) -> anyhow::Result<Model>,
) -> anyhow::Result<Vec<Member>> {
    let models = members.iter().map(|path| Ok((path.clone(), open(path)?)));
    let models: Vec<Member> = models.collect::<anyhow::Result<_>>()?;
    let (first, model) = &models[0];
    for (path, other) in &models[1..] {
        Ensemble::check(&model.info.preprocessing, &other.info.preprocessing).map_err(|why| {
            let (a, b) = (first.display(), path.display());
            Usage(format!("{a} and {b} can't be an ensemble: {why}"))
        })?;
    }
    Ok(models)
}

/// Makes an ensemble ready on a device, mirrored along these axes.
pub fn ready(device: &Device, models: &[Member], axes: &[usize]) -> anyhow::Result<Ensemble> {
    let members = models.iter().map(|(_, model)| {
        let network = model::find(&model.info.arch)?;
        Ok((network, &model.info.preprocessing, &model.tensors))
    });
    let members: Vec<_> = members.collect::<anyhow::Result<_>>()?;
    Ok(pollster::block_on(Ensemble::new(device, &members, axes))?)
}

/// Predicts with one or several networks of the program's own.
pub fn run(predict: &Predict, members: &[PathBuf]) -> anyhow::Result<()> {
    let maps = &predict.maps;
    let not_for_it = [
        ("--points", predict.points.is_some()),
        ("--grid-spacing", predict.grid_spacing.is_some()),
        ("--logits", predict.logits.is_some()),
    ];
    if let Some((option, _)) = not_for_it.iter().find(|(_, given)| *given) {
        let message =
            format!("{option} is for one network as it is, without mirroring, probabilities and quality");
        return Err(Usage(message).into());
    }
    if let Some(path) = members.iter().find(|path| obelisk::nnunet::is_model(path)) {
        // Its model says what is mirrored, and does so unless told otherwise.
        if let [_] = members
            && let Maps {
                probabilities: None,
                uncertainty: None,
                quality: None,
                ..
            } = maps
            && maps.mirroring == Some(Axes(vec![0, 1, 2]))
        {
            return super::nnunet::run(predict);
        }
        let message = format!(
            "{} is a model of nnU-Net's: its folds are an ensemble by themselves (--folds), its plan says what is mirrored, and it \
             gives labels only",
            path.display()
        );
        return Err(Usage(message).into());
    }
    if predict.no_mirroring {
        return Err(Usage("--no-mirroring is for models of nnU-Net's".into()).into());
    }
    let models = read(members, |path| predict.load_model(path))?;
    let preprocessing = &models[0].1.info.preprocessing;
    let jobs = predict.jobs(preprocessing.channels.len())?;
    let load = |device: &Device| {
        let axes = maps.mirroring.as_ref().map_or(&[][..], |axes| &axes.0);
        ready(device, &models, axes).with_context(|| format!("{}", predict.model.display()))
    };
    let confidences: RefCell<HashMap<PathBuf, Confidence>> = RefCell::default();
    let labels = |device: &Device, ensemble: &mut Ensemble, job: &Job, scan: Volume| {
        let agreed = pollster::block_on(ensemble.agree(device, &scan))?;
        maps.save(&agreed, &scan.geometry, job, predict)?;
        if maps.quality.is_some() {
            let mut confidences = confidences.borrow_mut();
            confidences.insert(job.files[0].clone(), agreed.confidence());
        }
        Ok(agreed.labels(ensemble.preprocessing()))
    };
    let ended = predict.segment_all(jobs, &preprocessing.labels, load, labels);
    // Of the scans that were done, whatever became of the others.
    if let Some(path) = &maps.quality {
        let table = table(&preprocessing.labels, confidences.into_inner())?;
        write_beside(path, &table, predict.force)?;
    }
    ended
}

/// A line a scan, the least sure one first.
fn table(labels: &[Label], confidences: HashMap<PathBuf, Confidence>) -> anyhow::Result<Vec<u8>> {
    let mut rows: Vec<(PathBuf, Confidence)> = confidences.into_iter().collect();
    rows.sort_by(|(a, one), (b, other)| one.quality.total_cmp(&other.quality).then_with(|| a.cmp(b)));
    let mut csv = csv::Writer::from_writer(Vec::new());
    let mut header = vec![
        "scan".to_owned(),
        "quality".into(),
        "entropy".into(),
        "disagreement".into(),
    ];
    header.extend(
        labels
            .iter()
            .skip(1)
            .map(|label| format!("expected_dice_{}", label.name)),
    );
    csv.write_record(&header)?;
    for (scan, confidence) in rows {
        let number = |number: f64| format!("{number:.4}");
        let mut row = vec![
            scan.to_string_lossy().into_owned(),
            number(confidence.quality),
            number(confidence.entropy),
            number(confidence.disagreement),
        ];
        row.extend(
            confidence
                .dice
                .iter()
                .map(|dice| dice.map_or(String::new(), number)),
        );
        csv.write_record(&row)?;
    }
    Ok(csv.into_inner().map_err(|e| e.into_error())?)
}

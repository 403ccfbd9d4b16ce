use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use obelisk::dataset::Label;
use obelisk::label_table;
use obelisk::prepare::{self, Class, Extent, LabelFiles, Source, Target};
use obelisk::volume::{self, Orientation};

use super::files::{Files, claim, claim_folder};
use super::memory::MemoryArguments;
use super::print::{errln, outln};
use super::{Usage, examples, values};

/// `obelisk prepare`
#[derive(Debug, Args)]
#[command(after_help = examples!(
    "Two organs at 1.5 mm":
        "obelisk prepare --images ct --labels organs --classes spleen=1,liver=6 --out data --spacing 1.5,1.5,1.5",
    "Boxes of a list, each resampled to one grid":
        "obelisk prepare --images ct --labels organs --classes spleen=1 --out data --crops boxes.csv --size 144,144,144"
))]
pub struct Prepare {
    /// Folder of scans
    #[arg(long, value_name = "FOLDER")]
    images: PathBuf,
    /// Folder of label files: of the scans' names, or with the same last number (PANCREAS_0002, label0002); or one file
    /// a label, named SCAN_VALUE….nii.gz
    #[arg(long, value_name = "FOLDER")]
    labels: PathBuf,
    /// The labels in the network's order, each with its value in the label files; other values become background
    #[arg(
        long,
        value_name = "NAME=VALUE,…",
        value_delimiter = ',',
        required_unless_present = "class_table"
    )]
    classes: Vec<Class>,
    /// Take the labels from a file of ITK-SNAP's (.txt, .label) or 3D Slicer's (.ctbl) instead, by ascending value
    #[arg(long, value_name = "FILE", conflicts_with = "classes")]
    class_table: Option<PathBuf>,
    /// Folder of the dataset
    #[arg(long, value_name = "DATASET")]
    out: PathBuf,
    /// Crop each scan to its box in this list (columns `data set`, `original_id`, extent_ant, extent_post, …); scans
    /// that are not listed are left out
    #[arg(long, value_name = "LIST.csv")]
    crops: Option<PathBuf>,
    /// The list's rows to use, by their `data set`
    #[arg(long, value_name = "NAME", requires = "crops")]
    data_set: Option<String>,
    /// Resample to about this spacing in mm along the axes of --orient
    #[arg(long, value_name = "D,H,W", value_parser = values::spacing)]
    spacing: Option<[f64; 3]>,
    /// Voxels of each scan: what --spacing gives is cropped or padded around its centre; without --spacing each scan, or
    /// its box, is resampled to them
    #[arg(long, value_name = "D,H,W", value_parser = values::grid)]
    size: Option<[usize; 3]>,
    /// Orientation of the stored arrays, as nibabel names it (LAI is c3d's RPS)
    #[arg(long, value_name = "CODE", default_value = "LAI")]
    orient: Orientation,
    /// Take label voxels as the scan's where the headers place them elsewhere; such label files are refused otherwise
    #[arg(long)]
    labels_by_voxel: bool,
    /// The channel's name; CT is scaled from Hounsfield units when training, others are z-scored
    #[arg(long, value_name = "NAME", default_value = "CT")]
    channel: String,
    /// Replace files that exist
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    pub(super) memory: MemoryArguments,
}

impl Prepare {
    /// The labels but the background.
    fn classes(&self) -> anyhow::Result<Vec<Class>> {
        let Some(path) = &self.class_table else {
            return Ok(self.classes.clone());
        };
        let entries = label_table::read(path)?;
        let labels = entries.into_iter().map(|entry| entry.label);
        let class = |label: Label| Class {
            name: label.name,
            value: label.value,
        };
        let classes: Vec<Class> = labels.filter(|label| label.value != 0).map(class).collect();
        if classes.is_empty() {
            anyhow::bail!("{} has no label but the background", path.display());
        }
        Ok(classes)
    }

    pub fn run(&self) -> anyhow::Result<()> {
        let classes = &self.classes()?;
        for (i, class) in classes.iter().enumerate() {
            if let Some(twice) = classes[..i]
                .iter()
                .find(|c| c.name == class.name || c.value == class.value)
            {
                let [one, other] = [twice, class].map(|c| format!("{}={}", c.name, c.value));
                return Err(Usage(format!("--classes {one},{other}: each name and each value once")).into());
            }
        }
        let target = Target {
            orientation: self.orient,
            spacing: self.spacing,
            size: self.size,
            labels_by_voxel: self.labels_by_voxel,
        };
        let jobs = self.jobs()?;
        self.check_files(&jobs)?;
        for folder in ["imagesTr", "labelsTr"] {
            claim_folder(&self.out.join(folder))?;
        }
        claim(&self.out.join("dataset.json"), self.force)?;
        let mut ids = Vec::new();
        let mut failed = 0;
        for (source, extent) in &jobs {
            let case = match prepare::prepare(source, classes, &target, extent.as_ref()) {
                Ok(case) => case,
                // One bad scan among many does not keep the others from the dataset.
                Err(error) if jobs.len() > 1 => {
                    errln!("error: {error}");
                    failed += 1;
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            let path = |folder: &str| self.out.join(folder).join(format!("{}.nii.gz", source.id));
            volume::write_image(&path("imagesTr"), &case.image, &case.geometry, self.force)?;
            volume::write_labels(&path("labelsTr"), &case.labels, &case.geometry, self.force)?;
            let missing: Vec<&str> = (1..=classes.len())
                .filter(|class| !case.labels.contains(&(*class as i32)))
                .map(|class| classes[class - 1].name.as_str())
                .collect();
            let mut notes = Vec::new();
            if !missing.is_empty() {
                notes.push(format!("without {}", missing.join(", ")));
            }
            if !case.dropped.is_empty() {
                let values: Vec<String> = case.dropped.keys().map(i32::to_string).collect();
                notes.push(format!("background now: {}", values.join(", ")));
            }
            let geometry = &case.geometry;
            let spacing = geometry.spacing.map(|s| format!("{s:.3}")).join(" × ");
            errln!(
                "{}: {:?} voxels of {spacing} mm {}",
                source.id,
                geometry.shape,
                notes.join("; ")
            );
            ids.push(source.id.clone());
        }
        if ids.is_empty() {
            anyhow::bail!("all {failed} scans failed");
        }
        prepare::write_description(&self.out, &self.channel, classes, &ids, self.force)
            .with_context(|| format!("{}", self.out.join("dataset.json").display()))?;
        outln!("{}", self.out.display());
        if failed > 0 {
            anyhow::bail!(
                "{failed} of {} scans failed and are not in the dataset",
                jobs.len()
            );
        }
        Ok(())
    }

    fn check_files(&self, jobs: &[(Source, Option<Extent>)]) -> anyhow::Result<()> {
        let mut files = Files::new();
        files
            .read("--images", &self.images)
            .read("--labels", &self.labels)
            .read_all("--class-table", &self.class_table)
            .read_all("--crops", &self.crops);
        for folder in ["imagesTr", "labelsTr"].map(|name| self.out.join(name)) {
            files.write("--out", &folder);
            for (source, _) in jobs {
                files.write("--out", folder.join(format!("{}.nii.gz", source.id)));
            }
        }
        for (source, _) in jobs {
            files.read("--images", &source.image);
            match &source.labels {
                LabelFiles::All(path) => files.read("--labels", path),
                LabelFiles::Each(paths) => files.read_all("--labels", paths.values()),
            };
        }
        files.write("--out", self.out.join("dataset.json")).check()
    }

    /// The scans with their boxes.
    fn jobs(&self) -> anyhow::Result<Vec<(Source, Option<Extent>)>> {
        let sources = prepare::pair(&self.images, &self.labels)?;
        let Some(list) = &self.crops else {
            return Ok(sources.into_iter().map(|s| (s, None)).collect());
        };
        let text = std::fs::read_to_string(list).with_context(|| format!("{}", list.display()))?;
        let mut crops =
            prepare::cropping_list(&text).map_err(|e| anyhow::anyhow!("{}: {e}", list.display()))?;
        let mut sets: Vec<String> = crops.iter().map(|c| c.data_set.clone()).collect();
        sets.sort();
        sets.dedup();
        match &self.data_set {
            Some(name) => crops.retain(|c| c.data_set == *name),
            None if sets.len() > 1 => {
                return Err(Usage(format!(
                    "{} lists {}; choose with --data-set",
                    list.display(),
                    sets.join(" and ")
                ))
                .into());
            }
            None => {}
        }
        if crops.is_empty() {
            return Err(Usage(format!(
                "{} lists no such scan; it has {}",
                list.display(),
                sets.join(" and ")
            ))
            .into());
        }
        let mut jobs = Vec::new();
        for source in sources {
            let listed = crops
                .iter()
                .position(|c| Some(c.number) == prepare::number(&source.id));
            match listed {
                Some(at) => jobs.push((source, Some(crops.remove(at).extent))),
                None => errln!(
                    "{} is not listed, or another scan has its number: left out",
                    source.id
                ),
            }
        }
        if !crops.is_empty() {
            let numbers: Vec<String> = crops.iter().map(|c| c.number.to_string()).collect();
            errln!(
                "listed, but not in {} with labels: {}",
                self.images.display(),
                numbers.join(", ")
            );
        }
        match jobs.is_empty() {
            true => anyhow::bail!("{} lists no scan of {}", list.display(), self.images.display()),
            false => Ok(jobs),
        }
    }
}

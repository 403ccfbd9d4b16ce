use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::bail;
use clap::Args;
use obelisk::dataset::{find_scans, read_channels};
use obelisk::gpu::Device;
use obelisk::next::{self, Features};
use obelisk::predict::ensemble::{Confidence, Ensemble};
use obelisk::weights::Model;

use super::device::{self, DeviceArguments, Losses};
use super::predict::{maps, members, series_of};
use super::print::{errln, outln};
use super::{Usage, examples, how_to_import, message};

/// `obelisk next`
#[derive(Debug, Args)]
#[command(after_help = examples!(
    "The ten scans of a folder that teach a network most, of those without labels":
        "obelisk next --model run/last.safetensors --input scans --labelled dataset/imagesTr",
    "By the five networks of a cross-validation, as JSON":
        "obelisk next --model f0.safetensors,f1.safetensors --input scans --count 20 --json"
))]
pub struct Next {
    /// Weights of a training run; several with commas between them are an ensemble
    #[arg(long, value_name = "MODEL,…")]
    model: PathBuf,
    /// A folder of scans, as `predict` takes it
    #[arg(long, value_name = "FOLDER")]
    input: PathBuf,
    /// A folder of scans that have labels already: those of --input of the same names are left out, and what is like them comes later
    #[arg(long, value_name = "FOLDER")]
    labelled: Option<PathBuf>,
    /// How many scans to name
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    count: u32,
    /// Print one JSON object a scan
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    pub(super) device: DeviceArguments,
}

impl Next {
    pub fn run(&self) -> anyhow::Result<()> {
        let members = members(&self.model);
        if let Some(path) = members.iter().find(|path| obelisk::nnunet::is_model(path)) {
            let message = format!(
                "{} is a model of nnU-Net's, which gives labels only and does not say how sure it is",
                path.display()
            );
            return Err(Usage(message).into());
        }
        let models = maps::read(&members, |path| Model::open(path, None).map_err(how_to_import))?;
        let channels = models[0].1.info.preprocessing.channels.len();
        let mut incomplete = 0;
        let mut find = |folder: &PathBuf| -> anyhow::Result<BTreeMap<String, Vec<PathBuf>>> {
            if !folder.is_dir() {
                return Err(Usage(format!("{} is no folder of scans", folder.display())).into());
            }
            let found = find_scans(folder, channels)?;
            found.incomplete.iter().for_each(|error| errln!("error: {error}"));
            incomplete += found.incomplete.len();
            Ok(found.scans)
        };
        let known = self
            .labelled
            .as_ref()
            .map(&mut find)
            .transpose()?
            .unwrap_or_default();
        let mut scans = find(&self.input)?;
        let all = scans.len();
        scans.retain(|id, _| !known.contains_key(id));
        if scans.len() < all {
            errln!("{} of {all} scans have labels already", all - scans.len());
        }
        if scans.is_empty() && incomplete == 0 {
            errln!("no scan is left to label");
            return Ok(());
        }

        let mut ready = Ready::new(self, &models)?;
        let mut failed = incomplete;
        let mut look = |scans: &BTreeMap<String, Vec<PathBuf>>| {
            let mut seen = Vec::new();
            for (id, files) in scans {
                match ready.look(id, files) {
                    Ok((features, confidence)) => seen.push((files.clone(), features, confidence)),
                    Err(error) => {
                        errln!("error: {}", message(&error));
                        failed += 1;
                    }
                }
            }
            seen
        };
        let seen = look(&scans);
        let others: Vec<Features> = look(&known)
            .into_iter()
            .map(|(_, features, _)| features)
            .collect();
        let features: Vec<(Features, f64)> = seen
            .iter()
            .map(|(_, features, confidence)| (features.clone(), 1.0 - confidence.quality))
            .collect();
        for (place, pick) in next::choose(&features, &others, self.count as usize)
            .iter()
            .enumerate()
        {
            let (files, _, confidence) = &seen[pick.scan];
            self.print(place + 1, files, confidence, pick.distance);
        }
        match failed {
            0 => Ok(()),
            count => bail!("{count} scans could not be looked at"),
        }
    }

    fn print(&self, place: usize, files: &[PathBuf], confidence: &Confidence, distance: Option<f64>) {
        if self.json {
            let names: Vec<_> = files.iter().map(|file| file.to_string_lossy()).collect();
            let line = serde_json::json!({
                "scan": names,
                "expected_dice": confidence.quality,
                "disagreement": confidence.disagreement,
                "distance": distance,
            });
            outln!("{line}");
            return;
        }
        let unlike = distance.map_or("none to compare with".to_owned(), |distance| {
            format!("{distance:.2} from the nearest")
        });
        outln!(
            "{place:>3}. {}  (expected Dice {:.3}, {unlike})",
            files[0].display(),
            confidence.quality
        );
    }
}

/// The networks on a device, which is opened anew where it is lost.
struct Ready<'a> {
    command: &'a Next,
    models: &'a [maps::Member],
    device: Device,
    ensemble: Ensemble,
    losses: Losses,
    done: usize,
}

impl<'a> Ready<'a> {
    fn new(command: &'a Next, models: &'a [maps::Member]) -> anyhow::Result<Self> {
        let device = device::open(&command.device.options())?;
        let ensemble = maps::ready(&device, models, &[])?;
        Ok(Ready {
            command,
            models,
            device,
            ensemble,
            losses: Losses::default(),
            done: 0,
        })
    }

    fn look(&mut self, id: &str, files: &[PathBuf]) -> anyhow::Result<(Features, Confidence)> {
        loop {
            match self.look_once(files) {
                Err(error) if self.losses.repeat(&self.device, self.done, &message(&error)) => {
                    self.device = device::open(&self.command.device.options())?;
                    self.ensemble = maps::ready(&self.device, self.models, &[])?;
                }
                ended => {
                    self.done += 1;
                    return ended.map_err(|error| error.context(id.to_owned()));
                }
            }
        }
    }

    fn look_once(&mut self, files: &[PathBuf]) -> anyhow::Result<(Features, Confidence)> {
        let scan = match series_of(&files[0], None)? {
            Some(series) => series.volume()?,
            None => read_channels(files)?,
        };
        let prepared = self.ensemble.preprocessing().prepare_image(&scan)?;
        let agreed = pollster::block_on(self.ensemble.agree(&self.device, &scan))?;
        Ok((
            Features::of(&prepared.image, &agreed.probabilities),
            agreed.confidence(),
        ))
    }
}

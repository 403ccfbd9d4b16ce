//! `obelisk predict` with a model of nnU-Net's.

use std::ops::ControlFlow;

use anyhow::{Context, bail};
use obelisk::dataset::{Label, read_channels};
use obelisk::gpu::Device;
use obelisk::nnunet::{Choice, Model, Segmenter};
use obelisk::{picture, volume};

use super::{Job, Predict};
use crate::cli::device::Losses;
use crate::cli::interrupt::{Finishing, Interrupted};
use crate::cli::print::errln;
use crate::cli::{Usage, device, message};

pub fn run(predict: &Predict) -> anyhow::Result<()> {
    let not_for_it = [
        ("--arch", predict.arch.is_some()),
        ("--orient", predict.orient.is_some()),
        ("--logits", predict.logits.is_some()),
        ("--points", predict.points.is_some()),
        ("--grid-spacing", predict.grid_spacing.is_some()),
    ];
    if let Some((option, _)) = not_for_it.iter().find(|(_, given)| *given) {
        return Err(Usage(format!(
            "{option} is not for nnU-Net's models, whose plans say all of it"
        ))
        .into());
    }
    let model = Model::open(&predict.model, &predict.choice())?;
    let (jobs, incomplete) = predict.jobs(model.plan.channels.len())?;
    let all = jobs.len() + incomplete;
    if jobs.is_empty() {
        return match incomplete {
            0 => Ok(()),
            _ => bail!("{incomplete} of {all} scans failed"),
        };
    }
    errln!(
        "{}, {}: folds {}",
        model.plan.dataset,
        model.plan.configuration,
        model.names.join(", ")
    );
    let mut device = device::open(&predict.device.options())?;
    let load = |device: &Device| {
        let segmenter = pollster::block_on(Segmenter::new(device, &model, !predict.no_mirroring));
        segmenter.with_context(|| format!("{}", predict.model.display()))
    };
    let mut segmenter = load(&device)?;
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
            match segment(predict, &device, &mut segmenter, &model, job) {
                Err(error) if losses.repeat(&device, done, &message(&error)) => {
                    device = device::open(&predict.device.options())?;
                    segmenter = load(&device)?;
                }
                ended => break ended,
            }
        };
        if let Err(error) = segmented {
            if !predict.input.is_dir() {
                return Err(error);
            }
            errln!("error: {}", message(&error));
            failed.push(job.files[0].display().to_string());
        }
    }
    match failed.len() + incomplete {
        0 => Ok(()),
        count => bail!("{count} of {all} scans failed: {}", failed.join(", ")),
    }
}

fn segment(
    predict: &Predict,
    device: &Device,
    segmenter: &mut Segmenter,
    model: &Model,
    job: &Job,
) -> anyhow::Result<()> {
    let start = std::time::Instant::now();
    let scan = read_channels(&job.files)?;
    let mut watch = |_: f64| ControlFlow::Continue(());
    let labels = pollster::block_on(segmenter.labels(device, std::slice::from_ref(&scan), &mut watch))
        .with_context(|| format!("{}", job.files[0].display()))?;
    volume::write_labels(&job.output, &labels, &scan.geometry, predict.force)?;
    if let Some(path) = predict.picture(&job.output) {
        let names = model.plan.labels.names().iter().map(|name| Label {
            value: name.value,
            name: name.name.clone(),
        });
        let background = Label {
            value: 0,
            name: "background".into(),
        };
        let mut names: Vec<Label> = names.collect();
        if names.iter().all(|label| label.value != 0) {
            names.insert(0, background);
        }
        picture::overlay(&path, &scan, &labels, None, &names, predict.force)?;
    }
    predict.report(job, start.elapsed().as_secs_f64());
    Ok(())
}

impl Predict {
    fn choice(&self) -> Choice {
        Choice {
            configuration: self.configuration.clone(),
            folds: self.folds.clone(),
        }
    }
}

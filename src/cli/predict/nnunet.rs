//! `obelisk predict` with a model of nnU-Net's.

use std::ops::ControlFlow;
use std::sync::Arc;

use anyhow::Context;
use obelisk::gpu::Device;
use obelisk::nnunet::{Model, Segmenter};
use obelisk::volume::Volume;

use super::{Job, Predict};
use crate::cli::Usage;
use crate::cli::print::errln;

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
    predict.foreign.only_nnunet()?;
    let model = Model::open(&predict.model, &predict.foreign.choice())?;
    let jobs = predict.jobs(model.plan.channels.len())?;
    if !jobs.0.is_empty() {
        errln!(
            "{}, {}: folds {}",
            model.plan.dataset,
            model.plan.configuration,
            model.names.join(", ")
        );
    }
    let names = model.labels();
    let model = Arc::new(model);
    let load = |device: &Device| {
        let segmenter = pollster::block_on(Segmenter::new(device, model.clone(), !predict.no_mirroring));
        segmenter.with_context(|| format!("{}", predict.model.display()))
    };
    let labels = |device: &Device, segmenter: &mut Segmenter, _: &Job, scan: Volume| {
        let mut watch = |_: f64| ControlFlow::Continue(());
        let labels = segmenter.labels(device, vec![scan], &mut watch);
        Ok(pollster::block_on(labels)?)
    };
    predict.segment_all(jobs, &names, load, labels)
}

//! `obelisk predict --points`: a table of labels at single locations.

use std::path::Path;

use anyhow::Context;
use obelisk::dataset::read_channels;
use obelisk::file::write_beside;
use obelisk::model;
use obelisk::predict::PredictError;
use obelisk::predict::points::PointPredictor;
use obelisk::predict::points::table::{self, Axes};
use obelisk::preprocess::Preprocessing;
use obelisk::tensor::Tensor;
use obelisk::volume::Geometry;
use obelisk::weights::Model;

use super::{Job, Losses, Predict, Usage, claim, device};
use crate::cli::print::{errln, outln};

pub fn run(command: &Predict, model: &Model, file: &Path) -> anyhow::Result<()> {
    if command.is_folder() {
        return Err(Usage("--points takes one scan, not a folder".into()).into());
    }
    claim(&command.output, command.force)?;
    let network = &model::find(&model.info.arch)?;
    let new_predictor = || {
        PointPredictor::new(network, &model.info.preprocessing, &model.tensors)
            .map_err(|e| Usage(e.to_string()))
    };
    let mut predictor = new_predictor()?;
    let text = std::fs::read_to_string(file).with_context(|| format!("{}", file.display()))?;
    let axes = if command.voxels { Axes::Voxels } else { Axes::World };
    let hint = if command.voxels {
        "without --voxels they are millimetres"
    } else {
        "--voxels takes indices"
    };
    let points = table::read(&text, axes)
        .map_err(|problem| anyhow::anyhow!("{}: {problem} ({hint})", file.display()))?;
    let (lines, points): (Vec<usize>, Vec<[f64; 3]>) = points.into_iter().map(|p| (p.line, p.at)).unzip();

    let start = std::time::Instant::now();
    let job = Job {
        files: vec![command.input.clone()],
        output: command.output.clone(),
        series: None,
    };
    let scan = match command.series(&job)? {
        Some(series) => series.volume()?,
        None => read_channels(&job.files)?,
    };
    let voxels: Vec<[f64; 3]> = match command.voxels {
        true => points.clone(),
        false => points.iter().map(|p| to_voxel(*p, &scan.geometry)).collect(),
    };
    let mut losses = Losses::default();
    let logits = loop {
        let device = device::open(&command.device.options())?;
        let logits = pollster::block_on(async {
            predictor.load(&device, &scan).await?;
            predictor.at(&device, &voxels).await
        });
        match logits {
            Err(error) if losses.repeat(&device, 0, &error) => predictor = new_predictor()?,
            ended => break ended,
        }
    };
    let logits = logits.map_err(|error| match error {
        PredictError::Outside { index, voxel } => anyhow::anyhow!(
            "{} line {}: {:?} lies outside {}: it is voxel {voxel:.1?} of {:?}; points are millimetres (right, anterior, \
             superior), or voxel indices with --voxels",
            file.display(),
            lines[index],
            points[index],
            command.input.display(),
            scan.geometry.shape
        ),
        other => other.into(),
    })?;
    let text = labels_table(&points, &logits, predictor.preprocessing(), command.voxels);
    write_beside(&command.output, text.as_bytes(), command.force)
        .with_context(|| format!("{}", command.output.display()))?;
    outln!("{}", command.output.display());
    errln!(
        "{} points in {:.1} s",
        points.len(),
        start.elapsed().as_secs_f64()
    );
    Ok(())
}

fn to_voxel(world: [f64; 3], geometry: &Geometry) -> [f64; 3] {
    geometry
        .affine
        .inverse()
        .transform_point3(world.into())
        .to_array()
}

/// A line a point: its coordinates as given, the value of its label, and each label's probability.
fn labels_table(points: &[[f64; 3]], logits: &Tensor, preprocessing: &Preprocessing, voxels: bool) -> String {
    let labels = &preprocessing.labels;
    let mut text = String::from(if voxels { "i,j,k,label" } else { "x,y,z,label" });
    for label in labels {
        text += &format!(",p_{}", label.name.replace([',', '"', '\n'], "_"));
    }
    text.push('\n');
    for (s, [x, y, z]) in points.iter().enumerate() {
        let logit = |class: usize| logits.data[class * points.len() + s] as f64;
        let best = (0..labels.len()).fold(0, |best, l| if logit(l) > logit(best) { l } else { best });
        let exponentials: Vec<f64> = (0..labels.len())
            .map(|l| (logit(l) - logit(best)).exp())
            .collect();
        let sum: f64 = exponentials.iter().sum();
        text += &format!("{x},{y},{z},{}", labels[best].value);
        for e in exponentials {
            text += &format!(",{:.6}", e / sum);
        }
        text.push('\n');
    }
    text
}

//! The training curve: loss, offsets' spread and validation scores by epoch.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;

use plotters::chart::SeriesAnno;
use plotters::prelude::*;

use super::{Area, Canvas, Chart, Drawn, LEAST_RANGE, OVERSAMPLING, PictureError, colour, font, size};
use crate::metrics::{self, METRICS, Unit};
use crate::train::EpochRecord;

/// Colours of the OBELISK layers' offsets.
const OFFSET_COLOURS: [RGBColor; 3] = [RGBColor(170, 60, 0), RGBColor(0, 130, 95), RGBColor(120, 70, 170)];

/// One epoch of a training, as the curve shows it.
#[derive(Debug, Clone, PartialEq)]
pub struct CurvePoint {
    /// The epoch, counted from 1.
    pub epoch: usize,
    /// Mean training loss.
    pub loss: f64,
    /// Each label's validation score by the first of [`METRICS`]; empty in an epoch without validation, `None` where a label
    /// has none.
    pub scores: Vec<Option<f64>>,
    /// Standard deviation of each OBELISK layer's offsets by name, in normalised coordinates; empty without such layers.
    pub offset_sigma: BTreeMap<String, f64>,
}

impl From<&EpochRecord> for CurvePoint {
    fn from(line: &EpochRecord) -> Self {
        CurvePoint {
            epoch: line.epoch,
            loss: line.loss,
            scores: line.scores.first().cloned().unwrap_or_default(),
            offset_sigma: line.offset_sigma.clone(),
        }
    }
}

/// Draws the training loss and, where epochs have it, the validation score per label (`labels` in the order of
/// [`CurvePoint::scores`]) and its mean; below the loss the offsets' spread, where the network has offsets. As a PNG.
///
/// # Errors
/// No epoch, an existing file without `force`, or the system's refusal.
pub fn training_curve(
    path: &Path,
    title: &str,
    points: &[CurvePoint],
    labels: &[String],
    force: bool,
) -> Result<(), PictureError> {
    let (Some(first), Some(last)) = (points.first(), points.last()) else {
        return Err(PictureError::Drawing {
            path: path.into(),
            problem: "there is no epoch to draw yet".into(),
        });
    };
    let curve = Curve {
        points,
        // a single epoch is a point in the middle
        epochs: first.epoch as f64 - 0.5..last.epoch as f64 + 0.5,
    };
    let validated = points.iter().any(|p| p.scores.iter().any(Option::is_some));
    let offsets: BTreeSet<&String> = points.iter().flat_map(|p| p.offset_sigma.keys()).collect();
    let width = if validated { 1120 } else { 600 };
    let height = if offsets.is_empty() { 480 } else { 660 };
    let mut canvas = Canvas::new(width, height, WHITE);
    canvas.draw(path, |area| {
        let area = area.margin(size(10), 0, 0, 0).titled(title, font(22))?;
        let (left, right) = match validated {
            true => area.split_horizontally(size(width / 2)),
            false => (area.clone(), area),
        };
        let (upper, lower) = match offsets.is_empty() {
            true => (left.clone(), left),
            false => left.split_vertically(left.dim_in_pixel().1 / 2),
        };
        curve.draw_loss(&upper)?;
        if !offsets.is_empty() {
            curve.draw_offsets(&lower, &offsets)?;
        }
        if validated {
            curve.draw_scores(&right, labels)?;
        }
        Ok(())
    })?;
    canvas.save(path, force)
}

struct Curve<'a> {
    points: &'a [CurvePoint],
    epochs: Range<f64>,
}

impl Curve<'_> {
    fn draw_loss(&self, area: &Area) -> Drawn {
        let losses = || self.points.iter().map(|p| p.loss).filter(|v| v.is_finite());
        let highest = losses().fold(LEAST_RANGE, f64::max);
        let lowest = losses().fold(0.0, f64::min);
        let mut chart = self.panel(area, "Training loss", "mean loss", lowest..highest * 1.05, 11)?;
        let points = self.points.iter().map(|p| (p.epoch as f64, p.loss));
        let finite = points.filter(|p| p.1.is_finite()).collect();
        chart.draw_series(self.line(finite, RGBColor(0, 90, 160), 2))?;
        Ok(())
    }

    fn draw_offsets(&self, area: &Area, names: &BTreeSet<&String>) -> Drawn {
        let sigmas = self.points.iter().flat_map(|p| p.offset_sigma.values()).copied();
        let widest = sigmas.filter(|v| v.is_finite()).fold(LEAST_RANGE, f64::max);
        let caption = "Spread of the offsets";
        let mut chart = self.panel(area, caption, "σ, normalised", 0.0..widest * 1.1, 6)?;
        for (name, colour) in names.iter().zip(OFFSET_COLOURS.iter().cycle()) {
            let value = |p: &CurvePoint| Some((p.epoch as f64, *p.offset_sigma.get(*name)?));
            let values = self.points.iter().filter_map(value);
            let values: Vec<_> = values.filter(|v| v.1.is_finite()).collect();
            let last = values.last().map_or(0.0, |v| v.1);
            let series = chart.draw_series(self.line(values, *colour, 2))?;
            name_series(series, format!("{name} (last {last:.3})"), *colour, 2);
        }
        draw_legend(&mut chart)
    }

    fn draw_scores(&self, area: &Area, labels: &[String]) -> Drawn {
        let metric = &METRICS[0];
        let highest = match metric.unit {
            Unit::Fraction => 1.0,
            Unit::Ratio | Unit::Symbol(_) => {
                let scores = self
                    .points
                    .iter()
                    .flat_map(|p| p.scores.iter().copied().flatten());
                scores.fold(LEAST_RANGE, f64::max) * 1.05
            }
        };
        let caption = format!("Validation {}", metric.title);
        let mut chart = self.panel(area, &caption, metric.title, 0.0..highest, 11)?;
        let mut series = |name: &str, values: Vec<(f64, f64)>, colour: RGBColor, width: u32| -> Drawn {
            let better = |best: f64, v: f64| if metric.is_better(v, best) { v } else { best };
            let best = values.iter().map(|v| v.1).reduce(better).unwrap_or(0.0);
            let series = chart.draw_series(self.line(values, colour, width))?;
            name_series(series, format!("{name} (best {best:.3})"), colour, width);
            Ok(())
        };
        for (index, label) in labels.iter().enumerate() {
            let value = |p: &CurvePoint| Some((p.epoch as f64, (*p.scores.get(index)?)?));
            let values = self.points.iter().filter_map(value).collect();
            series(label, values, colour(index), 2)?;
        }
        let mean = |p: &CurvePoint| Some((p.epoch as f64, metrics::mean(p.scores.iter().copied())?));
        let means = self.points.iter().filter_map(mean).collect();
        series("mean", means, RGBColor(30, 30, 30), 3)?;
        draw_legend(&mut chart)
    }

    /// A chart over the epochs.
    fn panel<'a, 'b>(
        &self,
        area: &'a Area<'b>,
        caption: &str,
        values: &str,
        range: Range<f64>,
        ticks_up: usize,
    ) -> Drawn<Chart<'a, 'b>> {
        let whole = |v: &f64| match v.fract().abs() < 1e-6 {
            true => format!("{v:.0}"),
            false => String::new(),
        };
        let mut chart = ChartBuilder::on(area)
            .caption(caption, font(19))
            .margin(size(12))
            .x_label_area_size(size(42))
            .y_label_area_size(size(60))
            .build_cartesian_2d(self.epochs.clone(), range)?;
        chart
            .configure_mesh()
            .x_desc("epoch")
            .y_desc(values)
            .axis_desc_style(font(16))
            .label_style(font(14))
            .light_line_style(TRANSPARENT)
            .bold_line_style(RGBColor(220, 220, 220).stroke_width(OVERSAMPLING))
            .x_labels((self.epochs.end - self.epochs.start).min(10.0) as usize)
            .y_labels(ticks_up)
            .x_label_formatter(&whole)
            .draw()?;
        Ok(chart)
    }

    /// With dots as long as they don't run into each other.
    fn line<'b>(
        &self,
        values: Vec<(f64, f64)>,
        colour: RGBColor,
        width: u32,
    ) -> LineSeries<BitMapBackend<'b>, (f64, f64)> {
        let dot = if self.points.len() <= 60 { size(3) } else { 0 };
        LineSeries::new(values, colour.filled().stroke_width(size(width))).point_size(dot)
    }
}

/// Names a line in its chart's legend.
fn name_series(series: &mut SeriesAnno<'_, BitMapBackend<'_>>, name: String, colour: RGBColor, width: u32) {
    series.label(name).legend(move |(x, y)| {
        let length = size(18) as i32;
        PathElement::new([(x, y), (x + length, y)], colour.stroke_width(size(width)))
    });
}

fn draw_legend<'a, 'b: 'a>(chart: &mut Chart<'a, 'b>) -> Drawn {
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .margin(size(12))
        .legend_area_size(size(24))
        .label_font(font(15))
        .background_style(WHITE.mix(0.85))
        .border_style(RGBColor(200, 200, 200))
        .draw()?;
    Ok(())
}

//! The plot of a cross-validation: each case's score by network and label.

use std::path::Path;

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, VPos};

use crate::metrics::{Metric, Unit};

use super::{
    Area, Canvas, Chart, DARK, Drawn, LEAST_RANGE, OVERSAMPLING, PictureError, colour, font, size, text,
};

/// Widths in units of the plot's x axis; a label's box takes one.
const GAP: f64 = 0.8;

/// Draws a metric by network, a box for each label: quartiles and median, whiskers to the outermost case within 1.5 times
/// the box's height, a dot a case. `scores` are those of cases by network, then by label; the title says how many of them are
/// infinite, which have no place in it.
///
/// # Errors
/// Nothing to draw, an existing file without `force`, or the system's refusal.
pub fn score_plot(
    path: &Path,
    metric: &Metric,
    title: &str,
    networks: &[String],
    labels: &[String],
    scores: &[Vec<Vec<f64>>],
    force: bool,
) -> Result<(), PictureError> {
    let infinite = (scores.iter().flatten().flatten())
        .filter(|s| s.is_infinite())
        .count();
    let title = match infinite {
        0 => title.to_owned(),
        n => format!("{title}; {n} infinite, not drawn"),
    };
    let finite = |values: &Vec<f64>| values.iter().copied().filter(|v| v.is_finite()).collect();
    let by_label = |labels: &Vec<Vec<f64>>| labels.iter().map(finite).collect();
    let scores: Vec<Vec<Vec<f64>>> = scores.iter().map(by_label).collect();
    let all = || scores.iter().flatten().flatten().copied();
    if all().next().is_none() {
        return Err(PictureError::Drawing {
            path: path.into(),
            problem: "there is no score to draw".into(),
        });
    }
    let boxes = networks.len() * labels.len();
    let width = (130 + 46 * boxes + 40 * networks.len()).clamp(480, 2400) as u32;
    let (lowest, highest) = match metric.unit {
        // from the tenth below the lowest dot
        Unit::Fraction => (
            (all().fold(1.0, f64::min) * 10.0 - 0.2).floor().max(0.0) / 10.0,
            1.005,
        ),
        Unit::Ratio | Unit::Symbol(_) => (
            all().fold(0.0, f64::min),
            all().fold(LEAST_RANGE, f64::max) * 1.05,
        ),
    };
    let group = labels.len() as f64 + GAP;
    let across = 0.0..group * networks.len() as f64;
    let mut canvas = Canvas::new(width, 520, WHITE);
    canvas.draw(path, |area| {
        let area = area.margin(size(10), 0, 0, 0).titled(&title, font(22))?;
        let mut chart = ChartBuilder::on(&area)
            .margin(size(12))
            .margin_top(size(32))
            .x_label_area_size(size(34))
            .y_label_area_size(size(60))
            .build_cartesian_2d(across, lowest..highest)?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .disable_x_axis()
            .y_desc(match metric.unit {
                Unit::Fraction | Unit::Ratio => metric.title.to_owned(),
                Unit::Symbol(_) => metric.heading(),
            })
            .axis_desc_style(font(16))
            .label_style(font(14))
            .light_line_style(TRANSPARENT)
            .bold_line_style(RGBColor(220, 220, 220).stroke_width(OVERSAMPLING))
            .y_label_formatter(&|v| format!("{v:.2}"))
            .draw()?;
        for label in 0..labels.len() {
            for (network, by_label) in scores.iter().enumerate() {
                let Some(values) = by_label.get(label).filter(|v| !v.is_empty()) else {
                    continue;
                };
                let centre = group * network as f64 + GAP / 2.0 + label as f64 + 0.5;
                draw_box(&mut chart, centre, values, colour(label))?;
            }
        }
        for (network, name) in networks.iter().enumerate() {
            let centre = group * (network as f64 + 0.5);
            let (x, y) = chart.backend_coord(&(centre, lowest));
            let (left, top) = area.get_base_pixel();
            let below = (x - left, y - top + size(10) as i32);
            let place = text(16, DARK, HPos::Center, VPos::Top);
            area.draw(&Text::new(name.clone(), below, place))?;
        }
        draw_legend(&area, labels)
    })?;
    canvas.save(path, force)
}

/// Draws a box with its whiskers and a dot a case.
fn draw_box(chart: &mut Chart, centre: f64, values: &[f64], paint: RGBColor) -> Drawn {
    let Summary {
        low,
        box_low,
        median,
        box_high,
        high,
    } = Summary::of(values);
    let (left, right) = (centre - 0.32, centre + 0.32);
    let corners = [(left, box_low), (right, box_high)];
    chart.draw_series([
        Rectangle::new(corners, paint.mix(0.35).filled()),
        Rectangle::new(corners, paint.stroke_width(size(1))),
    ])?;
    chart.draw_series(values.iter().enumerate().map(|(i, v)| {
        let at = (centre + scatter(i), *v);
        Circle::new(at, size(2), paint.mix(0.8).filled())
    }))?;
    let line = |from: (f64, f64), to: (f64, f64), points: u32| {
        PathElement::new([from, to], DARK.stroke_width(size(points)))
    };
    chart.draw_series([
        line((centre, low), (centre, box_low), 1),
        line((centre, box_high), (centre, high), 1),
        line((left, median), (right, median), 2),
    ])?;
    Ok(())
}

/// Names the labels above the plot, where no box can be.
fn draw_legend(area: &Area, labels: &[String]) -> Drawn {
    let mut x = size(72) as i32;
    for (label, name) in labels.iter().enumerate() {
        let (y, side) = (size(10) as i32, size(12) as i32);
        let swatch = [(x, y), (x + side, y + side)];
        area.draw(&Rectangle::new(swatch, colour(label).filled()))?;
        let place = text(15, DARK, HPos::Left, VPos::Center);
        let beside = (x + side + size(6) as i32, y + side / 2);
        area.draw(&Text::new(name.clone(), beside, place))?;
        x += side + size(28 + 8 * name.chars().count() as u32) as i32;
    }
    Ok(())
}

/// The horizontal place of a case's dot in its box: multiples of the golden ratio spread evenly.
pub(crate) fn scatter(case: usize) -> f64 {
    ((case as f64 * 0.618_033_988_75).fract() - 0.5) * 0.5
}

/// What a box shows.
#[derive(Debug, PartialEq)]
pub(crate) struct Summary {
    pub(crate) low: f64,
    pub(crate) box_low: f64,
    pub(crate) median: f64,
    pub(crate) box_high: f64,
    pub(crate) high: f64,
}

impl Summary {
    /// Of at least one value; quartiles by linear interpolation, as numpy's.
    pub(crate) fn of(values: &[f64]) -> Summary {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let quantile = |q: f64| {
            let position = q * (sorted.len() - 1) as f64;
            let low = sorted[position.floor() as usize];
            low + (sorted[position.ceil() as usize] - low) * position.fract()
        };
        let (box_low, box_high) = (quantile(0.25), quantile(0.75));
        let reach = 1.5 * (box_high - box_low);
        let inside = || {
            sorted
                .iter()
                .copied()
                .filter(|v| (box_low - reach..=box_high + reach).contains(v))
        };
        Summary {
            low: inside().fold(box_low, f64::min),
            box_low,
            median: quantile(0.5),
            box_high,
            high: inside().fold(box_high, f64::max),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boxes_are_quartiles_and_whiskers_leave_outliers_out() {
        // numpy.percentile([0, 6, 7, 8, 9, 10], [25, 50, 75])
        let summary = Summary::of(&[10.0, 9.0, 8.0, 7.0, 6.0, 0.0]);
        let want = Summary {
            low: 6.0,
            box_low: 6.25,
            median: 7.5,
            box_high: 8.75,
            high: 10.0,
        };
        assert_eq!(summary, want);
        let one = Summary::of(&[0.5]);
        assert_eq!((one.low, one.median, one.high), (0.5, 0.5, 0.5));
    }
}

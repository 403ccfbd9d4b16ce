//! Pictures to judge a segmentation and a training by: slices with labels on them, and the training curve.

mod overlay;
mod scores;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

use plotters::chart::SeriesAnno;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{FontStyle, register_font};

use crate::file::write_beside;
use crate::metrics::{METRICS, Unit};
use crate::offsets::LayerOffsets;
use crate::train::EpochRecord;

pub use overlay::overlay;
pub use scores::score_plot;

/// Why a picture could not be made.
#[derive(Debug, thiserror::Error)]
pub enum PictureError {
    /// The file could not be written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The picture.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// What was to be drawn makes no picture.
    #[error("{}: {problem}", path.display())]
    Drawing {
        /// The picture.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
}

/// Okabe and Ito's colours, which most colour-blind people can tell apart, without black, then some more.
const COLOURS: [RGBColor; 12] = [
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(0, 158, 115),
    RGBColor(240, 228, 66),
    RGBColor(204, 121, 167),
    RGBColor(213, 94, 0),
    RGBColor(0, 114, 178),
    RGBColor(150, 220, 90),
    RGBColor(170, 120, 255),
    RGBColor(255, 130, 130),
    RGBColor(0, 200, 200),
    RGBColor(190, 160, 110),
];

fn colour(index: usize) -> RGBColor {
    COLOURS[index % COLOURS.len()]
}

/// Lines of the layers' offsets.
const OFFSET_COLOURS: [RGBColor; 3] = [RGBColor(170, 60, 0), RGBColor(0, 130, 95), RGBColor(120, 70, 170)];

const FONT: &str = "obelisk";
/// Everything is drawn this much larger and averaged down, which smooths what plotters draws with hard edges.
const OVERSAMPLING: u32 = 2;

/// An RGB picture that plotters draws on.
struct Canvas {
    pixels: Vec<u8>,
    /// Width and height while drawing, `OVERSAMPLING` times those of the file.
    size: (u32, u32),
}

impl Canvas {
    fn new(width: u32, height: u32, background: RGBColor) -> Canvas {
        let size = (width * OVERSAMPLING, height * OVERSAMPLING);
        let pixels = [background.0, background.1, background.2].repeat((size.0 * size.1) as usize);
        Canvas { pixels, size }
    }

    fn draw<F>(&mut self, path: &Path, picture: F) -> Result<(), PictureError>
    where
        F: FnOnce(
            &DrawingArea<BitMapBackend, plotters::coord::Shift>,
        ) -> Result<(), Box<dyn std::error::Error>>,
    {
        let problem = |problem: String| PictureError::Drawing {
            path: path.into(),
            problem,
        };
        register_font(FONT, FontStyle::Normal, epaint_default_fonts::UBUNTU_LIGHT)
            .map_err(|_| problem("the built-in font is damaged".into()))?;
        let area = BitMapBackend::with_buffer(&mut self.pixels, self.size).into_drawing_area();
        picture(&area)
            .and_then(|()| Ok(area.present()?))
            .map_err(|e| problem(e.to_string()))
    }

    fn save(&self, path: &Path, force: bool) -> Result<(), PictureError> {
        let (width, height) = (self.size.0 / OVERSAMPLING, self.size.1 / OVERSAMPLING);
        let n = OVERSAMPLING as usize;
        let row = 3 * self.size.0 as usize;
        let mut small = Vec::with_capacity(3 * (width * height) as usize);
        for y in 0..height as usize {
            for x in 0..width as usize {
                for channel in 0..3 {
                    let pixel = |i: usize| self.pixels[(y * n + i / n) * row + 3 * (x * n + i % n) + channel];
                    let sum: usize = (0..n * n).map(|i| usize::from(pixel(i))).sum();
                    small.push(((sum + n * n / 2) / (n * n)) as u8);
                }
            }
        }
        let mut file = Vec::new();
        let mut encoder = png::Encoder::new(&mut file, width, height);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        encoder
            .write_header()
            .and_then(|mut writer| writer.write_image_data(&small))
            .map_err(|e| PictureError::Drawing {
                path: path.into(),
                problem: e.to_string(),
            })?;
        write_beside(path, &file, force).map_err(|source| PictureError::Io {
            path: path.into(),
            source,
        })
    }
}

fn text(size: u32, colour: RGBColor, h: HPos, v: VPos) -> TextStyle<'static> {
    (FONT, size * OVERSAMPLING)
        .into_font()
        .color(&colour)
        .pos(Pos::new(h, v))
}

/// Names a line in its chart's legend.
fn legend(series: &mut SeriesAnno<'_, BitMapBackend<'_>>, name: String, colour: RGBColor, width: u32) {
    series.label(name).legend(move |(x, y)| {
        let length = (18 * OVERSAMPLING) as i32;
        PathElement::new(
            [(x, y), (x + length, y)],
            colour.stroke_width(width * OVERSAMPLING),
        )
    });
}

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
    // a single epoch is a point in the middle
    let from = first.epoch as f64 - 0.5;
    let to = last.epoch as f64 + 0.5;
    let finite = |v: &f64| v.is_finite();
    let highest = points
        .iter()
        .map(|p| p.loss)
        .filter(finite)
        .fold(f64::MIN_POSITIVE, f64::max);
    let lowest = points.iter().map(|p| p.loss).filter(finite).fold(0.0, f64::min);
    let validated = points.iter().any(|p| p.scores.iter().any(Option::is_some));
    let offsets: BTreeSet<&String> = points.iter().flat_map(|p| p.offset_sigma.keys()).collect();
    let width = if validated { 1120 } else { 600 };
    let height = if offsets.is_empty() { 480 } else { 660 };
    let mut canvas = Canvas::new(width, height, WHITE);
    canvas.draw(path, |area| {
        let size = |points: u32| points * OVERSAMPLING;
        let dark = RGBColor(40, 40, 40);
        let style = |points: u32| (FONT, size(points)).into_font().color(&dark);
        let area = area.margin(size(10), 0, 0, 0).titled(title, style(22))?;
        let (left, right) = match validated {
            true => area.split_horizontally(size(width / 2)),
            false => (area.clone(), area),
        };
        let (upper, lower) = match offsets.is_empty() {
            true => (left.clone(), left),
            false => left.split_vertically(left.dim_in_pixel().1 / 2),
        };
        // dots as long as they don't run into each other
        let dot = if points.len() <= 60 { size(3) } else { 0 };
        let line = |values: Vec<(f64, f64)>, colour: RGBColor, width: u32| {
            LineSeries::new(values, colour.filled().stroke_width(size(width))).point_size(dot)
        };

        let ticks = (to - from).min(10.0) as usize;
        let whole = |v: &f64| {
            if v.fract().abs() < 1e-6 {
                format!("{v:.0}")
            } else {
                String::new()
            }
        };
        let panel = |area, caption: &str, values: &str, range: Range<f64>, ticks_up: usize| {
            let mut chart = ChartBuilder::on(area)
                .caption(caption, style(19))
                .margin(size(12))
                .x_label_area_size(size(42))
                .y_label_area_size(size(60))
                .build_cartesian_2d(from..to, range)?;
            let drawn = chart
                .configure_mesh()
                .x_desc("epoch")
                .y_desc(values)
                .axis_desc_style(style(16))
                .label_style(style(14))
                .light_line_style(TRANSPARENT)
                .bold_line_style(RGBColor(220, 220, 220).stroke_width(OVERSAMPLING))
                .x_labels(ticks)
                .y_labels(ticks_up)
                .x_label_formatter(&whole)
                .draw();
            drawn.map(|()| chart)
        };

        let mut chart = panel(&upper, "Training loss", "mean loss", lowest..highest * 1.05, 11)?;
        let loss = points
            .iter()
            .filter(|p| p.loss.is_finite())
            .map(|p| (p.epoch as f64, p.loss));
        chart.draw_series(line(loss.collect(), RGBColor(0, 90, 160), 2))?;

        if !offsets.is_empty() {
            let widest = points.iter().flat_map(|p| p.offset_sigma.values()).copied();
            let widest = widest.filter(finite).fold(f64::MIN_POSITIVE, f64::max);
            let mut chart = panel(
                &lower,
                "Spread of the offsets",
                "σ, normalised",
                0.0..widest * 1.1,
                6,
            )?;
            for (name, colour) in offsets.iter().zip(OFFSET_COLOURS.iter().cycle()) {
                let value = |p: &CurvePoint| Some((p.epoch as f64, *p.offset_sigma.get(*name)?));
                let values: Vec<_> = points
                    .iter()
                    .filter_map(value)
                    .filter(|v| v.1.is_finite())
                    .collect();
                let last = values.last().map_or(0.0, |v| v.1);
                legend(
                    chart.draw_series(line(values, *colour, 2))?,
                    format!("{name} (last {last:.3})"),
                    *colour,
                    2,
                );
            }
            chart
                .configure_series_labels()
                .position(SeriesLabelPosition::LowerRight)
                .margin(size(12))
                .legend_area_size(size(24))
                .label_font(style(15))
                .background_style(WHITE.mix(0.85))
                .border_style(RGBColor(200, 200, 200))
                .draw()?;
        }

        if validated {
            let metric = &METRICS[0];
            let scores = || points.iter().flat_map(|p| p.scores.iter().copied().flatten());
            let highest = match metric.unit {
                Unit::Fraction => 1.0,
                Unit::Symbol(_) => scores().fold(f64::MIN_POSITIVE, f64::max) * 1.05,
            };
            let mut chart = panel(
                &right,
                &format!("Validation {}", metric.title),
                metric.title,
                0.0..highest,
                11,
            )?;
            let mut series = |name: &str, values: Vec<(f64, f64)>, colour: RGBColor, width: u32| {
                let better = |best: f64, v: f64| if metric.is_better(v, best) { v } else { best };
                let best = values.iter().map(|v| v.1).reduce(better).unwrap_or(0.0);
                chart
                    .draw_series(line(values, colour, width))
                    .map(|series| legend(series, format!("{name} (best {best:.3})"), colour, width))
            };
            let mut means = Vec::new();
            for point in points {
                let values: Vec<f64> = point.scores.iter().copied().flatten().collect();
                if !values.is_empty() {
                    means.push((
                        point.epoch as f64,
                        values.iter().sum::<f64>() / values.len() as f64,
                    ));
                }
            }
            for (index, label) in labels.iter().enumerate() {
                let value = |p: &CurvePoint| Some((p.epoch as f64, (*p.scores.get(index)?)?));
                series(label, points.iter().filter_map(value).collect(), colour(index), 2)?;
            }
            series("mean", means, RGBColor(30, 30, 30), 3)?;
            chart
                .configure_series_labels()
                .position(SeriesLabelPosition::LowerRight)
                .margin(size(12))
                .legend_area_size(size(24))
                .label_font(style(15))
                .background_style(WHITE.mix(0.85))
                .border_style(RGBColor(200, 200, 200))
                .draw()?;
        }
        Ok(())
    })?;
    canvas.save(path, force)
}

/// Side of a panel of [`offset_density()`] in pixels, and cells along it.
const DENSITY_PANEL: u32 = 320;
const DENSITY_CELLS: usize = 160;

/// Draws the density of each layer's offsets in the x–y plane before and after training, as the paper's figure 2 does:
/// on a logarithmic scale, a Gaussian around every offset, all panels with the same axes and colours. As a PNG.
///
/// # Errors
/// No layer, offsets that are not numbers, an existing file without `force`, or the system's refusal.
pub fn offset_density(
    path: &Path,
    title: &str,
    layers: &[LayerOffsets],
    force: bool,
) -> Result<(), PictureError> {
    let problem = |problem: &str| PictureError::Drawing {
        path: path.into(),
        problem: problem.into(),
    };
    let points = || layers.iter().flat_map(|l| l.initial.iter().chain(&l.learned));
    if points().next().is_none() {
        return Err(problem("the network has no offsets"));
    }
    if points().flatten().any(|v| !v.is_finite()) {
        return Err(problem("some offsets are not numbers"));
    }
    let reach = points()
        .flat_map(|p| [p[0].abs(), p[1].abs()])
        .fold(0.0, f64::max);
    // a margin of two bandwidths, and axes that end at a tenth
    let reach = ((reach * 1.06).max(0.1) * 10.0).ceil() / 10.0;
    let bandwidth = reach / 40.0;
    let panels: Vec<[Density; 2]> = layers
        .iter()
        .map(|l| [&l.initial, &l.learned].map(|p| Density::new(p, reach, bandwidth)))
        .collect();
    let highest = panels.iter().flatten().map(Density::highest).fold(0.0, f64::max);
    // two and a half decades show a single offset of 512 beside all of them in one place
    let colours = (highest.log10() - 2.5, highest.log10());

    const LEFT: u32 = 76;
    const BAR: u32 = 110;
    const HEAD: u32 = 40;
    const CAPTION: u32 = 30;
    const FOOT: u32 = 48;
    let across = LEFT + DENSITY_PANEL + 14;
    let down = CAPTION + DENSITY_PANEL + FOOT;
    let mut canvas = Canvas::new(2 * across + BAR, HEAD + down * layers.len() as u32, WHITE);
    let at = |x: u32, y: u32| ((x * OVERSAMPLING) as i32, (y * OVERSAMPLING) as i32);
    let dark = RGBColor(40, 40, 40);
    canvas.draw(path, |area| {
        let middle = at(LEFT + DENSITY_PANEL + 7 + LEFT / 2, HEAD / 2);
        area.draw(&Text::new(
            title,
            middle,
            text(21, dark, HPos::Center, VPos::Center),
        ))?;
        for (row, (layer, densities)) in layers.iter().zip(&panels).enumerate() {
            let captions = [("before", layer.initial_sigma), ("after", layer.sigma)];
            for (column, (density, (when, sigma))) in densities.iter().zip(captions).enumerate() {
                let corner = (LEFT + across * column as u32, HEAD + CAPTION + down * row as u32);
                let [x, y, _] = sigma;
                let caption = format!("{} {when}: σx {x:.3}, σy {y:.3}", layer.name);
                density.draw(area, corner, colours)?;
                draw_axes(area, corner, reach)?;
                let over = at(corner.0 + DENSITY_PANEL / 2, corner.1 - 6);
                area.draw(&Text::new(
                    caption,
                    over,
                    text(17, dark, HPos::Center, VPos::Bottom),
                ))?;
            }
        }
        let height = down * layers.len() as u32 - CAPTION - FOOT;
        draw_colour_bar(area, (2 * across + 12, HEAD + CAPTION), height, colours)
    })?;
    canvas.save(path, force)
}

/// A density over the square |x|, |y| ≤ `reach`, in shares of the offsets per unit area: cells row by row, y upwards.
struct Density {
    cells: Vec<f64>,
}

impl Density {
    /// The mean of a Gaussian around each point, at the cells' centres.
    fn new(points: &[[f64; 3]], reach: f64, bandwidth: f64) -> Density {
        let centre = |i: usize| ((i as f64 + 0.5) / DENSITY_CELLS as f64 * 2.0 - 1.0) * reach;
        let bell = |distance: f64| (-0.5 * (distance / bandwidth).powi(2)).exp();
        let mut cells = vec![0.0; DENSITY_CELLS * DENSITY_CELLS];
        let peak = 1.0 / (points.len() as f64 * std::f64::consts::TAU * bandwidth * bandwidth);
        for [x, y, _] in points {
            let across: Vec<f64> = (0..DENSITY_CELLS).map(|i| bell(centre(i) - x)).collect();
            for (row, cells) in cells.chunks_exact_mut(DENSITY_CELLS).enumerate() {
                let here = peak * bell(centre(row) - y);
                cells
                    .iter_mut()
                    .zip(&across)
                    .for_each(|(cell, a)| *cell += here * a);
            }
        }
        Density { cells }
    }

    fn highest(&self) -> f64 {
        self.cells.iter().copied().fold(0.0, f64::max)
    }

    /// Paints the square with its upper left corner there, log₁₀ of the density from `colours.0` to `colours.1`.
    fn draw(
        &self,
        area: &Area,
        corner: (u32, u32),
        colours: (f64, f64),
    ) -> Result<(), Box<dyn std::error::Error>> {
        let side = (DENSITY_PANEL * OVERSAMPLING) as usize;
        let pixel = |i: usize| (i * side / DENSITY_CELLS) as i32;
        let left = (corner.0 * OVERSAMPLING) as i32;
        let bottom = ((corner.1 + DENSITY_PANEL) * OVERSAMPLING) as i32;
        for (i, density) in self.cells.iter().enumerate() {
            let (row, column) = (i / DENSITY_CELLS, i % DENSITY_CELLS);
            let shade = ((density.log10() - colours.0) / (colours.1 - colours.0)).clamp(0.0, 1.0);
            let cell = [
                (left + pixel(column), bottom - pixel(row + 1)),
                (left + pixel(column + 1), bottom - pixel(row)),
            ];
            area.draw(&Rectangle::new(cell, ViridisRGB::get_color(shade).filled()))?;
        }
        Ok(())
    }
}

type Area<'a> = DrawingArea<BitMapBackend<'a>, plotters::coord::Shift>;

/// Ticks and names of both axes around a panel.
fn draw_axes(area: &Area, corner: (u32, u32), reach: f64) -> Result<(), Box<dyn std::error::Error>> {
    let dark = RGBColor(40, 40, 40);
    let at = |x: f64, y: f64| ((x * OVERSAMPLING as f64) as i32, (y * OVERSAMPLING as f64) as i32);
    let (left, bottom) = (corner.0 as f64, (corner.1 + DENSITY_PANEL) as f64);
    let side = DENSITY_PANEL as f64;
    let step = [0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0]
        .into_iter()
        .find(|step| reach / step <= 3.0)
        .unwrap_or(10.0);
    let ticks = (reach / step) as i32;
    for tick in -ticks..=ticks {
        let value = tick as f64 * step;
        let along = (value / reach + 1.0) / 2.0 * side;
        let name = match tick {
            0 => "0".to_owned(),
            _ if step < 0.1 => format!("{value:.2}"),
            _ => format!("{value:.1}"),
        };
        let line = |from, to| PathElement::new([from, to], dark.stroke_width(OVERSAMPLING));
        area.draw(&line(at(left + along, bottom), at(left + along, bottom + 5.0)))?;
        area.draw(&line(at(left, bottom - along), at(left - 5.0, bottom - along)))?;
        let below = text(14, dark, HPos::Center, VPos::Top);
        area.draw(&Text::new(name.clone(), at(left + along, bottom + 7.0), below))?;
        let beside = text(14, dark, HPos::Right, VPos::Center);
        area.draw(&Text::new(name, at(left - 8.0, bottom - along), beside))?;
    }
    let under = text(15, dark, HPos::Center, VPos::Top);
    area.draw(&Text::new(
        "x, normalised",
        at(left + side / 2.0, bottom + 25.0),
        under,
    ))?;
    let turned = text(15, dark, HPos::Center, VPos::Center).transform(FontTransform::Rotate270);
    area.draw(&Text::new(
        "y, normalised",
        at(left - 56.0, bottom - side / 2.0),
        turned,
    ))?;
    Ok(())
}

/// The colours' decades, from the corner downwards.
fn draw_colour_bar(
    area: &Area,
    corner: (u32, u32),
    height: u32,
    colours: (f64, f64),
) -> Result<(), Box<dyn std::error::Error>> {
    let dark = RGBColor(40, 40, 40);
    let at = |x: u32, y: u32| ((x * OVERSAMPLING) as i32, (y * OVERSAMPLING) as i32);
    let (left, top) = corner;
    for y in 0..height {
        let shade = 1.0 - (y as f64 + 0.5) / height as f64;
        let cell = [at(left, top + y), at(left + 18, top + y + 1)];
        area.draw(&Rectangle::new(cell, ViridisRGB::get_color(shade).filled()))?;
    }
    for decade in colours.0.ceil() as i32..=colours.1.floor() as i32 {
        let share = (colours.1 - decade as f64) / (colours.1 - colours.0);
        let y = top + (share * height as f64).round() as u32;
        let tick = PathElement::new(
            [at(left + 18, y), at(left + 23, y)],
            dark.stroke_width(OVERSAMPLING),
        );
        area.draw(&tick)?;
        let name = format!("{}", 10f64.powi(decade));
        let beside = text(14, dark, HPos::Left, VPos::Center);
        area.draw(&Text::new(name, at(left + 27, y), beside))?;
    }
    let turned = text(15, dark, HPos::Center, VPos::Center).transform(FontTransform::Rotate90);
    let beside = at(left + 76, top + height / 2);
    area.draw(&Text::new(
        "density, share of the offsets per unit²",
        beside,
        turned,
    ))?;
    Ok(())
}

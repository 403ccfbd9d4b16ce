//! The density of OBELISK layers' offsets before and after training.

use std::path::Path;

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, VPos};

use super::{Area, Canvas, DARK, Drawn, OVERSAMPLING, PictureError, text};
use crate::offsets::LayerOffsets;

/// Side of a panel of [`offset_density()`] in pixels, and cells along it.
const DENSITY_PANEL: u32 = 320;
const DENSITY_CELLS: usize = 160;
/// The farthest that its axes go: an offset of 2 leads out of the image from wherever it starts.
const MOST_REACH: f64 = 2.2;

/// Draws the density of each layer's offsets in the x–y plane before and after training, as the paper's figure 2 does:
/// on a logarithmic scale, a Gaussian around every offset, all panels with the same axes and colours. Offsets that lead out of
/// the image from everywhere are not drawn but counted. As a PNG.
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
    let reach = reach.min(MOST_REACH);
    let bandwidth = reach / 40.0;
    let panels: Vec<[Density; 2]> = layers
        .iter()
        .map(|l| [&l.initial, &l.learned].map(|p| Density::new(p, reach, bandwidth)))
        .collect();
    let highest = panels.iter().flatten().map(Density::highest).fold(1e-3, f64::max);
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
    canvas.draw(path, |area| {
        let middle = at(LEFT + DENSITY_PANEL + 7 + LEFT / 2, HEAD / 2);
        area.draw(&Text::new(
            title,
            middle,
            text(21, DARK, HPos::Center, VPos::Center),
        ))?;
        for (row, (layer, densities)) in layers.iter().zip(&panels).enumerate() {
            let captions = [
                ("before", layer.initial_sigma, &layer.initial),
                ("after", layer.sigma, &layer.learned),
            ];
            for (column, (density, (when, sigma, offsets))) in densities.iter().zip(captions).enumerate() {
                let corner = (LEFT + across * column as u32, HEAD + CAPTION + down * row as u32);
                let [x, y, _] = sigma;
                let caption = format!("{} {when}: σx {}, σy {}", layer.name, short(x), short(y));
                density.draw(area, corner, colours)?;
                draw_axes(area, corner, reach)?;
                let over = at(corner.0 + DENSITY_PANEL / 2, corner.1 - 6);
                area.draw(&Text::new(
                    caption,
                    over,
                    text(17, DARK, HPos::Center, VPos::Bottom),
                ))?;
                let beyond = offsets
                    .iter()
                    .filter(|[x, y, _]| x.abs().max(y.abs()) > reach)
                    .count();
                if beyond > 0 {
                    let note = format!("{beyond} of {} lie beyond", offsets.len());
                    let within = at(corner.0 + 8, corner.1 + 8);
                    area.draw(&Text::new(note, within, text(15, WHITE, HPos::Left, VPos::Top)))?;
                }
            }
        }
        let height = down * layers.len() as u32 - CAPTION - FOOT;
        draw_colour_bar(area, (2 * across + 12, HEAD + CAPTION), height, colours)
    })?;
    canvas.save(path, force)
}

/// A number in few places.
fn short(number: f64) -> String {
    match number.abs() < 1000.0 {
        true => format!("{number:.3}"),
        false => format!("{number:.1e}"),
    }
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
    fn draw(&self, area: &Area, corner: (u32, u32), colours: (f64, f64)) -> Drawn {
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

/// Ticks and names of both axes around a panel.
fn draw_axes(area: &Area, corner: (u32, u32), reach: f64) -> Drawn {
    let at = |x: f64, y: f64| ((x * OVERSAMPLING as f64) as i32, (y * OVERSAMPLING as f64) as i32);
    let (left, bottom) = (corner.0 as f64, (corner.1 + DENSITY_PANEL) as f64);
    let side = DENSITY_PANEL as f64;
    let step = [0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0]
        .into_iter()
        .find(|step| reach / step <= 3.0)
        .unwrap_or(reach);
    let ticks = (reach / step) as i32;
    for tick in -ticks..=ticks {
        let value = tick as f64 * step;
        let along = (value / reach + 1.0) / 2.0 * side;
        let name = match tick {
            0 => "0".to_owned(),
            _ if step < 0.1 => format!("{value:.2}"),
            _ => format!("{value:.1}"),
        };
        let line = |from, to| PathElement::new([from, to], DARK.stroke_width(OVERSAMPLING));
        area.draw(&line(at(left + along, bottom), at(left + along, bottom + 5.0)))?;
        area.draw(&line(at(left, bottom - along), at(left - 5.0, bottom - along)))?;
        let below = text(14, DARK, HPos::Center, VPos::Top);
        area.draw(&Text::new(name.clone(), at(left + along, bottom + 7.0), below))?;
        let beside = text(14, DARK, HPos::Right, VPos::Center);
        area.draw(&Text::new(name, at(left - 8.0, bottom - along), beside))?;
    }
    let under = text(15, DARK, HPos::Center, VPos::Top);
    area.draw(&Text::new(
        "x, normalised",
        at(left + side / 2.0, bottom + 25.0),
        under,
    ))?;
    let turned = text(15, DARK, HPos::Center, VPos::Center).transform(FontTransform::Rotate270);
    area.draw(&Text::new(
        "y, normalised",
        at(left - 56.0, bottom - side / 2.0),
        turned,
    ))?;
    Ok(())
}

/// The colours' decades, from the corner downwards.
fn draw_colour_bar(area: &Area, corner: (u32, u32), height: u32, colours: (f64, f64)) -> Drawn {
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
            DARK.stroke_width(OVERSAMPLING),
        );
        area.draw(&tick)?;
        let name = format!("{}", 10f64.powi(decade));
        let beside = text(14, DARK, HPos::Left, VPos::Center);
        area.draw(&Text::new(name, at(left + 27, y), beside))?;
    }
    let turned = text(15, DARK, HPos::Center, VPos::Center).transform(FontTransform::Rotate90);
    let beside = at(left + 76, top + height / 2);
    area.draw(&Text::new(
        "density, share of the offsets per unit²",
        beside,
        turned,
    ))?;
    Ok(())
}

//! Pictures to judge a segmentation and a training by: slices with labels on them, and the training curve.

mod batch;
mod curve;
mod offsets;
mod overlay;
mod scores;
mod slices;

use std::path::{Path, PathBuf};

use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{FontStyle, register_font};

use crate::file::write_beside;

pub use batch::batch;
pub use curve::{CurvePoint, training_curve};
pub use offsets::offset_density;
pub use overlay::overlay;
pub use scores::score_plot;
pub(crate) use scores::{Summary as BoxSummary, scatter};
pub use slices::{Slices, slices};

/// Why a picture could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
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

/// Okabe and Ito's colours, which most colour-blind people can distinguish, without black, then some more.
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

/// Red, green and blue of the label at that position among labels, in pictures.
pub(crate) fn label_colour(index: usize) -> [u8; 3] {
    let RGBColor(r, g, b) = colour(index.max(1) - 1);
    [r, g, b]
}

const FONT: &str = "obelisk";
/// Everything is drawn this much larger and averaged down, which smooths what plotters draws with hard edges.
const OVERSAMPLING: u32 = 2;

/// The least that an axis spans: a chart of nothing but zeros has one, too.
const LEAST_RANGE: f64 = 1e-6;

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
        F: FnOnce(&Area) -> Drawn,
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

/// Pixels of the canvas for so many of the file.
fn size(points: u32) -> u32 {
    points * OVERSAMPLING
}

/// The colour of letters and lines on white.
const DARK: RGBColor = RGBColor(40, 40, 40);

/// Dark letters of that size in points of the file.
fn font(points: u32) -> TextStyle<'static> {
    (FONT, size(points)).into_font().color(&DARK)
}

fn text(size: u32, colour: RGBColor, h: HPos, v: VPos) -> TextStyle<'static> {
    (FONT, size * OVERSAMPLING)
        .into_font()
        .color(&colour)
        .pos(Pos::new(h, v))
}

type Area<'a> = DrawingArea<BitMapBackend<'a>, plotters::coord::Shift>;
type Chart<'a, 'b> = ChartContext<'a, BitMapBackend<'b>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;
type Drawn<T = ()> = Result<T, Box<dyn std::error::Error>>;

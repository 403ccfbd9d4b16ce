//! A batch of a training as its network gets it.

use std::path::Path;

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, VPos};

use super::overlay::{BACKGROUND, BRIGHT, PLANES, Scene, draw_plane, point};
use super::{Canvas, PictureError, colour, text};
use crate::tensor::Tensor;

const MARGIN: u32 = 12;
/// Height above the rows, for the planes' names.
const TITLE: u32 = 30;
/// Pixels of a scan's shortest side, and most of its longest.
const SHORTEST: f64 = 130.0;
const LONGEST: f64 = 320.0;

/// Draws a row for each case of a batch as a PNG: three planes of its first channel, and the same with the labels on them. `images`
/// `[N, C, D, H, W]`, `labels` `[N, 1, D, H, W]` (class index; negative where ignored), `spacing` in mm along D, H, W, which are
/// drawn as if they pointed right, forward and up.
///
/// # Errors
/// An existing file without `force`, or the system's refusal.
pub fn batch(
    path: &Path,
    images: &Tensor,
    labels: &Tensor,
    spacing: [f64; 3],
    force: bool,
) -> Result<(), PictureError> {
    let [n, channels, d, h, w] = images.ncdhw();
    let shape = [d, h, w];
    let extent: [f64; 3] = std::array::from_fn(|a| shape[a] as f64 * spacing[a]);
    let shortest = extent.iter().copied().fold(f64::INFINITY, f64::min);
    let longest = extent.iter().copied().fold(0.0, f64::max);
    let scale = (SHORTEST / shortest).min(LONGEST / longest);
    let pixels = extent.map(|mm| (mm * scale).round().max(1.0) as u32);
    let sizes = PLANES.map(|plane| (pixels[plane.axes[0]], pixels[plane.axes[1]]));
    let row = sizes.iter().map(|size| size.1).max().unwrap_or(1) + MARGIN;
    let half: u32 = sizes.iter().map(|size| size.0 + MARGIN).sum();
    let (width, height) = (2 * half + 2 * MARGIN, TITLE + row * n as u32);
    let mut canvas = Canvas::new(width, height, BACKGROUND);
    let voxels = d * h * w;
    let left = |side: u32, plane: usize| {
        let before: u32 = sizes[..plane].iter().map(|size| size.0 + MARGIN).sum();
        MARGIN + side * (half + MARGIN) + before
    };
    for case in 0..n {
        let image = images.data[case * channels * voxels..][..voxels].to_vec();
        let classes: Vec<i32> = labels.data[case * voxels..][..voxels]
            .iter()
            .map(|v| *v as i32)
            .collect();
        let scene = Scene::of(image, classes, shape, spacing);
        let centre = scene.centre();
        for side in 0..2 {
            let class_colour = |class: i32| (side == 1 && class > 0).then(|| colour(class as usize - 1));
            for (i, plane) in PLANES.iter().enumerate() {
                let corner = (left(side, i), TITLE + row * case as u32);
                draw_plane(
                    &mut canvas,
                    &scene,
                    plane,
                    centre,
                    corner,
                    sizes[i],
                    &class_colour,
                );
            }
        }
    }
    canvas.draw(path, |area| {
        for side in 0..2 {
            for (i, plane) in PLANES.iter().enumerate() {
                let at = point(left(side, i) + sizes[i].0 / 2, TITLE - 8);
                let style = text(15, BRIGHT, HPos::Center, VPos::Bottom);
                area.draw(&Text::new(plane.name, at, style))?;
            }
        }
        Ok(())
    })?;
    canvas.save(path, force)
}

//! Three planes of a scan with its labels on them.

use std::path::Path;

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, VPos};

use super::{Area, Canvas, Drawn, OVERSAMPLING, PictureError, text};
use crate::dataset::Label;
use crate::volume::{Orientation, Volume};

pub(super) const BACKGROUND: RGBColor = RGBColor(18, 18, 20);
pub(super) const BRIGHT: RGBColor = RGBColor(235, 235, 235);

/// A slice of a scan turned to RAS: which world axes run right and up in the picture.
pub(super) struct Plane {
    pub name: &'static str,
    /// Across, up, and the axis that the plane is perpendicular to.
    pub axes: [usize; 3],
    /// Letters at the left and right side.
    pub sides: [&'static str; 2],
}

/// As radiologists look at them: the patient's right is at the picture's left, and anterior is at the left of a
/// sagittal slice.
pub(super) const PLANES: [Plane; 3] = [
    Plane {
        name: "axial",
        axes: [0, 1, 2],
        sides: ["R", "L"],
    },
    Plane {
        name: "coronal",
        axes: [0, 2, 1],
        sides: ["R", "L"],
    },
    Plane {
        name: "sagittal",
        axes: [1, 2, 0],
        sides: ["A", "P"],
    },
];

/// A scan turned to RAS, with its label maps.
pub(super) struct Scene {
    pub image: Vec<f32>,
    pub labels: Vec<i32>,
    pub reference: Option<Vec<i32>>,
    pub shape: [usize; 3],
    pub spacing: [f64; 3],
    pub window: (f32, f32),
}

impl Scene {
    pub fn new(scan: &Volume, labels: &[i32], reference: Option<&[i32]>) -> Scene {
        let turn = scan.geometry.orientation.to(Orientation::RAS);
        let stored = scan.geometry.shape;
        let shape = turn.permute(stored);
        let image = turn.apply(&scan.data[..scan.geometry.voxels()], 1, stored);
        let labels = turn.apply(labels, 1, stored);
        let reference = reference.map(|r| turn.apply(r, 1, stored));
        let around = if labels.iter().any(|v| *v != 0) {
            &labels
        } else {
            reference.as_ref().unwrap_or(&labels)
        };
        let window = window(&image, around, shape);
        // a size that is not declared is drawn as 1 mm
        let spacing = turn
            .permute(scan.geometry.spacing)
            .map(|s| if s > 0.0 { s } else { 1.0 });
        Scene {
            image,
            labels,
            reference,
            shape,
            spacing,
            window,
        }
    }

    /// An image and labels `[X, Y, Z]` as they are.
    pub fn of(image: Vec<f32>, labels: Vec<i32>, shape: [usize; 3], spacing: [f64; 3]) -> Scene {
        let window = window(&image, &labels, shape);
        Scene {
            image,
            labels,
            reference: None,
            shape,
            spacing,
            window,
        }
    }

    /// Whether a map has the label.
    fn has(&self, label: i32) -> bool {
        self.labels.contains(&label) || self.reference.as_ref().is_some_and(|r| r.contains(&label))
    }

    /// Pixels along each axis: 320 for the shortest side, but no side above 1000.
    fn pixels(&self) -> [u32; 3] {
        let extent: [f64; 3] = std::array::from_fn(|a| self.shape[a] as f64 * self.spacing[a]);
        let shortest = extent.iter().copied().fold(f64::INFINITY, f64::min);
        let longest = extent.iter().copied().fold(0.0, f64::max);
        let scale = (320.0 / shortest).min(1000.0 / longest);
        extent.map(|mm| (mm * scale).round().max(1.0) as u32)
    }

    pub fn index(&self, voxel: [usize; 3]) -> usize {
        (voxel[0] * self.shape[1] + voxel[1]) * self.shape[2] + voxel[2]
    }

    /// The voxel through which the planes go: the labels' centre of mass (the reference's if there are no labels),
    /// or where no label lies in that plane, the plane with most of them.
    pub fn centre(&self) -> [usize; 3] {
        let none = |map: &&Vec<i32>| map.iter().all(|v| *v == 0);
        let Some(map) = [Some(&self.labels), self.reference.as_ref()]
            .into_iter()
            .flatten()
            .find(|m| !none(m))
        else {
            return self.shape.map(|n| n / 2);
        };
        let mut counts = self.shape.map(|n| vec![0usize; n]);
        for (index, _) in map.iter().enumerate().filter(|(_, v)| **v != 0) {
            let [_, y, z] = self.shape;
            for (counts, at) in counts.iter_mut().zip([index / (y * z), index / z % y, index % z]) {
                counts[at] += 1;
            }
        }
        counts.map(|counts| {
            let total: usize = counts.iter().sum();
            let mean = counts.iter().enumerate().map(|(i, n)| i * n).sum::<usize>() as f64 / total as f64;
            let middle = mean.round() as usize;
            match counts[middle] {
                0 => (0..counts.len()).max_by_key(|i| counts[*i]).unwrap_or(middle),
                _ => middle,
            }
        })
    }
}

/// The 1st and 99th percentile of the intensities around the labels (within a quarter of the scan's size), or of
/// the whole scan where there are none.
fn window(image: &[f32], labels: &[i32], shape: [usize; 3]) -> (f32, f32) {
    let [_, y, z] = shape;
    let at = |index: usize| [index / (y * z), index / z % y, index % z];
    let mut low = shape;
    let mut high = [0; 3];
    for (index, _) in labels.iter().enumerate().filter(|(_, v)| **v != 0) {
        for ((low, high), i) in low.iter_mut().zip(&mut high).zip(at(index)) {
            *low = i.min(*low);
            *high = i.max(*high);
        }
    }
    let near = |index: usize| {
        let at = at(index);
        (0..3).all(|a| at[a] + shape[a] / 4 >= low[a] && at[a] <= high[a] + shape[a] / 4)
    };
    let mut values: Vec<f32> = (0..image.len())
        .filter(|i| low == shape || near(*i))
        .map(|i| image[i])
        .collect();
    let last = values.len() - 1;
    let mut percentile = |p: usize| *values.select_nth_unstable_by(last * p / 100, f32::total_cmp).1;
    (percentile(1), percentile(99))
}

/// Draws three planes of a scan (its first channel) with its labels on them as a PNG: the labels filled, and, where
/// there is one, the reference outlined. `labels` and `reference` are file values `[X, Y, Z]` on the scan's grid;
/// `names` gives their names, and by position their colours.
///
/// # Errors
/// Maps that are not on the scan's grid, an existing file without `force`, or the system's refusal.
pub fn overlay(
    path: &Path,
    scan: &Volume,
    labels: &[i32],
    reference: Option<&[i32]>,
    names: &[Label],
    force: bool,
) -> Result<(), PictureError> {
    let voxels = scan.geometry.voxels();
    if labels.len() != voxels || reference.is_some_and(|r| r.len() != voxels) {
        return Err(PictureError::Drawing {
            path: path.into(),
            problem: format!(
                "the label map is not on the scan's grid of {:?} voxels",
                scan.geometry.shape
            ),
        });
    }
    let scene = Scene::new(scan, labels, reference);
    let layout = Layout::new(&scene, names);
    let mut canvas = Canvas::new(layout.width, layout.height(), BACKGROUND);
    let centre = scene.centre();
    let class_colour = |value: i32| {
        let index = names.iter().position(|l| l.value == value)?;
        Some(label_colour(index))
    };
    for (plane, (corner, size)) in PLANES.iter().zip(layout.slices) {
        draw_plane(&mut canvas, &scene, plane, centre, corner, size, &class_colour);
    }
    canvas.draw(path, |area| {
        for ((plane, (corner, size)), axis) in PLANES.iter().zip(layout.slices).zip([2, 1, 0]) {
            draw_names(area, plane, centre[axis], corner, size)?;
        }
        layout.draw_legend(area, names)?;
        let note = match (&scene.reference, layout.is_empty()) {
            (_, true) => "no label in this scan",
            (Some(_), _) => "filled: segmentation, outlined: reference",
            (None, _) => "filled: segmentation",
        };
        let style = text(14, RGBColor(165, 165, 170), HPos::Left, VPos::Center);
        let below = layout.legend_top + LINE * layout.legend.len() as u32 + 10;
        area.draw(&Text::new(note, point(MARGIN, below), style))?;
        Ok(())
    })?;
    canvas.save(path, force)
}

const MARGIN: u32 = 16;
/// Height above the slices, for their names.
const TITLE: u32 = 34;
/// Height of a line of the legend.
const LINE: u32 = 26;

/// Where everything lies, in pixels of the file.
struct Layout {
    width: u32,
    /// Corner and size of each plane's slice.
    slices: [((u32, u32), (u32, u32)); 3],
    legend_top: u32,
    /// The labels that occur, by position in the list of names, and where they start along their line.
    legend: Vec<Vec<(u32, usize)>>,
}

impl Layout {
    fn new(scene: &Scene, names: &[Label]) -> Layout {
        let pixels = scene.pixels();
        let widths = PLANES.map(|plane| pixels[plane.axes[0]].max(160));
        let width = widths.iter().sum::<u32>() + 4 * MARGIN;
        let heights = PLANES.map(|plane| pixels[plane.axes[1]]);
        let panel = heights.into_iter().max().unwrap_or(1);
        let mut left = MARGIN;
        let mut slices = [Default::default(); 3];
        for ((slice, plane), width) in slices.iter_mut().zip(&PLANES).zip(widths) {
            let size = (pixels[plane.axes[0]], pixels[plane.axes[1]]);
            *slice = ((left + (width - size.0) / 2, TITLE + (panel - size.1) / 2), size);
            left += width + MARGIN;
        }
        Layout {
            width,
            slices,
            legend_top: TITLE + panel + MARGIN,
            legend: legend(scene, names, width),
        }
    }

    fn height(&self) -> u32 {
        self.legend_top + self.legend.len() as u32 * LINE + 30
    }

    /// Whether no label occurs.
    fn is_empty(&self) -> bool {
        self.legend.iter().all(Vec::is_empty)
    }

    fn draw_legend(&self, area: &Area, names: &[Label]) -> Drawn {
        for (line, entries) in self.legend.iter().enumerate() {
            let y = self.legend_top + LINE * line as u32;
            for (x, index) in entries {
                let corners = [point(*x, y + 2), point(x + 18, y + 18)];
                area.draw(&Rectangle::new(corners, label_colour(*index).filled()))?;
                let style = text(16, BRIGHT, HPos::Left, VPos::Center);
                let name = names[*index].name.clone();
                area.draw(&Text::new(name, point(x + 25, y + 10), style))?;
            }
        }
        Ok(())
    }
}

/// The labels that occur, over as many lines of that width as they need.
fn legend(scene: &Scene, names: &[Label], width: u32) -> Vec<Vec<(u32, usize)>> {
    let mut lines: Vec<Vec<(u32, usize)>> = vec![Vec::new()];
    let mut x = MARGIN;
    for (index, label) in names.iter().enumerate() {
        if label.value == 0 || !scene.has(label.value) {
            continue;
        }
        let entry = 44 + 9 * label.name.chars().count() as u32;
        if x + entry > width && x > MARGIN {
            lines.push(Vec::new());
            x = MARGIN;
        }
        lines.last_mut().expect("never empty").push((x, index));
        x += entry;
    }
    lines
}

/// Of the label at that position in the list of names, the background first.
fn label_colour(index: usize) -> RGBColor {
    let [r, g, b] = super::label_colour(index);
    RGBColor(r, g, b)
}

/// A point of the file on the canvas.
pub(super) fn point(x: u32, y: u32) -> (i32, i32) {
    ((x * OVERSAMPLING) as i32, (y * OVERSAMPLING) as i32)
}

/// Writes a slice's name and number above it, and its sides' letters into it.
fn draw_names(area: &Area, plane: &Plane, slice: usize, corner: (u32, u32), size: (u32, u32)) -> Drawn {
    let middle = corner.0 + size.0 / 2;
    let title = format!("{} {slice}", plane.name);
    let style = text(17, BRIGHT, HPos::Center, VPos::Bottom);
    area.draw(&Text::new(title, point(middle, corner.1 - 6), style))?;
    let y = corner.1 + size.1 / 2;
    // a dark copy beneath keeps the letters readable on bright tissue
    for (shift, colour) in [(1, BLACK), (0, RGBColor(255, 255, 140))] {
        let style = |h| text(19, colour, h, VPos::Center);
        let at = |x: u32| point(x + shift, y + shift);
        area.draw(&Text::new(plane.sides[0], at(corner.0 + 6), style(HPos::Left)))?;
        let right = at(corner.0 + size.0 - 6);
        area.draw(&Text::new(plane.sides[1], right, style(HPos::Right)))?;
    }
    Ok(())
}

/// Paints one slice: the image interpolated linearly, labels as the voxels they are.
pub(super) fn draw_plane(
    canvas: &mut Canvas,
    scene: &Scene,
    plane: &Plane,
    centre: [usize; 3],
    corner: (u32, u32),
    size: (u32, u32),
    class_colour: &dyn Fn(i32) -> Option<RGBColor>,
) {
    let [across, up, _] = plane.axes;
    let (width, height) = (size.0 * OVERSAMPLING, size.1 * OVERSAMPLING);
    // voxel coordinates of a pixel's centre; rows run downwards and columns towards left (posterior), both against RAS
    let position = |pixel: u32, pixels: u32, axis: usize| {
        let n = scene.shape[axis] as f64;
        (n - (f64::from(pixel) + 0.5) / f64::from(pixels) * n - 0.5).clamp(0.0, n - 1.0)
    };
    let voxel = |u: usize, v: usize| {
        let mut voxel = centre;
        voxel[across] = u;
        voxel[up] = v;
        scene.index(voxel)
    };
    let (low, high) = scene.window;
    let range = (high - low).max(f32::MIN_POSITIVE);
    let nearest = |x: u32, y: u32| {
        voxel(
            position(x, width, across).round() as usize,
            position(y, height, up).round() as usize,
        )
    };
    // an outline two pixels of the file wide
    let reach = 2 * OVERSAMPLING;
    for y in 0..height {
        let v = position(y, height, up);
        for x in 0..width {
            let u = position(x, width, across);
            let (u0, v0) = (u.floor() as usize, v.floor() as usize);
            let (u1, v1) = (
                (u0 + 1).min(scene.shape[across] - 1),
                (v0 + 1).min(scene.shape[up] - 1),
            );
            let (a, b) = (u.fract() as f32, v.fract() as f32);
            let at = |u, v| scene.image[voxel(u, v)];
            let value = (at(u0, v0) * (1.0 - a) + at(u1, v0) * a) * (1.0 - b)
                + (at(u0, v1) * (1.0 - a) + at(u1, v1) * a) * b;
            let grey = ((value - low) / range * 255.0).clamp(0.0, 255.0);
            let mut pixel = [grey; 3];
            let mut blend = |colour: RGBColor, opacity: f32| {
                for (p, c) in pixel.iter_mut().zip([colour.0, colour.1, colour.2]) {
                    *p += (f32::from(c) - *p) * opacity;
                }
            };
            let here = nearest(x, y);
            if let Some(colour) = class_colour(scene.labels[here]).filter(|_| scene.labels[here] != 0) {
                blend(colour, 0.42);
            }
            if let Some(reference) = &scene.reference {
                let label = reference[here];
                let (right, down) = ((x + reach).min(width - 1), (y + reach).min(height - 1));
                let (left, above) = (x.saturating_sub(reach), y.saturating_sub(reach));
                let edge = [(right, y), (left, y), (x, down), (x, above)]
                    .iter()
                    .any(|(x, y)| reference[nearest(*x, *y)] != label);
                if let Some(colour) = class_colour(label).filter(|_| edge && label != 0) {
                    blend(colour, 1.0);
                }
            }
            let to =
                3 * ((corner.1 * OVERSAMPLING + y) * canvas.size.0 + corner.0 * OVERSAMPLING + x) as usize;
            canvas.pixels[to..to + 3].copy_from_slice(&pixel.map(|p| p.round() as u8));
        }
    }
}

//! All slices of a scan along three planes, as pictures for a page on which they can be scrolled.

use super::overlay::{PLANES, Plane, Scene};
use super::{COLOURS, label_colour};
use crate::dataset::Label;
use crate::volume::Volume;

/// Slices of a scan along a plane, row by row in two pictures of the same layout: the scan in grey, and the labels on it. Each
/// slice has a border that repeats its outermost pixels, so that a smoothly enlarged slice takes nothing of the next one.
#[derive(Debug, Clone)]
pub struct Slices {
    /// The plane's name.
    pub name: &'static str,
    /// Letters of what lies at a slice's left and right side.
    pub sides: [&'static str; 2],
    /// The slices' places along the axis that the plane is perpendicular to, in voxels of the scan turned to RAS.
    pub numbers: Vec<usize>,
    /// The slice to look at first, by its place in `numbers`: through the middle of the labels.
    pub first: usize,
    /// Slices beside each other.
    pub columns: usize,
    /// Slices below each other.
    pub rows: usize,
    /// Width and height of a slice in pixels of the scan's picture, without its border, which is one pixel wide.
    pub size: [usize; 2],
    /// Width and height of a slice in mm.
    pub extent: [f64; 2],
    /// The scan as a PNG.
    pub scan: Vec<u8>,
    /// The labels as a PNG: filled, and the reference's outlined, where there is one; the rest is transparent.
    pub labels: Vec<u8>,
}

/// Longest side of a scan, in voxels, that is shown as a whole; of a larger one, what is around the labels.
const WHOLE: usize = 128;

/// Pixels that the longest side of a slice of the labels has about.
const LABEL_PIXELS: usize = 256;

/// How much of the scan a filled label covers.
const OPACITY: u8 = 107;

/// The slices of a scan (its first channel) with its labels. `labels` and `reference` are file values `[X, Y, Z]` on the scan's grid;
/// `names` gives by position their colours. In each plane the scan's picture has about `most` pixels at most: of larger scans,
/// slices are left out, and they are coarser.
///
/// # Errors
/// Maps that are not on the scan's grid, in words.
pub fn slices(
    scan: &Volume,
    labels: &[i32],
    reference: Option<&[i32]>,
    names: &[Label],
    most: usize,
) -> Result<[Slices; 3], String> {
    let voxels = scan.geometry.voxels();
    if labels.len() != voxels || reference.is_some_and(|r| r.len() != voxels) {
        return Err(format!(
            "the label map is not on the scan's grid of {:?} voxels",
            scan.geometry.shape
        ));
    }
    let scene = Scene::new(scan, labels, reference);
    let part = part(&scene);
    let share = part.iter().map(|p| p.len() + 2).product::<usize>().max(1) as f64;
    let scale = (most as f64 / share).cbrt().min(1.0);
    let colour = |value: i32| names.iter().position(|l| l.value == value).filter(|i| *i > 0);
    let planes = PLANES.each_ref().map(|plane| {
        let sheet = Sheet::new(&scene, plane, &part, scale);
        sheet.draw(&scene, plane, &colour)
    });
    let [axial, coronal, sagittal] = planes;
    Ok([axial?, coronal?, sagittal?])
}

/// The voxels that are shown, by axis: all of a small scan; of a larger one, the labels and an eighth of its side around them.
fn part(scene: &Scene) -> [std::ops::Range<usize>; 3] {
    let shape = scene.shape;
    let whole = shape.map(|n| 0..n);
    if shape.iter().all(|n| *n <= WHOLE) {
        return whole;
    }
    let (mut low, mut high) = (shape, [0; 3]);
    let [_, y, z] = shape;
    let maps = [Some(&scene.labels), scene.reference.as_ref()];
    for (index, _) in maps
        .into_iter()
        .flatten()
        .flat_map(|map| map.iter().enumerate())
        .filter(|(_, value)| **value != 0)
    {
        for (a, at) in [index / (y * z), index / z % y, index % z]
            .into_iter()
            .enumerate()
        {
            low[a] = low[a].min(at);
            high[a] = high[a].max(at + 1);
        }
    }
    match low == shape {
        true => whole,
        false => std::array::from_fn(|a| {
            let around = shape[a] / 8;
            low[a].saturating_sub(around)..(high[a] + around).min(shape[a])
        }),
    }
}

/// How slices lie in their picture.
struct Sheet {
    /// Voxels shown along the picture's width and height, and across the slices.
    part: [std::ops::Range<usize>; 3],
    numbers: Vec<usize>,
    columns: usize,
    rows: usize,
    /// A slice without its border.
    size: [usize; 2],
}

impl Sheet {
    fn new(scene: &Scene, plane: &Plane, part: &[std::ops::Range<usize>; 3], scale: f64) -> Sheet {
        let part = plane.axes.map(|axis| part[axis].clone());
        let scaled = |n: usize| ((n as f64 * scale).round() as usize).max(1);
        let size = [scaled(part[0].len()), scaled(part[1].len())];
        let count = scaled(part[2].len());
        let step = part[2].len() as f64 / count as f64;
        let middle = scene.centre()[plane.axes[2]];
        // The slice through the labels' middle is always one of them.
        let mut numbers: Vec<usize> = (0..count)
            .map(|i| part[2].start + ((i as f64 + 0.5) * step) as usize)
            .collect();
        if let Some(nearest) = numbers.iter_mut().min_by_key(|n| n.abs_diff(middle)) {
            *nearest = middle;
        }
        numbers.dedup();
        // About as wide as high.
        let wanted = (numbers.len() * (size[1] + 2)) as f64 / (size[0] + 2) as f64;
        let columns = (wanted.sqrt().ceil() as usize).clamp(1, numbers.len());
        Sheet {
            part,
            columns,
            rows: numbers.len().div_ceil(columns),
            numbers,
            size,
        }
    }

    fn draw(
        &self,
        scene: &Scene,
        plane: &Plane,
        colour: &dyn Fn(i32) -> Option<usize>,
    ) -> Result<Slices, String> {
        let middle = scene.centre()[plane.axes[2]];
        let longest = self.size[0].max(self.size[1]);
        let finer = (LABEL_PIXELS / longest).clamp(1, 4);
        let spacing = |i: usize| scene.spacing[plane.axes[i]] * self.part[i].len() as f64;
        Ok(Slices {
            name: plane.name,
            sides: plane.sides,
            first: self.numbers.iter().position(|n| *n == middle).unwrap_or(0),
            columns: self.columns,
            rows: self.rows,
            size: self.size,
            extent: [spacing(0), spacing(1)],
            scan: self.scan(scene, plane)?,
            labels: self.labels(scene, plane, finer, colour)?,
            numbers: self.numbers.clone(),
        })
    }

    /// A picture of all slices of which each pixel is what `pixel` says of its slice and its place in it.
    fn paint(&self, finer: usize, mut pixel: impl FnMut(usize, usize, usize) -> u8) -> (Vec<u8>, [usize; 2]) {
        let inner = self.size.map(|side| side * finer);
        let outer = self.size.map(|side| (side + 2) * finer);
        let size = [outer[0] * self.columns, outer[1] * self.rows];
        let mut pixels = vec![0; size[0] * size[1]];
        for (slice, number) in self.numbers.iter().enumerate() {
            let corner = [slice % self.columns * outer[0], slice / self.columns * outer[1]];
            for y in 0..outer[1] {
                let line = (corner[1] + y) * size[0] + corner[0];
                let row = y.saturating_sub(finer).min(inner[1] - 1);
                for x in 0..outer[0] {
                    let column = x.saturating_sub(finer).min(inner[0] - 1);
                    pixels[line + x] = pixel(*number, column, row);
                }
            }
        }
        (pixels, size)
    }

    /// The place in voxels along an axis of a pixel's centre: columns run to the patient's left or posterior, rows downwards, both
    /// against RAS.
    fn position(&self, side: usize, pixel: usize, pixels: usize) -> f64 {
        let part = &self.part[side];
        let n = part.len() as f64;
        let at = n - (pixel as f64 + 0.5) / pixels as f64 * n - 0.5;
        part.start as f64 + at.clamp(0.0, n - 1.0)
    }

    fn scan(&self, scene: &Scene, plane: &Plane) -> Result<Vec<u8>, String> {
        let [across, up, through] = plane.axes;
        let (low, high) = scene.window;
        let range = (high - low).max(f32::MIN_POSITIVE);
        let at = |u: usize, v: usize, number: usize| {
            let mut voxel = [0; 3];
            (voxel[across], voxel[up], voxel[through]) = (u, v, number);
            scene.image[scene.index(voxel)]
        };
        let (pixels, size) = self.paint(1, |number, column, row| {
            let u = self.position(0, column, self.size[0]);
            let v = self.position(1, row, self.size[1]);
            let (u0, v0) = (u as usize, v as usize);
            let (u1, v1) = (
                (u0 + 1).min(self.part[0].end - 1),
                (v0 + 1).min(self.part[1].end - 1),
            );
            let (a, b) = (u.fract() as f32, v.fract() as f32);
            let value = (at(u0, v0, number) * (1.0 - a) + at(u1, v0, number) * a) * (1.0 - b)
                + (at(u0, v1, number) * (1.0 - a) + at(u1, v1, number) * a) * b;
            ((value - low) / range * 255.0).clamp(0.0, 255.0).round() as u8
        });
        encode(&pixels, size, png::ColorType::Grayscale)
    }

    fn labels(
        &self,
        scene: &Scene,
        plane: &Plane,
        finer: usize,
        colour: &dyn Fn(i32) -> Option<usize>,
    ) -> Result<Vec<u8>, String> {
        let [across, up, through] = plane.axes;
        let inner = self.size.map(|side| side * finer);
        let voxel = |column: usize, row: usize, number: usize| {
            let mut voxel = [0; 3];
            voxel[across] = self.position(0, column, inner[0]).round() as usize;
            voxel[up] = self.position(1, row, inner[1]).round() as usize;
            voxel[through] = number;
            scene.index(voxel)
        };
        let entry = |value: i32| colour(value).map(|index| ((index - 1) % COLOURS.len()) as u8);
        let (pixels, size) = self.paint(finer, |number, column, row| {
            let here = voxel(column, row, number);
            let outlined = scene.reference.as_ref().and_then(|reference| {
                let label = reference[here];
                let paint = entry(label)?;
                let (left, above) = (column.saturating_sub(1), row.saturating_sub(1));
                let (right, below) = ((column + 1).min(inner[0] - 1), (row + 1).min(inner[1] - 1));
                let around = [(left, row), (right, row), (column, above), (column, below)];
                let edge = around
                    .iter()
                    .any(|(x, y)| reference[voxel(*x, *y, number)] != label);
                edge.then_some(paint)
            });
            match (outlined, entry(scene.labels[here])) {
                (Some(paint), _) => 1 + COLOURS.len() as u8 + paint,
                (None, Some(paint)) => 1 + paint,
                (None, None) => 0,
            }
        });
        encode(&pixels, size, png::ColorType::Indexed)
    }
}

/// A PNG of grey pixels, or of entries of the palette of [`Sheet::labels`].
fn encode(pixels: &[u8], size: [usize; 2], kind: png::ColorType) -> Result<Vec<u8>, String> {
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, size[0] as u32, size[1] as u32);
    encoder.set_color(kind);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_compression(png::Compression::High);
    if kind == png::ColorType::Indexed {
        let colours: Vec<u8> = (1..=COLOURS.len()).flat_map(label_colour).collect();
        encoder.set_palette([&[0; 3], &colours[..], &colours[..]].concat());
        let filled = [OPACITY; COLOURS.len()];
        encoder.set_trns([&[0], &filled[..]].concat());
        encoder.set_filter(png::Filter::NoFilter);
    }
    let mut writer = encoder.write_header().map_err(|e| e.to_string())?;
    writer.write_image_data(pixels).map_err(|e| e.to_string())?;
    writer.finish().map_err(|e| e.to_string())?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume;
    use std::path::Path;

    fn sample(kind: &str) -> Volume {
        let file = format!("examples/data/{kind}/hippocampus_041.nii.gz");
        volume::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap()
    }

    fn decode(file: &[u8]) -> (Vec<u8>, usize, usize) {
        let mut decoder = png::Decoder::new(std::io::Cursor::new(file));
        decoder.set_transformations(png::Transformations::IDENTITY);
        let mut reader = decoder.read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut pixels).unwrap();
        (pixels, info.width as usize, info.height as usize)
    }

    fn names() -> Vec<Label> {
        let label = |(value, name): (i32, &str)| Label {
            value,
            name: name.into(),
        };
        [(0, "background"), (1, "Anterior"), (2, "Posterior")]
            .map(label)
            .to_vec()
    }

    #[test]
    fn a_small_scan_is_there_with_every_voxel() {
        let (scan, map) = (sample("imagesTs"), sample("labelsTs"));
        let labels = map.labels().unwrap();
        let [x, y, z] = scan.geometry.shape;
        let planes = slices(&scan, &labels, None, &names(), usize::MAX).unwrap();
        let sizes = planes.each_ref().map(|p| (p.size, p.numbers.len()));
        assert_eq!(sizes, [([x, y], z), ([x, z], y), ([y, z], x)]);
        // Of one plane, each label's pixels are its voxels, as much finer as the picture is.
        for plane in &planes {
            let (pixels, width, height) = decode(&plane.labels);
            let finer = width / (plane.columns * (plane.size[0] + 2));
            assert_eq!(height, plane.rows * (plane.size[1] + 2) * finer);
            let inside = |i: &usize| {
                let (x, y) = (i % width / finer, i / width / finer);
                let (x, y) = (x % (plane.size[0] + 2), y % (plane.size[1] + 2));
                (1..=plane.size[0]).contains(&x) && (1..=plane.size[1]).contains(&y)
            };
            for value in [1, 2] {
                let painted = (0..pixels.len()).filter(|i| i32::from(pixels[*i]) == value && inside(i));
                let voxels = labels.iter().filter(|label| **label == value).count();
                assert_eq!(painted.count(), voxels * finer * finer, "{} {value}", plane.name);
            }
            let (scan, width, _) = decode(&plane.scan);
            assert_eq!(width, plane.columns * (plane.size[0] + 2));
            // borders repeat what they surround
            assert_eq!((scan[0], scan[1]), (scan[width + 1], scan[width + 1]));
            assert!(plane.numbers[plane.first] > 0);
        }
    }

    #[test]
    fn a_reference_is_outlined_and_a_larger_scan_has_fewer_slices() {
        let (scan, map) = (sample("imagesTs"), sample("labelsTs"));
        let labels = map.labels().unwrap();
        let nothing = vec![0; labels.len()];
        let most = 10_000;
        for plane in slices(&scan, &nothing, Some(&labels), &names(), most).unwrap() {
            let (pixels, ..) = decode(&plane.labels);
            let kinds: std::collections::BTreeSet<u8> = pixels.iter().copied().collect();
            assert_eq!(
                kinds.into_iter().collect::<Vec<_>>(),
                [0, 13, 14],
                "{}",
                plane.name
            );
            let (scan, ..) = decode(&plane.scan);
            assert!(scan.len() < 2 * most, "{}: {}", plane.name, scan.len());
            assert!(plane.numbers.is_sorted() && plane.numbers.len() > 5);
        }
        assert!(slices(&scan, &nothing[1..], None, &names(), most).is_err());
    }
}

//! A scan as nnU-Net's DefaultPreprocessor hands it to the network: axes transposed, cropped to what is not zero, normalised and
//! resampled; and the way back.

use super::plan::{Normalisation, Plan};
use super::resample::resampled_size;
use crate::host_memory::{self, TooLarge};
use crate::preprocess::{crop_or_pad_owned, moments};
use crate::tensor::Elements;
use crate::volume::{Geometry, Orientation, Reorientation, Volume, VolumeError};

/// A scan ready for tiles.
#[derive(Debug)]
pub struct Prepared {
    /// `[C, D, H, W]`, at least a patch along each axis: zeros around the scan.
    pub data: Vec<f32>,
    /// D, H and W.
    pub size: [usize; 3],
    /// Where the scan begins in it, and its size.
    pub inner: ([usize; 3], [usize; 3]),
    /// Where it came from.
    pub placement: Placement,
}

/// How the box of a scan lies in it.
#[derive(Clone, Debug)]
pub struct Placement {
    turn: Reorientation,
    /// The scan's size, axes transposed.
    whole: [usize; 3],
    /// The box of what is not zero: its first voxel, and its size.
    cropped: ([usize; 3], [usize; 3]),
    /// Millimetres between voxels, axes transposed.
    pub spacing: [f64; 3],
}

/// From the file's axes to the network's.
fn turn(plan: &Plan, geometry: &Geometry) -> Reorientation {
    // nnU-Net's arrays are (z, y, x), a volume's (x, y, z).
    let transpose = Reorientation::of_axes(plan.transpose.map(|axis| 2 - axis));
    let ras: Orientation = "RAS".parse().expect("an orientation");
    match plan.reorient {
        true => geometry.orientation.to(ras).then(transpose),
        false => transpose,
    }
}

impl Placement {
    /// The size of the box.
    pub fn size(&self) -> [usize; 3] {
        self.cropped.1
    }

    /// A label map `[X, Y, Z]` of the whole scan from one of the box; background around it.
    ///
    /// # Errors
    /// No memory for it.
    pub fn restore<T: Copy>(&self, labels: Vec<T>, background: T) -> Result<Vec<T>, TooLarge> {
        host_memory::require(2 * host_memory::bytes(&self.whole, size_of::<T>()))?;
        let (first, size) = self.cropped;
        let origin = signed(first).map(|at| -at);
        let whole = crop_or_pad_owned(labels, size, origin, self.whole, background);
        Ok(self.turn.inverse().apply_owned(whole, 1, self.whole))
    }
}

/// A voxel as an origin, which may lie outside of an array.
pub(super) fn signed(voxel: [usize; 3]) -> [isize; 3] {
    voxel.map(|v| v as isize)
}

/// The channels of a scan, each a volume or several of one, through the plan's preprocessing. The scan is given away, since
/// it and what becomes of it would otherwise be in memory until the labels are there.
///
/// # Errors
/// Channels that are not as many as the plan's or on other grids, and scans that are too large for the memory there is.
pub fn prepare(plan: &Plan, scans: Vec<Volume>) -> Result<Prepared, PrepareError> {
    let channels: usize = scans.iter().map(|scan| scan.channels).sum();
    if channels != plan.channels.len() {
        let names: Vec<&str> = plan.channels.iter().map(|c| c.name.as_str()).collect();
        return Err(PrepareError::Scan(format!(
            "the scan has {channels} channels; the model takes {}: {}",
            plan.channels.len(),
            names.join(", ")
        )));
    }
    let geometry = &scans[0].geometry.clone();
    for scan in &scans[1..] {
        if let Some(difference) = geometry.difference(&scan.geometry, 1e-3) {
            return Err(PrepareError::Scan(format!(
                "{} and {} are on different grids: {difference}",
                scans[0].source.display(),
                scan.source.display()
            )));
        }
    }
    let turn = turn(plan, geometry);
    let (voxels, whole) = (geometry.voxels(), turn.permute(geometry.shape));
    let spacing = turn.permute(geometry.spacing);
    let mut turned: Vec<Vec<f32>> = Vec::with_capacity(channels);
    for scan in scans {
        match scan.channels {
            1 if turn.is_identity() => turned.push(scan.data),
            channels => {
                host_memory::require(host_memory::bytes(&[channels, voxels], 4))?;
                let channels = scan.data.chunks_exact(voxels);
                turned.extend(channels.map(|channel| turn.apply(channel, 1, geometry.shape)));
            }
        }
    }
    // Which voxels are the body's, and which are outside of it.
    host_memory::require(2 * host_memory::bytes(&[voxels], 1))?;

    let mut body = vec![false; voxels];
    for channel in &turned {
        body.iter_mut().zip(channel).for_each(|(b, v)| *b |= *v != 0.0);
    }
    fill_holes(&mut body, whole);
    let (corner, end) = bounding_box(&body, whole).unwrap_or(([0; 3], whole));
    let size = [0, 1, 2].map(|a| end[a] - corner[a]);
    let placement = Placement {
        turn,
        whole,
        cropped: (corner, size),
        spacing,
    };
    let body = crop_or_pad_owned(body, whole, signed(corner), size, false);

    let wished = wished_size(plan, size, spacing)?;
    let padded = [0, 1, 2].map(|a| wished[a].max(plan.patch[a]));
    let first = [0, 1, 2].map(|a| (padded[a] - wished[a]) / 2);
    let mut data = Vec::new();
    for (channel, description) in turned.into_iter().zip(&plan.channels) {
        if size != whole {
            host_memory::require(host_memory::bytes(&size, 4))?;
        }
        let mut own = crop_or_pad_owned(channel, whole, signed(corner), size, 0.0);
        normalise(description.normalisation, &mut own, &body)
            .map_err(|problem| PrepareError::Scan(format!("channel `{}`: {problem}", description.name)))?;
        if wished != size {
            own = plan
                .data_resampling
                .apply(&own, (size, spacing), (wished, plan.spacing))?;
        }
        if padded != wished {
            host_memory::require(host_memory::bytes(&padded, 4))?;
        }
        let own = crop_or_pad_owned(own, wished, signed(first).map(|at| -at), padded, 0.0);
        match data.is_empty() {
            true => data = own,
            false => {
                host_memory::require(host_memory::bytes(&[own.len()], 4))?;
                data.extend(own);
            }
        }
    }
    Ok(Prepared {
        data,
        size: padded,
        inner: (first, wished),
        placement,
    })
}

/// The size of an array on the plan's grid.
fn wished_size(plan: &Plan, size: [usize; 3], spacing: [f64; 3]) -> Result<[usize; 3], PrepareError> {
    let wished = resampled_size(size, spacing, plan.spacing);
    let wished = wished.map(|n| {
        if n.is_finite() && n < 1e9 {
            n.max(1.0) as usize
        } else {
            usize::MAX
        }
    });
    if Elements::of(&wished).is_none() {
        return Err(PrepareError::Scan(format!(
            "with {:?} mm between voxels the scan would have {wished:?} voxels of {:?} mm; its header may be wrong",
            spacing, plan.spacing
        )));
    }
    Ok(wished)
}

/// The size of a scan of this geometry on the plan's grid, at least a tile along each axis, were nothing of it zero.
pub(super) fn padded_size(plan: &Plan, geometry: &Geometry) -> Result<[usize; 3], PrepareError> {
    let turn = turn(plan, geometry);
    let wished = wished_size(plan, turn.permute(geometry.shape), turn.permute(geometry.spacing))?;
    Ok([0, 1, 2].map(|a| wished[a].max(plan.patch[a])))
}

/// Why a scan can't be prepared.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PrepareError {
    /// It is not what the model takes.
    #[error("{0}")]
    Scan(String),
    /// It can't be read.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// There is no memory for it.
    #[error("the scan is too large: {0}")]
    Memory(#[from] TooLarge),
}

fn normalise(how: Normalisation, data: &mut [f32], body: &[bool]) -> Result<(), String> {
    match how {
        Normalisation::None => {}
        Normalisation::ZScore { masked } => {
            let counts = |i: &usize| !masked || body[*i];
            let (mean, variance) = moments((0..data.len()).filter(counts).map(|i| data[i]));
            let deviation = variance.sqrt().max(1e-8);
            for i in (0..data.len()).filter(counts) {
                data[i] = ((f64::from(data[i]) - mean) / deviation) as f32;
            }
        }
        Normalisation::Ct {
            lower,
            upper,
            mean,
            deviation,
        } => data
            .iter_mut()
            .for_each(|v| *v = (v.clamp(lower, upper) - mean) / deviation.max(1e-8)),
        Normalisation::RescaleTo01 => {
            let low = data.iter().copied().fold(f32::INFINITY, f32::min);
            data.iter_mut().for_each(|v| *v -= low);
            let most = data.iter().copied().fold(0.0, f32::max).max(1e-8);
            data.iter_mut().for_each(|v| *v /= most);
        }
        Normalisation::RgbTo01 => {
            if let Some(v) = data.iter().find(|v| !(0.0..=255.0).contains(*v)) {
                return Err(format!("has the value {v}; colours are from 0 to 255"));
            }
            data.iter_mut().for_each(|v| *v /= 255.0);
        }
    }
    Ok(())
}

/// The smallest box of all true voxels: its first, and past its last.
fn bounding_box(body: &[bool], size: [usize; 3]) -> Option<([usize; 3], [usize; 3])> {
    let (mut first, mut end) = (size, [0; 3]);
    for (row, voxels) in body.chunks_exact(size[2]).enumerate() {
        if let (Some(low), Some(high)) = (voxels.iter().position(|b| *b), voxels.iter().rposition(|b| *b)) {
            let (z, y) = (row / size[1], row % size[1]);
            for (axis, (low, high)) in [(z, z), (y, y), (low, high)].into_iter().enumerate() {
                first[axis] = first[axis].min(low);
                end[axis] = end[axis].max(high + 1);
            }
        }
    }
    (end != [0; 3]).then_some((first, end))
}

/// scipy's `binary_fill_holes`: what is false and not connected by faces to the outside becomes true.
fn fill_holes(body: &mut [bool], size: [usize; 3]) {
    if body.iter().all(|b| *b) {
        return;
    }
    let [d, h, w] = size;
    let mut outside = vec![false; body.len()];
    let mut stack: Vec<usize> = Vec::new();
    let visit = |at: usize, outside: &mut Vec<bool>, stack: &mut Vec<usize>| {
        if !body[at] && !outside[at] {
            outside[at] = true;
            stack.push(at);
        }
    };
    for z in 0..d {
        for y in 0..h {
            let row = (z * h + y) * w;
            if z == 0 || z == d - 1 || y == 0 || y == h - 1 {
                for x in 0..w {
                    visit(row + x, &mut outside, &mut stack);
                }
            } else {
                visit(row, &mut outside, &mut stack);
                visit(row + w - 1, &mut outside, &mut stack);
            }
        }
    }
    while let Some(at) = stack.pop() {
        let (z, y, x) = (at / (h * w), at / w % h, at % w);
        for (index, size, step) in [(z, d, h * w), (y, h, w), (x, w, 1)] {
            if index > 0 {
                visit(at - step, &mut outside, &mut stack);
            }
            if index + 1 < size {
                visit(at + step, &mut outside, &mut stack);
            }
        }
    }
    body.iter_mut()
        .zip(outside)
        .for_each(|(b, outside)| *b = !outside);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_are_filled_and_bays_are_not() {
        let size = [3, 5, 5];
        let mut body = vec![false; 75];
        // A shell in the middle plane, open above and below: no hole. Closed: one.
        for (i, b) in body.iter_mut().enumerate() {
            let (z, y, x) = (i / 25, i / 5 % 5, i % 5);
            *b = z == 1 && (1..4).contains(&y) && (1..4).contains(&x) && (y, x) != (2, 2);
        }
        let mut open = body.clone();
        fill_holes(&mut open, size);
        assert_eq!(open, body);
        body[12] = true;
        body[62] = true;
        fill_holes(&mut body, size);
        assert!(body[37]);
        assert_eq!(body.iter().filter(|b| **b).count(), 11);
        assert_eq!(bounding_box(&body, size), Some(([0, 1, 1], [3, 4, 4])));
        assert_eq!(bounding_box(&[false; 75], size), None);
    }
}

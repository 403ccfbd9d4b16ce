//! Passes of one-dimensional filters along depth, height and width, shared by average pooling, its gradient, that of
//! trilinear upsampling, and resampling to the nearest voxel: three passes of k taps instead of k³.

use super::nearest::nearest;
use super::*;
use crate::tensor::ALIGNMENT;

params! {
    /// The uniform of `common/separable.wgsl`.
    pub(super) struct Params {
        count: u32,
        base: u32,
        source_base: u32,
        inner: u32,
        length: u32,
        source_len: u32,
        kernel: u32,
        stride: u32,
        padding: u32,
        /// Rows are positions on the axis, counted over all that `outer` goes over.
        first_row: u32,
        end_row: u32,
    }
}

/// A filter along one axis; `shaders/common/separable.wgsl` has an entry point for each.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Filter {
    UpsampleGradient,
    Nearest,
    NearestGradient,
    Average(Window),
    AverageGradient(Window),
}

/// A pooling window along one axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    pub kernel: usize,
    pub stride: usize,
    pub padding: usize,
}

impl Filter {
    fn entry(self) -> &'static str {
        match self {
            Filter::UpsampleGradient => "upsample_gradient",
            Filter::Nearest => "nearest",
            Filter::NearestGradient => "nearest_gradient",
            Filter::Average(_) => "average",
            Filter::AverageGradient(_) => "average_gradient",
        }
    }

    fn window(self) -> Window {
        match self {
            Filter::Average(window) | Filter::AverageGradient(window) => window,
            _ => Window {
                kernel: 1,
                stride: 1,
                padding: 0,
            },
        }
    }

    /// First and last input that output `i` may read, of an axis with `from` inputs and `to` outputs; both grow
    /// with `i`, and they bound what the shader reads.
    fn reach(self, i: usize, from: usize, to: usize) -> (usize, usize) {
        let (first, last) = match self {
            // low(j) ≥ i − 1 and low(j) ≤ i.
            Filter::UpsampleGradient => (
                (from * (2 * i + 1))
                    .saturating_sub(2 * from + to)
                    .div_ceil(2 * to),
                (from * (2 * i + 3))
                    .saturating_sub(to)
                    .div_ceil(2 * to)
                    .saturating_sub(1),
            ),
            Filter::Nearest => (nearest(i, from, to), nearest(i, from, to)),
            // ⌊(j + ½)·to/from⌋ = i; the last is before the first where no output is input i.
            Filter::NearestGradient => (first_at(i, from, to), first_at(i + 1, from, to).saturating_sub(1)),
            Filter::Average(w) => (
                (i * w.stride).saturating_sub(w.padding),
                (i * w.stride + w.kernel - 1).saturating_sub(w.padding),
            ),
            Filter::AverageGradient(w) => (
                (i + w.padding + 1).saturating_sub(w.kernel).div_ceil(w.stride),
                (i + w.padding) / w.stride,
            ),
        };
        (first.min(from - 1), last.min(from - 1))
    }

    pub fn changes(self, from: usize, to: usize) -> bool {
        from != to || self.window().kernel > 1
    }
}

/// The first of `from` outputs whose nearest of `to` inputs is `i` or more: 2·to·j ≥ 2·from·i − to.
fn first_at(i: usize, from: usize, to: usize) -> usize {
    (2 * from * i).saturating_sub(to).div_ceil(2 * to)
}

/// The two inputs of output `i` and the weight of the higher: max(0, (i + ½)·from/to − ½), half-pixel centres.
pub(crate) fn taps(i: usize, from: usize, to: usize) -> (usize, usize, f64) {
    let numerator = (from * (2 * i + 1)).saturating_sub(to);
    let low = numerator / (2 * to);
    let fraction = (numerator % (2 * to)) as f64 / (2 * to) as f64;
    (low, (low + 1).min(from - 1), fraction)
}

/// Filters input 0 into output 0 along each axis whose length or content changes, in the order that keeps the
/// intermediate results small. Values beyond the adapter's largest binding are cut into ranges of axis positions.
pub(crate) fn filter_axes(
    op: &'static str,
    filter: Filter,
    io: &mut Io,
    caps: &Caps,
) -> Result<Vec<Dispatch>, GraphError> {
    let spec = &io.inputs[0];
    let [n, c, d, h, w] = spec.ncdhw().expect("checked on insertion");
    let target = io.outputs[0].ncdhw().expect("checked on insertion");
    // Numbers that stand together, vec4s of a map.
    let (outer, blocks, together) = match spec.layout {
        Layout::Map => (n, spec.blocks(), 4),
        Layout::Flat => (n * c, 1, 1),
    };
    let mut size = [d, h, w];
    let target = [target[2], target[3], target[4]];
    // Growing axes from the outermost, so that the long last pass runs along memory; shrinking ones the other way.
    let growing = target.iter().product::<usize>() > d * h * w;
    let order = if growing { [0, 1, 2] } else { [2, 1, 0] };
    let mut axes: Vec<usize> = order
        .into_iter()
        .filter(|&a| filter.changes(size[a], target[a]))
        .collect();
    if axes.is_empty() {
        axes.push(2); // a filter that changes nothing still has to make its output
    }
    // Planes (n, z) to make, and those that the passes before depth's have.
    let planes = io.planes.clone().unwrap_or(0..outer * target[0]);
    let mut now = match axes.contains(&0) {
        true if io.planes.is_some() => planes_read(filter, &planes, d, target[0]),
        true => 0..outer * d,
        false => planes.clone(),
    };
    let mut source = BufferRef::Input(0);
    // First byte of the source that exists.
    let mut source_from = 0;
    let mut dispatches = Vec::new();
    for (i, &axis) in axes.iter().enumerate() {
        let (from, to) = (size[axis], target[axis]);
        let (outer, inner) = match axis {
            0 => (outer, blocks * size[1] * size[2] * together),
            1 => (outer * size[0] * blocks, size[2] * together),
            _ => (outer * size[0] * blocks * size[1], together),
        };
        let (shader, element) = if inner % 4 == 0 {
            (
                shader!("separable_map", "common/divide", "common/separable"; Params),
                4usize,
            )
        } else {
            (
                shader!("separable_flat", "common/divide", "common/separable"; Params),
                1,
            )
        };
        let inner = inner / element;
        let element_bytes = 4 * element as u64;
        size[axis] = to;
        if axis == 0 {
            now = if io.planes.is_some() {
                planes.clone()
            } else {
                0..outer * to
            };
        }
        let rows_a_plane = match axis {
            0 => 1,
            1 => blocks * to,
            _ => blocks * size[1] * to,
        };
        let rows = outer * to;
        let wanted = now.start * rows_a_plane..rows.min(now.end * rows_a_plane);
        let row_bytes = inner as u64 * element_bytes;
        let first = wanted.start as u64 * row_bytes / ALIGNMENT * ALIGNMENT;
        let (output, output_from) = if i + 1 == axes.len() {
            (BufferRef::Output(0), 0)
        } else {
            (io.scratch(wanted.end as u64 * row_bytes - first), first)
        };
        let most_taps = (0..to)
            .map(|i| filter.reach(i, from, to))
            .map(|(first, last)| (last + 1).saturating_sub(first) as u64)
            .max()
            .unwrap_or(0)
            .max(1);

        let reads = |row: usize| {
            let (first, last) = filter.reach(row % to, from, to);
            (row / to * from + first, row / to * from + last)
        };
        let Some(pieces) = pieces((rows, row_bytes), wanted, (outer * from, row_bytes), reads, caps) else {
            let axis = ["depth", "height", "width"][axis];
            return Err(too_large(op, axis, caps));
        };
        let window = filter.window();
        for piece in pieces {
            let run = match filter {
                Filter::Average(_) if caps.target.is_cpu() => 4,
                _ => 1,
            };
            let count = (piece.end - piece.start).div_ceil(run) * inner;
            dispatches.push(Dispatch {
                constants: vec![("ROWS", run as u32)],
                params: Params {
                    count: int(count),
                    base: int((piece.written.0 / element_bytes) as usize),
                    source_base: int((piece.read.0 / element_bytes) as usize),
                    inner: int(inner),
                    length: int(to),
                    source_len: int(from),
                    kernel: int(window.kernel),
                    stride: int(window.stride),
                    padding: int(window.padding),
                    first_row: int(piece.start),
                    end_row: int(piece.end),
                }
                .into(),
                bindings: vec![
                    read(source).range(piece.read.0 - source_from, piece.read.1 - source_from),
                    write(output).range(piece.written.0 - output_from, piece.written.1 - output_from),
                ],
                workgroups: linear_groups(count, 64),
                iterations: most_taps * run as u64,
                flops: ((piece.end - piece.start) as u64 * row_bytes / 4) * 2 * most_taps,
                ..Dispatch::new(shader, filter.entry())
            });
        }
        (source, source_from) = (output, output_from);
    }
    Ok(dispatches)
}

/// Input planes (n, z) that output planes read through a filter along depths of `from` and `to`.
pub(crate) fn planes_read(filter: Filter, planes: &Range<usize>, from: usize, to: usize) -> Range<usize> {
    let at = |plane: usize| {
        let (first, last) = filter.reach(plane % to, from, to);
        (plane / to * from + first, plane / to * from + last)
    };
    let (first, last) = (at(planes.start).0, at(planes.end - 1).1);
    first.min(last)..last + 1
}

/// A run of an output's rows, with the bytes that bind it and the rows of the input that it reads.
pub(crate) struct Piece {
    pub start: usize,
    pub end: usize,
    pub written: (u64, u64),
    pub read: (u64, u64),
}

/// Cuts the wanted rows of an output (rows, bytes of a row) into pieces of [`Caps::part`] where it can, given the input's
/// rows and bytes of a row and the first and last row that an output row reads, both of which grow with it. `None` where
/// one row doesn't fit a binding.
pub(crate) fn pieces(
    output: (usize, u64),
    wanted: std::ops::Range<usize>,
    input: (usize, u64),
    reads: impl Fn(usize) -> (usize, usize),
    caps: &Caps,
) -> Option<Vec<Piece>> {
    let bytes = |start: usize, end: usize, (rows, row_bytes): (usize, u64)| {
        let from = start as u64 * row_bytes / ALIGNMENT * ALIGNMENT;
        (from, end.min(rows) as u64 * row_bytes)
    };
    let cut = |step: usize| {
        let end = wanted.end;
        (wanted.clone())
            .step_by(step)
            .map(move |start| (start, end.min(start + step)))
            .map(|(start, end)| {
                let (first, last) = (reads(start).0, reads(end - 1).1);
                Piece {
                    start,
                    end,
                    written: bytes(start, end, output),
                    read: bytes(first.min(last), first.max(last) + 1, input),
                }
            })
    };
    let fits = |step: usize, most: u64| {
        cut(step).all(|p| (p.written.1 - p.written.0).max(p.read.1 - p.read.0) <= most)
    };
    let mut step = wanted.len();
    while step > 1 && !fits(step, caps.part()) {
        step = step.div_ceil(2);
    }
    fits(step, caps.max_binding).then(|| cut(step).collect())
}

/// The error where one row of [`pieces`] doesn't fit.
pub(crate) fn too_large(op: &'static str, axis: &str, caps: &Caps) -> GraphError {
    let reason = format!(
        "one position of the {axis} axis takes more than this adapter's binding of {} MiB",
        caps.max_binding >> 20
    );
    GraphError::Limit { op, reason }
}

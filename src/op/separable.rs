//! Passes of one-dimensional filters along depth, height and width, shared by upsampling and average pooling: three
//! passes of k taps instead of k³.

use super::*;
use crate::plan::ALIGNMENT;

/// A filter along one axis; `shaders/common/separable.wgsl` has an entry point for each.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Filter {
    Upsample,
    UpsampleGradient,
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
            Filter::Upsample => "upsample",
            Filter::UpsampleGradient => "upsample_gradient",
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
            Filter::Upsample => {
                let (low, high, _) = taps(i, from, to);
                (low, high)
            }
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

    fn changes(self, from: usize, to: usize) -> bool {
        from != to || self.window().kernel > 1
    }
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
    let (shader, outer, blocks, element) = match spec.layout {
        Layout::Map => (
            shader!("separable_map", "common/separable"),
            n,
            spec.blocks(),
            16u64,
        ),
        Layout::Flat => (shader!("separable_flat", "common/separable"), n * c, 1, 4),
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
    let mut source = BufferRef::Input(0);
    let mut dispatches = Vec::new();
    for (i, &axis) in axes.iter().enumerate() {
        let (from, to) = (size[axis], target[axis]);
        let (outer, inner) = match axis {
            0 => (outer, blocks * size[1] * size[2]),
            1 => (outer * size[0] * blocks, size[2]),
            _ => (outer * size[0] * blocks * size[1], 1),
        };
        size[axis] = to;
        let rows = outer * to;
        let row_bytes = inner as u64 * element;
        let output = if i + 1 == axes.len() {
            BufferRef::Output(0)
        } else {
            io.scratch(rows as u64 * row_bytes)
        };
        let most_taps = (0..to)
            .map(|i| filter.reach(i, from, to))
            .map(|(first, last)| (last + 1).saturating_sub(first) as u64)
            .max()
            .unwrap_or(0)
            .max(1);

        // Bytes of `rows` at `start..end` of a value, widened to what can be bound.
        let bytes = |start: usize, end: usize, rows: usize| {
            let from = start as u64 * row_bytes / ALIGNMENT * ALIGNMENT;
            (from, (end as u64 * row_bytes).min(rows as u64 * row_bytes))
        };
        let reads = |start: usize, end: usize| {
            let first = start / to * from + filter.reach(start % to, from, to).0;
            let last = (end - 1) / to * from + filter.reach((end - 1) % to, from, to).1;
            bytes(first.min(last), first.max(last) + 1, outer * from)
        };
        let chunks = |step: usize| {
            (0..rows)
                .step_by(step)
                .map(move |start| (start, rows.min(start + step)))
        };
        let fits = |step: usize| {
            chunks(step).all(|(start, end)| {
                let (a, b) = bytes(start, end, rows);
                let (c, d) = reads(start, end);
                (b - a).max(d - c) <= caps.max_binding
            })
        };
        let mut step = rows;
        while !fits(step) {
            if step == 1 {
                let reason = format!(
                    "one position of the {} axis takes more than this adapter's binding of {} MiB; use a smaller grid",
                    ["depth", "height", "width"][axis],
                    caps.max_binding >> 20
                );
                return Err(GraphError::Limit { op, reason });
            }
            step = step.div_ceil(2);
        }
        let window = filter.window();
        for (start, end) in chunks(step) {
            let count = (end - start) * inner;
            let (written, read_from) = (bytes(start, end, rows), reads(start, end));
            dispatches.push(Dispatch {
                params: vec![
                    ("count", count.into()),
                    ("first", (start * inner).into()),
                    ("base", ((written.0 / element) as usize).into()),
                    ("source_base", ((read_from.0 / element) as usize).into()),
                    ("inner", inner.into()),
                    ("length", to.into()),
                    ("source_len", from.into()),
                    ("kernel", window.kernel.into()),
                    ("stride", window.stride.into()),
                    ("padding", window.padding.into()),
                ],
                bindings: vec![
                    read(source).range(read_from.0, read_from.1),
                    write(output).range(written.0, written.1),
                ],
                workgroups: linear_groups(count, 64),
                iterations: most_taps,
                flops: (count as u64 * element / 4) * 2 * most_taps,
                ..Dispatch::new(shader, filter.entry())
            });
        }
        source = output;
    }
    Ok(dispatches)
}

//! Filters along one axis whose taps come with each step: blurring and lower resolution.

use super::*;

params! {
    /// The uniform of `axis_filter.wgsl`.
    struct Params {
        /// Elements.
        count: u32,
        /// Elements of a batch item.
        item: u32,
        /// Elements between neighbours on the axis.
        inner: u32,
        length: u32,
        /// Numbers of a row of taps.
        row: u32,
    }
}

/// `y[i] = Σ w[i, t] · x[first(i) + t]` over taps t along one axis of flat `[N, C, D, H, W]`, positions beyond the ends being the
/// ends'. The second input, flat `[N, L, 2 + T]`, has for each position of the axis (L voxels): first, how many taps there are (at
/// most T), and the taps. For augmentation: it has no gradient.
#[derive(Clone, Copy, Debug)]
pub struct AxisFilter {
    /// 2, 3 or 4: D, H or W.
    pub axis: usize,
}

impl Op for AxisFilter {
    fn name(&self) -> &'static str {
        "axis_filter"
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>, GraphError> {
        match inputs {
            [x, taps]
                if x.shape.len() == 5
                    && x.layout == Layout::Flat
                    && (2..5).contains(&self.axis)
                    && taps.shape.len() == 3
                    && taps.shape[..2] == [x.shape[0], x.shape[self.axis]]
                    && taps.shape[2] > 2 =>
            {
                Ok(vec![x.clone()])
            }
            _ => Err(GraphError::shape(
                "axis_filter",
                inputs,
                "takes a flat image [N, C, D, H, W] and taps [N, L, 2 + T] for an axis of L voxels",
            )),
        }
    }

    fn dispatches(&self, io: &mut Io, _: &Caps) -> Result<Vec<Dispatch>, GraphError> {
        use BufferRef::*;
        let (x, taps) = (&io.inputs[0].shape, &io.inputs[1].shape);
        let count: usize = x.iter().product();
        Ok(vec![Dispatch {
            params: Params {
                count: int(count),
                item: int(x[1..].iter().product()),
                inner: int(x[self.axis + 1..].iter().product()),
                length: int(x[self.axis]),
                row: int(taps[2]),
            }
            .into(),
            bindings: vec![read(Input(0)), read(Input(1)), write(Output(0))],
            workgroups: linear_groups(count, 64),
            iterations: taps[2] as u64,
            flops: (count * 2) as u64,
            ..Dispatch::new(shader!("axis_filter"; Params), "main")
        }])
    }

    fn reference(&self, inputs: &[&Tensor], _: &StepScalars) -> Vec<Tensor> {
        let (x, taps) = (inputs[0], inputs[1]);
        let item: usize = x.shape[1..].iter().product();
        let inner: usize = x.shape[self.axis + 1..].iter().product();
        let (length, row) = (x.shape[self.axis], taps.shape[2]);
        vec![Tensor::from_fn(&x.shape, |i| {
            let at = i / inner % length;
            let taps = &taps.data[(i / item * length + at) * row..][..row];
            let (first, count) = (taps[0] as i64, taps[1] as usize);
            let sum: f64 = (0..count)
                .map(|t| {
                    let from = (first + t as i64).clamp(0, length as i64 - 1) as usize;
                    taps[2 + t] as f64 * x.data[i - at * inner + from * inner] as f64
                })
                .sum();
            sum as f32
        })]
    }
}

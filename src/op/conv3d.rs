//! 3-D convolution of any kernel, stride, padding, dilation and groups, and its gradients.
//!
//! `y[n, o, p] = b[o] + Σ_{c, k} w[o, c, k] · x[n, c, p·stride + k·dilation − padding]`: PyTorch's `conv3d`, zero padding.
//! The input is a list of sources that count as concatenated along the channels; nothing copies them into one map.

mod kernels;
mod labels;
mod reference;
mod transpose;

use super::*;
use kernels::{Axis, Lattice, SumVariant, WeightGradient};
pub use labels::Conv3dLabels;
pub use transpose::{ConvTranspose3d, conv_transpose3d};

/// Weights of an output channel up to which a convolution is computed again rather than kept.
const CHEAP: usize = 32;

/// Stride, padding and dilation by axis (D, H, W), and groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv3dConfig {
    /// Input voxels between neighbouring outputs.
    pub stride: [usize; 3],
    /// Zeros before the first and after the last voxel.
    pub padding: [usize; 3],
    /// Input voxels between neighbouring taps.
    pub dilation: [usize; 3],
    /// Output channels of a group see only the input channels of that group.
    pub groups: usize,
}

impl Default for Conv3dConfig {
    fn default() -> Self {
        Conv3dConfig {
            stride: [1; 3],
            padding: [0; 3],
            dilation: [1; 3],
            groups: 1,
        }
    }
}

impl Conv3dConfig {
    /// A cubic kernel of odd size `k` that keeps the size at stride 1: padding k / 2.
    pub fn same(k: usize, stride: usize) -> Self {
        Conv3dConfig {
            stride: [stride; 3],
            padding: [k / 2; 3],
            ..Default::default()
        }
    }

    /// Whether there can be such a convolution.
    fn check(&self) -> Result<(), String> {
        let Conv3dConfig {
            stride,
            dilation,
            groups,
            ..
        } = self;
        match stride.contains(&0) || dilation.contains(&0) || *groups == 0 {
            true => Err(format!(
                "stride {stride:?}, dilation {dilation:?} and groups {groups} must be at least 1"
            )),
            false => Ok(()),
        }
    }

    /// The numbers of ONNX's Conv and ConvTranspose, for a weight of that shape.
    #[cfg(feature = "onnx")]
    fn attributes(&self, weight: &Spec) -> Vec<Attribute<'static>> {
        let pads = [self.padding; 2].concat();
        vec![
            Attribute::Ints("kernel_shape", onnx::ints(weight.shape[2..].iter().copied())),
            Attribute::Ints("strides", onnx::ints(self.stride)),
            Attribute::Ints("pads", onnx::ints(pads)),
            Attribute::Ints("dilations", onnx::ints(self.dilation)),
            Attribute::Int("group", self.groups as i64),
        ]
    }

    /// Output size on an axis, `None` where the kernel does not fit.
    fn output(&self, axis: usize, size: usize, kernel: usize) -> Option<usize> {
        let reach = self.dilation[axis] * kernel.checked_sub(1)? + 1;
        Some((size + 2 * self.padding[axis]).checked_sub(reach)? / self.stride[axis] + 1)
    }
}

/// Adds a convolution of the concatenation of `sources` (maps, or flat images) `[N, Cᵢ, D, H, W]` with `weight`
/// `[Cout, ΣCᵢ / groups, KD, KH, KW]` and, if any, `bias` `[Cout]`. The result is a map.
pub fn conv3d(
    graph: &mut Graph,
    sources: &[Value],
    weight: Value,
    bias: Option<Value>,
    config: Conv3dConfig,
) -> Result<Value, GraphError> {
    let inputs: Vec<Value> = sources.iter().copied().chain([weight]).chain(bias).collect();
    let op = Conv3d {
        config,
        bias: bias.is_some(),
        slope: None,
    };
    graph.push1(op, &inputs)
}

/// The convolution. Inputs: one or more sources, the weight, the bias if there is one.
#[derive(Clone, Copy, Debug)]
pub struct Conv3d {
    /// Stride, padding, dilation, groups.
    pub config: Conv3dConfig,
    /// Whether the last input is a bias.
    pub bias: bool,
    /// Slope of the leaky ReLU behind it; `None` for none. Plans put it there: such a convolution has no gradient.
    pub slope: Option<f32>,
}

impl Conv3d {
    /// Number of sources among `inputs` inputs.
    pub(crate) fn sources(&self, inputs: usize) -> usize {
        inputs.saturating_sub(1 + self.bias as usize)
    }

    /// The sums and their kernels: one of all sources where a kernel takes them together, else one of each.
    fn sums(&self, io: &Io, caps: &Caps) -> Vec<(Lattice, SumVariant)> {
        let count = self.sources(io.inputs.len());
        let sum = |sources: Range<usize>| {
            let lattice = self.lattice(io.inputs, &io.outputs[0], sources);
            let variant = lattice.variant(io.in_place, caps);
            (lattice, variant)
        };
        match sum(0..count) {
            joined @ (_, SumVariant::Winograd) => vec![joined],
            _ => (0..count).map(|i| sum(i..i + 1)).collect(),
        }
    }

    /// Of some of the sources among these inputs, for outputs of that shape.
    fn lattice(&self, inputs: &[Spec], y: &Spec, sources: Range<usize>) -> Lattice {
        let count = self.sources(inputs.len());
        let weight = inputs[count].ncdhw().expect("checked on insertion");
        let size = y.ncdhw().expect("checked on insertion");
        let channels = |sources: Range<usize>| inputs[sources].iter().map(|s| s.shape[1]).sum();
        let first = sources.start;
        Lattice {
            op: "conv3d",
            axes: [0, 1, 2].map(|a| Axis::forward(&self.config, a, size[2 + a], weight[2 + a])),
            x: (BufferRef::Input(first), inputs[first].clone()),
            more: (first + 1..sources.end)
                .map(|i| (BufferRef::Input(i), inputs[i].clone()))
                .collect(),
            y: (BufferRef::Output(0), y.clone()),
            labels: None,
            weight: (BufferRef::Input(count), weight),
            bias: (self.bias && first == 0).then_some(BufferRef::Input(count + 1)),
            transposed: false,
            source: (channels(0..first), channels(sources.clone())),
            whole: count == 1,
            groups: self.config.groups,
            add: first > 0,
            slope: self.slope.filter(|_| sources.end == count).unwrap_or(1.0),
        }
    }
}

impl Op for Conv3d {
    fn name(&self) -> &'static str {
        "conv3d"
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>, GraphError> {
        let wrong = |reason: String| GraphError::shape("conv3d", inputs, reason);
        let error = |reason: String| Err(wrong(reason));
        let count = self.sources(inputs.len());
        if count == 0 {
            return error("takes one or more sources and a weight".into());
        }
        self.config.check().map_err(wrong)?;
        let groups = self.config.groups;
        let Some([n, _, d, h, w]) = inputs[0].ncdhw() else {
            return error("sources have five axes, [N, C, D, H, W]".into());
        };
        let mut channels = 0;
        for source in &inputs[..count] {
            match source.ncdhw() {
                Some(s) if [s[0], s[2], s[3], s[4]] == [n, d, h, w] && s[1] > 0 => channels += s[1],
                _ => return error("sources have the same N, D, H and W".into()),
            }
        }
        let Some([out, each, kd, kh, kw]) = inputs[count]
            .ncdhw()
            .filter(|_| inputs[count].layout == Layout::Flat)
        else {
            return error("the weight is flat with five axes, [Cout, Cin / groups, KD, KH, KW]".into());
        };
        if out == 0 || out % groups != 0 || each * groups != channels {
            return error(format!(
                "{channels} channels in {groups} groups want a weight [Cout, {channels} / {groups}, KD, KH, KW] with Cout \
                 a multiple of {groups}"
            ));
        }
        if self.bias && inputs[count + 1] != Spec::flat(&[out]) {
            return error(format!("the bias is flat, [{out}]"));
        }
        let size = [(d, kd), (h, kh), (w, kw)];
        let fit: Option<Vec<usize>> = (0..3)
            .map(|a| self.config.output(a, size[a].0, size[a].1))
            .collect();
        match fit {
            Some(s) => Ok(vec![Spec::map([n, out, s[0], s[1], s[2]])]),
            None => error(format!(
                "the kernel reaches beyond the input padded by {:?} on each side",
                self.config.padding
            )),
        }
    }

    fn dispatches(&self, io: &mut Io, caps: &Caps) -> Result<Vec<Dispatch>, GraphError> {
        kernels::dispatches(self.sums(io, caps), io, caps)
    }

    fn variant(&self, io: &Io, caps: &Caps) -> &'static str {
        kernels::name(&self.sums(io, caps))
    }

    fn gradient(
        &self,
        graph: &mut Graph,
        node: &NodeView,
        upstream: &[Option<Value>],
        wanted: &[bool],
    ) -> Result<Vec<Gradient>, GraphError> {
        let upstream = upstream[0].expect("the one output has a gradient");
        if self.slope.is_some() {
            let reason = "conv3d with a leaky ReLU is for plans: add leaky_relu behind a convolution".into();
            return Err(GraphError::Name(reason));
        }
        let count = self.sources(node.inputs.len());
        let (sources, weight) = (&node.inputs[..count], node.inputs[count]);
        let config = self.config;
        let mut gradients = vec![Gradient::Stops; node.inputs.len()];
        // The weight and bias first: they are the last readers of the sources, and their outputs are small.
        if wanted[count] {
            let inputs: Vec<Value> = sources.iter().copied().chain([upstream]).collect();
            let op = Conv3dWeightGradient {
                config,
                weight: graph.shape(weight).to_vec(),
            };
            gradients[count] = Gradient::Flows(graph.push1(op, &inputs)?);
        }
        if self.bias && wanted[count + 1] {
            gradients[count + 1] = Gradient::Flows(graph.push1(Conv3dBiasGradient, &[upstream])?);
        }
        let mut first = 0;
        for i in 0..count {
            let source = graph.spec(sources[i]).clone();
            let channels = source.shape[1];
            if wanted[i] {
                let op = Conv3dInputGradient {
                    config,
                    first,
                    whole: count == 1,
                    source,
                };
                gradients[i] = Gradient::Flows(graph.push1(op, &[upstream, weight])?);
            }
            first += channels;
        }
        Ok(gradients)
    }

    #[cfg(feature = "onnx")]
    fn onnx(&self, to: &mut onnx::Writer, call: &onnx::Call) -> Result<Vec<String>, String> {
        let (sources, rest) = call.inputs.split_at(self.sources(call.inputs.len()));
        let x = to.concat(sources);
        let inputs: Vec<&str> = [&x].into_iter().chain(rest).map(String::as_str).collect();
        let y = to.node(
            "Conv",
            &inputs,
            self.config.attributes(&call.specs[sources.len()]),
        );
        Ok(vec![to.leaky(y, self.slope)])
    }

    fn reference(&self, inputs: &[&Tensor], _: &StepScalars) -> Vec<Tensor> {
        let count = self.sources(inputs.len());
        let x = reference::concatenate(&inputs[..count]);
        let bias = self.bias.then(|| inputs[count + 1]);
        let mut y = reference::forward(&self.config, &x, inputs[count], bias);
        if let Some(slope) = self.slope {
            y.data.iter_mut().filter(|v| **v <= 0.0).for_each(|v| *v *= slope);
        }
        vec![y]
    }

    /// Of an image, with few weights an output: the image is small beside the map and there anyway.
    fn rematerialise(&self, node: &NodeView, inputs: &[Spec]) -> Option<(Arc<dyn Op>, Vec<Value>)> {
        let (sources, rest) = inputs.split_at(self.sources(inputs.len()));
        let few = rest[0].shape[1..].iter().product::<usize>() <= CHEAP;
        let cheap = few && sources.iter().all(|s| s.layout == Layout::Flat);
        cheap.then(|| (Arc::new(*self) as Arc<dyn Op>, node.inputs.clone()))
    }

    fn reads(&self, inputs: &[Spec], outputs: &[Spec], planes: Range<usize>) -> Option<Reads> {
        let count = self.sources(inputs.len());
        let axis = Axis::forward(&self.config, 0, outputs[0].shape[2], inputs[count].shape[2]);
        let seen = |s: &Spec| s.plane_bytes().map(|_| axis.planes_seen(&planes, s.shape[2]));
        let mut reads: Vec<_> = inputs[..count].iter().map(seen).collect();
        reads.resize(inputs.len(), None);
        Some(reads)
    }

    fn overwrites(&self, inputs: &[Spec], outputs: &[Spec], _: &Caps) -> Option<usize> {
        let weight = inputs[self.sources(inputs.len())].ncdhw()?;
        let axes = [0, 1, 2].map(|a| Axis::forward(&self.config, a, outputs[0].shape[2 + a], weight[2 + a]));
        let one = self.sources(inputs.len()) == 1;
        (one && kernels::in_place(&axes, &inputs[0], &outputs[0], self.config.groups)).then_some(0)
    }
}

/// Gradient of a convolution with respect to one source:
/// dx[n, c, q] = Σ_{o, k: p·stride + k·dilation − padding = q} w[o, c, k] · dy[n, o, p]. Inputs: dy, the weight.
#[derive(Debug)]
pub struct Conv3dInputGradient {
    /// The convolution's.
    pub config: Conv3dConfig,
    /// Position of the source's first channel among the concatenated channels.
    pub first: usize,
    /// Whether the source is the convolution's only one.
    pub whole: bool,
    /// The source's shape; a map.
    pub source: Spec,
}

impl Conv3dInputGradient {
    /// By axis, a lattice for each residue modulo the stride.
    fn axes(&self, inputs: &[Spec]) -> [Vec<Axis>; 3] {
        let size = &self.source.shape[2..];
        let kernel = &inputs[1].shape[2..];
        [0, 1, 2].map(|a| Axis::gradient(&self.config, a, size[a], kernel[a]))
    }

    fn sums(&self, io: &Io, caps: &Caps) -> Vec<(Lattice, SumVariant)> {
        let of = Transposed {
            op: self.name(),
            config: &self.config,
            source: (self.first, self.source.shape[1]),
            whole: self.whole,
            bias: None,
        };
        of.sums(self.axes(io.inputs), io, caps)
    }
}

/// What scatters input 0 by the weight, input 1: an input gradient, or a transposed convolution.
struct Transposed<'a> {
    op: &'static str,
    config: &'a Conv3dConfig,
    /// See [`Lattice::source`].
    source: (usize, usize),
    whole: bool,
    bias: Option<BufferRef>,
}

impl Transposed<'_> {
    /// A sum for each combination of residues, with its kernels.
    fn sums(&self, [z, y, x]: [Vec<Axis>; 3], io: &Io, caps: &Caps) -> Vec<(Lattice, SumVariant)> {
        let weight = io.inputs[1].ncdhw().expect("checked on insertion");
        let rows = z.iter().flat_map(|z| y.iter().map(move |y| (*z, *y)));
        let axes = rows.flat_map(|(z, y)| x.iter().map(move |x| [z, y, *x]));
        axes.map(|axes| {
            let lattice = Lattice {
                op: self.op,
                axes,
                x: (BufferRef::Input(0), io.inputs[0].clone()),
                more: Vec::new(),
                y: (BufferRef::Output(0), io.outputs[0].clone()),
                labels: None,
                weight: (BufferRef::Input(1), weight),
                bias: self.bias,
                transposed: true,
                source: self.source,
                whole: self.whole,
                groups: self.config.groups,
                add: false,
                slope: 1.0,
            };
            let variant = lattice.variant(io.in_place, caps);
            (lattice, variant)
        })
        .collect()
    }
}

impl Op for Conv3dInputGradient {
    fn name(&self) -> &'static str {
        "conv3d input gradient"
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>, GraphError> {
        if self.source.layout != Layout::Map {
            let reason = "a flat image gets no gradient: turn it into a map before the convolution";
            return Err(GraphError::shape(self.name(), inputs, reason));
        }
        Ok(vec![self.source.clone()])
    }

    fn dispatches(&self, io: &mut Io, caps: &Caps) -> Result<Vec<Dispatch>, GraphError> {
        kernels::dispatches(self.sums(io, caps), io, caps)
    }

    fn variant(&self, io: &Io, caps: &Caps) -> &'static str {
        kernels::name(&self.sums(io, caps))
    }

    fn reads(&self, inputs: &[Spec], _: &[Spec], planes: Range<usize>) -> Option<Reads> {
        let axes = self.axes(inputs);
        let [axis] = axes[0][..] else { return None };
        let one = axes.iter().all(|a| a.len() == 1) && axis.is_whole();
        one.then(|| vec![Some(axis.planes_seen(&planes, inputs[0].shape[2])), None])
    }

    fn overwrites(&self, inputs: &[Spec], outputs: &[Spec], _: &Caps) -> Option<usize> {
        let axes = self.axes(inputs).map(|a| a[0]);
        let whole = self.whole && self.config.stride == [1; 3];
        (whole && kernels::in_place(&axes, &inputs[0], &outputs[0], self.config.groups)).then_some(0)
    }

    fn reference(&self, inputs: &[&Tensor], _: &StepScalars) -> Vec<Tensor> {
        vec![reference::input_gradient(
            &self.config,
            &self.source.shape,
            self.first,
            inputs[0],
            inputs[1],
        )]
    }
}

/// Gradient of a convolution with respect to its weight:
/// dw[o, c, k] = Σ_{n, p} dy[n, o, p] · x[n, c, p·stride + k·dilation − padding]. Inputs: the sources, dy.
#[derive(Debug)]
pub struct Conv3dWeightGradient {
    /// The convolution's.
    pub config: Conv3dConfig,
    /// The weight's shape `[Cout, Cin / groups, KD, KH, KW]`.
    pub weight: Vec<usize>,
}

impl Conv3dWeightGradient {
    /// The gradient of the weights of each source.
    fn by_source(&self, io: &Io) -> Vec<WeightGradient> {
        let (g_spec, sources) = io.inputs.split_last().expect("sources and an upstream gradient");
        let weight: [usize; 5] = self.weight.as_slice().try_into().expect("checked on insertion");
        let g = g_spec.ncdhw().expect("checked on insertion");
        let mut first = 0;
        let of = |(i, source): (usize, &Spec)| {
            let channels = source.shape[1];
            first += channels;
            WeightGradient {
                op: self.name(),
                axes: [0, 1, 2].map(|a| Axis::forward(&self.config, a, g[2 + a], weight[2 + a])),
                x: (BufferRef::Input(i), source.clone()),
                g: (BufferRef::Input(sources.len()), g_spec.clone()),
                weight,
                source: (first - channels, channels),
                whole: sources.len() == 1,
                groups: self.config.groups,
            }
        };
        sources.iter().enumerate().map(of).collect()
    }
}

impl Op for Conv3dWeightGradient {
    fn name(&self) -> &'static str {
        "conv3d weight gradient"
    }

    fn outputs(&self, _: &[Spec]) -> Result<Vec<Spec>, GraphError> {
        Ok(vec![Spec::flat(&self.weight)])
    }

    fn dispatches(&self, io: &mut Io, caps: &Caps) -> Result<Vec<Dispatch>, GraphError> {
        let mut dispatches = Vec::new();
        for gradient in self.by_source(io) {
            dispatches.extend(gradient.dispatches(gradient.variant(caps), io, caps)?);
        }
        Ok(dispatches)
    }

    fn variant(&self, io: &Io, caps: &Caps) -> &'static str {
        self.by_source(io)[0].variant(caps).name()
    }

    fn reads(&self, inputs: &[Spec], _: &[Spec], planes: Range<usize>) -> Option<Reads> {
        let (g, sources) = inputs.split_last()?;
        let axis = Axis::forward(&self.config, 0, g.shape[2], self.weight[2]);
        let seen = |s: &Spec| s.plane_bytes().map(|_| axis.planes_seen(&planes, s.shape[2]));
        Some(sources.iter().map(seen).chain([Some(planes.clone())]).collect())
    }

    /// Planes of dy.
    fn planes(&self, inputs: &[Spec], _: &[Spec]) -> usize {
        inputs.last().map_or(1, Spec::planes)
    }

    fn reference(&self, inputs: &[&Tensor], _: &StepScalars) -> Vec<Tensor> {
        let (g, sources) = inputs.split_last().expect("sources and an upstream gradient");
        let x = reference::concatenate(sources);
        vec![reference::weight_gradient(&self.config, &self.weight, &x, g)]
    }
}

/// Gradient of a convolution with respect to its bias: `db[o] = Σ_{n, p} dy[n, o, p]`. Input: dy, a map.
#[derive(Debug)]
pub struct Conv3dBiasGradient;

impl Op for Conv3dBiasGradient {
    fn name(&self) -> &'static str {
        "conv3d bias gradient"
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>, GraphError> {
        match inputs {
            [g] if g.layout == Layout::Map => Ok(vec![Spec::flat(&[g.shape[1]])]),
            _ => Err(GraphError::shape(self.name(), inputs, "takes one map")),
        }
    }

    fn dispatches(&self, io: &mut Io, caps: &Caps) -> Result<Vec<Dispatch>, GraphError> {
        Ok(kernels::bias_gradient(io, caps))
    }

    fn variant(&self, _: &Io, caps: &Caps) -> &'static str {
        kernels::bias_variant(caps)
    }

    fn reference(&self, inputs: &[&Tensor], _: &StepScalars) -> Vec<Tensor> {
        let [n, c, d, h, w] = inputs[0].ncdhw();
        let volume = d * h * w;
        let sum = |c: usize| -> f64 {
            (0..n)
                .flat_map(|i| &inputs[0].data[(i * n_stride(volume, inputs[0]) + c * volume)..][..volume])
                .map(|v| *v as f64)
                .sum()
        };
        vec![Tensor::from_fn(&[c], |c| sum(c) as f32)]
    }
}

fn n_stride(volume: usize, tensor: &Tensor) -> usize {
    volume * tensor.shape[1]
}

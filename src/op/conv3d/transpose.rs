//! 3-D transposed convolution and its gradients, which are a convolution's: what a convolution's input gradient computes, with
//! a bias.

use super::kernels::{self, Axis, Lattice, SumVariant};
use super::*;

/// The output's size on an axis; `None` where there is none.
fn output(config: &Conv3dConfig, axis: usize, size: usize, kernel: usize, more: usize) -> Option<usize> {
    let reach = config.dilation[axis] * kernel.checked_sub(1)? + 1;
    let whole = size.checked_sub(1)? * config.stride[axis] + reach + more;
    whole
        .checked_sub(2 * config.padding[axis])
        .filter(|size| *size > 0)
}

/// Adds a transposed convolution of a map `[N, Cin, D, H, W]` with `weight` `[Cin, Cout / groups, KD, KH, KW]` and, if any, `bias`
/// `[Cout]`: `y[n, o, q] = b[o] + Σ_{c, k, p: p·stride + k·dilation − padding = q} w[c, o, k] · x[n, c, p]`, PyTorch's
/// `conv_transpose3d`. An axis of size D becomes (D − 1)·stride − 2·padding + dilation·(K − 1) + 1 + `more`, PyTorch's
/// `output_padding`, which is below the stride. The result is a map.
pub fn conv_transpose3d(
    graph: &mut Graph,
    x: Value,
    weight: Value,
    bias: Option<Value>,
    config: Conv3dConfig,
    more: [usize; 3],
) -> Result<Value, GraphError> {
    let inputs: Vec<Value> = [x, weight].into_iter().chain(bias).collect();
    let op = ConvTranspose3d {
        config,
        more,
        bias: bias.is_some(),
    };
    graph.push1(op, &inputs)
}

/// The transposed convolution. Inputs: x, the weight, the bias if there is one.
#[derive(Clone, Copy, Debug)]
pub struct ConvTranspose3d {
    /// Stride, padding, dilation and groups of the convolution whose input gradient this is.
    pub config: Conv3dConfig,
    /// Rows that no output of that convolution sees, behind the last on each axis.
    pub more: [usize; 3],
    /// Whether the last input is a bias.
    pub bias: bool,
}

impl ConvTranspose3d {
    /// By axis, a lattice for each residue modulo the stride.
    fn axes(&self, inputs: &[Spec], outputs: &[Spec]) -> [Vec<Axis>; 3] {
        let (size, kernel) = (&outputs[0].shape[2..], &inputs[1].shape[2..]);
        [0, 1, 2].map(|a| Axis::gradient(&self.config, a, size[a], kernel[a]))
    }

    fn sums(&self, io: &Io, caps: &Caps) -> Vec<(Lattice, SumVariant)> {
        let of = Transposed {
            op: self.name(),
            config: &self.config,
            source: (0, io.outputs[0].shape[1]),
            whole: true,
            bias: self.bias.then_some(BufferRef::Input(2)),
        };
        of.sums(self.axes(io.inputs, io.outputs), io, caps)
    }
}

impl Op for ConvTranspose3d {
    fn name(&self) -> &'static str {
        "conv_transpose3d"
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>, GraphError> {
        let wrong = |reason: String| GraphError::shape("conv_transpose3d", inputs, reason);
        let error = |reason: String| Err(wrong(reason));
        self.config.check().map_err(wrong)?;
        let Conv3dConfig { stride, groups, .. } = self.config;
        if (0..3).any(|a| self.more[a] >= stride[a]) {
            return error(format!(
                "output padding {:?} must be below the stride {stride:?}",
                self.more
            ));
        }
        if inputs.len() != 2 + self.bias as usize {
            return error("takes a map, a weight and perhaps a bias".into());
        }
        let Some([n, channels, d, h, w]) = inputs[0].ncdhw().filter(|_| inputs[0].layout == Layout::Map)
        else {
            return error("the input is a map [N, Cin, D, H, W]".into());
        };
        let fits = |weight: &Spec| {
            weight.layout == Layout::Flat && weight.shape[0] == channels && channels.is_multiple_of(groups)
        };
        let Some([_, each, kd, kh, kw]) = inputs[1].ncdhw().filter(|_| fits(&inputs[1])) else {
            return error(format!(
                "{channels} channels in {groups} groups want a flat weight [{channels}, Cout / {groups}, KD, KH, KW]"
            ));
        };
        if each == 0 {
            return error("the weight has no outputs".into());
        }
        if self.bias && inputs[2] != Spec::flat(&[each * groups]) {
            return error(format!("the bias is flat, [{}]", each * groups));
        }
        let size = [(d, kd), (h, kh), (w, kw)];
        let fit: Option<Vec<usize>> = (0..3)
            .map(|a| output(&self.config, a, size[a].0, size[a].1, self.more[a]))
            .collect();
        match fit {
            Some(s) => Ok(vec![Spec::map([n, each * groups, s[0], s[1], s[2]])]),
            None => error(format!(
                "the padding {:?} leaves nothing of the output",
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
        let (x, weight) = (node.inputs[0], node.inputs[1]);
        let mut gradients = vec![Gradient::Stops; node.inputs.len()];
        if wanted[1] {
            let op = Conv3dWeightGradient {
                config: self.config,
                weight: graph.shape(weight).to_vec(),
            };
            gradients[1] = Gradient::Flows(graph.push1(op, &[upstream, x])?);
        }
        if self.bias && wanted[2] {
            gradients[2] = Gradient::Flows(graph.push1(Conv3dBiasGradient, &[upstream])?);
        }
        if wanted[0] {
            gradients[0] = Gradient::Flows(conv3d(graph, &[upstream], weight, None, self.config)?);
        }
        Ok(gradients)
    }

    #[cfg(feature = "onnx")]
    fn onnx(&self, to: &mut onnx::Writer, call: &onnx::Call) -> Result<Vec<String>, String> {
        let mut attributes = self.config.attributes(&call.specs[1]);
        attributes.push(Attribute::Ints("output_padding", onnx::ints(self.more)));
        Ok(vec![to.node("ConvTranspose", &call.inputs(), attributes)])
    }

    fn reference(&self, inputs: &[&Tensor], _: &StepScalars) -> Vec<Tensor> {
        let (xs, ws) = (inputs[0].ncdhw(), inputs[1].ncdhw());
        let size = [0, 1, 2].map(|a| {
            output(&self.config, a, xs[2 + a], ws[2 + a], self.more[a]).expect("checked on insertion")
        });
        let shape = [xs[0], ws[1] * self.config.groups, size[0], size[1], size[2]];
        let mut y = reference::input_gradient(&self.config, &shape, 0, inputs[0], inputs[1]);
        if self.bias {
            let volume: usize = size.iter().product();
            for (i, v) in y.data.iter_mut().enumerate() {
                *v += inputs[2].data[i / volume % shape[1]];
            }
        }
        vec![y]
    }
}

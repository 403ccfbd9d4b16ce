//! Sampling of an OBELISK layer (method section 1): trilinear values of an image at locations moved by trained offsets.

mod geometry;
mod image_gradient;
mod offset_gradient;
mod slopes;

use super::*;

pub(super) use geometry::{Geometry, Sampling, geometry};
pub use image_gradient::ObeliskImageGradient;
pub use offset_gradient::ObeliskOffsetGradient;
pub use slopes::ObeliskSlopeGradient;

const SHADER: Shader = shader!(
    "obelisk_sample",
    "common/divide",
    "common/obelisk",
    "common/trilinear",
    "common/fixed_point",
    "common/fixed_point_add"; Sampling);

/// Where an OBELISK layer samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Locations {
    /// A regular grid of this depth, height and width whose outer points are the centres of the outer voxels
    /// (align_corners = true); the only point of an axis lies at its middle.
    Grid([usize; 3]),
    /// The centres of the cells of a regular grid of this depth, height and width that divides the volume evenly, where
    /// upsampling takes its input to lie (align_corners = false).
    Cells([usize; 3]),
    /// At the points of a third input, flat `[N, S, 3]`: (x, y, z) with x along W, −1 and +1 at the centres of the
    /// outer voxels. The result has the grid `[1, 1, S]`.
    Points,
}

/// X[n, c·K + k, s] = I(n, c, p_s + o_k), or with two offsets a coefficient I(n, c, p_s + o_k0) − I(n, c, p_s + o_k1):
/// trilinear, corners outside the volume count as zero.
///
/// Inputs: image flat `[N, C, D, H, W]` or a map, offsets flat `[1, K, 1, 1, 3]` (unary) or `[1, K, 1, 2, 3]` (binary)
/// in normalised coordinates (x, y, z), and with [`Locations::Points`] the points. Output: a map `[N, C·K, d, h, w]`.
/// Gradients flow to the offsets and the image. At a cell border the offsets' gradient is that of the upper cell.
#[derive(Clone, Copy, Debug)]
pub struct ObeliskSample {
    /// The sampling locations p.
    pub locations: Locations,
    /// Store the slopes as well: a second output, a map `[N, 3 T·C·K, d, h, w]` of dX / do (channel (3 j + axis) C·K + c·K + k,
    /// T offsets a coefficient), from which [`ObeliskSlopeGradient`] sums the offsets' gradient without sampling the image a second
    /// time: three or six times X's memory. K must be a multiple of four.
    pub slopes: bool,
}

impl ObeliskSample {
    /// Without slopes.
    pub fn new(locations: Locations) -> Self {
        ObeliskSample {
            locations,
            slopes: false,
        }
    }
}

/// Kernels of a sampling.
#[derive(Clone, Copy, Debug, PartialEq)]
enum SampleVariant {
    /// Samples and slopes. Four channels of X have one image channel.
    Slopes,
    /// Four channels of X have one image channel: K is a multiple of four.
    Fours,
    /// Each channel of X looks up its own image channel and offset.
    Channels,
}

impl SampleVariant {
    fn new(op: &ObeliskSample, g: &Geometry) -> Self {
        match (op.slopes, g.k % 4) {
            (true, _) => SampleVariant::Slopes,
            (false, 0) => SampleVariant::Fours,
            (false, _) => SampleVariant::Channels,
        }
    }

    /// As plans print it.
    fn name(self) -> &'static str {
        match self {
            SampleVariant::Slopes => "slopes",
            SampleVariant::Fours => "fours",
            SampleVariant::Channels => "channels",
        }
    }
}

impl Op for ObeliskSample {
    fn name(&self) -> &'static str {
        "obelisk_sample"
    }

    fn outputs(&self, inputs: &[Spec]) -> Result<Vec<Spec>, GraphError> {
        let g = geometry(self.name(), inputs, self.locations)?;
        if !self.slopes {
            return Ok(vec![g.samples()]);
        }
        if !g.k.is_multiple_of(4) {
            let reason = "slopes are stored for a number of offsets that is a multiple of four";
            return Err(GraphError::shape(self.name(), inputs, reason));
        }
        Ok(vec![g.samples(), g.slopes()])
    }

    fn dispatches(&self, io: &mut Io, caps: &Caps) -> Result<Vec<Dispatch>, GraphError> {
        let g = geometry(self.name(), io.inputs, self.locations)?;
        let samples = g.samples();
        let slopes = self.slopes.then(|| g.slopes());
        let variant = SampleVariant::new(self, &g);
        let (entry, flops) = match variant {
            SampleVariant::Slopes => ("sample_slopes", 60),
            SampleVariant::Fours | SampleVariant::Channels => ("sample", 32),
        };
        let fours = ("FOURS", (variant != SampleVariant::Channels) as u32);
        let points = io.inputs.len() - 1; // the offsets stand in where there are none
        let together: Vec<&Spec> = [&samples].into_iter().chain(&slopes).collect();
        Ok(slices(&together, caps)
            .into_iter()
            .map(|run| {
                let count = run.count * g.grid[1] * g.grid[2];
                let invocations = count.next_multiple_of(8) * samples.blocks();
                Dispatch {
                    constants: [g.constants(), vec![fours]].concat(),
                    params: Sampling {
                        count: int(count),
                        first: int(run.first),
                        ..g.params(&io.inputs[0])
                    }
                    .into(),
                    bindings: [
                        read(BufferRef::Input(0)),
                        run.of(&samples, write(BufferRef::Output(0))),
                        read(BufferRef::Input(1)),
                        read(BufferRef::Input(points)),
                    ]
                    .into_iter()
                    .chain(slopes.iter().map(|s| run.of(s, write(BufferRef::Output(1)))))
                    .collect(),
                    workgroups: linear_groups(invocations, 64),
                    iterations: 6,
                    flops: (count * samples.blocks() * 4 * g.terms * flops) as u64,
                    ..Dispatch::new(SHADER, entry)
                }
            })
            .collect())
    }

    fn variant(&self, io: &Io, _: &Caps) -> &'static str {
        match geometry(self.name(), io.inputs, self.locations) {
            Ok(g) => SampleVariant::new(self, &g).name(),
            Err(_) => "",
        }
    }

    fn gradient(
        &self,
        graph: &mut Graph,
        node: &NodeView,
        upstream: &[Option<Value>],
        wanted: &[bool],
    ) -> Result<Vec<Gradient>, GraphError> {
        let ([Some(upstream)] | [Some(upstream), None]) = *upstream else {
            let reason = "obelisk_sample offers no gradient through its slopes as an output";
            return Err(GraphError::Name(reason.into()));
        };
        let locations = self.locations;
        let mut flows = vec![Gradient::Stops; node.inputs.len()];
        if wanted[0] {
            let image = graph.spec(node.inputs[0]).clone();
            let inputs = [&node.inputs[1..], &[upstream]].concat();
            let op = ObeliskImageGradient {
                locations,
                image,
                interleaved: false,
            };
            flows[0] = Gradient::Flows(graph.push1(op, &inputs)?);
        }
        if wanted[1] {
            let gradient = if self.slopes {
                let offsets = graph.spec(node.inputs[1]).clone();
                graph.push1(ObeliskSlopeGradient { offsets }, &[node.outputs[1], upstream])?
            } else {
                let inputs = [&node.inputs[..], &[upstream]].concat();
                graph.push1(ObeliskOffsetGradient { locations }, &inputs)?
            };
            flows[1] = Gradient::Flows(gradient);
        }
        Ok(flows)
    }

    fn reference(&self, inputs: &[&Tensor], _: &StepScalars) -> Vec<Tensor> {
        let g = self.host_geometry(inputs);
        let image = inputs[0];
        let mut output = Tensor::zeros(&g.samples().shape);
        let mut sums = vec![0f64; output.data.len()];
        let locations: usize = g.grid.iter().product();
        g.visit(inputs[1], inputs.get(2).copied(), |n, k, j, s, position| {
            let sign = if j == 0 { 1.0 } else { -1.0 };
            g.corners(position, |[z, y, x], weight, _| {
                for c in 0..g.c {
                    let at = ((n * g.c + c) * g.k + k) * locations + s;
                    sums[at] += sign * weight * image.at(n, c, z, y, x) as f64;
                }
            });
        });
        output.data = sums.into_iter().map(|v| v as f32).collect();
        if !self.slopes {
            return vec![output];
        }
        let mut slopes = Tensor::zeros(&g.slopes().shape);
        let mut sums = vec![0f64; slopes.data.len()];
        g.visit(inputs[1], inputs.get(2).copied(), |n, k, j, s, position| {
            let sign = if j == 0 { 1.0 } else { -1.0 };
            g.corners(position, |[z, y, x], _, along| {
                for c in 0..g.c {
                    for axis in 0..3 {
                        let term = n * 3 * g.terms + 3 * j + 2 - axis;
                        let extent = (g.size[axis] - 1) as f64;
                        let value = sign * image.at(n, c, z, y, x) as f64;
                        sums[((term * g.c + c) * g.k + k) * locations + s] +=
                            value * along[axis] * extent / 2.0;
                    }
                }
            });
        });
        slopes.data = sums.into_iter().map(|v| v as f32).collect();
        vec![output, slopes]
    }
}

impl ObeliskSample {
    fn host_geometry(&self, inputs: &[&Tensor]) -> Geometry {
        let specs: Vec<Spec> = inputs.iter().map(|t| Spec::flat(&t.shape)).collect();
        geometry("obelisk_sample", &specs, self.locations).expect("checked on insertion")
    }
}

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

    #[cfg(feature = "onnx")]
    fn onnx(&self, to: &mut onnx::Writer, call: &onnx::Call) -> Result<Vec<String>, String> {
        Ok(vec![sampled(to, call.inputs, call.specs, self.locations)?])
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

/// X in ONNX, of the image and offsets that come first among these inputs.
#[cfg(feature = "onnx")]
pub(super) fn sampled(
    to: &mut onnx::Writer,
    inputs: &[String],
    specs: &[Spec],
    locations: Locations,
) -> Result<String, String> {
    if locations == Locations::Points || specs[0].shape[0] != 1 {
        return Err("it is written for the grids of one scan only".into());
    }
    let g = geometry("obelisk_sample", &specs[..2], locations).map_err(|e| e.to_string())?;
    let grid = to.size(g.grid)?;
    let cells = match g.cells {
        true => Some(to.size(g.size)?),
        false => None,
    };
    let one = to.int64(&[1]);
    let each = to.node("Concat", &[&grid, &one], [Attribute::Int("axis", 0)]);
    let mut axes = Vec::new();
    for axis in [2, 1, 0] {
        let along = positions(to, &grid, cells.as_deref(), axis);
        let mut shape = [1; 4];
        shape[axis] = -1;
        let shape = to.int64(&shape);
        let along = to.reshape(&along, &[&shape]);
        axes.push(to.node("Expand", &[&along, &each], []));
    }
    let axes: Vec<&str> = axes.iter().map(String::as_str).collect();
    let points = to.node("Concat", &axes, [Attribute::Int("axis", 3)]);
    // K takes the place of the depth, so that the locations have two axes left.
    let (first, depth, last) = (to.int64(&[1, 1]), to.element(&grid, 0), to.int64(&[-1, 3]));
    let points = to.reshape(&points, &[&first, &depth, &last]);
    let mut terms = Vec::new();
    for term in 0..g.terms {
        let mut offsets = inputs[1].clone();
        if g.terms > 1 {
            let term = to.int64(&[term as i64]);
            offsets = to.node("Gather", &[&offsets, &term], [Attribute::Int("axis", 3)]);
        }
        let at = to.node("Add", &[&points, &offsets], []);
        let attributes = [
            Attribute::Text("mode", "linear"),
            Attribute::Text("padding_mode", "zeros"),
            Attribute::Int("align_corners", 1),
        ];
        terms.push(to.node("GridSample", &[&inputs[0], &at], attributes));
    }
    let x = match &terms[..] {
        [one] => one.clone(),
        _ => to.node("Sub", &[&terms[0], &terms[1]], []),
    };
    let channels = to.int64(&onnx::ints([1, g.c * g.k]));
    Ok(to.reshape(&x, &[&channels, &grid]))
}

/// Where a grid's points lie along an axis, −1 and +1 at the centres of the outer voxels; of cells, which divide an image of that
/// size, the middles. Sizes are int64 `[3]`.
#[cfg(feature = "onnx")]
fn positions(to: &mut onnx::Writer, grid: &str, cells: Option<&str>, axis: usize) -> String {
    let float = |to: &mut onnx::Writer, x: &str| {
        let kind = Attribute::Int("to", onnx::proto::FLOAT.into());
        to.node("Cast", &[x], [kind])
    };
    let points = to.element(grid, axis);
    let single = to.int64(&[]);
    let count = to.reshape(&points, &[&single]);
    let (from, step) = (to.integer(0), to.integer(1));
    let index = to.node("Range", &[&from, &count, &step], []);
    let (index, points) = (float(to, &index), float(to, &points));
    let [one, two] = [1.0, 2.0].map(|v| to.float(&[], &[v]));
    // From the first to the last, of which there may be but one.
    let step = |to: &mut onnx::Writer, count: &str| {
        let last = to.node("Sub", &[count, &one], []);
        let last = to.node("Max", &[&last, &one], []);
        to.node("Div", &[&two, &last], [])
    };
    if let Some(size) = cells {
        let half = to.float(&[], &[0.5]);
        let voxels = to.element(size, axis);
        let voxels = float(to, &voxels);
        let middle = to.node("Add", &[&index, &half], []);
        let cell = to.node("Div", &[&voxels, &points], []);
        let voxel = to.node("Mul", &[&middle, &cell], []);
        let voxel = to.node("Sub", &[&voxel, &half], []);
        let step = step(to, &voxels);
        let position = to.node("Mul", &[&voxel, &step], []);
        return to.node("Sub", &[&position, &one], []);
    }
    let step = step(to, &points);
    let position = to.node("Mul", &[&index, &step], []);
    let position = to.node("Sub", &[&position, &one], []);
    // The only point lies in the middle.
    let others = to.node("Sub", &[&points, &one], []);
    let several = to.node("Min", &[&others, &one], []);
    to.node("Mul", &[&position, &several], [])
}

impl ObeliskSample {
    fn host_geometry(&self, inputs: &[&Tensor]) -> Geometry {
        let specs: Vec<Spec> = inputs.iter().map(|t| Spec::flat(&t.shape)).collect();
        geometry("obelisk_sample", &specs, self.locations).expect("checked on insertion")
    }
}

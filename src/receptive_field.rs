//! The voxels that an output depends on. One walk over any graph: the gradient that flows from the output in the middle
//! back to the image. With fixed running statistics it is zero outside the receptive field and, but for coincidences and
//! units that a plain ReLU holds at zero, nowhere else.

use std::collections::HashMap;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rand_distr::{Distribution, StandardNormal};
use serde::Serialize;

use crate::gpu::{Device, Executable, Weights};
use crate::graph::{Graph, GraphError, Value};
use crate::model::{Builder, Network};
use crate::offsets::is_offset;
use crate::op::StepScalars;
use crate::plan::Plan;
use crate::predict::PredictError;
use crate::tensor::{Spec, Tensor};

/// What of an image `[D, H, W]` one output depends on.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ReceptiveField {
    /// Of what: a layer's offsets, or the network.
    pub of: String,
    /// Voxels along D, H, W of the smallest box that holds it.
    pub voxels: [usize; 3],
    /// The box in mm along D, H, W, where the spacing is known.
    pub mm: Option<[f64; 3]>,
    /// Whether it reaches the image's border along D, H, W, so that it may be larger in a larger image.
    pub reaches_border: [bool; 3],
    /// Share of the box's voxels that it holds: 1 for a dense kernel, little for a sparse one.
    pub density: f64,
}

impl ReceptiveField {
    /// Of a gradient `[N, C, D, H, W]`: the voxels where some channel's is not zero. An empty one is a box of 0 voxels.
    pub fn of_gradient(of: &str, gradient: &Tensor, spacing: Option<[f64; 3]>) -> ReceptiveField {
        let size: [usize; 3] = std::array::from_fn(|a| gradient.shape[a + 2]);
        let [d, h, w] = size;
        let mut seen = vec![false; d * h * w];
        for (i, value) in gradient.data.iter().enumerate() {
            seen[i % (d * h * w)] |= *value != 0.0;
        }
        let (mut low, mut high) = (size, [0; 3]);
        for (i, _) in seen.iter().enumerate().filter(|(_, seen)| **seen) {
            for (a, at) in [i / (h * w), i / w % h, i % w].into_iter().enumerate() {
                low[a] = low[a].min(at);
                high[a] = high[a].max(at + 1);
            }
        }
        let voxels: [usize; 3] = std::array::from_fn(|a| high[a].saturating_sub(low[a]));
        let count = seen.iter().filter(|seen| **seen).count();
        ReceptiveField {
            of: of.to_owned(),
            voxels,
            mm: spacing.map(|mm| std::array::from_fn(|a| voxels[a] as f64 * mm[a])),
            reaches_border: std::array::from_fn(|a| low[a] == 0 || high[a] == size[a]),
            density: count as f64 / voxels.iter().product::<usize>().max(1) as f64,
        }
    }
}

/// A network of `classes` for one image on a grid (D, H, W).
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// The network.
    pub network: &'a Network,
    /// Channels of the image.
    pub channels: usize,
    /// Classes, the background included.
    pub classes: usize,
    /// Voxels along D, H, W.
    pub grid: [usize; 3],
    /// Millimetres a voxel along D, H, W, where known.
    pub spacing: Option<[f64; 3]>,
    /// Parameters and states by name.
    pub tensors: &'a HashMap<String, Tensor>,
}

/// The receptive fields of each OBELISK layer, with the smoothing before it, and then of the network's logits; each of
/// the output in the middle. Costs a forward and a backward pass for each.
///
/// # Errors
/// A network that can't be built on the grid or planned on the device, and tensors that don't fit it.
pub async fn receptive_fields(
    device: &Device,
    subject: &Subject<'_>,
) -> Result<Vec<ReceptiveField>, PredictError> {
    let mut names: Vec<&String> = subject.tensors.keys().filter(|n| is_offset(n)).collect();
    names.sort();
    let mut fields = Vec::new();
    for name in names {
        fields.push(receptive_field(device, subject, Some(name)).await?);
    }
    fields.push(receptive_field(device, subject, None).await?);
    Ok(fields)
}

/// The receptive field of the layer whose offsets have that name, or of the network.
async fn receptive_field(
    device: &Device,
    subject: &Subject<'_>,
    offsets: Option<&str>,
) -> Result<ReceptiveField, PredictError> {
    let (graph, output) = gradient_graph(subject, offsets)?;
    let plan = Plan::new(&graph, device.caps())?;
    let weights = Weights::new(device, &plan, false).await?;
    weights.upload(device, subject.tensors)?;
    let executable = Executable::new(device, plan, &weights).await?;
    let [d, h, w] = subject.grid;
    // any image does where no unit is off; noise turns a plain ReLU's units on and off at random
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let image = Tensor::from_fn(&[1, subject.channels, d, h, w], |_| {
        StandardNormal.sample(&mut rng)
    });
    executable.upload(device, "image", &image)?;
    executable.upload(device, "upstream", &middle(&output))?;
    executable.submit(device, &StepScalars::default())?;
    let gradient = executable.read(device, "gradient").await?;
    let of = offsets.unwrap_or(subject.network.name);
    Ok(ReceptiveField::of_gradient(of, &gradient, subject.spacing))
}

/// A graph that keeps the gradient of Σ upstream · output to the image as `gradient`, and the output's spec.
fn gradient_graph(subject: &Subject, offsets: Option<&str>) -> Result<(Graph, Spec), GraphError> {
    let mut graph = Graph::new();
    let [d, h, w] = subject.grid;
    // a map, because a convolution gives no gradient to a flat image
    let image = graph.input("image", Spec::map([1, subject.channels, d, h, w]))?;
    let mut builder = Builder::new(&mut graph, false);
    let logits = subject.network.build(&mut builder, image, subject.classes)?;
    let output = match offsets {
        None => logits,
        Some(name) => layer_output(&graph, name)?,
    };
    let spec = graph.spec(output).clone();
    let upstream = graph.input("upstream", spec.clone())?;
    let gradient = graph.gradients_from(&[(output, upstream)], &[image])?[0]
        .ok_or_else(|| GraphError::Name(format!("{} does not depend on its image", subject.network.name)))?;
    graph.keep("gradient", gradient);
    Ok((graph, spec))
}

/// What the layer with these offsets computes.
fn layer_output(graph: &Graph, offsets: &str) -> Result<Value, GraphError> {
    let value = graph.find(offsets);
    let reads = |inputs: &[Value]| value.is_some_and(|v| inputs.contains(&v));
    let node = graph.nodes().iter().find(|node| reads(&node.inputs));
    node.map(|node| node.outputs[0])
        .ok_or_else(|| GraphError::Name(format!("no layer of the network has the offsets `{offsets}`")))
}

/// 1 in every channel at the middle of a map, 0 elsewhere.
fn middle(spec: &Spec) -> Tensor {
    let [d, h, w]: [usize; 3] = std::array::from_fn(|a| spec.shape[a + 2]);
    let at = ((d / 2) * h + h / 2) * w + w / 2;
    Tensor::from_fn(&spec.shape, |i| (i % (d * h * w) == at) as u8 as f32)
}

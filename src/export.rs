//! Models as ONNX files: the network's inference graph as it stands before plans change it, its weights, and what a program needs to
//! know to prepare scans and to make labels. docs/onnx.md describes the files.

use std::collections::{HashMap, HashSet};

use prost::Message;

use crate::dataset::Label;
use crate::graph::{Graph, GraphError, Source, Value};
use crate::model;
use crate::nnunet;
use crate::onnx::proto::{self, Extent};
use crate::onnx::{Attribute, Call, IMAGE, IR_VERSION, OPSET, Writer, described, ints, little_endian};
use crate::predict::inference_graph;
use crate::preprocess::{Channel, Intensity, Preprocessing};
use crate::tensor::{Spec, Tensor};
use crate::weights;

/// Bytes that a file of Protocol Buffers can have.
const MOST_BYTES: usize = i32::MAX as usize;
/// Two sizes by which a network for any size is known: graphs of both are the same.
const PROBES: [[usize; 3]; 2] = [[101, 87, 115], [93, 121, 75]];

/// Why a model has no ONNX file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// The network can't be built.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// An operation can't be written.
    #[error("{op}: {reason}")]
    Operation {
        /// Its name.
        op: &'static str,
        /// Why.
        reason: String,
    },
    /// A network whose layers depend on the image's size, for which there is none.
    #[error("{arch} is built for one size of image, and its record names none")]
    NoSize {
        /// Its name.
        arch: String,
    },
    /// Outputs of which the highest is no label.
    #[error("the outputs are regions that overlap, of which none is the label")]
    Regions,
    /// Weights without one that the network has.
    #[error("the weights lack `{name}` of shape {shape:?}")]
    Weight {
        /// The tensor.
        name: String,
        /// Its shape.
        shape: Vec<usize>,
    },
    /// More than a file can hold.
    #[error("the weights have {bytes} bytes, and an ONNX file holds 2 GiB")]
    TooLarge {
        /// Of all tensors.
        bytes: usize,
    },
}

/// A model as an ONNX file.
#[derive(Debug)]
pub struct Exported {
    /// The file.
    pub bytes: Vec<u8>,
    /// Shape of `image`; `None` for an axis of any length.
    pub image: [Option<usize>; 5],
    /// Channels of `logits`.
    pub outputs: usize,
    /// Names of the outputs.
    pub names: Vec<&'static str>,
}

/// A network with the weights of one file of this program. The image has the size `size`, else that of the preprocessing's grid, else
/// the only one that the network takes, else any. With `labels` there is an output of labels beside that of logits.
///
/// # Errors
/// A network that can't be built for that, weights that aren't there, more than a file can hold.
pub fn model(
    model: &weights::Model,
    size: Option<[usize; 3]>,
    labels: bool,
) -> Result<Exported, ExportError> {
    let network = &model::find(&model.info.arch)?;
    let mut info = model.info.clone();
    let fixed = network.fixed.map(|fixed| fixed.size);
    let size = size.or(info.preprocessing.grid).or(fixed);
    if info.preprocessing.grid.is_some() {
        info.preprocessing.grid = size;
    }
    let preprocessing = &info.preprocessing;
    let written = |size, probe| {
        let graph = inference_graph(network, preprocessing, size)?;
        let mut writer = Writer::new(probe);
        let logits = written(&graph, &mut writer, "")?;
        Ok::<_, ExportError>((graph, writer, logits))
    };
    let (graph, writer, logits) = match size {
        Some(size) => written(size, None)?,
        None => {
            let whichever = |_| ExportError::NoSize {
                arch: info.arch.clone(),
            };
            let [one, other] = PROBES.map(|size| {
                let size = [0, 1, 2].map(|axis| size[axis].next_multiple_of(network.multiple[axis]));
                written(size, Some(size))
            });
            let (one, other) = (one.map_err(whichever)?, other.map_err(whichever)?);
            if (&one.1.nodes, &one.1.constants) != (&other.1.nodes, &other.1.constants) {
                return Err(ExportError::NoSize { arch: info.arch });
            }
            one
        }
    };
    let file = File {
        name: &info.arch,
        about: about(preprocessing, size, network.multiple),
        record: serde_json::to_string(&info).expect("a record is JSON"),
        labels: &preprocessing.labels,
        channels: preprocessing.channels.len(),
        size,
        weights: weights_of(&graph, &writer, &model.tensors, "")?,
        writer,
        logits,
        classes: labels,
    };
    file.encode()
}

/// A network of nnU-Net's on a tile; of several folds the mean of their logits.
///
/// # Errors
/// As [`model()`], and labels of outputs that are regions.
pub fn nnunet(model: &nnunet::Model, labels: bool) -> Result<Exported, ExportError> {
    if labels && matches!(model.plan.labels, nnunet::Labels::Regions(_)) {
        return Err(ExportError::Regions);
    }
    let graph = nnunet::graph(&model.plan)?;
    let mut writer = Writer::new(None);
    let (mut each, mut weights) = (Vec::new(), Vec::new());
    for (name, tensors) in model.names.iter().zip(&model.folds) {
        let prefix = format!("{name}/");
        each.push(written(&graph, &mut writer, &prefix)?);
        weights.extend(weights_of(&graph, &writer, tensors, &prefix)?);
    }
    writer.scope = "folds".into();
    let logits = match &each[..] {
        [one] => one.clone(),
        _ => {
            let all: Vec<&str> = each.iter().map(String::as_str).collect();
            writer.node("Mean", &all, [])
        }
    };
    let names = model.plan.labels.names();
    let file = File {
        name: &model.plan.dataset,
        about: about_nnunet(&model.plan),
        record: model.record(),
        labels: names,
        channels: model.plan.channels.len(),
        size: Some(model.plan.patch),
        writer,
        weights,
        logits,
        classes: labels,
    };
    file.encode()
}

/// Writes the nodes that the kept logits depend on; names in the file begin with `prefix`. Returns the logits' name.
fn written(graph: &Graph, to: &mut Writer, prefix: &str) -> Result<String, ExportError> {
    let logits = graph.kept()[0].1;
    let mut needed = HashSet::from([logits]);
    for node in graph.nodes().iter().rev() {
        if node.outputs.iter().any(|v| needed.contains(v)) {
            needed.extend(&node.inputs);
        }
    }
    let mut names: HashMap<Value, String> = HashMap::new();
    for (value, info) in graph.parameters().chain(graph.states()) {
        names.insert(value, format!("{prefix}{}", info.name));
    }
    if let Some(image) = graph.find(IMAGE) {
        names.insert(image, IMAGE.into());
    }
    for node in graph.nodes() {
        if !node.outputs.iter().any(|v| needed.contains(v)) {
            continue;
        }
        let failed = |reason: String| ExportError::Operation {
            op: node.op.name(),
            reason,
        };
        let name = |value: &Value| {
            let missing = || failed("reads what is not written in ONNX".into());
            names.get(value).cloned().ok_or_else(missing)
        };
        let inputs: Vec<String> = node.inputs.iter().map(name).collect::<Result<_, _>>()?;
        let specs = |values: &[Value]| -> Vec<Spec> {
            let specs = values.iter().map(|v| graph.spec(*v).clone());
            specs.collect()
        };
        // Of the layer whose weights it has.
        let own = node.inputs.iter().map(|v| &graph.values()[v.index()]);
        let layer = own
            .filter(|info| matches!(info.source, Source::Parameter(_) | Source::State(_)))
            .map(|info| info.name.rsplit_once('.').map_or(&*info.name, |(layer, _)| layer))
            .next();
        to.scope = format!("{prefix}{}", layer.unwrap_or(node.op.name()));
        let call = Call {
            inputs: &inputs,
            specs: &specs(&node.inputs),
            outputs: &specs(&node.outputs),
        };
        let outputs = node.op.onnx(to, &call).map_err(failed)?;
        names.extend(node.outputs.iter().copied().zip(outputs));
    }
    Ok(names[&logits].clone())
}

/// The tensors of a graph that what was written reads, in order of declaration.
fn weights_of(
    graph: &Graph,
    writer: &Writer,
    tensors: &HashMap<String, Tensor>,
    prefix: &str,
) -> Result<Vec<proto::Tensor>, ExportError> {
    let read: HashSet<&str> = (writer.nodes.iter())
        .flat_map(|node| node.input.iter().map(String::as_str))
        .collect();
    let all = graph.parameters().chain(graph.states());
    let used = all.filter(|(_, info)| read.contains(&*format!("{prefix}{}", info.name)));
    used.map(|(_, info)| {
        let tensor = tensors.get(&info.name).filter(|t| t.shape == info.spec.shape);
        let tensor = tensor.ok_or_else(|| ExportError::Weight {
            name: info.name.clone(),
            shape: info.spec.shape.clone(),
        })?;
        Ok(proto::Tensor {
            dims: ints(tensor.shape.iter().copied()),
            data_type: proto::FLOAT,
            name: format!("{prefix}{}", info.name),
            raw_data: Some(little_endian(&tensor.data)),
        })
    })
    .collect()
}

/// What a file is made of.
struct File<'a> {
    name: &'a str,
    about: String,
    record: String,
    /// One a channel of the logits.
    labels: &'a [Label],
    channels: usize,
    /// `None` for any.
    size: Option<[usize; 3]>,
    writer: Writer,
    weights: Vec<proto::Tensor>,
    logits: String,
    /// Whether there is an output of labels.
    classes: bool,
}

impl File<'_> {
    fn encode(mut self) -> Result<Exported, ExportError> {
        let count = self.labels.len();
        self.rename();
        let axes = |channels: &[usize]| -> Vec<Extent> {
            let known = |n: usize| Extent::Known(n as i64);
            let space = (0..3).map(|a| match self.size {
                Some(size) => known(size[a]),
                None => Extent::Named(["depth", "height", "width"][a].into()),
            });
            let outer = [1].iter().chain(channels).map(|n| known(*n));
            outer.chain(space).collect()
        };
        let input = described(
            IMAGE,
            proto::FLOAT,
            axes(&[self.channels]),
            "[N, C, D, H, W]: the prepared scan, or a tile of it",
        );
        let mut outputs = vec![described(
            "logits",
            proto::FLOAT,
            axes(&[count]),
            "[N, L, D, H, W]: one channel a label, in the order of the metadata",
        )];
        let mut names = vec!["logits"];
        if self.classes {
            let about = "[N, D, H, W]: the index of the highest logit, the first of equal ones";
            outputs.push(described("labels", proto::INT64, axes(&[]), about));
            names.push("labels");
        }
        let mut initializer = self.weights;
        initializer.extend(self.writer.constants);
        let graph = proto::Graph {
            node: self.writer.nodes,
            name: self.name.into(),
            initializer,
            input: vec![input],
            output: outputs,
        };
        let entry = |key: &str, value: String| proto::Entry {
            key: key.into(),
            value,
        };
        let file = proto::Model {
            ir_version: Some(IR_VERSION),
            producer_name: "obelisk".into(),
            producer_version: env!("CARGO_PKG_VERSION").into(),
            doc_string: self.about,
            graph: Some(graph),
            opset_import: vec![proto::OperatorSet {
                domain: String::new(),
                version: Some(OPSET),
            }],
            metadata_props: vec![
                entry("record", self.record),
                entry(
                    "labels",
                    serde_json::to_string(self.labels).expect("labels are JSON"),
                ),
            ],
        };
        let bytes = file.encoded_len();
        if bytes > MOST_BYTES {
            return Err(ExportError::TooLarge { bytes });
        }
        let [d, h, w] = match self.size {
            Some(size) => size.map(Some),
            None => [None; 3],
        };
        Ok(Exported {
            bytes: file.encode_to_vec(),
            image: [Some(1), Some(self.channels), d, h, w],
            outputs: count,
            names,
        })
    }

    /// Gives the logits their name, and adds the labels.
    fn rename(&mut self) {
        let to = &mut self.writer;
        for node in &mut to.nodes {
            let names = node.input.iter_mut().chain(&mut node.output);
            names
                .filter(|name| **name == self.logits)
                .for_each(|name| *name = "logits".into());
        }
        if self.classes {
            to.scope = "labels".into();
            let attributes = [Attribute::Int("axis", 1), Attribute::Int("keepdims", 0)];
            to.node("ArgMax", &["logits"], attributes);
            let node = to.nodes.last_mut().expect("just added");
            node.output = vec!["labels".into()];
        }
    }
}

/// How scans become images and logits labels, in words; the record has the numbers.
fn about(preprocessing: &Preprocessing, size: Option<[usize; 3]>, multiple: [usize; 3]) -> String {
    let mut steps = Vec::new();
    if let Some(code) = preprocessing.orientation {
        steps.push(format!(
            "Flip and permute the scan's voxel axes to {code} (nibabel's axis codes): D, H, W."
        ));
    } else {
        steps.push(
            "Take the scan's voxel array as it is stored: D, H, W are its first, second and third axis."
                .into(),
        );
    }
    steps.push(format!(
        "Scale intensities: {}.",
        each(&preprocessing.channels).join("; ")
    ));
    if let Some(spacing) = preprocessing.spacing {
        steps.push(format!(
            "Resample linearly to {spacing:?} mm: round(voxels * own spacing / this) voxels an axis, half-pixel centres."
        ));
    }
    match (preprocessing.grid, size) {
        (Some(grid), _) => steps.push(format!(
            "Along axes of at most {grid:?} voxels, centre the scan and pad it with 0; along longer ones take tiles that overlap by \
             half, and weigh their logits by a Gaussian of an eighth of the tile."
        )),
        (None, Some(size)) => steps.push(format!("The network takes {size:?} voxels only.")),
        (None, None) if multiple != [1; 3] => {
            steps.push(format!("The network takes multiples of {multiple:?} voxels."));
        }
        (None, None) => {}
    }
    steps.push(
        "Cut the logits to the scan, resample them linearly to its grid, take the highest, give it the label's value, and turn back."
            .into(),
    );
    numbered(steps)
}

fn each(channels: &[Channel]) -> Vec<String> {
    let scaled = |channel: &Channel| {
        let how = match channel.intensity {
            Intensity::ZScore => "(v - mean) / standard deviation of the scan".to_owned(),
            Intensity::Linear { divisor, offset } => format!("v / {divisor} + {offset}"),
            Intensity::Range { low, high } => {
                format!("(v - a) / (b - a) with the quantiles a and b of the ranks {low} and {high}")
            }
        };
        format!("{}: {how}", channel.name)
    };
    channels.iter().map(scaled).collect()
}

fn about_nnunet(plan: &nnunet::Plan) -> String {
    let painted = match plan.labels {
        nnunet::Labels::Exclusive(_) => "the highest logit is the label",
        nnunet::Labels::Regions(_) => {
            "each channel whose sigmoid is above a half paints its value, in order, over what is there"
        }
    };
    numbered(vec![
        "Crop, normalise and resample the scan as nnU-Net v2 does by the plan in the record; D, H, W are its z, y, x, transposed by \
         the plan."
            .into(),
        format!(
            "Take tiles of {:?} voxels that overlap by half, mirrored along axes {:?} or not, and weigh their logits by a Gaussian of \
             an eighth of the tile.",
            plan.patch, plan.mirroring
        ),
        format!("Resample the logits to the cropped scan; {painted}."),
    ])
}

fn numbered(steps: Vec<String>) -> String {
    let lines = (1..).zip(steps).map(|(i, step)| format!("{i}. {step}"));
    lines.collect::<Vec<_>>().join("\n")
}

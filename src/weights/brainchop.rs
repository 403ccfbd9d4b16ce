//! brainchop's networks: a Keras graph in TensorFlow.js' layers format. A folder has model.json, the files of weights that
//! it names, and colormap.json with the labels.

use std::collections::HashMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value as Json;

use super::{Model, ModelInfo, WeightsError, check_numbers, recognise};
use crate::dataset::Label;
use crate::model::{MeshActivation, MeshNet};
use crate::preprocess::{Channel, Intensity, Preprocessing};
use crate::tensor::{Elements, Tensor};
use crate::volume::Orientation;

/// The graph's file.
const MODEL: &str = "model.json";
/// The labels' files.
const LABELS: [&str; 2] = ["colormap.json", "labels.json"];
/// Most bytes of such a file.
const MOST_JSON: u64 = 16 << 20;
/// Most bytes of weights: a thousand times those of the largest network.
const MOST_WEIGHTS: usize = 1 << 30;
/// Most files of weights, and most tensors in them.
const MOST_FILES: usize = 4096;

/// How brainchop scales intensities by the network's name; its files do not say it.
const INTENSITIES: [(&str, Intensity); 8] = [
    ("model5_gw_ae", Intensity::MIN_MAX),
    ("model11_gw_ae", Intensity::MIN_MAX),
    ("model11_50class", Intensity::MIN_MAX),
    ("model18cls", Intensity::MIN_MAX),
    ("model21_104class", Intensity::MIN_MAX),
    ("model30chan18cls", Intensity::MIN_MAX),
    ("model20chan3cls", QUANTILES),
    ("model30chan50cls", QUANTILES),
];

/// What brainchop calls quantile normalisation.
pub const QUANTILES: Intensity = Intensity::Range {
    low: 0.05,
    high: 0.95,
};

/// Whether a path is a folder with such a network, or its model.json.
pub fn is_one(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name == MODEL) || path.join(MODEL).is_file()
}

/// Reads a folder, or the folder of a model.json. `intensity` is for networks that are not brainchop's own.
pub(super) fn open(path: &Path, intensity: Option<Intensity>) -> Result<Model, WeightsError> {
    let folder = match path.is_dir() {
        true => path,
        false => path.parent().unwrap_or(path),
    };
    let name = std::path::absolute(folder).ok();
    let name = name.as_deref().and_then(Path::file_name).unwrap_or_default();
    from_files(folder, &name.to_string_lossy(), intensity, |file| {
        let path = folder.join(file);
        let length = std::fs::metadata(&path).map_err(WeightsError::io(&path))?.len();
        if length > MOST_WEIGHTS as u64 || (file.ends_with(".json") && length > MOST_JSON) {
            let reason = format!("has {length} bytes, more than a network of brainchop's");
            return Err(WeightsError::Format { path, reason });
        }
        std::fs::read(&path).map_err(WeightsError::io(&path))
    })
}

/// Reads a network `name` from files that `read` finds; `path` is for messages.
///
/// # Errors
/// Files that are missing, damaged or of another kind; layers that are not run here, by name; numbers that are not finite.
pub(super) fn from_files(
    path: &Path,
    name: &str,
    intensity: Option<Intensity>,
    read: impl Fn(&str) -> Result<Vec<u8>, WeightsError>,
) -> Result<Model, WeightsError> {
    let error = |file: &str, reason: String| WeightsError::Format {
        path: path.join(file),
        reason,
    };
    let file: File = serde_json::from_slice(&read(MODEL)?).map_err(|e| error(MODEL, e.to_string()))?;
    let wrong = |reason: String| error(MODEL, reason);
    let graph = Graph::read(&file.model_topology).map_err(wrong)?;

    let mut bytes = Vec::new();
    let mut wanted = Vec::new();
    let mut files = 0;
    for group in &file.weights_manifest {
        for file in &group.paths {
            files += 1;
            // Beside model.json, and nowhere else.
            let outside = file.contains(['/', '\\', ':']) || file == "..";
            if outside || files > MOST_FILES {
                return Err(wrong(format!(
                    "the file of weights `{}` is refused",
                    file.escape_debug()
                )));
            }
            bytes.extend(read(file)?);
            if bytes.len() > MOST_WEIGHTS {
                return Err(error(
                    file,
                    format!("its weights are more than {MOST_WEIGHTS} bytes"),
                ));
            }
        }
        wanted.extend(&group.weights);
    }
    let mut numbers = HashMap::new();
    let mut rest = &bytes[..];
    for weight in wanted {
        let name = weight.name.escape_debug();
        if weight.dtype != "float32" || weight.quantization.is_some() {
            return Err(wrong(format!(
                "the weights `{name}` are not stored as float32, which is what is read"
            )));
        }
        let count = Elements::of(&weight.shape).map(Elements::get);
        let part = count.and_then(|count| rest.split_at_checked(4 * count));
        let Some((own, behind)) = part else {
            return Err(wrong(format!(
                "`{name}` of {:?} does not fit the files of weights, which have {} bytes",
                weight.shape,
                bytes.len()
            )));
        };
        let values = own.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        numbers.insert(weight.name.as_str(), Tensor::new(&weight.shape, values));
        rest = behind;
    }
    if !rest.is_empty() {
        return Err(wrong(format!(
            "the files of weights have {} bytes more than it names",
            rest.len()
        )));
    }

    let mut tensors = HashMap::new();
    for (i, conv) in graph.convolutions.iter().enumerate() {
        let mut take = |part: &str| {
            let name = format!("{}/{part}", conv.name);
            let found = numbers.remove(name.as_str());
            found.ok_or_else(|| wrong(format!("the weights `{}` are missing", name.escape_debug())))
        };
        let kernel = take("kernel")?;
        let weight = outputs_first(&kernel).ok_or_else(|| {
            wrong(format!(
                "the kernel of `{}` is {:?}, not of five axes",
                conv.name.escape_debug(),
                kernel.shape
            ))
        })?;
        tensors.insert(format!("layers.{i}.weight"), weight);
        tensors.insert(format!("layers.{i}.bias"), take("bias")?);
    }
    if let Some(other) = numbers.keys().min() {
        return Err(wrong(format!(
            "nothing uses its weights `{}`",
            other.escape_debug()
        )));
    }
    check_numbers(&tensors).map_err(wrong)?;

    let known = INTENSITIES.iter().find(|(known, _)| *known == name);
    let intensity = intensity
        .or(known.map(|(_, intensity)| *intensity))
        .ok_or_else(|| {
            let names: Vec<&str> = INTENSITIES.iter().map(|(name, _)| *name).collect();
            WeightsError::NoIntensity {
                path: path.into(),
                known: names.join(", "),
            }
        })?;
    let mut names: Option<Vec<String>> = None;
    for file in LABELS {
        if let (None, Ok(bytes)) = (&names, read(file)) {
            names = Some(labels(&bytes).map_err(|reason| error(file, reason))?);
        }
    }
    let names = names.unwrap_or_default();
    let label = |value: usize| Label {
        value: value as i32,
        name: match names.get(value) {
            Some(name) => name.clone(),
            None if value == 0 => "background".into(),
            None => format!("label {value}"),
        },
    };
    let info = ModelInfo {
        arch: graph.chain.to_string(),
        preprocessing: Preprocessing {
            // The array of a scan that is stored so is what brainchop feeds its networks.
            orientation: Some("LIA".parse::<Orientation>().expect("an orientation")),
            spacing: Some([1.0; 3]),
            grid: Some(graph.grid),
            ignore: None,
            channels: vec![Channel {
                name: "T1".into(),
                intensity,
            }],
            labels: (0..graph.labels).map(label).collect(),
        },
        training: None,
        source: Some(name.into()),
    };
    info.preprocessing.validate().map_err(wrong)?;
    recognise::check(&info.arch, &info.preprocessing, &tensors).map_err(wrong)?;
    Ok(Model {
        info,
        tensors,
        batches: Default::default(),
    })
}

#[derive(Deserialize)]
struct File {
    #[serde(rename = "modelTopology")]
    model_topology: Json,
    #[serde(rename = "weightsManifest")]
    weights_manifest: Vec<Group>,
}

#[derive(Deserialize)]
struct Group {
    paths: Vec<String>,
    weights: Vec<Weight>,
}

#[derive(Deserialize)]
struct Weight {
    name: String,
    shape: Vec<usize>,
    dtype: String,
    quantization: Option<Json>,
}

/// A layer of the graph.
#[derive(Deserialize)]
struct Layer {
    class_name: String,
    config: Config,
    #[serde(default)]
    inbound_nodes: Json,
}

/// What a layer of any kind may say.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Config {
    name: String,
    batch_input_shape: Vec<Option<usize>>,
    filters: usize,
    kernel_size: Vec<usize>,
    strides: Vec<usize>,
    dilation_rate: Vec<usize>,
    groups: Option<usize>,
    padding: String,
    data_format: String,
    use_bias: bool,
    activation: Option<String>,
}

/// What the graph is, as far as it is run here.
struct Graph {
    chain: MeshNet,
    grid: [usize; 3],
    labels: usize,
    /// The last one, too.
    convolutions: Vec<Config>,
}

impl Graph {
    fn read(topology: &Json) -> Result<Graph, String> {
        let model = topology.get("model_config").unwrap_or(topology);
        let layers = model.get("config").and_then(|config| config.get("layers"));
        let layers = layers.ok_or("it has no layers of a Keras model")?;
        let layers: Vec<Layer> = Vec::deserialize(layers).map_err(|e| e.to_string())?;
        let mut grid = None;
        let mut convolutions: Vec<Config> = Vec::new();
        let mut activations: Vec<Option<MeshActivation>> = Vec::new();
        let mut before: Option<String> = None;
        for layer in layers {
            let Layer {
                class_name,
                config,
                inbound_nodes,
            } = layer;
            let name = config.name.escape_debug().to_string();
            // Graphs name what a layer reads; mere lists of layers do not.
            let reads = inbound_nodes.pointer("/0/0/0").and_then(Json::as_str);
            let several = inbound_nodes.pointer("/0/1").is_some() || inbound_nodes.pointer("/1").is_some();
            if several || (reads.is_some() && reads != before.as_deref()) {
                return Err(format!(
                    "its layer `{name}` reads others than the one before it; chains of layers are run here"
                ));
            }
            before = Some(config.name.clone());
            let shape = &config.batch_input_shape[..];
            if let (None, [_, Some(d), Some(h), Some(w), channels]) = (&grid, shape) {
                if *channels != Some(1) {
                    return Err(format!("its input is {shape:?}; one channel is what is fed here"));
                }
                grid = Some([*d, *h, *w]);
            }
            match class_name.as_str() {
                "InputLayer" => {}
                "Conv3D" => {
                    config.check()?;
                    activations.push(activation(config.activation.as_deref().unwrap_or("linear"))?);
                    convolutions.push(config);
                }
                "Activation" | "ReLU" | "ELU" => {
                    let own = match class_name.as_str() {
                        "Activation" => config.activation.as_deref().unwrap_or("linear"),
                        "ReLU" => "relu",
                        _ => "elu",
                    };
                    match (activation(own)?, activations.last_mut()) {
                        (None, _) => {}
                        (own, Some(last @ None)) => *last = own,
                        _ => return Err(format!("its activation `{name}` is behind no convolution")),
                    }
                }
                other => {
                    return Err(format!(
                        "its layer `{name}` is a {}; Conv3D and Activation are run here",
                        other.escape_debug()
                    ));
                }
            }
        }
        let grid = grid.ok_or("its input layer has no size")?;
        let [middle @ .., last] = &convolutions[..] else {
            return Err("it has no convolution".into());
        };
        let (activations, of_last) = activations.split_at(middle.len());
        if of_last != [None] || last.kernel_size != [1; 3] {
            return Err("its last layer is no 1×1×1 convolution without an activation".into());
        }
        let Some(Some(first)) = activations.first() else {
            return Err("it has no activation behind its first convolution".into());
        };
        if activations.iter().any(|own| *own != Some(*first)) {
            return Err("its activations differ from layer to layer; one for all is run here".into());
        }
        if let Some(other) = middle.iter().find(|conv| conv.kernel_size != [3; 3]) {
            return Err(format!(
                "the kernel of `{}` is {:?}; 3×3×3 is run here before the last layer",
                other.name.escape_debug(),
                other.kernel_size
            ));
        }
        let numbers = |conv: &Config| (conv.filters, conv.dilation_rate.first().copied().unwrap_or(1));
        let chain = MeshNet::new(*first, &middle.iter().map(numbers).collect::<Vec<_>>())?;
        Ok(Graph {
            chain,
            grid,
            labels: last.filters,
            convolutions,
        })
    }
}

impl Config {
    /// Whether such a convolution is run here.
    fn check(&self) -> Result<(), String> {
        let uneven = |numbers: &[usize]| numbers.windows(2).any(|pair| pair[0] != pair[1]);
        let problem = if self.strides.iter().any(|s| *s != 1) {
            "strides"
        } else if uneven(&self.dilation_rate) {
            "dilation_rate"
        } else if self.padding != "same" {
            "padding"
        } else if self.data_format == "channels_first" {
            "data_format"
        } else if self.groups.is_some_and(|groups| groups != 1) {
            "groups"
        } else if !self.use_bias {
            "use_bias"
        } else {
            return Ok(());
        };
        Err(format!(
            "the `{problem}` of its convolution `{}` is none of brainchop's networks",
            self.name.escape_debug()
        ))
    }
}

/// Keras' activation of that name; `None` for a linear one.
fn activation(name: &str) -> Result<Option<MeshActivation>, String> {
    match MeshActivation::named(name) {
        None if name != "linear" => Err(format!(
            "its activation `{}` is not run here; relu, elu and gelu are",
            name.escape_debug()
        )),
        found => Ok(found),
    }
}

/// A kernel [KD, KH, KW, in, out] as [out, in, KD, KH, KW].
fn outputs_first(kernel: &Tensor) -> Option<Tensor> {
    let [d, h, w, inputs, outputs] = kernel.shape[..] else {
        return None;
    };
    let taps = d * h * w;
    let shape = [outputs, inputs, d, h, w];
    Some(Tensor::from_fn(&shape, |i| {
        let (tap, input, output) = (i % taps, i / taps % inputs, i / taps / inputs);
        kernel.data[(tap * inputs + input) * outputs + output]
    }))
}

/// Names by value: `{"labels": ["Unknown", …]}`, or `{"0": "Unknown", …}`.
fn labels(bytes: &[u8]) -> Result<Vec<String>, String> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Names {
        Listed { labels: Vec<String> },
        Numbered(HashMap<String, String>),
    }
    match serde_json::from_slice(bytes).map_err(|_| "it names no labels")? {
        Names::Listed { labels } => Ok(labels),
        Names::Numbered(names) => {
            let name = |i: usize| names.get(&i.to_string()).cloned();
            Ok((0..).map_while(name).collect())
        }
    }
}

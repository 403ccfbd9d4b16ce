//! What nnU-Net's plans.json and dataset.json say that inference needs, checked.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

use super::resample::Resampling;
use crate::dataset::Label;
use crate::model::{Architecture, Class};
use crate::tensor::Elements;

/// Most axes, stages, labels and so on that anything of a plan has.
const MOST: usize = 4096;

/// One configuration of a model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Its name, such as `3d_fullres`.
    pub configuration: String,
    /// The dataset's name.
    pub dataset: String,
    /// Whether scans are turned to RAS before anything else.
    pub reorient: bool,
    /// The order in which the axes (z, y, x) of a scan are taken.
    pub transpose: [usize; 3],
    /// Millimetres between voxels, axes transposed.
    pub spacing: [f64; 3],
    /// Voxels of a tile, axes transposed.
    pub patch: [usize; 3],
    /// How intensities are scaled, by channel.
    pub channels: Vec<Channel>,
    /// How scans are resampled.
    pub data_resampling: Resampling,
    /// How logits are.
    pub logits_resampling: Resampling,
    /// The network.
    pub network: Architecture,
    /// The outputs and their label values.
    pub labels: Labels,
    /// Axes (0 to 2, transposed) along which scans may be mirrored at test time.
    pub mirroring: Vec<usize>,
}

/// A channel of the scans.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Channel {
    /// Its name in dataset.json.
    pub name: String,
    /// How its intensities are scaled.
    pub normalisation: Normalisation,
}

/// nnU-Net's normalisation schemes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Normalisation {
    /// Minus the mean, over the standard deviation: of all voxels, or of those within the scan's body alone.
    ZScore {
        /// Whether only voxels within the nonzero region count, and only they change.
        masked: bool,
    },
    /// Clipped, minus a mean, over a standard deviation, all of the training data.
    Ct {
        /// Least value that is left.
        lower: f32,
        /// Largest value that is left.
        upper: f32,
        /// The mean of the foreground.
        mean: f32,
        /// Its standard deviation.
        deviation: f32,
    },
    /// As stored.
    None,
    /// From 0 to 1.
    RescaleTo01,
    /// Over 255.
    RgbTo01,
}

/// What the outputs mean.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Labels {
    /// One output a label, the background first; the highest wins.
    Exclusive(Vec<Label>),
    /// One output a region, painted one over the other where its probability is above a half, in this order.
    Regions(Vec<Label>),
}

impl Labels {
    /// The outputs' names and values.
    pub fn names(&self) -> &[Label] {
        match self {
            Labels::Exclusive(names) | Labels::Regions(names) => names,
        }
    }
}

type Result<T> = std::result::Result<T, String>;

/// dataset.json. Outputs of regions follow the order of its labels, which a [`Json`] object does not keep.
#[derive(Clone, Debug, Default)]
pub struct Description {
    /// What else it has.
    pub json: Map<String, Json>,
    /// `labels`, in the file's order.
    pub labels: Vec<(String, Json)>,
}

impl Description {
    /// Reads the text.
    ///
    /// # Errors
    /// What JSON it is not.
    pub fn parse(text: &str) -> Result<Description> {
        #[derive(Deserialize)]
        struct File {
            labels: Ordered,
            #[serde(flatten)]
            rest: Map<String, Json>,
        }
        let file: File = serde_json::from_str(text).map_err(|e| format!("dataset.json: {e}"))?;
        Ok(Description {
            json: file.rest,
            labels: file.labels.0,
        })
    }
}

/// The entries of an object in their order.
struct Ordered(Vec<(String, Json)>);

impl<'de> Deserialize<'de> for Ordered {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Entries;
        impl<'de> serde::de::Visitor<'de> for Entries {
            type Value = Ordered;

            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(
                self,
                mut map: A,
            ) -> std::result::Result<Ordered, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Ordered(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

fn get<'a>(object: &'a Map<String, Json>, key: &str) -> Result<&'a Json> {
    object.get(key).ok_or_else(|| format!("`{key}` is missing"))
}

fn object<'a>(value: &'a Json, what: &str) -> Result<&'a Map<String, Json>> {
    value.as_object().ok_or_else(|| format!("`{what}` is no object"))
}

fn read<T: serde::de::DeserializeOwned>(object: &Map<String, Json>, key: &str) -> Result<T> {
    let value = get(object, key)?;
    serde_json::from_value(value.clone()).map_err(|error| format!("`{key}`: {error}"))
}

/// Three numbers, one an axis.
fn triple<T: Copy + serde::de::DeserializeOwned>(object: &Map<String, Json>, key: &str) -> Result<[T; 3]> {
    let numbers: Vec<T> = read(object, key)?;
    match numbers[..] {
        [a, b, c] => Ok([a, b, c]),
        [_, _] => Err(format!(
            "`{key}` has two axes: networks of slices (2d) are not run here, choose a 3d configuration"
        )),
        _ => Err(format!("`{key}` has {} numbers, not three", numbers.len())),
    }
}

fn triples(object: &Map<String, Json>, key: &str) -> Result<Vec<[usize; 3]>> {
    read(object, key)
}

/// A number for all stages, or one each.
fn by_stage(object: &Map<String, Json>, key: &str, stages: usize) -> Result<Vec<usize>> {
    match get(object, key)? {
        Json::Number(_) => Ok(vec![read(object, key)?; stages]),
        _ => read(object, key),
    }
}

impl Plan {
    /// Reads a configuration of plans.json and dataset.json; `mirroring` are the axes that the checkpoint allows.
    ///
    /// # Errors
    /// What is missing, contradicts itself, or is not run here, by its name.
    pub fn new(
        plans: &Json,
        dataset: &Description,
        configuration: &str,
        mirroring: Option<Vec<usize>>,
    ) -> Result<Plan> {
        let plans = object(plans, "plans.json")?;
        let merged = merged(plans, configuration, 0)?;
        if merged.get("previous_stage").is_some_and(|stage| !stage.is_null())
            || merged
                .get("previous_stage_name")
                .is_some_and(|stage| !stage.is_null())
        {
            return Err(format!(
                "`{configuration}` is the second stage of a cascade, which reads another network's labels and is not run here; \
                choose 3d_fullres or 3d_lowres"
            ));
        }
        let spacing: [f64; 3] = triple(&merged, "spacing")?;
        let patch: [usize; 3] = triple(&merged, "patch_size")?;
        let preprocessor = merged.get("preprocessor_name").and_then(Json::as_str);
        if preprocessor.is_some_and(|name| name != "DefaultPreprocessor") {
            return Err(format!(
                "its preprocessor `{}` is a program of its own; nnU-Net's DefaultPreprocessor is run here",
                preprocessor.unwrap_or_default().escape_debug()
            ));
        }
        let transpose: [usize; 3] = triple(plans, "transpose_forward")?;
        let reader = plans
            .get("image_reader_writer")
            .and_then(Json::as_str)
            .unwrap_or("SimpleITKIO");
        let reorient = match reader {
            "SimpleITKIO" | "NibabelIO" => false,
            "NibabelIOWithReorient" | "SimpleITKIOWithReorient" => true,
            other => {
                return Err(format!(
                    "its reader `{}` is for other files than NIfTI scans",
                    other.escape_debug()
                ));
            }
        };
        let plan = Plan {
            configuration: configuration.to_owned(),
            dataset: plans
                .get("dataset_name")
                .and_then(Json::as_str)
                .unwrap_or_default()
                .to_owned(),
            reorient,
            transpose,
            spacing,
            patch,
            channels: channels(plans, &merged, &dataset.json)?,
            data_resampling: resampling(&merged, "resampling_fn_data", 3)?,
            logits_resampling: resampling(&merged, "resampling_fn_probabilities", 1)?,
            network: architecture(&merged)?,
            labels: Labels::new(dataset)?,
            mirroring: mirroring.unwrap_or_default(),
        };
        plan.check()?;
        Ok(plan)
    }

    /// The network alone of a configuration of plans.json.
    ///
    /// # Errors
    /// As [`Plan::new`].
    pub fn architecture(plans: &Json, configuration: &str) -> Result<Architecture> {
        let merged = merged(object(plans, "plans.json")?, configuration, 0)?;
        let patch = triple(&merged, "patch_size")?;
        let network = architecture(&merged)?;
        network.check(patch)?;
        Ok(network)
    }

    /// Whether everything in it can be.
    ///
    /// # Errors
    /// The first thing that can't.
    pub fn check(&self) -> Result<()> {
        let mut axes = self.transpose;
        axes.sort_unstable();
        if axes != [0, 1, 2] {
            return Err(format!(
                "`transpose_forward` {:?} is no order of three axes",
                self.transpose
            ));
        }
        if !self
            .spacing
            .iter()
            .all(|s| s.is_finite() && *s > 1e-3 && *s < 1e3)
        {
            return Err(format!(
                "the spacing {:?} is none of a scan, in millimetres",
                self.spacing
            ));
        }
        if Elements::of(&self.patch).is_none_or(|n| n.get() == 0) || self.patch.iter().any(|n| *n > 1024) {
            return Err(format!("the patch {:?} is none that a network takes", self.patch));
        }
        if self.channels.is_empty() || self.channels.len() > MOST {
            return Err(format!("it has {} channels", self.channels.len()));
        }
        if self.mirroring.iter().any(|axis| *axis > 2) {
            return Err(format!(
                "it may be mirrored along {:?}, which are no axes",
                self.mirroring
            ));
        }
        if self.labels.names().is_empty() || self.labels.names().len() > MOST {
            return Err(format!("it has {} labels", self.labels.names().len()));
        }
        for channel in &self.channels {
            if let Normalisation::Ct {
                lower,
                upper,
                mean,
                deviation,
            } = channel.normalisation
                && !(lower <= upper && mean.is_finite() && deviation.is_finite())
            {
                return Err(format!(
                    "the intensities of channel `{}` are from {lower} to {upper}, {mean} ± {deviation}",
                    channel.name.escape_debug()
                ));
            }
        }
        for r in [&self.data_resampling, &self.logits_resampling] {
            if ![0, 1, 3].contains(&r.order) || ![0, 1, 3].contains(&r.order_z) {
                return Err(format!(
                    "it resamples by splines of orders {} and {}; 0, 1 and 3 are done here",
                    r.order, r.order_z
                ));
            }
        }
        self.network.check(self.patch)
    }

    /// The combinations of axes along which a tile is mirrored, none first.
    pub fn mirrored_axes(&self) -> Vec<Vec<usize>> {
        let count = self.mirroring.len();
        (0..1usize << count)
            .map(|bits| {
                (0..count)
                    .filter(|i| bits >> i & 1 == 1)
                    .map(|i| self.mirroring[i])
                    .collect()
            })
            .collect()
    }
}

/// A configuration with what it inherits.
fn merged(plans: &Map<String, Json>, name: &str, depth: usize) -> Result<Map<String, Json>> {
    let all = object(get(plans, "configurations")?, "configurations")?;
    let Some(own) = all.get(name) else {
        let names: Vec<&str> = all.keys().map(String::as_str).collect();
        return Err(format!(
            "it has no configuration `{name}`; there are {}",
            names.join(", ")
        ));
    };
    let own = object(own, name)?;
    let mut merged = match own.get("inherits_from").and_then(Json::as_str) {
        Some(_) if depth > 8 => return Err(format!("`{name}` inherits from itself")),
        Some(parent) => self::merged(plans, parent, depth + 1)?,
        None => Map::new(),
    };
    merged.extend(own.clone());
    Ok(merged)
}

fn channels(
    plans: &Map<String, Json>,
    merged: &Map<String, Json>,
    dataset: &Map<String, Json>,
) -> Result<Vec<Channel>> {
    let schemes: Vec<String> = read(merged, "normalization_schemes")?;
    let masks: Vec<bool> = read(merged, "use_mask_for_norm")?;
    let names = dataset
        .get("channel_names")
        .or_else(|| dataset.get("modality"))
        .ok_or("dataset.json has no `channel_names`")?;
    let names = object(names, "channel_names")?;
    if schemes.len() != names.len() || masks.len() < schemes.len() {
        return Err(format!(
            "{} channels in dataset.json, {} normalisation schemes and {} masks in plans.json",
            names.len(),
            schemes.len(),
            masks.len()
        ));
    }
    let intensities = plans.get("foreground_intensity_properties_per_channel");
    schemes
        .iter()
        .enumerate()
        .map(|(i, scheme)| {
            let key = i.to_string();
            let name = names.get(&key).and_then(Json::as_str).unwrap_or(&key).to_owned();
            let normalisation = match scheme.as_str() {
                "ZScoreNormalization" => Normalisation::ZScore { masked: masks[i] },
                "CTNormalization" => {
                    let own = intensities
                        .and_then(|all| all.get(&key))
                        .and_then(Json::as_object);
                    let own = own.ok_or_else(|| format!("the intensities of channel {key} are missing"))?;
                    Normalisation::Ct {
                        lower: read(own, "percentile_00_5")?,
                        upper: read(own, "percentile_99_5")?,
                        mean: read(own, "mean")?,
                        deviation: read(own, "std")?,
                    }
                }
                "NoNormalization" => Normalisation::None,
                "RescaleTo01Normalization" => Normalisation::RescaleTo01,
                "RGBTo01Normalization" => Normalisation::RgbTo01,
                other => {
                    return Err(format!(
                        "channel `{}` is normalised by `{}`, a program of its own",
                        name.escape_debug(),
                        other.escape_debug()
                    ));
                }
            };
            Ok(Channel { name, normalisation })
        })
        .collect()
}

fn resampling(merged: &Map<String, Json>, key: &str, order: u8) -> Result<Resampling> {
    let function = merged
        .get(key)
        .and_then(Json::as_str)
        .unwrap_or("resample_data_or_seg_to_shape");
    if function != "resample_data_or_seg_to_shape" {
        return Err(format!(
            "`{key}` is `{}`, a program of its own; resample_data_or_seg_to_shape is done here",
            function.escape_debug()
        ));
    }
    let given = merged.get(&format!("{key}_kwargs")).and_then(Json::as_object);
    let number = |name: &str, otherwise: u8| match given.and_then(|given| given.get(name)) {
        None => Ok(otherwise),
        Some(value) => {
            serde_json::from_value(value.clone()).map_err(|e| format!("`{key}_kwargs`: `{name}`: {e}"))
        }
    };
    Ok(Resampling {
        order: number("order", order)?,
        order_z: number("order_z", 0)?,
        separate_z: given
            .and_then(|given| given.get("force_separate_z"))
            .and_then(Json::as_bool),
    })
}

/// The network of a configuration.
fn architecture(merged: &Map<String, Json>) -> Result<Architecture> {
    let Some(architecture) = merged.get("architecture") else {
        return of_early_versions(merged);
    };
    let architecture = object(architecture, "architecture")?;
    let name: String = read(architecture, "network_class_name")?;
    let class = match name.rsplit('.').next().unwrap_or_default() {
        "PlainConvUNet" => Class::Plain,
        "ResidualEncoderUNet" => Class::Residual,
        other => {
            return Err(format!(
                "its network is a `{}`; PlainConvUNet and ResidualEncoderUNet are run here",
                other.escape_debug()
            ));
        }
    };
    let arguments = object(get(architecture, "arch_kwargs")?, "arch_kwargs")?;
    let is = |key: &str, wanted: &str| {
        let name = arguments.get(key).and_then(Json::as_str).unwrap_or_default();
        match name.rsplit('.').next().unwrap_or_default() == wanted {
            true => Ok(()),
            false => Err(format!(
                "its `{key}` is `{}`; {wanted} is done here",
                name.escape_debug()
            )),
        }
    };
    is("conv_op", "Conv3d")?;
    is("norm_op", "InstanceNorm3d")?;
    if let Some(given) = arguments.get("norm_op_kwargs").and_then(Json::as_object) {
        let epsilon = given.get("eps").and_then(Json::as_f64).unwrap_or(1e-5);
        let affine = given.get("affine").and_then(Json::as_bool).unwrap_or(false);
        if !affine || (epsilon - 1e-5).abs() > 1e-9 {
            return Err(format!(
                "its instance norm has ε {epsilon} and affine {affine}; 1e-5 and true are done here"
            ));
        }
    }
    let nonlinearity = arguments.get("nonlin").and_then(Json::as_str).unwrap_or_default();
    let given = arguments.get("nonlin_kwargs").and_then(Json::as_object);
    let slope = match nonlinearity.rsplit('.').next().unwrap_or_default() {
        "LeakyReLU" => {
            let slope = given
                .and_then(|given| given.get("negative_slope"))
                .and_then(Json::as_f64);
            slope.unwrap_or(0.01) as f32
        }
        "ReLU" => 0.0,
        other => {
            return Err(format!(
                "its activation is `{}`; LeakyReLU and ReLU are done here",
                other.escape_debug()
            ));
        }
    };
    let features: Vec<usize> = read(arguments, "features_per_stage")?;
    let stages = features.len();
    Ok(Architecture {
        class,
        kernels: triples(arguments, "kernel_sizes")?,
        strides: triples(arguments, "strides")?,
        encoder: match class {
            Class::Plain => by_stage(arguments, "n_conv_per_stage", stages)?,
            Class::Residual => by_stage(arguments, "n_blocks_per_stage", stages)?,
        },
        decoder: by_stage(arguments, "n_conv_per_stage_decoder", stages.saturating_sub(1))?,
        bias: arguments
            .get("conv_bias")
            .and_then(Json::as_bool)
            .unwrap_or(false),
        slope,
        features,
    })
}

/// Plans of before version 2.3 name sizes alone.
fn of_early_versions(merged: &Map<String, Json>) -> Result<Architecture> {
    let class = match merged.get("UNet_class_name").and_then(Json::as_str) {
        Some("PlainConvUNet") => Class::Plain,
        Some("ResidualEncoderUNet") => Class::Residual,
        other => {
            return Err(format!(
                "it has no `architecture`, and its network is a `{}`; PlainConvUNet and ResidualEncoderUNet are run here",
                other.unwrap_or_default().escape_debug()
            ));
        }
    };
    let kernels = triples(merged, "conv_kernel_sizes")?;
    let stages = kernels.len();
    if stages > MOST {
        return Err(format!("its network has {stages} stages"));
    }
    let base: usize = read(merged, "UNet_base_num_features")?;
    let most: usize = read(merged, "unet_max_num_features")?;
    let of = |stage: usize| base.saturating_mul(1 << stage.min(32)).min(most);
    Ok(Architecture {
        class,
        features: (0..stages).map(of).collect(),
        kernels,
        strides: triples(merged, "pool_op_kernel_sizes")?,
        encoder: by_stage(merged, "n_conv_per_stage_encoder", stages)?,
        decoder: by_stage(merged, "n_conv_per_stage_decoder", stages.saturating_sub(1))?,
        bias: true,
        slope: 0.01,
    })
}

impl Labels {
    fn new(dataset: &Description) -> Result<Labels> {
        let mut names = Vec::new();
        let mut regions = false;
        for (name, value) in &dataset.labels {
            if name == "ignore" {
                continue;
            }
            let values: Vec<i32> = match value {
                Json::Array(_) => serde_json::from_value(value.clone()),
                _ => serde_json::from_value(value.clone()).map(|v| vec![v]),
            }
            .map_err(|error| format!("label `{}`: {error}", name.escape_debug()))?;
            regions |= values.len() > 1;
            names.push((name.clone(), values));
        }
        if !regions {
            let mut names: Vec<Label> = names
                .into_iter()
                .map(|(name, values)| Label {
                    name,
                    value: values.first().copied().unwrap_or(0),
                })
                .collect();
            names.sort_by_key(|name| name.value);
            if names.iter().enumerate().any(|(i, name)| name.value != i as i32) {
                let values: Vec<i32> = names.iter().map(|name| name.value).collect();
                return Err(format!(
                    "its labels are {values:?}; nnU-Net's are 0, 1, 2 and so on"
                ));
            }
            return Ok(Labels::Exclusive(names));
        }
        // In the file's order, which is that of the outputs.
        let order: Vec<i32> = read(&dataset.json, "regions_class_order")?;
        names.retain(|(_, values)| values.iter().any(|v| *v != 0));
        if order.len() != names.len() {
            return Err(format!(
                "{} regions, and {} in `regions_class_order`",
                names.len(),
                order.len()
            ));
        }
        let region = |((name, _), value)| Label { name, value };
        Ok(Labels::Regions(
            names.into_iter().zip(order).map(region).collect(),
        ))
    }
}

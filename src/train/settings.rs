//! The settings of a training run, and its `config.toml`.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::augment::{Augment, Stages};
use crate::dataset::Folds;
use crate::gpu::FormsChoice;
use crate::model::{self, Network};
use crate::op::Forms;
use crate::op::optimiser::Optimiser;
use crate::preprocess::{check_grid, check_spacing};
#[cfg(feature = "cli")]
use crate::values;
use crate::volume::Orientation;

/// What is minimised (method section 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Loss {
    /// Softmax cross-entropy over all voxels (the paper's, for U-Nets)
    CrossEntropy,
    /// Cross-entropy weighted by class, count^−½ over the training cases
    WeightedCrossEntropy,
    /// Class-weighted cross-entropy of the hardest quarter of the voxels (the paper's, for OBELISK networks)
    HardMining,
    /// Soft Dice over foreground labels
    Dice,
    /// Soft Dice with squares in the denominator (Milletari 2016)
    DiceSquared,
    /// Hinge Dice with squares in the denominator (Gibson 2018), which pushes labels that are hardly found
    HingeDice,
    /// Cross-entropy plus soft Dice
    CrossEntropyDice,
    /// Cross-entropy plus soft Dice with squares in the denominator
    CrossEntropyDiceSquared,
    /// Cross-entropy plus hinge Dice
    CrossEntropyHingeDice,
}

impl Loss {
    /// Whether its graph has the input `class_weights` `[L]`; see [`crate::op::cross_entropy::class_weights`].
    pub fn has_class_weights(self) -> bool {
        matches!(self, Loss::WeightedCrossEntropy | Loss::HardMining)
    }
}

/// How the learning rate falls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Schedule {
    /// Half a cosine from the first epoch's rate to zero, step by step
    Cosine,
    /// × 0.99 after each epoch (the paper's)
    Exponential,
    /// (1 − share of the steps that are done)^0.9 (nnU-Net's)
    Polynomial,
}

/// How gradients change the weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Rule {
    /// Adam (the paper's)
    #[default]
    Adam,
    /// Gradient descent with Nesterov's momentum (nnU-Net's, with a learning rate of 0.01)
    Sgd,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Settings of a training run, written as `config.toml` into the run. What another version of the program wrote is read: fields
/// that are missing are as in [`Settings::dense`], those that are unknown go to [`Settings::parse`]'s caller.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::Args), group(skip))]
#[serde(default)]
#[non_exhaustive]
pub struct Settings {
    /// Folder with dataset.json.
    #[cfg_attr(feature = "cli", arg(skip))]
    pub dataset: PathBuf,
    /// Network.
    #[cfg_attr(feature = "cli", arg(skip))]
    pub arch: String,
    /// Validation fold; absent to train on every case.
    #[cfg_attr(feature = "cli", arg(skip))]
    pub fold: Option<usize>,
    /// Folds that the cases are divided into: a number, loo for leave-one-out, or splits for the dataset's
    /// splits_final.json; without, its splits_final.json, or 5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "cli", arg(long, value_name = "K|loo|splits"))]
    pub folds: Option<Folds>,
    /// Passes over the training cases.
    #[cfg_attr(feature = "cli", arg(long, value_name = "N", value_parser = values::count))]
    pub epochs: usize,
    /// Scans in a step.
    #[cfg_attr(feature = "cli", arg(long, value_name = "N", value_parser = values::count))]
    pub batch: usize,
    /// Batches in a step: their gradients are added one after the other, as if the batch were as much larger, but statistics of
    /// batch norm are each batch's own.
    #[serde(skip_serializing_if = "is_one")]
    #[cfg_attr(feature = "cli", arg(long, value_name = "N", value_parser = values::count))]
    pub accumulate: usize,
    /// Sparse training of obelisk networks: random locations of each scan in a step (192 by default); a
    /// config.toml without it trains on all voxels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "cli", arg(long, value_name = "N", value_parser = values::count))]
    pub samples: Option<usize>,
    /// Sparse training: batches of an epoch (64 by default), which are its steps unless a step takes several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "cli", arg(long, value_name = "N", value_parser = values::count))]
    pub steps: Option<usize>,
    /// Seed of every random stream.
    #[cfg_attr(feature = "cli", arg(long, value_parser = clap::value_parser!(u64).range(..=i64::MAX as u64)))]
    pub seed: u64,
    /// How gradients change the weights.
    #[serde(skip_serializing_if = "is_default")]
    #[cfg_attr(feature = "cli", arg(long, value_name = "RULE"))]
    pub optimiser: Rule,
    /// Momentum of gradient descent.
    #[serde(skip_serializing_if = "is_usual_momentum")]
    #[cfg_attr(feature = "cli", arg(long, value_name = "SHARE", value_parser = values::below_one))]
    pub momentum: f32,
    /// Learning rate at the start.
    #[cfg_attr(feature = "cli", arg(long, value_name = "RATE", value_parser = values::positive::<f32>))]
    pub learning_rate: f32,
    /// How the learning rate falls.
    #[cfg_attr(feature = "cli", arg(long))]
    pub schedule: Schedule,
    /// Epochs at the start in which the learning rate rises from nothing, step by step.
    #[serde(skip_serializing_if = "is_default")]
    #[cfg_attr(feature = "cli", arg(long, value_name = "EPOCHS"))]
    pub warm_up: u32,
    /// Longest gradient of a step, over all weights; a longer one is shortened to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "cli", arg(long, value_name = "LENGTH", value_parser = values::positive::<f32>))]
    pub clip: Option<f32>,
    /// Keep an exponential moving average of the weights, which is what is validated and saved: the share of it that stays at each
    /// step, such as 0.999.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "cli", arg(long, value_name = "SHARE", value_parser = values::below_one))]
    pub ema: Option<f32>,
    /// End the training after so many epochs without a better validation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "cli", arg(long, value_name = "EPOCHS", value_parser = values::count))]
    pub patience: Option<usize>,
    /// Weights to start from: what has the network's names and shapes, and of labels and channels those of the same names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "cli", arg(long, value_name = "FILE"))]
    pub warm_start: Option<PathBuf>,
    /// L2 penalty added to the gradient.
    #[cfg_attr(feature = "cli", arg(long, value_name = "DECAY", value_parser = values::not_negative::<f32>))]
    pub weight_decay: f32,
    /// What is minimised.
    #[cfg_attr(feature = "cli", arg(long))]
    pub loss: Loss,
    /// Standard deviation of the affine augmentation's twelve entries, in normalised coordinates; 0 for none.
    #[cfg_attr(feature = "cli", arg(long, value_name = "SIGMA", value_parser = values::not_negative::<f32>))]
    pub affine: f32,
    /// Train on images that are made of label maps alone, new ones in each step; the dataset says what is made of them.
    #[serde(skip_serializing_if = "is_default")]
    #[cfg_attr(feature = "cli", arg(long))]
    pub synthetic: bool,
    /// Share of the crops of scans larger than the grid that are placed about a voxel of a random label (nnU-Net's is 0.33).
    #[serde(skip_serializing_if = "is_default")]
    #[cfg_attr(feature = "cli", arg(long, value_name = "SHARE", value_parser = values::share))]
    pub foreground: f32,
    /// Epochs between validations; the last epoch is always validated.
    #[cfg_attr(feature = "cli", arg(long, value_name = "N", value_parser = values::count))]
    pub validate_every: usize,
    /// Target orientation, such as RAS; without, the dataset's most common.
    #[cfg_attr(feature = "cli", arg(long = "orient", value_name = "CODE", value_parser = values::orientation))]
    pub orientation: Option<String>,
    /// Target spacing in mm along the oriented axes (D, H, W); without, the dataset's median.
    #[cfg_attr(feature = "cli", arg(long, value_name = "D,H,W", value_parser = values::spacing))]
    pub spacing: Option<[f64; 3]>,
    /// Take scans' voxels as they are stored, whatever their spacing, where they have been brought to one grid.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    #[cfg_attr(feature = "cli", arg(long, conflicts_with = "spacing"))]
    pub stored_spacing: bool,
    /// Target grid in voxels (D, H, W); without, it covers the dataset's scans.
    #[cfg_attr(feature = "cli", arg(long, value_name = "D,H,W", value_parser = values::grid))]
    pub size: Option<[usize; 3]>,
    /// Augmentation beside the affine map.
    #[serde(skip_serializing_if = "Augment::is_none")]
    #[cfg_attr(feature = "cli", command(flatten))]
    pub augment: Augment,
    /// Forms of the kernels that the run was begun with and is resumed with; absent in what older versions wrote, which
    /// stands for the built-in ones. No wish: another run's settings are read without them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "cli", arg(skip))]
    pub forms: Option<Forms>,
}

/// nnU-Net's.
const MOMENTUM: f32 = 0.99;

fn is_usual_momentum(momentum: &f32) -> bool {
    *momentum == MOMENTUM
}

fn is_one(count: &usize) -> bool {
    *count == 1
}

impl Default for Settings {
    fn default() -> Self {
        Settings::dense(PathBuf::new(), "obelisk-hybrid")
    }
}

impl Settings {
    /// Steps of an epoch of sparse training (method section 1).
    pub const SPARSE_STEPS: usize = 64;

    /// The defaults for a dataset and network: sparse training where the network can.
    pub fn new(dataset: PathBuf, arch: &str) -> Self {
        let settings = Settings::dense(dataset, arch);
        match model::find(arch) {
            Ok(network) if network.points.is_some() => Settings {
                epochs: 50,
                batch: 3,
                samples: Some(192),
                steps: Some(Settings::SPARSE_STEPS),
                loss: Loss::HardMining,
                ..settings
            },
            _ => settings,
        }
    }

    /// The defaults for training on all voxels.
    pub fn dense(dataset: PathBuf, arch: &str) -> Self {
        Settings {
            dataset,
            arch: arch.to_owned(),
            fold: None,
            folds: None,
            epochs: 44,
            batch: 2,
            accumulate: 1,
            samples: None,
            steps: None,
            seed: 1,
            optimiser: Rule::Adam,
            momentum: MOMENTUM,
            learning_rate: 0.002,
            schedule: Schedule::Cosine,
            warm_up: 0,
            clip: None,
            ema: None,
            patience: None,
            warm_start: None,
            weight_decay: 1e-5,
            loss: Loss::CrossEntropyDice,
            affine: 0.075,
            synthetic: false,
            foreground: 0.0,
            validate_every: 1,
            orientation: None,
            spacing: None,
            stored_spacing: false,
            size: None,
            augment: Augment::default(),
            forms: None,
        }
    }

    /// The paper's settings for a network: 300 epochs of batches of 4 (sparse training: 50 epochs of 64 batches of 192
    /// locations of 3 scans), Adam with 0.002 × 0.99 an epoch and weight decay
    /// 1e-5, affine augmentation of 0.075; class weights and hard mining where there are OBELISK layers, plain
    /// cross-entropy otherwise (method section 3).
    pub fn paper(dataset: PathBuf, network: &Network) -> Self {
        let (epochs, batch) = match network.points {
            Some(_) => (50, 3),
            None => (300, 4),
        };
        Settings {
            epochs,
            batch,
            learning_rate: 0.002,
            schedule: Schedule::Exponential,
            weight_decay: 1e-5,
            affine: 0.075,
            loss: if network.obelisk_layers {
                Loss::HardMining
            } else {
                Loss::CrossEntropy
            },
            ..Settings::new(dataset, network.name)
        }
    }

    /// What is different in `other`, but for what a training may be resumed with: a learning rate, which the rest of it
    /// takes, and forms. In words: names, and both values.
    pub fn difference(&self, other: &Settings) -> Option<String> {
        let values = |settings: &Settings| match serde_json::to_value(settings) {
            Ok(serde_json::Value::Object(values)) => values,
            _ => unreachable!("settings are a table"),
        };
        let (own, other) = (values(self), values(other));
        let names: BTreeSet<&String> = own.keys().chain(other.keys()).collect();
        let shown = |value: Option<&serde_json::Value>| match value {
            None | Some(serde_json::Value::Null) => "absent".to_owned(),
            Some(value) => value.to_string(),
        };
        let different: Vec<String> = names
            .into_iter()
            .filter(|name| !["learning_rate", "forms"].contains(&name.as_str()))
            .map(|name| (name, shown(own.get(name)), shown(other.get(name))))
            .filter(|(_, own, other)| own != other)
            .map(|(name, own, other)| format!("`{name}` is {own} and not {other}"))
            .collect();
        (!different.is_empty()).then(|| different.join(", "))
    }

    /// Takes the options that were given, and leaves what was not.
    ///
    /// # Panics
    /// If the matches are of a command without the options of [`clap::Args`] for these settings.
    #[cfg(feature = "cli")]
    pub fn update(&mut self, given: &clap::ArgMatches) {
        let (stored_spacing, synthetic) = (self.stored_spacing, self.synthetic);
        clap::FromArgMatches::update_from_arg_matches(self, given).expect("the options of these settings");
        // An absent flag reads as one that says no.
        self.stored_spacing |= stored_spacing;
        self.synthetic |= synthetic;
    }

    /// The choice of forms that resumes the run.
    pub fn recorded_forms(&self) -> FormsChoice {
        self.forms.map_or(FormsChoice::BuiltIn, FormsChoice::from)
    }

    /// Reads settings, and the names of those that this version does not know: typing errors in what someone wrote, another
    /// version's in a run's record.
    ///
    /// # Errors
    /// No TOML, or a value that a setting can't have; see [`Settings::check`].
    pub fn parse(text: &str) -> Result<(Settings, Vec<String>), toml::de::Error> {
        Settings::of(toml::Deserializer::parse(text)?)
    }

    /// [`Settings::parse`] of anything.
    pub(crate) fn of<'a, D: serde::Deserializer<'a>>(source: D) -> Result<(Settings, Vec<String>), D::Error> {
        let mut unknown = Vec::new();
        // `?` stands in the path for what may be absent.
        let unknown_at = |path: serde_ignored::Path| unknown.push(path.to_string().replace(".?", ""));
        let settings: Settings = serde_ignored::deserialize(source, unknown_at)?;
        settings.check().map_err(serde::de::Error::custom)?;
        Ok((settings, unknown))
    }

    /// Whether a training can have these values: what options refuse, files can't bring in either.
    ///
    /// # Errors
    /// The first setting with a value that can't be, by its name.
    pub fn check(&self) -> Result<(), String> {
        let counts = [
            ("epochs", Some(self.epochs)),
            ("batch", Some(self.batch)),
            ("accumulate", Some(self.accumulate)),
            ("samples", self.samples),
            ("steps", self.steps),
            ("validate_every", Some(self.validate_every)),
            ("patience", self.patience),
        ];
        for (name, count) in counts {
            if let Some(count) = count.filter(|count| !(1..=u32::MAX as usize).contains(count)) {
                return Err(format!("`{name}` is {count}; it must be from 1 to {}", u32::MAX));
            }
        }
        let rate = self.learning_rate;
        if !(rate.is_finite() && rate > 0.0) {
            return Err(format!("`learning_rate` is {rate}; it must be a number above 0"));
        }
        for (name, number) in [("weight_decay", self.weight_decay), ("affine", self.affine)] {
            if !(number.is_finite() && number >= 0.0) {
                return Err(format!("`{name}` is {number}; it must be a number, 0 or above"));
            }
        }
        for (name, share) in [("momentum", Some(self.momentum)), ("ema", self.ema)] {
            if let Some(share) = share.filter(|share| !(0.0..1.0).contains(share)) {
                return Err(format!("`{name}` is {share}; it must be from 0 up to but not 1"));
            }
        }
        if !(0.0..=1.0).contains(&self.foreground) {
            let share = self.foreground;
            return Err(format!("`foreground` is {share}; it must be from 0 to 1"));
        }
        if let Some(length) = self.clip.filter(|length| !(length.is_finite() && *length > 0.0)) {
            return Err(format!("`clip` is {length}; it must be a number above 0"));
        }
        self.augment.check()?;
        if i64::try_from(self.seed).is_err() {
            return Err(format!(
                "`seed` is {}; it must be at most {}",
                self.seed,
                i64::MAX
            ));
        }
        if let Some(code) = &self.orientation {
            code.parse::<Orientation>()
                .map_err(|e| format!("`orientation`: {e}"))?;
        }
        self.spacing.map_or(Ok(()), check_spacing)?;
        self.size.map_or(Ok(()), check_grid)
    }

    /// Learning rate at step `step` of `steps` an epoch.
    pub(super) fn rate(&self, step: usize, steps: usize) -> f32 {
        let epoch = step / steps;
        let done = step as f64 / (steps * self.epochs) as f64;
        let warm = steps * self.warm_up as usize;
        let risen = match step < warm {
            true => (step + 1) as f32 / (warm + 1) as f32,
            false => 1.0,
        };
        let rate = match self.schedule {
            Schedule::Exponential => self.learning_rate * 0.99f32.powi(epoch as i32),
            Schedule::Cosine => {
                (self.learning_rate as f64 * 0.5 * (1.0 + (std::f64::consts::PI * done).cos())) as f32
            }
            Schedule::Polynomial => (self.learning_rate as f64 * (1.0 - done).powf(0.9)) as f32,
        };
        risen * rate
    }

    /// What a step does to its scans.
    pub(super) fn stages(&self) -> Stages {
        let stages = self.augment.stages(self.affine, self.synthetic);
        match self.samples {
            None => stages,
            Some(_) => stages.of_places(),
        }
    }

    /// How a step's gradients change the weights.
    pub(super) fn rule(&self) -> Optimiser {
        match self.optimiser {
            Rule::Adam => Optimiser::Adam,
            Rule::Sgd => Optimiser::Sgd {
                momentum: self.momentum,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::find;

    #[test]
    fn rates_fall_as_their_schedules_say() {
        let cosine = Settings::new("data".into(), "unet");
        let steps = 10;
        assert_eq!(cosine.rate(0, steps), 0.002);
        assert!((cosine.rate(cosine.epochs * steps / 2, steps) - 0.001).abs() < 1e-9);
        assert!(cosine.rate(cosine.epochs * steps - 1, steps) < 1e-7);
        let paper = Settings::paper("data".into(), &find("unet").unwrap());
        assert_eq!(paper.rate(0, steps), 0.002);
        assert_eq!(paper.rate(steps - 1, steps), 0.002);
        assert!((paper.rate(2 * steps, steps) - 0.002 * 0.99 * 0.99).abs() < 1e-9);
    }

    #[test]
    fn differences_are_named_but_for_what_a_training_may_be_resumed_with() {
        let settings = Settings::new("data".into(), "obelisk");
        let other = Settings {
            batch: 7,
            steps: None,
            learning_rate: 1.0,
            ..settings.clone()
        };
        let difference = settings.difference(&other).unwrap();
        assert_eq!(difference, "`batch` is 3 and not 7, `steps` is 64 and not absent");
        let slower = Settings {
            learning_rate: 1e-4,
            forms: Some(Default::default()),
            ..settings.clone()
        };
        assert_eq!(settings.difference(&slower), None);
    }

    #[test]
    fn the_papers_settings_depend_on_obelisk_layers() {
        let paper = |arch| Settings::paper("data".into(), &find(arch).unwrap());
        for arch in ["obelisk-hybrid", "obeliskhybrid_tcia"] {
            assert_eq!(paper(arch).loss, Loss::HardMining, "{arch}");
        }
        let unet = paper("unet");
        assert_eq!(unet.loss, Loss::CrossEntropy);
        assert_eq!((unet.epochs, unet.batch), (300, 4));
        assert_eq!(
            (unet.learning_rate, unet.weight_decay, unet.affine),
            (0.002, 1e-5, 0.075)
        );
        let text = toml::to_string(&unet).unwrap();
        assert!(text.contains("loss = \"cross-entropy\"") && text.contains("schedule = \"exponential\""));
        assert_eq!(Settings::parse(&text).unwrap(), (unet, Vec::new()));
    }

    #[test]
    fn what_another_version_wrote_is_read() {
        let settings = Settings {
            forms: Some(Forms::TEXELS),
            ..Settings::new("data".into(), "unet")
        };
        let text = toml::to_string(&settings).unwrap() + "fills = 32768\n"; // in [forms], the last table
        let text = format!("warmup = 3\n{text}").replace("epochs = 44\n", "");
        let (read, unknown) = Settings::parse(&text).unwrap();
        assert_eq!(read, settings);
        assert_eq!(unknown, ["warmup", "forms.fills"]);
        assert!(Settings::parse("epochs = \"many\"").is_err());
    }

    #[test]
    fn values_that_options_refuse_are_refused_in_files() {
        for (line, name) in [
            ("epochs = 0", "epochs"),
            ("batch = 4294967296", "batch"),
            ("samples = 0", "samples"),
            ("steps = 0", "steps"),
            ("validate_every = 0", "validate_every"),
            ("learning_rate = nan", "learning_rate"),
            ("learning_rate = 0.0", "learning_rate"),
            ("learning_rate = 1e39", "learning_rate"),
            ("weight_decay = -1e-5", "weight_decay"),
            ("affine = inf", "affine"),
            ("seed = -1", "seed"),
            ("orientation = \"RRR\"", "orientation"),
            ("spacing = [1.0, nan, 1.0]", "spacing"),
            ("spacing = [1.0, 1.0]", "spacing"),
            ("size = [0, 8, 8]", "size"),
            ("size = [2147483647, 2147483647, 8]", "size"),
            ("folds = 1", "folds"),
        ] {
            let error = Settings::parse(line).expect_err(line).to_string();
            assert!(error.contains(name), "{line}: {error}");
        }
        let settings = Settings {
            seed: u64::MAX,
            ..Settings::default()
        };
        assert!(settings.check().unwrap_err().contains("seed"));
    }

    #[cfg(feature = "cli")]
    #[test]
    fn settings_are_options_too() {
        use clap::{Args, Command};

        let command = Settings::augment_args_for_update(Command::new("train"));
        let given = |line: &str| command.clone().try_get_matches_from(line.split_whitespace());
        let mut settings = Settings {
            stored_spacing: true,
            ..Settings::new("data".into(), "unet")
        };
        let before = settings.clone();
        settings.update(&given("train").unwrap());
        assert_eq!(settings, before);
        settings.update(&given("train --epochs 3 --orient las --size 8,16,8 --loss dice").unwrap());
        let after = Settings {
            epochs: 3,
            orientation: Some("LAS".into()),
            size: Some([8, 16, 8]),
            loss: Loss::Dice,
            ..before
        };
        assert_eq!(settings, after);
        assert!(given("train --epochs 0").is_err() && given("train --arch unet").is_err());
    }
}

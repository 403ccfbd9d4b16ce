//! Models as nnU-Net leaves them: `DATASET/TRAINER__PLANS__CONFIGURATION/{plans.json, dataset.json, fold_K/checkpoint_final.pth}`
//! in a folder or a zip archive, or one checkpoint with its plans inside.

use std::collections::{BTreeMap, HashMap};
use std::io::Read;
use std::path::{Path, PathBuf};

use rawzip::{CompressionMethod, ZipArchive};
use serde_json::Value as Json;

use super::Model;
use super::network;
use super::plan::{Description, Plan};
use crate::host_memory;
use crate::model::Architecture;
use crate::tensor::Tensor;
use crate::weights::pth::Nnunet;
use crate::weights::{WeightsError, brainchop, check_numbers};

/// Most bytes of plans.json and dataset.json.
const MOST_JSON: u64 = 16 << 20;
/// Most bytes of a checkpoint: twenty times the largest of nnU-Net's networks.
const MOST_CHECKPOINT: u64 = 16 << 30;
/// First bytes of a file that tell what it is.
const START: usize = 4096;
/// Folders in which a model is looked for.
const DEEPEST: usize = 3;

/// The network that nnU-Net's plans.json has for a configuration, such as `3d_fullres`.
///
/// # Errors
/// A file that can't be read or is none of plans, and networks that are not run here.
pub fn planned_architecture(path: &Path, configuration: &str) -> Result<Architecture, WeightsError> {
    let wrong = |reason: String| WeightsError::Format {
        path: path.into(),
        reason,
    };
    let length = std::fs::metadata(path).map_err(WeightsError::io(path))?.len();
    if length > MOST_JSON {
        return Err(wrong(format!("has {length} bytes, too many for plans")));
    }
    let bytes = std::fs::read(path).map_err(WeightsError::io(path))?;
    let plans: Json = serde_json::from_slice(&bytes).map_err(|e| wrong(e.to_string()))?;
    Plan::architecture(&plans, configuration).map_err(wrong)
}

/// What to take of a model.
#[derive(Clone, Debug, Default)]
pub struct Choice {
    /// A configuration, such as `3d_fullres`; needed where there are several.
    pub configuration: Option<String>,
    /// Folds, such as `0` and `all`; empty for every one.
    pub folds: Vec<String>,
}

/// Whether a path is one of nnU-Net's models, or a file of this program that holds one.
pub fn is_model(path: &Path) -> bool {
    if path.is_dir() {
        return !brainchop::is_one(path);
    }
    start_of(path).is_ok_and(|start| begins_a_model(&start))
}

/// Whether a file's bytes are one of nnU-Net's models, or a file of this program that holds one.
pub fn is_model_bytes(bytes: &[u8]) -> bool {
    begins_a_model(&bytes[..bytes.len().min(START)])
}

fn begins_a_model(start: &[u8]) -> bool {
    let within = |part: &[u8]| start.windows(part.len()).any(|window| window == part);
    if start.starts_with(b"PK") {
        // A checkpoint's first entry is its pickle, and that begins with the network's tensors.
        return !within(b"data.pkl") || within(b"network_weights");
    }
    within(br#"\"nnunet\":"#) || within(br#""nnunet":"#)
}

/// A file's first bytes.
fn start_of(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut start = Vec::new();
    std::fs::File::open(path)?
        .take(START as u64)
        .read_to_end(&mut start)?;
    Ok(start)
}

impl Model {
    /// Reads a model of nnU-Net's, or a file that [`Model::save`] wrote.
    ///
    /// # Errors
    /// Files that can't be read, are damaged or missing; what a configuration needs that is not run here, by name; tensors that
    /// don't fit the plan.
    pub fn open(path: &Path, choice: &Choice) -> Result<Model, WeightsError> {
        if path.is_dir() {
            return Tree::of_folder(path)?.model(choice);
        }
        Model::from_bytes(
            &std::fs::read(path).map_err(WeightsError::io(path))?,
            path,
            choice,
        )
    }

    /// [`Model::open`] of a file's bytes; `path` is for messages.
    ///
    /// # Errors
    /// As [`Model::open`], but for a file that can't be read.
    pub fn from_bytes(bytes: &[u8], path: &Path, choice: &Choice) -> Result<Model, WeightsError> {
        if !bytes.starts_with(b"PK") {
            return Model::parse(bytes, path);
        }
        let archive = Tree::of_zip(path, bytes)?;
        if archive
            .files
            .iter()
            .any(|name| name.ends_with("/data.pkl") && !name.contains("fold_"))
        {
            return of_checkpoint(path, bytes, choice);
        }
        archive.model(choice)
    }

    /// [`Model::open`] of the files of a folder, by their paths in it; `path` is for messages.
    ///
    /// # Errors
    /// As [`Model::open`], but for files that can't be read.
    pub fn from_files(
        files: &BTreeMap<String, Vec<u8>>,
        path: &Path,
        choice: &Choice,
    ) -> Result<Model, WeightsError> {
        let entry = |data| Entry {
            data,
            method: CompressionMethod::STORE,
            encrypted: false,
            length: data.len() as u64,
            checksum: crc32fast::hash(data),
        };
        let entries = files.iter().map(|(name, data)| (name.clone(), entry(data)));
        let tree = Tree {
            path: path.into(),
            files: files.keys().cloned().collect(),
            entries: Some(entries.collect()),
        };
        tree.model(choice)
    }
}

/// The files of a model, in a folder or an archive.
struct Tree<'a> {
    path: PathBuf,
    /// With `/` between folders.
    files: Vec<String>,
    /// Those of an archive.
    entries: Option<BTreeMap<String, Entry<'a>>>,
}

/// A file in an archive, as it is stored.
struct Entry<'a> {
    data: &'a [u8],
    method: CompressionMethod,
    encrypted: bool,
    /// Bytes of the file.
    length: u64,
    checksum: u32,
}

impl<'a> Tree<'a> {
    fn of_folder(path: &Path) -> Result<Tree<'a>, WeightsError> {
        let mut files = Vec::new();
        walk(path, "", DEEPEST + 1, &mut files).map_err(WeightsError::io(path))?;
        files.sort();
        Ok(Tree {
            path: path.into(),
            files,
            entries: None,
        })
    }

    fn of_zip(path: &Path, bytes: &'a [u8]) -> Result<Tree<'a>, WeightsError> {
        let format = WeightsError::format(path);
        let damaged = |what: &dyn std::fmt::Display| {
            format(format!("its zip archive is truncated or damaged ({what})"))
        };
        let archive = ZipArchive::from_slice(bytes).map_err(|e| damaged(&e))?;
        let mut entries = BTreeMap::new();
        for header in archive.entries() {
            let header = header.map_err(|e| damaged(&e))?;
            let name = header.file_path();
            let name = std::str::from_utf8(name.as_bytes()).map_err(|_| damaged(&"a name is not UTF-8"))?;
            let name = name.replace('\\', "/");
            // Nothing is unpacked, so such names could do no harm; but no model has them.
            if name.starts_with('/') || name.split('/').any(|part| part == "..") {
                return Err(format(format!(
                    "its entry `{}` would lie outside of the archive; refused",
                    name.escape_debug()
                )));
            }
            if name.ends_with('/') {
                continue;
            }
            let wayfinder = header.wayfinder();
            let found = archive.get_entry(wayfinder).map_err(|e| damaged(&e))?;
            let (start, end) = found.compressed_data_range();
            let entry = Entry {
                data: &bytes[start as usize..end as usize],
                method: header.compression_method(),
                encrypted: header.flags().is_encrypted(),
                length: wayfinder.uncompressed_size_hint(),
                checksum: found.claim_verifier().crc,
            };
            if entries.insert(name.clone(), entry).is_some() {
                return Err(format(format!(
                    "it has the entry `{}` twice",
                    name.escape_debug()
                )));
            }
        }
        Ok(Tree {
            path: path.into(),
            files: entries.keys().cloned().collect(),
            entries: Some(entries),
        })
    }

    fn error(&self, name: &str, reason: impl std::fmt::Display) -> WeightsError {
        WeightsError::Format {
            path: self.path.join(name),
            reason: reason.to_string(),
        }
    }

    /// A file's bytes, `most` at most.
    fn read(&self, name: &str, most: u64) -> Result<Vec<u8>, WeightsError> {
        let too_large = |bytes: u64| self.error(name, format!("has {bytes} bytes; {most} at most are read"));
        let Some(entries) = &self.entries else {
            let path = self.path.join(name);
            let length = std::fs::metadata(&path).map_err(WeightsError::io(&path))?.len();
            if length > most {
                return Err(too_large(length));
            }
            return std::fs::read(&path).map_err(WeightsError::io(&path));
        };
        let entry = &entries[name];
        if entry.length > most {
            return Err(too_large(entry.length));
        }
        if entry.encrypted {
            return Err(self.error(name, "is encrypted"));
        }
        host_memory::require(entry.length).map_err(|e| self.error(name, e))?;
        let damaged = |e: &dyn std::fmt::Display| self.error(name, format!("the archive is damaged ({e})"));
        let mut out = Vec::new();
        match entry.method {
            CompressionMethod::STORE => out.extend_from_slice(entry.data),
            CompressionMethod::DEFLATE => {
                // No more than it says it has, however long it goes on.
                let mut reader = flate2::read::DeflateDecoder::new(entry.data).take(entry.length + 1);
                reader.read_to_end(&mut out).map_err(|e| damaged(&e))?;
            }
            other => return Err(self.error(name, format!("is compressed by {other:?}, which is not read"))),
        }
        if out.len() as u64 != entry.length || crc32fast::hash(&out) != entry.checksum {
            return Err(damaged(&"another length or checksum than it says"));
        }
        Ok(out)
    }

    /// The folder of the configuration that is chosen: the one that ends with its name.
    fn configuration(&self, choice: &Choice) -> Result<(String, String), WeightsError> {
        let mut found: Vec<(String, String)> = Vec::new();
        for file in &self.files {
            if let Some(folder) = file.strip_suffix("plans.json") {
                let has = |name: &str| self.files.iter().any(|f| *f == format!("{folder}{name}"));
                let folds = self
                    .files
                    .iter()
                    .any(|f| f.starts_with(&format!("{folder}fold_")));
                if has("dataset.json") && folds {
                    let own = folder.trim_end_matches('/');
                    let own = match own.is_empty() {
                        true => self
                            .path
                            .file_name()
                            .map(|n| n.to_string_lossy().into_owned())
                            .unwrap_or_default(),
                        false => own.to_owned(),
                    };
                    let name = own.rsplit("__").next().unwrap_or_default().to_owned();
                    found.push((folder.to_owned(), name));
                }
            }
        }
        if found.is_empty() {
            return Err(self.error(
                "",
                "has no model of nnU-Net: plans.json and dataset.json beside folders fold_K with checkpoint_final.pth",
            ));
        }
        let names: Vec<&str> = found.iter().map(|(_, name)| name.as_str()).collect();
        let listed = names.join(", ");
        let wanted = match &choice.configuration {
            Some(wanted) => found
                .iter()
                .filter(|(_, name)| name == wanted)
                .collect::<Vec<_>>(),
            None => found.iter().collect(),
        };
        match wanted[..] {
            [one] => Ok(one.clone()),
            [] => Err(self.error(
                "",
                format!(
                    "has no configuration `{}`; there are {listed}",
                    choice.configuration.as_deref().unwrap_or_default()
                ),
            )),
            _ => Err(self.error(
                "",
                format!("has several configurations, of which one is to be chosen: {listed}"),
            )),
        }
    }

    fn model(&self, choice: &Choice) -> Result<Model, WeightsError> {
        let (folder, configuration) = self.configuration(choice)?;
        let plans_name = format!("{folder}plans.json");
        let text = |name: &str| -> Result<String, WeightsError> {
            let bytes = self.read(name, MOST_JSON)?;
            String::from_utf8(bytes).map_err(|_| self.error(name, "is not UTF-8"))
        };
        let plans: Json =
            serde_json::from_str(&text(&plans_name)?).map_err(|e| self.error(&plans_name, e))?;
        let dataset_name = format!("{folder}dataset.json");
        let dataset = Description::parse(&text(&dataset_name)?).map_err(|e| self.error(&dataset_name, e))?;

        let mut there: Vec<String> = self
            .files
            .iter()
            .filter_map(|file| {
                let rest = file.strip_prefix(&format!("{folder}fold_"))?;
                let (fold, file) = rest.split_once('/')?;
                (file == "checkpoint_final.pth").then(|| fold.to_owned())
            })
            .collect();
        there.sort();
        there.dedup();
        if there.is_empty() {
            return Err(self.error(
                &folder,
                "has no fold_K/checkpoint_final.pth: its training is not finished",
            ));
        }
        let wanted = match choice.folds.is_empty() {
            // The training on all cases is a model of its own beside those of the folds.
            true if there.len() > 1 => there.iter().filter(|fold| *fold != "all").cloned().collect(),
            true => there.clone(),
            false => choice.folds.clone(),
        };
        if let Some(missing) = wanted.iter().find(|fold| !there.contains(fold)) {
            return Err(self.error(
                &folder,
                format!("has no fold `{missing}`; there are {}", there.join(", ")),
            ));
        }

        let mut plan: Option<Plan> = None;
        let mut folds = Vec::new();
        for fold in &wanted {
            let name = format!("{folder}fold_{fold}/checkpoint_final.pth");
            let bytes = self.read(&name, MOST_CHECKPOINT)?;
            let error = |reason: String| self.error(&name, reason);
            let found = Nnunet::read(&bytes, is_needed).map_err(error)?;
            check_trainer(found.trainer.as_deref()).map_err(error)?;
            let own = Plan::new(&plans, &dataset, &configuration, found.mirroring.clone())
                .map_err(|e| self.error(&plans_name, e))?;
            folds.push(fitting(&own, found.checkpoint.tensors).map_err(error)?);
            if plan.as_ref().is_some_and(|plan| *plan != own) {
                return Err(error(
                    "allows other mirroring axes than the folds before it".into(),
                ));
            }
            plan = Some(own);
        }
        Ok(Model {
            plan: plan.expect("one fold at least"),
            names: wanted,
            folds,
        })
    }
}

/// Files below a folder, links to folders left out.
fn walk(root: &Path, inner: &str, left: usize, files: &mut Vec<String>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(root.join(inner))? {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        let path = format!("{inner}{name}");
        match entry.file_type()?.is_dir() {
            true if left > 0 => walk(root, &format!("{path}/"), left - 1, files)?,
            true => {}
            false => files.push(path),
        }
    }
    Ok(())
}

/// A checkpoint alone: its plans are inside.
fn of_checkpoint(path: &Path, bytes: &[u8], choice: &Choice) -> Result<Model, WeightsError> {
    let format = WeightsError::format(path);
    let found = Nnunet::read(bytes, is_needed).map_err(format)?;
    check_trainer(found.trainer.as_deref()).map_err(format)?;
    let arguments = found.arguments.unwrap_or_default();
    let (Some(plans), Some(Json::Object(json))) = (arguments.get("plans"), arguments.get("dataset_json"))
    else {
        return Err(format(
            "it has no plans inside; give the folder of the model".into(),
        ));
    };
    let own = arguments.get("configuration").and_then(Json::as_str);
    let Some(configuration) = choice.configuration.as_deref().or(own) else {
        return Err(format("it does not say of which configuration it is".into()));
    };
    let dataset = Description {
        json: json.clone(),
        labels: found
            .labels
            .ok_or_else(|| format("its dataset.json has no labels".into()))?,
    };
    let plan = Plan::new(plans, &dataset, configuration, found.mirroring).map_err(format)?;
    let tensors = fitting(&plan, found.checkpoint.tensors).map_err(format)?;
    let fold = arguments.get("fold").and_then(Json::as_i64);
    Ok(Model {
        plan,
        names: vec![fold.map_or("all".into(), |fold| fold.to_string())],
        folds: vec![tensors],
    })
}

/// Trainers may change the network, and then are programs of their own.
fn check_trainer(name: Option<&str>) -> Result<(), String> {
    match name {
        Some(name) if !name.starts_with("nnUNetTrainer") => Err(format!(
            "it was trained by `{}`, which may have a network of its own; nnU-Net's trainers are known here",
            name.escape_debug()
        )),
        Some(name) if name.contains("Cascade") || name.contains("BN") || name.contains("_noInstanceNorm") => {
            Err(format!(
                "it was trained by `{}`, whose network is not the plan's",
                name.escape_debug()
            ))
        }
        _ => Ok(()),
    }
}

/// The same tensors stand there under other names, too, and the encoder again in the decoder.
fn is_needed(name: &str) -> bool {
    !name.contains(".all_modules.") && !name.starts_with("decoder.encoder.")
}

/// The tensors of the plan's network, checked against it; the deep supervision's outputs are left out.
pub(super) fn fitting(
    plan: &Plan,
    mut tensors: HashMap<String, Tensor>,
) -> Result<HashMap<String, Tensor>, String> {
    check_numbers(&tensors)?;
    let graph = network::graph(plan).map_err(|e| e.to_string())?;
    let mut fitting = HashMap::new();
    for (_, info) in graph.parameters() {
        let tensor = tensors
            .remove(&info.name)
            .ok_or_else(|| format!("tensor `{}` of the plan's network is missing", info.name))?;
        if tensor.shape != info.spec.shape {
            return Err(format!(
                "tensor `{}` is {:?}; the plan's network has {:?}",
                info.name, tensor.shape, info.spec.shape
            ));
        }
        fitting.insert(info.name.clone(), tensor);
    }
    let other = tensors
        .keys()
        .filter(|name| !name.starts_with("decoder.seg_layers."))
        .min();
    match other {
        Some(name) => Err(format!(
            "its tensor `{}` is not one of the plan's network",
            name.escape_debug()
        )),
        None => Ok(fitting),
    }
}

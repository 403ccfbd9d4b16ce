//! PyTorch checkpoints: the state dict in a file of `torch.save`, of both kinds.
//!
//! Since PyTorch 1.6 a checkpoint is a zip archive that stores, uncompressed, `NAME/data.pkl` (a pickle of the saved
//! object in which storages have keys), `NAME/data/KEY` (the elements of a storage) and small entries such as
//! `NAME/version` and `NAME/byteorder`. Before, and with `_use_new_zipfile_serialization=False`, it is a sequence: the
//! pickles of a magic number, the protocol version, facts of the system, the object and the list of the storages' keys,
//! then each storage as an i64 count and little-endian elements.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Map, Value as Json};

use super::pickle::{self, Element, Pickle, Storage, Value, View};
use super::zip;
use crate::tensor::Tensor;

/// The number that a legacy checkpoint starts with.
const MAGIC: i128 = 0x1950_a86a_20f9_469c_fc6c;
/// The version of the legacy format.
const PROTOCOL: i128 = 1001;
/// The newest version of the zip format (PyTorch's kMaxSupportedFileFormatVersion).
const NEWEST_ZIP: u32 = 10;
/// Where training scripts keep the state dict in a larger dict.
const CONTAINERS: [&str; 3] = ["model_state_dict", "state_dict", "model"];
/// Most dicts in dicts that are looked through for the state dict.
const MOST_NESTED: usize = 4;
/// Most elements of all tensors together, 1 GiB as f32: twenty times the largest network of this program.
const MOST_ELEMENTS: usize = 1 << 28;
/// Longest name of a tensor, in bytes.
const LONGEST_NAME: usize = 256;

/// A batch norm's count of training batches: an int64 that PyTorch uses only where the momentum is None.
pub(super) const BATCHES: &str = "num_batches_tracked";

/// What a checkpoint holds of a network.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Checkpoint {
    /// Parameters and states by name, without DataParallel's `module.`; as f32.
    pub tensors: HashMap<String, Tensor>,
    /// The batch norms' counts of training batches by name, `….num_batches_tracked`.
    pub batches: BTreeMap<String, i64>,
    /// Number of tensors that were of another type than float32, by PyTorch's name of that type.
    pub converted: BTreeMap<&'static str, usize>,
}

/// Whether the bytes are those of a zip archive or of a pickle, and so maybe of a checkpoint.
///
/// A safetensors file begins with eight bytes, the length of its header, and the header's brace. The length's low bytes may
/// be those that a pickle (0x80) or a zip archive (`PK`) begins with; its four high bytes are zero. In a checkpoint they are
/// not: there a zip archive has its flags and method, a pickle its first values.
pub(super) fn looks_like_one(bytes: &[u8]) -> bool {
    let is_safetensors = bytes.len() > 8 && bytes[8] == b'{' && bytes[4..8] == [0; 4];
    !is_safetensors && (is_zip(bytes) || bytes.starts_with(&[0x80]))
}

fn is_zip(bytes: &[u8]) -> bool {
    bytes.starts_with(b"PK")
}

impl Checkpoint {
    /// Reads a checkpoint of either kind. Nothing in it is executed: its pickle may only describe tensors.
    ///
    /// Accepted are a state dict, or a dict that has one as `model_state_dict`, `state_dict` or `model`. float64,
    /// float16 and bfloat16 become f32.
    ///
    /// # Errors
    /// In words for the user, when the file is damaged or truncated, would run code, describes tensors that its
    /// storages don't hold, or holds no state dict.
    pub fn read(bytes: &[u8]) -> Result<Checkpoint, String> {
        if is_zip(bytes) {
            read_zip(bytes)
        } else {
            read_legacy(bytes)
        }
    }
}

/// What an nnU-Net checkpoint holds beside the network's tensors.
#[derive(Clone, Debug, Default)]
pub(crate) struct Nnunet {
    /// The network's tensors.
    pub checkpoint: Checkpoint,
    /// `init_args`: the plans, dataset.json and the configuration's name, where they are there.
    pub arguments: Option<Map<String, Json>>,
    /// The labels of that dataset.json in their order, which a [`Map`] does not keep.
    pub labels: Option<Vec<(String, Json)>>,
    /// `trainer_name`.
    pub trainer: Option<String>,
    /// `inference_allowed_mirroring_axes`.
    pub mirroring: Option<Vec<usize>>,
}

/// Most values in the plain part of a checkpoint, each of which may stand at several places of it.
const MOST_PLAIN: usize = 1 << 20;
/// Deepest nesting of them.
const DEEPEST: usize = 24;

/// A value as JSON; what JSON can't say is null. `left` values may follow.
fn json(pickle: &Pickle, value: &Value, depth: usize, left: &mut usize) -> Result<Json, String> {
    if depth == 0 || *left == 0 {
        return Err("its settings are nested too deep, or too many".into());
    }
    *left -= 1;
    let mut all = |values: &[Value]| -> Result<Json, String> {
        values
            .iter()
            .map(|value| json(pickle, value, depth - 1, left))
            .collect()
    };
    Ok(match value {
        Value::Bool(value) => Json::Bool(*value),
        Value::Int(value) => i64::try_from(*value).map_or(Json::Null, Json::from),
        Value::Float(value) => Json::from(*value),
        Value::Text(text) => Json::from(&**text),
        Value::List(list) => all(&pickle.lists[*list])?,
        Value::Tuple(tuple) => all(&pickle.tuples[*tuple])?,
        Value::Dict(dict) => Json::Object(entries(pickle, *dict, depth - 1, left)?.into_iter().collect()),
        _ => Json::Null,
    })
}

/// The entries of a dict, in their order, whose keys are strings, or numbers as strings.
fn entries(
    pickle: &Pickle,
    dict: usize,
    depth: usize,
    left: &mut usize,
) -> Result<Vec<(String, Json)>, String> {
    let mut entries = Vec::new();
    for (key, value) in &pickle.dicts[dict] {
        let key = match key {
            Value::Text(key) => key.to_string(),
            Value::Int(key) => key.to_string(),
            _ => continue,
        };
        entries.push((key, json(pickle, value, depth, left)?));
    }
    Ok(entries)
}

/// A value of a dict.
fn find<'p>(pickle: &'p Pickle, dict: usize, wanted: &str) -> Option<&'p Value> {
    let entry = pickle.dicts[dict]
        .iter()
        .find(|(key, _)| matches!(key, Value::Text(key) if &**key == wanted));
    entry.map(|(_, value)| value)
}

/// A dict in a dict.
fn find_dict(pickle: &Pickle, dict: usize, wanted: &str) -> Option<usize> {
    match find(pickle, dict, wanted) {
        Some(Value::Dict(dict)) => Some(*dict),
        _ => None,
    }
}

impl Nnunet {
    /// Reads a checkpoint of nnU-Net, and of its tensors those that are `wanted`. Nothing in it is executed.
    ///
    /// # Errors
    /// Those of [`Checkpoint::read`]; a checkpoint of something else.
    pub(crate) fn read(bytes: &[u8], wanted: impl Fn(&str) -> bool) -> Result<Nnunet, String> {
        if !is_zip(bytes) {
            return Err("it is no checkpoint of nnU-Net, which writes PyTorch's zip archives".into());
        }
        with_zip(bytes, |pickle, read| {
            let Value::Dict(root) = pickle.root else {
                return Err(format!("it holds {}, not a dict", pickle.root.kind()));
            };
            let Some(weights) = find_dict(pickle, root, "network_weights") else {
                return Err("it has no `network_weights`: it is no checkpoint of nnU-Net".into());
            };
            let mut named = named_tensors(pickle, &pickle.dicts[weights])?;
            for prefix in ["module.", "_orig_mod."] {
                named = named
                    .into_iter()
                    .map(|(name, view)| (name.strip_prefix(prefix).unwrap_or(name), view))
                    .collect();
            }
            named.retain(|name, _| wanted(name));
            let left = &mut { MOST_PLAIN };
            let arguments = find_dict(pickle, root, "init_args");
            let labels = arguments
                .and_then(|dict| find_dict(pickle, dict, "dataset_json"))
                .and_then(|dict| find_dict(pickle, dict, "labels"));
            let mut read_dict =
                |dict: Option<usize>| dict.map(|dict| entries(pickle, dict, DEEPEST, left)).transpose();
            let (arguments, labels) = (read_dict(arguments)?, read_dict(labels)?);
            let axes = match find(pickle, root, "inference_allowed_mirroring_axes") {
                Some(value) => json(pickle, value, 2, left)?,
                None => Json::Null,
            };
            let mirroring = serde_json::from_value(axes).map_err(|_| "its mirroring axes are no axes")?;
            Ok(Nnunet {
                checkpoint: collect_named(pickle, named, read)?,
                arguments: arguments.map(|entries| entries.into_iter().collect()),
                labels,
                trainer: match find(pickle, root, "trainer_name") {
                    Some(Value::Text(name)) => Some(name.to_string()),
                    _ => None,
                },
                mirroring,
            })
        })
    }
}

fn read_zip(bytes: &[u8]) -> Result<Checkpoint, String> {
    with_zip(bytes, |pickle, read| collect(pickle, read))
}

/// Finds the bytes of a storage.
type Read<'a, 'r> = &'r dyn Fn(&Storage) -> Result<&'a [u8], String>;

/// The pickle of a zip archive, and what finds the bytes of its storages.
fn with_zip<'a, T>(
    bytes: &'a [u8],
    make: impl FnOnce(&Pickle, Read<'a, '_>) -> Result<T, String>,
) -> Result<T, String> {
    let entries = zip::entries(bytes)?;
    let folders: Vec<&str> = entries
        .keys()
        .filter_map(|name| name.strip_suffix("/data.pkl"))
        .filter(|folder| !folder.contains('/'))
        .collect();
    let [folder] = folders[..] else {
        return Err(match folders.len() {
            0 => "it is a zip archive without data.pkl, not a PyTorch checkpoint".into(),
            n => format!("it is a zip archive with {n} times data.pkl, not one PyTorch checkpoint"),
        });
    };
    let entry = |name: &str| entries.get(format!("{folder}/{name}").as_str()).copied();
    if entry("constants.pkl").is_some() {
        return Err("it is a TorchScript program; save `model.state_dict()` instead".into());
    }
    if entry("byteorder").is_some_and(|order| order != b"little") {
        return Err("its numbers are not little-endian; save it on a little-endian machine".into());
    }
    let version = entry("version").map(|v| std::str::from_utf8(v).unwrap_or_default().trim().parse());
    if version.is_some_and(|v| v.map_or(true, |v: u32| v > NEWEST_ZIP)) {
        return Err(format!(
            "its format is newer than version {NEWEST_ZIP}, the newest known"
        ));
    }
    let data = entry("data.pkl").unwrap_or_default();
    let (pickle, length) = pickle::load(data)?;
    if length != data.len() {
        return Err("its pickle is followed by other bytes".into());
    }
    make(&pickle, &|storage| {
        let shown = storage.key.escape_debug();
        let elements = entry(&format!("data/{}", storage.key))
            .ok_or_else(|| format!("its entry `data/{shown}` is missing"))?;
        let needed = storage.count * storage.element.size();
        match elements.len() == needed {
            true => Ok(elements),
            false => Err(format!(
                "its entry `data/{shown}` has {} bytes, {} {} elements need {needed}",
                elements.len(),
                storage.count,
                storage.element.name(),
            )),
        }
    })
}

fn read_legacy(bytes: &[u8]) -> Result<Checkpoint, String> {
    let mut rest = bytes;
    let mut next = || -> Result<Pickle, String> {
        let (pickle, length) = pickle::load(rest)?;
        rest = &rest[length..];
        Ok(pickle)
    };
    if !matches!(next()?.root, Value::Int(MAGIC)) {
        return Err("it is a pickle, but not one of `torch.save`".into());
    }
    if !matches!(next()?.root, Value::Int(PROTOCOL)) {
        return Err(format!(
            "its format is not version {PROTOCOL} of PyTorch's legacy format"
        ));
    }
    next()?; // facts of the system: storages are little-endian on any
    let (pickle, keys) = (next()?, next()?);
    let Value::List(list) = keys.root else {
        return Err("its list of storages is missing".into());
    };
    let by_key: HashMap<&str, &Storage> = pickle.storages.iter().map(|s| (&*s.key, s)).collect();
    let mut elements: HashMap<&str, &[u8]> = HashMap::new();
    for key in &keys.lists[list] {
        let storage = match key {
            Value::Text(key) => by_key.get(&**key).copied(),
            _ => None,
        };
        let storage = storage.ok_or("its list of storages names one that no tensor uses")?;
        let shown = storage.key.escape_debug();
        let cut = || format!("storage {shown} is cut off; the file is truncated or damaged");
        let (count, behind) = rest.split_first_chunk::<8>().ok_or_else(cut)?;
        if i64::from_le_bytes(*count) != storage.count as i64 {
            return Err(format!(
                "storage {shown} has {} elements where {} are described",
                i64::from_le_bytes(*count),
                storage.count
            ));
        }
        let (data, behind) = behind
            .split_at_checked(storage.count * storage.element.size())
            .ok_or_else(cut)?;
        rest = behind;
        if elements.insert(&storage.key, data).is_some() {
            return Err(format!("storage {shown} is stored twice"));
        }
    }
    if !rest.is_empty() {
        return Err(format!("its storages are followed by {} other bytes", rest.len()));
    }
    collect(&pickle, |storage| {
        let data = elements.get(&*storage.key).copied();
        data.ok_or_else(|| format!("storage {} is not in the file", storage.key.escape_debug()))
    })
}

/// The state dict's tensors, with the elements that `read` finds for a storage.
fn collect<'a>(
    pickle: &Pickle,
    read: impl Fn(&Storage) -> Result<&'a [u8], String>,
) -> Result<Checkpoint, String> {
    collect_named(pickle, state_dict(pickle)?, read)
}

fn collect_named<'a>(
    pickle: &Pickle,
    named: BTreeMap<&str, &View>,
    read: impl Fn(&Storage) -> Result<&'a [u8], String>,
) -> Result<Checkpoint, String> {
    let elements = named
        .values()
        .fold(0, |sum: usize, view| sum.saturating_add(view.count()));
    if elements > MOST_ELEMENTS {
        return Err(format!(
            "its tensors have {elements} elements; at most {MOST_ELEMENTS} are read"
        ));
    }
    let mut checkpoint = Checkpoint::default();
    for (name, view) in named {
        let storage = &pickle.storages[view.storage];
        checkpoint.add(name, storage.element, read(storage)?, view)?;
    }
    Ok(checkpoint)
}

impl Checkpoint {
    fn add(&mut self, name: &str, element: Element, storage: &[u8], view: &View) -> Result<(), String> {
        let is_count = name.rsplit('.').next() == Some(BATCHES);
        if element == Element::I64 && is_count && view.count() == 1 {
            let bytes = elements::<8>(storage, view)[0];
            self.batches.insert(name.into(), i64::from_le_bytes(bytes));
            return Ok(());
        }
        let data: Vec<f32> = match element {
            Element::F32 => elements(storage, view)
                .into_iter()
                .map(f32::from_le_bytes)
                .collect(),
            Element::F64 => elements(storage, view)
                .into_iter()
                .map(|b| narrow(name, f64::from_le_bytes(b)))
                .collect::<Result<_, _>>()?,
            Element::F16 => elements(storage, view)
                .into_iter()
                .map(|b| half::f16::from_le_bytes(b).to_f32())
                .collect(),
            Element::BF16 => elements(storage, view)
                .into_iter()
                .map(|b| half::bf16::from_le_bytes(b).to_f32())
                .collect(),
            other => {
                return Err(format!(
                    "tensor `{name}` is {}; weights are float32, or float64, float16 or bfloat16",
                    other.name()
                ));
            }
        };
        if element != Element::F32 {
            *self.converted.entry(element.name()).or_default() += 1;
        }
        self.tensors.insert(name.into(), Tensor::new(&view.shape, data));
        Ok(())
    }
}

fn narrow(name: &str, value: f64) -> Result<f32, String> {
    let narrow = value as f32;
    match value.is_finite() && !narrow.is_finite() {
        true => Err(format!("tensor `{name}` has {value:e}, which is beyond float32")),
        false => Ok(narrow),
    }
}

/// The elements of a view in row-major order, each as `N` bytes. The storage holds them: [`pickle`] has checked the
/// view against the storage's count, and the caller the count against the bytes.
fn elements<const N: usize>(storage: &[u8], view: &View) -> Vec<[u8; N]> {
    let (all, _) = storage.as_chunks::<N>();
    let count = view.count();
    let mut out = Vec::with_capacity(count);
    let mut position = vec![0; view.shape.len()];
    let mut at = view.offset;
    while out.len() < count {
        out.push(all[at]);
        for axis in (0..position.len()).rev() {
            position[axis] += 1;
            at += view.strides[axis];
            if position[axis] < view.shape[axis] {
                break;
            }
            at -= view.strides[axis] * view.shape[axis];
            position[axis] = 0;
        }
    }
    out
}

/// Names and tensors of a dict.
fn named_tensors<'p>(
    pickle: &'p Pickle,
    dict: &'p [(Value, Value)],
) -> Result<BTreeMap<&'p str, &'p View>, String> {
    if dict.is_empty() {
        return Err("its state dict is empty".into());
    }
    let mut named = BTreeMap::new();
    for (key, value) in dict {
        let name = match key {
            Value::Text(name) => &**name,
            other => return Err(format!("its state dict has a key that is {}", other.kind())),
        };
        let shown: String = name.chars().take(LONGEST_NAME).collect();
        let shown = shown.escape_debug();
        if name.is_empty() || name.len() > LONGEST_NAME || name.chars().any(char::is_control) {
            return Err(format!(
                "its state dict has a tensor of the unusable name `{shown}`"
            ));
        }
        let Value::Tensor(view) = value else {
            return Err(format!(
                "`{shown}` is {}, not a tensor; a state dict has only tensors, or is in a dict as one of {}",
                value.kind(),
                CONTAINERS.join(", ")
            ));
        };
        if named.insert(name, &pickle.views[*view]).is_some() {
            return Err(format!("its state dict has `{shown}` twice"));
        }
    }
    Ok(named)
}

/// Names and tensors of the state dict, which the pickle's object is or has under one of [`CONTAINERS`].
fn state_dict(pickle: &Pickle) -> Result<BTreeMap<&str, &View>, String> {
    let mut dict = match pickle.root {
        Value::Dict(dict) => &pickle.dicts[dict],
        ref other => return Err(format!("it holds {}, not a state dict", other.kind())),
    };
    for _ in 0..MOST_NESTED {
        let inner = CONTAINERS.iter().find_map(|wanted| {
            dict.iter().find_map(|item| match item {
                (Value::Text(key), Value::Dict(inner)) if **key == **wanted => Some(*inner),
                _ => None,
            })
        });
        match inner {
            Some(inner) => dict = &pickle.dicts[inner],
            None => break,
        }
    }
    let named = named_tensors(pickle, dict)?;
    let parallel = named
        .keys()
        .all(|name| name.strip_prefix("module.").is_some_and(|n| !n.is_empty()));
    Ok(match parallel {
        true => named
            .into_iter()
            .map(|(name, view)| (&name["module.".len()..], view))
            .collect(),
        false => named,
    })
}

//! `dataset.json`: what the Decathlon's and nnU-Net's have in common.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, Visitor};
use serde_json::Value;

use super::synthesis::Table;
use super::{DatasetError, Label, invalid, json};

/// The most classes that labels can distinguish.
const MOST_LABELS: usize = 1 << 16;

/// The fields of dataset.json that are read.
#[derive(Debug, Deserialize)]
pub(super) struct Description {
    channel_names: Option<Entries>,
    modality: Option<Entries>,
    labels: Option<Entries>,
    /// Decathlon: the cases.
    pub training: Option<Vec<Value>>,
    /// nnU-Net: `.nii.gz` or `.nii`.
    pub file_ending: Option<String>,
    /// How images are made of label maps.
    pub synthesis: Option<Table>,
    /// The file.
    #[serde(skip)]
    pub path: PathBuf,
}

/// A JSON object whose names are all different, in its order.
#[derive(Debug)]
struct Entries(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Entries, D::Error> {
        struct Read;
        impl<'de> Visitor<'de> for Read {
            type Value = Entries;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object, such as {\"0\": \"CT\"}")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut entries: Vec<(String, Value)> = Vec::new();
                let mut names = std::collections::HashSet::new();
                while let Some((name, value)) = map.next_entry::<String, Value>()? {
                    if !names.insert(name.clone()) {
                        return Err(A::Error::custom(format!("`{name}` is there twice")));
                    }
                    entries.push((name, value));
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(Read)
    }
}

impl Description {
    /// `folder/dataset.json`, `None` where there is none.
    pub fn read(folder: &Path) -> Result<Option<Description>, DatasetError> {
        let path = folder.join("dataset.json");
        if !path.exists() {
            return Ok(None);
        }
        let description: Description = json(&path, "a dataset's description")?;
        Ok(Some(Description { path, ..description }))
    }

    /// Names of the channels by their number.
    pub fn channels(&self) -> Result<Vec<String>, DatasetError> {
        let Some(Entries(names)) = self.channel_names.as_ref().or(self.modality.as_ref()) else {
            return invalid(
                &self.path,
                "it has neither `modality` nor `channel_names`, such as {\"0\": \"CT\"}",
            );
        };
        let count = names.len();
        let channel = |index: usize| {
            let named = names.iter().find(|(number, _)| *number == index.to_string());
            match named.and_then(|(_, name)| name.as_str()) {
                Some(name) if is_name(name) => Ok(name.to_string()),
                Some(name) => invalid(&self.path, no_name(name)),
                None => invalid(
                    &self.path,
                    format!("its {count} channels must be named \"0\" to \"{}\"", count - 1),
                ),
            }
        };
        match count {
            0 => invalid(&self.path, "it names no channel"),
            _ => (0..count).map(channel).collect(),
        }
    }

    /// Labels by ascending value, and the value to ignore: `{"1": "liver"}` (Decathlon) or `{"liver": 1}` (nnU-Net v2).
    pub fn labels(&self) -> Result<(Vec<Label>, Option<i32>), DatasetError> {
        let Some(Entries(entries)) = &self.labels else {
            return invalid(
                &self.path,
                "it has no `labels`, such as {\"0\": \"background\", \"1\": \"liver\"}",
            );
        };
        let mut labels = entries
            .iter()
            .map(|(key, value)| label(key, value))
            .collect::<Result<Vec<Label>, String>>()
            .or_else(|problem| invalid(&self.path, problem))?;
        let ignored = |label: &Label| label.name == "ignore" && label.value != 0;
        let ignore = labels.iter().find(|l| ignored(l)).map(|l| l.value);
        labels.sort_by_key(|l| l.value);
        if let Some(pair) = labels.windows(2).find(|p| p[0].value == p[1].value) {
            let problem = format!(
                "the labels {} and {} have one value, {}",
                pair[0].name, pair[1].name, pair[0].value
            );
            return invalid(&self.path, problem);
        }
        let mut by_name: Vec<&Label> = labels.iter().collect();
        by_name.sort_by_key(|l| &l.name);
        if let Some(pair) = by_name.windows(2).find(|p| p[0].name == p[1].name) {
            let problem = format!(
                "the values {} and {} have one name, {}; give each its own",
                pair[0].value, pair[1].value, pair[0].name
            );
            return invalid(&self.path, problem);
        }
        labels.retain(|l| !ignored(l));
        if labels.first().is_none_or(|l| l.value != 0) || labels.len() < 2 {
            return invalid(
                &self.path,
                "it must have the label 0, the background, and at least one positive label",
            );
        }
        if labels.len() > MOST_LABELS {
            return invalid(
                &self.path,
                format!(
                    "it has {} labels; at most {MOST_LABELS} can be told apart",
                    labels.len()
                ),
            );
        }
        Ok((labels, ignore))
    }
}

/// Whether weights can name a label or channel so, and terminals show it.
fn is_name(text: &str) -> bool {
    !text.chars().any(char::is_control)
}

fn no_name(text: &str) -> String {
    format!("`{}` is no name: it has control characters", text.escape_debug())
}

fn label(key: &str, value: &Value) -> Result<Label, String> {
    // f32 holds every whole number below 2^24
    let possible = |number: i64| i32::try_from(number).ok().filter(|n| n.abs() < 1 << 24);
    let number = |text: &str| text.trim().parse().ok().and_then(possible);
    let label = match value {
        Value::Array(_) => {
            return Err(format!(
                "the label {key} is a region of several values; region-based training is not supported: \
                 give each value a label of its own"
            ));
        }
        Value::Number(n) => n.as_i64().and_then(possible).map(|value| (value, key)),
        Value::String(text) => match (number(key), number(text)) {
            (Some(value), _) => Some((value, text.as_str())),
            (None, Some(value)) => Some((value, key)),
            _ => None,
        },
        _ => None,
    };
    let (value, name) =
        label.ok_or_else(|| format!("the label \"{key}\": {value} has no whole number below 2^24"))?;
    if !is_name(name) {
        return Err(no_name(name));
    }
    Ok(Label {
        value,
        name: name.to_string(),
    })
}

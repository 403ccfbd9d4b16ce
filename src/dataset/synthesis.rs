//! Label maps to make images of, without scans: `labelsTr/CASE.nii.gz` and a `synthesis` table in dataset.json, which says what voxels
//! share an intensity and what is learned.

use std::collections::BTreeMap;
use std::path::Path;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use rand_distr::{Distribution, StandardNormal};
use serde::Deserialize;

use super::description::Description;
use super::{Contents, Convention, DatasetError, Label, invalid, labelled};
use crate::volume::{Volume, VolumeError};

pub(super) const SYNTHETIC: Convention = Convention {
    name: "label maps to make images of (dataset.json with `synthesis`)",
    read,
};

/// The table in dataset.json.
#[derive(Debug, Deserialize)]
pub(super) struct Table {
    /// By name, values of label maps that share an intensity.
    made: BTreeMap<String, Vec<i32>>,
    /// By the label's name, values of label maps that it is; others are background.
    learned: BTreeMap<String, Vec<i32>>,
    /// Names of `made` that are sometimes missing, all together: a head without its skull.
    #[serde(default)]
    missing: Vec<String>,
}

/// How images are made of label maps (in the manner of Billot et al. 2023): each group of values has an intensity of its own, drawn
/// anew for every image.
#[derive(Clone, Debug, PartialEq)]
pub struct Synthesis {
    /// What label maps hold: ascending from 0, the background. A value's position is what trainings have in its place.
    pub values: Vec<i32>,
    /// By position, the group that the value shares its intensity with; 0 is the background's own.
    pub groups: Vec<usize>,
    /// By position, the class that is learned.
    pub learned: Vec<usize>,
    /// By position, whether it may be missing.
    pub missing: Vec<bool>,
}

/// Mean and standard deviation of the intensities of each value, by position.
pub type Intensities = Vec<[f32; 2]>;

impl Synthesis {
    /// Values at most.
    pub const MOST: usize = 128;

    fn new(table: &Table, labels: &[Label]) -> Result<Synthesis, String> {
        let mut by_value: BTreeMap<i32, (usize, bool)> = BTreeMap::from([(0, (0, false))]);
        for (i, (name, values)) in table.made.iter().enumerate() {
            for value in values.iter().filter(|value| **value != 0) {
                if *value < 0 {
                    return Err(format!("`made` has the value {value}; they are 0 or above"));
                }
                let group = (i + 1, table.missing.contains(name));
                if by_value.insert(*value, group).is_some() {
                    return Err(format!("`made` has the value {value} twice"));
                }
            }
        }
        if let Some(name) = table.missing.iter().find(|name| !table.made.contains_key(*name)) {
            return Err(format!("`missing` has {name}, which `made` has not"));
        }
        if by_value.len() > Synthesis::MOST || by_value.len() < 2 {
            let values = by_value.len() - 1;
            return Err(format!(
                "`made` has {values} values; it must have 1 to {}",
                Synthesis::MOST - 1
            ));
        }
        let mut classes = BTreeMap::new();
        for (name, values) in &table.learned {
            let Some(class) = labels.iter().position(|label| label.name == *name) else {
                return Err(format!("`learned` has {name}, which `labels` has not"));
            };
            for value in values {
                if !by_value.contains_key(value) {
                    return Err(format!("`learned` has the value {value}, which `made` has not"));
                }
                if classes.insert(*value, class).is_some() {
                    return Err(format!("`learned` has the value {value} twice"));
                }
            }
        }
        if let Some(label) = (1..labels.len()).find(|class| !classes.values().any(|c| c == class)) {
            return Err(format!(
                "`learned` has no value for the label {}",
                labels[label].name
            ));
        }
        Ok(Synthesis {
            values: by_value.keys().copied().collect(),
            groups: by_value.values().map(|(group, _)| *group).collect(),
            learned: by_value
                .keys()
                .map(|value| classes.get(value).copied().unwrap_or(0))
                .collect(),
            missing: by_value.values().map(|(_, missing)| *missing).collect(),
        })
    }

    /// The values as labels, whose classes are their positions.
    pub fn labels(&self) -> Vec<Label> {
        let label = |value: &i32| Label {
            value: *value,
            name: value.to_string(),
        };
        self.values.iter().map(label).collect()
    }

    /// Intensities of an image, between 0 and 1: means evenly from all of it, standard deviations up to 0.12; the background is
    /// black in half of the images, and in three of ten what may be missing is background.
    pub fn intensities(&self, rng: &mut ChaCha8Rng) -> Intensities {
        let mut share = || rng.next_u32() as f32 / u32::MAX as f32;
        let background = match share() < 0.5 {
            true => [0.0, 0.0],
            false => [0.3 * share(), 0.05 * share()],
        };
        let missing = share() < 0.3;
        let groups = self.groups.iter().max().map_or(0, |group| group + 1);
        let drawn: Intensities = (0..groups).map(|_| [share(), 0.12 * share()]).collect();
        let of = |(group, may_miss): (&usize, &bool)| match *group == 0 || (*may_miss && missing) {
            true => background,
            false => drawn[*group],
        };
        self.groups.iter().zip(&self.missing).map(of).collect()
    }

    /// An image of a label map on its own grid and, in file values, what is to be learned of it.
    ///
    /// # Errors
    /// Values that are in no group, and voxels that are no labels.
    pub fn scan(&self, map: &Volume, labels: &[Label], seed: u64) -> Result<(Volume, Vec<i32>), VolumeError> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let intensities = self.intensities(&mut rng);
        let positions = super::classes(map, &self.labels(), None)?;
        let mut scan = map.clone();
        for (voxel, position) in scan.data.iter_mut().zip(&positions) {
            let [mean, sd] = intensities[*position as usize];
            let number: f64 = StandardNormal.sample(&mut rng);
            *voxel = mean + sd * number as f32;
        }
        let learned = positions.iter().map(|p| labels[self.learned[*p as usize]].value);
        Ok((scan, learned.collect()))
    }
}

fn read(folder: &Path) -> Result<Option<Contents>, DatasetError> {
    let Some(description) = Description::read(folder)? else {
        return Ok(None);
    };
    let Some(table) = &description.synthesis else {
        return Ok(None);
    };
    let channels = description.channels()?;
    let (labels, ignore) = description.labels()?;
    if channels.len() != 1 || ignore.is_some() {
        let problem = "images of label maps have one channel, and no label to ignore";
        return invalid(&description.path, problem);
    }
    let synthesis = Synthesis::new(table, &labels)
        .or_else(|problem| invalid(&description.path, format!("`synthesis`: {problem}")))?;
    Ok(Some(Contents {
        cases: labelled(folder, |_, label| vec![label.to_owned()])?,
        channels,
        labels,
        ignore,
        synthesis: Some(synthesis),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn label(value: i32, name: &str) -> Label {
        Label {
            value,
            name: name.into(),
        }
    }

    #[test]
    fn tables_say_what_is_made_and_learned_or_what_is_wrong() {
        let labels = [label(0, "background"), label(1, "a"), label(2, "b")];
        let of = |json: &str| Synthesis::new(&serde_json::from_str(json).unwrap(), &labels);
        let made = of(
            r#"{"made": {"x": [4, 9], "y": [2], "z": [7]}, "learned": {"a": [9], "b": [2, 7]}, "missing": ["z"]}"#,
        );
        let made = made.unwrap();
        assert_eq!(made.values, [0, 2, 4, 7, 9]);
        assert_eq!(made.groups, [0, 2, 1, 3, 1]);
        assert_eq!(made.learned, [0, 2, 0, 2, 1]);
        assert_eq!(made.missing, [false, false, false, true, false]);
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let mut skulls = 0;
        for _ in 0..200 {
            let intensities = made.intensities(&mut rng);
            assert_eq!(intensities[2], intensities[4]);
            assert_ne!(intensities[1], intensities[2]);
            skulls += usize::from(intensities[3] != intensities[0]);
        }
        assert!((100..180).contains(&skulls), "{skulls}");
        for (json, problem) in [
            (r#"{"made": {"x": [-4]}, "learned": {}}"#, "value -4"),
            (r#"{"made": {"x": [4], "y": [4]}, "learned": {}}"#, "4 twice"),
            (
                r#"{"made": {"x": [4]}, "learned": {"c": [4]}}"#,
                "`labels` has not",
            ),
            (r#"{"made": {"x": [4]}, "learned": {"a": [5]}}"#, "`made` has not"),
            (
                r#"{"made": {"x": [4]}, "learned": {"a": [4]}}"#,
                "no value for the label b",
            ),
            (
                r#"{"made": {"x": [4]}, "learned": {"a": [4]}, "missing": ["w"]}"#,
                "`missing` has w",
            ),
            (r#"{"made": {}, "learned": {}}"#, "0 values"),
        ] {
            let error = of(json).unwrap_err();
            assert!(error.contains(problem), "{error}");
        }
    }
}

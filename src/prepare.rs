//! Making a dataset from scans and label maps as they are published: turned to one orientation, cropped, resampled (the
//! image linearly, the labels to the nearest voxel), with affines that keep every voxel at its place in the patient.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use glam::{DMat4, DVec3};

use crate::dataset::{DatasetError, scans};
use crate::file::write_beside;
use crate::host_memory;
use crate::preprocess::{centre, check_grid, check_spacing, crop_or_pad};
use crate::tensor::Tensor;
use crate::volume::resample;
use crate::volume::{
    self, Geometry, Orientation, Reorientation, SAME_PLACE, SpatialHeader, Volume, VolumeError,
};

/// A box in patient axes: slices counted from the patient's right, from anterior and from inferior, the second of each
/// pair beyond the box.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Columns: first and end, from the patient's right (the left of an axial picture).
    pub left_right: [usize; 2],
    /// Rows: first and end, from anterior.
    pub anterior_posterior: [usize; 2],
    /// Slices: first and end, from inferior.
    pub inferior_superior: [usize; 2],
}

impl Extent {
    /// First voxel and number of voxels along each axis of a scan of `shape` in this orientation.
    ///
    /// # Errors
    /// A box that is empty or not within the scan.
    pub fn place(
        &self,
        orientation: Orientation,
        shape: [usize; 3],
    ) -> Result<([usize; 3], [usize; 3]), String> {
        let mut origin = [0; 3];
        let mut size = [0; 3];
        for axis in 0..3 {
            let n = shape[axis];
            let (ends, towards) = (orientation.ends(axis), orientation.ends(axis).1);
            let [first, end] = match towards {
                'L' | 'R' => self.left_right,
                'P' | 'A' => self.anterior_posterior,
                _ => self.inferior_superior,
            };
            if first >= end || end > n {
                return Err(format!(
                    "its box takes voxels {first} to {end} of {n} between {} and {}; the list is not of this scan",
                    ends.0, ends.1
                ));
            }
            origin[axis] = match towards {
                'L' | 'P' | 'S' => first,
                _ => n - end,
            };
            size[axis] = end - first;
        }
        Ok((origin, size))
    }
}

/// A row of a cropping list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedCrop {
    /// The data set, e.g. `Pancreas-CT`.
    pub data_set: String,
    /// The scan's number in it.
    pub number: u64,
    /// The box.
    pub extent: Extent,
}

/// Reads a cropping list: CSV with the columns `data set`, `original_id` and `extent_ant`, `extent_post`, `extent_left`,
/// `extent_right`, `extent_inf`, `extent_sup` in voxels. Rows without an original_id and lines after a `#` are left
/// out.
///
/// # Errors
/// A column that is missing, or a field that is no number.
pub fn cropping_list(text: &str) -> Result<Vec<ListedCrop>, String> {
    let mut table = csv::ReaderBuilder::new()
        .trim(csv::Trim::All)
        .comment(Some(b'#'))
        .flexible(true)
        .from_reader(text.as_bytes());
    let header = table.headers().map_err(|e| e.to_string())?.clone();
    let column = |name: &str| {
        let found = header.iter().position(|h| h == name);
        found.ok_or_else(|| format!("it has no column `{name}`"))
    };
    let (data_set, id) = (column("data set")?, column("original_id")?);
    let sides = ["left", "right", "ant", "post", "inf", "sup"];
    let sides: Vec<usize> = sides
        .iter()
        .map(|s| column(&format!("extent_{s}")))
        .collect::<Result<_, _>>()?;
    let mut crops = Vec::new();
    for record in table.records() {
        let record = record.map_err(|e| e.to_string())?;
        let line = record.position().map_or(0, csv::Position::line);
        let field = |at: usize| record.get(at).unwrap_or_default();
        if field(id).is_empty() {
            continue;
        }
        let number = |at: usize| {
            let text = field(at);
            text.parse::<u64>()
                .map_err(|_| format!("line {line}: `{text}` in `{}` is no number", &header[at]))
        };
        let bound = |side: usize| number(sides[side]).map(|n| usize::try_from(n).unwrap_or(usize::MAX));
        crops.push(ListedCrop {
            data_set: field(data_set).to_owned(),
            number: number(id)?,
            extent: Extent {
                left_right: [bound(0)?, bound(1)?],
                anterior_posterior: [bound(2)?, bound(3)?],
                inferior_superior: [bound(4)?, bound(5)?],
            },
        });
    }
    Ok(crops)
}

/// What is done to every scan, in this order: turned, cropped to its box, resampled, cropped or padded around the centre.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// The orientation of the result's axes.
    pub orientation: Orientation,
    /// Millimetres from voxel to voxel, nearly: the number of voxels is whole. `None`: `size` decides.
    pub spacing: Option<[f64; 3]>,
    /// Voxels of the result. Without a spacing the scan is resampled to them.
    pub size: Option<[usize; 3]>,
    /// Where a label file's header places it elsewhere than its scan: whether its voxels are the scan's all the same.
    /// Otherwise such a file is refused.
    pub labels_by_voxel: bool,
}

/// How one scan becomes its result.
#[derive(Clone, Copy, Debug)]
struct Steps {
    turn: Reorientation,
    turned: [usize; 3],
    crop: ([usize; 3], [usize; 3]),
    resampled: [usize; 3],
    /// Where the result begins in the resampled array.
    start: [isize; 3],
    size: [usize; 3],
}

impl Steps {
    fn new(target: &Target, geometry: &Geometry, extent: Option<&Extent>) -> Result<Steps, String> {
        target.spacing.map_or(Ok(()), check_spacing)?;
        let turn = geometry.orientation.to(target.orientation);
        let turned = turn.permute(geometry.shape);
        let crop = match extent {
            Some(extent) => extent.place(target.orientation, turned)?,
            None => ([0; 3], turned),
        };
        let resampled = match target.spacing {
            Some(_) if geometry.spacing.contains(&0.0) => {
                return Err("it does not declare the size of its voxels; write it into the header".into());
            }
            Some(spacing) => resample::resampled_shape(crop.1, turn.permute(geometry.spacing), spacing),
            None => target.size.unwrap_or(crop.1),
        };
        let size = target.size.unwrap_or(resampled);
        check_grid(resampled)?;
        check_grid(size)?;
        // the scan turned, cropped, resampled axis by axis (two of the arrays at a time), and the result
        let arrays = [turned, crop.1, resampled, resampled, size];
        let bytes = arrays.map(|shape| host_memory::bytes(&shape, size_of::<f32>()));
        host_memory::require(bytes.into_iter().fold(0, u64::saturating_add))
            .map_err(|e| format!("{geometry} to {size:?} voxels: {e}"))?;
        let start = centre(resampled, size);
        Ok(Steps {
            turn,
            turned,
            crop,
            resampled,
            start,
            size,
        })
    }

    /// Voxel of the result to voxel of the scan as stored.
    fn to_source(self, stored: [usize; 3]) -> DMat4 {
        let vector = |v: [f64; 3]| DVec3::from_array(v);
        // the box is resampled face to face: o becomes (o + ½)·n/m − ½
        let scale = vector(std::array::from_fn(|a| {
            self.crop.1[a] as f64 / self.resampled[a] as f64
        }));
        let start = vector(self.start.map(|n| n as f64));
        let origin = vector(self.crop.0.map(|n| n as f64));
        let offset = origin + (start + 0.5) * scale - 0.5;
        let cropped = DMat4::from_scale_rotation_translation(scale, glam::DQuat::IDENTITY, offset);
        self.turn.to_source(stored) * cropped
    }

    fn apply(&self, voxels: &[f32], stored: [usize; 3], fill: f32, labels: bool) -> Tensor {
        let tensor = |shape: [usize; 3], data| Tensor::new(&[1, shape[0], shape[1], shape[2]], data);
        let (origin, size) = self.crop;
        let turned = tensor(self.turned, self.turn.apply(voxels, 1, stored));
        let cropped = crop_or_pad(&turned, origin.map(|n| n as isize), size, fill);
        let resampled = match labels {
            true => resample::nearest(&cropped.data, size, self.resampled),
            false => resample::interpolated(&cropped.data, 1, size, self.resampled),
        };
        crop_or_pad(&tensor(self.resampled, resampled), self.start, self.size, fill)
    }
}

/// A class of the dataset to be: its name, and its value in the label files (or its number in their names).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Class {
    /// What it is called.
    pub name: String,
    /// Its value in the label files.
    pub value: i32,
}

impl std::str::FromStr for Class {
    type Err = String;

    fn from_str(text: &str) -> Result<Class, String> {
        let parsed = text.rsplit_once('=').and_then(|(name, value)| {
            Some(Class {
                name: name.trim().to_owned(),
                value: value.trim().parse().ok().filter(|v| *v != 0)?,
            })
        });
        parsed
            .filter(|c| !c.name.is_empty())
            .ok_or_else(|| format!("`{text}` is not NAME=VALUE, such as liver=6"))
    }
}

/// A scan with the files of its labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Its id: the scan's file name.
    pub id: String,
    /// The scan.
    pub image: PathBuf,
    /// One map of all values; or a map for each value, named after it, in which everything but 0 has it.
    pub labels: LabelFiles,
}

/// The label files of a scan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LabelFiles {
    /// A map of all values.
    All(PathBuf),
    /// A map for each value.
    Each(BTreeMap<i32, PathBuf>),
}

/// Pairs scans with label files: by equal names; else `SCAN_VALUE.nii.gz`, `SCAN_VALUE_….nii.gz` for a map a value; else
/// by the last number in the names, as `PANCREAS_0002` and `label0002`. Scans without labels are left out.
///
/// # Errors
/// A folder that can't be used, two files for one value, and no pair at all.
pub fn pair(images: &Path, labels: &Path) -> Result<Vec<Source>, DatasetError> {
    let invalid = |path: &Path, problem: String| DatasetError::Invalid {
        path: path.into(),
        problem,
    };
    let image_files = scans(images, 1)?;
    let label_files: BTreeMap<String, PathBuf> = scans(labels, 0)?
        .into_iter()
        .map(|(id, mut files)| (id, files.remove(0)))
        .collect();
    let mut sources = Vec::new();
    for (id, mut files) in image_files {
        let mut each = BTreeMap::new();
        for (name, file) in &label_files {
            let value = name
                .strip_prefix(&format!("{id}_"))
                .and_then(|rest| rest.split('_').next()?.parse().ok());
            if let Some(value) = value
                && let Some(other) = each.insert(value, file.clone())
            {
                let problem = format!(
                    "{} is a map of the same value, {value}; keep one of them",
                    other.display()
                );
                return Err(invalid(file, problem));
            }
        }
        let mut numbered = label_files
            .iter()
            .filter(|(name, _)| number(name).is_some() && number(name) == number(&id));
        let labels = match (label_files.get(&id), each.is_empty(), numbered.next()) {
            (Some(file), _, _) => LabelFiles::All(file.clone()),
            (None, false, _) => LabelFiles::Each(each),
            (None, true, Some((_, file))) => match numbered.next() {
                None => LabelFiles::All(file.clone()),
                Some((_, other)) => {
                    let problem = format!("{} has the same number; rename one of them", other.display());
                    return Err(invalid(file, problem));
                }
            },
            (None, true, None) => continue,
        };
        sources.push(Source {
            id,
            image: files.remove(0),
            labels,
        });
    }
    match sources.is_empty() {
        true => Err(invalid(
            labels,
            format!("no label file belongs to a scan in {}", images.display()),
        )),
        false => Ok(sources),
    }
}

/// The last number in a name.
pub fn number(name: &str) -> Option<u64> {
    let end = name.rfind(|c: char| c.is_ascii_digit())? + 1;
    let start = name[..end]
        .rfind(|c: char| !c.is_ascii_digit())
        .map_or(0, |i| i + name[i..].chars().next().map_or(1, char::len_utf8));
    name[start..end].parse().ok()
}

/// A prepared case.
#[derive(Clone, Debug)]
pub struct PreparedCase {
    /// `[X, Y, Z]`, z fastest.
    pub image: Vec<f32>,
    /// Class indices on the same grid, 0 for the background.
    pub labels: Vec<i32>,
    /// The grid.
    pub geometry: Geometry,
    /// Values in the label files that no class has, which became background, with their voxels.
    pub dropped: BTreeMap<i32, usize>,
}

/// Prepares a case. Voxels that a padding adds are air: −1024, or the scan's lowest value where that is higher.
///
/// # Errors
/// Files that can't be read, labels of another shape than the scan or, unless [`Target::labels_by_voxel`] is set, at another
/// place, a box outside the scan, and a result that there is no memory for.
pub fn prepare(
    source: &Source,
    classes: &[Class],
    target: &Target,
    extent: Option<&Extent>,
) -> Result<PreparedCase, VolumeError> {
    let scan = volume::read(&source.image)?;
    let wrong = |path: &Path, problem: String| VolumeError::Format {
        path: path.into(),
        problem,
    };
    if scan.channels != 1 {
        return Err(wrong(
            &source.image,
            format!(
                "it has {} channels; only scans of one can be prepared",
                scan.channels
            ),
        ));
    }
    let steps = Steps::new(target, &scan.geometry, extent).map_err(|e| wrong(&source.image, e))?;
    let (values, dropped) = class_map(source, classes, &scan, target.labels_by_voxel)?;
    let lowest = scan.data.iter().copied().fold(f32::INFINITY, f32::min);
    let image = steps.apply(&scan.data, scan.geometry.shape, lowest.max(-1024.0), false);
    let labels = steps.apply(&values, scan.geometry.shape, 0.0, true);
    let affine = scan.geometry.affine * steps.to_source(scan.geometry.shape);
    let geometry = SpatialHeader::from_affine(affine)
        .geometry(steps.size)
        .map_err(|e| wrong(&source.image, e))?;
    Ok(PreparedCase {
        image: image.data,
        labels: labels.data.iter().map(|v| *v as i32).collect(),
        geometry,
        dropped,
    })
}

/// Class indices on the scan's stored grid.
fn class_map(
    source: &Source,
    classes: &[Class],
    scan: &Volume,
    by_voxel: bool,
) -> Result<(Vec<f32>, BTreeMap<i32, usize>), VolumeError> {
    let index = |value: i32| classes.iter().position(|c| c.value == value).map(|i| i + 1);
    let mut dropped = BTreeMap::new();
    let mut result = vec![0.0; scan.geometry.voxels()];
    let mut mark = |values: Vec<i32>| {
        for (result, value) in result.iter_mut().zip(values).filter(|(_, v)| *v != 0) {
            match index(value) {
                Some(class) => *result = class as f32,
                None => *dropped.entry(value).or_default() += 1,
            }
        }
    };
    match &source.labels {
        LabelFiles::All(file) => mark(labels_like(scan, file, by_voxel)?),
        LabelFiles::Each(files) => {
            for (value, file) in files {
                let map = labels_like(scan, file, by_voxel)?;
                mark(map.into_iter().map(|v| if v == 0 { 0 } else { *value }).collect());
            }
        }
    }
    Ok((result, dropped))
}

/// A label map in the axes of the scan's array.
fn labels_like(scan: &Volume, file: &Path, by_voxel: bool) -> Result<Vec<i32>, VolumeError> {
    let map = volume::read(file)?;
    let refuse = |problem: String| VolumeError::Format {
        path: file.into(),
        problem,
    };
    let turn = map.geometry.orientation.to(scan.geometry.orientation);
    let turned = Geometry {
        shape: turn.permute(map.geometry.shape),
        affine: map.geometry.affine * turn.to_source(map.geometry.shape),
        spacing: turn.permute(map.geometry.spacing),
        orientation: scan.geometry.orientation,
        header: map.geometry.header.clone(),
    };
    if let Some(difference) = turned.difference(&scan.geometry, SAME_PLACE) {
        let problem = format!("turned to its scan {}, it is {difference}", scan.source.display());
        if turned.shape != scan.geometry.shape || !by_voxel {
            return Err(refuse(problem));
        }
        tracing::warn!(
            "{}: {problem}; its voxels are taken as the scan's",
            file.display()
        );
    }
    Ok(turn.apply(&map.labels()?, 1, map.geometry.shape))
}

/// Writes dataset.json (Medical Segmentation Decathlon's layout) of cases in imagesTr and labelsTr.
///
/// # Errors
/// The operating system's refusal.
pub fn write_description(
    folder: &Path,
    channel: &str,
    classes: &[Class],
    ids: &[String],
    force: bool,
) -> std::io::Result<()> {
    let names = std::iter::once("background").chain(classes.iter().map(|c| c.name.as_str()));
    let labels: serde_json::Map<String, serde_json::Value> = names
        .enumerate()
        .map(|(i, name)| (i.to_string(), name.into()))
        .collect();
    let training: Vec<serde_json::Value> = ids
        .iter()
        .map(|id| {
            serde_json::json!({
                "image": format!("./imagesTr/{id}.nii.gz"),
                "label": format!("./labelsTr/{id}.nii.gz"),
            })
        })
        .collect();
    let name = folder
        .file_name()
        .map(|n| n.to_string_lossy().into_owned())
        .unwrap_or_default();
    let description = serde_json::json!({
        "name": name,
        "tensorImageSize": "3D",
        "modality": { "0": channel },
        "labels": labels,
        "numTraining": ids.len(),
        "numTest": 0,
        "training": training,
        "test": [],
    });
    let text = serde_json::to_string_pretty(&description)?;
    write_beside(&folder.join("dataset.json"), text.as_bytes(), force)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boxes_lie_where_the_patient_is_in_any_orientation() {
        let extent = Extent {
            left_right: [84, 462],
            anterior_posterior: [80, 359],
            inferior_superior: [26, 195],
        };
        // c3d calls it RPS; the published origin is (left, 512 − post, nz − sup)
        let published = extent.place("LAI".parse().unwrap(), [512, 512, 240]).unwrap();
        assert_eq!(published, ([84, 512 - 359, 240 - 195], [378, 279, 169]));
        let turned = extent.place("SRP".parse().unwrap(), [240, 512, 512]).unwrap();
        assert_eq!(turned, ([26, 512 - 462, 80], [169, 378, 279]));
        let outside = extent.place("LAI".parse().unwrap(), [512, 512, 190]).unwrap_err();
        assert!(outside.contains("26 to 195 of 190"), "{outside}");
    }

    #[test]
    fn lists_are_read_and_their_faults_named() {
        let header = "id,publisher,data set,original_id,extent_ant,extent_post,extent_left,extent_right,extent_inf,extent_sup";
        let list = cropping_list(&format!(
            "{header}\n1,TCIA,Pancreas-CT,2,80,359,84,462,26,195\n,,,,,,,,,\n"
        ))
        .unwrap();
        assert_eq!(list.len(), 1);
        assert_eq!((list[0].data_set.as_str(), list[0].number), ("Pancreas-CT", 2));
        assert_eq!(list[0].extent.anterior_posterior, [80, 359]);
        assert_eq!(list[0].extent.left_right, [84, 462]);
        assert_eq!(list[0].extent.inferior_superior, [26, 195]);
        let wrong =
            cropping_list(&format!("{header}\n1,TCIA,Pancreas-CT,2,x,359,84,462,26,195")).unwrap_err();
        assert!(wrong.contains("line 2: `x` in `extent_ant`"), "{wrong}");
        assert!(cropping_list("id,name\n").unwrap_err().contains("`data set`"));
    }

    #[test]
    fn the_last_number_of_a_name_is_the_scans() {
        for (name, want) in [
            ("PANCREAS_0002", Some(2)),
            ("label0002", Some(2)),
            ("ct12_v", Some(12)),
            ("liver", None),
            ("é7", Some(7)),
        ] {
            assert_eq!(number(name), want, "{name}");
        }
    }

    #[test]
    fn classes_are_names_with_values() {
        let class: Class = "left kidney=3".parse().unwrap();
        assert_eq!((class.name.as_str(), class.value), ("left kidney", 3));
        for wrong in ["liver", "=3", "liver=0", "liver=x"] {
            assert!(wrong.parse::<Class>().is_err(), "{wrong}");
        }
    }
}

//! The Medical Segmentation Decathlon's layout: a `training` list of pairs of files in dataset.json. nnU-Net v1's, which
//! lists `CASE.nii.gz` and stores `CASE_0000.nii.gz`, is read too.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::description::Description;
use super::{Case, Contents, Convention, DatasetError, invalid};
use crate::volume;

pub(super) const DECATHLON: Convention = Convention {
    name: "the Medical Segmentation Decathlon's (dataset.json with a `training` list)",
    read,
};

fn read(folder: &Path) -> Result<Option<Contents>, DatasetError> {
    let Some(description) = Description::read(folder)? else {
        return Ok(None);
    };
    let Some(pairs) = &description.training else {
        return Ok(None);
    };
    let channels = description.channels()?;
    let (labels, ignore) = description.labels()?;
    let case = |pair: &Value| case(folder, &description.path, pair, channels.len());
    Ok(Some(Contents {
        cases: pairs.iter().map(case).collect::<Result<_, _>>()?,
        channels,
        labels,
        ignore,
        synthesis: None,
    }))
}

/// A pair of the list.
fn case(folder: &Path, description: &Path, pair: &Value, channels: usize) -> Result<Case, DatasetError> {
    let file = |key: &str| {
        let name = pair.get(key).and_then(Value::as_str);
        name.map(|name| folder.join(name.trim_start_matches("./")))
    };
    let (Some(image), Some(label)) = (file("image"), file("label")) else {
        let problem = format!("the training entry {pair} is not {{\"image\": …, \"label\": …}}");
        return invalid(description, problem);
    };
    let Some(id) = volume::stem(&image).map(String::from) else {
        let problem = format!(
            "scans must be files whose names end in {}",
            volume::ENDINGS.join(", ")
        );
        return invalid(&image, problem);
    };
    // nnU-Net v1
    let ending = volume::ending(&image).expect("a stem has one behind it");
    let numbered: Vec<PathBuf> = (0..channels)
        .map(|c| image.with_file_name(format!("{id}_{c:04}{ending}")))
        .collect();
    let images = match !image.exists() && numbered[0].exists() {
        true => numbered,
        false => vec![image],
    };
    Ok(Case { id, images, label })
}

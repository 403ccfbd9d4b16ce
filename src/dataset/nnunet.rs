//! nnU-Net v2's layout: a `file_ending` in dataset.json, `imagesTr/CASE_0000.nii.gz` … and `labelsTr/CASE.nii.gz`.

use std::path::Path;

use super::description::Description;
use super::{Contents, Convention, DatasetError, invalid, labelled};
use crate::volume;

pub(super) const NNUNET: Convention = Convention {
    name: "nnU-Net v2's (dataset.json with a `file_ending`)",
    read,
};

fn read(folder: &Path) -> Result<Option<Contents>, DatasetError> {
    let Some(description) = Description::read(folder)? else {
        return Ok(None);
    };
    let Some(ending) = &description.file_ending else {
        return Ok(None);
    };
    if !volume::ENDINGS.contains(&&**ending) {
        return invalid(
            &description.path,
            format!("its scans end in {ending}; convert them to .nii.gz, and `file_ending` too"),
        );
    }
    let channels = description.channels()?;
    let (labels, ignore) = description.labels()?;
    let images = folder.join("imagesTr");
    let of = |id: &str, _: &Path| {
        (0..channels.len())
            .map(|channel| images.join(format!("{id}_{channel:04}{ending}")))
            .collect()
    };
    Ok(Some(Contents {
        cases: labelled(folder, of)?,
        channels,
        labels,
        ignore,
        synthesis: None,
    }))
}

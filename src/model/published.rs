//! How the authors' script reads scans for each published network: the voxel array as the file stores it, whatever its
//! orientation and spacing, scaled in the network's own way. Labels are those of the authors' label files.

use super::Fixed;
use crate::dataset::Label;
use crate::preprocess::{Channel, Intensity, Preprocessing};

/// What the networks for TCIA take.
pub const TCIA: Fixed = Fixed {
    size: [144; 3],
    labels: 9,
    halved: false,
};

/// What globalfcnet_visceral takes.
pub const VISCERAL: Fixed = Fixed {
    size: [156, 115, 160],
    labels: 8,
    halved: false,
};

/// What allconvunet_visceral takes.
pub const VISCERAL_HALVED: Fixed = Fixed {
    size: [312, 230, 320],
    labels: 8,
    halved: true,
};

/// Labels 0 … 8 of the TCIA networks.
pub const TCIA_LABELS: [&str; 9] = [
    "background",
    "spleen",
    "pancreas",
    "left kidney",
    "gallbladder",
    "esophagus",
    "liver",
    "stomach",
    "duodenum",
];

/// Labels 0 … 7 of the VISCERAL networks.
pub const VISCERAL_LABELS: [&str; 8] = [
    "background",
    "liver",
    "spleen",
    "bladder",
    "left kidney",
    "right kidney",
    "left psoas",
    "right psoas",
];

/// HU / 1024 + 1.
pub fn obeliskhybrid_tcia() -> Preprocessing {
    as_stored(1024.0, 1.0, &TCIA_LABELS)
}

/// HU / 1000.
pub fn obeliskhybrid_visceral() -> Preprocessing {
    as_stored(1000.0, 0.0, &VISCERAL_LABELS)
}

/// HU / 500.
pub fn obelisk_visceral() -> Preprocessing {
    as_stored(500.0, 0.0, &VISCERAL_LABELS)
}

/// Hounsfield units as they are.
pub fn unet_tcia() -> Preprocessing {
    as_stored(1.0, 0.0, &TCIA_LABELS)
}

/// Hounsfield units as they are.
pub fn unet_visceral() -> Preprocessing {
    as_stored(1.0, 0.0, &VISCERAL_LABELS)
}

fn as_stored(divisor: f32, offset: f32, labels: &[&str]) -> Preprocessing {
    let label = |(value, name): (usize, &&str)| Label {
        value: value as i32,
        name: (*name).into(),
    };
    Preprocessing {
        orientation: None,
        spacing: None,
        grid: None,
        ignore: None,
        channels: vec![Channel {
            name: "CT".into(),
            intensity: Intensity::Linear { divisor, offset },
        }],
        labels: labels.iter().enumerate().map(label).collect(),
    }
}

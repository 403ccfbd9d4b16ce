//! Forms that were measured once are kept. Which ones win is not asserted: other tests compute at the same time.

use crate::common::*;
use obelisk::gpu::{Device, DeviceOptions, FormsChoice, FormsSource};
use obelisk::op::Forms;
use obelisk::tune;

#[test]
fn forms_are_measured_once_and_kept() {
    if devices().is_empty() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("cache");
    let options = DeviceOptions {
        forms: FormsChoice::Auto,
        cache: Some(cache.clone()),
        ..Default::default()
    };
    let (device, tuning) = tune::open(&options).unwrap();
    if !device.caps().target.is_cpu() {
        assert!(tuning.is_none(), "a GPU has no choice");
        return;
    }
    let tuning = tuning.expect("nothing was known");
    eprintln!("{}: {tuning}", device.adapter().name);
    assert_eq!(device.caps().forms, tuning.forms);
    assert!(tuning.candidates.len() > 1, "{tuning}");
    assert!(
        tuning.candidates.iter().all(|(_, seconds)| *seconds > 0.0),
        "{tuning}"
    );
    assert_eq!(
        tuning.candidates[0].0,
        devices()[1].caps().forms,
        "the built-in ones are first"
    );
    assert_eq!(device.memory().peak, 0, "a device of its own");

    let (device, again) = tune::open(&options).unwrap();
    assert!(again.is_none());
    let FormsSource::Kept(file) = device.forms_source() else {
        panic!("{:?}", device.forms_source());
    };
    assert_eq!(device.caps().forms, tuning.forms);
    // What is kept is what is taken; what is damaged is measured again and replaced.
    let other = match tuning.forms {
        Forms::TEXELS => Forms::PORTABLE,
        _ => Forms::TEXELS,
    };
    std::fs::write(file, serde_json::to_string(&other).unwrap()).unwrap();
    assert_eq!(tune::open(&options).unwrap().0.caps().forms, other);
    std::fs::write(file, "{").unwrap();
    let replaced = tune::open(&options)
        .unwrap()
        .1
        .expect("a damaged file tells nothing");
    assert_eq!(tune::open(&options).unwrap().0.caps().forms, replaced.forms);
    let measure = DeviceOptions {
        forms: FormsChoice::Measure,
        ..options.clone()
    };
    assert!(tune::open(&measure).unwrap().1.is_some());

    // What the adapter can't do is refused: textures are for drivers on the CPU.
    let impossible = DeviceOptions {
        kernels_for_gpus: true,
        forms: Forms::TEXELS.into(),
        ..Default::default()
    };
    let error = pollster::block_on(Device::open(&impossible))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("texels=on") && error.contains("drivers on the CPU"),
        "{error}"
    );

    // Nothing is measured without a cache, for devices that are like all others, and where the choice is made.
    for options in [
        DeviceOptions {
            cache: None,
            ..options.clone()
        },
        DeviceOptions {
            portable: true,
            ..options.clone()
        },
        DeviceOptions {
            forms: FormsChoice::BuiltIn,
            ..options.clone()
        },
    ] {
        let (device, tuning) = tune::open(&options).unwrap();
        assert!(tuning.is_none(), "{options:?}");
        assert_eq!(*device.forms_source(), FormsSource::BuiltIn, "{options:?}");
    }
    let given = DeviceOptions {
        forms: other.into(),
        ..options
    };
    let (device, tuning) = tune::open(&given).unwrap();
    assert!(tuning.is_none());
    assert_eq!(
        (device.caps().forms, device.forms_source()),
        (other, &FormsSource::Given)
    );
}

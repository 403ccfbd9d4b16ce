//! Forms of the kernels: every candidate gives the same results, and what was measured once is kept.
#![cfg(feature = "cli")]
mod common;

use common::*;
use obelisk::gpu::{Device, DeviceOptions, FormsChoice, FormsSource};
use obelisk::graph::Graph;
use obelisk::model;
use obelisk::op::conv3d::{Conv3dConfig, conv3d};
use obelisk::op::{Caps, Forms, StepScalars};
use obelisk::plan::Plan;
use obelisk::tensor::Spec;
use obelisk::train::{Loss, training_graph};
use obelisk::tune;
use obelisk::weights::initialise;

/// The device's, then each of these that it can take.
fn with_forms(device: &Device, candidates: &[Forms]) -> Vec<Caps> {
    let caps = |forms| Caps {
        forms,
        ..*device.caps()
    };
    let possible = candidates.iter().filter(|f| device.allow_forms(f).is_ok());
    std::iter::once(&device.caps().forms)
        .chain(possible)
        .copied()
        .map(caps)
        .collect()
}

/// How many units a GPU has decides how many outputs an invocation makes, and no sum.
#[test]
fn convolutions_of_all_forms_give_the_same() {
    let forms = [1, 1 << 9, 1 << 12, 1 << 17].map(|fills| Forms {
        fills,
        ..Forms::PORTABLE
    });
    for (channels, outputs, size) in [(32, 32, [10, 7, 10]), (5, 9, [12, 13, 14])] {
        let mut graph = Graph::new();
        let shape = [2, channels, size[0], size[1], size[2]];
        let x = graph.input("x", Spec::map(shape)).unwrap();
        let weight = parameter(&mut graph, "weight", &[outputs, channels, 3, 3, 3]);
        let bias = parameter(&mut graph, "bias", &[outputs]);
        let y = conv3d(&mut graph, &[x], weight, Some(bias), Conv3dConfig::same(3, 1)).unwrap();
        graph.keep("y", y);
        let data: Data = [
            ("x", noise(&shape, 1)),
            ("weight", noise(&[outputs, channels, 3, 3, 3], 2)),
            ("bias", noise(&[outputs], 3)),
        ]
        .map(|(name, tensor)| (name.to_owned(), tensor))
        .into();
        let step = StepScalars::default();
        let expected = evaluate(&graph, &data, &step)[y.index()].clone().unwrap();
        for device in devices() {
            let mut kernels = std::collections::HashSet::new();
            for caps in with_forms(device, &forms) {
                let plan = Plan::new(&graph, &caps).unwrap();
                kernels.insert(format!("{:?}", plan.launches.last().unwrap().dispatch.constants));
                let actual = run_plan_on(device, plan, &data, &step);
                assert_close(&format!("{}", caps.forms), &actual["y"], &expected, 1e-5);
            }
            // On the CPU it changes nothing.
            assert_eq!(kernels.len() > 1, !device.caps().cpu, "{kernels:?}");
        }
    }
}

#[test]
fn a_training_step_gives_the_same_through_buffers_and_textures() {
    let network = model::find("obelisk-hybrid").unwrap();
    let graph = training_graph(network, [1, 1, 24, 24, 24], 3, Loss::CrossEntropyDice, false).unwrap();
    let mut data: Data = initialise(&graph, 1);
    data.insert("image".into(), noise(&[1, 1, 24, 24, 24], 1));
    let mut labels = noise(&[1, 1, 24, 24, 24], 2);
    labels
        .data
        .iter_mut()
        .for_each(|v| *v = (v.abs() * 3.0).min(2.0).floor());
    data.insert("labels".into(), labels);
    let step = StepScalars::default();
    for device in devices() {
        let forms = [true, false].map(|texels| Forms {
            texels,
            ..device.caps().forms
        });
        let run = |caps: &Caps| run_plan_on(device, Plan::new(&graph, caps).unwrap(), &data, &step);
        let mut caps = with_forms(device, &forms).into_iter();
        let expected = run(&caps.next().unwrap());
        for caps in caps {
            for (name, tensor) in run(&caps) {
                assert_close(
                    &format!("{}: {name}", caps.forms),
                    &tensor,
                    &expected[&name],
                    1e-3,
                );
            }
        }
    }
}

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
    let other = Forms {
        texels: false,
        fills: 77,
    };
    std::fs::write(file, serde_json::to_string(&other).unwrap()).unwrap();
    assert_eq!(tune::open(&options).unwrap().0.caps().forms, other);
    std::fs::write(file, "{").unwrap();
    assert!(tune::open(&options).unwrap().1.is_some());
    assert_eq!(tune::open(&options).unwrap().0.caps().forms, tuning.forms);
    let measure = DeviceOptions {
        forms: FormsChoice::Measure,
        ..options.clone()
    };
    assert!(tune::open(&measure).unwrap().1.is_some());

    // What the adapter can't do is refused: textures are for drivers on the CPU.
    let impossible = DeviceOptions {
        kernels_for_gpus: true,
        forms: Forms {
            texels: true,
            ..Forms::PORTABLE
        }
        .into(),
        ..Default::default()
    };
    let error = pollster::block_on(Device::open(&impossible))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("texels=on") && error.contains("--forms built-in"),
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

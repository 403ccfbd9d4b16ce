//! Training without a folder gives the bytes that training with one writes.

use std::ops::ControlFlow;
use std::path::Path;

use crate::common::*;
use obelisk::dataset::Fold;
use obelisk::model::NETWORKS;
use obelisk::preprocess::{Overrides, Preprocessing};
use obelisk::train::{Event, Preset, Settings, TrainingData, first_batch, train, train_in_memory};

#[test]
fn training_in_memory_gives_the_bytes_of_a_run() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/data");
    let dataset = obelisk::dataset::Dataset::open(&folder).unwrap();
    let overrides = Overrides {
        grid: Some([24, 24, 24]),
        ..Default::default()
    };
    let preprocessing = Preprocessing::derive(&dataset, overrides).unwrap();
    let mut data = TrainingData::load(&dataset, preprocessing, None).unwrap();
    data.training.truncate(4);
    let sparse = NETWORKS.iter().find(|n| n.points.is_some()).unwrap();
    for arch in ["obelisk-hybrid", sparse.name] {
        let mut settings = Settings::new(folder.clone(), arch);
        (settings.epochs, settings.steps) = (1, settings.steps.map(|_| 2));
        let Some(device) = devices().get(1) else { return };
        let run = tempfile::tempdir().unwrap();
        let on = |_: Event| ControlFlow::Continue(());
        pollster::block_on(train(device, &settings, &data, run.path(), false, on)).unwrap();

        let mut losses = Vec::new();
        let report = |event: Event| {
            if let Event::Step { loss, .. } = event {
                losses.push(loss);
            }
            ControlFlow::Continue(())
        };
        let model = pollster::block_on(train_in_memory(device, &settings, &data, report)).unwrap();
        assert_eq!(losses.len(), 2, "{arch}");
        let written = std::fs::read(run.path().join("last.safetensors")).unwrap();
        assert!(model.to_bytes(Path::new("memory")).unwrap() == written, "{arch}");

        let mut steps = 0;
        let stop = |event: Event| {
            steps += usize::from(matches!(event, Event::Step { .. }));
            match steps {
                0 => ControlFlow::Continue(()),
                _ => ControlFlow::Break(()),
            }
        };
        pollster::block_on(train_in_memory(device, &settings, &data, stop)).unwrap();
        assert_eq!(steps, 1, "{arch}");
    }
}

/// Two cases to train on and two that are held out, at 4 mm.
fn small() -> (TrainingData, Settings) {
    let (dataset, data) = samples(16, &[0, 1], &[2, 3]);
    let mut settings = Settings::dense(dataset.folder, "obelisk-hybrid");
    (settings.epochs, settings.batch) = (2, 1);
    (data, settings)
}

fn go_on(_: Event) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

#[test]
fn a_warm_start_takes_what_fits_and_labels_by_their_names() {
    let Some(device) = devices().get(1) else { return };
    let (mut data, mut settings) = small();
    let first = pollster::block_on(train_in_memory(device, &settings, &data, go_on)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("first.safetensors");
    first.save(&path, false).unwrap();

    // So low a rate that the weights stay.
    (settings.learning_rate, settings.epochs, settings.weight_decay) = (1e-30, 1, 0.0);
    settings.warm_start = Some(path);
    let again = pollster::block_on(train_in_memory(device, &settings, &data, go_on)).unwrap();
    let parameters = |name: &&String| !name.contains("running_");
    let mut compared = 0;
    for name in first.tensors.keys().filter(parameters) {
        assert_eq!(first.tensors[name], again.tensors[name], "{name}");
        compared += 1;
    }
    assert!(compared > 20);

    // One label more, and those that were there in another order.
    let names = |data: &TrainingData| -> Vec<String> {
        data.preprocessing.labels.iter().map(|l| l.name.clone()).collect()
    };
    let before = names(&data);
    data.preprocessing.labels.swap(1, 2);
    let mut more = data.preprocessing.labels[1].clone();
    (more.value, more.name) = (77, "another".into());
    data.preprocessing.labels.push(more);
    let other = pollster::block_on(train_in_memory(device, &settings, &data, go_on)).unwrap();
    let now = names(&data);
    let (name, was) = ("conv77U.bias", &first.tensors["conv77U.bias"]);
    let is = &other.tensors[name];
    assert_eq!((was.data.len(), is.data.len()), (before.len(), now.len()));
    for (i, label) in now.iter().enumerate() {
        match before.iter().position(|b| b == label) {
            Some(j) => assert_eq!(is.data[i], was.data[j], "{label}"),
            None => assert!(!was.data.contains(&is.data[i])),
        }
    }
    // As many labels, of which one is another: its weights are its own.
    data.preprocessing.labels.remove(1);
    data.preprocessing.labels[2].value = 78;
    let other = pollster::block_on(train_in_memory(device, &settings, &data, go_on)).unwrap();
    let now = names(&data);
    assert_eq!(now.len(), before.len());
    for (i, label) in now.iter().enumerate() {
        let was = before.iter().position(|b| b == label).map(|j| was.data[j]);
        assert_eq!(was == Some(other.tensors[name].data[i]), was.is_some(), "{label}");
    }

    settings.arch = "meshnet".into();
    let refused = pollster::block_on(train_in_memory(device, &settings, &data, go_on)).unwrap_err();
    assert!(
        refused.to_string().contains("no tensor of the name and shape"),
        "{refused}"
    );
}

#[test]
fn a_training_ends_when_its_patience_does_and_stays_ended() {
    let Some(device) = devices().get(1) else { return };
    let (data, mut settings) = small();
    (settings.learning_rate, settings.epochs, settings.patience) = (1e-30, 9, Some(2));
    settings.ema = Some(0.5);
    let run = tempfile::tempdir().unwrap();
    let log = pollster::block_on(train(device, &settings, &data, run.path(), false, go_on)).unwrap();
    let scores: Vec<_> = log.iter().map(|line| line.means[0]).collect();
    assert!((3..9).contains(&log.len()), "{scores:?}");
    let best = scores.iter().flatten().fold(f64::MIN, |a, b| a.max(*b));
    let first = scores.iter().position(|s| *s == Some(best)).unwrap();
    assert_eq!(log.len(), first + 3, "{scores:?}");
    let again = pollster::block_on(train(device, &settings, &data, run.path(), true, go_on)).unwrap();
    assert_eq!(again.len(), log.len());
}

#[test]
fn batches_are_shown_as_they_are_fed_and_none_of_a_sparse_training() {
    let Some(device) = devices().get(1) else { return };
    let (data, mut settings) = small();
    (settings.affine, settings.batch) = (0.0, 2);
    let (image, labels) = pollster::block_on(first_batch(device, &settings, &data)).unwrap();
    assert_eq!(
        (&image.shape[..], &labels.shape[..]),
        (&[2, 1, 16, 16, 16][..], &[2, 1, 16, 16, 16][..])
    );
    settings.augment.mirror = Some("w".parse().unwrap());
    let (mirrored, _) = pollster::block_on(first_batch(device, &settings, &data)).unwrap();
    let turned = |t: &obelisk::tensor::Tensor| {
        obelisk::tensor::Tensor::from_fn(&t.shape, |i| t.data[i / 16 * 16 + 15 - i % 16])
    };
    for case in 0..2 {
        let of = |t: &obelisk::tensor::Tensor| {
            obelisk::tensor::Tensor::new(
                &[1, 1, 16, 16, 16],
                t.data[case * 4096..(case + 1) * 4096].to_vec(),
            )
        };
        let (own, other) = (of(&image), of(&mirrored));
        let near = |a: &obelisk::tensor::Tensor, b: &obelisk::tensor::Tensor| {
            a.data.iter().zip(&b.data).all(|(a, b)| (a - b).abs() < 1e-4)
        };
        assert!(near(&own, &other) || near(&turned(&own), &other), "case {case}");
    }
    let picture = tempfile::tempdir().unwrap();
    let path = picture.path().join("batch.png");
    obelisk::picture::batch(&path, &image, &labels, [4.0; 3], false).unwrap();
    assert!(std::fs::metadata(path).unwrap().len() > 1000);
    settings.samples = Some(10);
    let refused = pollster::block_on(first_batch(device, &settings, &data)).unwrap_err();
    assert!(refused.to_string().contains("random locations"), "{refused}");
}

/// Label maps alone, of the sample dataset: two values with intensities of their own, learned as one label.
#[test]
fn images_are_made_of_label_maps_and_learned_from() {
    let samples = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/data");
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("labelsTr")).unwrap();
    for file in std::fs::read_dir(samples.join("labelsTr")).unwrap().take(4) {
        let file = file.unwrap();
        std::fs::copy(file.path(), folder.path().join("labelsTr").join(file.file_name())).unwrap();
    }
    let description = r#"{"channel_names": {"0": "MR"}, "labels": {"background": 0, "hippocampus": 1},
        "synthesis": {"made": {"front": [1], "back": [2]}, "learned": {"hippocampus": [1, 2]}}}"#;
    std::fs::write(folder.path().join("dataset.json"), description).unwrap();
    let dataset = obelisk::dataset::Dataset::open(folder.path()).unwrap();
    dataset.check().unwrap();
    let overrides = Overrides {
        grid: Some([16, 16, 16]),
        spacing: Some([4.0; 3]),
        ..Default::default()
    };
    let preprocessing = Preprocessing::derive(&dataset, overrides).unwrap();
    let fold = Fold {
        train: vec![0, 1, 2],
        validation: vec![3],
    };
    let data = TrainingData::load(&dataset, preprocessing, Some(&fold)).unwrap();
    let held_out = &data.validation[0];
    assert!(held_out.labels.iter().all(|label| [0, 1].contains(label)) && held_out.labels.contains(&1));
    let Some(device) = devices().get(1) else { return };
    let mut settings = Settings::dense(folder.path().into(), "obelisk-hybrid");
    (settings.epochs, settings.batch) = (2, 3);
    let refused = pollster::block_on(train_in_memory(device, &settings, &data, go_on)).unwrap_err();
    assert!(refused.to_string().contains("label maps alone"), "{refused}");

    settings.synthetic = true;
    (settings.affine, settings.augment) = Preset::Synthetic.parts();
    let (image, labels) = pollster::block_on(first_batch(device, &settings, &data)).unwrap();
    let again = pollster::block_on(first_batch(device, &settings, &data)).unwrap();
    assert!((&image, &labels) == (&again.0, &again.1));
    assert!(labels.data.iter().all(|label| [0.0, 1.0].contains(label)));
    for case in 0..3 {
        let of = |t: &obelisk::tensor::Tensor| t.data[case * 4096..(case + 1) * 4096].to_vec();
        let (image, labels) = (of(&image), of(&labels));
        assert!(
            labels.contains(&1.0) && image.iter().all(|v| v.is_finite()),
            "case {case}"
        );
        assert!(image.iter().any(|v| *v != image[0]), "case {case}");
    }
    settings.seed = 2;
    let (other, _) = pollster::block_on(first_batch(device, &settings, &data)).unwrap();
    assert!(other.data != image.data);

    let run = tempfile::tempdir().unwrap();
    let log = pollster::block_on(train(device, &settings, &data, run.path(), false, go_on)).unwrap();
    assert!(log.len() == 2 && log[1].means[0].is_some());
    let model = obelisk::weights::Model::load(&run.path().join("last.safetensors")).unwrap();
    assert_eq!(model.info.preprocessing.labels.len(), 2);
    settings.samples = Some(20);
    settings.arch = "obelisk".into();
    let refused = pollster::block_on(train_in_memory(device, &settings, &data, go_on)).unwrap_err();
    assert!(refused.to_string().contains("on all voxels only"), "{refused}");
}

//! Training without a folder gives the bytes that training with one writes.

use std::ops::ControlFlow;
use std::path::Path;

use crate::common::*;
use obelisk::model::NETWORKS;
use obelisk::preprocess::{Overrides, Preprocessing};
use obelisk::train::{Event, Settings, TrainingData, train, train_in_memory};

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

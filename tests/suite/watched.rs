//! A prediction in parts gives the labels of one at once, tells how far it is, and stops when told to.

use std::ops::ControlFlow;
use std::path::Path;

use crate::common::*;
use obelisk::model;
use obelisk::predict::{PredictError, Predictor};
use obelisk::volume;
use obelisk::weights::Model;

#[test]
fn a_watched_prediction_is_the_same_and_can_be_stopped() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let path = examples.join("weights/hippocampus.safetensors");
    let weights = Model::from_bytes(&std::fs::read(&path).unwrap(), &path).unwrap();
    let scans = std::fs::read_dir(examples.join("data/imagesTs")).unwrap();
    let scan = scans.map(|entry| entry.unwrap().path()).min().unwrap();
    let scan = volume::read(&scan).unwrap();
    let preprocessing = &weights.info.preprocessing;
    let network = &model::find(&weights.info.arch).unwrap();
    for device in devices() {
        pollster::block_on(async {
            let mut predictor = Predictor::with_weights(device, network, preprocessing, &weights.tensors)
                .await
                .unwrap();
            let labels = predictor.labels(device, &scan).await.unwrap();
            // On a processor the kernels for GPUs take a minute.
            if device.caps().target.is_cpu() || !devices()[0].caps().target.is_cpu() {
                let at_once = predictor.segment(device, &scan).await.unwrap();
                assert!(labels == at_once.0, "labels without logits differ");
            }

            let mut shares = Vec::new();
            let mut watch = |share: f64| {
                shares.push(share);
                ControlFlow::Continue(())
            };
            let in_parts = predictor.labels_watched(device, &scan, &mut watch).await.unwrap();
            assert!(in_parts == labels, "labels in parts differ");
            assert!(shares.len() > 1, "{shares:?}");
            assert!(shares.is_sorted(), "{shares:?}");
            assert_eq!(shares.last(), Some(&1.0));

            let mut calls = 0;
            let mut stop = |_: f64| {
                calls += 1;
                ControlFlow::Break(())
            };
            let stopped = predictor.labels_watched(device, &scan, &mut stop).await;
            assert!(matches!(stopped, Err(PredictError::Stopped)), "{stopped:?}");
            assert_eq!(calls, 1);
        });
    }
}

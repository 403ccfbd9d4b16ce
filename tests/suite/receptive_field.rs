//! Receptive fields of small networks against those by hand.

use std::collections::HashMap;

use crate::common::*;
use obelisk::graph::{GraphError, Init, Value};
use obelisk::model::{Builder, Conv, Layers, NETWORKS, Network, find};
use obelisk::op::avg_pool3d::AvgPool3d;
use obelisk::op::obelisk_layer::obelisk_layer;
use obelisk::op::obelisk_sample::Locations;
use obelisk::predict::inference_graph;
use obelisk::receptive_field::{ReceptiveField, Subject, receptive_fields};
use obelisk::tensor::Tensor;
use obelisk::weights::initialise;

fn fields(network: &Network, grid: [usize; 3], offsets: Option<Tensor>) -> Vec<Vec<ReceptiveField>> {
    let mut preprocessing = find("obeliskhybrid_tcia").unwrap().published.unwrap()();
    preprocessing.labels.truncate(3);
    let graph = inference_graph(network, &preprocessing, grid).unwrap();
    let mut tensors: HashMap<String, Tensor> = initialise(&graph, 3);
    if let Some(offsets) = offsets {
        tensors.insert("offset1".into(), offsets);
    }
    let subject = Subject {
        network,
        channels: 1,
        classes: 3,
        grid,
        spacing: Some([1.0, 2.0, 0.5]),
        tensors: &tensors,
    };
    let on = |device| pollster::block_on(receptive_fields(device, &subject)).unwrap();
    devices().iter().map(on).collect()
}

/// Two convolutions, the second at half the size, and up again.
fn convolutions(b: &mut Builder, image: Value, labels: usize) -> Result<Value, GraphError> {
    let full = b.size(image);
    let x = b.conv("conv0", &[image], Conv::k3(4))?;
    let x = b.norm("batch0", x, Some(0.1))?;
    let x = b.conv("conv1", &[x], Conv::k3(labels).stride(2))?;
    b.upsample(x, full)
}

#[test]
fn convolutions_reach_as_far_as_their_kernels_do() {
    let network = Network {
        layers: Layers::Function(convolutions),
        ..NETWORKS[0]
    };
    for fields in fields(&network, [24, 25, 26], None) {
        let [field] = &fields[..] else {
            panic!("{fields:?}")
        };
        // Along D, voxel 12 of 24 lies a quarter of a step above its half-size voxel 6, at 5.75 of 12: it mixes 5 and 6,
        // which read 9 to 13 of conv0, 8 to 14 of the image: 7. Likewise for H and W: 12 of 25 takes
        // 12.5 · 13/25 − 0.5 = 6 alone, 10 to 14 of the image: 5; 13 of 26 takes 6.25, 6 and 7: 10 to 16, 7.
        assert_eq!(field.voxels, [7, 5, 7], "{field:?}");
        assert_eq!(field.mm, Some([7.0, 10.0, 3.5]));
        assert_eq!(field.reaches_border, [false; 3]);
        assert_eq!(field.density, 1.0);
    }
}

/// One OBELISK layer on the smoothed image.
fn sampling(b: &mut Builder, image: Value, labels: usize) -> Result<Value, GraphError> {
    let full = b.size(image);
    let smooth = AvgPool3d {
        kernel: 3,
        stride: 1,
        padding: 1,
    };
    let image = b.graph.push1(smooth, &[image])?;
    let offsets = b
        .graph
        .parameter("offset1", &[1, 2, 1, 1, 3], Init::Normal(0.05))?;
    let init = Init::Normal(1.0);
    let weight = b
        .graph
        .parameter("linear1a.weight", &[labels, 2, 1, 1, 1], init)?;
    obelisk_layer(b.graph, image, offsets, weight, None, Locations::Grid(full), 1)
}

#[test]
fn an_obelisk_layer_reaches_as_far_as_its_offsets_and_the_smoothing() {
    let network = Network {
        layers: Layers::Function(sampling),
        ..NETWORKS[0]
    };
    // 21 voxels an axis: 0.1 is a voxel. Samples 4.5 voxels up along x and 2.5 down along z from the middle.
    let offsets = Tensor::new(&[1, 2, 1, 1, 3], vec![0.45, 0.0, 0.0, 0.0, 0.0, -0.25]);
    for fields in fields(&network, [21, 21, 21], Some(offsets)) {
        let names: Vec<&str> = fields.iter().map(|f| &f.of[..]).collect();
        assert_eq!(names, ["offset1", network.name]);
        for field in fields {
            // along W voxels 14 and 15 with one more on each side, and 10 with one: 9 to 16; along D 7, 8 and 10: 6 to 11
            assert_eq!(field.voxels, [6, 3, 8], "{field:?}");
            // 3·3·4 voxels around the one and 4·3·3 around the other, which don't meet
            assert!((field.density - 72.0 / 144.0).abs() < 1e-9, "{field:?}");
        }
    }
}

//! The original OBELISK networks: parameters, training and prediction at locations.

use std::collections::HashMap;

use crate::common::*;
use obelisk::graph::Graph;
use obelisk::model::{self, At, Builder, Network, Site};
use obelisk::op::Target;
use obelisk::op::{Caps, StepScalars};
use obelisk::plan::Plan;
use obelisk::predict::points::PointPredictor;
use obelisk::predict::{PredictError, inference_graph};
use obelisk::preprocess::Preprocessing;
use obelisk::tensor::{Spec, Tensor};
use obelisk::train::{Loss, sparse_training_graph};
use obelisk::volume::{SpatialHeader, Volume};

#[test]
fn they_have_as_many_parameters_as_their_layers_say() {
    let preprocessing = model::find("obelisk_visceral").unwrap().published.unwrap()();
    for (arch, parameters) in [
        ("obelisk", 131_464),
        ("obelisk_visceral", 131_464),
        ("obelisk-unary", 128_392),
        ("obelisk-random", 125_320),
    ] {
        let network = &model::find(arch).unwrap();
        let graph = inference_graph(network, &preprocessing, [31, 24, 40]).unwrap();
        assert_eq!(graph.parameter_count(), parameters, "{arch}");
    }
}

/// A scan of 1 mm voxels in RAS with blobs, and weights of a network as they start.
fn blobs(size: [usize; 3]) -> Tensor {
    Tensor::from_fn(&[1, size[0], size[1], size[2]], |i| {
        let (x, y, z) = (i % size[2], i / size[2] % size[1], i / size[2] / size[1]);
        ((x as f32) * 0.3).sin() + ((y as f32) * 0.21).cos() * ((z as f32) * 0.4).sin()
    })
}

fn scan(size: [usize; 3]) -> Volume {
    let affine = glam::DMat4::from_translation(glam::DVec3::new(-7.0, 11.0, 3.0));
    Volume {
        data: blobs(size).data,
        channels: 1,
        geometry: SpatialHeader::from_affine(affine).geometry(size).unwrap(),
        non_finite: 0,
        source: "blobs".into(),
    }
}

fn preprocessing(grid: Option<[usize; 3]>) -> Preprocessing {
    Preprocessing {
        grid,
        ..model::find("obelisk_visceral").unwrap().published.unwrap()()
    }
}

/// Fresh weights with offsets that reach far and running statistics that are no identity.
fn fresh(network: &Network) -> HashMap<String, Tensor> {
    let graph = inference_graph(network, &preprocessing(None), [16; 3]).unwrap();
    let mut weights = obelisk::weights::initialise(&graph, 5);
    for (name, tensor) in &mut weights {
        let of = noise(&tensor.shape, name.len() as u32);
        for (v, n) in tensor.data.iter_mut().zip(of.data) {
            match name {
                n if n.starts_with("offset") => *v *= 6.0,
                name if name.ends_with("running_var") => *v = 1.0 + 0.5 * n,
                name if name.ends_with("running_mean") => *v = 0.1 * n,
                _ => {}
            }
        }
    }
    weights
}

#[test]
fn points_on_the_networks_grid_have_the_dense_logits_before_upsampling() {
    let size = [22, 17, 30];
    let quarter = [6, 5, 8];
    for arch in ["obelisk", "obelisk-unary", "obelisk-random", "obelisk_visceral"] {
        let network = &model::find(arch).unwrap();
        let points = network.points.as_ref().unwrap();
        let weights = fresh(network);
        let mut graph = Graph::new();
        let image = graph
            .input("image", Spec::flat(&[1, 1, size[0], size[1], size[2]]))
            .unwrap();
        let smoothed = (points.smooth)(&mut graph, image).unwrap();
        let at = (points.grid)(quarter);
        let cells = matches!(at, At::Cells(_));
        let site = Site {
            image: smoothed,
            at,
            theta: None,
        };
        let mut builder = Builder::new(&mut graph, false);
        let logits = (points.at)(&mut builder, &[site], 8).unwrap();
        graph.keep("logits", logits);
        let scan = scan(size);
        let preprocessing = preprocessing(None);
        let voxels: Vec<[f64; 3]> = (0..quarter.iter().product())
            .map(|s: usize| {
                let i = [s / 40, s / 8 % 5, s % 8];
                std::array::from_fn(|a| match cells {
                    true => (i[a] as f64 + 0.5) * size[a] as f64 / quarter[a] as f64 - 0.5,
                    false => i[a] as f64 * (size[a] - 1) as f64 / (quarter[a] - 1) as f64,
                })
            })
            .collect();
        for device in devices().iter().take(2) {
            let mut data = weights.clone();
            let prepared = preprocessing.prepare_image(&scan).unwrap();
            let image = Tensor::new(&[1, 1, size[0], size[1], size[2]], prepared.image.data);
            data.insert("image".into(), image);
            let dense = run_on(device, &graph, &data, &Default::default())
                .remove("logits")
                .unwrap();
            let dense = Tensor::new(&[8, voxels.len()], dense.data);
            pollster::block_on(async {
                let mut predictor = PointPredictor::new(network, &preprocessing, &weights).unwrap();
                let error = predictor.at(device, &voxels).await.unwrap_err().to_string();
                assert!(error.contains("load a scan"), "{error}");
                predictor.load(device, &scan).await.unwrap();
                // All at once, and a part of them in another order: a smaller plan.
                let all = predictor.at(device, &voxels).await.unwrap();
                assert_close(arch, &all, &dense, 2e-5);
                let some: Vec<usize> = (0..50).map(|i| i * 37 % voxels.len()).collect();
                let picked: Vec<[f64; 3]> = some.iter().map(|i| voxels[*i]).collect();
                let few = predictor.at(device, &picked).await.unwrap();
                let expected =
                    Tensor::from_fn(&[8, 50], |i| dense.data[i / 50 * voxels.len() + some[i % 50]]);
                assert_close(arch, &few, &expected, 2e-5);
                let outside = [[3.0, 3.0, 3.0], [0.0, 17.0, 0.0]];
                let error = predictor.at(device, &outside).await.unwrap_err();
                assert!(matches!(error, PredictError::Outside { index: 1, .. }), "{error}");
            });
        }
    }
}

/// What live labels rest on; the page's tests print the times.
#[test]
fn a_slice_of_locations_takes_a_twentieth_of_a_volumes_operations() {
    let network = &model::find("obelisk_visceral").unwrap();
    let points = network.points.as_ref().unwrap();
    let count = |at: &dyn Fn(&mut Graph) -> At| {
        let mut graph = Graph::new();
        let image = graph
            .resident("image", Spec::flat(&[1, 1, 144, 144, 144]))
            .unwrap();
        let at = at(&mut graph);
        let mut builder = Builder::new(&mut graph, false);
        let site = Site {
            image,
            at,
            theta: None,
        };
        let logits = (points.at)(&mut builder, &[site], 8).unwrap();
        graph.keep("logits", logits);
        Plan::new(&graph, &Caps::PORTABLE).unwrap().flops()
    };
    let slice = count(&|graph| At::Points(graph.input("points", Spec::flat(&[1, 36 * 36, 3])).unwrap()));
    let volume = count(&|_| (points.grid)([36; 3]));
    assert!(0 < slice && slice * 20 <= volume, "{slice} of {volume}");
}

#[test]
fn large_scans_are_looked_at_tile_by_tile_and_regular_grids_agree_with_points() {
    let network = &model::find("obelisk").unwrap();
    let weights = fresh(network);
    let scan = scan([40, 16, 24]);
    let preprocessing = preprocessing(Some([16, 16, 24]));
    let Some(device) = devices().first() else { return };
    pollster::block_on(async {
        let mut predictor = PointPredictor::new(network, &preprocessing, &weights).unwrap();
        predictor.load(device, &scan).await.unwrap();
        // A grid as fine as the voxels has, in a tile's middle, the logits of its points.
        let fine = predictor.grid(device, 1.0).await.unwrap();
        assert_eq!(fine.shape, [8, 40, 16, 24]);
        // Tiles start at 0, 8, 16 and 24: where a single one counts, at the ends, there is nothing to merge.
        let voxels: Vec<[f64; 3]> = (0..80)
            .map(|i| [(i % 4) as f64, (i / 4 % 16) as f64, (i % 24) as f64])
            .collect();
        let logits = predictor.at(device, &voxels).await.unwrap();
        let expected = Tensor::from_fn(&[8, 80], |i| {
            let [x, y, z] = voxels[i % 80].map(|v| v as usize);
            fine.data[((i / 80 * 40 + x) * 16 + y) * 24 + z]
        });
        assert_close("points", &logits, &expected, 1e-4);
        let coarse = predictor.grid(device, 4.0).await.unwrap();
        assert_eq!(coarse.shape, fine.shape);
        assert_ne!(coarse.data, fine.data);
        for wrong in [0.0, -1.0, f64::NAN] {
            assert!(predictor.grid(device, wrong).await.is_err());
        }
        let whole = &model::find("unet").unwrap();
        let error = PointPredictor::new(whole, &preprocessing, &weights).unwrap_err();
        assert!(error.to_string().contains("obelisk-unary"), "{error}");
    });
}

/// Sparse training at every location of a grid is dense training before upsampling: the same loss and gradients,
/// whether the samples are joined before the convolution or sampled inside it.
#[test]
fn a_sparse_step_at_a_grids_locations_equals_a_dense_one() {
    let (size, grid, classes) = ([14, 9, 18], [4, 3, 5], 3);
    let shape = [2, 1, size[0], size[1], size[2]];
    let images = noise(&shape, 8);
    let case = |i: usize| images.data[i * 14 * 9 * 18..][..14 * 9 * 18].to_vec();
    let points: Vec<f32> = (0..60)
        .flat_map(|s: usize| {
            [(s % 5, 5), (s / 5 % 3, 3), (s / 15, 4)].map(|(i, n)| 2.0 * i as f32 / (n - 1) as f32 - 1.0)
        })
        .collect();
    let labels: Vec<f32> = (0..120).map(|i| (i * 7 % 4) as f32 - 1.0).collect();
    for arch in ["obelisk", "obelisk-unary", "obelisk-random"] {
        let network = &model::find(arch).unwrap();
        let mut dense = Graph::new();
        let image = dense.input("image", Spec::flat(&shape)).unwrap();
        let flat = dense
            .input("labels", Spec::flat(&[2, 1, grid[0], grid[1], grid[2]]))
            .unwrap();
        let site = Site {
            image,
            at: At::Grid(grid),
            theta: None,
        };
        let mut builder = Builder::new(&mut dense, true);
        let logits = (network.points.as_ref().unwrap().at)(&mut builder, &[site], classes).unwrap();
        let loss = obelisk::train::add_loss(&mut dense, logits, flat, classes, Loss::HardMining).unwrap();
        dense.keep("loss", loss);
        dense.parameter_gradient_nodes(loss).unwrap();
        let sparse = sparse_training_graph(
            network,
            [1, size[0], size[1], size[2]],
            2,
            60,
            classes,
            Loss::HardMining,
            true,
        )
        .unwrap();

        let mut data = obelisk::weights::initialise(&dense, 3);
        data.insert("image".into(), images.clone());
        data.insert("class_weights".into(), Tensor::new(&[3], vec![0.5, 1.2, 0.9]));
        let identity = Tensor::from_fn(&[1, 3, 4], |i| (i % 5 == 0) as u8 as f32);
        for i in 0..2 {
            let image = Tensor::new(&[1, 1, size[0], size[1], size[2]], case(i));
            data.insert(format!("image.{i}"), image);
            data.insert(format!("points.{i}"), Tensor::new(&[1, 60, 3], points.clone()));
            data.insert(format!("theta.{i}"), identity.clone());
        }
        for device in devices().iter().take(2) {
            let step = StepScalars::default();
            let flat = |shape: &[usize]| Tensor::new(shape, labels.clone());
            data.insert("labels".into(), flat(&[2, 1, 4, 3, 5]));
            let want = run_on(device, &dense, &data, &step);
            data.insert("labels".into(), flat(&[2, 1, 1, 1, 60]));
            let got = run_on(device, &sparse, &data, &step);
            assert_close("loss", &got["loss"], &want["loss"], 1e-5);
            for (name, _) in dense.parameters().map(|(_, v)| (format!("grad:{}", v.name), ())) {
                assert_close(&format!("{arch} {name}"), &got[&name], &want[&name], 2e-4);
            }
        }
    }
}

/// What a step takes on the device does not depend on the volume, nor does what it computes.
#[test]
fn a_sparse_steps_plan_is_the_same_for_every_volume() {
    for caps in [
        Caps::PORTABLE,
        Caps {
            target: Target::CpuLanes(8),
            ..Caps::PORTABLE
        },
    ] {
        let plan = |side: usize, samples: usize| {
            let network = &model::find("obelisk").unwrap();
            let shape = [1, side, side, side];
            let graph = sparse_training_graph(network, shape, 3, samples, 9, Loss::HardMining, true).unwrap();
            Plan::new(&graph, &caps).unwrap()
        };
        let (small, large, largest) = (plan(72, 192), plan(144, 192), plan(216, 192));
        assert_eq!(small.slots, large.slots);
        assert_eq!(small.slots, largest.slots);
        assert_eq!(small.flops(), largest.flops());
        let groups =
            |plan: &Plan| -> Vec<[u32; 3]> { plan.launches.iter().map(|l| l.dispatch.workgroups).collect() };
        assert_eq!(groups(&small), groups(&largest));
        // It goes with the locations.
        assert!(plan(72, 384).slot_bytes() > small.slot_bytes() * 3 / 2);
        assert!(small.slot_bytes() < 32 << 20, "{}", small.slot_bytes());
    }
}

//! OBELISK layers, fused and in two steps, with the gradients of offsets and weights: `cargo bench --bench obelisk`.
//! Milliseconds of each kernel, the least of six runs.

use std::collections::HashMap;

use obelisk::bench::clock;
use obelisk::gpu::{Device, DeviceOptions, Executable, Weights};
use obelisk::graph::{Graph, Init};
use obelisk::op::StepScalars;
use obelisk::op::conv3d::{Conv3dConfig, conv3d};
use obelisk::op::obelisk_layer::obelisk_layer;
use obelisk::op::obelisk_sample::{Locations, ObeliskSample};
use obelisk::plan::Plan;
use obelisk::tensor::{Spec, Tensor};

/// Name, batch, image size, offsets, terms, grid, outputs, groups.
type Layer = (
    &'static str,
    usize,
    [usize; 3],
    usize,
    usize,
    [usize; 3],
    usize,
    usize,
);

const LAYERS: &[Layer] = &[
    ("hippocampus 1", 4, [40, 56, 40], 128, 1, [10, 14, 10], 128, 2),
    ("hippocampus 2", 4, [40, 56, 40], 512, 1, [5, 7, 5], 128, 4),
    ("144³ 1", 1, [144; 3], 128, 1, [36; 3], 128, 2),
    ("144³ 2", 1, [144; 3], 512, 1, [18, 36, 18], 128, 4),
    ("512 -> 256", 1, [144; 3], 512, 1, [36; 3], 256, 4),
    ("1024 differences", 1, [144; 3], 1024, 2, [36; 3], 256, 4),
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let device = pollster::block_on(Device::open(&DeviceOptions::default()))?;
    println!("{} ({})", device.adapter().name, device.adapter().driver);
    let only: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    for layer in LAYERS {
        if only.is_empty() || only.iter().any(|o| o == layer.0) {
            println!(
                "{}: {} offsets x {} to {} in {} groups on {:?}",
                layer.0, layer.3, layer.4, layer.6, layer.7, layer.5
            );
            for fused in [true, false] {
                let times = pollster::block_on(bench(&device, layer, fused))?;
                let sum: f64 = times.iter().map(|(_, ms)| ms).sum();
                println!("  {} {sum:8.2} ms", if fused { "fused    " } else { "two steps" });
                for (kernel, ms) in times {
                    println!("    {kernel:48} {ms:8.2} ms");
                }
            }
        }
    }
    Ok(())
}

async fn bench(
    device: &Device,
    layer: &Layer,
    fused: bool,
) -> Result<Vec<(String, f64)>, Box<dyn std::error::Error>> {
    let &(_, n, size, k, terms, grid, outputs, groups) = layer;
    let mut data = HashMap::new();
    let mut fill = |name: &str, shape: &[usize], scale: f32| {
        let value = |i: usize| (((i as u32).wrapping_mul(2654435761) >> 8) as f32 / 16777216.0 - 0.5) * scale;
        data.insert(name.to_owned(), Tensor::from_fn(shape, value));
    };
    let mut graph = Graph::new();
    let shape = [n, 1, size[0], size[1], size[2]];
    fill("image", &shape, 1.0);
    let image = graph.input("image", Spec::flat(&shape))?;
    let shape = [1, k, 1, terms, 3];
    fill("offset", &shape, 0.6);
    let offset = graph.parameter("offset", &shape, Init::Constant(0.0))?;
    let shape = [outputs, k / groups, 1, 1, 1];
    fill("weight", &shape, 0.2);
    let weight = graph.parameter("weight", &shape, Init::Constant(0.0))?;
    let locations = Locations::Grid(grid);
    let y = if fused {
        obelisk_layer(&mut graph, image, offset, weight, None, locations, groups)?
    } else {
        let x = graph.push1(ObeliskSample::new(locations), &[image, offset])?;
        let config = Conv3dConfig {
            groups,
            ..Default::default()
        };
        conv3d(&mut graph, &[x], weight, None, config)?
    };
    graph.keep("y", y);
    fill("upstream", graph.shape(y), 1.0);
    let upstream = graph.input("upstream", graph.spec(y).clone())?;
    for gradient in graph.gradients_from(&[(y, upstream)], &[offset, weight])? {
        graph.keep("gradient", gradient.expect("y depends on it"));
    }
    let plan = Plan::new(&graph, device.caps())?;
    let weights = Weights::new(device, &plan, true).await?;
    weights.upload(device, &data)?;
    let executable = Executable::new(device, plan, &weights).await?;
    for (name, _, _) in executable.plan().inputs.clone() {
        executable.upload(device, &name, &data[&name])?;
    }
    let step = StepScalars::default();
    let mut least = executable.submit_timed(device, &step, clock(device))?;
    for _ in 0..6 {
        let again = executable.submit_timed(device, &step, clock(device))?;
        least.iter_mut().zip(again).for_each(|(s, a)| *s = s.min(a));
    }
    let kernel = obelisk::op::Dispatch::kernel;
    Ok(executable
        .plan()
        .launches
        .iter()
        .zip(least)
        .map(|(launch, seconds)| (kernel(&launch.dispatch), seconds * 1e3))
        .collect())
}

//! Every file in shaders/ is used by some kernel, and every kernel of these graphs agrees with its module, validates
//! without capabilities (subgroups where declared) and translates to SPIR-V, MSL and HLSL.

use std::collections::{BTreeMap, BTreeSet};

use crate::common::*;
use obelisk::graph::Graph;
use obelisk::model::{Builder, NETWORKS};
use obelisk::op::arg_max::ArgMax;
use obelisk::op::{Caps, Dispatch, Forms, Target};
use obelisk::plan::Plan;
use obelisk::tensor::Spec;
use obelisk::train::{Loss, Preset, Rule, Settings, step_graph, training_graph};

/// What adapters look like: WebGPU's promises, which a GPU's kernels need no more of, and drivers on the processor.
fn adapters() -> [Caps; 4] {
    let on = |target, forms| Caps {
        target,
        forms,
        ..Caps::PORTABLE
    };
    [
        Caps::PORTABLE,
        on(Target::Cpu, Forms::TEXELS),
        Caps {
            spare: 64 << 20,
            ..on(Target::CpuLanes(8), Forms::TEXELS)
        },
        // SwiftShader, on which browsers run without a GPU
        on(Target::Cpu, Forms::PORTABLE),
    ]
}

fn plans() -> Vec<Plan> {
    let mut graphs: Vec<Graph> = Vec::new();
    for network in NETWORKS {
        let (grid, classes) = match network.fixed {
            // Its scans take more memory than the smallest adapters have; `unet` has the same layers.
            Some(fixed) if fixed.halved => continue,
            Some(fixed) => (fixed.size, fixed.labels),
            None => ([24, 32, 40], 5),
        };
        let shape = [1, 1, grid[0], grid[1], grid[2]];
        let mut inference = Graph::new();
        let image = inference.input("image", Spec::flat(&shape)).unwrap();
        let mut builder = Builder::new(&mut inference, false);
        let logits = network.build(&mut builder, image, classes).unwrap();
        let mut labels = inference.clone();
        inference.keep("logits", logits);
        graphs.push(inference);
        let of = labels.push1(ArgMax, &[logits]).unwrap();
        labels.keep("labels", of);
        graphs.push(labels);
        for loss in [Loss::CrossEntropyDice, Loss::HardMining] {
            graphs.push(training_graph(network, shape, classes, loss, true).unwrap());
        }
    }
    graphs.push(other_operations());
    graphs.push(augmented_step());
    let plan = |caps: Caps| {
        graphs
            .iter()
            .map(move |g| Plan::new(g, &caps).unwrap())
            .collect::<Vec<_>>()
    };
    adapters().into_iter().flat_map(plan).collect()
}

/// A step with all augmentation, clipped gradients, momentum and averages.
fn augmented_step() -> Graph {
    let mut settings = Settings::dense("".into(), "obelisk-hybrid");
    (_, settings.augment) = Preset::Strong.parts();
    (settings.optimiser, settings.clip, settings.ema) = (Rule::Sgd, Some(1.0), Some(0.9));
    let mut preprocessing = obelisk::model::find("obelisk_visceral")
        .unwrap()
        .published
        .unwrap()();
    preprocessing.grid = Some([16, 16, 16]);
    step_graph(&settings, &preprocessing).unwrap()
}

/// Operations that no network trains with.
fn other_operations() -> Graph {
    use obelisk::op::affine_grid::AffineGrid;
    use obelisk::op::batch_norm::fold_batch_norm;
    use obelisk::op::dropout::{channel_dropout, dropout};
    use obelisk::op::join::join;
    use obelisk::op::layout::to_flat;
    use obelisk::op::linear::linear;
    use obelisk::op::max_pool3d::{MaxPool, max_pool3d};
    use obelisk::op::obelisk_layer::obelisk_layer;
    use obelisk::op::obelisk_sample::{Locations, ObeliskSample};
    use obelisk::op::probabilities::Probabilities;
    use obelisk::op::turn_offsets::turn_offsets;
    let mut g = Graph::new();
    let logits = g.input("logits", Spec::map([1, 3, 4, 5, 6])).unwrap();
    let labels = g.push1(ArgMax, &[logits]).unwrap();
    g.keep("labels", labels);
    let theta = g.input("theta", Spec::flat(&[1, 3, 4])).unwrap();
    let table = g.input("table", Spec::flat(&[1, 9, 2])).unwrap();
    let painted = obelisk::op::paint::paint(&mut g, labels, table).unwrap();
    g.keep("painted", painted);
    let grid = g
        .push1(
            AffineGrid {
                size: [4, 5, 6],
                align_corners: false,
            },
            &[theta],
        )
        .unwrap();
    let upstream = g.input("upstream", Spec::flat(&[1, 4, 5, 6, 3])).unwrap();
    let gradient = g.gradients_from(&[(grid, upstream)], &[theta]).unwrap()[0].unwrap();
    g.keep("gradient", gradient);
    let flat = to_flat(&mut g, logits).unwrap();
    let dropped = dropout(&mut g, flat, 0.5).unwrap();
    let thinned = channel_dropout(&mut g, logits, 0.5).unwrap();
    g.keep("thinned", thinned);
    let (w, b) = (parameter(&mut g, "w", &[7, 360]), parameter(&mut g, "b", &[7]));
    let dense = linear(&mut g, dropped, w, Some(b)).unwrap();
    let above = g.input("above", Spec::flat(&[1, 7])).unwrap();
    let gradients = g.gradients_from(&[(dense, above)], &[w, b, logits]).unwrap();
    for (i, gradient) in gradients.into_iter().enumerate() {
        g.keep(&format!("dense gradient {i}"), gradient.unwrap());
    }
    let map = g.input("map", Spec::map([1, 3, 4, 5, 6])).unwrap();
    let points = g.input("points", Spec::flat(&[1, 9, 3])).unwrap();
    let offsets = parameter(&mut g, "offsets", &[1, 8, 1, 2, 3]);
    let above = g.input("sampled upstream", Spec::map([1, 24, 1, 1, 9])).unwrap();
    for slopes in [false, true] {
        let sample = ObeliskSample {
            locations: Locations::Points,
            slopes,
        };
        let sampled = g.push(sample, &[map, offsets, points]).unwrap()[0];
        let gradients = g.gradients_from(&[(sampled, above)], &[map, offsets]).unwrap();
        for (i, gradient) in gradients.into_iter().enumerate() {
            g.keep(&format!("sampled gradient {i}, {slopes}"), gradient.unwrap());
        }
    }
    // Channels of an image together in dX, and apart.
    for channels in [4, 5] {
        let image = g
            .input(&format!("{channels}"), Spec::map([1, channels, 9, 9, 9]))
            .unwrap();
        let mix = parameter(&mut g, &format!("mix {channels}"), &[4, 8 * channels, 1, 1, 1]);
        let layer = obelisk_layer(&mut g, image, offsets, mix, None, Locations::Grid([3; 3]), 1).unwrap();
        let above = g
            .input(&format!("above {channels}"), g.spec(layer).clone())
            .unwrap();
        let gradient = g.gradients_from(&[(layer, above)], &[image]).unwrap()[0].unwrap();
        g.keep(&format!("image gradient {channels}"), gradient);
    }
    // A layer whose samples exceed what its gradients hold in memory: the original OBELISK's at 144³.
    let image = g.input("image", Spec::flat(&[1, 1, 144, 144, 144])).unwrap();
    let pairs = parameter(&mut g, "pairs", &[1, 1024, 1, 2, 3]);
    let mix = parameter(&mut g, "mix", &[256, 256, 1, 1, 1]);
    let layer = obelisk_layer(&mut g, image, pairs, mix, None, Locations::Grid([36; 3]), 4).unwrap();
    g.keep("layer", layer);
    let above = g
        .input("layer upstream", Spec::map([1, 256, 36, 36, 36]))
        .unwrap();
    let gradients = g.gradients_from(&[(layer, above)], &[pairs, mix]).unwrap();
    for (i, gradient) in gradients.into_iter().enumerate() {
        g.keep(&format!("layer gradient {i}"), gradient.unwrap());
    }
    let theta = g.input("turn", Spec::flat(&[1, 3, 4])).unwrap();
    let turned = turn_offsets(&mut g, offsets, theta).unwrap();
    let above = g.input("turned upstream", Spec::flat(&[1, 8, 1, 2, 3])).unwrap();
    let gradient = g.gradients_from(&[(turned, above)], &[offsets]).unwrap()[0].unwrap();
    g.keep("turned gradient", gradient);
    let pool = MaxPool {
        kernel: [2; 3],
        stride: [2; 3],
        padding: [0; 3],
    };
    let highest = max_pool3d(&mut g, map, pool).unwrap();
    let shares = [Probabilities::Softmax, Probabilities::Sigmoid].map(|kind| g.push1(kind, &[map]).unwrap());
    for (i, value) in [highest].into_iter().chain(shares).enumerate() {
        let above = g
            .input(&format!("above output {i}"), g.spec(value).clone())
            .unwrap();
        let gradient = g.gradients_from(&[(value, above)], &[map]).unwrap()[0].unwrap();
        g.keep(&format!("output {i}"), value);
        g.keep(&format!("output gradient {i}"), gradient);
    }
    let joined = join(&mut g, &[map, map]).unwrap();
    g.keep("joined", joined);
    let weight = parameter(&mut g, "weight", &[4, 2, 3, 3, 3]);
    let vectors: Vec<_> = (0..5)
        .map(|i| parameter(&mut g, &format!("v{i}"), &[4]))
        .collect();
    let [bias, gamma, beta, mean, variance] = vectors[..] else {
        unreachable!("five")
    };
    let folded = fold_batch_norm(&mut g, weight, Some(bias), gamma, beta, mean, variance).unwrap();
    g.keep("folded", folded.0);
    g
}

#[test]
fn every_shader_is_used_valid_portable_and_translates() {
    let mut used = BTreeSet::new();
    let mut modules = BTreeMap::new();
    for plan in plans() {
        reflect(&plan);
        modules.extend(plan.launches.iter().map(|l| specialised(&l.dispatch)));
        used.extend(
            plan.launches
                .iter()
                .map(|l| l.dispatch.shader().name().to_owned()),
        );
    }
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("shaders");
    let on_disk: BTreeSet<String> = std::fs::read_dir(folder)
        .unwrap()
        .filter_map(|entry| {
            entry
                .unwrap()
                .file_name()
                .to_str()
                .unwrap()
                .strip_suffix(".wgsl")
                .map(str::to_owned)
        })
        .collect();
    assert_eq!(
        used, on_disk,
        "graphs of this test and files in shaders/ (add what is new to `other_operations`)"
    );
    // For the browser test, which compiles them with what browsers have.
    if let Some(path) = std::env::var_os("OBELISK_SHADERS_JSON") {
        let modules: Vec<_> = modules.into_values().collect();
        std::fs::write(path, serde_json::to_vec(&modules).unwrap()).unwrap();
    }
}

/// A kernel's module as a browser gets it, by what makes it unlike others.
fn specialised(dispatch: &Dispatch) -> (String, serde_json::Value) {
    let source = dispatch.source();
    let key = format!("{}{source}", dispatch.kernel());
    let module = serde_json::json!({
        "shader": dispatch.shader().name(),
        "entry": dispatch.entry(),
        "constants": format!("{:?}", dispatch.constants()),
        "subgroups": dispatch.subgroups,
        "wgsl": source,
    });
    (key, module)
}

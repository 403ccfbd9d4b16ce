//! Every network's graphs: what they plan to, and their wiring against PyTorch.
mod common;

use obelisk::model::NETWORKS;
use obelisk::op::Caps;
use obelisk::plan::Plan;
use obelisk::train::{Loss, training_graph};

#[test]
fn training_steps_plan_within_webgpus_default_limits() {
    for network in NETWORKS {
        for (shape, classes) in [
            ([1, 1, 144, 144, 144], 9),
            ([1, 1, 156, 115, 160], 8),
            ([4, 1, 40, 56, 40], 3),
        ] {
            let graph = training_graph(network, shape, classes, Loss::CrossEntropyDice, true);
            match network.fixed {
                Some(fixed) if (fixed.size, fixed.labels) != ([shape[2], shape[3], shape[4]], classes) => {
                    let refusal = graph.unwrap_err().to_string();
                    assert!(refusal.contains("resample or crop"), "{refusal}");
                }
                _ => {
                    let plan = Plan::new(&graph.unwrap(), &Caps::PORTABLE);
                    plan.unwrap_or_else(|e| panic!("{} at {shape:?}: {e}", network.name));
                }
            }
        }
    }
}

#[test]
fn scans_of_312x230x320_plan_where_buffers_hold_their_logits() {
    let caps = Caps {
        max_buffer: 1 << 30,
        ..Caps::PORTABLE
    };
    for network in NETWORKS {
        if let Some(preprocessing) = network.published
            && network.fixed.is_none_or(|fixed| fixed.halved)
        {
            for grid in [[312, 230, 320], [311, 229, 319]] {
                let graph = obelisk::predict::inference_graph(network, &preprocessing(), grid).unwrap();
                let plan = Plan::new(&graph, &caps);
                plan.unwrap_or_else(|e| panic!("{} at {grid:?}: {e}", network.name));
            }
        }
    }
}

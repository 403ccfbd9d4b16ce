//! What `obelisk bench` reports: the ceilings' kernels do the work that is counted, kernels' times add up, and the report
//! is consistent.

use std::time::Instant;

use crate::common::*;
use crate::program::{TINY, command};
use obelisk::bench::{copy_plan, fma_plan};
use obelisk::gpu::{Device, DeviceOptions, Executable, Weights};
use obelisk::model;
use obelisk::op::StepScalars;
use obelisk::plan::Plan;
use obelisk::tensor::Tensor;
use obelisk::train::{Loss, training_graph};

fn run(device: &Device, plan: Plan, input: Option<&Tensor>) -> Tensor {
    reflect(&plan);
    pollster::block_on(async {
        let name = plan.kept[0].0.clone();
        let weights = Weights::new(device, &plan, false).await.unwrap();
        let executable = Executable::new(device, plan, &weights).await.unwrap();
        executable.poison(device);
        if let Some(input) = input {
            executable.upload(device, "source", input).unwrap();
        }
        executable.submit(device, &StepScalars::default()).unwrap();
        executable.read(device, &name).await.unwrap()
    })
}

#[test]
fn the_copy_copies_every_byte() {
    for device in devices() {
        let source = noise(&[4 * 1001], 1);
        let target = run(device, copy_plan(16 * 1001, 2), Some(&source));
        assert_eq!(target.data, source.data);
    }
}

#[test]
fn the_multiplications_that_are_counted_are_done() {
    for device in devices() {
        for chains in [1, 2, 4] {
            let plan = fma_plan(chains, 1);
            assert_eq!(plan.flops(), (2 * 16 * 1024 * u64::from(chains)) << 15);
            let sums = run(device, plan, None);
            // Chains go to 2, the fixed point of x/2 + 1; the others stay where they start.
            for (i, sum) in sums.data.iter().enumerate() {
                let start = ((i / 4) % 64) as f32 + 0.25 * (i % 4) as f32;
                let chain = |k: u32| if k < chains { 2.0 } else { start + k as f32 };
                assert_eq!(*sum, (0..4).map(chain).sum::<f32>(), "sum {i} of {chains} chains");
            }
        }
    }
}

#[test]
fn the_adapters_clock_times_every_kernel() {
    // The first device takes no optional features.
    let Some(device) = devices().get(1).filter(|device| device.adapter().timestamps) else {
        return;
    };
    // The step that `forms` runs, whose kernels this process has then compiled.
    let network = &model::find("obelisk-hybrid").unwrap();
    let graph = training_graph(network, [1, 1, 24, 24, 24], 3, Loss::CrossEntropyDice, false).unwrap();
    pollster::block_on(async {
        let plan = Plan::new(&graph, device.caps()).unwrap();
        let weights = Weights::new(device, &plan, true).await.unwrap();
        let executable = Executable::new(device, plan, &weights).await.unwrap();
        let step = StepScalars::default();
        executable.submit(device, &step).unwrap();
        device.wait().unwrap();
        let start = Instant::now();
        let seconds = executable.submit_with_timestamps(device, &step).await.unwrap();
        let wall = start.elapsed().as_secs_f64();
        let seconds = seconds.expect("the adapter has timestamps");
        assert_eq!(seconds.len(), executable.plan().launches.len());
        let sum: f64 = seconds.iter().sum();
        // A bound that no load breaks: kernels run within the submission.
        assert!(
            0.0 < sum && sum <= wall,
            "kernels took {sum} s, all of it {wall} s"
        );
    });
}

#[test]
fn the_report_is_consistent() {
    if devices().is_empty() {
        return;
    }
    let output = command()
        .args([
            "bench", "--arch", TINY, "--size", "24,32,24", "--batch", "2", "--labels", "3", "--steps", "3",
        ])
        .args(["--augment", "--hard-mining", "--per-kernel", "--json"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let ceilings = &report["ceilings"];
    assert!(ceilings["gigaflops"].as_f64() > Some(0.0) && ceilings["gigabytes"].as_f64() > Some(0.0));
    for what in ["inference", "training"] {
        let m = &report[what];
        let number = |path: &str| {
            let value = m.pointer(path).and_then(|v| v.as_f64());
            value.unwrap_or_else(|| panic!("{what}{path} in {m}"))
        };
        assert!(0.0 < number("/seconds/min") && number("/seconds/min") <= number("/seconds/median"));
        assert!(number("/seconds/median") <= number("/seconds/max"));
        assert!(number("/pipelines_seconds") < number("/first_result_seconds"));
        assert!(number("/memory/peak") >= number("/planned_bytes"));
        assert_eq!(
            m["kernels"].as_array().unwrap().len() as f64,
            number("/dispatches")
        );
        let flop: f64 = m["kernels"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|k| k["flop"].as_f64())
            .sum();
        assert!((flop / 1e9 - number("/gigaflop")).abs() < 1e-9);
    }
    // Parts of networks and sparse steps measure too.
    for arguments in [
        &["--layer", "8,16,2", "--binary"][..],
        &["--layer", "8,16,1", "--channels", "3", "--input-gradient"],
        &["--arch", "obelisk", "--sparse", "2,32", "--labels", "3"],
    ] {
        let output = command()
            .args(["bench", "--size", "24,32,24", "--steps", "1", "--json"])
            .args(["--forms", "built-in"])
            .args(arguments)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {text}");
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let m = &report["training"];
        assert!(m["seconds"]["median"].as_f64() > Some(0.0), "{report}");
        assert!(report["forms"]["texels"].is_boolean(), "{report}");
        let sparse = arguments.contains(&"--sparse");
        assert_eq!(m["resident_bytes"], if sparse { 2 * 24 * 32 * 24 * 4 } else { 0 });
        assert_eq!(report["inference"].is_null(), sparse);
    }
    let nonsense = command().args(["bench", "--size", "24,32"]).output().unwrap();
    assert_eq!(nonsense.status.code(), Some(2));
}

/// Where the backend gives pipelines out, the next device starts with them; a damaged file changes nothing.
#[test]
fn pipelines_are_kept_and_damaged_ones_ignored() {
    if devices().is_empty() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let open = || {
        let options = DeviceOptions {
            cache: Some(folder.path().join("pipelines")),
            ..Default::default()
        };
        pollster::block_on(Device::open(&options)).unwrap()
    };
    let source = noise(&[4 * 100], 1);
    let device = open();
    let Some(bytes) = device.cached_pipeline_bytes() else {
        eprintln!("SKIPPED: {} gives no pipelines out", device.adapter().name);
        return;
    };
    assert_eq!(bytes, 0);
    assert_eq!(
        run(&device, copy_plan(16 * 100, 1), Some(&source)).data,
        source.data
    );
    let files: Vec<_> = std::fs::read_dir(folder.path().join("pipelines"))
        .unwrap()
        .collect();
    assert_eq!(files.len(), 1, "{files:?}");
    let file = files.into_iter().next().unwrap().unwrap().path();
    assert!(open().cached_pipeline_bytes() > Some(0));

    let mut damaged = std::fs::read(&file).unwrap();
    *damaged.last_mut().unwrap() ^= 1;
    for contents in [&damaged[..], &damaged[..5], b"nothing of the kind"] {
        std::fs::write(&file, contents).unwrap();
        let device = open();
        assert_eq!(device.cached_pipeline_bytes(), Some(0));
        assert_eq!(
            run(&device, copy_plan(16 * 100, 1), Some(&source)).data,
            source.data
        );
    }
}

//! The device's count of its own buffers: what they add up to, when they stop counting, and what the backend's allocator
//! says to it.

use obelisk::gpu::{Device, DeviceOptions, Executable, Memory, Weights};
use obelisk::model;
use obelisk::op::StepScalars;
use obelisk::plan::Plan;
use obelisk::tensor::Tensor;
use obelisk::train::{Loss, training_graph};

/// A device of the test's own: others' buffers would count too.
fn device() -> Option<Device> {
    match pollster::block_on(Device::open(&DeviceOptions::default())) {
        Ok(device) => Some(device),
        Err(error) => {
            assert!(std::env::var_os("CI").is_none(), "no device in CI: {error}");
            eprintln!("SKIPPED: tests on a device ({error})");
            None
        }
    }
}

/// The most that the backend may hand out for `live` counted bytes, beyond what it had before: sizes rounded up, wgpu's
/// own small buffers.
fn assert_allocator_agrees(what: &str, live: u64, allocated: u64) {
    // wgpu may have dropped a few small buffers of its own since the baseline.
    assert!(
        allocated + 4096 >= live,
        "{what}: the allocator handed out {allocated}, {live} are counted"
    );
    assert!(
        allocated <= live + live / 20 + (1 << 20),
        "{what}: the allocator handed out {allocated}, only {live} are counted"
    );
}

#[test]
fn buffers_count_from_making_to_dropping_and_the_allocator_agrees() {
    let Some(device) = device() else { return };
    let empty = device.memory();
    assert_eq!((empty.live, empty.peak), (0, 0));
    let baseline = empty.allocator.map_or(0, |a| a.allocated);
    let allocated = |m: Memory| m.allocator.map(|a| a.allocated.saturating_sub(baseline));

    let shape = [2, 1, 24, 24, 32];
    let network = &model::find(crate::program::TINY).unwrap();
    let graph = training_graph(network, shape, 3, Loss::CrossEntropyDice, false).unwrap();
    let plan = Plan::new(&graph, device.caps()).unwrap();
    let arenas = 4 * plan.parameters.bytes + plan.states.bytes;
    let slots = plan.slot_bytes() + plan.texture_bytes();
    pollster::block_on(async {
        let weights = Weights::new(&device, &plan, true).await.unwrap();
        assert_eq!(device.memory().live, arenas);

        let dispatches = plan.launches.len() as u64;
        let executable = Executable::new(&device, plan, &weights).await.unwrap();
        executable.submit(&device, &StepScalars::default()).unwrap();
        device.wait().unwrap();
        let ready = device.memory();
        let parameters = ready.live - arenas - slots;
        assert!(
            (16..=16 + 1024 * dispatches).contains(&parameters),
            "{parameters} bytes for the numbers of {dispatches} kernels"
        );
        if let Some(allocated) = allocated(ready) {
            assert_allocator_agrees("executable", ready.live, allocated);
        }

        // What is staged for an upload counts until the device has taken it.
        device.reset_peak();
        let image = Tensor::zeros(&shape);
        let bytes = image.data.len() as u64 * 4;
        executable.upload(&device, "image", &image).unwrap();
        let staged = device.memory();
        assert_eq!(staged.live, ready.live + bytes);
        if let Some(allocated) = allocated(staged) {
            assert_allocator_agrees("upload", staged.live, allocated);
        }
        executable.submit(&device, &StepScalars::default()).unwrap();
        device.wait().unwrap();
        let after = device.memory();
        assert_eq!(after.live, ready.live);
        assert_eq!(after.peak, ready.live + bytes + 16);

        // A read-back needs a staging buffer for its time.
        let loss = &executable.plan().kept.iter().find(|k| k.0 == "loss").unwrap().2;
        let loss = loss.bytes();
        device.reset_peak();
        executable.read(&device, "loss").await.unwrap();
        assert_eq!(device.memory().peak, ready.live + loss);

        let peak = device.memory().allocator.map(|a| a.allocated_peak - baseline);
        drop(executable);
        drop(weights);
        device.wait().unwrap();
        let end = device.memory();
        assert_eq!(end.live, 0);
        assert_eq!(end.peak, ready.live + loss, "dropping keeps the peak");
        if let (Some(peak), Some(left)) = (peak, allocated(end)) {
            assert_allocator_agrees("peak", end.peak, peak);
            assert!(
                left <= 1 << 20,
                "{left} bytes are left after everything was dropped"
            );
        }
    });
}

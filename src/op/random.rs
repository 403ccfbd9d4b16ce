//! The random numbers of `common/random.wgsl` and `common/normal.wgsl`, for references.

use super::StepScalars;

/// C. Wellons' lowbias32.
fn mix(value: u32) -> u32 {
    let v = (value ^ (value >> 16)).wrapping_mul(0x7feb_352d);
    let v = (v ^ (v >> 15)).wrapping_mul(0x846c_a68b);
    v ^ (v >> 16)
}

/// The key of a step's node.
pub(super) fn stream_of(id: u32, step: &StepScalars) -> u32 {
    mix(step.seed ^ mix(step.step ^ mix(id.wrapping_add(0x9e37_79b9))))
}

pub(super) fn random(index: u32, key: u32) -> u32 {
    mix(mix(index.wrapping_add(key)) ^ key)
}

/// Of mean 0 and variance 1.
pub(super) fn normal(index: u32, key: u32) -> f64 {
    let share = |index: u32| f64::from(random(index, key) >> 8);
    let a = (share(index.wrapping_mul(2)) + 1.0) / 16_777_216.0;
    let b = share(index.wrapping_mul(2).wrapping_add(1)) / 16_777_216.0;
    (-2.0 * a.ln()).sqrt() * (std::f64::consts::TAU * b).cos()
}

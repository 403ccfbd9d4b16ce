//! Coverage-guided fuzzers, one for each kind of input; README.md says how to run them. What they run is what `tests/hostile`
//! gives damaged files to.

#[path = "../../tests/hostile/targets.rs"]
pub mod targets;

pub use libfuzzer_sys::fuzz_target;

/// The fuzzer of a target.
#[macro_export]
macro_rules! fuzz {
    ($target:ident) => {
        $crate::fuzz_target!(|bytes: &[u8]| {
            $crate::targets::$target(bytes);
        });
    };
}

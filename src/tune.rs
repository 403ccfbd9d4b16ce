//! The forms of kernels that suit an adapter, measured, since they don't follow from its properties: small graphs in each form, in turn.
//! The choice is kept on disk with the compiled pipelines.

use web_time::Instant;

use crate::bench::{BenchError, Spread, clock};
use crate::gpu::{Device, DeviceOptions, Executable, FormsChoice, FormsSource, GpuError, Weights};
use crate::graph::{Graph, GraphError};
use crate::op::avg_pool3d::AvgPool3d;
use crate::op::{Caps, Forms, StepScalars};
use crate::plan::Plan;
use crate::tensor::Spec;

/// Runs of each candidate at most, and seconds after which there is no further; a device that takes longer for one keeps its
/// own forms. The median counts: a thread that ends takes its time off the processor's clock.
const RUNS: usize = 5;
const SECONDS: f64 = 0.5;
/// A run shorter than this launches its kernels more than once, up to 16 times, so that submitting them counts for little.
const LEAST_SECONDS: f64 = 0.005;

/// What was measured on an adapter.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Tuning {
    /// The choice.
    pub forms: Forms,
    /// Every candidate with its seconds; the first is the built-in one.
    pub candidates: Vec<(Forms, f64)>,
    /// Seconds that measuring took, with compiling.
    pub seconds: f64,
}

impl std::fmt::Display for Tuning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of", self.forms)?;
        for (i, (forms, seconds)) in self.candidates.iter().enumerate() {
            let separator = if i == 0 { "" } else { "," };
            write!(f, "{separator} {forms} ({:.2} ms)", seconds * 1e3)?;
        }
        Ok(())
    }
}

/// Opens the device that `options` ask for, with the forms that suit it: with [`FormsChoice::Auto`] and a cache, those of
/// an earlier measurement, or measured now and kept; with [`FormsChoice::Measure`] measured now. Where the device has no choice,
/// as GPUs have none, nothing is measured. A measurement that fails is reported, and the device takes the built-in forms.
///
/// # Errors
/// Those of [`Device::open`].
pub fn open(options: &DeviceOptions) -> Result<(Device, Option<Tuning>), GpuError> {
    let reopen = |forms| {
        pollster::block_on(Device::open(&DeviceOptions {
            forms,
            ..options.clone()
        }))
    };
    let device = reopen(options.forms)?;
    let unknown = *device.forms_source() == FormsSource::BuiltIn && device.keeps_forms();
    match options.forms {
        FormsChoice::Measure => {}
        FormsChoice::Auto if unknown => {}
        _ => return Ok((device, None)),
    }
    if candidates_for(&device).len() == 1 {
        return Ok((device, None));
    }
    // A device anew in the end: without the memory and the pipelines of what was measured, and without its failures.
    match measure(&device) {
        Ok(tuning) => {
            device.keep_forms(&tuning.forms);
            Ok((reopen(tuning.forms.into())?, Some(tuning)))
        }
        Err(error) => {
            tracing::warn!(
                "the forms of kernels could not be measured: {error}; the built-in ones are taken"
            );
            Ok((reopen(FormsChoice::BuiltIn)?, None))
        }
    }
}

/// Measures the forms that may suit the device; its own are what the others must beat.
///
/// # Errors
/// The device's failures.
pub fn measure(device: &Device) -> Result<Tuning, BenchError> {
    let start = Instant::now();
    let graph = average()?;
    let executable = |forms: Forms, repeats: usize| executable(device, &graph, forms, repeats);
    let clock = clock(device);
    let run = |executable: &Executable| -> Result<f64, GpuError> {
        let start = clock();
        executable.submit(device, &StepScalars::default())?;
        device.wait()?;
        Ok(clock() - start)
    };
    // The first run of a kernel is not counted: drivers compile and clear memory in it.
    let own = device.caps().forms;
    let once = executable(own, 1)?;
    run(&once)?;
    let waiting = Instant::now();
    run(&once)?;
    let waited = waiting.elapsed().as_secs_f64();
    let tuning = |candidates: Vec<(Forms, f64)>| Tuning {
        forms: decide(&candidates),
        candidates,
        seconds: start.elapsed().as_secs_f64(),
    };
    if waited > SECONDS {
        return Ok(tuning(vec![(own, waited)]));
    }
    let repeats = ((LEAST_SECONDS / waited) as usize).clamp(1, 16);
    let mut candidates = Vec::new();
    for forms in candidates_for(device) {
        let executable = executable(forms, repeats)?;
        run(&executable)?;
        candidates.push((forms, executable));
    }
    // In turn, so that what else the machine does meets all alike.
    let mut seconds: Vec<Vec<f64>> = vec![Vec::new(); candidates.len()];
    let first = Instant::now();
    for round in 0..RUNS {
        if round > 0 && first.elapsed().as_secs_f64() > SECONDS {
            break;
        }
        for ((_, executable), seconds) in candidates.iter().zip(&mut seconds) {
            seconds.push(run(executable)?);
        }
    }
    let forms = candidates.iter().map(|(forms, _)| *forms);
    let medians = seconds.into_iter().map(|s| Spread::of(s).median / repeats as f64);
    Ok(tuning(forms.zip(medians).collect()))
}

/// The device's own forms, then those that may be faster.
fn candidates_for(device: &Device) -> Vec<Forms> {
    let own = device.caps().forms;
    let others = [Forms { texels: !own.texels }];
    let possible = others.into_iter().filter(|f| device.allow_forms(f).is_ok());
    std::iter::once(own).chain(possible).collect()
}

/// The fastest, if it takes a tenth less than the first; else the first, so that noise does not decide.
fn decide(candidates: &[(Forms, f64)]) -> Forms {
    let (first, usual) = candidates[0];
    let timed = candidates.iter().filter(|(_, seconds)| *seconds > 0.0);
    let fastest = timed.min_by(|a, b| a.1.total_cmp(&b.1));
    let better = fastest.filter(|(_, seconds)| *seconds <= 0.9 * usual);
    better.map_or(first, |(forms, _)| *forms)
}

/// An average over windows: it loads much, and drivers compile it in a tenth of a convolution's time.
fn average() -> Result<Graph, GraphError> {
    let mut graph = Graph::new();
    let x = graph.input("x", Spec::map([1, 16, 40, 40, 40]))?;
    let pool = AvgPool3d {
        kernel: 3,
        stride: 1,
        padding: 1,
    };
    let y = graph.push1(pool, &[x])?;
    graph.keep("y", y);
    Ok(graph)
}

fn executable(
    device: &Device,
    graph: &Graph,
    forms: Forms,
    repeats: usize,
) -> Result<Executable, BenchError> {
    let caps = Caps {
        forms,
        ..*device.caps()
    };
    let mut plan = Plan::new(graph, &caps)?;
    plan.launches = vec![plan.launches; repeats].concat();
    let weights = pollster::block_on(Weights::new(device, &plan, false))?;
    Ok(pollster::block_on(Executable::new(device, plan, &weights))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_tenth_makes_another_form_the_choice() {
        let chosen = |seconds: &[f64]| {
            let forms = [Forms::PORTABLE, Forms::TEXELS];
            let candidates: Vec<_> = forms.into_iter().zip(seconds.iter().copied()).collect();
            decide(&candidates).texels
        };
        assert!(!chosen(&[1.0]));
        assert!(!chosen(&[1.0, 0.91]));
        assert!(chosen(&[1.0, 0.89]));
        assert!(!chosen(&[1.0, 2.0]));
        // A clock that says nothing decides nothing.
        assert!(!chosen(&[0.0, 0.0]));
        assert!(!chosen(&[1.0, -1.0]));
        assert!(!chosen(&[1.0, f64::NAN]));
        assert!(!chosen(&[f64::NAN, 1.0]));
    }
}

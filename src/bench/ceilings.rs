//! What the adapter reaches at best: bytes a second in a kernel that copies, operations a second in one that does
//! nothing but multiply and add. Kernels of networks are held against these.

use super::{BenchError, Kernel, clock};
use crate::gpu::{Device, Executable, Weights};
use crate::graph::Value;
use crate::op::join::{COPY, Copy};
use crate::op::{BufferRef, Dispatch, Params, Shader, StepScalars, int, linear_groups, read, write};
use crate::params;
use crate::plan::{Bound, Launch, Place, Plan, PlanBuffer};
use crate::tensor::{ALIGNMENT, Spec};

/// The most that kernels of this program's kind reach on the adapter, measured.
#[derive(Clone, Copy, Debug, serde::Serialize)]
#[non_exhaustive]
pub struct Ceilings {
    /// Bytes read and written a second by a copy, in 10⁹.
    pub gigabytes: f64,
    /// Multiplications and additions a second in f32, in 10⁹.
    pub gigaflops: f64,
}

impl Ceilings {
    /// The least seconds that the adapter's ceilings allow a kernel: all of its bytes moved once, or all of its operations
    /// done, whichever takes longer.
    pub fn floor(&self, kernel: &Kernel) -> f64 {
        (kernel.flop as f64 / self.gigaflops / 1e9).max(kernel.bytes as f64 / self.gigabytes / 1e9)
    }
}

const FMA: Shader = Shader {
    name: "fma",
    parts: &[include_str!("../../benches/ceilings/fma.wgsl")],
    structs: &[Fma::STRUCT],
    loops_end: true,
};
params! {
    /// Of `benches/ceilings/fma.wgsl`: x ← x · a + b.
    struct Fma {
        a: f32,
        b: f32,
    }
}
/// Loops of the FMA kernel, of four each.
const ROUNDS: usize = 1024;
/// A measurement shorter than this is repeated with more work.
const LEAST_SECONDS: f64 = 0.02;

/// Measures both ceilings; well under a second on any adapter, shader compilation aside.
pub fn ceilings(device: &Device) -> Result<Ceilings, BenchError> {
    // The largest arrays that two buffers may have, beyond any cache: 256 MiB where the adapter allows it. Through textures as
    // much as kernels read at once.
    let caps = device.caps();
    let bytes = caps.part().min(caps.max_buffer).min(256 << 20);
    let mut copied: f64 = 0.0;
    measure(
        device,
        |repeats| copy_plan(bytes, repeats).through_texels(caps),
        |repeats, seconds| {
            copied = copied.max(2.0 * bytes as f64 * repeats as f64 / seconds);
        },
    )?;
    let mut computed: f64 = 0.0;
    for chains in [1, 2, 4] {
        let plan = |repeats| fma_plan(chains, repeats);
        measure(device, plan, |repeats, seconds| {
            let flops = fma_plan(chains, repeats).flops();
            computed = computed.max(flops as f64 / seconds);
        })?;
    }
    Ok(Ceilings {
        gigabytes: copied / 1e9,
        gigaflops: computed / 1e9,
    })
}

/// Times plans of 1, 4, 16 … times the work until one takes long enough, and that one three times.
fn measure(
    device: &Device,
    plan: impl Fn(usize) -> Plan,
    mut report: impl FnMut(usize, f64),
) -> Result<(), BenchError> {
    let clock = clock(device);
    let mut repeats = 1;
    loop {
        let plan = plan(repeats);
        let weights = pollster::block_on(Weights::new(device, &plan, false))?;
        let executable = pollster::block_on(Executable::new(device, plan, &weights))?;
        let run = || -> Result<f64, BenchError> {
            let start = clock();
            executable.submit(device, &StepScalars::default())?;
            device.wait()?;
            Ok(clock() - start)
        };
        run()?; // compiles
        if run()? >= LEAST_SECONDS || repeats >= 1 << 14 {
            for _ in 0..3 {
                report(repeats, run()?);
            }
            return Ok(());
        }
        repeats *= 4;
    }
}

/// Copies a buffer of so many bytes to another, repeatedly.
pub fn copy_plan(bytes: u64, repeats: usize) -> Plan {
    let count = bytes as usize / 16;
    let dispatch = Dispatch {
        params: Copy {
            count: int(count),
            from_vector: 0,
            to_vector: 0,
        }
        .into(),
        bindings: vec![read(BufferRef::Input(0)), write(BufferRef::Output(0))],
        workgroups: linear_groups(count, 64),
        ..Dispatch::new(COPY, "main")
    };
    let values = [("source", 0), ("target", 1)]
        .map(|(name, slot)| (name.to_owned(), Value(slot), Spec::flat(&[bytes as usize / 4])));
    let [source, target] = values;
    Plan {
        inputs: vec![source],
        kept: vec![target],
        ..plan(dispatch, &[bytes, bytes], repeats)
    }
}

/// Multiplies and adds in 4 × `chains` registers of 2¹⁵ invocations for each repeat.
pub fn fma_plan(chains: u32, repeats: usize) -> Plan {
    // More invocations, not more dispatches: a GPU needs many to fill it.
    let invocations = (repeats << 15).min(1 << 22);
    let repeats = (repeats << 15) / invocations;
    let dispatch = Dispatch {
        constants: vec![("CHAINS", chains), ("ROUNDS", ROUNDS as u32)],
        params: Fma { a: 0.5, b: 1.0 }.into(),
        bindings: vec![write(BufferRef::Output(0))],
        workgroups: linear_groups(invocations, 64),
        iterations: ROUNDS as u64,
        flops: 2 * 4 * chains as u64 * 4 * ROUNDS as u64 * invocations as u64,
        ..Dispatch::new(FMA, "main")
    };
    let sums = ("sums".to_owned(), Value(0), Spec::flat(&[4 * invocations]));
    Plan {
        kept: vec![sums],
        ..plan(dispatch, &[16 * invocations as u64], repeats)
    }
}

/// One kernel that binds all of each slot, launched again and again.
fn plan(dispatch: Dispatch, slots: &[u64], repeats: usize) -> Plan {
    let bound = slots.iter().enumerate().map(|(slot, size)| Bound {
        buffer: PlanBuffer::Slot(slot),
        offset: 0,
        size: *size,
    });
    let launch = Launch {
        variant: "",
        op: dispatch.shader.name,
        node: 0,
        dispatch,
        bound: bound.collect(),
        texels: Vec::new(),
        note: String::new(),
    };
    let mut plan = Plan {
        launches: vec![launch; repeats],
        slots: slots.to_vec(),
        places: (0..slots.len())
            .map(|slot| (Value(slot), Place::Slot(slot, 0)))
            .collect(),
        ..Plan::default()
    };
    plan.parameters.bytes = ALIGNMENT;
    plan.states.bytes = ALIGNMENT;
    plan
}

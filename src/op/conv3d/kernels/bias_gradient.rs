//! conv3d_bias_gradient.wgsl: the sum of each output channel's upstream gradient, in two stages.

use super::GROUP;
use crate::op::{
    BufferRef, Caps, Dispatch, Io, Slices, Walk, int, params, read, shader, slices, walk, walk_threads,
    workgroup_reduction, write,
};

params! {
    struct Params {
        walk: Walk,
        /// Position of this dispatch's partial sums.
        first: u32,
        /// Partial sums of a block, over all dispatches.
        partials: u32,
    }
}

/// Both stages of the bias gradient of input 0.
pub fn bias_gradient(io: &mut Io, caps: &Caps) -> Vec<Dispatch> {
    let spec = &io.inputs[0];
    let (blocks, plane) = (spec.blocks(), spec.shape[3] * spec.shape[4]);
    let runs = slices(&[spec], caps);
    let threads = |run: &Slices| walk_threads(run.count * plane, blocks, caps);
    let (each, by_workgroup) = workgroup_reduction(caps);
    let partials = runs.iter().map(threads).sum::<usize>() / each;
    let sums = io.scratch((blocks * partials * 16) as u64);
    let params = |slices: usize, threads: usize, first: usize| Params {
        walk: walk(slices, plane, blocks, threads),
        first: int(first),
        partials: int(partials),
    };
    let shader =
        shader!("conv3d_bias_gradient", "common/sum64", "common/workgroup_reduction", "common/walk"; Params);
    let mut first = 0;
    let mut dispatches: Vec<Dispatch> = runs
        .iter()
        .map(|run| {
            let threads = threads(run);
            first += threads / each;
            Dispatch {
                constants: vec![by_workgroup],
                params: params(run.count, threads, first - threads / each).into(),
                bindings: vec![run.of(spec, read(BufferRef::Input(0))), write(sums)],
                workgroups: [(threads / GROUP) as u32, blocks as u32, 1],
                iterations: (run.count * plane).div_ceil(threads) as u64,
                flops: (run.count * plane * blocks * 4) as u64,
                ..Dispatch::new(shader, "partial")
            }
        })
        .collect();
    dispatches.push(Dispatch {
        params: params(1, partials, 0).into(),
        bindings: vec![read(sums), write(BufferRef::Output(0))],
        workgroups: [blocks as u32, 1, 1],
        iterations: partials.div_ceil(GROUP) as u64 + 6,
        flops: (partials * blocks * 4) as u64,
        ..Dispatch::new(shader, "reduce")
    });
    dispatches
}

// Second stages of the gradients of a fused OBELISK layer: sums of partial sums. RUN is the first stage's.
const RUN: u32 = 8u;
// Columns that an invocation of the first stage has.
const COLUMNS: u32 = 2u;
@group(0) @binding(1) var<storage, read> sums: array<f32>;
@group(0) @binding(2) var<storage, read_write> total: array<f32>;

// A share of a number of the offsets: over the channels c, and every `shares`-th of the partial sums of each.
fn offsets_share(index: u32, share: u32, shares: u32) -> f32 {
    let numbers = (1u + BINARY) * 3u;
    let padded = (params.columns + COLUMNS - 1u) / COLUMNS * COLUMNS;
    var sum = 0.0;
    for (var c = 0u; c < params.channels; c++) {
        let channel = c * params.offsets + index / numbers;
        let column = channel / params.columns * padded + channel % params.columns;
        let at = (column * numbers + index % numbers) * params.partials;
        for (var i = share; i < params.partials; i += shares) {
            sum += sums[at + i];
        }
    }
    return sum * half_extent()[index % 3u];
}

// One invocation a number.
@compute @workgroup_size(64)
fn offsets_total(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let index = (group.y * groups.x + group.x) * 64u + local;
    if (index < params.count) {
        total[index] = offsets_share(index, 0u, 1u);
    }
}

// One workgroup a number, for GPUs: there are fewer numbers than they have invocations.
@compute @workgroup_size(64)
fn offsets_shared_total(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let index = group.y * groups.x + group.x;
    let share = offsets_share(min(index, params.count - 1u), local, 64u);
    let sum = sum64(local, vec4f(share, 0.0, 0.0, 0.0)).x;
    if (local == 0u && index < params.count) {
        total[index] = sum;
    }
}

// One invocation a weight.
@compute @workgroup_size(64)
fn weights_total(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let index = (group.y * groups.x + group.x) * 64u + local;
    if (index >= params.count) {
        return;
    }
    let column = index % params.columns;
    let output = index / params.columns;
    // A group's outputs are whole vec4s, or there is one group.
    let block = output / 4u;
    let g = block / params.blocks;
    let piece = block % params.blocks / RUN;
    let run = (g * params.pieces + piece) * ((params.columns + COLUMNS - 1u) / COLUMNS) + column / COLUMNS;
    let at = ((run * COLUMNS + column % COLUMNS) * RUN + block % params.blocks % RUN) * params.partials;
    var sum = 0.0;
    for (var i = 0u; i < params.partials; i++) {
        sum += sums[(at + i) * 4u + output % 4u];
    }
    total[index] = sum;
}

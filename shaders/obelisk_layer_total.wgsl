// Second stages of the gradients of a fused OBELISK layer: sums of partial sums. RUN is the first stage's.
const RUN: u32 = 8u;
// Columns that an invocation of the first stage has.
const COLUMNS: u32 = 2u;
@group(0) @binding(1) var<storage, read> sums: array<f32>;
@group(0) @binding(2) var<storage, read_write> total: array<f32>;

// One invocation a number of the offsets: over the channels c and the partial sums of each.
@compute @workgroup_size(64)
fn offsets_total(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let index = (group.y * groups.x + group.x) * 64u + local;
    if (index >= params.count) {
        return;
    }
    let numbers = (1u + BINARY) * 3u;
    let padded = (params.columns + COLUMNS - 1u) / COLUMNS * COLUMNS;
    var sum = 0.0;
    for (var c = 0u; c < params.channels; c++) {
        let channel = c * params.offsets + index / numbers;
        let column = channel / params.columns * padded + channel % params.columns;
        let at = (column * numbers + index % numbers) * params.partials;
        for (var i = 0u; i < params.partials; i++) {
            sum += sums[at + i];
        }
    }
    total[index] = sum * half_extent()[index % 3u];
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

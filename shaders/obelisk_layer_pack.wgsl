// Packs the weights [outputs, columns] of a grouped 1 x 1 x 1 convolution for the kernels of OBELISK layers, whose
// outputs and columns stand in runs of RUN vec4s. One invocation a vec4; missing outputs and columns are zeros.
const RUN: u32 = 1u;
const COLUMNS: u32 = 1u;
@group(0) @binding(0) var<uniform> params: Pack;
@group(0) @binding(1) var<storage, read> weights: array<f32>;
@group(0) @binding(2) var<storage, read_write> packed: array<vec4f>;

fn weight(group: u32, output: u32, column: u32) -> f32 {
    if (output >= params.group_outputs || column >= params.columns) {
        return 0.0;
    }
    return weights[(group * params.group_outputs + output) * params.columns + column];
}

// [group, piece, step of COLUMNS, RUN, column] vec4s of four outputs.
@compute @workgroup_size(64)
fn by_outputs(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let index = (group.y * groups.x + group.x) * 64u + local;
    if (index >= params.count) {
        return;
    }
    let steps = (params.columns + COLUMNS - 1u) / COLUMNS;
    let run = index / (RUN * COLUMNS);
    let column = run % steps * COLUMNS + index % COLUMNS;
    let piece = run / steps % params.pieces;
    let g = run / steps / params.pieces;
    let o = (piece * RUN + index / COLUMNS % RUN) * 4u;
    packed[index] =
        vec4f(weight(g, o, column), weight(g, o + 1u, column), weight(g, o + 2u, column), weight(g, o + 3u, column));
}

// [group, block of four columns, piece, RUN, output of four] vec4s of four columns.
@compute @workgroup_size(64)
fn by_columns(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let index = (group.y * groups.x + group.x) * 64u + local;
    if (index >= params.count) {
        return;
    }
    let outputs = params.pieces * RUN * 4u;
    let o = index % outputs;
    let column = index / outputs % params.column_blocks * 4u;
    let g = index / outputs / params.column_blocks;
    packed[index] = vec4f(weight(g, o, column), weight(g, o, column + 1u), weight(g, o, column + 2u), weight(g, o, column + 3u));
}

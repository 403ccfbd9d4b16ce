// Weights of a convolution in the order in which conv3d.wgsl reads them:
//   packed[output group][kz][ky / TAPS][kx][input block][output block][ky % TAPS][input channel]
// = vec4 over outputs,
// zero beyond the channels and between groups. `transposed` packs for the input gradient: outputs of the packed
// convolution are the inputs of the weight. Tap k of the packed kernel is tap first + k·step of the weight.
// One invocation a vec4.
const BLOCKS: u32 = 4u;
const TAPS: u32 = 3u;
const CHANNELS: u32 = 4u;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> weights: array<f32>;
@group(0) @binding(2) var<storage, read_write> packed: array<vec4f>;

fn element(output: u32, input: u32, kz: u32, ky: u32, kx: u32) -> f32 {
    let o = select(output, input, params.transposed == 1u);
    let local = select(input, output, params.transposed == 1u);
    if (o >= params.weight_outputs || local >= params.source_channels) {
        return 0.0;
    }
    let c = params.source_first + local;
    let group_first = o / params.outputs_a_group * params.weight_inputs;
    if (c < group_first || c >= group_first + params.weight_inputs) {
        return 0.0;
    }
    let plane = (o * params.weight_inputs + c - group_first) * params.kernel_z + kz;
    return weights[(plane * params.kernel_y + ky) * params.kernel_x + kx];
}

fn elements(output: u32, input: u32, kz: u32, ky: u32, kx: u32) -> vec4f {
    let z = u32(params.first_z + i32(kz) * params.step_z);
    let y = u32(params.first_y + i32(ky) * params.step_y);
    let x = u32(params.first_x + i32(kx) * params.step_x);
    return vec4f(
        element(output, input, z, y, x),
        element(output + 1u, input, z, y, x),
        element(output + 2u, input, z, y, x),
        element(output + 3u, input, z, y, x),
    );
}

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let at = (group.y * groups.x + group.x) * 64u + local;
    if (at >= params.total) {
        return;
    }
    var i = at;
    let channel = i % CHANNELS;
    i /= CHANNELS;
    let tap = i % TAPS;
    i /= TAPS;
    let block = i % BLOCKS;
    i /= BLOCKS;
    let input_block = i % params.blocks;
    i /= params.blocks;
    let kx = i % params.taps_x;
    i /= params.taps_x;
    let ky = i % params.taps_y * TAPS + tap;
    i /= params.taps_y;
    let kz = i % params.taps_z;
    let output_group = i / params.taps_z;

    let output = (output_group * BLOCKS + block) * 4u;
    let group_block = output_group * BLOCKS * 4u / params.group_outputs * params.group_inputs / params.block_channels;
    let first_block = min(group_block, params.in_blocks - params.blocks);
    let input = (first_block + input_block) * params.block_channels + channel;
    packed[at] = elements(output, input, kz, ky, kx);
}

struct Combined {
    by_row: array<vec4f, 4>,
}

// Winograd's combinations of three numbers for two outputs.
fn combine(first: vec4f, second: vec4f, third: vec4f) -> Combined {
    let outer = first + third;
    return Combined(array(first, 0.5 * (outer + second), 0.5 * (outer - second), third));
}

// The three taps along y of a plane, combined.
fn combine_plane(output: u32, input: u32, kz: u32, kx: u32) -> Combined {
    return combine(
        elements(output, input, kz, 0u, kx),
        elements(output, input, kz, 1u, kx),
        elements(output, input, kz, 2u, kx),
    );
}

fn put_row(at: u32, row: u32, first: Combined, second: Combined, third: Combined) {
    let along_z = combine(first.by_row[row], second.by_row[row], third.by_row[row]);
    packed[at + row] = along_z.by_row[0];
    packed[at + row + 4u] = along_z.by_row[1];
    packed[at + row + 8u] = along_z.by_row[2];
    packed[at + row + 12u] = along_z.by_row[3];
}

// As conv3d_winograd.wgsl reads them: packed[output group][input channel][output block][kx][combination along z][along y].
// One invocation the 16 combinations.
@compute @workgroup_size(64)
fn combined(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let at = (group.y * groups.x + group.x) * 64u + local;
    if (at >= params.total) {
        return;
    }
    let kx = at % 3u;
    let block = at / 3u % BLOCKS;
    let input = at / 3u / BLOCKS % params.in_blocks;
    let output = (at / 3u / BLOCKS / params.in_blocks * BLOCKS + block) * 4u;
    let first = combine_plane(output, input, 0u, kx);
    let second = combine_plane(output, input, 1u, kx);
    let third = combine_plane(output, input, 2u, kx);
    // unroll
    for (var row = 0u; row < 4u; row++) {
        put_row(at * 16u, row, first, second, third);
    }
}

// The bias behind the weights, one vec4 an output block: `weights` is the bias here.
@compute @workgroup_size(64)
fn bias(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let at = (group.y * groups.x + group.x) * 64u + local;
    if (at >= params.total) {
        return;
    }
    let outputs = select(params.weight_outputs, params.source_channels, params.transposed == 1u);
    var value: vec4f;
    for (var i = 0u; i < 4u; i++) {
        if (at * 4u + i < outputs) {
            value[i] = weights[at * 4u + i];
        }
    }
    packed[params.bias_base + at] = value;
}

// A 1×1×1 convolution as conv3d_labels.wgsl reads it: eight vec4 an output, the first four with its weights, and behind them
// the bias. Here `bias_base` is where they begin.
@compute @workgroup_size(64)
fn pointwise(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let at = (group.y * groups.x + group.x) * 64u + local;
    if (at >= params.total) {
        return;
    }
    let first = at % 4u * 4u;
    var value: vec4f;
    for (var i = 0u; i < 4u; i++) {
        value[i] = element(at / 4u, first + i, 0u, 0u, 0u);
    }
    packed[params.bias_base + at / 4u * 8u + at % 4u] = value;
}

@compute @workgroup_size(64)
fn pointwise_bias(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let at = (group.y * groups.x + group.x) * 64u + local;
    if (at >= params.total) {
        return;
    }
    packed[params.bias_base + at * 8u + 4u] = vec4f(weights[at]);
}

// Second stage of conv3d_weight_gradient.wgsl and conv3d_slide_weight_gradient.wgsl: dW[o, c, kz, ky, kx] = Σ over chunks
// of partial, in order, by vec4s of outputs o.
const BLOCKS: u32 = 4u;
const TAPS: u32 = 3u;
// Taps along x that conv3d_slide_weight_gradient.wgsl unrolls.
const TAPS_X: u32 = 1u;
const CHANNELS: u32 = 4u;
// 1 where the first stage went along x, so that its y is W and its x is H.
const ROWS_ALONG_X: u32 = 0u;
const SUMS: u32 = TAPS_X * TAPS * BLOCKS * CHANNELS;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> partial: array<vec4f>;
@group(0) @binding(2) var<storage, read_write> gradient: array<f32>;

// One invocation sums all chunks: for drivers on the CPU, where barriers are slow.
@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let index = (group.y * groups.x + group.x) * 64u + local;
    if (index >= params.total) {
        return;
    }
    var sum: vec4f;
    for (var chunk = 0u; chunk < params.chunks; chunk++) {
        sum += partial[chunk * params.total + index];
    }
    store(index, sum);
}

// SHARES invocations sum a share of the chunks each: a GPU needs them to fill its time.
const SHARES: u32 = 16u;
const VECTORS: u32 = 256u / SHARES;
var<workgroup> shares: array<vec4f, 256>;

@compute @workgroup_size(256)
fn shared_sum(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let index = (group.y * groups.x + group.x) * VECTORS + local % VECTORS;
    var sum: vec4f;
    if (index < params.total) {
        for (var chunk = local / VECTORS; chunk < params.chunks; chunk += SHARES) {
            sum += partial[chunk * params.total + index];
        }
    }
    shares[local] = sum;
    workgroupBarrier();
    if (local >= VECTORS || index >= params.total) {
        return;
    }
    for (var share = 1u; share < SHARES; share++) {
        sum += shares[share * VECTORS + local];
    }
    store(index, sum);
}

fn tap(plane: u32, ky: u32, kx: u32) -> u32 {
    if (ROWS_ALONG_X == 1u) {
        return (plane * params.taps_x * TAPS_X + kx) * params.taps_y * TAPS + ky;
    }
    return (plane * params.taps_y * TAPS + ky) * params.taps_x * TAPS_X + kx;
}

fn store(index: u32, sum: vec4f) {
    var lane = index % params.lanes;
    let entry = index / params.lanes % SUMS;
    let block_group = index / params.lanes / SUMS;
    let kx = lane % params.taps_x * TAPS_X + entry / (TAPS * BLOCKS * CHANNELS);
    lane /= params.taps_x;
    let ky = lane % params.taps_y * TAPS + entry / (BLOCKS * CHANNELS) % TAPS;
    lane /= params.taps_y;
    let kz = lane % params.taps_z;
    let group_block = block_group * BLOCKS * 4u / params.group_outputs * params.group_inputs / params.block_channels;
    let first_block = min(group_block, params.in_blocks - params.blocks);
    let source_channel = (first_block + lane / params.taps_z) * params.block_channels + entry % CHANNELS;
    let c = params.source_first + source_channel;
    let first = (block_group * BLOCKS + entry / CHANNELS % BLOCKS) * 4u;
    for (var i = 0u; i < 4u; i++) {
        let o = first + i;
        let group_first = o / params.outputs_a_group * params.inputs;
        if (o < params.outputs && source_channel < params.source_channels && c >= group_first
            && c < group_first + params.inputs) {
            let plane = (o * params.inputs + c - group_first) * params.taps_z + kz;
            let at = tap(plane, ky, kx);
            var total = sum[i];
            if (params.add == 1u) {
                total += gradient[at];
            }
            gradient[at] = total;
        }
    }
}

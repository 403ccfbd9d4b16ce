// Bias gradient: db[o] = Σ_{n, z, y, x} g[n, o, z, y, x] in two stages. g: [N·D, C/4, H·W] vec4, from g_base on.
// `partial`: one invocation a channel block and slice of the voxels; `reduce`: one a channel block, slices in order;
// `shared_reduce`: one workgroup a channel block, for GPUs.
struct Params {
    slices: u32,
    first_slice: u32,
    blocks: u32,
    first_plane: u32,
    planes: u32,
    area: u32,
    g_base: u32,
    outputs: u32,
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> source: array<vec4f>;
@group(0) @binding(2) var<storage, read_write> sums: array<vec4f>;

@compute @workgroup_size(64)
fn partial(@builtin(global_invocation_id) id: vec3u) {
    let slice = id.x;
    let block = id.y;
    if (slice >= params.slices) {
        return;
    }
    var sum: vec4f;
    for (var plane = params.first_plane; plane < params.first_plane + params.planes; plane++) {
        let at = (plane * params.blocks + block) * params.area - params.g_base;
        for (var i = slice; i < params.area; i += params.slices) {
            sum += source[at + i];
        }
    }
    sums[(params.first_slice + slice) * params.blocks + block] = sum;
}

@group(0) @binding(2) var<storage, read_write> gradient: array<f32>;
@compute @workgroup_size(64)
fn reduce(@builtin(global_invocation_id) id: vec3u) {
    if (id.x >= params.blocks) {
        return;
    }
    var sum: vec4f;
    for (var slice = 0u; slice < params.slices; slice++) {
        sum += source[slice * params.blocks + id.x];
    }
    store(id.x, sum);
}

var<workgroup> shares: array<vec4f, 256>;
@compute @workgroup_size(256)
fn shared_reduce(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
    var sum: vec4f;
    for (var slice = local; slice < params.slices; slice += 256u) {
        sum += source[slice * params.blocks + group.x];
    }
    shares[local] = sum;
    for (var half = 128u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if (local < half) {
            shares[local] += shares[local + half];
        }
    }
    if (local == 0u) {
        store(group.x, shares[0]);
    }
}

fn store(block: u32, sum: vec4f) {
    for (var i = 0u; i < 4u; i++) {
        if (block * 4u + i < params.outputs) {
            gradient[block * 4u + i] = sum[i];
        }
    }
}

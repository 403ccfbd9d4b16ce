// Between a map [N, D, C/4, H, W, 4] and dense numbers [N, C, D, H, W]. One invocation a vec4 of the map.
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> map_in: array<vec4f>;
@group(0) @binding(2) var<storage, read_write> flat_out: array<f32>;
@group(0) @binding(1) var<storage, read> flat_in: array<f32>;
@group(0) @binding(2) var<storage, read_write> map_out: array<vec4f>;

// Dense position of a vec4's first lane, and its channel; the next lane is depth · plane further.
fn dense(i: u32) -> vec2u {
    let slice = params.first_slice + i / (params.plane * params.blocks);
    let channel = i / params.plane % params.blocks * 4u;
    let n = slice / params.depth;
    let row = (n * params.channels + channel) * params.depth + slice % params.depth;
    return vec2u(row * params.plane + i % params.plane, channel);
}

@compute @workgroup_size(64)
fn to_flat(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let i = (group.y * groups.x + group.x) * 64u + local;
    if (i >= params.count) {
        return;
    }
    let at = dense(i);
    let volume = params.depth * params.plane;
    let v = map_in[i];
    flat_out[at.x] = v.x;
    if (at.y + 1u < params.channels) {
        flat_out[at.x + volume] = v.y;
    }
    if (at.y + 2u < params.channels) {
        flat_out[at.x + 2u * volume] = v.z;
    }
    if (at.y + 3u < params.channels) {
        flat_out[at.x + 3u * volume] = v.w;
    }
}

@compute @workgroup_size(64)
fn to_map(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let i = (group.y * groups.x + group.x) * 64u + local;
    if (i >= params.count) {
        return;
    }
    let at = dense(i);
    let volume = params.depth * params.plane;
    var v = vec4f(flat_in[at.x], 0.0, 0.0, 0.0);
    if (at.y + 1u < params.channels) {
        v.y = flat_in[at.x + volume];
    }
    if (at.y + 2u < params.channels) {
        v.z = flat_in[at.x + 2u * volume];
    }
    if (at.y + 3u < params.channels) {
        v.w = flat_in[at.x + 3u * volume];
    }
    map_out[i] = v;
}

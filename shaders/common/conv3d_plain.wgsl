// Weights of conv3d.wgsl read where they are used: on a GPU one address for a whole subgroup is one transaction.
@group(0) @binding(2) var<storage, read> w: array<vec4f>;
var<private> weights_at: u32;

fn load_weights(at: u32, lane: u32) {
    weights_at = at;
}

fn weight(i: u32) -> vec4f {
    return w[weights_at + i];
}

fn packed_bias(at: u32) -> vec4f {
    return w[at];
}

@compute @workgroup_size(64)
fn plain(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    convolve((group.y * groups.x + group.x) * 64u + local, group.z, 0u);
}

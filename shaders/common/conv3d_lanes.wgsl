// Weights of convolutions and OBELISK layers read one vec4 a lane by eight lanes and handed round by shuffles: software Vulkan reads a
// uniform address lane by lane, and a shuffle from a constant lane is one to three instructions there. Needs subgroups
// of at least eight.
@group(0) @binding(2) var<storage, read> w: array<vec4f>;
const LOADS: u32 = (CHUNK + 7u) / 8u;
var<private> loaded: array<vec4f, LOADS>;

fn load_weights(first: u32, lane: u32) {
    let at = first + (lane & 7u);
    // unroll
    for (var k = 0u; k < LOADS; k++) {
        loaded[k] = w[at + 8u * k];
    }
}

// Shifts: a division is one more function of the driver's to inline, and there are a thousand of these.
fn weight(i: u32) -> vec4f {
    return subgroupShuffle(loaded[i >> 3u], i & 7u);
}

// One number of it.
fn weight_of(i: u32, output: u32) -> f32 {
    return subgroupShuffle(loaded[i >> 3u][output], i & 7u);
}

fn packed_bias(at: u32) -> vec4f {
    return w[at];
}

@compute @workgroup_size(64)
fn lanes(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    convolve((group.y * groups.x + group.x) * 64u + local, group.z, lane);
}

// Before and after a scatter into fixed point: clears the words, finds the largest |upstream|, turns sums into floats.
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> words: array<vec2u>;
@group(0) @binding(2) var<storage, read_write> largest: array<atomic<u32>>;

// One invocation an element.
@compute @workgroup_size(64)
fn clear(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let index = (group.y * groups.x + group.x) * 64u + local;
    if (index < params.count) {
        words[index] = vec2u();
    }
    if (index == 0u) {
        atomicStore(&largest[0], 0u);
    }
}

@group(0) @binding(1) var<storage, read> upstream: array<f32>;

// One invocation every `threads`-th element. Magnitudes compare as their bits do; NaN and infinity win.
@compute @workgroup_size(64)
fn maximum(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    var most = 0u;
    for (var i = (group.y * groups.x + group.x) * 64u + local; i < params.count; i += params.threads) {
        most = max(most, bitcast<u32>(upstream[i]) & 0x7fffffffu);
    }
    if (most > 0u) {
        atomicMax(&largest[0], most);
    }
}

@group(0) @binding(1) var<storage, read> sums: array<vec2u>;
@group(0) @binding(2) var<storage, read> found: array<u32>;
@group(0) @binding(3) var<storage, read_write> output: array<f32>;

// One invocation an element. An infinite or undefined upstream gives such an output everywhere, not a wrong number.
@compute @workgroup_size(64)
fn finish(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let index = (group.y * groups.x + group.x) * 64u + local;
    if (index >= params.count) {
        return;
    }
    if (found[0] >= 0x7f800000u) {
        output[index] = bitcast<f32>(found[0]);
        return;
    }
    var sum = sums[index];
    let negative = sum.y >= 0x80000000u;
    if (negative) {
        sum = vec2u(~sum.x + 1u, ~sum.y + select(0u, 1u, sum.x == 0u));
    }
    let scale = scale_of(found[0], params.headroom);
    let value = (f32(sum.y) * 4294967296.0 + f32(sum.x)) * scale.down * scale.natural;
    output[index] = select(value, -value, negative);
}

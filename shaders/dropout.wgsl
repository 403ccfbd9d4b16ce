// y = x / (1 - p) where a counter-based random number says keep, else 0. The number depends on seed, step, the node's id
// and the element's place in [N, C, D, H, W] (or in [N, C], for whole channels), so the gradient draws the same again.
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<uniform> step: StepScalars;
@group(0) @binding(2) var<storage, read> x: array<vec4f>;
@group(0) @binding(3) var<storage, read_write> y: array<vec4f>;
const VECTORS: u32 = 8u;

fn kept(index: u32, key: u32, value: f32) -> f32 {
    return select(0.0, value * params.scale, random(index, key) >= params.threshold);
}

// One invocation a vec4.
@compute @workgroup_size(64)
fn flat_elements(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let i = (group.y * groups.x + group.x) * 64u + local;
    if (i >= params.count) {
        return;
    }
    let v = x[i];
    let at = (params.first + i) * 4u;
    let key = stream_of(params.id);
    y[i] = vec4f(kept(at, key, v.x), kept(at + 1u, key, v.y), kept(at + 2u, key, v.z), kept(at + 3u, key, v.w));
}

// One invocation: VECTORS vec4s of a plane.
@compute @workgroup_size(64)
fn map_elements(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let plane = group.z * groups.y + group.y;
    if (plane >= params.planes) {
        return;
    }
    let slice = params.first + plane / params.blocks;
    let channel = slice / params.depth * params.channels + 4u * (plane % params.blocks);
    let key = stream_of(params.id);
    let inside = params.by_channel == 0u;
    let volume = params.depth * params.count;
    let stride = select(1u, volume, inside);
    let base = channel * stride + select(0u, slice % params.depth * params.count, inside);
    for (var k = 0u; k < VECTORS; k++) {
        let i = (group.x * VECTORS + k) * 64u + local;
        if (i < params.count) {
            let v = x[plane * params.count + i];
            let at = base + select(0u, i, inside);
            y[plane * params.count + i] = vec4f(
                kept(at, key, v.x),
                kept(at + stride, key, v.y),
                kept(at + 2u * stride, key, v.z),
                kept(at + 3u * stride, key, v.w),
            );
        }
    }
}

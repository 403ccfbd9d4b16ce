// The offsets' gradient from slopes that sampling stored: dL/do_kt = Σ_{n, c, s} dX[n, c K + k, s] Y[n, t, c K + k, s], with Y
// of obelisk_sample.wgsl, sample_slopes: t counts terms and axes, TERMS in all. dX and Y are maps on the grid of locations.
// partial: one invocation four offsets and every `threads`-th location, adjacent invocations adjacent locations; leaves
// [threads, K/4, TERMS] vec4s. total: one invocation such a vec4, summed over threads.
const TERMS: u32 = 3u;
@group(0) @binding(0) var<uniform> params: SlopeSums;
@group(0) @binding(1) var<storage, read> upstream: array<vec4f>;
@group(0) @binding(2) var<storage, read> slopes: array<vec4f>;
@group(0) @binding(3) var<storage, read_write> sums: array<vec4f>;

var<private> own: array<vec4f, TERMS>;

fn add(t: u32, at: u32, g: vec4f) {
    if (t < TERMS) {
        own[t] += g * slopes[at + t * params.blocks * params.plane];
    }
}

fn store(t: u32, at: u32) {
    if (t < TERMS) {
        sums[at + t] = own[t];
    }
}

@compute @workgroup_size(64)
fn partial(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let index = (group.y * groups.x + group.x) * 64u + local;
    let block = divide(index, params.threads);
    let thread = index - block * params.threads;
    if (block >= params.offsets) {
        return;
    }
    for (var s = thread; s < params.count; s += params.threads) {
        let slice = divide(s, params.plane);
        let in_plane = s - slice * params.plane;
        for (var c = 0u; c < params.channels; c++) {
            let row = c * params.offsets + block;
            let g = upstream[(slice * params.blocks + row) * params.plane + in_plane];
            let at = (slice * TERMS * params.blocks + row) * params.plane + in_plane;
            // unroll
            for (var t = 0u; t < 6u; t++) {
                add(t, at, g);
            }
        }
    }
    let at = ((params.first + thread) * params.offsets + block) * TERMS;
    // unroll
    for (var t = 0u; t < 6u; t++) {
        store(t, at);
    }
}

@group(0) @binding(1) var<storage, read> parts: array<vec4f>;
@group(0) @binding(2) var<storage, read_write> gradient: array<f32>;

@compute @workgroup_size(64)
fn total(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let index = (group.y * groups.x + group.x) * 64u + local;
    if (index >= params.count) {
        return;
    }
    var sum: vec4f;
    for (var thread = 0u; thread < params.threads; thread++) {
        sum += parts[thread * params.count + index];
    }
    let block = index / TERMS;
    let at = block * 4u * TERMS + index % TERMS;
    gradient[at] = sum.x;
    gradient[at + TERMS] = sum.y;
    gradient[at + 2u * TERMS] = sum.z;
    gradient[at + 3u * TERMS] = sum.w;
}

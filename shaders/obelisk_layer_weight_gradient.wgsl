// The weights' gradient of a fused OBELISK layer: dL/dW[o, ck] = Σ_{n, s} dF[n, o, s] X[n, ck, s], X sampled again.
// One invocation every `threads`-th location, a run of 4 RUN outputs and two columns of a group (z). Writes
// [group, piece, pair of columns, column, RUN, partials] vec4s; obelisk_layer_total.wgsl sums them.
const RUN: u32 = 8u;
@group(0) @binding(2) var<storage, read> upstream: array<vec4f>;
@group(0) @binding(5) var<storage, read_write> partial_sums: array<vec4f>;

var<private> sums: array<vec4f, 2u * RUN>;

// Sums of blocks beyond the group's are not read.
fn add(i: u32, s: u32, start: u32, first: u32, x: vec2f) {
    if (i < RUN) {
        let block = start + min(first + i, params.blocks - 1u);
        let g = upstream[map_index(s, (params.outputs + 3u) / 4u, block)];
        sums[i] += x.x * g;
        sums[RUN + i] += x.y * g;
    }
}

fn store(i: u32, at: u32) {
    if (i < 2u * RUN) {
        partial_sums[at + i * params.partials] = sums[i];
    }
}

fn sampled(here: Location, p: Position, channel: u32) -> f32 {
    let start = image_start(here.n, channel / params.offsets);
    let k = channel % params.offsets;
    var x = value(start, image_cell(moved(p, offset(k, 0u))));
    if (BINARY == 1u) {
        x -= value(start, image_cell(moved(p, offset(k, 1u))));
    }
    return x;
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
    let thread = group.x * 64u + local;
    let pairs = (params.columns + 1u) / 2u;
    let g = group.z / pairs / params.pieces;
    let piece = group.z / pairs % params.pieces;
    let channel = g * params.columns + group.z % pairs * 2u;
    // The second column of the last pair may be missing; what the first one gives there is not read.
    let other = min(channel + 1u, (g + 1u) * params.columns - 1u);
    let first = piece * RUN;
    let start = g * params.blocks;
    for (var s = thread; s < params.count; s += params.threads) {
        let here = located(s);
        let p = location(here.n, here.at);
        let x = vec2f(sampled(here, p, channel), sampled(here, p, other));
        // unroll
        for (var i = 0u; i < 8u; i++) {
            add(i, s, start, first, x);
        }
    }
    let at = group.z * 2u * RUN * params.partials + params.partial_base + thread;
    // unroll
    for (var i = 0u; i < 16u; i++) {
        store(i, at);
    }
}

// The offsets' gradient of a fused OBELISK layer: dL/do_k = Σ_{n, c, s} dX[c K + k, s] ∇I(n, c, p_s + o_k) with
// dX[ck, s] = Σ_o W[o, ck] dF[o, s], which is never stored. W packed by obelisk_layer_pack.wgsl, by_columns.
// One invocation every `threads`-th location and four columns of a group (z). Writes [columns of all groups, rounded up to
// fours in each, 1 or 2, 3, partials]; obelisk_layer_total.wgsl sums them.
const RUN: u32 = 8u;
const CHUNK: u32 = 4u * RUN;
@group(0) @binding(5) var<storage, read> upstream: array<vec4f>;
@group(0) @binding(6) var<storage, read_write> partial_sums: array<f32>;

var<private> dx: vec4f;

fn add(i: u32, s: u32, group: u32, first: u32) {
    if (i < RUN) {
        // Outputs beyond a group's have zero weights.
        let block = group * params.blocks + min(first + i, params.blocks - 1u);
        let g = upstream[map_index(s, (params.outputs + 3u) / 4u, block)];
        dx += weight(4u * i) * g.x + weight(4u * i + 1u) * g.y + weight(4u * i + 2u) * g.z + weight(4u * i + 3u) * g.w;
    }
}

fn convolve(index: u32, z: u32, lane: u32) {
    let column_blocks = (params.columns + 3u) / 4u;
    let group = z / column_blocks;
    let thread = index % params.threads;
    var sums: array<vec3f, 8>;
    let steps = (params.count + params.threads - 1u) / params.threads;
    for (var step = 0u; step < steps; step++) {
        let wanted = step * params.threads + thread;
        let s = min(wanted, params.count - 1u);
        dx = vec4f();
        for (var piece = 0u; piece < params.pieces; piece++) {
            load_weights((z * params.pieces + piece) * CHUNK, lane);
            let first = piece * RUN;
            // unroll
            for (var i = 0u; i < 8u; i++) {
                add(i, s, group, first);
            }
        }
        if (wanted < params.count) {
            let here = located(s);
            let p = location(here.n, here.at);
            for (var j = 0u; j < 4u; j++) {
                let column = min(z % column_blocks * 4u + j, params.columns - 1u);
                let channel = group * params.columns + column;
                let start = image_start(here.n, channel / params.offsets);
                let k = channel % params.offsets;
                sums[j] += dx[j] * slope(start, image_cell(moved(p, offset(k, 0u))));
                if (BINARY == 1u) {
                    sums[4u + j] -= dx[j] * slope(start, image_cell(moved(p, offset(k, 1u))));
                }
            }
        }
    }
    if (index >= params.threads) {
        return;
    }
    for (var j = 0u; j < 4u; j++) {
        for (var term = 0u; term <= BINARY; term++) {
            let at = ((z * 4u + j) * (1u + BINARY) + term) * 3u * params.partials + params.partial_base + index;
            let sum = sums[4u * term + j];
            partial_sums[at] = sum.x;
            partial_sums[at + params.partials] = sum.y;
            partial_sums[at + 2u * params.partials] = sum.z;
        }
    }
}

// The gradients of a fused OBELISK layer's weights and offsets in one kernel, for software Vulkan:
//   dL/dW[o, ck] = Σ_{n, s} dF[n, o, s] X[n, ck, s],   dL/do_k = Σ_{n, c, s} dX[c K + k, s] ∇I(n, c, p_s + o_k)
// with dX[ck, s] = Σ_o W[o, ck] dF[o, s]. The eight voxels that a sample reads give both X and ∇I.
// A lane owns every eighth column of a group, COLUMNS in all, with their weights and sums of 4 RUN outputs, and loops over the
// locations of a chunk. All eight lanes need the same dF: each loads one vec4, and they share them by shuffles. Loads cost
// most: 8 a sample, and RUN / 8 vec4s a location for 8 COLUMNS samples. z: group and run of outputs.
// Writes partial sums in the layouts that obelisk_layer_total.wgsl reads. Needs subgroups of eight or more.
const RUN: u32 = 16u;
const COLUMNS: u32 = 4u;
const LOADS: u32 = (RUN + 7u) / 8u;
@group(0) @binding(2) var<storage, read> weights: array<f32>;
@group(0) @binding(5) var<storage, read> upstream: array<vec4f>;
@group(0) @binding(6) var<storage, read_write> weight_sums: array<vec4f>;
@group(0) @binding(7) var<storage, read_write> offset_sums: array<f32>;

var<private> own_weights: array<vec4f, COLUMNS * RUN>;
var<private> sums: array<vec4f, COLUMNS * RUN>;
var<private> loaded: array<vec4f, LOADS>;
var<private> places: array<Position, 2u * COLUMNS>;
var<private> starts: array<u32, COLUMNS>;
var<private> x: array<f32, COLUMNS>;
var<private> dx: array<f32, COLUMNS>;
// First and second terms.
var<private> slopes: array<vec3f, 2u * COLUMNS>;
var<private> slope_sums: array<vec3f, 2u * COLUMNS>;

fn weight_at(output: u32, group_outputs: u32, group: u32, column: u32) -> f32 {
    let at = (group * group_outputs + min(output, group_outputs - 1u)) * params.columns + column;
    return select(0.0, weights[at], output < group_outputs);
}

fn load_weight(i: u32, j: u32, outputs: u32, group: u32, column: u32, first: u32) {
    if (i < RUN) {
        let o = 4u * (first + i);
        own_weights[j * RUN + i] = vec4f(
            weight_at(o, outputs, group, column),
            weight_at(o + 1u, outputs, group, column),
            weight_at(o + 2u, outputs, group, column),
            weight_at(o + 3u, outputs, group, column),
        );
    }
}

fn load_own_weights(j: u32, group: u32, column: u32, first: u32) {
    if (j < COLUMNS) {
        let groups = (params.outputs + 4u * params.blocks - 1u) / (4u * params.blocks);
        let outputs = params.outputs / groups;
        // unroll
        for (var i = 0u; i < 16u; i++) {
            load_weight(i, j, outputs, group, column, first);
        }
    }
}

// The column's place in the image, per n.
fn place(j: u32, group: u32, column: u32) {
    if (j < COLUMNS) {
        let channel = group * params.columns + column;
        starts[j] = image_start(0u, channel / params.offsets);
        places[j] = offset(channel % params.offsets, 0u);
        if (BINARY == 1u) {
            places[COLUMNS + j] = offset(channel % params.offsets, 1u);
        }
    }
}

fn sample(j: u32, p: Position, n: u32) {
    if (j < COLUMNS) {
        let start = starts[j] + n * params.stride_n;
        let first = slope_and_value(start, image_cell(moved(p, places[j])));
        slopes[j] = first.xyz;
        x[j] = first.w;
        dx[j] = 0.0;
        if (BINARY == 1u) {
            let second = slope_and_value(start, image_cell(moved(p, places[COLUMNS + j])));
            slopes[COLUMNS + j] = -second.xyz;
            x[j] -= second.w;
        }
    }
}

fn load_upstream(k: u32, s: u32, group: u32, first: u32, lane8: u32) {
    if (k < LOADS) {
        // Blocks beyond the group's have zero weights, and their sums are not read.
        let block = group * params.blocks + min(first + 8u * k + lane8, params.blocks - 1u);
        loaded[k] = upstream[map_index(s, (params.outputs + 3u) / 4u, block)];
    }
}

fn add_to(j: u32, i: u32, g: vec4f) {
    if (j < COLUMNS) {
        sums[j * RUN + i] += x[j] * g;
        dx[j] += dot(own_weights[j * RUN + i], g);
    }
}

fn add(i: u32, first_lane: u32) {
    if (i < RUN) {
        let g = subgroupShuffle(loaded[i >> 3u], first_lane + (i & 7u));
        // unroll
        for (var j = 0u; j < 4u; j++) {
            add_to(j, i, g);
        }
    }
}

fn add_slope(j: u32) {
    if (j < COLUMNS) {
        slope_sums[j] += dx[j] * slopes[j];
        if (BINARY == 1u) {
            slope_sums[COLUMNS + j] += dx[j] * slopes[COLUMNS + j];
        }
    }
}

fn store_sum(i: u32, j: u32, at: u32) {
    if (i < RUN) {
        weight_sums[at + i * params.partials] = sums[j * RUN + i];
    }
}

fn store_slope(term: u32, j: u32, first: u32, all: u32) {
    if (term <= BINARY) {
        let sum = slope_sums[term * COLUMNS + j];
        let at = first + term * 3u * all;
        offset_sums[at] = sum.x;
        offset_sums[at + all] = sum.y;
        offset_sums[at + 2u * all] = sum.z;
    }
}

fn store(j: u32, z: u32, block: u32, blocks: u32, lane8: u32, chunk: u32) {
    if (j < COLUMNS) {
        let in_block = 8u * j + lane8;
        let partial = params.partial_base + chunk;
        let at = (((z * blocks + block) * 8u * COLUMNS + in_block) * RUN) * params.partials + partial;
        // unroll
        for (var i = 0u; i < 16u; i++) {
            store_sum(i, j, at);
        }
        let group = z / params.pieces;
        let all = params.partials * params.pieces;
        let column = (group * blocks + block) * 8u * COLUMNS + in_block;
        let first_sum = column * (1u + BINARY) * 3u * all + z % params.pieces * params.partials + partial;
        store_slope(0u, j, first_sum, all);
        store_slope(1u, j, first_sum, all);
    }
}

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group_id: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let index = (group_id.y * groups.x + group_id.x) * 64u + local;
    let lane8 = lane % 8u;
    let first_lane = lane - lane8;
    let z = group_id.z;
    let group = z / params.pieces;
    let first = z % params.pieces * RUN;
    let blocks = (params.columns + 8u * COLUMNS - 1u) / (8u * COLUMNS);
    // Eight lanes beyond the last chunk repeat it: the lanes of a subgroup stay together.
    let wanted = index / 8u / blocks;
    let chunk = min(wanted, params.threads - 1u);
    let block = index / 8u % blocks;
    let first_column = block * 8u * COLUMNS + lane8;
    // unroll
    for (var j = 0u; j < 4u; j++) {
        load_own_weights(j, group, min(first_column + 8u * j, params.columns - 1u), first);
        place(j, group, min(first_column + 8u * j, params.columns - 1u));
    }
    let each = (params.count + params.threads - 1u) / params.threads;
    let end = min((chunk + 1u) * each, params.count);
    for (var s = chunk * each; s < end; s++) {
        load_upstream(0u, s, group, first, lane8);
        load_upstream(1u, s, group, first, lane8);
        let here = located(s);
        let p = location(here.n, here.at);
        // unroll
        for (var j = 0u; j < 4u; j++) {
            sample(j, p, here.n);
        }
        // unroll
        for (var i = 0u; i < 16u; i++) {
            add(i, first_lane);
        }
        // unroll
        for (var j = 0u; j < 4u; j++) {
            add_slope(j);
        }
    }
    if (wanted >= params.threads) {
        return;
    }
    // unroll
    for (var j = 0u; j < 4u; j++) {
        store(j, z, block, blocks, lane8, chunk);
    }
}

// The sum of conv3d.wgsl for three taps with stride and step 1 along y and x, all outputs of an input of the same width, on
// software Vulkan with subgroups of eight. Winograd's F(2, 3) along y (Lavin and Gray, 2016): two rows of outputs take four
// products of combined rows d0 − d2, d1 + d2, d2 − d1, d1 − d3 with combined weights rather than six, and every
// instruction counts there. The lanes of a subgroup are neighbours along x: the three taps along x share what they load, and
// what lies beyond the outer lanes is loaded for four rows at once, left and right.
// One invocation computes 2·TILES rows along y and 4·BLOCKS channels. conv3d_map or conv3d_image, conv3d_lanes, and tiles2 or
// tiles4 stand before this file; conv3d_pack.wgsl combines the weights.
// 16 -> 16 channels at 72³ on 2 cores without AVX-512: 57 GFLOP/s, 42 by conv3d.wgsl.
const BLOCKS: u32 = 4u;
// Channels a load brings: 4 from a map (fewer where it has fewer), 1 from an image.
const CHANNELS: u32 = 4u;
// Outputs of the last block.
const OUTPUTS: u32 = 4u;
// 1 where a subgroup may hold the ends of two rows: the width is no multiple of eight.
const WRAPS: u32 = 1u;
const ROWS: u32 = 2u * TILES;
const SPAN: u32 = ROWS + 2u;
const EDGES: u32 = (2u * SPAN + 7u) / 8u;
const CHUNK: u32 = BLOCKS * 12u * CHANNELS;

struct Params {
    total: u32,
    first_plane: u32,
    depth: u32,
    height: u32,
    width: u32,
    row_groups: u32,
    in_depth: i32,
    in_height: i32,
    x_base: i32,
    x_stride_n: i32,
    x_stride_c: i32,
    x_stride_z: i32,
    start_z: i32,
    start_y: i32,
    stride_z: i32,
    step_z: i32,
    taps_z: u32,
    blocks: u32,
    out_blocks: u32,
    y_base: u32,
    bias_base: u32,
    // 0: y = sum; 1: y = bias + sum; 2: y += sum.
    mode: u32,
    // Of a leaky ReLU behind the sum; 1 for none.
    slope: f32,
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(3) var<storage, read_write> y: array<vec4f>;

// [output block][output][combination].
var<private> sums: array<Tiles, 16u * BLOCKS>;
// Loaded rows at the lane's x; those beside it; their combinations.
var<private> centre: array<vec4f, SPAN>;
var<private> rows: array<vec4f, SPAN>;
// [tap along x][combination][channel]
var<private> terms: array<Tiles, 48>;
// Lanes 0, 2, 4, 6 of element e: rows 4·e to 4·e + 3 left of lane 0; lanes 1, 3, 5, 7: right of lane 7.
var<private> edge: array<vec4f, EDGES>;
// Where they lie after y = 0, and whether inside.
var<private> row_at: array<i32, SPAN>;
var<private> row_inside: array<bool, SPAN>;
var<private> edge_at: array<i32, EDGES>;
var<private> edge_inside: array<bool, EDGES>;

fn place_row(k: u32, iy: i32) {
    if (k < SPAN) {
        let row = iy + i32(k);
        row_inside[k] = row >= 0 && row < params.in_height;
        row_at[k] = select(0, row * i32(params.width), row_inside[k]);
    }
}

fn place_edge(e: u32, iy: i32, lane: u32, there: bool) {
    if (e < EDGES) {
        let k = 4u * e + lane / 2u;
        let row = iy + i32(k);
        edge_inside[e] = there && k < SPAN && row >= 0 && row < params.in_height;
        edge_at[e] = select(0, row * i32(params.width), edge_inside[e]);
    }
}

fn load_row(k: u32, at: i32, inside: bool) {
    if (k < SPAN) {
        centre[k] = select(vec4f(), load(at + row_at[k]), inside && row_inside[k]);
    }
}

fn load_edge(e: u32, at: i32, inside: bool) {
    if (e < EDGES) {
        edge[e] = select(vec4f(), load(at + edge_at[e]), inside && edge_inside[e]);
    }
}

// side: 0 left, 1 right.
fn neighbour(k: u32, side: u32, lane: u32, outside: bool) {
    if (k < SPAN) {
        let outer = select(0u, 7u, side == 1u);
        let beside = select(select(lane - 1u, 0u, lane == 0u), min(lane + 1u, 7u), side == 1u);
        let inner = subgroupShuffle(centre[k], beside);
        let found = select(inner, subgroupShuffle(edge[k / 4u], k % 4u * 2u + side), lane == outer);
        rows[k] = select(found, vec4f(), WRAPS == 1u && outside);
    }
}

fn own(k: u32) {
    if (k < SPAN) {
        rows[k] = centre[k];
    }
}

fn neighbours(side: u32, lane: u32, outside: bool) {
    neighbour(0u, side, lane, outside);
    neighbour(1u, side, lane, outside);
    neighbour(2u, side, lane, outside);
    neighbour(3u, side, lane, outside);
    neighbour(4u, side, lane, outside);
    neighbour(5u, side, lane, outside);
    neighbour(6u, side, lane, outside);
    neighbour(7u, side, lane, outside);
    neighbour(8u, side, lane, outside);
    neighbour(9u, side, lane, outside);
}

fn put_term(t: u32, k: u32, value: vec4f) {
    terms[4u * k][t] = value.x;
    terms[4u * k + 1u][t] = value.y;
    terms[4u * k + 2u][t] = value.z;
    terms[4u * k + 3u][t] = value.w;
}

fn combine(t: u32, kx: u32) {
    if (t < TILES) {
        put_term(t, 4u * kx, rows[2u * t] - rows[2u * t + 2u]);
        put_term(t, 4u * kx + 1u, rows[2u * t + 1u] + rows[2u * t + 2u]);
        put_term(t, 4u * kx + 2u, rows[2u * t + 2u] - rows[2u * t + 1u]);
        put_term(t, 4u * kx + 3u, rows[2u * t + 1u] - rows[2u * t + 3u]);
    }
}

fn combine_all(kx: u32) {
    combine(0u, kx);
    combine(1u, kx);
    combine(2u, kx);
    combine(3u, kx);
}

// One number of a weight at a time, and for it all tiles: AVX2 has 16 registers, enough for a sum a tile, the weight and a
// product. All tiles in a statement, and few calls: before a kernel first runs, the driver takes a time that grows with both.
fn add_column(before: Tiles, output: u32, w: u32, t: u32) -> Tiles {
    var sum = fma(Tiles(weight_of(w, output)), terms[t], before);
    if (CHANNELS > 1u) {
        sum = fma(Tiles(weight_of(w + 1u, output)), terms[t + 1u], sum);
    }
    if (CHANNELS > 2u) {
        sum = fma(Tiles(weight_of(w + 2u, output)), terms[t + 2u], sum);
    }
    if (CHANNELS > 3u) {
        sum = fma(Tiles(weight_of(w + 3u, output)), terms[t + 3u], sum);
    }
    return sum;
}

fn add_tap(block: u32, output: u32, tap: u32) {
    let s = (block * 4u + output) * 4u + tap;
    let w = (block * 12u + tap) * CHANNELS;
    let left = add_column(sums[s], output, w, tap * 4u);
    let here = add_column(left, output, w + 4u * CHANNELS, (tap + 4u) * 4u);
    sums[s] = add_column(here, output, w + 8u * CHANNELS, (tap + 8u) * 4u);
}

fn add_output(block: u32, output: u32) {
    if (block + 1u < BLOCKS || (block < BLOCKS && output < OUTPUTS)) {
        add_tap(block, output, 0u);
        add_tap(block, output, 1u);
        add_tap(block, output, 2u);
        add_tap(block, output, 3u);
    }
}

fn add_block(block: u32) {
    add_output(block, 0u);
    add_output(block, 1u);
    add_output(block, 2u);
    add_output(block, 3u);
}

fn put(i: u32, value: vec4f, block: u32) {
    var sum = value;
    if (params.mode == 1u) {
        sum += packed_bias(params.bias_base + block);
    } else if (params.mode == 2u) {
        sum += y[i];
    }
    y[i] = select(params.slope * sum, sum, sum > vec4f());
}

// The combination's sums of four outputs.
fn total(t: u32, b: u32, tap: u32) -> vec4f {
    let s = b * 16u + tap;
    return vec4f(sums[s][t], sums[s + 4u][t], sums[s + 8u][t], sums[s + 12u][t]);
}

fn store(t: u32, b: u32, py: u32, y_at: u32, block: u32) {
    if (t < TILES && b < BLOCKS && block + b < params.out_blocks && py + 2u * t < params.height) {
        let i = y_at + (b * params.height + py + 2u * t) * params.width;
        put(i, total(t, b, 0u) + (total(t, b, 1u) + total(t, b, 2u)), block + b);
        if (py + 2u * t + 1u < params.height) {
            let apart = total(t, b, 1u) - total(t, b, 2u);
            put(i + params.width, apart - total(t, b, 3u), block + b);
        }
    }
}

fn store_tile(t: u32, py: u32, y_at: u32, block: u32) {
    store(t, 0u, py, y_at, block);
    store(t, 1u, py, y_at, block);
    store(t, 2u, py, y_at, block);
    store(t, 3u, py, y_at, block);
}

fn convolve(index: u32, block_group: u32, lane: u32) {
    // Lanes beyond the last point repeat it: leaving before a shuffle would take their part of the weights away.
    let i = min(index, params.total - 1u);
    let px = i % params.width;
    let py = i / params.width % params.row_groups * ROWS;
    let plane = params.first_plane + i / params.width / params.row_groups;
    let pz = plane % params.depth;
    let n = plane / params.depth;

    let first_at = i32(n) * params.x_stride_n - params.x_base + i32(px);
    let first_z = i32(pz) * params.stride_z + params.start_z;
    let first_y = i32(py) + params.start_y;
    let left_outside = px == 0u;
    let right_outside = px + 1u == params.width;
    place_row(0u, first_y);
    place_row(1u, first_y);
    place_row(2u, first_y);
    place_row(3u, first_y);
    place_row(4u, first_y);
    place_row(5u, first_y);
    place_row(6u, first_y);
    place_row(7u, first_y);
    place_row(8u, first_y);
    place_row(9u, first_y);

    // What the outer lanes have beside them, as this lane loads it.
    let right = lane % 2u == 1u;
    let outer_at = select(subgroupShuffle(first_at, 0u) - 1, subgroupShuffle(first_at, 7u) + 1, right);
    let outer_z = select(subgroupShuffle(first_z, 0u), subgroupShuffle(first_z, 7u), right);
    let outer_y = select(subgroupShuffle(first_y, 0u), subgroupShuffle(first_y, 7u), right);
    let ends = vec2u(u32(left_outside), u32(right_outside));
    let there = select(subgroupShuffle(ends.x, 0u), subgroupShuffle(ends.y, 7u), right) == 0u;
    place_edge(0u, outer_y, lane, there);
    place_edge(1u, outer_y, lane, there);
    place_edge(2u, outer_y, lane, there);

    let steps = params.taps_z * params.blocks;
    var w_at = block_group * steps * CHUNK;
    var c = 0;
    var kz = 0;
    for (var t = 0u; t < steps; t++) {
        let iz = first_z + kz * params.step_z;
        let inside = iz >= 0 && iz < params.in_depth;
        let at = select(0, first_at + c * params.x_stride_c + iz * params.x_stride_z, inside);
        load_row(0u, at, inside);
        load_row(1u, at, inside);
        load_row(2u, at, inside);
        load_row(3u, at, inside);
        load_row(4u, at, inside);
        load_row(5u, at, inside);
        load_row(6u, at, inside);
        load_row(7u, at, inside);
        load_row(8u, at, inside);
        load_row(9u, at, inside);
        let edge_z = outer_z + kz * params.step_z;
        let has_edge = edge_z >= 0 && edge_z < params.in_depth;
        let beside = select(0, outer_at + c * params.x_stride_c + edge_z * params.x_stride_z, has_edge);
        load_edge(0u, beside, has_edge);
        load_edge(1u, beside, has_edge);
        load_edge(2u, beside, has_edge);
        neighbours(0u, lane, left_outside);
        combine_all(0u);
        own(0u);
        own(1u);
        own(2u);
        own(3u);
        own(4u);
        own(5u);
        own(6u);
        own(7u);
        own(8u);
        own(9u);
        combine_all(1u);
        neighbours(1u, lane, right_outside);
        combine_all(2u);
        load_weights(w_at, lane);
        add_block(0u);
        add_block(1u);
        add_block(2u);
        add_block(3u);
        w_at += CHUNK;
        c += 1;
        let next_z = c == i32(params.blocks);
        c = select(c, 0, next_z);
        kz = select(kz, kz + 1, next_z);
    }

    if (index >= params.total) {
        return;
    }
    let block = block_group * BLOCKS;
    let y_at = ((n * params.depth + pz) * params.out_blocks + block) * params.height * params.width + px - params.y_base;
    store_tile(0u, py, y_at, block);
    store_tile(1u, py, y_at, block);
    store_tile(2u, py, y_at, block);
    store_tile(3u, py, y_at, block);
}

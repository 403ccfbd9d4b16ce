// The sum of conv3d.wgsl for three taps with stride and step 1 along each axis, all outputs of an input of the same width, on
// software Vulkan with subgroups of eight. Winograd's F(2×2, 3×3) along z and y (Lavin and Gray, 2016): two planes of two rows
// of outputs take 16 products a tap along x rather than 36, and every instruction counts there. Rows of four planes are
// combined, d0 − d2, d1 + d2, d2 − d1, d1 − d3, then four rows of each the same way, with weights combined alike. The lanes of a
// subgroup are neighbours along x: the three taps along x share what they load, and what lies beyond the outer lanes is loaded
// for four rows at once, left and right.
// One invocation computes two planes of four rows along y and 4·BLOCKS channels. Channels that one load brings are multiplied
// one after the other in a loop: all at once are more instructions than a processor's cache holds.
// Up to three sources, each in a loop of its own: adding to an output that is there costs more than its products.
// conv3d_map or conv3d_image, one of conv3d_sources1 to conv3d_sources3, conv3d_lanes, and conv3d_store or conv3d_labels
// stand before this file;
// conv3d_pack.wgsl combines the weights.
const BLOCKS: u32 = 4u;
// Channels a load brings: 4 from a map, 1 from an image.
const CHANNELS: u32 = 4u;
// Outputs of the last block.
const OUTPUTS: u32 = 4u;
// 1 where a subgroup may hold the ends of two rows: the width is no multiple of eight.
const WRAPS: u32 = 1u;
// A number of each of the two tiles of two rows.
alias Tiles = vec2f;
// The first plane's tiles, then the second's.
alias Planes = vec4f;
const ROWS: u32 = 4u;
const SPAN: u32 = ROWS + 2u;
const EDGES: u32 = 2u;
const CHUNK: u32 = BLOCKS * 48u;

@group(0) @binding(0) var<uniform> params: Params;

// [output block][output][row of a tile]
var<private> sums: array<Planes, 8u * BLOCKS>;
// [combination along z][row]: at the lane's x, all channels; one channel of them; that beside it.
var<private> centre: array<vec4f, 4u * SPAN>;
// [combination along z][along y], a column for each tap along x.
var<private> terms: array<mat3x2f, 16>;
// [combination along y] of one output.
var<private> planes: array<Planes, 4>;
// [combination along z]; lanes 0, 2, 4, 6 of element e: rows 4·e to 4·e + 3 left of lane 0; lanes 1, 3, 5, 7: right of lane 7.
var<private> edge: array<vec4f, 4u * EDGES>;
// Planes, where they lie after z = 0 in a source and rows after y = 0, and whether inside.
var<private> plane_z: array<i32, 4>;
var<private> plane_at: array<i32, 4>;
var<private> plane_inside: array<bool, 4>;
var<private> row_at: array<i32, SPAN>;
var<private> row_inside: array<bool, SPAN>;
var<private> edge_plane_z: array<i32, 4>;
var<private> edge_plane_at: array<i32, 4>;
var<private> edge_plane_inside: array<bool, 4>;
var<private> edge_at: array<i32, EDGES>;
var<private> edge_inside: array<bool, EDGES>;

fn place_plane(k: u32, iz: i32, edge_z: i32) {
    let plane = iz + i32(k);
    plane_inside[k] = plane >= 0 && plane < params.in_depth;
    plane_z[k] = select(0, plane, plane_inside[k]);
    let beside = edge_z + i32(k);
    edge_plane_inside[k] = beside >= 0 && beside < params.in_depth;
    edge_plane_z[k] = select(0, beside, edge_plane_inside[k]);
}

fn place_source(k: u32, stride_z: i32) {
    plane_at[k] = plane_z[k] * stride_z;
    edge_plane_at[k] = edge_plane_z[k] * stride_z;
}

fn place_row(k: u32, iy: i32) {
    let row = iy + i32(k);
    row_inside[k] = row >= 0 && row < params.in_height;
    row_at[k] = select(0, row * i32(params.width), row_inside[k]);
}

fn place_edge(e: u32, iy: i32, lane: u32, there: bool) {
    let k = 4u * e + lane / 2u;
    let row = iy + i32(k);
    edge_inside[e] = there && k < SPAN && row >= 0 && row < params.in_height;
    edge_at[e] = select(0, row * i32(params.width), edge_inside[e]);
}

fn row_of(source: u32, plane: u32, k: u32, at: i32) -> vec4f {
    return select(vec4f(), load_of(source, at + plane_at[plane] + row_at[k]), plane_inside[plane] && row_inside[k]);
}

fn load_row(source: u32, k: u32, at: i32) {
    let one = row_of(source, 1u, k, at);
    let two = row_of(source, 2u, k, at);
    centre[k] = row_of(source, 0u, k, at) - two;
    centre[SPAN + k] = one + two;
    centre[2u * SPAN + k] = two - one;
    centre[3u * SPAN + k] = one - row_of(source, 3u, k, at);
}

fn edge_of(source: u32, plane: u32, e: u32, at: i32) -> vec4f {
    let inside = edge_plane_inside[plane] && edge_inside[e];
    return select(vec4f(), load_of(source, at + edge_plane_at[plane] + edge_at[e]), inside);
}

fn load_edge(source: u32, e: u32, at: i32) {
    let one = edge_of(source, 1u, e, at);
    let two = edge_of(source, 2u, e, at);
    edge[e] = edge_of(source, 0u, e, at) - two;
    edge[EDGES + e] = one + two;
    edge[2u * EDGES + e] = two - one;
    edge[3u * EDGES + e] = one - edge_of(source, 3u, e, at);
}

fn channel_of(v: vec4f, channel: u32) -> f32 {
    if (CHANNELS == 1u) {
        return v.x;
    }
    return select(select(v.x, v.y, channel == 1u), select(v.z, v.w, channel == 3u), channel >= 2u);
}

// Whether what lies left and right of the lane is outside.
struct Ends {
    left: bool,
    right: bool,
}

// Rows of one channel and one combination along z: 0 and 2, 1 and 3, 4 and 5.
struct Column {
    even: Tiles,
    odd: Tiles,
    last: vec2f,
}

fn take(z: u32, channel: u32) -> Column {
    let k = z * SPAN;
    return Column(
        vec2f(channel_of(centre[k], channel), channel_of(centre[k + 2u], channel)),
        vec2f(channel_of(centre[k + 1u], channel), channel_of(centre[k + 3u], channel)),
        vec2f(channel_of(centre[k + 4u], channel), channel_of(centre[k + 5u], channel)),
    );
}

fn take_ends(z: u32, channel: u32) -> vec2f {
    let e = z * EDGES;
    return vec2f(channel_of(edge[e], channel), channel_of(edge[e + 1u], channel));
}

// side: 0 left, 1 right.
fn neighbour(column: Column, ends: vec2f, side: u32, lane: u32, outside: bool) -> Column {
    let outer = lane == 7u * side;
    let beside = select(select(lane - 1u, 0u, lane == 0u), min(lane + 1u, 7u), side == 1u);
    let even = vec2f(subgroupShuffle(ends.x, side), subgroupShuffle(ends.x, side + 4u));
    let odd = vec2f(subgroupShuffle(ends.x, side + 2u), subgroupShuffle(ends.x, side + 6u));
    let last = vec2f(subgroupShuffle(ends.y, side), subgroupShuffle(ends.y, side + 2u));
    let none = WRAPS == 1u && outside;
    return Column(
        select(select(subgroupShuffle(column.even, beside), even, outer), vec2f(), none),
        select(select(subgroupShuffle(column.odd, beside), odd, outer), vec2f(), none),
        select(select(subgroupShuffle(column.last, beside), last, outer), vec2f(), none),
    );
}

fn combine(term: u32, kx: u32, column: Column) {
    let even = vec2f(column.even.y, column.last.x);
    terms[term][kx] = column.even - even;
    terms[term + 1u][kx] = column.odd + even;
    terms[term + 2u][kx] = even - column.odd;
    terms[term + 3u][kx] = column.odd - vec2f(column.odd.y, column.last.y);
}

fn combine_plane(z: u32, channel: u32, lane: u32, outside: Ends) {
    let column = take(z, channel);
    let ends = take_ends(z, channel);
    combine(4u * z, 0u, neighbour(column, ends, 0u, lane, outside.left));
    combine(4u * z, 1u, column);
    combine(4u * z, 2u, neighbour(column, ends, 1u, lane, outside.right));
}

fn place_sources(stride_z: i32) {
    // unroll
    for (var k = 0u; k < 4u; k++) {
        place_source(k, stride_z);
    }
}

// `first_at`: of the lane at z = y = 0; `edge_first`: of what it loads for the outer lanes.
fn add_source(source: u32, first_at: i32, edge_first: i32, channels: u32, first_w: u32, lane: u32, outside: Ends) {
    var at = first_at;
    var edge_at = edge_first;
    var w_at = first_w;
    for (var first = 0u; first < channels; first += CHANNELS) {
        // unroll
        for (var k = 0u; k < 6u; k++) {
            load_row(source, k, at);
        }
        load_edge(source, 0u, edge_at);
        load_edge(source, 1u, edge_at);
        let here = min(CHANNELS, channels - first);
        for (var channel = 0u; channel < here; channel++) {
            // unroll
            for (var z = 0u; z < 4u; z++) {
                combine_plane(z, channel, lane, outside);
            }
            load_weights(w_at, lane);
            // unroll
            for (var block = 0u; block < BLOCKS; block++) {
                // unroll
                for (var output = 0u; output < min(4u, 4u * (BLOCKS - 1u - block) + OUTPUTS); output++) {
                    let near = vec3f(loaded[block * 6u][output], loaded[block * 6u + 2u][output], loaded[block * 6u + 4u][output]);
                    let far = vec3f(loaded[block * 6u + 1u][output], loaded[block * 6u + 3u][output], loaded[block * 6u + 5u][output]);
                    // One weight a tap along x, a lane for each of eight combinations along y and z.
                    // unroll
                    for (var k = 0u; k < 4u; k++) {
                        let first = terms[k] * subgroupShuffle(near, k);
                        let one = terms[k + 4u] * subgroupShuffle(near, k + 4u);
                        let two = terms[k + 8u] * subgroupShuffle(far, k);
                        let last = terms[k + 12u] * subgroupShuffle(far, k + 4u);
                        planes[k] = Planes(first + (one + two), (one - two) - last);
                    }
                    sums[(block * 4u + output) * 2u] += planes[0] + (planes[1] + planes[2]);
                    sums[(block * 4u + output) * 2u + 1u] += (planes[1] - planes[2]) - planes[3];
                }
            }
            w_at += CHUNK;
        }
        at += params.x_stride_c;
        edge_at += params.x_stride_c;
    }
}

// Where an invocation's outputs belong: the first of its rows and planes.
struct Target {
    inside: bool,
    n: u32,
    z: u32,
    y: u32,
    x: u32,
    // Whether there is a second plane.
    both: bool,
    block_group: u32,
    lane: u32,
}

fn convolve(index: u32, block_group: u32, lane: u32) {
    // Lanes beyond the last point repeat it: leaving before a shuffle would take their part of the weights away.
    let i = min(index, params.total - 1u);
    let px = i % params.width;
    let py = i / params.width % params.row_groups * ROWS;
    let plane = params.first_plane + i / params.width / params.row_groups * 2u;
    let pz = plane % params.depth;
    let n = plane / params.depth;

    let first_at = i32(px);
    let first_z = i32(pz) + params.start_z;
    let first_y = i32(py) + params.start_y;
    let left_outside = px == 0u;
    let right_outside = px + 1u == params.width;
    // What the outer lanes have beside them, as this lane loads it.
    let right = lane % 2u == 1u;
    let edge_first = select(subgroupShuffle(first_at, 0u) - 1, subgroupShuffle(first_at, 7u) + 1, right);
    let edge_z = select(subgroupShuffle(first_z, 0u), subgroupShuffle(first_z, 7u), right);
    let edge_y = select(subgroupShuffle(first_y, 0u), subgroupShuffle(first_y, 7u), right);
    let ends = vec2u(u32(left_outside), u32(right_outside));
    let there = select(subgroupShuffle(ends.x, 0u), subgroupShuffle(ends.y, 7u), right) == 0u;
    // unroll
    for (var k = 0u; k < 4u; k++) {
        place_plane(k, first_z, edge_z);
    }
    // unroll
    for (var k = 0u; k < 6u; k++) {
        place_row(k, first_y);
    }
    place_edge(0u, edge_y, lane, there);
    place_edge(1u, edge_y, lane, there);

    let edges = Ends(left_outside, right_outside);
    let first_w = block_group * (params.channels + params.x1_channels + params.x2_channels) * CHUNK;
    place_sources(params.x_stride_z);
    let shift = i32(n) * params.x_stride_n - params.x_base;
    add_source(0u, first_at + shift, edge_first + shift, params.channels, first_w, lane, edges);
    if (SOURCES > 1u) {
        place_sources(params.x1_stride_z);
        let shift = i32(n) * params.x1_stride_n - params.x1_base;
        let w_at = first_w + params.channels * CHUNK;
        add_source(1u, first_at + shift, edge_first + shift, params.x1_channels, w_at, lane, edges);
    }
    if (SOURCES > 2u) {
        place_sources(params.x2_stride_z);
        let shift = i32(n) * params.x2_stride_n - params.x2_base;
        let w_at = first_w + (params.channels + params.x1_channels) * CHUNK;
        add_source(2u, first_at + shift, edge_first + shift, params.x2_channels, w_at, lane, edges);
    }

    finish(Target(index < params.total, n, pz, py, px, plane + 1u < params.end_plane, block_group, lane));
}

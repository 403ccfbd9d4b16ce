// Weight gradient of conv3d.wgsl, first of two stages:
//   partial[chunk][o, c, k] = Σ_{(n, z, x) in chunk, y} g[n, o, z, y, x] · x[n, c, start + stride·(z, y, x) + step·k].
// Invocations own (input block, kz, ky / TAPS, kx): "lane" below; each sums TAPS taps along y, CHANNELS input channels and
// 4·BLOCKS outputs over the columns of one chunk, sliding along y by ROWS at a time. All lanes of a chunk need the same
// g, which is what makes it cheap: no sum over invocations, no float atomics, always the same order.
// conv3d_reduce.wgsl adds the chunks. The piece before this file reads x (conv3d_map, conv3d_image) and g
// (conv3d_upstream_plain, conv3d_upstream_lanes).
// Many sums an invocation pay: each upstream gradient that is loaded serves all of them. Params stands in
// src/op/conv3d/kernels/direct_weight_gradient.rs.
const ROWS: u32 = 4u;
const BLOCKS: u32 = 4u;
const TAPS: u32 = 3u;
// Loaded rows between two outputs along y: the stride where TAPS share rows, else 1.
const STEP: u32 = 1u;
const CHANNELS: u32 = 4u;
// Outputs of the last block, if it is known to have fewer than four.
const OUTPUTS: u32 = 4u;
const SPAN: u32 = (ROWS - 1u) * STEP + TAPS;
// Rows that the next ROWS outputs need too.
const CARRIED: u32 = max(TAPS, STEP) - STEP;
const SUMS: u32 = TAPS * BLOCKS * CHANNELS;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(3) var<storage, read_write> partial: array<vec4f>;

var<private> sums: array<vec4f, SUMS>;
var<private> rows: array<vec4f, SPAN>;
var<private> row_y: array<i32, SPAN>;
var<private> row_at: array<i32, SPAN>;
var<private> upstream: array<vec4f, ROWS>;

// at: index of row 0 in x; iy: its y.
fn load_row(k: u32, at: i32, iy: i32, inside: bool) {
    let row = iy + row_y[k];
    let valid = inside && row >= 0 && row < params.in_height;
    rows[k] = select(vec4f(), load(select(0, at + row_at[k], valid)), valid);
}

fn accumulate(index: u32, block_group: u32, subgroup_lane: i32) {
    let chunk = min(index / params.lane_stride, params.chunks - 1u);
    let own = index % params.lane_stride;
    // Lanes beyond the last repeat it: leaving before a shuffle would take their part of g away.
    let lane = min(own, params.lanes - 1u);
    let kx = i32(lane % params.taps_x) * params.step_x + params.start_x;
    let ky = i32(lane / params.taps_x % params.taps_y) * params.step_y + params.start_y;
    let kz = i32(lane / (params.taps_x * params.taps_y) % params.taps_z) * params.step_z + params.start_z;
    let group_block = block_group * BLOCKS * 4u / params.group_outputs * params.group_inputs / params.block_channels;
    let first_block = min(group_block, params.in_blocks - params.blocks);
    let c = i32(first_block + lane / (params.taps_x * params.taps_y * params.taps_z));

    let first_column = chunk * params.columns_a_chunk;
    let last_column = min(first_column + params.columns_a_chunk, params.columns);
    let area = params.height * params.width;
    let c_at = c * params.x_stride_c - params.x_base;
    let step_at = i32(ROWS) * params.stride_y * params.x_stride_row;

    // Rows between row 0 and row k, and what they are in x: once, not in the innermost loop.
    // unroll
    for (var k = 0u; k < SPAN; k++) {
        row_y[k] = select(i32(k) * params.row_step, i32(k), TAPS > 1u);
        row_at[k] = row_y[k] * params.x_stride_row;
    }
    // Counted up, not divided: a division is eight scalar ones here.
    var ox = i32(first_column) % params.width;
    var plane = i32(params.first_plane) + i32(first_column) / params.width;
    var oz = plane % params.depth;
    var n = plane / params.depth;
    for (var column = first_column; column < last_column; column++) {
        let iz = oz * params.stride_z + kz;
        let ix = ox * params.stride_x + kx;
        let inside = iz >= 0 && iz < params.in_depth && ix >= 0 && ix < params.in_width;
        var at = n * params.x_stride_n + c_at + iz * params.x_stride_z + ky * params.x_stride_row
            + ix * params.x_stride_column;
        // unroll
        for (var k = 0u; k < CARRIED; k++) {
            load_row(k, at, ky, inside);
        }
        let g_at = (plane * params.out_blocks + i32(block_group * BLOCKS)) * area + ox * params.g_stride_column
            - params.g_base;
        for (var oy = 0; oy < params.height; oy += i32(ROWS)) {
            // unroll
            for (var k = CARRIED; k < SPAN; k++) {
                load_row(k, at, oy * params.stride_y + ky, inside);
            }
            load_upstream(g_at, oy, i32(block_group * BLOCKS), subgroup_lane);
            // All rows of a sum before the next sum, and all sums of an output before the next output: the output's upstream in
            // a register a row, one for the sum and one for a product fit the 16 of AVX2.
            // unroll
            for (var block = 0u; block < BLOCKS; block++) {
                // unroll
                for (var r = 0u; r < ROWS; r++) {
                    upstream[r] = upstream_at(r, block);
                }
                // unroll
                for (var output = 0u; output < min(4u, 4u * (BLOCKS - 1u - block) + OUTPUTS); output++) {
                    // unroll
                    for (var tap = 0u; tap < TAPS; tap++) {
                        // unroll
                        for (var channel = 0u; channel < CHANNELS; channel++) {
                            var sum = sums[(tap * BLOCKS + block) * CHANNELS + channel][output];
                            // unroll
                            for (var r = 0u; r < ROWS; r++) {
                                sum = fma(upstream[r][output], rows[r * STEP + tap][channel], sum);
                            }
                            sums[(tap * BLOCKS + block) * CHANNELS + channel][output] = sum;
                        }
                    }
                }
            }
            // unroll
            for (var k = 0u; k < CARRIED; k++) {
                rows[k] = rows[k + ROWS * STEP];
            }
            at += step_at;
        }
        ox += 1;
        let next_plane = ox == params.width;
        ox = select(ox, 0, next_plane);
        plane = select(plane, plane + 1, next_plane);
        oz = select(oz, oz + 1, next_plane);
        let next_n = oz == params.depth;
        oz = select(oz, 0, next_n);
        n = select(n, n + 1, next_n);
    }

    if (own < params.lanes && index / params.lane_stride < params.chunks) {
        let group = (params.first_chunk + chunk) * params.block_groups + block_group;
        let at = group * SUMS * params.lanes + lane;
        // unroll
        for (var s = 0u; s < SUMS; s++) {
            partial[at + s * params.lanes] = sums[s];
        }
    }
}

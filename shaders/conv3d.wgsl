// 3-D convolution (cross-correlation) over a lattice of output points:
//   y[n, o, offset + scale·i] (+)= b[o] + Σ_{c, k} w[o, c, k] · x[n, c, start + stride·i + step·k]
// per axis, zero outside x. A convolution has offset 0, scale 1, start −padding, step dilation. Its input gradient is the
// same sum over the upstream with the weights transposed: for a stride s, one lattice for each residue modulo s.
// x: [N, D, C/4, H, W] vec4 (or [N, C, D, H, W] f32 where CHANNELS is 1), possibly a range of its planes (n, z) from
// x_base on; y: [N, D, O/4, H, W] vec4 from y_base on; w: packed by conv3d_pack.wgsl.
// One invocation computes ROWS lattice points along y and 4·BLOCKS channels. The TAPS taps along y that are unrolled share
// the rows that they load; the others are loops. All arrays are indexed by constants, so that
// they stay in registers. The piece before this file (conv3d_map or conv3d_image, and conv3d_plain or conv3d_lanes) reads
// x and w. Params stands in src/op/conv3d/kernels/direct.rs.
const ROWS: u32 = 4u;
const BLOCKS: u32 = 4u;
const TAPS: u32 = 3u;
// Loaded rows between two lattice points: the stride where TAPS share rows, else 1.
const STEP: u32 = 1u;
// 1 where taps along y are looped over, 0 where there is one or all are unrolled.
const LOOP_Y: u32 = 0u;
// Channels a load brings: 4 from a map (fewer where it has fewer), 1 from an image.
const CHANNELS: u32 = 4u;
// Outputs of the last block, if it is known to have fewer than four.
const OUTPUTS: u32 = 4u;
const SPAN: u32 = (ROWS - 1u) * STEP + TAPS;
const CHUNK: u32 = BLOCKS * TAPS * CHANNELS;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(3) var<storage, read_write> y: array<vec4f>;

var<private> sums: array<vec4f, ROWS * BLOCKS>;
var<private> rows: array<vec4f, SPAN>;
var<private> weights: array<vec4f, CHANNELS>;
var<private> row_at: array<i32, SPAN>;
var<private> row_inside: array<bool, SPAN>;

// Where rows lie after y = 0 and whether they lie inside; a row outside is read at y = 0 and dropped. Once for all
// channels and taps along z and x: not in the innermost loop.
fn place_rows(iy: i32) {
    // unroll
    for (var k = 0u; k < SPAN; k++) {
        let row = iy + i32(k) * params.row_step;
        row_inside[k] = row >= 0 && row < params.in_height;
        row_at[k] = select(0, row * params.in_width, row_inside[k]);
    }
}

// at: index at y = 0 in x.
fn load_rows(at: i32, inside: bool) {
    // unroll
    for (var k = 0u; k < SPAN; k++) {
        rows[k] = select(vec4f(), load(at + row_at[k]), inside && row_inside[k]);
    }
}

fn add_blocks() {
    // unroll
    for (var block = 0u; block < BLOCKS; block++) {
        // unroll
        for (var tap = 0u; tap < TAPS; tap++) {
            // unroll
            for (var channel = 0u; channel < CHANNELS; channel++) {
                let v = weight((block * TAPS + tap) * CHANNELS + channel);
                // Zeros beyond the outputs are known to the compiler, which leaves their products out.
                weights[channel] = vec4f(
                    v.x,
                    select(v.y, 0.0, block + 1u == BLOCKS && OUTPUTS < 2u),
                    select(v.z, 0.0, block + 1u == BLOCKS && OUTPUTS < 3u),
                    select(v.w, 0.0, block + 1u == BLOCKS && OUTPUTS < 4u),
                );
            }
            // unroll
            for (var r = 0u; r < ROWS; r++) {
                var sum = sums[r * BLOCKS + block];
                // unroll
                for (var channel = 0u; channel < CHANNELS; channel++) {
                    sum = fma(weights[channel], vec4f(rows[r * STEP + tap][channel]), sum);
                }
                sums[r * BLOCKS + block] = sum;
            }
        }
    }
}

fn convolve(index: u32, block_group: u32, lane: u32) {
    // Lanes beyond the last point repeat it: leaving before a shuffle would take their part of the weights away.
    let i = min(index, params.total - 1u);
    let px = i % params.width;
    let py = i / params.width % params.row_groups * ROWS;
    let plane = params.first_plane + i / params.width / params.row_groups;
    let pz = plane % params.depth;
    let n = plane / params.depth;

    let group_block = block_group * BLOCKS * 4u / params.group_outputs * params.group_inputs / params.block_channels;
    let first_block = min(group_block, params.in_blocks - params.blocks);
    let steps = u32(params.taps_z * params.taps_y * params.taps_x) * params.blocks;
    var w_at = block_group * steps * CHUNK;
    let first_at = i32(n) * params.x_stride_n + i32(first_block) * params.x_stride_c - params.x_base;
    let first_z = i32(pz) * params.stride_z + params.start_z;
    let first_y = i32(py) * params.stride_y + params.start_y;
    let first_x = i32(px) * params.stride_x + params.start_x;

    // One loop over kz, ky, kx and c, the last fastest: every level of nesting copies all sums in and out.
    place_rows(first_y);
    var c = 0;
    var kx = 0;
    var ky = 0;
    var kz = 0;
    for (var t = 0u; t < steps; t++) {
        let iz = first_z + kz * params.step_z;
        let ix = first_x + kx * params.step_x;
        let inside = iz >= 0 && iz < params.in_depth && ix >= 0 && ix < params.in_width;
        if (LOOP_Y == 1u) {
            place_rows(first_y + ky * params.step_y);
        }
        load_rows(select(0, first_at + c * params.x_stride_c + iz * params.x_stride_z + ix, inside), inside);
        load_weights(w_at, lane);
        add_blocks();
        w_at += CHUNK;
        c += 1;
        let next_x = c == i32(params.blocks);
        c = select(c, 0, next_x);
        kx = select(kx, kx + 1, next_x);
        let next_y = kx == params.taps_x;
        kx = select(kx, 0, next_y);
        if (LOOP_Y == 1u) {
            ky = select(ky, ky + 1, next_y);
            let next_z = ky == params.taps_y;
            ky = select(ky, 0, next_z);
            kz = select(kz, kz + 1, next_z);
        } else {
            kz = select(kz, kz + 1, next_y);
        }
    }

    if (index >= params.total) {
        return;
    }
    let oz = params.offset_z + pz * params.scale_z;
    let ox = params.offset_x + px * params.scale_x;
    let block = block_group * BLOCKS;
    let y_at = ((n * params.out_depth + oz) * params.out_blocks + block) * params.out_height * params.out_width + ox
        - params.y_base;
    // unroll
    for (var r = 0u; r < ROWS; r++) {
        if (py + r < params.height) {
            let at = y_at + (params.offset_y + (py + r) * params.scale_y) * params.out_width;
            // unroll
            for (var b = 0u; b < BLOCKS; b++) {
                if (block + b < params.out_blocks) {
                    let i = at + b * params.out_height * params.out_width;
                    var sum = sums[r * BLOCKS + b];
                    if (params.mode == 1u) {
                        sum += packed_bias(params.bias_base + block + b);
                    } else if (params.mode == 2u) {
                        sum += y[i];
                    }
                    y[i] = select(params.slope * sum, sum, sum > vec4f());
                }
            }
        }
    }
}

// First stage of the weight gradient, as conv3d_weight_gradient.wgsl, for up to four outputs and three taps with step 1
// and stride 1 along y and x, on software Vulkan. Invocations own (input block, kz) and slide along x over strips of ROWS
// rows: each loaded column of x serves nine taps, against the last three columns of g.
// The piece before this file (conv3d_map or conv3d_image) reads x.
const ROWS: u32 = 8u;
const CHANNELS: u32 = 4u;
// Outputs, up to four.
const OUTPUTS: u32 = 4u;
const SPAN: u32 = ROWS + 2u;
const SUMS: u32 = 9u * CHANNELS;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(2) var<storage, read> g: array<vec4f>;
@group(0) @binding(3) var<storage, read_write> partial: array<vec4f>;

// By tap along x, tap along y and input channel.
var<private> sums: array<vec4f, SUMS>;
var<private> rows: array<vec4f, SPAN>;
var<private> row_at: array<i32, SPAN>;
var<private> row_inside: array<bool, SPAN>;
// g at the output columns that the taps x = 0, 1, 2 of the loaded column belong to.
var<private> upstream: array<vec4f, 3u * ROWS>;
var<private> g_at: array<i32, ROWS>;
var<private> g_inside: array<bool, ROWS>;

// Where row k lies after y = 0 and whether it lies inside; a row outside is read at y = 0 and dropped.
fn place_row(k: u32, iy: i32) {
    let row = iy + i32(k);
    row_inside[k] = row >= 0 && row < params.in_height;
    row_at[k] = select(0, row * params.in_width, row_inside[k]);
}

fn place_upstream(r: u32, oy: i32) {
    g_inside[r] = oy + i32(r) < params.height;
    g_at[r] = select(0, (oy + i32(r)) * params.width, g_inside[r]);
    upstream[ROWS + r] = vec4f();
    upstream[2u * ROWS + r] = vec4f();
}

// at: index at y = 0 in x.
fn load_row(k: u32, at: i32, inside: bool) {
    rows[k] = select(vec4f(), load(at + row_at[k]), inside && row_inside[k]);
}

// Zeros beyond the outputs are known to the compiler, which leaves their products out.
fn only_outputs(v: vec4f) -> vec4f {
    return vec4f(v.x, select(v.y, 0.0, OUTPUTS < 2u), select(v.z, 0.0, OUTPUTS < 3u), select(v.w, 0.0, OUTPUTS < 4u));
}

fn load_upstream(r: u32, at: i32, inside: bool) {
    upstream[r] = only_outputs(select(vec4f(), g[at + g_at[r]], inside && g_inside[r]));
}

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let index = (group.y * groups.x + group.x) * 64u + local;
    if (index >= params.lanes * params.chunks) {
        return;
    }
    let lane = index % params.lanes;
    let chunk = index / params.lanes;
    let kz = i32(lane % params.taps_z) * params.step_z + params.start_z;
    let c_at = i32(lane / params.taps_z) * params.x_stride_c - params.x_base;
    let last_strip = min((chunk + 1u) * params.strips_a_chunk, params.strips);
    for (var strip = chunk * params.strips_a_chunk; strip < last_strip; strip++) {
        let oy = i32(strip % params.row_groups * ROWS);
        let plane = i32(params.first_plane + strip / params.row_groups);
        let n = plane / params.depth;
        let iz = plane % params.depth * params.stride_z + kz;
        let inside_z = iz >= 0 && iz < params.in_depth;
        let x_at = n * params.x_stride_n + c_at + iz * params.x_stride_z;
        let g_plane = plane * params.height * params.width - params.g_base;
        // unroll
        for (var k = 0u; k < SPAN; k++) {
            place_row(k, oy + params.start_y);
        }
        // unroll
        for (var r = 0u; r < ROWS; r++) {
            place_upstream(r, oy);
        }
        for (var column = 0; column < params.width + 2; column++) {
            let ix = column + params.start_x;
            let inside = inside_z && ix >= 0 && ix < params.in_width;
            let at = select(0, x_at + ix, inside);
            // unroll
            for (var k = 0u; k < SPAN; k++) {
                load_row(k, at, inside);
            }
            let inside_g = column < params.width;
            let at_g = g_plane + select(0, column, inside_g);
            // unroll
            for (var r = 0u; r < ROWS; r++) {
                load_upstream(r, at_g, inside_g);
            }
            // unroll
            for (var tap_x = 0u; tap_x < 3u; tap_x++) {
                // unroll
                for (var tap_y = 0u; tap_y < 3u; tap_y++) {
                    // Two channels at once: their sums and the upstream stay in registers.
                    // unroll
                    for (var half = 0u; half < (CHANNELS + 1u) / 2u; half++) {
                        // unroll
                        for (var r = 0u; r < ROWS; r++) {
                            // unroll
                            for (var channel = 2u * half; channel < min(CHANNELS, 2u * half + 2u); channel++) {
                                sums[(tap_x * 3u + tap_y) * CHANNELS + channel] += upstream[tap_x * ROWS + r] * rows[r + tap_y][channel];
                            }
                        }
                    }
                }
            }
            // unroll
            for (var r = 0u; r < ROWS; r++) {
                upstream[2u * ROWS + r] = upstream[ROWS + r];
                upstream[ROWS + r] = upstream[r];
            }
        }
    }
    let at = (params.first_chunk + chunk) * SUMS * params.lanes + lane;
    // unroll
    for (var s = 0u; s < SUMS; s++) {
        partial[at + s * params.lanes] = sums[s];
    }
}

// The sum of conv3d.wgsl for up to four outputs, three taps with step 1 and stride 1 along y and x, on software Vulkan.
// One invocation owns ROWS rows along y and slides along x over `length` points: each loaded column of input rows serves
// all nine taps, for the three output columns that they reach. A load costs about 200 instructions there; this one serves
// 144 products a row where conv3d.wgsl gets 48.
// The piece before this file (conv3d_map or conv3d_image, and conv3d_lanes) reads x and w.
const ROWS: u32 = 8u;
const CHANNELS: u32 = 4u;
// Outputs, up to four.
const OUTPUTS: u32 = 4u;
const SPAN: u32 = ROWS + 2u;
const CHUNK: u32 = 9u * CHANNELS;

struct Params {
    total: u32,
    first_plane: u32,
    depth: u32,
    height: u32,
    width: u32,
    row_groups: u32,
    length: u32,
    runs: u32,
    in_depth: i32,
    in_height: i32,
    in_width: i32,
    x_base: i32,
    x_stride_n: i32,
    x_stride_c: i32,
    x_stride_z: i32,
    start_z: i32,
    start_y: i32,
    start_x: i32,
    stride_z: i32,
    step_z: i32,
    taps_z: i32,
    blocks: u32,
    y_base: u32,
    bias_base: u32,
    // 0: y = sum; 1: y = bias + sum; 2: y += sum.
    mode: u32,
    // Of a leaky ReLU behind the sum; 1 for none.
    slope: f32,
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(3) var<storage, read_write> y: array<vec4f>;

// Sums of the output columns that the tap x = 2, 1, 0 reaches.
var<private> sums: array<vec4f, 3u * ROWS>;
var<private> rows: array<vec4f, SPAN>;
var<private> row_at: array<i32, SPAN>;
var<private> row_inside: array<bool, SPAN>;

// As in conv3d.wgsl.
fn place_row(k: u32, iy: i32) {
    let row = iy + i32(k);
    row_inside[k] = row >= 0 && row < params.in_height;
    row_at[k] = select(0, row * params.in_width, row_inside[k]);
}

fn place_rows(iy: i32) {
    place_row(0u, iy);
    place_row(1u, iy);
    place_row(2u, iy);
    place_row(3u, iy);
    place_row(4u, iy);
    place_row(5u, iy);
    place_row(6u, iy);
    place_row(7u, iy);
    place_row(8u, iy);
    place_row(9u, iy);
}

// at: index at y = 0 in x.
fn load_row(k: u32, at: i32, inside: bool) {
    rows[k] = select(vec4f(), load(at + row_at[k]), inside && row_inside[k]);
}

fn add_row(r: u32, tap_x: u32, tap_y: u32, m: mat4x4f) {
    if (r < ROWS) {
        let s = (2u - tap_x) * ROWS + r;
        if (CHANNELS == 4u) {
            sums[s] += m * rows[r + tap_y];
        } else if (CHANNELS == 3u) {
            sums[s] += mat3x4f(m[0], m[1], m[2]) * rows[r + tap_y].xyz;
        } else if (CHANNELS == 2u) {
            sums[s] += mat2x4f(m[0], m[1]) * rows[r + tap_y].xy;
        } else {
            sums[s] += m[0] * rows[r + tap_y].x;
        }
    }
}

// Zeros beyond the outputs are known to the compiler, which leaves their products out.
fn weight_of_outputs(i: u32) -> vec4f {
    let v = weight(i);
    return vec4f(v.x, select(v.y, 0.0, OUTPUTS < 2u), select(v.z, 0.0, OUTPUTS < 3u), select(v.w, 0.0, OUTPUTS < 4u));
}

fn matrix(at: u32) -> mat4x4f {
    var m: mat4x4f;
    m[0] = weight_of_outputs(at);
    if (CHANNELS > 1u) {
        m[1] = weight_of_outputs(at + 1u);
    }
    if (CHANNELS > 2u) {
        m[2] = weight_of_outputs(at + 2u);
    }
    if (CHANNELS > 3u) {
        m[3] = weight_of_outputs(at + 3u);
    }
    return m;
}

fn add_tap(tap_x: u32, tap_y: u32) {
    let m = matrix((tap_x * 3u + tap_y) * CHANNELS);
    add_row(0u, tap_x, tap_y, m);
    add_row(1u, tap_x, tap_y, m);
    add_row(2u, tap_x, tap_y, m);
    add_row(3u, tap_x, tap_y, m);
    add_row(4u, tap_x, tap_y, m);
    add_row(5u, tap_x, tap_y, m);
    add_row(6u, tap_x, tap_y, m);
    add_row(7u, tap_x, tap_y, m);
}

fn store(r: u32, py: u32, at: u32, valid: bool) {
    if (r < ROWS && valid && py + r < params.height) {
        let i = at + (py + r) * params.width;
        var sum = sums[r];
        if (params.mode == 1u) {
            sum += packed_bias(params.bias_base);
        } else if (params.mode == 2u) {
            sum += y[i];
        }
        y[i] = select(params.slope * sum, sum, sum > vec4f());
    }
}

fn next_column(r: u32) {
    if (r < ROWS) {
        sums[r] = sums[ROWS + r];
        sums[ROWS + r] = sums[2u * ROWS + r];
        sums[2u * ROWS + r] = vec4f();
    }
}

fn convolve(index: u32, block_group: u32, lane: u32) {
    // Lanes beyond the last repeat it: leaving before a shuffle would take their part of the weights away.
    let i = min(index, params.total - 1u);
    let first_x = i % params.runs * params.length;
    let py = i / params.runs % params.row_groups * ROWS;
    let plane = params.first_plane + i / params.runs / params.row_groups;
    let pz = plane % params.depth;
    let n = plane / params.depth;
    let y_at = plane * params.height * params.width - params.y_base;

    let first_at = i32(n) * params.x_stride_n - params.x_base;
    let first_z = i32(pz) * params.stride_z + params.start_z;
    let steps = u32(params.taps_z) * params.blocks;
    place_rows(i32(py) + params.start_y);
    // As many columns for every lane, so that shuffles stay in step. One loop over kz and c, c faster: every level of
    // nesting copies all sums in and out.
    for (var column = 0u; column < params.length + 2u; column++) {
        let px = first_x + column;
        var c = 0;
        var kz = 0;
        for (var t = 0u; t < steps; t++) {
            let iz = first_z + kz * params.step_z;
            let ix = i32(px) + params.start_x;
            let inside = iz >= 0 && iz < params.in_depth && ix >= 0 && ix < params.in_width;
            let at = select(0, first_at + c * params.x_stride_c + iz * params.x_stride_z + ix, inside);
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
            load_weights(t * CHUNK, lane);
            add_tap(0u, 0u);
            add_tap(0u, 1u);
            add_tap(0u, 2u);
            add_tap(1u, 0u);
            add_tap(1u, 1u);
            add_tap(1u, 2u);
            add_tap(2u, 0u);
            add_tap(2u, 1u);
            add_tap(2u, 2u);
            c += 1;
            let next_z = c == i32(params.blocks);
            c = select(c, 0, next_z);
            kz = select(kz, kz + 1, next_z);
        }
        let valid = index < params.total && column >= 2u && px < params.width + 2u;
        let at = y_at + px - 2u;
        store(0u, py, at, valid);
        store(1u, py, at, valid);
        store(2u, py, at, valid);
        store(3u, py, at, valid);
        store(4u, py, at, valid);
        store(5u, py, at, valid);
        store(6u, py, at, valid);
        store(7u, py, at, valid);
        next_column(0u);
        next_column(1u);
        next_column(2u);
        next_column(3u);
        next_column(4u);
        next_column(5u);
        next_column(6u);
        next_column(7u);
    }
}

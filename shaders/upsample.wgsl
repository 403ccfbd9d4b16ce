// Trilinear upsampling of a map [N, d, C/4, h, w] vec4 to [N, D, C/4, H, W], half-pixel centres (align_corners = false).
// One invocation a column of DEPTHS slices (n, z): it interpolates each plane of the input once, where a sum of eight
// corners would read it for every output. Where a plane has twice the input's rows and columns, SIDE is 2 and a column two
// by two outputs wide: those between four inputs, of which the outer ones have fewer. Bindings start at elements `base` and
// `source_base`.
// 12 channels 72³ -> 144³ on 2 cores: half the time of three passes along the axes.
const DEPTHS: u32 = 8u;
const SIDE: u32 = 1u;
const OUTPUTS: u32 = SIDE * SIDE;
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> source: array<vec4f>;
@group(0) @binding(2) var<storage, read_write> output: array<vec4f>;

struct Taps { low: u32, high: u32, fraction: f32 }

// The two inputs of output i and the weight of the higher: max(0, (i + 1/2) inputs / outputs - 1/2), in integers until
// the last division.
fn taps(i: u32, inputs: u32, outputs: u32) -> Taps {
    let numerator = u32(max(i32(inputs * (2u * i + 1u)) - i32(outputs), 0));
    let low = divide(numerator, 2u * outputs);
    let fraction = f32(numerator - low * 2u * outputs) / f32(2u * outputs);
    return Taps(low, min(low + 1u, inputs - 1u), fraction);
}

// The inputs that a column's outputs lie between, and the weights of the higher for each output: half-way between the
// inputs' centres are the edges of the outputs' cells, so that those of a pair are a quarter on either side.
struct Column { low: u32, high: u32, fractions: vec2f }

fn column_of(i: u32, inputs: u32, outputs: u32) -> Column {
    if (SIDE == 2u) {
        return Column(max(i, 1u) - 1u, min(i, inputs - 1u), vec2f(0.25, 0.75));
    }
    let t = taps(i, inputs, outputs);
    return Column(t.low, t.high, vec2f(t.fraction));
}

// Of a column in the planes that the slice lies between.
var<private> low: array<vec4f, OUTPUTS>;
var<private> high: array<vec4f, OUTPUTS>;

fn keep_high(i: u32) {
    if (i < OUTPUTS) {
        low[i] = high[i];
    }
}

fn between(a: vec4f, b: vec4f, fraction: f32) -> vec4f {
    return a * (1.0 - fraction) + b * fraction;
}

// Slice (n, z) of the input.
fn load_high(slice: u32, block: u32, y: Column, x: Column) {
    let start = ((slice * params.blocks + block) * params.in_height) * params.in_width - params.source_base;
    let near = start + y.low * params.in_width;
    let far = start + y.high * params.in_width;
    let a = source[near + x.low];
    let b = source[near + x.high];
    let c = source[far + x.low];
    let d = source[far + x.high];
    let first = between(a, b, x.fractions.x);
    let second = between(c, d, x.fractions.x);
    high[0] = between(first, second, y.fractions.x);
    // The remainders keep the indices valid where there is one output.
    if (SIDE == 2u) {
        let beside_first = between(a, b, x.fractions.y);
        let beside_second = between(c, d, x.fractions.y);
        high[1u % OUTPUTS] = between(beside_first, beside_second, y.fractions.x);
        high[2u % OUTPUTS] = between(first, second, y.fractions.y);
        high[3u % OUTPUTS] = between(beside_first, beside_second, y.fractions.y);
    }
}

fn store(i: u32, at: u32, y: i32, x: i32, fraction: f32) {
    if (i < OUTPUTS && y >= 0 && y < i32(params.height) && x >= 0 && x < i32(params.width)) {
        output[at + u32(y) * params.width + u32(x)] = between(low[i], high[i], fraction);
    }
}

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let index = (group.y * groups.x + group.x) * 64u + local;
    if (index >= params.count) {
        return;
    }
    let row = divide(index, params.columns_x);
    let column_x = index - row * params.columns_x;
    let plane = divide(row, params.columns_y);
    let column_y = row - plane * params.columns_y;
    let depths = divide(plane, params.blocks);
    let block = plane - depths * params.blocks;
    let first = params.first + depths * DEPTHS;

    let x = column_of(column_x, params.in_width, params.width);
    let y = column_of(column_y, params.in_height, params.height);
    let outer = vec2i(vec2u(column_x, column_y) * SIDE) - i32(SIDE - 1u);
    let plane_size = params.height * params.width;
    var at = (first * params.blocks + block) * plane_size - params.base;
    var have_low = 0xffffffffu;
    var have_high = 0xffffffffu;
    for (var slice = first; slice < min(first + DEPTHS, params.end); slice++) {
        let n = divide(slice, params.depth);
        let tz = taps(slice - n * params.depth, params.in_depth, params.depth);
        let want_low = n * params.in_depth + tz.low;
        let want_high = n * params.in_depth + tz.high;
        if (want_low != have_low) {
            if (want_low != have_high) {
                load_high(want_low, block, y, x);
                have_high = want_low;
            }
            keep_high(0u);
            keep_high(1u);
            keep_high(2u);
            keep_high(3u);
            have_low = want_low;
        }
        if (want_high != have_high) {
            load_high(want_high, block, y, x);
            have_high = want_high;
        }
        store(0u, at, outer.y, outer.x, tz.fraction);
        store(1u, at, outer.y, outer.x + 1, tz.fraction);
        store(2u, at, outer.y + 1, outer.x, tz.fraction);
        store(3u, at, outer.y + 1, outer.x + 1, tz.fraction);
        at += params.blocks * plane_size;
    }
}

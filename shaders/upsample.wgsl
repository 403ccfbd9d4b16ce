// Trilinear upsampling of a map [N, d, C/4, h, w] vec4 to [N, D, C/4, H, W], half-pixel centres (align_corners = false).
// One invocation a column of DEPTHS slices (n, z): it interpolates each plane of the input once, where a sum of eight
// corners would read it for every output. Bindings start at slices `first` and `source_first` and elements of them.
// 12 channels 72³ -> 144³ on 2 cores: half the time of three passes along the axes.
const DEPTHS: u32 = 8u;
struct Params {
    count: u32,       // columns of this dispatch
    first: u32,       // first slice
    end: u32,         // past the last slice
    base: u32,        // element at which the output's binding starts
    source_base: u32, // and the input's
    blocks: u32,
    depth: u32,
    height: u32,
    width: u32,
    in_depth: u32,
    in_height: u32,
    in_width: u32,
}
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

// Slice (n, z) of the input at a place of its plane: the elements of the four corners, and their weights.
fn plane(slice: u32, corners: vec4u, weights: vec4f) -> vec4f {
    let start = slice * params.blocks * params.in_height * params.in_width - params.source_base;
    return weights.x * source[start + corners.x] + weights.y * source[start + corners.y]
        + weights.z * source[start + corners.z] + weights.w * source[start + corners.w];
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
    let row = divide(index, params.width);
    let x = index - row * params.width;
    let column = divide(row, params.height);
    let y = row - column * params.height;
    let depths = divide(column, params.blocks);
    let block = column - depths * params.blocks;
    let first = params.first + depths * DEPTHS;

    let tx = taps(x, params.in_width, params.width);
    let ty = taps(y, params.in_height, params.height);
    let low_row = (block * params.in_height + ty.low) * params.in_width;
    let high_row = (block * params.in_height + ty.high) * params.in_width;
    let corners = vec4u(low_row + tx.low, low_row + tx.high, high_row + tx.low, high_row + tx.high);
    let weights = vec4f(
        (1.0 - ty.fraction) * (1.0 - tx.fraction),
        (1.0 - ty.fraction) * tx.fraction,
        ty.fraction * (1.0 - tx.fraction),
        ty.fraction * tx.fraction,
    );
    let plane_size = params.height * params.width;
    var at = (first * params.blocks + block) * plane_size + y * params.width + x - params.base;
    var have_low = 0xffffffffu;
    var have_high = 0xffffffffu;
    var low: vec4f;
    var high: vec4f;
    for (var slice = first; slice < min(first + DEPTHS, params.end); slice++) {
        let n = divide(slice, params.depth);
        let tz = taps(slice - n * params.depth, params.in_depth, params.depth);
        let want_low = n * params.in_depth + tz.low;
        let want_high = n * params.in_depth + tz.high;
        if (want_low != have_low) {
            if (want_low == have_high) {
                low = high;
            } else {
                low = plane(want_low, corners, weights);
            }
            have_low = want_low;
        }
        if (want_high != have_high) {
            high = plane(want_high, corners, weights);
            have_high = want_high;
        }
        output[at] = low * (1.0 - tz.fraction) + high * tz.fraction;
        at += params.blocks * plane_size;
    }
}

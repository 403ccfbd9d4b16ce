// A linear filter along one axis, out[a, i, b] = Σ_j weight(i, j) in[a, j, b], for the three-dimensional filters that
// are products of three one-dimensional ones: average pooling, its gradient, that of trilinear upsampling, and resampling to
// the nearest voxel. `length`
// and `source_len` are the axis' lengths of output and input, `inner` the elements of an axis position (b's range).
// `Element` is vec4f for maps and f32 for flat images. A dispatch makes the rows from `first_row` on in `count`
// invocations; bindings start at elements `base` and `source_base`. One invocation an element; of averages ROWS neighbours
// on the axis, one on a GPU, whose caches make loads cheap.
const ROWS: u32 = 1u;
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> source: array<Element>;
@group(0) @binding(2) var<storage, read_write> output: array<Element>;

struct Place {
    inside: bool,
    element: u32,      // of the whole output
    position: i32,     // i, on the axis
    source_start: u32, // element of the binding with this a and b at j = 0
}

fn place(group: vec3u, groups: vec3u, local: u32) -> Place {
    let index = (group.y * groups.x + group.x) * 64u + local;
    let element = params.first_row * params.inner + index;
    let row = divide(element, params.inner);
    let outer = divide(row, params.length);
    let start = outer * params.source_len * params.inner + (element - row * params.inner) - params.source_base;
    return Place(index < params.count, element, i32(row - outer * params.length), start);
}

fn at_input(p: Place, j: i32) -> Element {
    return source[p.source_start + u32(j) * params.inner];
}

// The first j whose 2·inputs·j is at least this.
fn reaches(least: i32, inputs: i32) -> i32 {
    return i32(divide(u32(max(least, 0) + 2 * inputs - 1), u32(2 * inputs)));
}

// Gathers the outputs that read input i. Here `length` counts inputs and `source_len` outputs.
@compute @workgroup_size(64)
fn upsample_gradient(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let p = place(group, groups, local);
    if (!p.inside) {
        return;
    }
    let inputs = i32(params.length);
    let outputs = i32(params.source_len);
    let i = p.position;
    // ⌊read(j)⌋ >= i - 1  <=>  2 inputs j >= outputs (2i - 1) - inputs;  ⌊read(j)⌋ <= i  <=>  2 inputs j < outputs (2i + 3) - inputs
    let first = reaches(outputs * (2 * i - 1) - inputs, inputs);
    let end = min(reaches(outputs * (2 * i + 3) - inputs, inputs), outputs);
    // Output j reads at max(0, (j + 1/2) inputs / outputs - 1/2), the last input beyond it; input i weighs by the distance.
    // In units of 1 / (2 outputs), which are whole.
    let unit = 1.0 / f32(2 * outputs);
    let last = (inputs - 1) * 2 * outputs;
    var sum = Element();
    for (var j = first; j < end; j++) {
        let at = clamp(inputs * (2 * j + 1) - outputs, 0, last);
        sum += max(1.0 - f32(abs(at - i * 2 * outputs)) * unit, 0.0) * at_input(p, j);
    }
    output[p.element - params.base] = sum;
}

// Output i is input ⌊(i + 1/2) inputs / outputs⌋.
@compute @workgroup_size(64)
fn nearest(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let p = place(group, groups, local);
    if (!p.inside) {
        return;
    }
    let j = divide((2u * u32(p.position) + 1u) * params.source_len, 2u * params.length);
    output[p.element - params.base] = at_input(p, i32(j));
}

// Sums the outputs that are input i. Here `length` counts inputs and `source_len` outputs.
@compute @workgroup_size(64)
fn nearest_gradient(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let p = place(group, groups, local);
    if (!p.inside) {
        return;
    }
    let inputs = i32(params.length);
    let outputs = i32(params.source_len);
    // ⌊(j + 1/2) inputs / outputs⌋ >= i  <=>  2 inputs j >= 2 outputs i - inputs
    let first = reaches(2 * outputs * p.position - inputs, inputs);
    let end = min(reaches(2 * outputs * (p.position + 1) - inputs, inputs), outputs);
    var sum = Element();
    for (var j = first; j < end; j++) {
        sum += at_input(p, j);
    }
    output[p.element - params.base] = sum;
}

// The means of ROWS neighbours on the axis share what they load. The inputs of each, counted over all that `outer` goes over.
var<private> sums: array<Element, ROWS>;
var<private> starts: array<i32, ROWS>;
var<private> ends: array<i32, ROWS>;

// First input and past the last.
fn window(row: u32) -> vec2i {
    let outer = divide(row, params.length);
    let start = i32(row - outer * params.length) * i32(params.stride) - i32(params.padding);
    let first = i32(outer * params.source_len);
    return first + vec2i(max(start, 0), min(start + i32(params.kernel), i32(params.source_len)));
}

fn place_window(k: u32, row: u32) {
    if (k < ROWS) {
        let inputs = window(row + k);
        starts[k] = inputs.x;
        ends[k] = inputs.y;
    }
}

fn add(k: u32, j: i32, value: Element) {
    if (k < ROWS) {
        sums[k] += select(Element(), value, j >= starts[k] && j < ends[k]);
    }
}

fn store_mean(k: u32, row: u32, b: u32) {
    if (k < ROWS && row + k < params.end_row) {
        output[(row + k) * params.inner + b - params.base] = sums[k] / f32(params.kernel);
    }
}

// Mean of `kernel` inputs from i stride - padding on; those outside count as zeros.
@compute @workgroup_size(64)
fn average(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let index = (group.y * groups.x + group.x) * 64u + local;
    if (index >= params.count) {
        return;
    }
    let run = divide(index, params.inner);
    let b = index - run * params.inner;
    let row = params.first_row + run * ROWS;
    place_window(0u, row);
    place_window(1u, row);
    place_window(2u, row);
    place_window(3u, row);
    let end = window(min(row + ROWS, params.end_row) - 1u).y;
    for (var j = starts[0]; j < end; j++) {
        let value = source[u32(j) * params.inner + b - params.source_base];
        add(0u, j, value);
        add(1u, j, value);
        add(2u, j, value);
        add(3u, j, value);
    }
    store_mean(0u, row, b);
    store_mean(1u, row, b);
    store_mean(2u, row, b);
    store_mean(3u, row, b);
}

// Sums the outputs whose window holds input i.
@compute @workgroup_size(64)
fn average_gradient(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let p = place(group, groups, local);
    if (!p.inside) {
        return;
    }
    let stride = i32(params.stride);
    let padded = p.position + i32(params.padding);
    let first = i32(divide(u32(max(padded - i32(params.kernel) + 1, 0) + stride - 1), params.stride));
    let end = min(i32(divide(u32(padded), params.stride)) + 1, i32(params.source_len));
    var sum = Element();
    for (var j = first; j < end; j++) {
        sum += at_input(p, j);
    }
    output[p.element - params.base] = sum / f32(params.kernel);
}

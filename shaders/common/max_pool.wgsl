// The highest of each window along one axis, out[a, i, b] = max_j in[a, j, b] over `kernel` inputs from i stride - padding on,
// those that exist. `length` and `source_len` are the axis' lengths of output and input, `inner` the elements of an axis
// position (b's range). A dispatch makes `count` elements from row `first_row` on; bindings start at elements `base`,
// `source_base` and `upstream_base`. One invocation an element.
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> source: array<Element>;
@group(0) @binding(2) var<storage, read_write> output: array<Element>;

struct Place {
    inside: bool,
    element: u32,   // of the whole output
    position: i32,  // on the axis
    outer: u32,     // a
    b: u32,
}

fn place(group: vec3u, groups: vec3u, local: u32) -> Place {
    let index = (group.y * groups.x + group.x) * 64u + local;
    let element = params.first_row * params.inner + index;
    let row = divide(element, params.inner);
    let outer = divide(row, params.length);
    return Place(index < params.count, element, i32(row - outer * params.length), outer, element - row * params.inner);
}

fn at_source(p: Place, j: i32, inputs: u32) -> Element {
    return source[(p.outer * inputs + u32(j)) * params.inner + p.b - params.source_base];
}

@compute @workgroup_size(64)
fn max_pool(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let p = place(group, groups, local);
    if (!p.inside) {
        return;
    }
    let start = p.position * i32(params.stride) - i32(params.padding);
    let first = max(start, 0);
    let end = min(start + i32(params.kernel), i32(params.source_len));
    var best = at_source(p, first, params.source_len);
    for (var j = first + 1; j < end; j++) {
        best = max(best, at_source(p, j, params.source_len));
    }
    output[p.element - params.base] = best;
}

@group(0) @binding(2) var<storage, read> upstream: array<Element>;
@group(0) @binding(3) var<storage, read_write> gradient: array<Element>;

// Sums the outputs whose window has its highest input at i, the first of equal ones. Here `length` counts inputs and `source_len`
// outputs.
@compute @workgroup_size(64)
fn max_pool_gradient(
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
        let start = j * stride - i32(params.padding);
        let low = max(start, 0);
        let high = min(start + i32(params.kernel), i32(params.length));
        var best = at_source(p, low, params.length);
        var at = Index(low);
        for (var k = low + 1; k < high; k++) {
            let value = at_source(p, k, params.length);
            at = select(at, Index(k), value > best);
            best = max(best, value);
        }
        let dy = upstream[(p.outer * params.source_len + u32(j)) * params.inner + p.b - params.upstream_base];
        sum += select(Element(), dy, at == Index(p.position));
    }
    gradient[p.element - params.base] = sum;
}

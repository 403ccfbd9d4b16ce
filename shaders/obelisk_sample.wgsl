// OBELISK sampling: X[n, c K + k, s] = I(n, c, p_s + o_k), or I(n, c, p_s + o_k0) - I(n, c, p_s + o_k1) with BINARY,
// trilinear, zero outside, and its gradients. Image [N, C, size] of any layout given by its strides; locations p_s on a
// regular grid, or with POINTS at points [N, S, 3] on a grid of 1 x 1 x S; offsets [K, 1 or 2, 3]; X a map [N, C K, grid].
const BINARY: u32 = 0u;
const POINTS: u32 = 0u;
struct Params {
    count: u32,        // invocations of this dispatch
    first: u32,        // first slice (n, depth) of X's binding
    partials: u32,     // partial sums of each number, all dispatches together
    partial_base: u32, // those of earlier dispatches
    threads: u32,      // invocations that share the locations of a dispatch
    channels: u32,     // C
    offsets: u32,      // K
    size_x: u32,
    size_y: u32,
    size_z: u32,
    grid_x: u32,
    grid_y: u32,
    grid_z: u32,
    stride_x: u32,
    stride_y: u32,
    stride_z: u32,
    stride_lane: u32,  // of one channel inside four
    stride_block: u32, // of four channels
    stride_n: u32,
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> image: array<f32>;
@group(0) @binding(2) var<storage, read> offsets: array<f32>;
@group(0) @binding(3) var<storage, read> points: array<f32>;
@group(0) @binding(4) var<storage, read_write> samples: array<vec4f>;

fn size() -> vec3u {
    return vec3u(params.size_x, params.size_y, params.size_z);
}

fn grid() -> vec3u {
    return vec3u(params.grid_x, params.grid_y, params.grid_z);
}

fn half_extent() -> vec3f {
    return 0.5 * vec3f(size() - 1u);
}

fn offset(k: u32, j: u32) -> Position {
    let at = (k * (1u + BINARY) + j) * 3u;
    return split(vec3f(offsets[at], offsets[at + 1u], offsets[at + 2u]) * half_extent());
}

fn location(n: u32, i: vec3u) -> Position {
    if (POINTS == 1u) {
        let at = (n * params.grid_x + i.x) * 3u;
        return split((vec3f(points[at], points[at + 1u], points[at + 2u]) + 1.0) * half_extent());
    }
    return grid_position(i, grid(), size());
}

fn image_start(n: u32, c: u32) -> u32 {
    return n * params.stride_n + c / 4u * params.stride_block + c % 4u * params.stride_lane;
}

fn image_cell(p: Position) -> Cell {
    return cell(p, size(), vec3u(params.stride_x, params.stride_y, params.stride_z));
}

fn value(start: u32, c: Cell) -> f32 {
    let low = c.low_inside * (1.0 - c.fraction);
    let high = c.high_inside * c.fraction;
    let l = start + c.low.x;
    let h = start + c.high.x;
    let ll = low.x * image[l + c.low.y + c.low.z] + high.x * image[h + c.low.y + c.low.z];
    let hl = low.x * image[l + c.high.y + c.low.z] + high.x * image[h + c.high.y + c.low.z];
    let lh = low.x * image[l + c.low.y + c.high.z] + high.x * image[h + c.low.y + c.high.z];
    let hh = low.x * image[l + c.high.y + c.high.z] + high.x * image[h + c.high.y + c.high.z];
    return low.z * (low.y * ll + high.y * hl) + high.z * (low.y * lh + high.y * hh);
}

// Gradient of value() by the position, per voxel.
fn slope(start: u32, c: Cell) -> vec3f {
    let low = c.low_inside * (1.0 - c.fraction);
    let high = c.high_inside * c.fraction;
    let l = start + c.low.x;
    let h = start + c.high.x;
    let a = vec4f(
        image[l + c.low.y + c.low.z],
        image[l + c.high.y + c.low.z],
        image[l + c.low.y + c.high.z],
        image[l + c.high.y + c.high.z],
    );
    let b = vec4f(
        image[h + c.low.y + c.low.z],
        image[h + c.high.y + c.low.z],
        image[h + c.low.y + c.high.z],
        image[h + c.high.y + c.high.z],
    );
    let v = low.x * a + high.x * b;
    let dx = c.high_inside.x * b - c.low_inside.x * a;
    let along_y = low.z * (c.high_inside.y * v.y - c.low_inside.y * v.x)
        + high.z * (c.high_inside.y * v.w - c.low_inside.y * v.z);
    let along_z = c.high_inside.z * (low.y * v.z + high.y * v.w) - c.low_inside.z * (low.y * v.x + high.y * v.y);
    let along_x = low.z * (low.y * dx.x + high.y * dx.y) + high.z * (low.y * dx.z + high.y * dx.w);
    return vec3f(along_x, along_y, along_z);
}

// One invocation four channels of X at one location.
@compute @workgroup_size(64)
fn sample(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let index = (group.y * groups.x + group.x) * 64u + local;
    if (index >= params.count) {
        return;
    }
    let outputs = params.channels * params.offsets;
    let x = index % params.grid_x;
    var rest = index / params.grid_x;
    let y = rest % params.grid_y;
    rest /= params.grid_y;
    let block = rest % ((outputs + 3u) / 4u);
    let slice = rest / ((outputs + 3u) / 4u) + params.first;
    let n = slice / params.grid_z;
    let p = location(n, vec3u(x, y, slice % params.grid_z));
    var result = vec4f();
    for (var lane = 0u; lane < min(4u, outputs - block * 4u); lane++) {
        let c = (block * 4u + lane) / params.offsets;
        let k = (block * 4u + lane) % params.offsets;
        let start = image_start(n, c);
        var v = value(start, image_cell(moved(p, offset(k, 0u))));
        if (BINARY == 1u) {
            v -= value(start, image_cell(moved(p, offset(k, 1u))));
        }
        result[lane] = v;
    }
    samples[index] = result;
}

@group(0) @binding(4) var<storage, read> upstream: array<f32>;
@group(0) @binding(5) var<storage, read_write> partial_sums: array<f32>;

// dX of one channel at a location of the bound slices.
fn upstream_at(slice: u32, y: u32, x: u32, channel: u32) -> f32 {
    let blocks = (params.channels * params.offsets + 3u) / 4u;
    let row = ((slice - params.first) * blocks + channel / 4u) * params.grid_y + y;
    return upstream[(row * params.grid_x + x) * 4u + channel % 4u];
}

// dL/do_k = Σ dX[n, c K + k, s] ∇I(n, c, p_s + o_k), first stage: one invocation an offset and every `threads`-th
// location, adjacent invocations adjacent locations. Writes [K, 1 or 2, 3, partials].
@compute @workgroup_size(64)
fn offset_gradient(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let index = (group.y * groups.x + group.x) * 64u + local;
    let k = index / params.threads;
    let thread = index % params.threads;
    if (k >= params.offsets) {
        return;
    }
    let o0 = offset(k, 0u);
    let o1 = offset(k, BINARY);
    var sum0 = vec3f();
    var sum1 = vec3f();
    for (var s = thread; s < params.count; s += params.threads) {
        let x = s % params.grid_x;
        let y = s / params.grid_x % params.grid_y;
        let slice = s / (params.grid_x * params.grid_y) + params.first;
        let n = slice / params.grid_z;
        let p = location(n, vec3u(x, y, slice % params.grid_z));
        let cell0 = image_cell(moved(p, o0));
        let cell1 = image_cell(moved(p, o1));
        for (var c = 0u; c < params.channels; c++) {
            let start = image_start(n, c);
            let g = upstream_at(slice, y, x, c * params.offsets + k);
            sum0 += g * slope(start, cell0);
            if (BINARY == 1u) {
                sum1 -= g * slope(start, cell1);
            }
        }
    }
    let at = k * (1u + BINARY) * 3u * params.partials + params.partial_base + thread;
    partial_sums[at] = sum0.x;
    partial_sums[at + params.partials] = sum0.y;
    partial_sums[at + 2u * params.partials] = sum0.z;
    if (BINARY == 1u) {
        partial_sums[at + 3u * params.partials] = sum1.x;
        partial_sums[at + 4u * params.partials] = sum1.y;
        partial_sums[at + 5u * params.partials] = sum1.z;
    }
}

@group(0) @binding(1) var<storage, read> sums: array<f32>;
@group(0) @binding(2) var<storage, read_write> total: array<f32>;

// Second stage: one invocation a number of the offsets.
@compute @workgroup_size(64)
fn offset_gradient_total(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let index = (group.y * groups.x + group.x) * 64u + local;
    if (index >= params.count) {
        return;
    }
    var sum = 0.0;
    for (var i = 0u; i < params.partials; i++) {
        sum += sums[index * params.partials + i];
    }
    total[index] = sum * half_extent()[index % 3u];
}

@group(0) @binding(5) var<storage, read_write> image_gradient: array<f32>;

// dL/dI on a regular grid: voxel v gathers Σ_k dX[n, c K + k, s] tent(|p_s + o_k - v|) over the few grid points with
// every |p_s + o_k - v| < 1. One invocation four channels of a voxel.
@compute @workgroup_size(64)
fn gather_image_gradient(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let index = (group.y * groups.x + group.x) * 64u + local;
    if (index >= params.count) {
        return;
    }
    var v = vec3u(index % params.size_x, index / params.size_x, 0u);
    v.z = v.y / params.size_y;
    v.y %= params.size_y;
    let blocks = (params.channels + 3u) / 4u;
    let rest = v.z / params.size_z;
    v.z %= params.size_z;
    let block = rest % blocks;
    let n = rest / blocks;
    let lanes = min(4u, params.channels - block * 4u);

    let points_per_voxel = vec3f(grid() - 1u) / max(vec3f(size() - 1u), vec3f(1.0));
    let last = vec3f(grid() - 1u);
    var sum = vec4f();
    for (var k = 0u; k < params.offsets; k++) {
        for (var j = 0u; j <= BINARY; j++) {
            let o = offset(k, j);
            // Where the grid point lies that o brings onto v, and those within a voxel of it; 0.01 more, for rounding.
            let middle = (vec3f(vec3i(v) - o.whole) - o.fraction) * points_per_voxel;
            let reach = points_per_voxel + 0.01;
            let flat_axis = size() == vec3u(1u);
            let low = vec3i(select(clamp(ceil(middle - reach), vec3f(0.0), last + 1.0), vec3f(0.0), flat_axis));
            let high = vec3i(select(clamp(floor(middle + reach), vec3f(-1.0), last), last, flat_axis));
            // A single point lies at the middle of its axis, whatever points_per_voxel says.
            let single = grid() == vec3u(1u);
            let first_point = select(low, vec3i(0), single);
            let last_point = select(high, vec3i(0), single);
            for (var z = first_point.z; z <= last_point.z; z++) {
                for (var y = first_point.y; y <= last_point.y; y++) {
                    for (var x = first_point.x; x <= last_point.x; x++) {
                        let p = grid_position(vec3u(vec3i(x, y, z)), grid(), size());
                        let distance = vec3f(p.whole + o.whole - vec3i(v)) + (p.fraction + o.fraction);
                        let near = max(1.0 - abs(distance), vec3f(0.0));
                        let weight = near.x * near.y * near.z * select(1.0, -1.0, j == 1u);
                        let slice = n * params.grid_z + u32(z);
                        for (var lane = 0u; lane < lanes; lane++) {
                            let channel = (block * 4u + lane) * params.offsets + k;
                            sum[lane] += weight * upstream_at(slice, u32(y), u32(x), channel);
                        }
                    }
                }
            }
        }
    }
    let start = image_start(n, block * 4u) + v.x * params.stride_x + v.y * params.stride_y + v.z * params.stride_z;
    // A map's padding lanes are written as zeros; a flat image has none.
    let written = select(lanes, 4u, params.stride_lane == 1u && params.stride_x == 4u);
    for (var lane = 0u; lane < written; lane++) {
        image_gradient[start + lane * params.stride_lane] = sum[lane];
    }
}

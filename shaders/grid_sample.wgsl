// output[n, c, s] = input[n, c] at grid[n, s] = (x, y, z) in −1 … 1, x along W; trilinear or nearest (ties to even).
// input [N, C, D, H, W], grid [N, S, 3], output and upstream [N, C, S], all f32.
// forward, grid_gradient: one invocation a location.
// scatter: the input's gradient, sums in fixed point (common/fixed_point.wgsl) that don't depend on their order; one
// invocation a location.
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> input: array<f32>;
@group(0) @binding(2) var<storage, read> grid: array<f32>;
@group(0) @binding(3) var<storage, read> upstream: array<f32>;
@group(0) @binding(4) var<storage, read_write> output: array<f32>;

const CORNERS: u32 = 1u;
const BORDER: u32 = 0u;
const NEAREST: u32 = 0u;

// Voxel coordinate of a normalised one, and in .y its derivative.
fn unnormalise(v: f32, n: u32) -> vec2f {
    let scale = select(f32(n), f32(n - 1u), CORNERS == 1u) / 2.0;
    let at = (v + 1.0) * scale - select(0.5, 0.0, CORNERS == 1u);
    if (BORDER == 1u) {
        let last = f32(n - 1u);
        return vec2f(clamp(at, 0.0, last), select(0.0, scale, at > 0.0 && at < last));
    }
    // Far outside nothing is read, and what is beyond i32 must not wrap.
    return vec2f(clamp(at, -2.0, f32(n) + 1.0), scale);
}

struct Place { base: vec3i, fraction: vec3f, slope: vec3f }

fn place(location: u32) -> Place {
    let x = unnormalise(grid[3u * location], params.width);
    let y = unnormalise(grid[3u * location + 1u], params.height);
    let z = unnormalise(grid[3u * location + 2u], params.depth);
    let at = vec3f(x.x, y.x, z.x);
    var result: Place;
    if (NEAREST == 1u) {
        result.base = vec3i(round(at));
    } else {
        let cell = floor(at);
        result.base = vec3i(cell);
        result.fraction = at - cell;
    }
    result.slope = vec3f(x.y, y.y, z.y);
    return result;
}

fn corner(k: u32) -> vec3i {
    return vec3i(i32(k & 1u), i32((k >> 1u) & 1u), i32(k >> 2u));
}

fn inside(p: vec3i) -> bool {
    return all(p >= vec3i(0)) && p.x < i32(params.width) && p.y < i32(params.height) && p.z < i32(params.depth);
}

fn offset(p: vec3i) -> u32 {
    return (u32(p.z) * params.height + u32(p.y)) * params.width + u32(p.x);
}

fn factors(fraction: vec3f, k: u32) -> vec3f {
    return select(1.0 - fraction, fraction, corner(k) == vec3i(1));
}

@compute @workgroup_size(64)
fn forward(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let i = (group.y * groups.x + group.x) * 64u + local;
    if (i >= params.batch * params.locations) {
        return;
    }
    let n = i / params.locations;
    let volume = params.depth * params.height * params.width;
    let at = place(i);
    for (var c = 0u; c < params.channels; c++) {
        let from_channel = (n * params.channels + c) * volume;
        var value = 0.0;
        if (NEAREST == 1u) {
            if (inside(at.base)) {
                value = input[from_channel + offset(at.base)];
            }
        } else {
            for (var k = 0u; k < 8u; k++) {
                let p = at.base + corner(k);
                if (inside(p)) {
                    let w = factors(at.fraction, k);
                    value += w.x * w.y * w.z * input[from_channel + offset(p)];
                }
            }
        }
        output[(n * params.channels + c) * params.locations + i % params.locations] = value;
    }
}

@compute @workgroup_size(64)
fn grid_gradient(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let i = (group.y * groups.x + group.x) * 64u + local;
    if (i >= params.batch * params.locations) {
        return;
    }
    let n = i / params.locations;
    let volume = params.depth * params.height * params.width;
    let at = place(i);
    var sum = vec3f(0.0);
    for (var c = 0u; c < params.channels; c++) {
        let from_channel = (n * params.channels + c) * volume;
        let g = upstream[(n * params.channels + c) * params.locations + i % params.locations];
        for (var k = 0u; k < 8u; k++) {
            let p = at.base + corner(k);
            if (inside(p)) {
                let w = factors(at.fraction, k);
                let sign = select(vec3f(-1.0), vec3f(1.0), corner(k) == vec3i(1));
                let v = g * input[from_channel + offset(p)];
                sum += v * sign * vec3f(w.y * w.z, w.x * w.z, w.x * w.y);
            }
        }
    }
    let slope = sum * at.slope;
    output[3u * i] = slope.x;
    output[3u * i + 1u] = slope.y;
    output[3u * i + 2u] = slope.z;
}

@group(0) @binding(1) var<storage, read> largest: array<f32>;
@group(0) @binding(4) var<storage, read_write> words: array<atomic<u32>>;

@compute @workgroup_size(64)
fn scatter(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let i = (group.y * groups.x + group.x) * 64u + local;
    if (i >= params.batch * params.locations) {
        return;
    }
    let scale = scale_of(bitcast<u32>(largest[0]), params.headroom);
    let n = i / params.locations;
    let volume = params.depth * params.height * params.width;
    let at = place(i);
    for (var c = 0u; c < params.channels; c++) {
        let to_channel = (n * params.channels + c) * volume;
        let g = upstream[(n * params.channels + c) * params.locations + i % params.locations];
        if (NEAREST == 1u) {
            if (inside(at.base)) {
                add(to_channel + offset(at.base), g, scale);
            }
        } else {
            for (var k = 0u; k < 8u; k++) {
                let p = at.base + corner(k);
                if (inside(p)) {
                    let w = factors(at.fraction, k);
                    add(to_channel + offset(p), w.x * w.y * w.z * g, scale);
                }
            }
        }
    }
}

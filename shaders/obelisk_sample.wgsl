// OBELISK sampling: X[n, c K + k, s] = I(n, c, p_s + o_k), or I(n, c, p_s + o_k0) - I(n, c, p_s + o_k1) with BINARY,
// trilinear, zero outside, and its gradients. X is a map [N, C K, grid]; common/obelisk.wgsl has the rest.
@group(0) @binding(2) var<storage, read_write> samples: array<vec4f>;
// 1 where K is a multiple of four: four channels of X are then of one c.
const FOURS: u32 = 0u;

fn sampled(p: Position, start: u32, k: u32) -> f32 {
    var x = value(start, image_cell(moved(p, offset(k, 0u))));
    if (BINARY == 1u) {
        x -= value(start, image_cell(moved(p, offset(k, 1u))));
    }
    return x;
}

// What an invocation works on, of `count` things along a row and `blocks` rows: eight neighbours along a row take the same
// of all rows, and only then do the next eight come. The offsets of a location lie near each other, so that what eight
// locations read stays in a cache.
struct Tile { along: u32, block: u32 }

fn tile(index: u32, blocks: u32) -> Tile {
    let eight = divide(index, 8u * blocks);
    let rest = index - eight * 8u * blocks;
    return Tile(8u * eight + rest % 8u, rest / 8u);
}

// One invocation four channels of X at one location.
@compute @workgroup_size(64)
fn sample(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let index = (group.y * groups.x + group.x) * 64u + local;
    let channels = params.channels * params.offsets;
    let blocks = (channels + 3u) / 4u;
    let at = tile(index, blocks);
    if (at.along >= params.count) {
        return;
    }
    let block = at.block;
    let here = located(at.along);
    let p = location(here.n, here.at);
    var result: vec4f;
    if (FOURS == 1u) {
        let c = divide(block * 4u, params.offsets);
        let k = block * 4u - c * params.offsets;
        let start = image_start(here.n, c);
        result = vec4f(sampled(p, start, k), sampled(p, start, k + 1u), sampled(p, start, k + 2u), sampled(p, start, k + 3u));
    } else {
        // Padding lanes stay zeros.
        for (var lane = 0u; lane < min(4u, channels - block * 4u); lane++) {
            let channel = block * 4u + lane;
            let start = image_start(here.n, channel / params.offsets);
            result[lane] = sampled(p, start, channel % params.offsets);
        }
    }
    samples[map_index(at.along, blocks, block)] = result;
}

// Y[n, (3 j + axis) C K + c K + k, s]: the derivative of X[n, c K + k, s] by number `axis` of o_kj, a map.
@group(0) @binding(5) var<storage, read_write> slopes: array<vec4f>;
const SLOPES: u32 = 3u * (1u + BINARY);
var<private> own_slopes: array<vec4f, 6>;

// Into lane i: X's derivatives; returns X.
fn sampled_slopes(i: u32, p: Position, start: u32, k: u32, extent: vec3f) -> f32 {
    let first = slope_and_value(start, image_cell(moved(p, offset(k, 0u))));
    own_slopes[0][i] = extent.x * first.x;
    own_slopes[1][i] = extent.y * first.y;
    own_slopes[2][i] = extent.z * first.z;
    var x = first.w;
    if (BINARY == 1u) {
        let second = slope_and_value(start, image_cell(moved(p, offset(k, 1u))));
        own_slopes[3][i] = -extent.x * second.x;
        own_slopes[4][i] = -extent.y * second.y;
        own_slopes[5][i] = -extent.z * second.z;
        x -= second.w;
    }
    return x;
}

fn store_slope(t: u32, first: u32, apart: u32) {
    if (t < SLOPES) {
        slopes[first + t * apart] = own_slopes[t];
    }
}

// `sample` that stores the slopes of X too, from the same loads, for obelisk_slopes.wgsl. K is a multiple of four.
@compute @workgroup_size(64)
fn sample_slopes(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let index = (group.y * groups.x + group.x) * 64u + local;
    let blocks = params.channels * params.offsets / 4u;
    let at = tile(index, blocks);
    if (at.along >= params.count) {
        return;
    }
    let here = located(at.along);
    let p = location(here.n, here.at);
    let c = divide(at.block * 4u, params.offsets);
    let k = at.block * 4u - c * params.offsets;
    let start = image_start(here.n, c);
    let extent = half_extent();
    samples[map_index(at.along, blocks, at.block)] = vec4f(
        sampled_slopes(0u, p, start, k, extent),
        sampled_slopes(1u, p, start, k + 1u, extent),
        sampled_slopes(2u, p, start, k + 2u, extent),
        sampled_slopes(3u, p, start, k + 3u, extent),
    );
    let first = map_index(at.along, SLOPES * blocks, at.block);
    let apart = blocks * params.grid_y * params.grid_x;
    // unroll
    for (var t = 0u; t < 6u; t++) {
        store_slope(t, first, apart);
    }
}

@group(0) @binding(2) var<storage, read> upstream: array<f32>;
@group(0) @binding(5) var<storage, read_write> partial_sums: array<f32>;

// dX of one channel at a location.
fn upstream_at(s: u32, channel: u32) -> f32 {
    let blocks = (params.channels * params.offsets + 3u) / 4u;
    return upstream[map_index(s, blocks, channel / 4u) * 4u + channel % 4u];
}

// Of four offsets, first and second terms.
var<private> moves: array<Position, 8>;
var<private> gradients: array<vec3f, 8>;

fn load_move(i: u32, first: u32) {
    let k = min(first + i, params.offsets - 1u);
    moves[i] = offset(k, 0u);
    if (BINARY == 1u) {
        moves[4u + i] = offset(k, 1u);
    }
}

fn add_gradient(i: u32, p: Position, start: u32, s: u32, c: u32, first: u32) {
    let k = min(first + i, params.offsets - 1u);
    let g = upstream_at(s, c * params.offsets + k);
    gradients[i] += g * slope(start, image_cell(moved(p, moves[i])));
    if (BINARY == 1u) {
        gradients[4u + i] -= g * slope(start, image_cell(moved(p, moves[4u + i])));
    }
}

fn store_gradient(i: u32, term: u32, k: u32, thread: u32) {
    if (k < params.offsets) {
        let at = (k * (1u + BINARY) + term) * 3u * params.partials + params.partial_base + thread;
        let sum = gradients[4u * term + i];
        partial_sums[at] = sum.x;
        partial_sums[at + params.partials] = sum.y;
        partial_sums[at + 2u * params.partials] = sum.z;
    }
}

// dL/do_k = Σ dX[n, c K + k, s] ∇I(n, c, p_s + o_k), first stage: one invocation four offsets and every `threads`-th
// location, adjacent invocations adjacent locations. Writes [K, 1 or 2, 3, partials].
@compute @workgroup_size(64)
fn offset_gradient(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let index = (group.y * groups.x + group.x) * 64u + local;
    let at = tile(index, (params.offsets + 3u) / 4u);
    let first = at.block * 4u;
    let thread = at.along;
    if (thread >= params.threads) {
        return;
    }
    // unroll
    for (var i = 0u; i < 4u; i++) {
        load_move(i, first);
    }
    for (var s = thread; s < params.count; s += params.threads) {
        let here = located(s);
        let p = location(here.n, here.at);
        for (var c = 0u; c < params.channels; c++) {
            let start = image_start(here.n, c);
            // unroll
            for (var i = 0u; i < 4u; i++) {
                add_gradient(i, p, start, s, c, first);
            }
        }
    }
    for (var term = 0u; term <= BINARY; term++) {
        store_gradient(0u, term, first, thread);
        store_gradient(1u, term, first + 1u, thread);
        store_gradient(2u, term, first + 2u, thread);
        store_gradient(3u, term, first + 3u, thread);
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
// every |p_s + o_k - v| < 1, those in slices `first` to `end`. One invocation four channels of a voxel.
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
    let first_z = i32(params.first) - i32(n * params.grid_z);
    let end_z = i32(params.end) - i32(n * params.grid_z);
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
            // Between the grid's ends also where an offset is NaN, so that the loops end.
            let first_point = max(select(low, vec3i(0), single), vec3i(0));
            let last_point = min(select(high, vec3i(0), single), vec3i(grid()) - 1);
            for (var z = max(first_point.z, first_z); z <= min(last_point.z, end_z - 1); z++) {
                for (var y = first_point.y; y <= last_point.y; y++) {
                    for (var x = first_point.x; x <= last_point.x; x++) {
                        let p = grid_position(vec3u(vec3i(x, y, z)), grid(), size());
                        let distance = vec3f(p.whole + o.whole - vec3i(v)) + (p.fraction + o.fraction);
                        let near = max(1.0 - abs(distance), vec3f(0.0));
                        let weight = near.x * near.y * near.z * select(1.0, -1.0, j == 1u);
                        let s = (u32(z - first_z) * params.grid_y + u32(y)) * params.grid_x + u32(x);
                        for (var lane = 0u; lane < lanes; lane++) {
                            let channel = (block * 4u + lane) * params.offsets + k;
                            sum[lane] += weight * upstream_at(s, channel);
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
        let at = start + lane * params.stride_lane;
        if (params.first > 0u) {
            sum[lane] += image_gradient[at];
        }
        image_gradient[at] = sum[lane];
    }
}

@group(0) @binding(1) var<storage, read> largest: array<f32>;
@group(0) @binding(5) var<storage, read_write> words: array<atomic<u32>>;

// Adds `value` times its trilinear weight to each voxel of a cell.
fn scatter(start: u32, c: Cell, value: f32, scale: Scale) {
    let low = c.low_inside * (1.0 - c.fraction);
    let high = c.high_inside * c.fraction;
    for (var corner = 0u; corner < 8u; corner++) {
        let upper = (vec3u(corner) & vec3u(1u, 2u, 4u)) != vec3u(0u);
        let weights = select(low, high, upper);
        let offset = select(c.low, c.high, upper);
        let weight = weights.x * weights.y * weights.z;
        if (weight != 0.0) {
            add(start + offset.x + offset.y + offset.z, weight * value, scale);
        }
    }
}

// dL/dI at scattered points, where too many of them may lie near a voxel to gather: each sample adds to the eight voxels
// that it read, in fixed point. One invocation a location and an offset, adjacent ones at adjacent locations.
@compute @workgroup_size(64)
fn scatter_image_gradient(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let index = (group.y * groups.x + group.x) * 64u + local;
    let locations = params.grid_x * params.grid_y * params.grid_z;
    let k = index / locations % params.offsets;
    let n = index / locations / params.offsets;
    if (index >= params.count) {
        return;
    }
    let s = n * locations + index % locations;
    let p = location(n, located(s).at);
    let scale = scale_of(bitcast<u32>(largest[0]), params.headroom);
    for (var j = 0u; j <= BINARY; j++) {
        let at = image_cell(moved(p, offset(k, j)));
        for (var c = 0u; c < params.channels; c++) {
            let g = upstream_at(s, c * params.offsets + k);
            scatter(image_start(n, c), at, select(g, -g, j == 1u), scale);
        }
    }
}

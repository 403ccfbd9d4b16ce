// grid[n, z, y, x] = theta[n] · (x', y', z', 1), the normalised coordinates of the output voxel; theta [N, 3, 4], grid
// [N, D, H, W, 3]. An axis of n voxels runs from −1 to 1: between the centres of its outer voxels (CORNERS), where one
// voxel alone sits at 0, or between their outer faces.
// forward: one invocation a voxel. gradient: d theta[n, i, j] = Σ voxels upstream[voxel, i] · coordinate_j, first as
// partial sums of `threads` invocations a batch item (12 each), then `total`, one invocation an entry.
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> input: array<f32>;
@group(0) @binding(2) var<storage, read_write> output: array<f32>;

const CORNERS: u32 = 1u;

fn coordinate(i: u32, n: u32) -> f32 {
    if (CORNERS == 1u) {
        return select((2.0 * f32(i) - f32(n - 1u)) / f32(max(n, 2u) - 1u), 0.0, n == 1u);
    }
    return (2.0 * f32(i) + 1.0 - f32(n)) / f32(n);
}

fn position(voxel: u32) -> vec4f {
    let x = voxel % params.width;
    let y = voxel / params.width % params.height;
    let z = voxel / params.width / params.height;
    return vec4f(coordinate(x, params.width), coordinate(y, params.height), coordinate(z, params.depth), 1.0);
}

@compute @workgroup_size(64)
fn forward(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let i = (group.y * groups.x + group.x) * 64u + local;
    let voxels = params.depth * params.height * params.width;
    if (i >= params.batch * voxels) {
        return;
    }
    let at = position(i % voxels);
    let theta = i / voxels * 12u;
    for (var row = 0u; row < 3u; row++) {
        let t = theta + 4u * row;
        output[3u * i + row] = dot(vec4f(input[t], input[t + 1u], input[t + 2u], input[t + 3u]), at);
    }
}

@compute @workgroup_size(64)
fn gradient(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let i = (group.y * groups.x + group.x) * 64u + local;
    if (i >= params.batch * params.threads) {
        return;
    }
    let voxels = params.depth * params.height * params.width;
    let item = i / params.threads;
    var sums: array<vec4f, 3>;
    for (var voxel = i % params.threads; voxel < voxels; voxel += params.threads) {
        let at = position(voxel);
        let upstream = 3u * (item * voxels + voxel);
        sums[0] += input[upstream] * at;
        sums[1] += input[upstream + 1u] * at;
        sums[2] += input[upstream + 2u] * at;
    }
    for (var row = 0u; row < 3u; row++) {
        for (var column = 0u; column < 4u; column++) {
            output[12u * i + 4u * row + column] = sums[row][column];
        }
    }
}

@compute @workgroup_size(64)
fn total(@builtin(global_invocation_id) id: vec3u) {
    if (id.x >= params.batch * 12u) {
        return;
    }
    var sum = 0.0;
    for (var i = 0u; i < params.threads; i++) {
        sum += input[12u * (id.x / 12u * params.threads + i) + id.x % 12u];
    }
    output[id.x] = sum;
}

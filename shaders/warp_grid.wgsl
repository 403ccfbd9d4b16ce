// grid[n, z, y, x] = theta[n] · (p + u[n](p), 1) for the normalised coordinates p of the output voxel, −1 and 1 at the centres of
// the outer voxels; theta [N, 3, 4], u [N, 3, d, h, w], grid [N, D, H, W, 3]. One invocation a voxel.
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> theta: array<f32>;
@group(0) @binding(2) var<storage, read> coarse: array<f32>;
@group(0) @binding(3) var<storage, read_write> grid: array<f32>;

fn coordinate(i: u32, n: u32) -> f32 {
    return select((2.0 * f32(i) - f32(n - 1u)) / f32(max(n, 2u) - 1u), 0.0, n == 1u);
}

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let i = (group.y * groups.x + group.x) * 64u + local;
    if (i >= params.count) {
        return;
    }
    let at = voxel_of(i);
    let around = cells(at.xyz);
    var moved = vec4f(
        coordinate(at.x, params.width),
        coordinate(at.y, params.height),
        coordinate(at.z, params.depth),
        1.0,
    );
    for (var axis = 0u; axis < 3u; axis++) {
        moved[axis] += field(3u * at.w + axis, around);
    }
    for (var line = 0u; line < 3u; line++) {
        let t = 12u * at.w + 4u * line;
        grid[3u * i + line] = dot(vec4f(theta[t], theta[t + 1u], theta[t + 2u], theta[t + 3u]), moved);
    }
}

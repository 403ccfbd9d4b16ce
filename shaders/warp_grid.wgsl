// grid[n, z, y, x] = theta[n] · (p + u[n](p), 1) for the normalised coordinates p of the output voxel, −1 and 1 at the centres of
// the outer voxels; theta [N, 3, 4], u [N, 3, d, h, w], grid [N, D, H, W, 3]. One invocation a voxel.
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> theta: array<f32>;
@group(0) @binding(2) var<storage, read> displacement: array<f32>;
@group(0) @binding(3) var<storage, read_write> grid: array<f32>;

fn coordinate(i: u32, n: u32) -> f32 {
    return select((2.0 * f32(i) - f32(n - 1u)) / f32(max(n, 2u) - 1u), 0.0, n == 1u);
}

fn row(from_row: u32, x: Cell) -> f32 {
    return mix(displacement[from_row + x.before], displacement[from_row + x.next], x.share);
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
    let at = vec3u(i % params.width, i / params.width % params.height, i / params.width / params.height % params.depth);
    let n = i / params.width / params.height / params.depth;
    let x = cell(at.x, params.width, params.w);
    let y = cell(at.y, params.height, params.h);
    let z = cell(at.z, params.depth, params.d);
    var moved = vec4f(
        coordinate(at.x, params.width),
        coordinate(at.y, params.height),
        coordinate(at.z, params.depth),
        1.0,
    );
    for (var axis = 0u; axis < 3u; axis++) {
        let from_axis = (3u * n + axis) * params.d;
        let lower = (from_axis + z.before) * params.h;
        let upper = (from_axis + z.next) * params.h;
        moved[axis] += mix(
            mix(row((lower + y.before) * params.w, x), row((lower + y.next) * params.w, x), y.share),
            mix(row((upper + y.before) * params.w, x), row((upper + y.next) * params.w, x), y.share),
            z.share,
        );
    }
    for (var line = 0u; line < 3u; line++) {
        let t = 12u * n + 4u * line;
        grid[3u * i + line] = dot(vec4f(theta[t], theta[t + 1u], theta[t + 2u], theta[t + 3u]), moved);
    }
}

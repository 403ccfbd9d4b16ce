// Packs a flat image [N, 1, D, H, W] for samples between its voxels: cell (z, y, x) of [N, D + 2, H + 1, W + 1] holds the
// voxels (y - 1, x - 1), (y - 1, x), (y, x - 1) and (y, x) of plane z - 1, zeros where there are none. One invocation ROWS cells
// along y, which share loads.
const ROWS: u32 = 4u;
struct Params { count: u32, size_x: u32, size_y: u32, size_z: u32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> image: array<f32>;
@group(0) @binding(2) var<storage, read_write> cells: array<vec4f>;

// The two voxels of row y of a slice at and before x, zeros where there are none.
fn pair(slice: u32, inside_z: bool, y: i32, x: u32) -> vec2f {
    let row = (slice * params.size_y + u32(clamp(y, 0, i32(params.size_y) - 1))) * params.size_x;
    let values = vec2f(image[row + max(x, 1u) - 1u], image[row + min(x, params.size_x - 1u)]);
    let inside = inside_z && y >= 0 && y < i32(params.size_y);
    return select(vec2f(), values, vec2<bool>(inside && x > 0u, inside && x < params.size_x));
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
    let rows = params.size_y + 1u;
    let row_groups = (rows + ROWS - 1u) / ROWS;
    let row_group = divide(index, params.size_x + 1u);
    let x = index - row_group * (params.size_x + 1u);
    let plane = divide(row_group, row_groups);
    let first = (row_group - plane * row_groups) * ROWS;
    let n = divide(plane, params.size_z + 2u);
    let z = plane - n * (params.size_z + 2u);
    let inside_z = z > 0u && z <= params.size_z;
    let slice = n * params.size_z + select(0u, z - 1u, inside_z);
    var near = pair(slice, inside_z, i32(first) - 1, x);
    for (var i = 0u; i < ROWS; i++) {
        let y = first + i;
        let far = pair(slice, inside_z, i32(y), x);
        if (y < rows) {
            cells[(plane * rows + y) * (params.size_x + 1u) + x] = vec4f(near, far);
        }
        near = far;
    }
}

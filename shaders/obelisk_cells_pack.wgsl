// Packs a flat image [N, 1, D, H, W] for samples between its voxels: cell (z, y, x) of [N, D + 4, H + 3, W + 3] holds the
// voxels (y - 2, x - 2), (y - 2, x - 1), (y - 1, x - 2) and (y - 1, x - 1) of plane z - 2, zeros where there are none: the
// outermost cells and planes hold zeros alone, for all that lies farther outside. One invocation ROWS cells along y, which share loads.
const ROWS: u32 = 4u;
@group(0) @binding(0) var<uniform> params: CellsPack;
@group(0) @binding(1) var<storage, read> image: array<f32>;
@group(0) @binding(2) var<storage, read_write> cells: array<vec4f>;

// The two voxels of row y of a slice at x and behind, zeros where there are none.
fn pair(slice: u32, inside_z: bool, y: i32, x: i32) -> vec2f {
    let last = vec2i(i32(params.size_x), i32(params.size_y)) - 1;
    let row = (slice * params.size_y + u32(clamp(y, 0, last.y))) * params.size_x;
    let values = vec2f(image[row + u32(clamp(x, 0, last.x))], image[row + u32(clamp(x + 1, 0, last.x))]);
    let inside = inside_z && y >= 0 && y <= last.y;
    return select(vec2f(), values, vec2<bool>(inside && x >= 0 && x <= last.x, inside && x >= -1 && x < last.x));
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
    let width = params.size_x + 3u;
    let rows = params.size_y + 3u;
    let row_groups = (rows + ROWS - 1u) / ROWS;
    let row_group = divide(index, width);
    let x = index - row_group * width;
    let plane = divide(row_group, row_groups);
    let first = (row_group - plane * row_groups) * ROWS;
    let n = divide(plane, params.size_z + 4u);
    let z = i32(plane - n * (params.size_z + 4u)) - 2;
    let inside_z = z >= 0 && z < i32(params.size_z);
    let slice = n * params.size_z + select(0u, u32(z), inside_z);
    var near = pair(slice, inside_z, i32(first) - 2, i32(x) - 2);
    for (var i = 0u; i < ROWS; i++) {
        let y = first + i;
        let far = pair(slice, inside_z, i32(y) - 1, i32(x) - 2);
        if (y < rows) {
            cells[(plane * rows + y) * width + x] = vec4f(near, far);
        }
        near = far;
    }
}

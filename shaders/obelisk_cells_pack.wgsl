// Packs a flat image [N, 1, D, H, W] for samples between its voxels: cell (z, y, x) of [N, D + 2, H + 1, W + 1] holds the
// voxels (y - 1, x - 1), (y - 1, x), (y, x - 1) and (y, x) of plane z - 1, zeros where there are none. One invocation a cell.
struct Params { count: u32, size_x: u32, size_y: u32, size_z: u32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> image: array<f32>;
@group(0) @binding(2) var<storage, read_write> cells: array<vec4f>;

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
    let row = divide(index, params.size_x + 1u);
    let x = index - row * (params.size_x + 1u);
    let plane = divide(row, params.size_y + 1u);
    let y = row - plane * (params.size_y + 1u);
    let n = divide(plane, params.size_z + 2u);
    let z = plane - n * (params.size_z + 2u);
    let inside_z = z > 0u && z <= params.size_z;
    let slice = n * params.size_z + select(0u, z - 1u, inside_z);
    let left = max(x, 1u) - 1u;
    let right = min(x, params.size_x - 1u);
    let near = (slice * params.size_y + max(y, 1u) - 1u) * params.size_x;
    let far = (slice * params.size_y + min(y, params.size_y - 1u)) * params.size_x;
    let values = vec4f(image[near + left], image[near + right], image[far + left], image[far + right]);
    let has_left = x > 0u && inside_z;
    let has_right = x < params.size_x && inside_z;
    let has_near = y > 0u;
    let has_far = y < params.size_y;
    let inside = vec4<bool>(has_near && has_left, has_near && has_right, has_far && has_left, has_far && has_right);
    cells[index] = select(vec4f(), values, inside);
}

// Offsets (x, y, z) times the matrix A of theta [1, 3, 4], its first three columns: o' = A o, or with TRANSPOSED Aᵀ o,
// which carries the gradient back. One invocation an offset.
const TRANSPOSED: u32 = 0u;
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> offsets: array<f32>;
@group(0) @binding(2) var<storage, read> theta: array<f32>;
@group(0) @binding(3) var<storage, read_write> turned: array<f32>;

fn entry(row: u32, column: u32) -> f32 {
    return theta[select(4u * row + column, 4u * column + row, TRANSPOSED == 1u)];
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
    let o = vec3f(offsets[3u * i], offsets[3u * i + 1u], offsets[3u * i + 2u]);
    for (var row = 0u; row < 3u; row++) {
        turned[3u * i + row] = dot(vec3f(entry(row, 0u), entry(row, 1u), entry(row, 2u)), o);
    }
}

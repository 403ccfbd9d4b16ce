// y = x², over the channels of one voxel after another.
@group(0) @binding(0) var<uniform> params: Square;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3u) {
    // One row an invocation, to have a loop, and a division by the crate's shared piece.
    let rows = divide(params.count, params.row);
    if (id.x < rows) {
        for (var i = 0u; i < params.row; i++) {
            let at = id.x * params.row + i;
            y[at] = x[at] * x[at];
        }
    }
}

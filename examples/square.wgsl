// y = x² and, as the gradient, dx = 2·x·dy, over vec4s, whatever the layout. One invocation a vec4.
@group(0) @binding(0) var<uniform> params: SquareParams;
@group(0) @binding(1) var<storage, read> x: array<vec4f>;
@group(0) @binding(2) var<storage, read> upstream: array<vec4f>;
@group(0) @binding(3) var<storage, read_write> output: array<vec4f>;

const GRADIENT: u32 = 0u;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let i = (group.y * groups.x + group.x) * 64u + local;
    if (i < params.count) {
        output[i] = select(x[i] * x[i], 2.0 * x[i] * upstream[i], GRADIENT == 1u);
    }
}

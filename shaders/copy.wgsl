// output[to + i] = input[from + i] over vec4s, whatever the layout. One invocation a vec4.
@group(0) @binding(0) var<uniform> params: Copy;
@group(0) @binding(1) var<storage, read> input: array<vec4f>;
@group(0) @binding(2) var<storage, read_write> output: array<vec4f>;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let i = (group.y * groups.x + group.x) * 64u + local;
    if (i < params.count) {
        output[params.to_vector + i] = input[params.from_vector + i];
    }
}

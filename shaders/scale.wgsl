// y = factor · x over vec4s, whatever the layout. One invocation a vec4.
@group(0) @binding(0) var<uniform> params: Params;
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
        output[i] = params.factor * input[i];
    }
}

@group(0) @binding(1) var<storage, read_write> scaled: array<vec4f>;

// y over x.
@compute @workgroup_size(64)
fn in_place(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let i = (group.y * groups.x + group.x) * 64u + local;
    if (i < params.count) {
        scaled[i] = params.factor * scaled[i];
    }
}

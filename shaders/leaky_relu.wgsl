// y = x > 0 ? x : slope x;   dx = x > 0 ? dy : slope dy.   Over vec4s, whatever the layout. One invocation a vec4.
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4f>;
@group(0) @binding(2) var<storage, read_write> y: array<vec4f>;

@compute @workgroup_size(64)
fn forward(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let i = (group.y * groups.x + group.x) * 64u + local;
    if (i < params.count) {
        let v = x[i];
        y[i] = select(params.slope * v, v, v > vec4f(0.0));
    }
}

@group(0) @binding(2) var<storage, read> dy: array<vec4f>;
@group(0) @binding(3) var<storage, read_write> dx: array<vec4f>;

@compute @workgroup_size(64)
fn gradient(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let i = (group.y * groups.x + group.x) * 64u + local;
    if (i < params.count) {
        dx[i] = select(params.slope * dy[i], dy[i], x[i] > vec4f(0.0));
    }
}

@group(0) @binding(1) var<storage, read_write> x_y: array<vec4f>;

@compute @workgroup_size(64)
fn forward_in_place(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let i = (group.y * groups.x + group.x) * 64u + local;
    if (i < params.count) {
        let v = x_y[i];
        x_y[i] = select(params.slope * v, v, v > vec4f(0.0));
    }
}

@group(0) @binding(2) var<storage, read_write> dy_dx: array<vec4f>;

@compute @workgroup_size(64)
fn gradient_in_place(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let i = (group.y * groups.x + group.x) * 64u + local;
    if (i < params.count) {
        let v = dy_dx[i];
        dy_dx[i] = select(params.slope * v, v, x[i] > vec4f(0.0));
    }
}

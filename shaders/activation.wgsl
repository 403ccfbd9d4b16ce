// y = f(x);   dx = f'(x) dy.   Over vec4s, whatever the layout. One invocation a vec4.
// KIND: 0 leaky ReLU, 1 ELU, 2 GELU. Gradients of the first two may read y in the place of x.
const KIND: u32 = 0u;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4f>;
@group(0) @binding(2) var<storage, read_write> y: array<vec4f>;

// The standard normal distribution function: Abramowitz & Stegun, formula 7.1.26.
fn normal_distribution(v: vec4f) -> vec4f {
    let z = abs(v) * 0.70710678;
    let t = 1.0 / (1.0 + 0.3275911 * z);
    let series = ((((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t + 0.254829592) * t;
    let tail = 0.5 * series * exp(-z * z);
    return select(1.0 - tail, tail, v < vec4f(0.0));
}

fn activate(v: vec4f) -> vec4f {
    if (KIND == 0u) {
        return select(params.slope * v, v, v > vec4f(0.0));
    }
    if (KIND == 1u) {
        // Close to 0 the series, where the difference of exp(v) and 1 has few digits.
        let series = v * (1.0 + v * (0.5 + v * (1.0 / 6.0 + v * (1.0 / 24.0))));
        let negative = select(exp(v) - 1.0, series, v > vec4f(-0.05));
        return select(negative, v, v > vec4f(0.0));
    }
    return v * normal_distribution(v);
}

fn derivative(v: vec4f) -> vec4f {
    if (KIND == 0u) {
        return select(vec4f(params.slope), vec4f(1.0), v > vec4f(0.0));
    }
    if (KIND == 1u) {
        return select(v + 1.0, vec4f(1.0), v > vec4f(0.0));
    }
    return normal_distribution(v) + v * exp(-0.5 * v * v) * 0.39894228;
}

@compute @workgroup_size(64)
fn forward(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let i = (group.y * groups.x + group.x) * 64u + local;
    if (i < params.count) {
        y[i] = activate(x[i]);
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
        dx[i] = derivative(x[i]) * dy[i];
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
        x_y[i] = activate(x_y[i]);
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
        dy_dx[i] = derivative(x[i]) * dy_dx[i];
    }
}

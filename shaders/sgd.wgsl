// Gradient descent with Nesterov's momentum and L2 weight decay over the whole arenas, padding included (its gradients are zero, so
// it stays zero).
//   g += decay p;  m = momentum m + g;  p -= rate (g + momentum m)
// One invocation a vec4. `clipped` multiplies gradients by `factor`, from gradient_norm.wgsl.
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<uniform> step: StepScalars;
@group(0) @binding(2) var<storage, read_write> parameters: array<vec4f>;
@group(0) @binding(3) var<storage, read> gradients: array<vec4f>;
@group(0) @binding(4) var<storage, read_write> first: array<vec4f>;
@group(0) @binding(5) var<storage, read> factor: array<f32>;

fn update(i: u32, scale: f32) {
    let p = parameters[i];
    let g = scale * gradients[i] + step.weight_decay * p;
    let m = params.momentum * first[i] + g;
    first[i] = m;
    parameters[i] = p - step.learning_rate * (g + params.momentum * m);
}

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let i = (group.y * groups.x + group.x) * 64u + local;
    if (i < params.count) {
        update(i, 1.0);
    }
}

@compute @workgroup_size(64)
fn clipped(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let i = (group.y * groups.x + group.x) * 64u + local;
    if (i < params.count) {
        update(i, factor[0]);
    }
}

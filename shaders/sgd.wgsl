// Gradient descent with Nesterov's momentum and L2 weight decay over the whole arenas, one invocation a vec4 (common/update.wgsl).
//   g += decay p;  m = momentum m + g;  p -= rate (g + momentum m)
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

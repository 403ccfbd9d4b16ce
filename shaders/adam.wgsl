// Adam with L2 weight decay over the whole arenas, one invocation a vec4 (common/update.wgsl).
//   g += decay p;  m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g²;  p -= rate (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<uniform> step: StepScalars;
@group(0) @binding(2) var<storage, read_write> parameters: array<vec4f>;
@group(0) @binding(3) var<storage, read> gradients: array<vec4f>;
@group(0) @binding(4) var<storage, read_write> first: array<vec4f>;
@group(0) @binding(5) var<storage, read_write> second: array<vec4f>;
@group(0) @binding(6) var<storage, read> factor: array<f32>;

// 1 - beta^t = -expm1(t ln beta). By its series where t ln beta is small: 1 - exp(x) would lose 3 digits in the
// first steps, where the second moment's correction is 0.001.
fn correction(log_beta: f32) -> f32 {
    let x = f32(step.step + 1u) * log_beta;
    if (x > -0.1) {
        return -x * (1.0 + x / 2.0 * (1.0 + x / 3.0 * (1.0 + x / 4.0 * (1.0 + x / 5.0))));
    }
    return 1.0 - exp(x);
}

fn update(i: u32, scale: f32) {
    let p = parameters[i];
    let g = scale * gradients[i] + step.weight_decay * p;
    let m = 0.9 * first[i] + 0.1 * g;
    let v = 0.999 * second[i] + 0.001 * g * g;
    first[i] = m;
    second[i] = v;
    let m_hat = m / correction(-0.105360515657826);   // ln 0.9
    let v_hat = v / correction(-0.001000500333584);   // ln 0.999
    parameters[i] = p - step.learning_rate * m_hat / (sqrt(v_hat) + 1e-8);
}

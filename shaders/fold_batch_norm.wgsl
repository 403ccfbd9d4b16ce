// w' [O, fan_in] = w gamma / sqrt(variance + eps);   b' [O] = (b - mean) gamma / sqrt(variance + eps) + beta
// One invocation a weight; the first weight of an output channel also makes its bias.
@group(0) @binding(0) var<uniform> params: FoldAfter;
@group(0) @binding(1) var<storage, read> weight: array<f32>;
@group(0) @binding(2) var<storage, read> bias: array<f32>;
@group(0) @binding(3) var<storage, read> gamma: array<f32>;
@group(0) @binding(4) var<storage, read> beta: array<f32>;
@group(0) @binding(5) var<storage, read> mean: array<f32>;
@group(0) @binding(6) var<storage, read> variance: array<f32>;
@group(0) @binding(7) var<storage, read_write> weight_out: array<f32>;
@group(0) @binding(8) var<storage, read_write> bias_out: array<f32>;

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
    let o = i / params.fan_in;
    let scale = gamma[o] / sqrt(variance[o] + params.epsilon);
    weight_out[i] = weight[i] * scale;
    if (i % params.fan_in == 0u) {
        bias_out[o] = (bias[o] - mean[o]) * scale + beta[o];
    }
}

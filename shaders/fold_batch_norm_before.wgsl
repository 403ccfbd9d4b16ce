// With s = gamma / sqrt(variance + eps) by input channel:
//   w' [O, each] = w s;   b' [O] = b + sum over the inputs of w (beta - mean s)
// One invocation an output channel; group_outputs of them see the same `each` input channels.
@group(0) @binding(0) var<uniform> params: FoldBefore;
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
    let o = (group.y * groups.x + group.x) * 64u + local;
    if (o >= params.outputs) {
        return;
    }
    let first = o / params.group_outputs * params.each;
    var sum = bias[o];
    for (var i = 0u; i < params.each; i++) {
        let c = first + i;
        let scale = gamma[c] / sqrt(variance[c] + params.epsilon);
        let w = weight[o * params.each + i];
        sum += w * (beta[c] - mean[c] * scale);
        weight_out[o * params.each + i] = w * scale;
    }
    bias_out[o] = sum;
}

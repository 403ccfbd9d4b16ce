// Cross-entropy of logits [N, D, L/4, H, W, 4] and labels [N, 1, D, H, W] (outside 0 … L-1: ignored):
//   loss = Σ w[t] ce / Σ w[t],  ce = -log softmax(z)[t];   dz = upstream w[t] (softmax(z) - onehot(t)) / Σ w[t]
struct Params { plane: u32, voxels: u32, threads: u32, first: u32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(3) var<storage, read> weights: array<f32>;
@group(0) @binding(4) var<storage, read_write> partials: array<vec4f>;   // (Σ w ce, Σ w, 0, 0)

// Invocation t sums over every threads-th voxel.
@compute @workgroup_size(64)
fn sums(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
    let t = group.x * 64u + local;
    var loss = 0.0;
    var weight = 0.0;
    for (var voxel = t; voxel < params.voxels; voxel += params.threads) {
        let label = labels[voxel];
        if (counts(label)) {
            let w = weights[u32(label)];
            loss += w * voxel_cross_entropy(column(column_at(voxel, params.plane), params.plane), label);
            weight += w;
        }
    }
    partials[params.first + t] = vec4f(loss, weight, 0.0, 0.0);
}

struct Merge { partials: u32 }
@group(0) @binding(0) var<uniform> merging: Merge;
@group(0) @binding(1) var<storage, read> parts: array<vec4f>;
@group(0) @binding(2) var<storage, read_write> loss_out: array<vec4f>;
@group(0) @binding(3) var<storage, read_write> weight_out: array<vec4f>;

// One workgroup.
@compute @workgroup_size(64)
fn merge(@builtin(local_invocation_index) local: u32) {
    var sum = vec4f(0.0);
    for (var p = local; p < merging.partials; p += 64u) {
        sum += parts[p];
    }
    sum = sum64(local, sum);
    if (local == 0u) {
        loss_out[0] = vec4f(select(0.0, sum.x / sum.y, sum.y > 0.0), 0.0, 0.0, 0.0);
        weight_out[0] = vec4f(sum.y, 0.0, 0.0, 0.0);
    }
}

@group(0) @binding(4) var<storage, read> weight_sum: array<f32>;
@group(0) @binding(5) var<storage, read> upstream: array<f32>;
@group(0) @binding(6) var<storage, read_write> dlogits: array<vec4f>;

// One invocation a voxel.
@compute @workgroup_size(64)
fn gradient(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let voxel = (group.y * groups.x + group.x) * 64u + local;
    if (voxel >= params.voxels) {
        return;
    }
    let at = column_at(voxel, params.plane);
    let label = labels[voxel];
    if (!counts(label) || !(weight_sum[0] > 0.0)) {
        for (var b = 0u; b < BLOCKS; b++) {
            dlogits[at + b * params.plane] = vec4f(0.0);
        }
        return;
    }
    let z = column(at, params.plane);
    let high = highest(z);
    let inverse = 1.0 / exp_sum(z, high);
    let scale = upstream[0] * weights[u32(label)] / weight_sum[0];
    for (var b = 0u; b < BLOCKS; b++) {
        dlogits[at + b * params.plane] = scale * (exp(z[b] - high) * inverse - one_hot(b, label));
    }
}

// Cross-entropy of logits [N, D, L/4, H, W, 4] and labels [N, 1, D, H, W] (outside 0 … L-1: ignored):
//   loss = Σ w[t] ce / Σ w[t],  ce = -log softmax(z)[t];   dz = upstream w[t] (softmax(z) - onehot(t)) / Σ w[t]
@group(0) @binding(0) var<uniform> summing: Sums;
@group(0) @binding(3) var<storage, read> weights: array<f32>;
@group(0) @binding(4) var<storage, read_write> partials: array<vec4f>;   // (Σ w ce, Σ w, 0, 0)

@compute @workgroup_size(64)
fn sums(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
    let t = group.x * 64u + local;
    let walk = summing.walk;
    var loss = 0.0;
    var weight = 0.0;
    var cursor = first_element(walk, t, 0u);
    while (cursor.element < cursor.end) {
        let label = labels[cursor.element];
        if (counts(label)) {
            let w = weights[u32(label)];
            loss += w * voxel_cross_entropy(column(cursor.at, walk.plane), label);
            weight += w;
        }
        cursor = next_element(walk, cursor);
    }
    let both = workgroup_sum(local, vec4f(loss, weight, 0.0, 0.0));
    if (leaves(local)) {
        partials[summing.first + position(t)] = both;
    }
}

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

const VECTORS: u32 = 8u;
@group(0) @binding(0) var<uniform> planes: Planes;
@group(0) @binding(4) var<storage, read> weight_sum: array<f32>;
@group(0) @binding(5) var<storage, read> upstream: array<f32>;
@group(0) @binding(6) var<storage, read_write> dlogits: array<vec4f>;

// One invocation: VECTORS voxels of a plane, every eighth of a run that eight invocations walk together.
@compute @workgroup_size(64)
fn gradient(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let slice = group.z * groups.y + group.y;
    let size = select(0u, planes.plane, slice < planes.planes);
    let sum = weight_sum[0];
    let scale = select(0.0, upstream[0] / sum, sum > 0.0);
    let first = (group.x * 8u + local / 8u) * VECTORS * 8u + local % 8u;
    for (var k = 0u; k < VECTORS; k++) {
        let i = first + k * 8u;
        if (i < size) {
            let at = slice * BLOCKS * planes.plane + i;
            let label = labels[slice * planes.plane + i];
            let valid = counts(label) && scale != 0.0;
            let weight = select(0.0, scale * weights[u32(select(0.0, label, valid))], valid);
            let z = column(at, planes.plane);
            let high = highest(z);
            let inverse = 1.0 / exp_sum(z, high);
            for (var b = 0u; b < BLOCKS; b++) {
                let slope = weight * (exp(z[b] - high) * inverse - one_hot(b, label));
                dlogits[at + b * planes.plane] = select(vec4f(0.0), slope, valid);
            }
        }
    }
}

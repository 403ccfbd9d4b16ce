// Sums behind the Dice losses, and their gradient. p = softmax(logits), t = one-hot of the label, over voxels whose label
// is not negative:
//   sums:     Σ p·t, Σ p (or Σ p²), Σ t for every class
//   gradient: d logit_l = p_l (q_l − Σ_m p_m q_m)  with  q = weights_0 t + weights_1 (or 2 weights_1 p), the derivative of
//             the loss by p
// logits [planes, BLOCKS, area] of vec4 (a run of slices), labels [N·D·area], one f32 a voxel.
// sums: invocation i of `threads` takes voxels i, i + threads, … and writes partial [3, BLOCKS] of vec4.
// total: invocation i < 3·BLOCKS adds all partials in order. gradient: one invocation a voxel.
struct Params { classes: u32, area: u32, first_voxel: u32, voxels: u32, threads: u32, first_partial: u32 }
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> logits: array<vec4f>;
@group(0) @binding(2) var<storage, read> labels: array<f32>;
@group(0) @binding(3) var<storage, read> weights: array<vec4f>;
@group(0) @binding(4) var<storage, read_write> output: array<vec4f>;

const BLOCKS: u32 = 1u;
const SQUARED: u32 = 0u;

fn softmax(voxel: u32) -> array<vec4f, BLOCKS> {
    var p: array<vec4f, BLOCKS>;
    let at = voxel / params.area * BLOCKS * params.area + voxel % params.area;
    var highest = -3.4e38;
    for (var b = 0u; b < BLOCKS; b++) {
        let exists = vec4u(0u, 1u, 2u, 3u) + 4u * b < vec4u(params.classes);
        p[b] = select(vec4f(-3.4e38), logits[at + b * params.area], exists);
        highest = max(highest, max(max(p[b].x, p[b].y), max(p[b].z, p[b].w)));
    }
    var sum = 0.0;
    for (var b = 0u; b < BLOCKS; b++) {
        p[b] = exp(p[b] - highest);
        sum += p[b].x + p[b].y + p[b].z + p[b].w;
    }
    for (var b = 0u; b < BLOCKS; b++) {
        p[b] = p[b] / sum;
    }
    return p;
}

fn one_hot(label: u32, block: u32) -> vec4f {
    return select(vec4f(0.0), vec4f(1.0), vec4u(0u, 1u, 2u, 3u) + 4u * block == vec4u(label));
}

@compute @workgroup_size(64)
fn sums(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let i = (group.y * groups.x + group.x) * 64u + local;
    if (i >= params.threads) {
        return;
    }
    var both: array<vec4f, BLOCKS>;
    var predicted: array<vec4f, BLOCKS>;
    var truth: array<vec4f, BLOCKS>;
    for (var voxel = i; voxel < params.voxels; voxel += params.threads) {
        let label = labels[params.first_voxel + voxel];
        if (label >= 0.0) {
            var p = softmax(voxel);
            for (var b = 0u; b < BLOCKS; b++) {
                let t = one_hot(u32(label), b);
                both[b] += p[b] * t;
                predicted[b] += select(p[b], p[b] * p[b], SQUARED == 1u);
                truth[b] += t;
            }
        }
    }
    let at = (params.first_partial + i) * 3u * BLOCKS;
    for (var b = 0u; b < BLOCKS; b++) {
        output[at + b] = both[b];
        output[at + BLOCKS + b] = predicted[b];
        output[at + 2u * BLOCKS + b] = truth[b];
    }
}

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
    let at = voxel / params.area * BLOCKS * params.area + voxel % params.area;
    let label = labels[params.first_voxel + voxel];
    if (label < 0.0) {
        for (var b = 0u; b < BLOCKS; b++) {
            output[at + b * params.area] = vec4f(0.0);
        }
        return;
    }
    var p = softmax(voxel);
    var q: array<vec4f, BLOCKS>;
    var mean = 0.0;
    for (var b = 0u; b < BLOCKS; b++) {
        let slope = weights[BLOCKS + b] * select(vec4f(1.0), 2.0 * p[b], SQUARED == 1u);
        q[b] = weights[b] * one_hot(u32(label), b) + slope;
        mean += dot(p[b], q[b]);
    }
    for (var b = 0u; b < BLOCKS; b++) {
        output[at + b * params.area] = p[b] * (q[b] - mean);
    }
}

// Sums behind the Dice losses, and their gradient. p = softmax(logits), t = one-hot of the label, over voxels whose label
// is not negative:
//   sums:     Σ p·t, Σ p (or Σ p²), Σ t for every class
//   gradient: d logit_l = p_l (q_l − Σ_m p_m q_m)  with  q = weights_0 t + weights_1 (or 2 weights_1 p), the derivative of
//             the loss by p
// logits [planes, BLOCKS, area] of vec4 (a run of slices), labels [N·D·area], one f32 a voxel.
// sums: each invocation writes a partial [3, BLOCKS] of vec4 (common/walk.wgsl).
// total: invocation i < 3·BLOCKS adds all partials in order. gradient: VECTORS voxels of a plane an invocation.
@group(0) @binding(0) var<uniform> summing: Sums;
@group(0) @binding(0) var<uniform> planes: Planes;
@group(0) @binding(1) var<storage, read> logits: array<vec4f>;
@group(0) @binding(2) var<storage, read> labels: array<f32>;
@group(0) @binding(3) var<storage, read> weights: array<vec4f>;
@group(0) @binding(4) var<storage, read_write> output: array<vec4f>;

const BLOCKS: u32 = 1u;
const SQUARED: u32 = 0u;
const VECTORS: u32 = 8u;

fn softmax(at: u32, plane: u32, classes: u32) -> array<vec4f, BLOCKS> {
    var p: array<vec4f, BLOCKS>;
    var highest = -3.4e38;
    for (var b = 0u; b < BLOCKS; b++) {
        let exists = vec4u(0u, 1u, 2u, 3u) + 4u * b < vec4u(classes);
        p[b] = select(vec4f(-3.4e38), logits[at + b * plane], exists);
        highest = max(highest, max(max(p[b].x, p[b].y), max(p[b].z, p[b].w)));
    }
    var sum = 0.0;
    for (var b = 0u; b < BLOCKS; b++) {
        p[b] = exp(p[b] - highest);
        sum += p[b].x + p[b].y + p[b].z + p[b].w;
    }
    let inverse = 1.0 / sum;
    for (var b = 0u; b < BLOCKS; b++) {
        p[b] *= inverse;
    }
    return p;
}

fn one_hot(label: u32, block: u32) -> vec4f {
    return select(vec4f(0.0), vec4f(1.0), vec4u(0u, 1u, 2u, 3u) + 4u * block == vec4u(label));
}

@compute @workgroup_size(64)
fn sums(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
    let t = group.x * 64u + local;
    let walk = summing.walk;
    var both: array<vec4f, BLOCKS>;
    var predicted: array<vec4f, BLOCKS>;
    var truth: array<vec4f, BLOCKS>;
    var cursor = first_element(walk, t, 0u);
    while (cursor.element < cursor.end) {
        let label = labels[summing.first_voxel + cursor.element];
        if (label >= 0.0) {
            var p = softmax(cursor.at, walk.plane, summing.classes);
            for (var b = 0u; b < BLOCKS; b++) {
                let t = one_hot(u32(label), b);
                both[b] += p[b] * t;
                predicted[b] += select(p[b], p[b] * p[b], SQUARED == 1u);
                truth[b] += t;
            }
        }
        cursor = next_element(walk, cursor);
    }
    let at = (summing.first_partial + t) * 3u * BLOCKS;
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
    let slice = group.z * groups.y + group.y;
    let size = select(0u, planes.plane, slice < planes.planes);
    // Read before any branch: one address for all, which software Vulkan reads lane by lane inside one.
    var scales: array<vec4f, 2u * BLOCKS>;
    for (var b = 0u; b < 2u * BLOCKS; b++) {
        scales[b] = weights[b];
    }
    let first = (group.x * 8u + local / 8u) * VECTORS * 8u + local % 8u;
    for (var k = 0u; k < VECTORS; k++) {
        let i = first + k * 8u;
        if (i < size) {
            let at = slice * BLOCKS * planes.plane + i;
            let label = labels[planes.first_voxel + slice * planes.plane + i];
            var p = softmax(at, planes.plane, planes.classes);
            var q: array<vec4f, BLOCKS>;
            var mean = 0.0;
            for (var b = 0u; b < BLOCKS; b++) {
                let slope = scales[BLOCKS + b] * select(vec4f(1.0), 2.0 * p[b], SQUARED == 1u);
                q[b] = scales[b] * one_hot(u32(max(label, 0.0)), b) + slope;
                mean += dot(p[b], q[b]);
            }
            for (var b = 0u; b < BLOCKS; b++) {
                output[at + b * planes.plane] = select(vec4f(0.0), p[b] * (q[b] - mean), label >= 0.0);
            }
        }
    }
}

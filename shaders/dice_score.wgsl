// From the sums behind the Dice losses to the loss and its derivatives by the sums. With S = 2 Σpt / (Σp + Σt + eps) of each
// foreground label and L labels in all:
//   soft:  loss = 1 − mean S
//   hinge: loss = 1 − mean S + 10 mean (10 min(S, 0.1) − 1)² + 10 mean (100 min(S, 0.01) − 1)²
// total: adds the partials [partials, 3, BLOCKS] of vec4 in order, one invocation a number; shared_total: one workgroup a
// number, for GPUs.
// loss: one invocation writes loss[0] and weights [2, BLOCKS] of vec4: d loss / d Σpt, d loss / d Σp.
// scale: weights times the upstream gradient.
@group(0) @binding(0) var<uniform> params: ScoreParams;
@group(0) @binding(1) var<storage, read> input: array<f32>;
@group(0) @binding(2) var<storage, read> upstream: array<f32>;
@group(0) @binding(3) var<storage, read_write> output: array<f32>;
@group(0) @binding(4) var<storage, read_write> loss: array<f32>;

const BLOCKS: u32 = 1u;
const HINGE: u32 = 0u;

@compute @workgroup_size(64)
fn total(@builtin(global_invocation_id) id: vec3u) {
    if (id.x >= 12u * BLOCKS) {
        return;
    }
    var sum = 0.0;
    for (var i = 0u; i < params.partials; i++) {
        sum += input[i * 12u * BLOCKS + id.x];
    }
    output[id.x] = sum;
}

var<workgroup> shares: array<f32, 256>;
@compute @workgroup_size(256)
fn shared_total(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
    var sum = 0.0;
    for (var i = local; i < params.partials; i += 256u) {
        sum += input[i * 12u * BLOCKS + group.x];
    }
    shares[local] = sum;
    for (var half = 128u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if (local < half) {
            shares[local] += shares[local + half];
        }
    }
    if (local == 0u) {
        output[group.x] = shares[0];
    }
}

@compute @workgroup_size(64)
fn score(@builtin(global_invocation_id) id: vec3u) {
    if (id.x != 0u) {
        return;
    }
    let labels = f32(params.classes - 1u);
    var value = 1.0;
    for (var l = 0u; l < 4u * BLOCKS; l++) {
        var by_both = 0.0;
        var by_predicted = 0.0;
        if (l > 0u && l < params.classes) {
            let below = input[4u * BLOCKS + l] + input[8u * BLOCKS + l] + 1e-5;
            let s = 2.0 * input[l] / below;
            value -= s / labels;
            var slope = -1.0 / labels;
            if (HINGE == 1u) {
                let low = 10.0 * min(s, 0.1) - 1.0;
                let very_low = 100.0 * min(s, 0.01) - 1.0;
                value += 10.0 * (low * low + very_low * very_low) / labels;
                slope += 10.0 * (20.0 * low + 200.0 * very_low) / labels;
            }
            by_both = slope * 2.0 / below;
            by_predicted = -slope * s / below;
        }
        output[l] = by_both;
        output[4u * BLOCKS + l] = by_predicted;
    }
    loss[0] = value;
}

@compute @workgroup_size(64)
fn scale(@builtin(global_invocation_id) id: vec3u) {
    if (id.x < 8u * BLOCKS) {
        output[id.x] = input[id.x] * upstream[0];
    }
}

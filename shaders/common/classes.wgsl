// Logits [N, D, L/4, H, W, 4] and labels [N, 1, D, H, W] of a voxel; the softmax over its classes.
const CLASSES: u32 = 9u;
const BLOCKS: u32 = 3u;   // ceil(CLASSES / 4)
@group(0) @binding(1) var<storage, read> logits: array<vec4f>;
@group(0) @binding(2) var<storage, read> labels: array<f32>;

// Position of a voxel's first four logits; the next four are a plane further. A plane is H · W.
fn column_at(voxel: u32, plane: u32) -> u32 {
    return (voxel / plane) * BLOCKS * plane + voxel % plane;
}

// A voxel's logits; lanes that pad the last block are so low that their exponential is 0.
fn column(at: u32, plane: u32) -> array<vec4f, BLOCKS> {
    var z: array<vec4f, BLOCKS>;
    for (var b = 0u; b < BLOCKS; b++) {
        let exists = vec4u(0u, 1u, 2u, 3u) + 4u * b < vec4u(CLASSES);
        z[b] = select(vec4f(-3.0e38), logits[at + b * plane], exists);
    }
    return z;
}

fn counts(label: f32) -> bool {
    return label >= 0.0 && label < f32(CLASSES);
}

// 1 in the lane of the class, 0 elsewhere.
fn one_hot(block: u32, label: f32) -> vec4f {
    return select(vec4f(0.0), vec4f(1.0), vec4u(0u, 1u, 2u, 3u) + 4u * block == vec4u(u32(label)));
}

fn highest(z: array<vec4f, BLOCKS>) -> f32 {
    var high = z[0];
    for (var b = 1u; b < BLOCKS; b++) {
        high = max(high, z[b]);
    }
    return max(max(high.x, high.y), max(high.z, high.w));
}

fn exp_sum(z: array<vec4f, BLOCKS>, high: f32) -> f32 {
    var sum = vec4f(0.0);
    for (var b = 0u; b < BLOCKS; b++) {
        sum += exp(z[b] - high);
    }
    return sum.x + sum.y + sum.z + sum.w;
}

// -log softmax at the label. Not negative: the highest logit's term makes the sum at least 1.
fn voxel_cross_entropy(z: array<vec4f, BLOCKS>, label: f32) -> f32 {
    let high = highest(z);
    var own = 0.0;
    for (var b = 0u; b < BLOCKS; b++) {
        own += dot(z[b], one_hot(b, label));
    }
    return (high - own) + max(log(exp_sum(z, high)), 0.0);
}

// Probabilities of logits [N, D, C/4, H, W, 4], each voxel's channels on their own: the softmax over them, or with SIGMOID the
// sigmoid of each, 1 / (1 + exp(-x)). Channels past CHANNELS stay zero. One invocation a voxel.
//   softmax's gradient: dx = y (dy - Σ dy y);   sigmoid's: dx = dy y (1 - y)
const CHANNELS: u32 = 9u;
const SIGMOID: u32 = 0u;
const BLOCKS: u32 = (CHANNELS + 3u) / 4u;
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> logits: array<vec4f>;
@group(0) @binding(2) var<storage, read_write> output: array<vec4f>;

fn exists(block: u32) -> vec4<bool> {
    return vec4u(0u, 1u, 2u, 3u) + 4u * block < vec4u(CHANNELS);
}

fn total(v: vec4f) -> f32 {
    return v.x + v.y + v.z + v.w;
}

fn first_block(voxel: u32) -> u32 {
    return (voxel / params.plane) * BLOCKS * params.plane + voxel % params.plane;
}

@compute @workgroup_size(64)
fn forward(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let voxel = (group.y * groups.x + group.x) * 64u + local;
    if (voxel >= params.voxels) {
        return;
    }
    let at = first_block(voxel);
    if (SIGMOID == 1u) {
        for (var b = 0u; b < BLOCKS; b++) {
            let y = 1.0 / (1.0 + exp(-logits[at + b * params.plane]));
            output[at + b * params.plane] = select(vec4f(), y, exists(b));
        }
        return;
    }
    var highest = vec4f(logits[at].x);
    for (var b = 0u; b < BLOCKS; b++) {
        highest = max(highest, select(highest, logits[at + b * params.plane], exists(b)));
    }
    let most = max(max(highest.x, highest.y), max(highest.z, highest.w));
    var sum = vec4f();
    for (var b = 0u; b < BLOCKS; b++) {
        sum += select(vec4f(), exp(logits[at + b * params.plane] - most), exists(b));
    }
    let scale = 1.0 / total(sum);
    for (var b = 0u; b < BLOCKS; b++) {
        let y = scale * exp(logits[at + b * params.plane] - most);
        output[at + b * params.plane] = select(vec4f(), y, exists(b));
    }
}

@group(0) @binding(1) var<storage, read> y: array<vec4f>;
@group(0) @binding(2) var<storage, read> dy: array<vec4f>;
@group(0) @binding(3) var<storage, read_write> dx: array<vec4f>;

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
    let at = first_block(voxel);
    var sum = vec4f();
    if (SIGMOID == 0u) {
        for (var b = 0u; b < BLOCKS; b++) {
            sum += dy[at + b * params.plane] * y[at + b * params.plane];
        }
    }
    let mean = total(sum);
    for (var b = 0u; b < BLOCKS; b++) {
        let i = at + b * params.plane;
        let slope = select(dy[i] - mean, dy[i] * (1.0 - y[i]), SIGMOID == 1u);
        dx[i] = y[i] * slope;
    }
}

// Fully-connected layer: y [N, O] = x [N, I] · w [O, I]ᵀ + b [O].
//   dx = dy · w;   dw = dyᵀ · x;   db = Σ_n dy
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> weight: array<f32>;
@group(0) @binding(3) var<storage, read> bias: array<f32>;
@group(0) @binding(4) var<storage, read_write> y: array<f32>;

// One workgroup: one output of up to four samples; its invocations stride over the inputs, so that weights are read once,
// side by side.
@compute @workgroup_size(64)
fn forward(
    @builtin(workgroup_id) group: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let o = group.x;
    let n = group.y * 4u;
    let last = params.samples - 1u;
    let rows = min(vec4u(n) + vec4u(0u, 1u, 2u, 3u), vec4u(last)) * params.inputs;
    var sum = vec4f(0.0);
    for (var i = local; i < params.inputs; i += 64u) {
        sum += weight[o * params.inputs + i] * vec4f(x[rows.x + i], x[rows.y + i], x[rows.z + i], x[rows.w + i]);
    }
    sum = sum64(local, sum) + bias[o];
    if (local < 4u && n + local < params.samples) {
        y[(n + local) * params.outputs + o] = sum[local];
    }
}

@group(0) @binding(1) var<storage, read> dy: array<f32>;
@group(0) @binding(3) var<storage, read_write> partials: array<f32>;   // [chunks, N, I]

// Invocation (i, n, chunk): the part of dx[n, i] from one chunk of outputs.
@compute @workgroup_size(64)
fn input_gradient(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
    let i = group.x * 64u + local;
    if (i >= params.inputs) {
        return;
    }
    let n = group.y;
    var sum = 0.0;
    for (var o = group.z * params.chunk; o < min((group.z + 1u) * params.chunk, params.outputs); o++) {
        sum += dy[n * params.outputs + o] * weight[o * params.inputs + i];
    }
    partials[(group.z * params.samples + n) * params.inputs + i] = sum;
}

@group(0) @binding(1) var<storage, read> parts: array<f32>;
@group(0) @binding(2) var<storage, read_write> total: array<f32>;

// Invocation j: an element of dx, summed over the chunks.
@compute @workgroup_size(64)
fn sum_chunks(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
    let j = group.x * 64u + local;
    let count = params.samples * params.inputs;
    if (j >= count) {
        return;
    }
    var sum = 0.0;
    for (var c = 0u; c < params.chunks; c++) {
        sum += parts[c * count + j];
    }
    total[j] = sum;
}

@group(0) @binding(2) var<storage, read> x_again: array<f32>;
@group(0) @binding(3) var<storage, read_write> dw: array<f32>;
@group(0) @binding(4) var<storage, read_write> db: array<f32>;

// Invocation (i, o): dw[o, i]; those of i = 0 also make db[o].
@compute @workgroup_size(64)
fn weight_gradient(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
    let i = group.x * 64u + local;
    let o = group.y;
    if (i >= params.inputs) {
        return;
    }
    var sum = 0.0;
    var upstream = 0.0;
    for (var n = 0u; n < params.samples; n++) {
        let d = dy[n * params.outputs + o];
        sum += d * x_again[n * params.inputs + i];
        upstream += d;
    }
    dw[o * params.inputs + i] = sum;
    if (i == 0u) {
        db[o] = upstream;
    }
}

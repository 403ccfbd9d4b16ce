// Bias gradient: db[o] = Σ_{n, z, y, x} g[n, o, z, y, x] in two stages. g: slices of [N·D, C/4, H·W] vec4.
// `partial`: each invocation walks a run of one channel block (common/walk.wgsl); it or its workgroup leaves a sum
// [blocks][partials] (common/workgroup_reduction.wgsl).
// `reduce`: one workgroup a channel block.
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> source: array<vec4f>;
@group(0) @binding(2) var<storage, read_write> sums: array<vec4f>;

@compute @workgroup_size(64)
fn partial(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
    let t = group.x * 64u + local;
    let walk = params.walk;
    var sum: vec4f;
    var cursor = first_element(walk, t, group.y);
    while (cursor.element < cursor.end) {
        sum += source[cursor.at];
        cursor = next_element(walk, cursor);
    }
    sum = workgroup_sum(local, sum);
    if (leaves(local)) {
        sums[group.y * params.partials + params.first + position(t)] = sum;
    }
}

@group(0) @binding(2) var<storage, read_write> gradient: array<vec4f>;

@compute @workgroup_size(64)
fn reduce(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
    var sum: vec4f;
    for (var i = local; i < params.partials; i += 64u) {
        sum += source[group.x * params.partials + i];
    }
    sum = sum64(local, sum);
    if (local == 0u) {
        gradient[group.x] = sum;
    }
}

// What the gradients of all parameters are multiplied by, so that together they are no longer than `longest`:
//   min(1, longest / (sqrt(sum g²) + 1e-6))
// squares: `threads` invocations sum every so manyeth number of one gradient. factor: one workgroup adds what all of them left.
@group(0) @binding(0) var<uniform> params: NormParams;
@group(0) @binding(1) var<storage, read> gradient: array<f32>;
@group(0) @binding(2) var<storage, read_write> output: array<f32>;

@compute @workgroup_size(64)
fn squares(@builtin(global_invocation_id) id: vec3u) {
    if (id.x >= params.threads) {
        return;
    }
    var sum = 0.0;
    for (var i = id.x; i < params.count; i += params.threads) {
        sum += gradient[i] * gradient[i];
    }
    output[params.first + id.x] = sum;
}

@group(0) @binding(1) var<storage, read> partial: array<f32>;

var<workgroup> sums: array<f32, 64>;

@compute @workgroup_size(64)
fn factor(@builtin(local_invocation_index) local: u32) {
    var sum = 0.0;
    for (var i = local; i < params.threads; i += 64u) {
        sum += partial[i];
    }
    sums[local] = sum;
    workgroupBarrier();
    if (local == 0u) {
        var total = 0.0;
        for (var i = 0u; i < 64u; i++) {
            total += sums[i];
        }
        output[0] = min(1.0, params.longest / (sqrt(total) + 1e-6));
    }
}

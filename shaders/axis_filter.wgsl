// y[i] = sum of w[i, t] x[first(i) + t] along one axis of [N, C, D, H, W], positions beyond the ends being the ends'. A row of taps
// [first, count, w...] for each batch item and position. One invocation an element.
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> taps: array<f32>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let i = (group.y * groups.x + group.x) * 64u + local;
    if (i >= params.count) {
        return;
    }
    let at = i / params.inner % params.length;
    let row = (i / params.item * params.length + at) * params.row;
    let first = i32(taps[row]);
    let count = min(u32(taps[row + 1u]), params.row - 2u);
    let line = i - at * params.inner;
    var sum = 0.0;
    for (var t = 0u; t < count; t++) {
        let source = u32(clamp(first + i32(t), 0, i32(params.length) - 1));
        sum += taps[row + 2u + t] * x[line + source * params.inner];
    }
    y[i] = sum;
}

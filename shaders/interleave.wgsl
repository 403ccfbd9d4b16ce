// Columns of a weight [O, C K, 1, 1, 1] from c K + k to k C + c. One invocation a number.
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> weight: array<f32>;
@group(0) @binding(2) var<storage, read_write> interleaved: array<f32>;

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
    let columns = params.channels * params.offsets;
    let row = i / columns;
    let column = i - row * columns;
    let k = column / params.channels;
    let c = column - k * params.channels;
    interleaved[i] = weight[row * columns + c * params.offsets + k];
}

// Copies a run of channels from one map to another: output channel c in [first, first + count) takes input channel
// c + shift. Lanes of the first block below `first` keep what they hold; lanes from first + count on become zero.
// input [planes, in_blocks, area] of vec4, output [planes, out_blocks, area] of vec4.
// One invocation an output vec4, blocks from first / 4 on.
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> input: array<vec4f>;
@group(0) @binding(2) var<storage, read_write> output: array<vec4f>;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let i = (group.y * groups.x + group.x) * 64u + local;
    if (i >= params.vectors) {
        return;
    }
    let at = i % params.area;
    let block = params.first / 4u + i / params.area % params.covered;
    let plane = i / params.area / params.covered;
    let target_index = (plane * params.out_blocks + block) * params.area + at;
    var value = vec4f(0.0);
    if (block * 4u < params.first) {
        value = output[target_index];
    }
    for (var lane = 0u; lane < 4u; lane++) {
        let c = block * 4u + lane;
        if (c >= params.first + params.count) {
            value[lane] = 0.0;
        } else if (c >= params.first) {
            let channel = u32(i32(c) + params.shift);
            value[lane] = input[(plane * params.in_blocks + channel / 4u) * params.area + at][channel % 4u];
        }
    }
    output[target_index] = value;
}

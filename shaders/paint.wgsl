// y = mean[l] + sigma[l] n(p) for the label l of each voxel: labels [N, 1, D, H, W], table [N, L, 2]. One invocation a voxel.
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<uniform> step: StepScalars;
@group(0) @binding(2) var<storage, read> labels: array<f32>;
@group(0) @binding(3) var<storage, read> table: array<f32>;
@group(0) @binding(4) var<storage, read_write> y: array<f32>;

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
    var label = u32(max(labels[i], 0.0));
    label = select(0u, label, label < params.labels);
    let entry = 2u * (i / params.volume * params.labels + label);
    var value = table[entry];
    if (table[entry + 1u] != 0.0) {
        value += table[entry + 1u] * normal(i, stream_of(params.id));
    }
    y[i] = value;
}

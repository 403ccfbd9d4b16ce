// a += (1 - d) (x - a) over a whole arena, d = min(decay, (1 + t) / (10 + t)) at step t. One invocation a vec4.
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<uniform> step: StepScalars;
@group(0) @binding(2) var<storage, read> x: array<vec4f>;
@group(0) @binding(3) var<storage, read_write> average: array<vec4f>;

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
    let t = f32(step.step);
    let share = 1.0 - min(params.decay, (1.0 + t) / (10.0 + t));
    average[i] += share * (x[i] - average[i]);
}

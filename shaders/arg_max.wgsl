// label = arg max over the classes of logits [N, D, L/4, H, W, 4] -> [N, 1, D, H, W], the first of equal ones;
// -1 where a logit is not finite. One invocation a voxel.
const CLASSES: u32 = 9u;
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> logits: array<vec4f>;
@group(0) @binding(2) var<storage, read_write> labels: array<f32>;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    const BLOCKS = (CLASSES + 3u) / 4u;
    let voxel = (group.y * groups.x + group.x) * 64u + local;
    if (voxel >= params.voxels) {
        return;
    }
    let at = (voxel / params.plane) * BLOCKS * params.plane + voxel % params.plane;
    var best = logits[at].x;
    var label = 0u;
    // By their bits, since compilers may take for granted that numbers are finite.
    var magnitudes = vec4u();
    for (var b = 0u; b < BLOCKS; b++) {
        let z = logits[at + b * params.plane];
        magnitudes = max(magnitudes, bitcast<vec4u>(z) & vec4u(0x7fffffffu));
        for (var lane = 0u; lane < 4u; lane++) {
            let value = select(select(z.x, z.y, lane == 1u), select(z.z, z.w, lane == 3u), lane >= 2u);
            if (4u * b + lane < CLASSES && value > best) {
                best = value;
                label = 4u * b + lane;
            }
        }
    }
    let is_finite = all(magnitudes < vec4u(0x7f800000u));
    labels[voxel] = select(-1.0, f32(label), is_finite);
}

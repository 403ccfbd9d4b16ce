// The entry points of an optimiser's `update(i, scale)` of one vec4 of the arenas: with gradients as they are, and multiplied by
// `factor`, from gradient_norm.wgsl. Padding is updated too, which nobody reads.
@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let i = (group.y * groups.x + group.x) * 64u + local;
    if (i < params.count) {
        update(i, 1.0);
    }
}

@compute @workgroup_size(64)
fn clipped(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let i = (group.y * groups.x + group.x) * 64u + local;
    if (i < params.count) {
        update(i, factor[0]);
    }
}

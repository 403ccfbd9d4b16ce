// g of conv3d_weight_gradient.wgsl read where it is used.
@group(0) @binding(2) var<storage, read> g: array<vec4f>;
var<private> g_at: i32;
var<private> g_row: i32;
var<private> g_block: i32;

fn load_upstream(at: i32, oy: i32, block: i32, lane: i32) {
    g_at = at;
    g_row = oy;
    g_block = block;
}

fn upstream_at(r: u32, block: u32) -> vec4f {
    let oy = g_row + i32(r);
    let valid = oy < params.height && g_block + i32(block) < params.out_blocks;
    let at = g_at + i32(block) * params.height * params.width + oy * params.g_stride_row;
    return select(vec4f(), g[select(0, at, valid)], valid);
}

@compute @workgroup_size(64)
fn plain(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    accumulate((group.y * groups.x + group.x) * 64u + local, group.z, 0);
}

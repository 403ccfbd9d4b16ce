// g of conv3d_weight_gradient.wgsl read one vec4 a lane by eight lanes and handed round by shuffles, as in
// conv3d_lanes.wgsl. Chunks start at multiples of the subgroup size, so that a subgroup has one. Needs subgroups of at
// least eight.
@group(0) @binding(2) var<storage, read> g: array<vec4f>;
// Rows a load brings.
const ROWS_A_LOAD: u32 = 8u / BLOCKS;
const LOADS: u32 = (ROWS + ROWS_A_LOAD - 1u) / ROWS_A_LOAD;
var<private> loaded: array<vec4f, LOADS>;

fn load_upstream(at: i32, oy: i32, block: i32, lane: i32) {
    // unroll
    for (var k = 0u; k < LOADS; k++) {
        let row = oy + i32(k * ROWS_A_LOAD) + lane / i32(BLOCKS);
        let own = lane % i32(BLOCKS);
        let valid = row < params.height && block + own < params.out_blocks;
        let i = at + own * params.height * params.width + row * params.g_stride_row;
        loaded[k] = select(vec4f(), g[select(0, i, valid)], valid);
    }
}

fn upstream_at(r: u32, block: u32) -> vec4f {
    return subgroupShuffle(loaded[r / ROWS_A_LOAD], r % ROWS_A_LOAD * BLOCKS + block);
}

@compute @workgroup_size(64)
fn lanes(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    accumulate((group.y * groups.x + group.x) * 64u + local, group.z, i32(lane & 7u));
}

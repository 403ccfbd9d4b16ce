// gather_image_gradient of obelisk_sample.wgsl for grids whose points lie more than two voxels apart
// (common/obelisk_near.wgsl). One invocation a voxel and BLOCKS times four channels, because the search for the offsets that
// bring a point takes as long as the sums. Such offsets are few, and neighbours along x skip
// the same offsets by z and y.
const BLOCKS: u32 = 1u;

var<private> sums: array<vec4f, BLOCKS>;

fn add(i: u32, at: u32, block: u32, k: u32, weight: f32) {
    if (i < BLOCKS) {
        sums[i] += weight * upstream_of(at, block + i, k);
    }
}

fn put_block(i: u32, n: u32, block: u32, voxel: u32) {
    if (i < BLOCKS) {
        put(n, block + i, voxel, sums[i]);
    }
}

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let index = (group.y * groups.x + group.x) * 64u + local;
    if (index >= params.count) {
        return;
    }
    let row = index / params.size_x;
    let x = index - row * params.size_x;
    let plane = row / params.size_y;
    let y = row - plane * params.size_y;
    let volume = plane / params.size_z;
    let z = plane - volume * params.size_z;
    let block_groups = (params.channels + 4u * BLOCKS - 1u) / (4u * BLOCKS);
    let n = volume / block_groups;
    let block = (volume - n * block_groups) * BLOCKS;

    let first_z = i32(params.first) - i32(n * params.grid_z);
    let end_z = i32(params.end) - i32(n * params.grid_z);
    let points = (params.channels * params.offsets + 3u) / 4u * params.grid_y * params.grid_x;
    for (var term = 0u; term < params.offsets * (1u + BINARY); term++) {
        let k = term >> BINARY;
        let o = offset(k, term & BINARY);
        let along_z = near(z, o.whole.z, o.fraction.z, params.grid_z, params.size_z);
        let point_z = i32(along_z.point);
        if (along_z.weight == 0.0 || point_z < first_z || point_z >= end_z) {
            continue;
        }
        let along_y = near(y, o.whole.y, o.fraction.y, params.grid_y, params.size_y);
        if (along_y.weight == 0.0) {
            continue;
        }
        let along_x = near(x, o.whole.x, o.fraction.x, params.grid_x, params.size_x);
        if (along_x.weight == 0.0) {
            continue;
        }
        let sign = select(1.0, -1.0, (term & BINARY) == 1u);
        let weight = along_z.weight * along_y.weight * along_x.weight * sign;
        let at = u32(point_z - first_z) * points + along_y.point * params.grid_x + along_x.point;
        // unroll
        for (var i = 0u; i < 4u; i++) {
            add(i, at, block, k, weight);
        }
    }
    let voxel = x * params.stride_x + y * params.stride_y + z * params.stride_z;
    // unroll
    for (var i = 0u; i < 4u; i++) {
        put_block(i, n, block, voxel);
    }
}

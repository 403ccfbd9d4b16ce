// obelisk_gather_sparse.wgsl on software Vulkan with subgroups of eight. Lanes are neighbours along x. First each lane checks
// whether one offset brings a grid point near the lanes' plane and rows. Then all lanes loop over the offsets that do. One
// invocation ROWS rows along y and BLOCKS times four channels; BLOCKS is at most two.
const ROWS: u32 = 4u;
const BLOCKS: u32 = 1u;

// [block][row]
var<private> sums: array<vec4f, BLOCKS * ROWS>;
// Of a lane's own offset, by row: its weight by z and y, and where the grid's row starts in dX.
var<private> weights: array<f32, ROWS>;
var<private> starts: array<u32, ROWS>;

fn look(row: u32, y: u32, o: Position, z_start: u32, z_weight: f32) {
    let along_y = near(y + row, o.whole.y, o.fraction.y, params.grid_y, params.size_y);
    weights[row] = z_weight * along_y.weight;
    starts[row] = z_start + along_y.point * params.grid_x;
}

fn add(row: u32, source: u32, x: Near, block: u32, k: u32) {
    let weight = x.weight * subgroupShuffle(weights[row], source);
    let at = subgroupShuffle(starts[row], source) + x.point;
    sums[row] += weight * upstream_of(at, block, k);
    if (BLOCKS > 1u) {
        sums[ROWS + row] += weight * upstream_of(at, block + 1u, k);
    }
}

fn put_row(i: u32, row: u32, n: u32, block: u32, voxel: u32, y: u32) {
    if (i < BLOCKS && y + row < params.size_y) {
        put(n, block + i, voxel + row * params.stride_y, sums[i * ROWS + row]);
    }
}

fn put_block(i: u32, n: u32, block: u32, voxel: u32, y: u32) {
    // unroll
    for (var row = 0u; row < 4u; row++) {
        put_row(i, row, n, block, voxel, y);
    }
}

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
    @builtin(subgroup_invocation_id) subgroup_lane: u32,
) {
    let lane = subgroup_lane & 7u;
    let index = ((group.y * groups.x + group.x) * 64u + local) >> 3u;
    if (index >= params.count) {
        return;
    }
    let row_eights = (params.size_x + 7u) / 8u;
    let row_groups = (params.size_y + ROWS - 1u) / ROWS;
    let block_groups = (params.channels + 4u * BLOCKS - 1u) / (4u * BLOCKS);
    let row = index / row_eights;
    let x = index % row_eights * 8u + lane;
    let y = row % row_groups * ROWS;
    let z = row / row_groups % params.size_z;
    let block = row / row_groups / params.size_z % block_groups * BLOCKS;
    let n = row / row_groups / params.size_z / block_groups;

    let terms = params.offsets * (1u + BINARY);
    let first_z = i32(params.first) - i32(n * params.grid_z);
    let end_z = i32(params.end) - i32(n * params.grid_z);
    let plane = (params.channels * params.offsets + 3u) / 4u * params.grid_y * params.grid_x;
    for (var first = 0u; first < terms; first += 8u) {
        let own = min(first + lane, terms - 1u);
        let o = offset(own >> BINARY, own & BINARY);
        let along_z = near(z, o.whole.z, o.fraction.z, params.grid_z, params.size_z);
        let point_z = i32(along_z.point);
        let inside = first + lane < terms && point_z >= first_z && point_z < end_z;
        let sign = select(1.0, -1.0, (own & BINARY) == 1u);
        let z_weight = select(0.0, along_z.weight * sign, inside);
        let z_start = select(0u, u32(point_z - first_z) * plane, inside);
        // unroll
        for (var row = 0u; row < 4u; row++) {
            look(row, y, o, z_start, z_weight);
        }
        let brings = weights[0] != 0.0 || weights[1] != 0.0 || weights[2] != 0.0 || weights[3] != 0.0;
        var found = subgroupBallot(brings).x & 255u;
        while (found != 0u) {
            let source = firstTrailingBit(found);
            found &= found - 1u;
            let whole = subgroupShuffle(o.whole.x, source);
            let fraction = subgroupShuffle(o.fraction.x, source);
            let along_x = near(x, whole, fraction, params.grid_x, params.size_x);
            let k = (first + source) >> BINARY;
            // unroll
            for (var row = 0u; row < 4u; row++) {
                add(row, source, along_x, block, k);
            }
        }
    }
    if (x >= params.size_x) {
        return;
    }
    let voxel = x * params.stride_x + y * params.stride_y + z * params.stride_z;
    put_block(0u, n, block, voxel, y);
    put_block(1u, n, block, voxel, y);
}

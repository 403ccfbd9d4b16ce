// A fused OBELISK layer: F[n, o, s] = Σ W[o, c K + k] X[n, c K + k, s] in groups, where each X is sampled when it is
// needed and never stored (common/obelisk.wgsl says what X is). W packed by obelisk_layer_pack.wgsl, by_outputs; F a map.
// One invocation a location and a run of 4 RUN outputs of one group, which share the eight loads of a sample.
// Before this file, conv3d_plain reads the weights and calls convolve (z is the run), and obelisk_voxels or obelisk_parts samples.
const RUN: u32 = 16u;
const CHUNK: u32 = RUN;
// 1 where a workgroup takes four by four by four locations in place of 64 along x: they share more cache lines. The grid's
// sizes are then multiples of four.
const TILED: u32 = 0u;
@group(0) @binding(5) var<storage, read_write> features: array<vec4f>;

var<private> sums: array<vec4f, RUN>;

// Called with constants, so that the sums stay in registers; an index that varies would put them in memory.
fn add(i: u32, x: f32) {
    if (i < RUN) {
        sums[i] += weight(i) * x;
    }
}

fn store(i: u32, s: u32, group: u32, first: u32) {
    let block = first + i;
    if (i < RUN && block < params.blocks) {
        let blocks = (params.outputs + 3u) / 4u;
        let at = map_index(s, blocks, group * params.blocks + block);
        features[at] = sums[i];
    }
}

fn placed(index: u32) -> u32 {
    if (TILED == 0u) {
        return index;
    }
    let tile = index / 64u;
    let row = tile / (params.grid_x / 4u);
    let plane = row / (params.grid_y / 4u);
    let x = tile % (params.grid_x / 4u) * 4u + index % 4u;
    let y = row % (params.grid_y / 4u) * 4u + index / 4u % 4u;
    let z = plane * 4u + index / 16u % 4u;
    return (z * params.grid_y + y) * params.grid_x + x;
}

fn convolve(index: u32, z: u32, lane: u32) {
    let s = placed(min(index, params.count - 1u));
    let group = z / params.pieces;
    let here = located(s);
    let p = location(here.n, here.at);
    let first_channel = group * params.columns;
    var c = first_channel / params.offsets;
    var k = first_channel % params.offsets;
    for (var column = 0u; column < params.columns; column++) {
        load_weights((z * params.columns + column) * RUN, lane);
        let start = image_start(here.n, c);
        var x = sampled(start, moved(p, offset(k, 0u)));
        if (BINARY == 1u) {
            x -= sampled(start, moved(p, offset(k, 1u)));
        }
        // unroll
        for (var i = 0u; i < 16u; i++) {
            add(i, x);
        }
        k++;
        if (k == params.offsets) {
            k = 0u;
            c++;
        }
    }
    if (index >= params.count) {
        return;
    }
    let first = z % params.pieces * RUN;
    // unroll
    for (var i = 0u; i < 16u; i++) {
        store(i, s, group, first);
    }
}

// A fused OBELISK layer: F[n, o, s] = Σ W[o, c K + k] X[n, c K + k, s] in groups, where each X is sampled when it is
// needed and never stored (common/obelisk.wgsl says what X is). W packed by obelisk_layer_pack.wgsl, by_outputs; F a map.
// One invocation a location and a run of 4 RUN outputs of one group: a sample costs eight loads and serves them all.
// conv3d_plain, before this file, reads the weights and calls convolve; z is the run.
const RUN: u32 = 16u;
const CHUNK: u32 = RUN;
// 1 where a workgroup takes four by four by four locations in place of 64 along x: they read more of the same lines, 0.96 ms
// instead of 1.44 for 128 offsets in 8 channels on 36³ (NVIDIA H200). The grid is multiples of four then.
const TILED: u32 = 0u;
@group(0) @binding(5) var<storage, read_write> features: array<vec4f>;

var<private> sums: array<vec4f, RUN>;

// Indexed by constants once inlined, so that the sums stay in registers; a loop over so many would put them in memory.
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
        var x = value(start, image_cell(moved(p, offset(k, 0u))));
        if (BINARY == 1u) {
            x -= value(start, image_cell(moved(p, offset(k, 1u))));
        }
        add(0u, x);
        add(1u, x);
        add(2u, x);
        add(3u, x);
        add(4u, x);
        add(5u, x);
        add(6u, x);
        add(7u, x);
        add(8u, x);
        add(9u, x);
        add(10u, x);
        add(11u, x);
        add(12u, x);
        add(13u, x);
        add(14u, x);
        add(15u, x);
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
    store(0u, s, group, first);
    store(1u, s, group, first);
    store(2u, s, group, first);
    store(3u, s, group, first);
    store(4u, s, group, first);
    store(5u, s, group, first);
    store(6u, s, group, first);
    store(7u, s, group, first);
    store(8u, s, group, first);
    store(9u, s, group, first);
    store(10u, s, group, first);
    store(11u, s, group, first);
    store(12u, s, group, first);
    store(13u, s, group, first);
    store(14u, s, group, first);
    store(15u, s, group, first);
}

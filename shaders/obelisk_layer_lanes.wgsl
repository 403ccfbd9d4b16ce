// The sum of obelisk_layer.wgsl on software Vulkan, where loads and shuffled weights cost most. An invocation computes 4 RUN
// outputs at LOCATIONS locations, which share the weights; they lie eight apart, so that they read the same part of the
// image. It takes COLUMNS samples at each location before it adds them up, so that each sum is loaded and stored once for
// all of them. Lanes 0 to 3 (and 4 to 7) of a subgroup read one offset each and share them by shuffles. W is packed by
// obelisk_layer_pack.wgsl, by_outputs, in COLUMNS columns. Before this file, conv3d_lanes reads the weights and calls
// convolve (z is the run), and obelisk_voxels, obelisk_parts or obelisk_cells samples.
const RUN: u32 = 16u;
const LOCATIONS: u32 = 2u;
const COLUMNS: u32 = 4u;
const CHUNK: u32 = RUN * COLUMNS;
@group(0) @binding(5) var<storage, read_write> features: array<vec4f>;

// [location][output vec4]
var<private> sums: array<vec4f, LOCATIONS * RUN>;
var<private> places: array<Position, LOCATIONS>;
var<private> starts: array<u32, LOCATIONS>;
// [location][column]
var<private> samples: array<f32, LOCATIONS * COLUMNS>;

fn place(i: u32, s: u32) {
    let here = located(min(s, params.count - 1u));
    places[i] = location(here.n, here.at);
    starts[i] = item_start(here.n);
}

fn handed(own: Position, lane: u32) -> Position {
    return Position(subgroupShuffle(own.whole, lane), subgroupShuffle(own.fraction, lane));
}

fn sample(column: u32, start: u32, plus: Position, minus: Position) {
    let channel = subgroupShuffle(start, column);
    let first = handed(plus, column);
    samples[column] = sampled(starts[0] + channel, moved(places[0], first));
    samples[COLUMNS + column] = sampled(starts[1] + channel, moved(places[1], first));
    if (BINARY == 1u) {
        let second = handed(minus, column);
        samples[column] -= sampled(starts[0] + channel, moved(places[0], second));
        samples[COLUMNS + column] -= sampled(starts[1] + channel, moved(places[1], second));
    }
}

// One number of a weight at a time: there are sixteen registers.
fn add_number(i: u32, output: u32) {
    var first = sums[i][output];
    var second = sums[RUN + i][output];
    let w0 = weight_of(4u * i, output);
    first = fma(w0, samples[0], first);
    second = fma(w0, samples[4], second);
    let w1 = weight_of(4u * i + 1u, output);
    first = fma(w1, samples[1], first);
    second = fma(w1, samples[5], second);
    let w2 = weight_of(4u * i + 2u, output);
    first = fma(w2, samples[2], first);
    second = fma(w2, samples[6], second);
    let w3 = weight_of(4u * i + 3u, output);
    first = fma(w3, samples[3], first);
    second = fma(w3, samples[7], second);
    sums[i][output] = first;
    sums[RUN + i][output] = second;
}

// Called with constants, so that the sums stay in registers; an index that varies would put them in memory.
fn add(i: u32) {
    if (i < RUN) {
        // unroll
        for (var output = 0u; output < 4u; output++) {
            add_number(i, output);
        }
    }
}

fn store(i: u32, location: u32, s: u32, group: u32, first: u32) {
    let block = first + i;
    if (i < RUN && block < params.blocks && s < params.count) {
        let blocks = (params.outputs + 3u) / 4u;
        features[map_index(s, blocks, group * params.blocks + block)] = sums[location * RUN + i];
    }
}

fn store_run(location: u32, s: u32, group: u32, first: u32) {
    // unroll
    for (var i = 0u; i < 16u; i++) {
        store(i, location, s, group, first);
    }
}

fn convolve(index: u32, z: u32, lane: u32) {
    let group = z / params.pieces;
    let s = index / 8u * 16u + index % 8u;
    place(0u, s);
    place(1u, s + 8u);
    let first_channel = group * params.columns;
    let steps = (params.columns + COLUMNS - 1u) / COLUMNS;
    for (var step = 0u; step < steps; step++) {
        load_weights((z * steps + step) * CHUNK, lane);
        // Of this lane's column; one past the last has zeros for weights.
        let channel = first_channel + min(COLUMNS * step + lane % COLUMNS, params.columns - 1u);
        let c = divide(channel, params.offsets);
        let k = channel - c * params.offsets;
        let start = image_start(0u, c);
        let plus = offset(k, 0u);
        var minus = plus;
        if (BINARY == 1u) {
            minus = offset(k, 1u);
        }
        // unroll
        for (var column = 0u; column < 4u; column++) {
            sample(column, start, plus, minus);
        }
        // unroll
        for (var i = 0u; i < 16u; i++) {
            add(i);
        }
    }
    let first = z % params.pieces * RUN;
    store_run(0u, s, group, first);
    store_run(1u, s + 8u, group, first);
}

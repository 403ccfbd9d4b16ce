// Writes the outputs of conv3d_winograd.wgsl.
@group(0) @binding(3) var<storage, read_write> y: array<vec4f>;

fn put(i: u32, value: vec4f, block: u32) {
    var sum = value;
    if (params.mode == 1u) {
        sum += packed_bias(params.bias_base + block);
    } else if (params.mode == 2u) {
        sum += y[i];
    }
    y[i] = select(params.slope * sum, sum, sum > vec4f());
}

// Sums of four outputs.
fn total(t: u32, b: u32, plane: u32, row: u32) -> vec4f {
    let s = b * 8u + row;
    let k = 2u * plane + t;
    return vec4f(sums[s][k], sums[s + 2u][k], sums[s + 4u][k], sums[s + 6u][k]);
}

fn finish(place: Target) {
    if (!place.inside) {
        return;
    }
    let block = place.block_group * BLOCKS;
    let blocks_before = (place.n * params.depth + place.z) * params.out_blocks + block;
    let y_at = blocks_before * params.height * params.width + place.x - params.y_base;
    // unroll
    for (var t = 0u; t < 2u; t++) {
        // unroll
        for (var b = 0u; b < BLOCKS; b++) {
            if (block + b < params.out_blocks && place.y + 2u * t < params.height) {
                let i = y_at + (b * params.height + place.y + 2u * t) * params.width;
                let next = i + params.out_blocks * params.height * params.width;
                let two_rows = place.y + 2u * t + 1u < params.height;
                put(i, total(t, b, 0u, 0u), block + b);
                if (two_rows) {
                    put(i + params.width, total(t, b, 0u, 1u), block + b);
                }
                if (place.both) {
                    put(next, total(t, b, 1u, 0u), block + b);
                }
                if (place.both && two_rows) {
                    put(next + params.width, total(t, b, 1u, 1u), block + b);
                }
            }
        }
    }
}

// dX for the gathers of the image's gradient, channel c K + k.
@group(0) @binding(2) var<storage, read> upstream: array<f32>;
// Channels of a voxel that a gather has: fewer than four where the image has fewer.
const LANES: u32 = 4u;

fn upstream_at(at: u32, channel: u32) -> f32 {
    let known = min(channel, params.channels * params.offsets - 1u);
    return upstream[4u * (at + (known >> 2u) * params.grid_y * params.grid_x) + (known & 3u)];
}

// Of four channels from 4 block on, at a grid point.
fn upstream_of(at: u32, block: u32, k: u32) -> vec4f {
    let channel = block * 4u * params.offsets + k;
    var result = vec4f(upstream_at(at, channel), 0.0, 0.0, 0.0);
    if (LANES > 1u) {
        result.y = upstream_at(at, channel + params.offsets);
    }
    if (LANES > 2u) {
        result.z = upstream_at(at, channel + 2u * params.offsets);
    }
    if (LANES > 3u) {
        result.w = upstream_at(at, channel + 3u * params.offsets);
    }
    return result;
}

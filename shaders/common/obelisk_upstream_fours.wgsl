// dX for the gathers of the image's gradient, channel k C + c with C a multiple of four: one load for four channels.
@group(0) @binding(2) var<storage, read> upstream: array<vec4f>;
const LANES: u32 = 4u;

// Of four channels from 4 block on, at a grid point.
fn upstream_of(at: u32, block: u32, k: u32) -> vec4f {
    let known = min(block, params.channels / 4u - 1u);
    return upstream[at + (k * params.channels / 4u + known) * params.grid_y * params.grid_x];
}

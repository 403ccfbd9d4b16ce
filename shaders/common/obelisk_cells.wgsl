// What obelisk_layer_lanes.wgsl samples: cells of the image, packed by obelisk_cells_pack.wgsl. Two loads instead of eight,
// and none of them outside.
@group(0) @binding(6) var<storage, read> cells: array<vec4f>;

fn item_start(n: u32) -> u32 {
    return n * (params.size_z + 4u) * (params.size_y + 3u) * (params.size_x + 3u);
}

// `start` is an item's; there is one channel.
fn sampled(start: u32, p: Position) -> f32 {
    // Farther outside than the outermost cells there are zeros, too.
    let at = vec3u(clamp(p.whole, vec3i(-2), vec3i(size())) + 2);
    let row = params.size_x + 3u;
    let plane = row * (params.size_y + 3u);
    let i = start + at.z * plane + at.y * row + at.x;
    let high = p.fraction;
    let low = 1.0 - high;
    let weights = vec4f(low.y * low.x, low.y * high.x, high.y * low.x, high.y * high.x);
    return low.z * dot(cells[i], weights) + high.z * dot(cells[i + plane], weights);
}

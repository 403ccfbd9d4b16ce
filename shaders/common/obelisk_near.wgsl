// What the gathers of the image's gradient share on grids whose points lie more than two voxels apart: one point at most is
// within a voxel of a place, and no loop has to look for more. obelisk_upstream or obelisk_upstream_fours reads dX.
@group(0) @binding(5) var<storage, read_write> image_gradient: array<f32>;

struct Near { point: u32, weight: f32 }

// On one axis: the grid point that the offset whole + fraction brings next to voxel v, and its trilinear weight there.
fn near(v: u32, whole: i32, fraction: f32, points: u32, size: u32) -> Near {
    let last = points - 1u;
    let middle = (f32(i32(v) - whole) - fraction) * (f32(last) / f32(size - 1u));
    let point = u32(clamp(round(middle), 0.0, f32(last)));
    let numerator = point * (size - 1u);
    let voxel = divide(numerator, last);
    let rest = f32(numerator - voxel * last) / f32(last);
    let distance = f32(i32(voxel) + whole - i32(v)) + (rest + fraction);
    return Near(point, max(1.0 - abs(distance), 0.0));
}

// Writes, or from the second range of dX's slices on adds, the sums of four channels of a voxel, whose element is `voxel`.
fn put(n: u32, block: u32, voxel: u32, own: vec4f) {
    if (block * 4u >= params.channels) {
        return;
    }
    let channels = min(4u, params.channels - block * 4u);
    // A map's padding lanes are written as zeros; a flat image has none.
    let written = select(channels, 4u, params.stride_lane == 1u && params.stride_x == 4u);
    let start = image_start(n, block * 4u) + voxel;
    for (var lane = 0u; lane < written; lane++) {
        let at = start + lane * params.stride_lane;
        var sum = select(0.0, own[lane], lane < channels);
        if (params.first > 0u) {
            sum += image_gradient[at];
        }
        image_gradient[at] = sum;
    }
}

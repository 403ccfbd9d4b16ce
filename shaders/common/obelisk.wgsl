// What the kernels of OBELISK share: sampling locations p_s on a regular grid, with CELLS at the centres of a grid's cells,
// or with POINTS at points [N, S, 3] on a grid of 1 x 1 x S; offsets [K, 1 or 2 with BINARY, 3]; an image [N, C, size] of any layout given by its strides.
const BINARY: u32 = 0u;
const POINTS: u32 = 0u;
const CELLS: u32 = 0u;
struct Params {
    count: u32,        // invocations or locations of this dispatch
    first: u32,        // first slice (n, depth) of X's or F's binding
    end: u32,          // past its last slice, for the gather of the image's gradient
    headroom: u32,     // of sums in fixed point
    partials: u32,     // partial sums of each number, all dispatches together
    partial_base: u32, // those of earlier dispatches
    threads: u32,      // invocations that share the locations of a dispatch
    channels: u32,     // C
    offsets: u32,      // K
    size_x: u32,
    size_y: u32,
    size_z: u32,
    grid_x: u32,
    grid_y: u32,
    grid_z: u32,
    stride_x: u32,
    stride_y: u32,
    stride_z: u32,
    stride_lane: u32,  // of one channel inside four
    stride_block: u32, // of four channels
    stride_n: u32,
    columns: u32,      // of a layer: channels of X in a group
    blocks: u32,       // of a layer: vec4s of F in a group
    outputs: u32,      // of a layer: channels of F
    pieces: u32,       // of a layer: runs of vec4s that make a group
}
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> image: array<f32>; // read by trilinear.wgsl
@group(0) @binding(3) var<storage, read> offsets: array<f32>;
@group(0) @binding(4) var<storage, read> points: array<f32>;

fn size() -> vec3u {
    return vec3u(params.size_x, params.size_y, params.size_z);
}

fn grid() -> vec3u {
    return vec3u(params.grid_x, params.grid_y, params.grid_z);
}

fn half_extent() -> vec3f {
    return 0.5 * vec3f(size() - 1u);
}

fn offset(k: u32, j: u32) -> Position {
    let at = 3u * (k * (1u + BINARY) + j);
    return split(vec3f(offsets[at], offsets[at + 1u], offsets[at + 2u]) * half_extent());
}

fn location(n: u32, i: vec3u) -> Position {
    if (POINTS == 1u) {
        let at = (n * params.grid_x + i.x) * 3u;
        return split((vec3f(points[at], points[at + 1u], points[at + 2u]) + 1.0) * half_extent());
    }
    if (CELLS == 1u) {
        return cell_position(i, grid(), size());
    }
    return grid_position(i, grid(), size());
}

fn image_start(n: u32, c: u32) -> u32 {
    return n * params.stride_n + c / 4u * params.stride_block + c % 4u * params.stride_lane;
}

fn image_cell(p: Position) -> Cell {
    return cell(p, size(), vec3u(params.stride_x, params.stride_y, params.stride_z));
}

// n and the coordinates on the grid of location s, counted from the first slice of the binding.
struct Location { n: u32, at: vec3u }

fn located(s: u32) -> Location {
    let row = divide(s, params.grid_x);
    let x = s - row * params.grid_x;
    if (POINTS == 1u) {
        return Location(row + params.first, vec3u(x, 0u, 0u));
    }
    let plane = divide(row, params.grid_y);
    let slice = plane + params.first;
    let n = divide(slice, params.grid_z);
    return Location(n, vec3u(x, row - plane * params.grid_y, slice - n * params.grid_z));
}

// Vec4 of a map with so many channel blocks on the grid, from its first bound slice on.
fn map_index(s: u32, blocks: u32, block: u32) -> u32 {
    let plane = params.grid_x * params.grid_y;
    return s + (divide(s, plane) * (blocks - 1u) + block) * plane;
}

// What the kernels of OBELISK share: sampling locations p_s on a regular grid, with CELLS at the centres of a grid's cells,
// or with POINTS at points [N, S, 3] on a grid of 1 x 1 x S; offsets [K, 1 or 2 with BINARY, 3]; an image [N, C, size] of any layout given by its strides.
const BINARY: u32 = 0u;
const POINTS: u32 = 0u;
const CELLS: u32 = 0u;
@group(0) @binding(0) var<uniform> params: Sampling;
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

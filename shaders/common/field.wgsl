// A coarse field on the corners of a volume, trilinear between: `coarse`, planes of params.d · params.h · params.w numbers, on
// params.depth · params.height · params.width voxels.
struct Cell { before: u32, next: u32, share: f32 }
struct Cells { x: Cell, y: Cell, z: Cell }

// Output voxel i of n on an axis of m voxels with the same ends. In integers, so that rounding never moves a cell.
fn cell(i: u32, n: u32, m: u32) -> Cell {
    if (n == 1u || m == 1u) {
        return Cell(0u, 0u, 0.0);
    }
    let at = i * (m - 1u);
    let before = min(at / (n - 1u), m - 2u);
    return Cell(before, before + 1u, f32(at - before * (n - 1u)) / f32(n - 1u));
}

fn cells(at: vec3u) -> Cells {
    return Cells(
        cell(at.x, params.width, params.w),
        cell(at.y, params.height, params.h),
        cell(at.z, params.depth, params.d),
    );
}

// A voxel's x, y, z and, in .w, the number of its channel and batch item.
fn voxel_of(i: u32) -> vec4u {
    let row = i / params.width;
    let plane = row / params.height;
    return vec4u(i % params.width, row % params.height, plane % params.depth, plane / params.depth);
}

fn row(from_row: u32, x: Cell) -> f32 {
    return mix(coarse[from_row + x.before], coarse[from_row + x.next], x.share);
}

fn field(number: u32, at: Cells) -> f32 {
    let lower = (number * params.d + at.z.before) * params.h;
    let upper = (number * params.d + at.z.next) * params.h;
    return mix(
        mix(row((lower + at.y.before) * params.w, at.x), row((lower + at.y.next) * params.w, at.x), at.y.share),
        mix(row((upper + at.y.before) * params.w, at.x), row((upper + at.y.next) * params.w, at.x), at.y.share),
        at.z.share,
    );
}

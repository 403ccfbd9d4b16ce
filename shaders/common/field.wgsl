// A coarse field on the corners of a volume, trilinear between.
struct Cell { before: u32, next: u32, share: f32 }

// Output voxel i of n on an axis of m voxels with the same ends. In integers, so that rounding never moves a cell.
fn cell(i: u32, n: u32, m: u32) -> Cell {
    if (n == 1u || m == 1u) {
        return Cell(0u, 0u, 0.0);
    }
    let at = i * (m - 1u);
    let before = min(at / (n - 1u), m - 2u);
    return Cell(before, before + 1u, f32(at - before * (n - 1u)) / f32(n - 1u));
}

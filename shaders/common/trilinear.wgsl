// Positions in voxels, (x, y, z), as whole + fraction with 0 <= fraction < 1: sums of an exact grid position and an
// offset pick the same cell on every device, where one float of the sum may fall on either side of a border.
struct Position { whole: vec3i, fraction: vec3f }

// Clamped far outside any volume, so that the whole part fits an integer.
fn split(voxels: vec3f) -> Position {
    let v = clamp(voxels, vec3f(-1048576.0), vec3f(1048576.0));
    let whole = floor(v);
    return Position(vec3i(whole), v - whole);
}

fn moved(a: Position, b: Position) -> Position {
    let fraction = a.fraction + b.fraction;
    let carry = select(vec3i(0), vec3i(1), fraction >= vec3f(1.0));
    return Position(a.whole + b.whole + carry, fraction - vec3f(carry));
}

// Point i of a regular grid whose outer points are the centres of the outer voxels (align_corners = true): i (size - 1)
// / (points - 1) voxels; the only point of an axis lies at the middle, normalised coordinate 0.
fn grid_position(i: vec3u, points: vec3u, size: vec3u) -> Position {
    let single = points == vec3u(1u);
    let numerator = select(i * (size - 1u), size - 1u, single);
    let denominator = select(points - 1u, vec3u(2u), single);
    let whole = numerator / denominator;
    return Position(vec3i(whole), vec3f(numerator - whole * denominator) / vec3f(denominator));
}

// The eight voxels around a position: element offsets of the low and high ones by axis (clamped into the volume), and
// whether each lies inside (1) or outside (0, where it counts as zero).
struct Cell { low: vec3u, high: vec3u, low_inside: vec3f, high_inside: vec3f, fraction: vec3f }

fn cell(p: Position, size: vec3u, stride: vec3u) -> Cell {
    let last = vec3i(size) - 1;
    let high = p.whole + 1;
    return Cell(
        vec3u(clamp(p.whole, vec3i(0), last)) * stride,
        vec3u(clamp(high, vec3i(0), last)) * stride,
        select(vec3f(0.0), vec3f(1.0), (p.whole >= vec3i(0)) & (p.whole <= last)),
        select(vec3f(0.0), vec3f(1.0), (high >= vec3i(0)) & (high <= last)),
        p.fraction,
    );
}

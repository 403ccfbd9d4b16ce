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

// Point i of a regular grid of the centres of cells that divide the volume evenly (align_corners = false):
// ((2 i + 1) size - points) / (2 points) voxels; outside the outer voxels' centres where there are more points than voxels.
fn cell_position(i: vec3u, points: vec3u, size: vec3u) -> Position {
    let numerator = vec3i((2u * i + 1u) * size) - vec3i(points);
    let denominator = 2 * vec3i(points);
    let whole = select(numerator / denominator, vec3i(-1), numerator < vec3i(0));
    return Position(whole, vec3f(numerator - whole * denominator) / vec3f(denominator));
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

// Trilinear value in the module's `image`, whose channel starts at element `start`.
fn value(start: u32, c: Cell) -> f32 {
    let low = c.low_inside * (1.0 - c.fraction);
    let high = c.high_inside * c.fraction;
    let l = start + c.low.x;
    let h = start + c.high.x;
    let ll = low.x * image[l + c.low.y + c.low.z] + high.x * image[h + c.low.y + c.low.z];
    let hl = low.x * image[l + c.high.y + c.low.z] + high.x * image[h + c.high.y + c.low.z];
    let lh = low.x * image[l + c.low.y + c.high.z] + high.x * image[h + c.low.y + c.high.z];
    let hh = low.x * image[l + c.high.y + c.high.z] + high.x * image[h + c.high.y + c.high.z];
    return low.z * (low.y * ll + high.y * hl) + high.z * (low.y * lh + high.y * hh);
}

// The gradient of value() by the position, per voxel, and value(), from one set of loads.
fn slope_and_value(start: u32, c: Cell) -> vec4f {
    let low = c.low_inside * (1.0 - c.fraction);
    let high = c.high_inside * c.fraction;
    let l = start + c.low.x;
    let h = start + c.high.x;
    let a = vec4f(
        image[l + c.low.y + c.low.z],
        image[l + c.high.y + c.low.z],
        image[l + c.low.y + c.high.z],
        image[l + c.high.y + c.high.z],
    );
    let b = vec4f(
        image[h + c.low.y + c.low.z],
        image[h + c.high.y + c.low.z],
        image[h + c.low.y + c.high.z],
        image[h + c.high.y + c.high.z],
    );
    let v = low.x * a + high.x * b;
    let dx = c.high_inside.x * b - c.low_inside.x * a;
    let near = low.y * v.x + high.y * v.y;
    let far = low.y * v.z + high.y * v.w;
    let along_y = low.z * (c.high_inside.y * v.y - c.low_inside.y * v.x)
        + high.z * (c.high_inside.y * v.w - c.low_inside.y * v.z);
    let along_z = c.high_inside.z * far - c.low_inside.z * near;
    let along_x = low.z * (low.y * dx.x + high.y * dx.y) + high.z * (low.y * dx.z + high.y * dx.w);
    return vec4f(along_x, along_y, along_z, low.z * near + high.z * far);
}

fn slope(start: u32, c: Cell) -> vec3f {
    return slope_and_value(start, c).xyz;
}

// Adds to one element of `words`, which the module declares.
fn add(element: u32, value: f32, scale: Scale) {
    let magnitude = abs(value) * scale.normal * scale.up;
    let upper = floor(magnitude * 2.3283064365386963e-10); // 2^-32
    var low = u32(magnitude - upper * 4294967296.0);
    var high = u32(upper);
    if (value < 0.0) {
        low = ~low + 1u;
        high = ~high + select(0u, 1u, low == 0u);
    }
    let before = atomicAdd(&words[2u * element], low);
    atomicAdd(&words[2u * element + 1u], high + select(0u, 1u, before + low < low));
}

// Adds `value` times its trilinear weight to each voxel of a cell.
fn scatter(start: u32, c: Cell, value: f32, scale: Scale) {
    let low = c.low_inside * (1.0 - c.fraction);
    let high = c.high_inside * c.fraction;
    for (var corner = 0u; corner < 8u; corner++) {
        let upper = (vec3u(corner) & vec3u(1u, 2u, 4u)) != vec3u(0u);
        let weights = select(low, high, upper);
        let offset = select(c.low, c.high, upper);
        let weight = weights.x * weights.y * weights.z;
        if (weight != 0.0) {
            add(start + offset.x + offset.y + offset.z, weight * value, scale);
        }
    }
}

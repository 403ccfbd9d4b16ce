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

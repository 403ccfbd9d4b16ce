// Offsets as they are trained, [K, 1 or 2, 3].
@group(0) @binding(3) var<storage, read> offsets: array<f32>;

fn normalised_offset(i: u32) -> vec3f {
    return vec3f(offsets[3u * i], offsets[3u * i + 1u], offsets[3u * i + 2u]);
}

// Offsets in a uniform buffer of 64 KiB, for the reason in conv3d_weights_uniform.wgsl.
@group(0) @binding(3) var<uniform> offsets: array<vec4f, 4096>;

fn normalised_offset(i: u32) -> vec3f {
    return offsets[i].xyz;
}

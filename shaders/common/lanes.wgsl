// Flat vectors [C] read in fours: what lies beyond C in the last four is undefined, and counts as zero.
fn lanes(values: vec4f, block: u32, channels: u32) -> vec4f {
    return select(vec4f(0.0), values, vec4u(0u, 1u, 2u, 3u) + 4u * block < vec4u(channels));
}

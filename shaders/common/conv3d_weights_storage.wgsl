// Packed weights of any size.
@group(0) @binding(2) var<storage, read> w: array<vec4f>;

fn packed_weight(at: u32) -> vec4f {
    return w[at];
}

fn packed_bias(at: u32) -> vec4f {
    return w[at];
}

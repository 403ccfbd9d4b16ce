// 64 KiB of packed weights, as many as a uniform binding holds: software Vulkan reads those without a branch for each lane,
// and where the processor can't insert into a vector at a place known at run time (no AVX-512) a storage buffer costs it
// ten times as much.
@group(0) @binding(2) var<uniform> w: array<vec4f, 4096>;
@group(0) @binding(4) var<storage, read> all_weights: array<vec4f>;

fn packed_weight(at: u32) -> vec4f {
    return w[at];
}

// Behind the weights, maybe beyond the 64 KiB.
fn packed_bias(at: u32) -> vec4f {
    return all_weights[at];
}

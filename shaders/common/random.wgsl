// Random numbers that depend on nothing but a key and a counter.

// A bijection of 32-bit integers that flips each output bit with probability 1/2 (C. Wellons' lowbias32).
fn mix32(value: u32) -> u32 {
    var v = value;
    v = (v ^ (v >> 16u)) * 0x7feb352du;
    v = (v ^ (v >> 15u)) * 0x846ca68bu;
    return v ^ (v >> 16u);
}

// The key of a step's node.
fn stream_of(id: u32) -> u32 {
    return mix32(step.seed ^ mix32(step.step ^ mix32(id + 0x9e3779b9u)));
}

fn random(index: u32, key: u32) -> u32 {
    return mix32(mix32(index + key) ^ key);
}

// Two sources of conv3d_winograd.wgsl.
const SOURCES: u32 = 2u;
@group(0) @binding(4) var<storage, read> x1: array<vec4f>;

fn load_of(source: u32, at: i32) -> vec4f {
    if (source == 1u) {
        return x1[at];
    }
    return load(at);
}

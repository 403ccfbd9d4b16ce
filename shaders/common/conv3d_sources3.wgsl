// Three sources of conv3d_winograd.wgsl.
const SOURCES: u32 = 3u;
@group(0) @binding(4) var<storage, read> x1: array<vec4f>;
@group(0) @binding(5) var<storage, read> x2: array<vec4f>;

fn load_of(source: u32, at: i32) -> vec4f {
    if (source == 1u) {
        return x1[at];
    }
    if (source == 2u) {
        return x2[at];
    }
    return load(at);
}

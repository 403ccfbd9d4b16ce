// The one source of conv3d_winograd.wgsl.
const SOURCES: u32 = 1u;

fn load_of(_source: u32, at: i32) -> vec4f {
    return load(at);
}

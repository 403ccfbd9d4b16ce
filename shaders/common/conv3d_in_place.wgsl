// x of conv3d.wgsl where y lies over it: a map, of whose voxels each invocation reads only those that it then writes.
fn load(at: i32) -> vec4f {
    return y[at];
}

// x of conv3d.wgsl and conv3d_weight_gradient.wgsl as a map: four channels a load.
@group(0) @binding(1) var<storage, read> x: array<vec4f>;

fn load(at: i32) -> vec4f {
    return x[at];
}

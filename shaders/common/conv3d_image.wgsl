// x of conv3d.wgsl and conv3d_weight_gradient.wgsl as an image: one channel a load.
@group(0) @binding(1) var<storage, read> x: array<f32>;

fn load(at: i32) -> vec4f {
    return vec4f(x[at], 0.0, 0.0, 0.0);
}

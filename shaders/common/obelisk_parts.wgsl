// What the kernels of OBELISK layers sample where one binding does not hold the image: the image in four. Each but the last that
// is used has params.part elements. These are whole planes, so the four voxels of a cell that lie in a plane stand in one part.
@group(0) @binding(6) var<storage, read> second: array<f32>;
@group(0) @binding(7) var<storage, read> third: array<f32>;
@group(0) @binding(8) var<storage, read> fourth: array<f32>;

fn item_start(n: u32) -> u32 {
    return n * params.stride_n;
}

// Four voxels of a plane.
fn voxels(at: vec4u) -> vec4f {
    var i = at;
    if (i.x < params.part) {
        return vec4f(image[i.x], image[i.y], image[i.z], image[i.w]);
    }
    i -= params.part;
    if (i.x < params.part) {
        return vec4f(second[i.x], second[i.y], second[i.z], second[i.w]);
    }
    i -= params.part;
    if (i.x < params.part) {
        return vec4f(third[i.x], third[i.y], third[i.z], third[i.w]);
    }
    i -= params.part;
    return vec4f(fourth[i.x], fourth[i.y], fourth[i.z], fourth[i.w]);
}

// As value() of trilinear.wgsl. `start` is an item's and a channel's.
fn sampled(start: u32, p: Position) -> f32 {
    let c = image_cell(p);
    let low = c.low_inside * (1.0 - c.fraction);
    let high = c.high_inside * c.fraction;
    let at = start + vec4u(c.low.x, c.high.x, c.low.x, c.high.x) + vec4u(c.low.yy, c.high.yy);
    let near = voxels(at + c.low.z);
    let far = voxels(at + c.high.z);
    let ll = low.x * near.x + high.x * near.y;
    let hl = low.x * near.z + high.x * near.w;
    let lh = low.x * far.x + high.x * far.y;
    let hh = low.x * far.z + high.x * far.w;
    return low.z * (low.y * ll + high.y * hl) + high.z * (low.y * lh + high.y * hh);
}

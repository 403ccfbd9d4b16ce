// What the kernels of OBELISK layers sample: the image.
fn item_start(n: u32) -> u32 {
    return n * params.stride_n;
}

// `start` is an item's and a channel's.
fn sampled(start: u32, p: Position) -> f32 {
    return value(start, image_cell(p));
}

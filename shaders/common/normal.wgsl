// Of mean 0 and variance 1, by two numbers between 0 and 1 (Box and Muller 1958).
fn normal(index: u32, key: u32) -> f32 {
    let a = (f32(random(2u * index, key) >> 8u) + 1.0) / 16777216.0;
    let b = f32(random(2u * index + 1u, key) >> 8u) / 16777216.0;
    return sqrt(-2.0 * log(a)) * cos(6.28318530717958 * b);
}

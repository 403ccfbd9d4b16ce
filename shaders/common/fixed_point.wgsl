// Sums of many floats into elements chosen by data, in any order with one result: 64-bit fixed point in two words,
// low first. Adding integers is associative, and the carry out of the low word is known from the value that the atomic
// addition returns. The largest summand, 2^exponent at most, gets 59 - headroom bits, and 2^headroom of them can't
// overflow: with 2^20 summands the resolution is 2^-39 of it, finer than a float's.
struct Scale {
    normal: f32,  // 2^-exponent
    natural: f32, // 2^exponent
    up: f32,      // 2^(59 - headroom)
    down: f32,
}

fn power_of_two(exponent: i32) -> f32 {
    return bitcast<f32>(u32(exponent + 127) << 23u);
}

// From the bits of the largest magnitude. In two factors, because 2^(59 - exponent) may be no float; 126 for magnitudes
// of 2^127 costs two of the four spare bits.
fn scale_of(largest: u32, headroom: u32) -> Scale {
    let exponent = clamp(i32(largest >> 23u) - 126, -126, 126);
    let bits = 59 - i32(headroom);
    return Scale(power_of_two(-exponent), power_of_two(exponent), power_of_two(bits), power_of_two(-bits));
}

// a / b rounded down, for a below 2³¹ and b from 1. llvmpipe divides integers lane by lane. A product
// with the reciprocal is 400 off at most, where the quotient is 2³¹; of what is left it is one off at most.
fn divide(a: u32, b: u32) -> u32 {
    let inverse = 1.0 / f32(i32(b));
    var quotient = i32(f32(i32(a)) * inverse);
    quotient += i32(floor(f32(i32(a) - quotient * i32(b)) * inverse));
    let left = i32(a) - quotient * i32(b);
    quotient += select(0, 1, left >= i32(b));
    return u32(select(quotient, quotient - 1, left < 0));
}

// Sum over the 64 invocations of a workgroup, in a fixed order. Call from uniform control flow; every invocation gets it.
var<workgroup> sum64_terms: array<vec4f, 64>;

fn sum64(local: u32, term: vec4f) -> vec4f {
    workgroupBarrier(); // the last call's result has been read
    sum64_terms[local] = term;
    for (var half = 32u; half > 0u; half = half / 2u) {
        workgroupBarrier();
        if (local < half) {
            sum64_terms[local] += sum64_terms[local + half];
        }
    }
    workgroupBarrier();
    return sum64_terms[0];
}

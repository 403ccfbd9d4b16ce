// What the first stage of a reduction leaves: each invocation a partial result, or with BY_WORKGROUP (on GPUs, where a workgroup's
// barriers cost less than merging 64 times as many) each workgroup one. Call from uniform control flow.
const BY_WORKGROUP: u32 = 0u;

fn workgroup_sum(local: u32, term: vec4f) -> vec4f {
    if (BY_WORKGROUP == 1u) {
        return sum64(local, term);
    }
    return term;
}

// Whether the invocation leaves a result, and where among those of its dispatch: `t` counts invocations along x.
fn leaves(local: u32) -> bool {
    return BY_WORKGROUP == 0u || local == 0u;
}

fn position(t: u32) -> u32 {
    return select(t, t / 64u, BY_WORKGROUP == 1u);
}

// x <- x * a + b, again and again in registers: what the adapter computes in f32. A chain waits for itself, so an
// invocation has several: 4 * CHAINS of them. Written out for up to four vec4s, because arrays would go to memory.
const CHAINS: u32 = 4u;
const ROUNDS: u32 = 1024u;
@group(0) @binding(0) var<uniform> params: Fma;
@group(0) @binding(1) var<storage, read_write> sums: array<vec4f>;

// Unrolled: with a loop around four of them a GPU spends half of its time on the loop.
fn four(x: vec4f, a: vec4f, b: vec4f) -> vec4f {
    return fma(fma(fma(fma(x, a, b), a, b), a, b), a, b);
}

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let i = (group.y * groups.x + group.x) * 64u + local;
    let a = vec4f(params.a);
    let b = vec4f(params.b);
    var x0 = vec4f(f32(i % 64u)) + vec4f(0.0, 0.25, 0.5, 0.75);
    var x1 = x0 + 1.0;
    var x2 = x0 + 2.0;
    var x3 = x0 + 3.0;
    for (var round = 0u; round < ROUNDS; round++) {
        x0 = four(x0, a, b);
        if (CHAINS > 1u) { x1 = four(x1, a, b); }
        if (CHAINS > 2u) { x2 = four(x2, a, b); }
        if (CHAINS > 3u) { x3 = four(x3, a, b); }
    }
    sums[i] = x0 + x1 + x2 + x3;
}

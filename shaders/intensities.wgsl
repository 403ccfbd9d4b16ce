// y = c0 + (c(x) - c0) exp(b(p)) + sigma n(p): a curve of a batch item's channel, linear between its points and constant beyond
// them; a coarse field; normal random numbers. One invocation an element of [N, C, D, H, W].
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<uniform> step: StepScalars;
@group(0) @binding(2) var<storage, read> x: array<f32>;
@group(0) @binding(3) var<storage, read> curves: array<f32>;
@group(0) @binding(4) var<storage, read> sigma: array<f32>;
@group(0) @binding(5) var<storage, read> coarse: array<f32>;
@group(0) @binding(6) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let i = (group.y * groups.x + group.x) * 64u + local;
    if (i >= params.count) {
        return;
    }
    let place = voxel_of(i);
    let slot = place.w;
    let curve = slot * params.row;
    let last = f32(params.row - 3u);
    let at = clamp((x[i] - curves[curve]) / (curves[curve + 1u] - curves[curve]) * last, 0.0, last);
    let before = min(u32(at), params.row - 4u);
    let value = mix(curves[curve + 2u + before], curves[curve + 3u + before], at - f32(before));

    let b = field(slot / params.channels, cells(place.xyz));
    let zero = curves[curve + 2u];
    var result = zero + (value - zero) * exp(b);
    if (sigma[slot] != 0.0) {
        result += sigma[slot] * normal(i, stream_of(params.id));
    }
    y[i] = result;
}

// y = c0 + (c(x) - c0) exp(b(p)) + sigma n(p): a curve of a batch item's channel, linear between its points and constant beyond
// them; a coarse field; normal random numbers. One invocation an element of [N, C, D, H, W].
@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<uniform> step: StepScalars;
@group(0) @binding(2) var<storage, read> x: array<f32>;
@group(0) @binding(3) var<storage, read> curves: array<f32>;
@group(0) @binding(4) var<storage, read> sigma: array<f32>;
@group(0) @binding(5) var<storage, read> bias: array<f32>;
@group(0) @binding(6) var<storage, read_write> y: array<f32>;

fn row(from_row: u32, x: Cell) -> f32 {
    return mix(bias[from_row + x.before], bias[from_row + x.next], x.share);
}

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
    let slot = i / params.width / params.height / params.depth;
    let curve = slot * params.row;
    let last = f32(params.row - 3u);
    let at = clamp((x[i] - curves[curve]) / (curves[curve + 1u] - curves[curve]) * last, 0.0, last);
    let before = min(u32(at), params.row - 4u);
    let value = mix(curves[curve + 2u + before], curves[curve + 3u + before], at - f32(before));

    let cx = cell(i % params.width, params.width, params.w);
    let cy = cell(i / params.width % params.height, params.height, params.h);
    let cz = cell(i / params.width / params.height % params.depth, params.depth, params.d);
    let from_item = slot / params.channels * params.d;
    let lower = (from_item + cz.before) * params.h;
    let upper = (from_item + cz.next) * params.h;
    let b = mix(
        mix(row((lower + cy.before) * params.w, cx), row((lower + cy.next) * params.w, cx), cy.share),
        mix(row((upper + cy.before) * params.w, cx), row((upper + cy.next) * params.w, cx), cy.share),
        cz.share,
    );
    let zero = curves[curve + 2u];
    var result = zero + (value - zero) * exp(b);
    if (sigma[slot] != 0.0) {
        result += sigma[slot] * normal(i, stream_of(params.id));
    }
    y[i] = result;
}

// Batch norm of a map x [N, D, C/4, H, W, 4] over N, D, H, W, and instance norm over D, H, W of each sample, with an optional
// leaky ReLU behind them.
//   z = gamma (x - mean) / sqrt(variance + eps) + beta;   y = z > 0 ? z : slope z   (slope 1: none)
// Training:  statistics -> merge -> normalise;   gradient: gradient_sums -> merge_sums -> gradient.
// A slice is one of the N·D runs of [C/4, H, W, 4]; a plane is its [H, W] vec4s of one channel block.

// Reductions: invocations or workgroups (common/workgroup_reduction.wgsl) leave a partial result of a block each (common/walk.wgsl).
@group(0) @binding(0) var<uniform> reduction: Reduction;
@group(0) @binding(1) var<storage, read> x: array<vec4f>;

// Count, mean and sum of squared distances from the mean (M2) of each invocation's elements. Sums run over the
// distances from the invocation's first element: E[x²] − E[x]² would cancel on raw Hounsfield units.
@group(0) @binding(2) var<storage, read_write> moments: array<vec4f>;   // [blocks][count, mean, M2][partials]

@compute @workgroup_size(64)
fn statistics(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
    let t = group.x * 64u + local;
    let block = group.y;
    var count = 0.0;
    var sum = vec4f(0.0);
    var squares = vec4f(0.0);
    var cursor = first_element(reduction.walk, t, block);
    cursor.at += reduction.base;
    var shift = vec4f(0.0);
    if (cursor.element < cursor.end) {
        shift = x[cursor.at];
    }
    while (cursor.element < cursor.end) {
        let distance = x[cursor.at] - shift;
        count += 1.0;
        sum += distance;
        squares += distance * distance;
        cursor = next_element(reduction.walk, cursor);
    }
    let n = max(count, 1.0);
    var own = Moments(count, shift + sum / n, max(squares - sum * sum / n, vec4f(0.0)));
    if (BY_WORKGROUP == 1u) {
        own = merged64(local, own);
    }
    if (leaves(local)) {
        let at = block * 3u * reduction.partials + reduction.first + position(t);
        moments[at] = vec4f(own.count);
        moments[at + reduction.partials] = own.mean;
        moments[at + 2u * reduction.partials] = own.m2;
    }
}

// Chan, Golub & LeVeque 1983: moments of a union from the moments of its parts. One workgroup a channel block, or on a CPU,
// where a barrier costs more than hundreds of parts, one invocation (`merge_alone`, `merge_sums_alone`).
@group(0) @binding(0) var<uniform> merging: Merge;
@group(0) @binding(1) var<storage, read> parts: array<vec4f>;            // as moments, or sums
@group(0) @binding(2) var<storage, read_write> mean_out: array<vec4f>;   // [groups of statistics][blocks]
@group(0) @binding(3) var<storage, read_write> variance_out: array<vec4f>;
@group(0) @binding(4) var<storage, read_write> running_mean: array<vec4f>;
@group(0) @binding(5) var<storage, read_write> running_variance: array<vec4f>;

struct Moments { count: f32, mean: vec4f, m2: vec4f }
var<workgroup> shared_moments: array<Moments, 64>;

fn merged(a: Moments, b: Moments) -> Moments {
    let count = a.count + b.count;
    let share = b.count / max(count, 1.0);
    let delta = b.mean - a.mean;
    return Moments(count, a.mean + delta * share, a.m2 + b.m2 + delta * delta * (a.count * share));
}

// Of all invocations of a workgroup, for the first of them. Call once, from uniform control flow.
fn merged64(local: u32, own: Moments) -> Moments {
    shared_moments[local] = own;
    for (var half = 32u; half > 0u; half = half / 2u) {
        workgroupBarrier();
        if (local < half) {
            shared_moments[local] = merged(shared_moments[local], shared_moments[local + half]);
        }
    }
    return shared_moments[local];
}

fn part_moments(p: u32) -> Moments {
    return Moments(parts[p].x, parts[p + merging.partials], parts[p + 2u * merging.partials]);
}

fn put_moments(block: u32, all: Moments) {
    mean_out[merging.first_block + block] = all.mean;
    variance_out[merging.first_block + block] = all.m2 / all.count;
    running_mean[block] += merging.momentum * (all.mean - running_mean[block]);
    running_variance[block] += merging.momentum * (all.m2 / (all.count - 1.0) - running_variance[block]);
}

@compute @workgroup_size(64)
fn merge_alone(@builtin(global_invocation_id) id: vec3u) {
    if (id.x >= merging.blocks) {
        return;
    }
    let base = id.x * 3u * merging.partials;
    let end = base + merging.partials;
    // Sixteen by sixteen: a mean that takes in one small part after the other loses digits each time.
    var all = Moments(0.0, vec4f(0.0), vec4f(0.0));
    for (var first = base; first < end; first += 16u) {
        var some = part_moments(first);
        for (var p = first + 1u; p < min(first + 16u, end); p++) {
            some = merged(some, part_moments(p));
        }
        all = merged(all, some);
    }
    put_moments(id.x, all);
}

@compute @workgroup_size(64)
fn merge(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
    let block = group.x;
    let base = block * 3u * merging.partials;
    var own = Moments(0.0, vec4f(0.0), vec4f(0.0));
    for (var p = base + local; p < base + merging.partials; p += 64u) {
        own = merged(own, part_moments(p));
    }
    own = merged64(local, own);
    if (local == 0u) {
        put_moments(block, own);
    }
}

// One invocation: every eighth vec4 of a run that eight invocations walk together. A plane has `runs`, whose numbers go on
// from plane to plane, so that small planes leave few invocations without work.
@group(0) @binding(0) var<uniform> planes: Planes;

// Elements of the plane from `first` on, every eighth before `end`; none of a plane past the last.
struct Run { plane: u32, first: u32, end: u32 }

fn run(group: vec3u, groups: vec3u, local: u32) -> Run {
    let index = (group.y * groups.x + group.x) * 8u + local / 8u;
    let plane = divide(index, planes.runs);
    let start = (index - plane * planes.runs) * planes.length;
    let end = select(0u, min(start + planes.length, planes.plane), plane < planes.planes);
    return Run(plane, start + local % 8u, end);
}
@group(0) @binding(2) var<storage, read> gamma: array<vec4f>;
@group(0) @binding(3) var<storage, read> beta: array<vec4f>;
@group(0) @binding(4) var<storage, read> mean: array<vec4f>;
@group(0) @binding(5) var<storage, read> variance: array<vec4f>;
@group(0) @binding(6) var<storage, read_write> y: array<vec4f>;

@compute @workgroup_size(64)
fn normalise(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let r = run(group, groups, local);
    let block = r.plane % planes.blocks;
    let statistic = planes.first_block + block;
    let centre = mean[statistic];
    let scale = lanes(gamma[block], block, planes.channels) / sqrt(variance[statistic] + planes.epsilon);
    let offset = lanes(beta[block], block, planes.channels);
    let base = planes.base + r.plane * planes.plane;
    for (var i = r.first; i < r.end; i += 8u) {
        let z = (x[base + i] - centre) * scale + offset;
        y[base + i] = select(planes.slope * z, z, z > vec4f(0.0));
    }
}

// Gradient. With g = dy · (z > 0 ? 1 : slope) and xhat = (x - mean) / sqrt(variance + eps):
//   dbeta = Σ g;  dgamma = Σ g xhat;  dx = gamma / sqrt(variance + eps) (g - dbeta / n - xhat dgamma / n)
// (1 / n is 0 with fixed statistics). z is computed again from x.
@group(0) @binding(6) var<storage, read> dy: array<vec4f>;
@group(0) @binding(7) var<storage, read_write> sums: array<vec4f>;   // [blocks][dbeta, dgamma][partials]

@compute @workgroup_size(64)
fn gradient_sums(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
    let t = group.x * 64u + local;
    let block = group.y;
    let centre = mean[reduction.first_block + block];
    let inverse = 1.0 / sqrt(variance[reduction.first_block + block] + reduction.epsilon);
    let scale = lanes(gamma[block], block, reduction.channels) * inverse;
    let offset = lanes(beta[block], block, reduction.channels);
    var dbeta = vec4f(0.0);
    var dgamma = vec4f(0.0);
    var cursor = first_element(reduction.walk, t, block);
    cursor.at += reduction.base;
    while (cursor.element < cursor.end) {
        let distance = x[cursor.at] - centre;
        let upstream = dy[cursor.at];
        let g = select(reduction.slope * upstream, upstream, distance * scale + offset > vec4f(0.0));
        dbeta += g;
        dgamma += g * distance;
        cursor = next_element(reduction.walk, cursor);
    }
    dbeta = workgroup_sum(local, dbeta);
    dgamma = workgroup_sum(local, dgamma);
    if (leaves(local)) {
        let at = block * 2u * reduction.partials + reduction.first + position(t);
        sums[at] = dbeta;
        sums[at + reduction.partials] = dgamma * inverse;
    }
}

@group(0) @binding(2) var<storage, read_write> dgamma_out: array<vec4f>;
@group(0) @binding(3) var<storage, read_write> dbeta_out: array<vec4f>;
@group(0) @binding(4) var<storage, read_write> both_out: array<vec4f>;   // [blocks][dbeta, dgamma]

fn put_sums(block: u32, dbeta: vec4f, dgamma: vec4f) {
    let statistic = merging.first_block + block;
    dbeta_out[statistic] = dbeta;
    dgamma_out[statistic] = dgamma;
    both_out[2u * statistic] = dbeta;
    both_out[2u * statistic + 1u] = dgamma;
}

@compute @workgroup_size(64)
fn merge_sums_alone(@builtin(global_invocation_id) id: vec3u) {
    if (id.x >= merging.blocks) {
        return;
    }
    let base = id.x * 2u * merging.partials;
    var dbeta = vec4f(0.0);
    var dgamma = vec4f(0.0);
    for (var p = base; p < base + merging.partials; p++) {
        dbeta += parts[p];
        dgamma += parts[p + merging.partials];
    }
    put_sums(id.x, dbeta, dgamma);
}

@compute @workgroup_size(64)
fn merge_sums(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
    let block = group.x;
    let base = block * 2u * merging.partials;
    var dbeta = vec4f(0.0);
    var dgamma = vec4f(0.0);
    for (var p = base + local; p < base + merging.partials; p += 64u) {
        dbeta += parts[p];
        dgamma += parts[p + merging.partials];
    }
    dbeta = sum64(local, dbeta);
    dgamma = sum64(local, dgamma);
    if (local == 0u) {
        put_sums(block, dbeta, dgamma);
    }
}

@group(0) @binding(7) var<storage, read> totals: array<vec4f>;   // [blocks][dbeta, dgamma]
@group(0) @binding(8) var<storage, read_write> dx: array<vec4f>;

// What the gradient's elements share in a channel block.
struct OfBlock { centre: vec4f, scale: vec4f, offset: vec4f, constant: vec4f, linear: vec4f }

fn of_block(block: u32) -> OfBlock {
    let statistic = planes.first_block + block;
    let inverse = 1.0 / sqrt(variance[statistic] + planes.epsilon);
    return OfBlock(
        mean[statistic],
        lanes(gamma[block], block, planes.channels) * inverse,
        lanes(beta[block], block, planes.channels),
        totals[2u * statistic] * planes.inverse_count,
        totals[2u * statistic + 1u] * planes.inverse_count * inverse,
    );
}

// dx of an element.
fn through(b: OfBlock, x: vec4f, upstream: vec4f) -> vec4f {
    let distance = x - b.centre;
    let g = select(planes.slope * upstream, upstream, distance * b.scale + b.offset > vec4f(0.0));
    return b.scale * (g - b.constant - distance * b.linear);
}

@compute @workgroup_size(64)
fn gradient(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let r = run(group, groups, local);
    let block = r.plane % planes.blocks;
    let b = of_block(block);
    for (var i = r.first; i < r.end; i += 8u) {
        let at = planes.base + r.plane * planes.plane + i;
        dx[at] = through(b, x[at], dy[at]);
    }
}

// dx over dy.
@group(0) @binding(6) var<storage, read_write> dy_dx: array<vec4f>;

@compute @workgroup_size(64)
fn gradient_in_place(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let r = run(group, groups, local);
    let block = r.plane % planes.blocks;
    let b = of_block(block);
    for (var i = r.first; i < r.end; i += 8u) {
        let at = planes.base + r.plane * planes.plane + i;
        dy_dx[at] = through(b, x[at], dy_dx[at]);
    }
}

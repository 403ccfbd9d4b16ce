// The floor(keep · n) voxels with the highest cross-entropy, of the n that count, equal ones by lowest index: their
// labels stay, all others become -1.
//   clear -> losses -> 3 × (histogram -> choose) -> count_ties -> prefix -> mark
// A radix selection over the bits of the losses: not negative, they order as their bits do. Integer atomics commute,
// so every run gives the same voxels.
@group(0) @binding(0) var<uniform> params: Params;

const IGNORED: u32 = 0xffffffffu;
const BINS: u32 = 2048u;
const PER_INVOCATION: u32 = 128u;   // losses an invocation of `histogram` counts
const CHUNK: u32 = 256u;            // consecutive voxels an invocation ranks

@group(0) @binding(3) var<storage, read_write> losses_out: array<u32>;

// One invocation a voxel.
@compute @workgroup_size(64)
fn losses(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let voxel = (group.y * groups.x + group.x) * 64u + local;
    if (voxel >= params.voxels) {
        return;
    }
    let label = labels[voxel];
    var bits = IGNORED;
    if (counts(label)) {
        let loss = voxel_cross_entropy(column(column_at(voxel, params.plane), params.plane), label);
        bits = min(bitcast<u32>(max(loss, 0.0)) & 0x7fffffffu, 0x7f800000u);
    }
    losses_out[voxel] = bits;
}

struct Selection {
    threshold: u32,   // bits of the lowest loss kept, as far as they are known
    rank: u32,        // how many to keep among the losses that share those bits
    kept: u32,        // how many to keep in all
    unused: u32,
}
@group(0) @binding(1) var<storage, read_write> histogram_out: array<atomic<u32>, BINS>;
@group(0) @binding(2) var<storage, read_write> selection: Selection;

// One workgroup.
@compute @workgroup_size(64)
fn clear(@builtin(local_invocation_index) local: u32) {
    for (var bin = local; bin < BINS; bin += 64u) {
        atomicStore(&histogram_out[bin], 0u);
    }
    if (local == 0u) {
        selection = Selection(0u, 0u, 0u, 0u);
    }
}

@group(0) @binding(2) var<storage, read> selected: Selection;
@group(0) @binding(3) var<storage, read> losses_in: array<u32>;
var<workgroup> local_histogram: array<atomic<u32>, BINS>;

// One workgroup: 64 · PER_INVOCATION losses. Counts the digits of those that share the threshold's bits above the digit
// (bit 31 is set in ignored voxels only).
@compute @workgroup_size(64)
fn histogram(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    for (var bin = local; bin < BINS; bin += 64u) {
        atomicStore(&local_histogram[bin], 0u);
    }
    workgroupBarrier();
    let first = (group.y * groups.x + group.x) * (64u * PER_INVOCATION) + local;
    let mask = (1u << (params.above - params.shift)) - 1u;
    for (var k = 0u; k < PER_INVOCATION; k++) {
        let voxel = first + k * 64u;
        if (voxel < params.voxels) {
            let loss = losses_in[voxel];
            if (loss >> params.above == selected.threshold >> params.above) {
                atomicAdd(&local_histogram[(loss >> params.shift) & mask], 1u);
            }
        }
    }
    workgroupBarrier();
    for (var bin = local; bin < BINS; bin += 64u) {
        let count = atomicLoad(&local_histogram[bin]);
        if (count > 0u) {
            atomicAdd(&histogram_out[bin], count);
        }
    }
}

var<workgroup> group_counts: array<u32, 64>;

// One workgroup: finds the digit of the threshold, from the highest bin down, and clears the histogram.
@compute @workgroup_size(64)
fn choose(@builtin(local_invocation_index) local: u32) {
    const EACH = BINS / 64u;
    var own = 0u;
    for (var i = 0u; i < EACH; i++) {
        own += atomicLoad(&histogram_out[local * EACH + i]);
    }
    group_counts[local] = own;
    workgroupBarrier();
    if (local == 0u) {
        if (params.above == 31u) {
            var n = 0u;
            for (var g = 0u; g < 64u; g++) {
                n += group_counts[g];
            }
            // floor(n · numerator / denominator) without overflow.
            selection.kept = n / params.denominator * params.numerator
                + n % params.denominator * params.numerator / params.denominator;
            selection.rank = selection.kept;
        }
        var rank = selection.rank;
        var g = 63u;
        while (g > 0u && group_counts[g] < rank) {
            rank -= group_counts[g];
            g -= 1u;
        }
        var bin = g * EACH + EACH - 1u;
        while (bin > g * EACH) {
            let count = atomicLoad(&histogram_out[bin]);
            if (count >= rank) {
                break;
            }
            rank -= count;
            bin -= 1u;
        }
        selection.threshold |= bin << params.shift;
        selection.rank = rank;
        if (params.shift == 0u && selection.kept == 0u) {
            selection.threshold = 0x7fffffffu; // above every loss
        }
    }
    workgroupBarrier();
    for (var i = 0u; i < EACH; i++) {
        atomicStore(&histogram_out[local * EACH + i], 0u);
    }
}

@group(0) @binding(1) var<storage, read_write> ties_out: array<u32>;

// One invocation a chunk: how many of its voxels have exactly the threshold's loss.
@compute @workgroup_size(64)
fn count_ties(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let chunk = (group.y * groups.x + group.x) * 64u + local;
    if (chunk * CHUNK >= params.voxels) {
        return;
    }
    var ties = 0u;
    for (var voxel = chunk * CHUNK; voxel < min(chunk * CHUNK + CHUNK, params.voxels); voxel++) {
        ties += u32(losses_in[voxel] == selected.threshold);
    }
    ties_out[params.first_chunk + chunk] = ties;
}

// One workgroup: each chunk's ties become the number of ties before it.
@compute @workgroup_size(64)
fn prefix(@builtin(local_invocation_index) local: u32) {
    let each = (params.chunks + 63u) / 64u;
    let begin = min(local * each, params.chunks);
    let end = min(begin + each, params.chunks);
    var own = 0u;
    for (var chunk = begin; chunk < end; chunk++) {
        own += ties_out[chunk];
    }
    group_counts[local] = own;
    workgroupBarrier();
    var before = 0u;
    for (var g = 0u; g < local; g++) {
        before += group_counts[g];
    }
    for (var chunk = begin; chunk < end; chunk++) {
        let ties = ties_out[chunk];
        ties_out[chunk] = before;
        before += ties;
    }
}

@group(0) @binding(1) var<storage, read> ties_before: array<u32>;
@group(0) @binding(4) var<storage, read> labels_in: array<f32>;

// One invocation a chunk. The losses give way to the labels.
@compute @workgroup_size(64)
fn mark(
    @builtin(workgroup_id) group: vec3u,
    @builtin(num_workgroups) groups: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let chunk = (group.y * groups.x + group.x) * 64u + local;
    if (chunk * CHUNK >= params.voxels) {
        return;
    }
    var rank = ties_before[params.first_chunk + chunk];
    for (var voxel = chunk * CHUNK; voxel < min(chunk * CHUNK + CHUNK, params.voxels); voxel++) {
        let loss = losses_out[voxel];
        var keep = loss > selected.threshold && loss != IGNORED;
        if (loss == selected.threshold) {
            keep = rank < selected.rank;
            rank += 1u;
        }
        losses_out[voxel] = bitcast<u32>(select(-1.0, labels_in[voxel], keep));
    }
}

// In place of the outputs of conv3d_winograd.wgsl the label of the highest, the first of equal ones, or -1: arg_max.wgsl without the
// logits in memory. With a 1×1×1 convolution between (conv77U of the hybrid), its outputs are what is compared.
// An invocation has all outputs of its voxels.
// 1 for that convolution.
const POINTWISE: u32 = 0u;
@group(0) @binding(3) var<storage, read_write> labels: array<f32>;

// [row of a tile]
var<private> logits: array<Planes, 2>;
var<private> best: array<Planes, 2>;
var<private> label: array<Planes, 2>;
var<private> magnitude: array<vec4u, 2>;

fn consider(row: u32, number: u32) {
    let bits = bitcast<vec4u>(logits[row]) & vec4u(0x7fffffffu);
    magnitude[row] = select(max(magnitude[row], bits), bits, number == 0u);
    let better = vec4<bool>(number == 0u) | (logits[row] > best[row]);
    best[row] = select(best[row], logits[row], better);
    label[row] = select(label[row], Planes(f32(number)), better);
}

fn activate(s: u32, bias: f32) {
    let sum = sums[s] + bias;
    sums[s] = select(params.slope * sum, sum, sum > Planes());
}

fn chosen(row: u32, plane: u32) -> f32 {
    return select(-1.0, label[row][plane], magnitude[row][plane] < 0x7f800000u);
}

fn put_label(at: u32, t: u32, row: u32, place: Target) {
    let y = place.y + 2u * t + row;
    if (y < params.height) {
        let i = at + y * params.width;
        labels[i] = chosen(row, t);
        if (place.both) {
            labels[i + params.height * params.width] = chosen(row, t + 2u);
        }
    }
}

fn finish(place: Target) {
    // unroll
    for (var block = 0u; block < BLOCKS; block++) {
        let bias = select(vec4f(), packed_bias(params.bias_base + block), params.mode == 1u);
        // unroll
        for (var output = 0u; output < min(4u, 4u * (BLOCKS - 1u - block) + OUTPUTS); output++) {
            const channel = block * 4u + output;
            activate(2u * channel, bias[output]);
            activate(2u * channel + 1u, bias[output]);
            if (POINTWISE == 0u) {
                logits[0] = sums[2u * channel];
                logits[1] = sums[2u * channel + 1u];
                consider(0u, channel);
                consider(1u, channel);
            }
        }
    }
    if (POINTWISE == 1u) {
        for (var number = 0u; number < params.classes; number++) {
            let weights = w[params.pointwise_base + 8u * number + (place.lane & 7u)];
            let bias = subgroupShuffle(weights.x, 4u);
            logits[0] = Planes(bias);
            logits[1] = Planes(bias);
            // Lane l has those of the channels of block l.
            // unroll
            for (var block = 0u; block < BLOCKS; block++) {
                // unroll
                for (var output = 0u; output < min(4u, 4u * (BLOCKS - 1u - block) + OUTPUTS); output++) {
                    let weight = Planes(subgroupShuffle(weights[output], block));
                    logits[0] = fma(weight, sums[2u * (block * 4u + output)], logits[0]);
                    logits[1] = fma(weight, sums[2u * (block * 4u + output) + 1u], logits[1]);
                }
            }
            consider(0u, number);
            consider(1u, number);
        }
    }
    if (!place.inside) {
        return;
    }
    let at = (place.n * params.depth + place.z) * params.height * params.width + place.x - params.y_base;
    // unroll
    for (var t = 0u; t < 2u; t++) {
        // unroll
        for (var row = 0u; row < 2u; row++) {
            put_label(at, t, row, place);
        }
    }
}

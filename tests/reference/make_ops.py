# /// script
# requires-python = ">=3.11"
# dependencies = ["torch==2.15.0", "numpy==2.4.6", "safetensors==0.8.0"]
# ///
"""PyTorch references for every operation: writes ops/OP.safetensors beside this script.

    uv run make_ops.py            all operations
    uv run make_ops.py conv3d     some of them

A file holds several cases. Its tensors are named CASE/NAME and its metadata has one key, `cases`: a JSON object
{CASE: {attribute: value}}. Inputs are rounded to float32, everything after that is computed in float64, and the
results are stored as float32. Every case of a differentiable operation stores an upstream gradient (`upstream`, of the
output's shape) and `grad_NAME` for each differentiable input: the gradient of sum(output * upstream). Losses are
tensors of shape [1]; their labels are float32 [N, 1, D, H, W] with -1 for voxels that do not count.

Samples keep 5e-3 voxels away from cell borders (where the gradient by a coordinate jumps) and activations 1e-3 from
their kink, so that float32 takes the same branch.

Losses, with p = softmax(logits) over classes, t one-hot, sums over the voxels of the whole batch that count:

  cross_entropy   sum(w[t] * ce) / sum(w[t])
  hard_mining     the same over the floor(fraction * n) voxels, of the n that count, with the highest unweighted ce;
                  equal ones by lowest index in [N, D, H, W]
  soft_dice       1 - mean over labels 1.. of D_l;  D_l = 2 sum(p t) / (sum(p) + sum(t) + eps), or with `squared`
                  sum(p^2) + sum(t^2) in the denominator (Milletari 2016)
  dice_hinge      1 - mean(D_l) + 10 mean((10 min(D_l, 0.1) - 1)^2) + 10 mean((100 min(D_l, 0.01) - 1)^2):
                  Gibson et al. 2018 (dense V-networks) penalise Dice scores below 0.1 and 0.01; the squares and the
                  factors 10 are those of `dice_hinge.py`, the loss published with their network in NiftyNet's model
                  zoo, which has the squared denominators and eps 1e-5. That file takes one scan's voxels and counts
                  the background among the labels; here, as in soft_dice, sums run over the batch and the mean over
                  labels 1.. alone.
"""

import json
import os
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

OUT = Path(__file__).resolve().parent / "ops"
BORDER = 5e-3  # voxels between a sample and the nearest cell border


class Case:
    """Collects one case; inputs pass through float32 so that the stored numbers are the ones computed with."""

    def __init__(self, op, name):
        self.rng = np.random.default_rng(zlib.crc32(f"{op}/{name}".encode()))
        self.tensors = {}
        self.leaves = {}
        self.attributes = {}

    def normal(self, *shape, mean=0.0, std=1.0):
        return mean + std * self.rng.standard_normal(shape)

    def input(self, name, values, differentiable=True):
        value = torch.tensor(np.asarray(values), dtype=torch.float32).double()
        self.tensors[name] = value.clone()
        if differentiable:
            value.requires_grad_(True)
            self.leaves[name] = value
        return value

    def output(self, value, name="output"):
        if value.ndim == 0:
            value = value.reshape(1)
        self.tensors[name] = value.detach()
        if self.leaves:
            upstream = torch.tensor(self.normal(*value.shape), dtype=torch.float32).double()
            self.tensors["upstream"] = upstream
            grads = torch.autograd.grad(value, list(self.leaves.values()), upstream)
            for leaf, grad in zip(self.leaves, grads):
                self.tensors[f"grad_{leaf}"] = grad


class File:
    def __init__(self, op):
        self.op = op
        self.cases = {}

    def case(self, name, **attributes):
        assert name not in self.cases
        self.cases[name] = case = Case(self.op, name)
        case.attributes = attributes
        return case

    def save(self):
        tensors = {
            f"{case}/{name}": value.to(torch.float32).contiguous()
            for case, c in self.cases.items()
            for name, value in c.tensors.items()
        }
        for name, value in tensors.items():
            assert torch.isfinite(value).all(), name
        cases = {name: c.attributes for name, c in self.cases.items()}
        OUT.mkdir(exist_ok=True)
        path = OUT / f"{self.op}.safetensors"
        save_file(tensors, path.with_suffix(".tmp"), metadata={"cases": json.dumps(cases, sort_keys=True)})
        os.replace(path.with_suffix(".tmp"), path)
        print(f"{path.name}: {len(cases)} cases, {path.stat().st_size} bytes")


def triple(v):
    return [v] * 3 if isinstance(v, int) else list(v)


def conv3d():
    file = File("conv3d")
    #     name                       N  sources      O  size       kernel     stride padding    dil groups bias
    for name, n, sources, o, size, k, s, p, d, g, b in [
        ("k3_1_to_4",                2, [1],         4, (7, 9, 6), 3,         1,     1,         1,  1,  True),
        ("k3_5_to_7",                1, [5],         7, (7, 9, 6), 3,         1,     1,         1,  1,  True),
        ("k3_5_to_7_no_bias",        1, [5],         7, (3, 5, 4), 3,         1,     1,         1,  1,  False),
        ("k3_4_to_16_stride2",       2, [4],        16, (7, 9, 6), 3,         2,     1,         1,  1,  True),
        ("k3_4_to_16_stride2_even",  1, [4],        16, (6, 4, 8), 3,         2,     1,         1,  1,  True),
        ("k3_12_to_9",               1, [12],        9, (4, 5, 7), 3,         1,     1,         1,  1,  True),
        ("k3_16_to_8_groups4",       1, [16],        8, (4, 5, 3), 3,         1,     1,         1,  4,  True),
        ("k3_8_to_12_groups4_no_bias", 1, [8],      12, (4, 3, 5), 3,         1,     1,         1,  4,  False),
        ("k3_6_to_10_groups2_stride2", 2, [6],      10, (5, 4, 7), 3,         2,     1,         1,  2,  True),
        ("k3_no_padding",            1, [3],         5, (5, 6, 4), 3,         1,     0,         1,  1,  True),
        ("k3_dilation2",             1, [3],         6, (7, 6, 5), 3,         1,     2,         2,  1,  True),
        ("k3_dilation2_stride2_groups2", 1, [4],     6, (7, 8, 5), 3,         2,     1,         2,  2,  True),
        ("k135",                     2, [3],         5, (4, 6, 7), (1, 3, 5), 1,     (0, 1, 2), 1,  1,  True),
        ("k135_stride_121",          1, [4],         6, (3, 7, 6), (1, 3, 5), (1, 2, 1), (0, 1, 1), 1, 1, True),
        ("k1_5_to_7",                2, [5],         7, (3, 5, 4), 1,         1,     0,         1,  1,  True),
        ("k1_9_to_9",                1, [9],         9, (3, 4, 5), 1,         1,     0,         1,  1,  True),
        ("k1_16_to_8_groups2_no_bias", 2, [16],      8, (3, 3, 5), 1,         1,     0,         1,  2,  False),
        ("k1_160_to_32_no_bias",     1, [160],      32, (3, 2, 3), 1,         1,     0,         1,  1,  False),
        ("k1_stride2",               1, [3],         5, (5, 4, 7), 1,         2,     0,         1,  1,  True),
        ("concat_2_5_3",             2, [5, 3],      6, (4, 5, 3), 3,         1,     1,         1,  1,  True),
        ("concat_2_8_4_stride2",     1, [8, 4],      9, (5, 6, 7), 3,         2,     1,         1,  1,  True),
        ("concat_3_8_4_5",           1, [8, 4, 5],  12, (4, 3, 5), 3,         1,     1,         1,  1,  True),
        ("concat_3_1_6_2_k1",        2, [1, 6, 2],   5, (3, 4, 3), 1,         1,     0,         1,  1,  False),
        ("concat_2_6_2_groups2",     1, [6, 2],      8, (3, 4, 5), 3,         1,     1,         1,  2,  True),
    ]:  # fmt: skip
        k, s, p, d = map(triple, (k, s, p, d))
        c = file.case(name, stride=s, padding=p, dilation=d, groups=g, kernel=k, bias=b, sources=len(sources))
        xs = [c.input(f"x{i}", c.normal(n, ci, *size)) for i, ci in enumerate(sources)]
        fan = sum(sources) // g * int(np.prod(k))
        weight = c.input("weight", c.normal(o, sum(sources) // g, *k, std=fan**-0.5))
        bias = c.input("bias", c.normal(o)) if b else None
        c.output(F.conv3d(torch.cat(xs, 1), weight, bias, s, p, d, g))
    return file


def conv_transpose3d():
    file = File("conv_transpose3d")
    #     name                  N  in  out  size       kernel     stride     padding    more       dil groups bias
    for name, n, i, o, size, k, s, p, m, d, g, b in [
        ("k2_stride2",          2, 5,  6,   (3, 4, 2), 2,         2,         0,         0,         1,  1,  True),
        ("k3_stride2",          1, 4,  7,   (3, 2, 4), 3,         2,         1,         1,         1,  1,  True),
        ("k122_stride122",      1, 9,  4,   (3, 2, 4), (1, 2, 2), (1, 2, 2), 0,         0,         1,  1,  False),
        ("k3_stride1",          1, 3,  5,   (3, 4, 5), 3,         1,         1,         0,         1,  1,  True),
        ("k2_stride3_groups2",  2, 4,  6,   (2, 3, 2), 2,         3,         0,         (2, 0, 1), 1,  2,  True),
        ("k3_dilation2",        1, 3,  4,   (3, 2, 3), (3, 2, 3), (2, 1, 3), (1, 0, 2), (1, 0, 0), 2,  1,  True),
    ]:  # fmt: skip
        c = file.case(name, stride=triple(s), padding=triple(p), output_padding=triple(m), dilation=triple(d), groups=g)
        x = c.input("x", c.normal(n, i, *size))
        weight = c.input("weight", c.normal(i, o // g, *triple(k), std=0.3))
        bias = c.input("bias", c.normal(o, std=0.3)) if b else None
        c.output(F.conv_transpose3d(x, weight, bias, triple(s), triple(p), triple(m), g, triple(d)))
    return file


def regular_grid(size):
    """[D, H, W, 3] normalised (x, y, z) of a regular grid, -1 and +1 at the outer points; 0 on an axis of one point."""
    return F.affine_grid(torch.eye(3, 4).double()[None], [1, 1, *size], align_corners=True)[0]


def too_close(coordinates, size, align_corners=True, half=False):
    """Which of the coordinates [..., 3] (x, y, z) lie within BORDER voxels of a cell border; `half`: of a rounding tie."""
    n = np.array([size[2], size[1], size[0]], dtype=np.float64)
    voxel = (coordinates + 1) / 2 * (n - 1) if align_corners else ((coordinates + 1) * n - 1) / 2
    if half:
        voxel = voxel + 0.5
    distance = np.abs(voxel - np.round(voxel))
    return (distance < BORDER) & (n > 1)


def offsets_between_borders(case, shape, std, locations, size):
    """Offsets N(0, std^2), drawn again, axis by axis, while any sample lies close to a cell border."""
    offsets = case.normal(*shape, 3, std=std).astype(np.float32).astype(np.float64)
    flat = offsets.reshape(-1, 3)
    for o in flat:
        for _ in range(10000):
            bad = too_close(locations.reshape(-1, 3) + o, size).any(0)
            if not bad.any():
                break
            o[bad] = case.normal(3, std=std).astype(np.float32)[bad]
        else:
            raise RuntimeError("no offset keeps every sample off the cell borders")
    return offsets


def obelisk_sample(image, locations, offsets, grid):
    """image [N, C, D, H, W], locations [N, S, 3], offsets [K, 3] or [K, 2, 3] -> [N, C*K, *grid]; channel c*K + k."""
    binary = offsets.ndim == 3

    def sample(o):  # [N, C, K, S]
        return F.grid_sample(
            image, (locations[:, None] + o[None, :, None])[:, :, :, None], "bilinear", "zeros", align_corners=True
        )[..., 0]

    x = sample(offsets[:, 0]) - sample(offsets[:, 1]) if binary else sample(offsets)
    return x.reshape(image.shape[0], -1, *grid)


def obelisk(op, binary, weighted):
    file = File(op)
    #         name                   N  C  size       K   std   grid or number of points, groups, outputs
    table = [
        ("grid_1_channel",           2, 1, (7, 9, 6), 5,  0.3,  (3, 5, 3), 1, 7),
        ("grid_4_channels",          1, 4, (6, 5, 8), 6,  0.2,  (2, 3, 4), 2, 10),
        ("grid_wide_offsets",        1, 1, (8, 6, 7), 8,  0.8,  (4, 3, 3), 4, 8),
        ("grid_one_plane",           1, 2, (5, 6, 4), 4,  0.3,  (3, 1, 2), 1, 3),
        ("points",                   2, 1, (7, 9, 6), 5,  0.3,  11,        1, 6),
        ("points_3_channels",        2, 3, (6, 7, 5), 4,  0.3,  7,         2, 8),
    ]  # fmt: skip
    if weighted:
        table.append(("grid_512_to_64", 1, 1, (6, 9, 7), 512 if not binary else 64, 0.3, (2, 3, 3), 4, 16))
    for name, n, channels, size, k, std, where, groups, outputs in table:
        attributes = {"binary": binary}
        if weighted:
            attributes["groups"] = groups
        if isinstance(where, tuple):
            attributes["grid"] = list(where)
        c = file.case(name, **attributes)
        image = c.input("input", c.normal(n, channels, *size))
        if isinstance(where, tuple):
            locations = regular_grid(where).reshape(1, -1, 3).expand(n, -1, -1)
            grid = where
        else:
            locations = c.input("points", c.rng.uniform(-1.05, 1.05, (n, where, 3)), differentiable=False)
            grid = (where,)
        shape = (k, 2) if binary else (k,)
        offsets = c.input("offsets", offsets_between_borders(c, shape, std, locations.numpy(), size))
        x = obelisk_sample(image, locations, offsets, grid)
        if weighted:
            fan = channels * k // groups
            weight = c.input("weight", c.normal(outputs, fan, std=fan**-0.5))
            shape = (outputs, fan) + (1,) * len(grid)
            conv = F.conv3d if len(grid) == 3 else F.conv1d
            x = conv(x, weight.reshape(shape), groups=groups)
        c.output(x)
    return file


def obelisk_unary():
    return obelisk("obelisk_unary", False, False)


def obelisk_binary():
    return obelisk("obelisk_binary", True, False)


def obelisk_layer():
    unary = obelisk("obelisk_layer", False, True)
    binary = obelisk("obelisk_layer", True, True)
    file = File("obelisk_layer")
    file.cases = {f"unary_{k}": v for k, v in unary.cases.items()} | {f"binary_{k}": v for k, v in binary.cases.items()}
    return file


def turn_offsets():
    """o' = A o of offsets [1, K, 1, P, 3] in (x, y, z); theta [1, 3, 4] = (A | t), a constant."""
    file = File("turn_offsets")
    for name, k, terms in [("unary", 5, 1), ("binary", 7, 2)]:
        c = file.case(name)
        offsets = c.input("offsets", c.normal(1, k, 1, terms, 3, std=0.3))
        theta = c.input("theta", np.eye(3, 4)[None] + c.normal(1, 3, 4, std=0.3), differentiable=False)
        c.output(torch.einsum("nij,nkdpj->nkdpi", theta[:, :, :3], offsets))
    return file


def grid_sample():
    file = File("grid_sample")
    size, out = (5, 7, 6), (3, 4, 5)
    for align in (True, False):
        for padding in ("zeros", "border"):
            for mode in ("bilinear", "nearest"):
                name = f"{mode}_{padding}_{'corners' if align else 'edges'}"
                c = file.case(name, mode=mode, padding_mode=padding, align_corners=align)
                image = c.input("input", c.normal(2, 3, *size))
                coordinates = c.rng.uniform(-1.4, 1.4, (2, *out, 3)).astype(np.float32).astype(np.float64)
                while (bad := too_close(coordinates, size, align, half=mode == "nearest")).any():
                    again = c.rng.uniform(-1.4, 1.4, coordinates.shape).astype(np.float32)
                    coordinates[bad] = again[bad]
                grid = c.input("grid", coordinates, differentiable=mode == "bilinear")
                c.output(F.grid_sample(image, grid, mode, padding, align_corners=align))
    for padding in ("zeros", "border"):
        # Exact halves in binary arithmetic, on axes of 3, 9 and 5 voxels: nearest rounds them to the even voxel.
        c = file.case(
            f"nearest_{padding}_ties_to_even", mode="nearest", padding_mode=padding, align_corners=True
        )
        image = c.input("input", c.normal(1, 2, 3, 9, 5))
        x = (torch.arange(-1, 6) + 0.5) / 2 - 1
        y = (torch.arange(-1, 10) + 0.5) / 4 - 1
        z = (torch.arange(-1, 4) + 0.5) - 1
        zs, ys, xs = torch.meshgrid(z, y, x, indexing="ij")
        grid = c.input("grid", torch.stack([xs, ys, zs], -1)[None].numpy(), differentiable=False)
        c.output(F.grid_sample(image, grid, "nearest", padding, align_corners=True))
    return file


def affine_grid():
    file = File("affine_grid")
    for align in (True, False):
        for name, n, size in [("odd", 2, (3, 5, 4)), ("one_voxel_axis", 1, (1, 4, 3))]:
            c = file.case(
                f"{name}_{'corners' if align else 'edges'}", align_corners=align, size=[n, 1, *size]
            )
            theta = c.input("theta", np.eye(3, 4)[None] + c.normal(n, 3, 4, std=0.1))
            c.output(F.affine_grid(theta, [n, 1, *size], align_corners=align))
    return file


def batch_norm():
    file = File("batch_norm")
    for name, n, ch, size, training, mean, std in [
        ("training",               2, 5, (7, 9, 6), True, 0.3, 1.5),
        ("training_one_channel",   3, 1, (3, 2, 5), True, -1.0, 0.2),
        ("training_12_channels",   1, 12, (4, 3, 5), True, 0.0, 1.0),
        ("training_mean_1000",     2, 3, (5, 7, 6), True, 1000.0, 1.0),
        ("inference",              2, 5, (3, 5, 4), False, 0.3, 1.5),
    ]:  # fmt: skip
        c = file.case(name, training=training, momentum=0.1, eps=1e-5)
        x = c.input("input", c.normal(n, ch, *size, mean=mean, std=std))
        weight = c.input("weight", 1 + c.normal(ch, std=0.3))
        bias = c.input("bias", c.normal(ch, std=0.3))
        running_mean = c.input("running_mean", c.normal(ch, mean=mean), differentiable=False).clone()
        running_var = c.input("running_var", c.rng.uniform(0.5, 2.0, ch), differentiable=False).clone()
        c.output(F.batch_norm(x, running_mean, running_var, weight, bias, training, 0.1, 1e-5))
        if training:
            c.tensors["new_running_mean"] = running_mean
            c.tensors["new_running_var"] = running_var
    return file


def instance_norm():
    file = File("instance_norm")
    for name, n, ch, size, mean, std in [
        ("two_samples",            2, 5, (4, 5, 3), 0.3, 1.5),
        ("one_sample",             1, 9, (3, 4, 5), -1.0, 0.2),
        ("mean_1000",              2, 3, (5, 4, 6), 1000.0, 1.0),
    ]:  # fmt: skip
        c = file.case(name, eps=1e-5)
        x = c.input("input", c.normal(n, ch, *size, mean=mean, std=std))
        weight = c.input("weight", 1 + c.normal(ch, std=0.3))
        bias = c.input("bias", c.normal(ch, std=0.3))
        c.output(F.instance_norm(x, weight=weight, bias=bias, eps=1e-5))
    return file


def off_zero(values):
    return np.where(np.abs(values) < 1e-3, values + np.sign(values + 1e-9) * 1e-2, values)


def leaky_relu():
    file = File("leaky_relu")
    for slope in (0.025, 0.05, 0.1):
        c = file.case(f"slope_{slope}", negative_slope=slope)
        x = c.input("input", off_zero(c.normal(2, 5, 3, 4, 3)))
        c.output(F.leaky_relu(x, slope))
    return file


def relu():
    file = File("relu")
    c = file.case("plain")
    x = c.input("input", off_zero(c.normal(2, 5, 3, 4, 3)))
    c.output(F.relu(x))
    return file


def elu():
    file = File("elu")
    c = file.case("plain")
    x = c.input("input", off_zero(c.normal(2, 5, 3, 4, 3, std=2)))
    c.output(F.elu(x))
    return file


def gelu():
    file = File("gelu")
    c = file.case("plain")
    x = c.input("input", c.normal(2, 5, 3, 4, 3, std=2))
    c.output(F.gelu(x))
    return file


def avg_pool3d():
    file = File("avg_pool3d")
    for name, n, ch, size, k, s, p in [
        ("k3_s1_p1",           2, 1, (7, 9, 6), 3, 1, 1),
        ("k3_s1_p1_channels",  1, 5, (4, 3, 5), 3, 1, 1),
        ("k5_s1_p2",           1, 2, (7, 5, 6), 5, 1, 2),
        ("k3_s2_p1_odd",       2, 1, (7, 9, 5), 3, 2, 1),
        ("k3_s2_p1_even",      1, 2, (6, 8, 4), 3, 2, 1),
        ("k2_s2_p0",           1, 3, (5, 4, 6), 2, 2, 0),
    ]:  # fmt: skip
        c = file.case(name, kernel=triple(k), stride=triple(s), padding=triple(p), count_include_pad=True)
        x = c.input("input", c.normal(n, ch, *size))
        c.output(F.avg_pool3d(x, k, s, p, count_include_pad=True))
    return file


def upsample_trilinear():
    file = File("upsample_trilinear")
    for name, n, ch, size, to in [
        ("double",          2, 5, (3, 4, 2), (6, 8, 4)),
        ("double_less_one", 1, 5, (4, 5, 3), (7, 9, 5)),
        ("ratios",          1, 3, (4, 3, 5), (9, 7, 6)),
        ("one_voxel_axis",  1, 4, (1, 3, 2), (2, 5, 3)),
        ("triple",          1, 2, (2, 3, 3), (6, 9, 10)),
        ("same_size",       1, 3, (3, 4, 2), (3, 4, 2)),
        ("one_axis_down",   1, 2, (6, 4, 5), (4, 7, 5)),
    ]:  # fmt: skip
        c = file.case(name, size=list(to), align_corners=False)
        x = c.input("input", c.normal(n, ch, *size))
        c.output(F.interpolate(x, to, mode="trilinear", align_corners=False))
    return file


def nearest():
    file = File("nearest")
    for name, n, ch, size, to in [
        ("double",         2, 5, (3, 4, 2), (6, 8, 4)),
        ("half",           1, 3, (6, 8, 4), (3, 4, 2)),
        ("ratios",         1, 3, (4, 3, 5), (9, 7, 6)),
        ("downwards",      1, 6, (9, 7, 5), (4, 3, 5)),
        ("one_voxel_axis", 1, 4, (1, 3, 2), (2, 5, 1)),
    ]:  # fmt: skip
        c = file.case(name, size=to)
        x = c.input("input", c.normal(n, ch, *size))
        c.output(F.interpolate(x, size=to, mode="nearest-exact"))
    return file


def max_pool3d():
    file = File("max_pool3d")
    for name, n, ch, size, k, s, p in [
        ("k2_s2_p0",       1, 3, (5, 4, 6), 2, 2, 0),
        ("k3_s2_p1_odd",   2, 5, (7, 9, 5), 3, 2, 1),
        ("k3_s1_p1",       1, 2, (4, 3, 5), 3, 1, 1),
        ("by_axis",        1, 4, (5, 6, 7), (1, 3, 2), (1, 2, 2), (0, 1, 0)),
    ]:  # fmt: skip
        c = file.case(name, kernel=triple(k), stride=triple(s), padding=triple(p))
        x = c.input("input", c.normal(n, ch, *size))
        c.output(F.max_pool3d(x, k, s, p))
    # Many equal values: the first in the order of the voxels is the one that counts.
    c = file.case("ties", kernel=triple(3), stride=triple(2), padding=triple(1))
    x = c.input("input", c.normal(1, 3, 6, 7, 5).round())
    c.output(F.max_pool3d(x, 3, 2, 1))
    return file


def probabilities():
    file = File("probabilities")
    for kind, function in [("softmax", lambda x: F.softmax(x, 1)), ("sigmoid", torch.sigmoid)]:
        for channels in (1, 3, 8, 13):
            c = file.case(f"{kind}_{channels}", kind=kind)
            x = c.input("input", c.normal(2, channels, 3, 4, 5, std=3.0))
            c.output(function(x))
    return file


def concat():
    file = File("concat")
    for name, n, channels in [("2_sources", 2, (5, 3)), ("3_sources", 1, (4, 1, 6)), ("2_aligned", 1, (8, 4))]:
        c = file.case(name, axis=1, sources=len(channels))
        c.output(torch.cat([c.input(f"x{i}", c.normal(n, ch, 3, 4, 2)) for i, ch in enumerate(channels)], 1))
    return file


def linear():
    file = File("linear")
    for name, n, inputs, outputs, bias in [
        ("37_to_11", 3, 37, 11, True),
        ("no_bias", 2, 16, 20, False),
        ("one_row", 1, 130, 6, True),
    ]:
        c = file.case(name, bias=bias)
        x = c.input("input", c.normal(n, inputs))
        weight = c.input("weight", c.normal(outputs, inputs, std=inputs**-0.5))
        c.output(F.linear(x, weight, c.input("bias", c.normal(outputs)) if bias else None))
    return file


def voxelwise_cross_entropy(logits, labels):
    """[N, D, H, W]; 0 where the label is -1."""
    return F.cross_entropy(logits, labels[:, 0].long(), ignore_index=-1, reduction="none")


def weighted_mean(ce, labels, weights, keep):
    w = weights[labels[:, 0].long().clamp(min=0)] * keep
    return (w * ce).sum() / w.sum()


def hard_examples(ce, labels, fraction):
    """Mask [N, D, H, W] of the floor(fraction * n) voxels with the highest ce among the n with a label."""
    valid = labels[:, 0] >= 0
    count = int(np.floor(fraction * int(valid.sum())))
    loss = torch.where(valid, ce, -torch.inf).flatten()
    order = torch.argsort(loss, descending=True, stable=True)
    keep = torch.zeros_like(loss)
    keep[order[:count]] = 1
    return keep.reshape(ce.shape), loss[order], count


def dice_scores(logits, labels, squared, eps):
    """[L - 1]: the soft Dice of labels 1 and up."""
    valid = (labels >= 0).double()
    p = torch.softmax(logits, 1) * valid
    t = F.one_hot(labels[:, 0].long().clamp(min=0), logits.shape[1]).movedim(-1, 1).double() * valid
    axes = (0, 2, 3, 4)
    power = 2 if squared else 1
    d = 2 * (p * t).sum(axes) / ((p**power).sum(axes) + (t**power).sum(axes) + eps)
    return d[1:]


def scene(c, n, classes, size, ignored=0.0, scale=1.5, absent=()):
    """Logits that agree partly with random labels."""
    present = [l for l in range(classes) if l not in absent]
    labels = c.rng.choice(present, (n, 1, *size)).astype(np.float64)
    logits = c.normal(n, classes, *size, std=scale)
    np.put_along_axis(logits, labels.astype(int), np.take_along_axis(logits, labels.astype(int), 1) + 1.0, 1)
    labels[c.rng.uniform(size=labels.shape) < ignored] = -1
    return c.input("logits", logits), c.input("labels", labels, differentiable=False)


def cross_entropy():
    file = File("cross_entropy")
    for name, n, classes, size, ignored, weighted, scale in [
        ("plain",             2, 3, (3, 5, 4), 0.0, False, 1.5),
        ("weighted",          2, 5, (3, 4, 4), 0.0, True,  1.5),
        ("ignored",           1, 3, (5, 4, 3), 0.3, False, 1.5),
        ("weighted_ignored",  2, 9, (3, 3, 4), 0.2, True,  1.5),
        ("two_classes",       1, 2, (3, 4, 3), 0.0, True,  1.5),
        ("large_logits",      1, 4, (3, 4, 3), 0.1, True,  60.0),
    ]:  # fmt: skip
        c = file.case(name, ignore=-1, weighted=weighted)
        logits, labels = scene(c, n, classes, size, ignored, scale)
        weights = np.ones(classes)
        if weighted:
            weights = c.rng.uniform(0.2, 2.0, classes)
            if name == "weighted_ignored":
                weights[4] = 0.0  # an absent label's weight
        weights = c.input("class_weights", weights, differentiable=False)
        ce = voxelwise_cross_entropy(logits, labels)
        c.output(weighted_mean(ce, labels, weights, (labels[:, 0] >= 0).double()))
    return file


def hard_mining():
    file = File("hard_mining")
    for name, n, classes, size, ignored, fraction, ties in [
        ("quarter",          2, 3, (3, 5, 4), 0.0, 0.25, False),
        ("quarter_ignored",  2, 4, (3, 4, 5), 0.3, 0.25, False),
        ("third_9_classes",  1, 9, (5, 4, 3), 0.1, 0.33, False),
        ("ties",             2, 3, (3, 5, 4), 0.1, 0.25, True),
        ("all_equal",        1, 2, (3, 4, 3), 0.0, 0.25, True),
        ("all_voxels",       1, 3, (3, 4, 3), 0.1, 1.0,  False),
    ]:  # fmt: skip
        c = file.case(name, ignore=-1, fraction=fraction)
        if name == "all_equal":
            logits = c.input("logits", np.zeros((n, classes, *size)))
            labels = c.input("labels", c.rng.integers(0, 2, (n, 1, *size)), differentiable=False)
        else:
            logits, labels = scene(c, n, classes, size, ignored)
        if name == "ties":
            # The 8 voxels on either side of the cut get one and the same column of logits and label.
            ce = voxelwise_cross_entropy(logits, labels).detach()
            _, _, count = hard_examples(ce, labels, fraction)
            order = torch.argsort(torch.where(labels[:, 0] >= 0, ce, -torch.inf).flatten(), descending=True, stable=True)
            tied = order[count - 8 : count + 8]
            columns = logits.detach().movedim(1, -1).reshape(-1, classes).clone()
            columns[tied] = columns[tied[0]].clone()
            flat = labels.clone().flatten()
            flat[tied] = flat[tied[0]].clone()
            logits = c.input("logits", columns.reshape(n, *size, classes).movedim(-1, 1).numpy())
            labels = c.input("labels", flat.reshape(labels.shape).numpy(), differentiable=False)
        weights = c.input("class_weights", c.rng.uniform(0.3, 2.0, classes), differentiable=False)
        ce = voxelwise_cross_entropy(logits, labels)
        keep, sorted_losses, count = hard_examples(ce.detach(), labels, fraction)
        c.attributes["kept"] = count
        if not ties and fraction < 1:
            assert sorted_losses[count - 1] - sorted_losses[count] > 1e-4, "float32 could keep another voxel"
        c.tensors["keep"] = keep[:, None]
        c.output(weighted_mean(ce, labels, weights, keep))
    return file


def soft_dice():
    file = File("soft_dice")
    for squared in (False, True):
        for name, n, classes, size, ignored, absent in [
            ("3_labels", 2, 3, (3, 5, 4), 0.0, ()),
            ("ignored", 1, 4, (5, 4, 3), 0.3, ()),
            ("absent_label", 2, 5, (3, 4, 3), 0.1, (2,)),
        ]:
            c = file.case(f"{name}{'_squared' if squared else ''}", squared=squared, eps=1e-5, ignore=-1)
            logits, labels = scene(c, n, classes, size, ignored, absent=absent)
            c.output(1 - dice_scores(logits, labels, squared, 1e-5).mean())
    return file


def dice_hinge():
    file = File("dice_hinge")
    for squared in (False, True):
        c = file.case("squared" if squared else "linear", squared=squared, eps=1e-5, ignore=-1)
        # Labels 2, 3 and 4 are hardly predicted: Dice on both sides of 0.1 and 0.01.
        logits, labels = scene(c, 2, 5, (3, 5, 4), 0.1)
        shifted = logits.detach().clone()
        shifted[:, 2] -= 3.0
        shifted[:, 3] -= 5.0
        shifted[:, 4] -= 12.0
        logits = c.input("logits", shifted.numpy())
        d = dice_scores(logits, labels, squared, 1e-5)
        assert d.max() > 0.1 and 0.01 < d[2] < 0.1 and d.min() < 0.01, d
        c.tensors["dice"] = d.detach()
        low = (10 * d.clamp(max=0.1) - 1) ** 2
        very_low = (100 * d.clamp(max=0.01) - 1) ** 2
        c.output(1 - d.mean() + 10 * low.mean() + 10 * very_low.mean())
    return file


def adam():
    file = File("adam")
    for name, size, decay in [("weight_decay_1e-5", 13, 1e-5), ("weight_decay_1e-2", 70, 1e-2)]:
        c = file.case(name, lr=0.002, betas=[0.9, 0.999], eps=1e-8, weight_decay=decay, steps=5)
        parameter = torch.nn.Parameter(c.input("parameter", c.normal(size), differentiable=False).clone())
        gradients = c.input("gradients", c.normal(5, size, std=0.3), differentiable=False)
        gradients[:, 0] = 0.0  # a parameter that decay alone moves
        c.tensors["gradients"] = gradients.clone()
        optimiser = torch.optim.Adam([parameter], lr=0.002, betas=(0.9, 0.999), eps=1e-8, weight_decay=decay)
        after = []
        for gradient in gradients:
            parameter.grad = gradient.clone()
            optimiser.step()
            after.append(parameter.detach().clone())
        state = optimiser.state[parameter]
        c.tensors["output"] = torch.stack(after)
        c.tensors["first_moment"] = state["exp_avg"]
        c.tensors["second_moment"] = state["exp_avg_sq"]
    return file


OPS = [
    conv3d, conv_transpose3d, obelisk_unary, obelisk_binary, obelisk_layer, grid_sample, affine_grid, batch_norm, instance_norm,
    leaky_relu, relu, elu, gelu, avg_pool3d, upsample_trilinear, nearest, max_pool3d, probabilities, concat, linear, cross_entropy, hard_mining, soft_dice, dice_hinge, adam, turn_offsets,
]  # fmt: skip

if __name__ == "__main__":
    warnings.filterwarnings("ignore", message="Since version 1.3.0, affine_grid")  # axes of one voxel are wanted
    torch.set_num_threads(1)  # sums in one order: the files come out the same on every machine with this PyTorch
    known = {op.__name__: op for op in OPS}
    unknown = set(sys.argv[1:]) - set(known)
    if unknown:
        sys.exit(f"unknown operation {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    for name in sys.argv[1:] or known:
        known[name]().save()

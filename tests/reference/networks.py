"""The convolutional and hybrid networks in PyTorch, with the parameter names of the published weights.

Images are [N, 1, D, H, W], logits [N, labels, D, H, W]. Any size works but for GlobalFcUNet, whose fully-connected layers
fit one: strided convolutions round up, and upsampling (trilinear, align_corners=False) goes to the size of the map it
meets. Nothing here uses dropout.
"""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F


def smooth(x):
    """3x3x3 mean at stride 1; the zeros of the padding count."""
    return F.avg_pool3d(x, 3, stride=1, padding=1, count_include_pad=True)


def halve(x):
    """3x3x3 mean at stride 2; the zeros of the padding count."""
    return F.avg_pool3d(x, 3, stride=2, padding=1, count_include_pad=True)


def upsample(x, size):
    return F.interpolate(x, size=tuple(size), mode="trilinear", align_corners=False)


def obelisk(image, offsets, grid):
    """Samples image [N, C, D, H, W] at every point of a regular grid plus every offset [1, K, 1, 1, 3].

    Returns [N, C*K, *grid], channel c*K + k. Normalised (x, y, z), align_corners=True, zeros outside.
    """
    n, channels = image.shape[:2]
    count = offsets.shape[1]
    identity = torch.eye(3, 4, dtype=image.dtype, device=image.device)[None].expand(n, 3, 4)
    points = F.affine_grid(identity, [n, 1, *grid], align_corners=True).reshape(n, 1, -1, 1, 3)
    samples = F.grid_sample(image, points + offsets.reshape(1, count, 1, 1, 3), "bilinear", "zeros", align_corners=True)
    return samples.reshape(n, channels * count, *grid)


class Named(nn.Module):
    """Layers kept under the published names: convX with batchX after it."""

    slope: float

    def conv(self, name, inputs, outputs, stride=1, groups=1):
        setattr(self, f"conv{name}", nn.Conv3d(inputs, outputs, 3, stride=stride, padding=1, groups=groups))
        setattr(self, f"batch{name}", nn.BatchNorm3d(outputs))

    def run(self, name, x):
        """leaky ReLU of the batch norm of the convolution"""
        return F.leaky_relu(getattr(self, f"batch{name}")(getattr(self, f"conv{name}")(x)), self.slope)


class ObeliskHybrid(Named):
    """obelisk-hybrid. `grid1`, `grid2` override the OBELISK grids, by default ceil(n/4) and ceil(n/8) on each axis;
    the published TCIA weights need grid2 = (18, 36, 18) at 144^3."""

    slope = 0.025
    dense_slope = 0.025

    def __init__(self, labels, grid1=None, grid2=None):
        super().__init__()
        self.grid1, self.grid2 = grid1, grid2
        self.offset1 = nn.Parameter(torch.zeros(1, 128, 1, 1, 3))
        self.offset2 = nn.Parameter(torch.zeros(1, 512, 1, 1, 3))
        self.conv("0", 1, 4)
        self.conv("1", 4, 16, stride=2)
        self.conv("11", 16, 16)
        self.conv("2", 16, 32, stride=2)
        self.conv("22", 32, 32)
        self.conv("3", 32, 32)
        self.dense_block("1", 128, 2, 16)
        self.dense_block("2", 512, 4, 32)
        self.conv("6bU", 64, 32)
        self.conv("6U", 64, 12)
        self.conv("7U", 16, labels)
        self.conv77U = nn.Conv3d(labels, labels, 1)

    def dense_block(self, i, samples, groups, outputs):
        def linear(letter, inputs, outputs, groups=1):
            setattr(self, f"linear{i}{letter}", nn.Conv3d(inputs, outputs, 1, groups=groups, bias=False))

        linear("a", samples, 128, groups)
        for letter, width in (("b", 128), ("c", 160), ("d", 192)):
            linear(letter, width, 32)
        linear("e", 224, outputs)
        for letter, width in (("a", 128), ("b", 160), ("c", 192), ("d", 224)):
            setattr(self, f"batch{i}{letter}", nn.BatchNorm3d(width))

    def run_dense_block(self, i, x):
        def layer(letter, x):
            return F.leaky_relu(getattr(self, f"linear{i}{letter}")(x), self.dense_slope)

        y = layer("a", x)
        for batch, letter in ("ab", "bc", "cd"):
            y = torch.cat([y, layer(letter, getattr(self, f"batch{i}{batch}")(y))], 1)
        return layer("e", getattr(self, f"batch{i}d")(y))

    def forward(self, image):
        size = image.shape[2:]
        grid1 = self.grid1 or [math.ceil(n / 4) for n in size]
        grid2 = self.grid2 or [math.ceil(n / 8) for n in size]
        x0 = smooth(image)
        x00 = smooth(x0)
        x1 = self.run("0", image)
        x2 = self.run("11", self.run("1", x1))
        x = self.run("3", self.run("22", self.run("2", x2)))
        o1 = upsample(self.run_dense_block("1", obelisk(x0, self.offset1, grid1)), x2.shape[2:])
        o2 = upsample(self.run_dense_block("2", obelisk(x00, self.offset2, grid2)), x.shape[2:])
        x = self.run("6bU", torch.cat([x, o2], 1))
        x = self.run("6U", torch.cat([upsample(x, x2.shape[2:]), o1, x2], 1))
        x = self.run("7U", torch.cat([upsample(x, size), x1], 1))
        return self.conv77U(x)


class VisceralHybrid(ObeliskHybrid):
    """obeliskhybrid_visceral: everything sees the halved image, OBELISK 1 samples the map x1, and the dense blocks have
    plain ReLU."""

    slope = 0.05
    dense_slope = 0.0

    def __init__(self, labels):
        Named.__init__(self)
        self.offset1 = nn.Parameter(torch.zeros(1, 128, 1, 1, 3))
        self.offset2 = nn.Parameter(torch.zeros(1, 512, 1, 1, 3))
        self.conv("0", 1, 4)
        self.conv("1", 4, 16, stride=2)
        self.conv("11", 16, 16)
        self.conv("2", 16, 32, stride=2)
        self.dense_block("1", 4 * 128, 4, 32)
        self.dense_block("2", 512, 4, 32)
        self.conv("6bU", 64, 32)
        self.conv("6U", 80, 32)
        self.conv8 = nn.Conv3d(32, labels, 1)

    def forward(self, scan):
        image = halve(scan)
        size = image.shape[2:]
        quarter, eighth = ([math.ceil(n / by) for n in size] for by in (4, 8))
        x1 = self.run("0", image)
        x2 = self.run("11", self.run("1", x1))
        x = self.run("2", x2)
        o1 = upsample(self.run_dense_block("1", obelisk(x1, self.offset1, quarter)), x2.shape[2:])
        o2 = upsample(self.run_dense_block("2", obelisk(smooth(image), self.offset2, eighth)), x.shape[2:])
        x = self.run("6bU", torch.cat([x, o2], 1))
        x = self.run("6U", torch.cat([upsample(x, x2.shape[2:]), o1, x2], 1))
        return upsample(upsample(self.conv8(x), size), scan.shape[2:])


class UNet(Named):
    """unet, table 1 of the paper. Layers #1 to #14: conv0, conv1, conv11, conv2, conv22, conv3, conv33, conv4, conv44,
    conv6cU, conv6bU, conv6U, conv7U, conv77U. Its variants have other widths: `levels` are the encoder's channels and
    groups, `up` the decoder's, with the last, conv7U, to the labels."""

    slope = 0.1
    levels = ((16, 1), (32, 1), (64, 1), (80, 1))
    up = ((64, 1), (32, 1), (9, 1))

    def __init__(self, labels):
        super().__init__()
        self.conv("0", 1, 5)
        widths = [5]
        for level, (outputs, groups) in enumerate(self.levels, 1):
            self.conv(f"{level}", widths[-1], outputs, stride=2, groups=groups)
            self.conv(f"{level}{level}", outputs, outputs, groups=groups)
            widths.append(outputs)
        self.numbers = ("6dU", "6cU", "6bU", "6U", "7U")[-len(self.up) - 1 :]
        x = widths.pop()
        for number, (outputs, groups) in zip(self.numbers, (*self.up, (labels, 1))):
            self.conv(number, x + widths.pop(), outputs, groups=groups)
            x = outputs
        self.conv77U = nn.Conv3d(labels, labels, 3, padding=1)

    def bottleneck(self, x):
        return x

    def forward(self, image):
        skips = [self.run("0", image)]
        for level in range(1, len(self.levels) + 1):
            skips.append(self.run(f"{level}{level}", self.run(f"{level}", skips[-1])))
        x = self.bottleneck(skips.pop())
        for number in self.numbers:
            skip = skips.pop()
            x = self.run(number, torch.cat([upsample(x, skip.shape[2:]), skip], 1))
        return self.conv77U(x)


class LeanUNet(UNet):
    """unet-lean: groups of 4 in layers #6, #7 and #11, of 8 in #8 to #10."""

    levels = ((16, 1), (32, 1), (64, 4), (80, 8))
    up = ((64, 8), (32, 4), (9, 1))


class TciaUNet(UNet):
    """allconvunet_tcia, without its dropout."""

    levels = ((14, 1), (28, 1), (42, 1), (56, 1), (70, 1))
    up = ((56, 1), (42, 1), (28, 1), (14, 1))


class VisceralUNet(UNet):
    """allconvunet_visceral: the image is halved first; the logits are the halved image's."""

    up = ((64, 1), (32, 1), (8, 1))

    def forward(self, scan):
        return super().forward(halve(scan))


class GlobalFcUNet(UNet):
    """unet-global-fc, globalfcnet_tcia and globalfcnet_visceral for images of one size, without dropout."""

    levels = ((10, 1), (30, 1), (50, 1), (20, 1))
    up = ((20, 1), (10, 1), (8, 1))

    def __init__(self, labels, size):
        super().__init__(labels)
        for _ in self.levels:
            size = [math.ceil(n / 2) for n in size]
        self.fc1 = nn.Linear(20 * math.prod(size), 400)
        self.fc2U = nn.Linear(400, 20 * math.prod(size))
        self.conv("6dU", 40, 20)

    def bottleneck(self, x):
        global_x = self.fc2U(self.fc1(x.flatten(1))).reshape(x.shape)
        return self.run("6dU", torch.cat([global_x, x], 1))


class MeshNet(nn.Module):
    """meshnet: 3x3x3 convolutions of (channels, dilation), each with the activation behind it, then 1x1x1."""

    def __init__(self, labels, activation, layers):
        super().__init__()
        self.activation = activation
        sizes = [1] + [channels for channels, _ in layers]
        convolutions = [
            nn.Conv3d(inputs, outputs, 3, padding=dilation, dilation=dilation)
            for inputs, (outputs, dilation) in zip(sizes, layers)
        ]
        self.layers = nn.ModuleList([*convolutions, nn.Conv3d(sizes[-1], labels, 1)])

    def forward(self, x):
        *layers, last = self.layers
        for layer in layers:
            x = self.activation(layer(x))
        return last(x)


def nnunet(labels, residual, stages, deep_supervision=False):
    """nnU-Net's networks by its own package, each stage (channels, kernel, stride, convolutions or blocks).

    With deep supervision it gives the logits of all decoder stages, the finest first.
    """
    from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet

    channels, kernels, strides, counts = zip(*stages)
    count = "n_blocks_per_stage" if residual else "n_conv_per_stage"
    return (ResidualEncoderUNet if residual else PlainConvUNet)(
        1, len(stages), channels, nn.Conv3d, kernels, strides, num_classes=labels, conv_bias=True, norm_op=nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True}, nonlin=nn.LeakyReLU, nonlin_kwargs={"inplace": True},
        n_conv_per_stage_decoder=1 if residual else 2, deep_supervision=deep_supervision, **{count: counts},
    )  # fmt: skip


def uniform_stages(channels, counts):
    """Kernels of 3³, steps of 2 from the second stage on."""
    return [(c, [3] * 3, [1 if i == 0 else 2] * 3, n) for i, (c, n) in enumerate(zip(channels, counts))]


MESHNET = [(5, dilation) for dilation in (1, 2, 4, 8, 16, 8, 4, 2, 1)]


def initialise(network, seed, sigma=0.05):
    """Xavier-normal convolutions, zero biases, offsets N(0, sigma^2), batch norms 1 and 0; in the order of the names."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in sorted(network.named_parameters()):
            if name.startswith("offset"):
                p.copy_(sigma * torch.randn(p.shape, generator=generator))
            elif p.ndim == 5:
                volume = p[0, 0].numel()
                module = network.get_submodule(name.rsplit(".", 1)[0])
                fan_in, fan_out = p.shape[1] * volume, p.shape[0] * volume
                assert module.weight is p
                p.copy_(math.sqrt(2 / (fan_in + fan_out)) * torch.randn(p.shape, generator=generator))
            elif name.endswith("bias"):
                p.zero_()
            else:
                p.fill_(1)
    return network


def parameter_count(network):
    return sum(p.numel() for p in network.parameters())

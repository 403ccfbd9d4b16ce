# /// script
# requires-python = ">=3.11"
# dependencies = ["torch==2.15.0", "numpy==2.4.6"]
# ///
"""Times PyTorch on what `obelisk bench` times, with the same arguments, and prints JSON.

    uv run benches/pytorch.py [--arch obeliskhybrid_tcia] [--size 144,144,144] [--batch 1] [--labels 9] [--steps 3]
        [--sparse 3,192 | --layer 512,256,4 [--binary] [--channels 8] [--input-gradient]]
        [--device cpu|cuda] [--tf32] [--threads 2]

Inference gives logits; a training step is forward, cross-entropy and soft Dice, backward and Adam, in float32, on fixed
random images and labels that are on the device. A layer's training is its forward and backward pass. Seconds of each run
after two that don't count; processor seconds (CPU only) are those of all threads.
"""

import argparse
import json
import math
import platform
import resource
import sys
import time
import warnings
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "reference"))
import networks  # noqa: E402

WARM_UP = 2


class TciaUNet(networks.TciaUNet):
    """With the channel dropout that the published script trains with."""

    def run(self, name, x):
        return F.dropout3d(super().run(name, x), 0.5, self.training)


class Sampled(nn.Module):
    """The image at points [N, S, 3] plus every offset [1, K, 1, terms, 3]: [N, C*K, 1, 1, S]; terms = 2: differences."""

    def __init__(self, offsets, binary):
        super().__init__()
        self.offset1 = nn.Parameter(0.05 * torch.randn(1, offsets, 1, 2 if binary else 1, 3))

    def forward(self, image, points):
        n, channels = image.shape[:2]

        def at(term):
            where = points[:, None, :, None] + self.offset1[:, :, :, term][:, :, :, None]
            return F.grid_sample(image, where.expand(n, -1, -1, -1, -1), "bilinear", "zeros", align_corners=True)

        samples = at(0) - at(1) if self.offset1.shape[3] == 2 else at(0)
        return samples.reshape(n, channels * self.offset1.shape[1], 1, 1, -1)


def grid_points(image):
    n, _, *size = image.shape
    identity = torch.eye(3, 4, device=image.device)[None].expand(n, 3, 4)
    grid = [math.ceil(s / 4) for s in size]
    return F.affine_grid(identity, [n, 1, *grid], align_corners=True).reshape(n, -1, 3), grid


class Obelisk(Sampled):
    """The original OBELISK, of images that are smoothed already, at points or on the quarter grid."""

    def __init__(self, labels):
        super().__init__(1024, binary=True)
        self.LIN1 = nn.Conv3d(1024, 256, 1, groups=4, bias=False)
        self.BN1 = nn.BatchNorm3d(256)
        self.LIN2 = nn.Conv3d(256, 128, 1, bias=False)
        self.BN2 = nn.BatchNorm3d(128)
        for letter, width in zip("abcd", (128, 160, 192, 224)):
            setattr(self, f"LIN3{letter}", nn.Conv3d(width, 32, 1, bias=False))
            setattr(self, f"BN3{letter}", nn.BatchNorm3d(width + 32))
        self.LIN4 = nn.Conv3d(256, labels, 1)

    def forward(self, image, points=None):
        if points is None:
            size, (points, grid) = image.shape[2:], grid_points(image)
            logits = self(image, points).reshape(image.shape[0], -1, *grid)
            return networks.upsample(networks.upsample(logits, [math.ceil(s / 2) for s in size]), size)
        x = super().forward(image, points)
        y = x = self.BN2(self.LIN2(F.relu(self.BN1(self.LIN1(x)))))
        for letter in "abcd":
            y = torch.cat([y, F.relu(getattr(self, f"LIN3{letter}")(x))], 1)
            x = getattr(self, f"BN3{letter}")(y)
        return self.LIN4(x)


class Layer(Sampled):
    """One OBELISK layer on the quarter grid."""

    def __init__(self, offsets, outputs, groups, channels, binary):
        super().__init__(offsets, binary)
        self.mix = nn.Conv3d(channels * offsets, outputs, 1, groups=groups, bias=False)

    def forward(self, image):
        points, grid = grid_points(image)
        return self.mix(super().forward(image, points)).reshape(image.shape[0], -1, *grid)


NETWORKS = {
    "obeliskhybrid_tcia": lambda labels: networks.ObeliskHybrid(labels, (36, 36, 36), (18, 36, 18)),
    "obelisk-hybrid": networks.ObeliskHybrid,
    "unet": networks.UNet,
    "allconvunet_tcia": TciaUNet,
    "obelisk": Obelisk,
}


def numbers(text):
    return [int(n) for n in text.split(",")]


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--arch", choices=NETWORKS, default="obelisk-hybrid")
    parser.add_argument("--size", type=numbers, default=[144, 144, 144])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--labels", type=int, default=9)
    parser.add_argument("--channels", type=int, default=1)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--sparse", type=numbers)
    parser.add_argument("--layer", type=numbers)
    parser.add_argument("--binary", action="store_true")
    parser.add_argument("--input-gradient", action="store_true")
    parser.add_argument("--inference", action="store_true")
    parser.add_argument("--training", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tf32", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def loss_of(logits, labels, classes):
    p = torch.softmax(logits, 1)
    t = F.one_hot(labels, classes).movedim(-1, 1).to(p.dtype)
    axes = (0, 2, 3, 4)
    dice = 2 * (p * t).sum(axes) / (p.sum(axes) + t.sum(axes) + 1e-5)
    return F.cross_entropy(logits, labels) + 1 - dice[1:].mean()


def subjects(args):
    """The functions to time: inference, if there is one, and a training step."""
    device, batch = args.device, args.sparse[0] if args.sparse else args.batch
    image = torch.rand(batch, args.channels, *args.size, device=device) * 2 - 1
    if args.layer:
        layer = Layer(*args.layer, args.channels, args.binary).to(device)
        upstream = torch.randn_like(layer(image))
        image.requires_grad_(args.input_gradient)

        def backward():
            layer.zero_grad()
            image.grad = None
            layer(image).backward(upstream)

        return lambda: layer(image.detach()), backward, layer
    network = networks.initialise(NETWORKS[args.arch](args.labels), seed=1).to(device)
    optimiser = torch.optim.Adam(network.parameters(), lr=0.001, weight_decay=1e-5)
    locations = [1, 1, args.sparse[1]] if args.sparse else args.size
    labels = torch.randint(args.labels, (batch, *locations), device=device)
    points = torch.rand(batch, args.sparse[1], 3, device=device) * 2 - 1 if args.sparse else None

    def train():
        optimiser.zero_grad()
        logits = network(image, points) if args.sparse else network(image)
        loss_of(logits, labels, args.labels).backward()
        optimiser.step()

    def infer():
        # The original OBELISK smooths the image first; in sparse training that is done once for each scan.
        network(networks.smooth(networks.smooth(image)) if args.arch == "obelisk" else image)

    return None if args.sparse else infer, train, network


def main():
    args = arguments()
    warnings.filterwarnings("ignore", message="Since version 1.3.0, affine_grid")
    torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    cuda = args.device == "cuda"
    torch.backends.cuda.matmul.allow_tf32 = args.tf32
    torch.backends.cudnn.allow_tf32 = args.tf32
    infer, train, network = subjects(args)
    report = {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine(),
        "cuda": torch.version.cuda if cuda else None,
        "cudnn": torch.backends.cudnn.version() if cuda else None,
        "tf32": args.tf32,
        "parameters": networks.parameter_count(network),
    }

    def timed(step, training):
        network.train(training)

        def run():
            with torch.set_grad_enabled(training):
                step()
            if cuda:
                torch.cuda.synchronize()

        for _ in range(WARM_UP):
            run()
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        seconds, computed = [], time.process_time()
        for _ in range(args.steps):
            start = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - start)
        return {
            "seconds": seconds,
            "processor_seconds": None if cuda else (time.process_time() - computed) / args.steps,
            "peak_bytes": torch.cuda.max_memory_allocated()
            if cuda
            else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }

    if infer and not args.training:
        report["inference"] = timed(infer, False)
    if not args.inference:
        report["training"] = timed(train, True)
    print(json.dumps(report))


if __name__ == "__main__":
    main()

# /// script
# requires-python = ">=3.11"
# dependencies = ["torch==2.15.0", "numpy==2.4.6"]
# ///
"""Times PyTorch's training step and inference on the CPU, to stand beside this program's own times.

    uv run benches/pytorch_step.py [--network hybrid|unet] [--batch 4] [--size 40 56 40] [--labels 3] [--threads 2]

A step is forward, cross-entropy + soft Dice, backward and Adam, in float32, on fixed random images and labels.
Prints the median, the fastest and the slowest of the timed steps, and the medians of the parts.
"""

import argparse
import statistics
import sys
import time
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "reference"))
from networks import ObeliskHybrid, UNet, initialise, parameter_count  # noqa: E402

parser = argparse.ArgumentParser()
parser.add_argument("--network", choices=("hybrid", "unet"), default="hybrid")
parser.add_argument("--batch", type=int, default=4)
parser.add_argument("--size", type=int, nargs=3, default=(40, 56, 40))
parser.add_argument("--labels", type=int, default=3)
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--warm-up", type=int, default=2)
parser.add_argument("--steps", type=int, default=10)
args = parser.parse_args()

warnings.filterwarnings("ignore", message="Since version 1.3.0, affine_grid")
torch.set_num_threads(args.threads)
torch.manual_seed(1)
network = initialise({"hybrid": ObeliskHybrid, "unet": UNet}[args.network](args.labels), seed=1).train()
optimiser = torch.optim.Adam(network.parameters(), lr=0.002, weight_decay=1e-5)
images = torch.randn(args.batch, 1, *args.size)
labels = torch.randint(args.labels, (args.batch, *args.size))


def loss_of(logits):
    p = torch.softmax(logits, 1)
    t = F.one_hot(labels, args.labels).movedim(-1, 1).to(p.dtype)
    axes = (0, 2, 3, 4)
    dice = 2 * (p * t).sum(axes) / (p.sum(axes) + t.sum(axes) + 1e-5)
    return F.cross_entropy(logits, labels) + 1 - dice[1:].mean()


def step():
    times = [time.perf_counter()]

    def mark():
        times.append(time.perf_counter())

    optimiser.zero_grad()
    logits = network(images)
    mark()
    loss = loss_of(logits)
    mark()
    loss.backward()
    mark()
    optimiser.step()
    mark()
    return [b - a for a, b in zip(times, times[1:])]


def infer():
    start = time.perf_counter()
    with torch.no_grad():
        network(images)
    return time.perf_counter() - start


for _ in range(args.warm_up):
    step()
steps = [step() for _ in range(args.steps)]
totals = [sum(s) for s in steps]
shape = "x".join(map(str, args.size))
print(
    f"PyTorch {torch.__version__}, {args.threads} threads, {args.network} ({parameter_count(network)} parameters), "
    f"batch {args.batch}, {shape}, {args.labels} labels"
)
print(f"training step: median {statistics.median(totals):.3f} s ({min(totals):.3f} to {max(totals):.3f})")
for name, part in zip(("forward", "loss", "backward", "Adam"), zip(*steps)):
    print(f"  {name:9} {statistics.median(part):.3f} s")
network.eval()
infer()
inferences = [infer() for _ in range(args.steps)]
print(f"inference: median {statistics.median(inferences):.3f} s ({min(inferences):.3f} to {max(inferences):.3f})")

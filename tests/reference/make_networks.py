# /// script
# requires-python = ">=3.11"
# dependencies = ["torch==2.15.0", "numpy==2.4.6", "safetensors==0.8.0", "dynamic-network-architectures==0.4.4"]
# ///
"""What the networks give in float64 with weights that need no storing.

    uv run make_networks.py

Writes networks.safetensors: for each network NAME/logits [labels, ...], every `stride`-th voxel on each axis, and the
metadata `cases`, JSON: {NAME: {"size": [D, H, W], "labels": L, "stride": n}}. The image and each parameter and state are
`noise(shape, seed)`, a hash of the element's index, with the seed fnv1a(name) ("image" for the image), then by kind:

  offsets                        0.4 v
  other tensors of two axes and more   v sqrt(6 / fan_in), fan_in the product of all axes but the first
  running_var                    1 + 0.5 v
  other vectors named .weight    1 + 0.3 v   (batch norms)
  other vectors                  0.2 v
"""

import json
import math
import os
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from networks import (
    MESHNET, GlobalFcUNet, LeanUNet, MeshNet, ObeliskHybrid, TciaUNet, UNet, VisceralHybrid, VisceralUNet, nnunet,
    uniform_stages, upsample,
)  # fmt: skip

HERE = Path(__file__).resolve().parent


def fnv1a(name):
    h = 0x811C9DC5
    for byte in name.encode():
        h = (h ^ byte) * 0x01000193 & 0xFFFFFFFF
    return h


def noise(shape, seed):
    """Numbers in [-1, 1) from the index and the seed."""
    with np.errstate(over="ignore"):
        h = np.arange(math.prod(shape), dtype=np.uint32) * np.uint32(0x9E3779B1)
        h ^= np.uint32(seed * 0x85EBCA6B & 0xFFFFFFFF)
        h ^= h >> 15
        h *= np.uint32(0x2C1B3C6D)
        h ^= h >> 12
        h *= np.uint32(0x297A2D39)
        h ^= h >> 15
    return torch.tensor((h.astype(np.float32) / np.float32(2**31) - 1).reshape(shape), dtype=torch.float64)


def tensor(name, shape):
    v = noise(shape, fnv1a(name))
    if name.startswith("offset"):
        return 0.4 * v
    if len(shape) > 1:
        return v * math.sqrt(6 / math.prod(shape[1:]))
    if name.endswith("running_var"):
        return 1 + 0.5 * v
    if name.endswith(".weight"):
        return 1 + 0.3 * v
    return 0.2 * v


SMALL, EVEN, LABELS = (37, 42, 29), (32, 40, 24), 3
TCIA, VISCERAL, SCAN = (144, 144, 144), (156, 115, 160), (312, 230, 320)
CASES = {
    "obelisk-hybrid": (ObeliskHybrid(LABELS), SMALL, LABELS, 3),
    "obeliskhybrid_visceral": (VisceralHybrid(LABELS), SMALL, LABELS, 3),
    "unet": (UNet(LABELS), SMALL, LABELS, 3),
    "unet-lean": (LeanUNet(LABELS), SMALL, LABELS, 3),
    "unet-global-fc": (GlobalFcUNet(LABELS, SMALL), SMALL, LABELS, 3),
    "meshnet": (MeshNet(LABELS, F.relu, MESHNET), SMALL, LABELS, 3),
    "meshnet:gelu:4x1,6x3,5x2": (MeshNet(LABELS, F.gelu, [(4, 1), (6, 3), (5, 2)]), SMALL, LABELS, 3),
    "nnunet": (nnunet(LABELS, False, uniform_stages((32, 64, 128, 256), (2,) * 4)), EVEN, LABELS, 3),
    "nnunet-resenc": (nnunet(LABELS, True, uniform_stages((32, 64, 128, 256), (1, 3, 4, 6))), EVEN, LABELS, 3),
    "nnunet:6k133x1,9k133s122,12": (
        nnunet(LABELS, False, [(6, [1, 3, 3], [1] * 3, 1), (9, [1, 3, 3], [1, 2, 2], 2), (12, [3] * 3, [2] * 3, 2)]),
        EVEN, LABELS, 3,
    ),
    "allconvunet_tcia": (TciaUNet(9), TCIA, 9, 16),
    "allconvunet_visceral": (VisceralUNet(8), SCAN, 8, 32),
    "globalfcnet_tcia": (GlobalFcUNet(9, TCIA), TCIA, 9, 16),
    "globalfcnet_visceral": (GlobalFcUNet(8, VISCERAL), VISCERAL, 8, 16),
}
stored, cases = {}, {}
for name, (network, size, labels, stride) in CASES.items():
    network = network.double().eval()
    with torch.no_grad():
        # nnU-Net's have modules under several names, of which the first counts.
        for key, value in [*network.named_parameters(), *network.named_buffers()]:
            if value.is_floating_point():
                value.copy_(tensor(key, tuple(value.shape)))
        logits = network(tensor("image", (1, 1, *size)))[0]
        # channel by channel: all of the largest scan's logits at once are 1.5 GB
        logits = torch.stack([upsample(l[None, None], size)[0, 0, ::stride, ::stride, ::stride] for l in logits])
    print(f"{name:24} {sum(p.numel() for p in network.parameters()):10,} parameters, logits within {logits.abs().max():.2f}")
    stored[f"{name}/logits"] = logits.float().contiguous()
    cases[name] = {"size": size, "labels": labels, "stride": stride}
save_file(stored, HERE / "networks.tmp", {"cases": json.dumps(cases)})
os.replace(HERE / "networks.tmp", HERE / "networks.safetensors")

# /// script
# requires-python = ">=3.11"
# dependencies = ["torch==2.15.0", "numpy==2.4.6", "safetensors==0.8.0", "nibabel==5.4.2"]
# ///
"""The authors' hybrid for TCIA abdomens: checks networks.py against stored outputs and makes compact references.

    uv run make_published.py REFERENCE_FOLDER ct_144.nii.gz

REFERENCE_FOLDER holds the authors' weights (weights.safetensors, weights.pth) and what their network gives on the scan
in float64: labels.nii.gz (arg max), near_tie.nii.gz (1 where the two highest logits are within 1e-3) and
logits.safetensors (every 4th voxel on each axis). The script first runs networks.py with the same weights and stops if
a label outside a near tie differs or a logit by more than 1e-4. Then it writes obeliskhybrid_tcia_fold1/:

  weights.safetensors, weights.pth, labels.nii.gz, near_tie.nii.gz   as they are
  logits.safetensors   logits_stride8 [9, 18, 18, 18]: every 8th voxel; logits_sum [9]: over all voxels; logits_abs_max
  crop.safetensors     for a run without the scan: image [1, 1, 37, 48, 33] (HU / 1024 + 1, from the scan), the logits
                       at every 2nd voxel [1, 9, 19, 24, 17] and the labels [1, 1, 37, 48, 33] (u8) that the weights
                       give in obelisk-hybrid, whose second grid is ceil(n/8) on every axis (5 x 6 x 5 here)
"""

import os
import shutil
import sys
from pathlib import Path

import nibabel
import numpy as np
import torch
from safetensors.torch import load_file, save_file

from networks import ObeliskHybrid

reference, scan = Path(sys.argv[1]), sys.argv[2]
out = Path(__file__).resolve().parent / "obeliskhybrid_tcia_fold1"
out.mkdir(exist_ok=True)
weights = load_file(reference / "weights.safetensors")
image = torch.tensor(nibabel.load(scan).get_fdata())[None, None] / 1024 + 1


def run(image, **grids):
    network = ObeliskHybrid(9, **grids).double().eval()
    network.load_state_dict(weights, strict=True)
    with torch.no_grad():
        return network(image)


logits = run(image, grid1=(36, 36, 36), grid2=(18, 36, 18))[0]
differ = logits.argmax(0).numpy() != np.asarray(nibabel.load(reference / "labels.nii.gz").dataobj)
tie = np.asarray(nibabel.load(reference / "near_tie.nii.gz").dataobj) > 0
stored = load_file(reference / "logits.safetensors")
error = (logits[:, ::4, ::4, ::4] - stored["logits_stride4"].double()).abs().max().item()
print(f"labels that differ: {differ.sum()}, outside near ties: {(differ & ~tie).sum()}; largest logit error: {error:.1e}")
if (differ & ~tie).any() or error > 1e-4:
    sys.exit("networks.py does not give the stored outputs")


def save(name, tensors):
    tensors = {k: v if v.dtype == torch.uint8 else v.float() for k, v in tensors.items()}
    save_file({k: v.contiguous() for k, v in tensors.items()}, out / f"{name}.tmp")
    os.replace(out / f"{name}.tmp", out / name)


for name in ("weights.safetensors", "weights.pth", "labels.nii.gz", "near_tie.nii.gz"):
    shutil.copyfile(reference / name, out / name)
save(
    "logits.safetensors",
    {
        "logits_stride8": logits[:, ::8, ::8, ::8],
        "logits_sum": logits.sum((1, 2, 3)),
        "logits_abs_max": logits.abs().max()[None],
    },
)
crop = image[:, :, 60:97, 50:98, 55:88].float().double()
logits = run(crop)
top = logits.topk(2, dim=1).values
print("crop: smallest margin", (top[:, 0] - top[:, 1]).min().item(), "labels", logits.argmax(1).unique().tolist())
save(
    "crop.safetensors",
    {"image": crop, "logits_stride2": logits[:, :, ::2, ::2, ::2], "labels": logits.argmax(1, keepdim=True).byte()},
)

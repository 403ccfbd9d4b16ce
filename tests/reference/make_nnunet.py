# /// script
# requires-python = ">=3.11"
# dependencies = ["nnunetv2==2.8.1", "torch==2.15.0", "numpy==2.4.6", "nibabel==5.4.2"]
# ///
"""Small models that nnU-Net itself trains on hippocampi, and what it makes of an unseen scan: writes nnunet/NAME beside this
script. The scans are the Medical Segmentation Decathlon's (CC-BY-SA 4.0).

    uv run make_nnunet.py [NAME...]      with the test data in ../../../shared or $OBELISK_SHARED

  resenc        residual encoder with pooled skips
  anisotropic   two channels, slices of 4 mm in training and of 5 mm in the scan: kernels, strides and resampling by plane
  regions       overlapping regions, a scan in a box of zeros (so that only what is not zero is normalised), two folds

A short training does not tell labels apart well: where it says so, `balance` shifts the last biases until each has its share.
Checkpoints are left with what inference needs, and probabilities are stored in half precision.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

HERE = Path(__file__).resolve().parent
SHARED = Path(os.environ.get("OBELISK_SHARED", HERE.parents[2] / "shared"))
DATA = SHARED / "data/Task04_Hippocampus"
LABELS = {"background": 0, "anterior": 1, "posterior": 2}
FEATURES = [8, 12, 16, 24, 24]


def whole_numbers(array):
    return np.round(array / max(array.max(), 1) * 1000).astype(np.int16)


def plain(image, affine, is_test):
    return [(whole_numbers(image), affine)]


def every(k, array, affine):
    affine = affine.copy()
    affine[:3, 2] *= k
    return np.ascontiguousarray(array[:, :, ::k]), affine


def two_channels(image, affine, is_test):
    image, affine = every(5 if is_test else 4, image, affine)
    if is_test:
        affine[:3, 0] *= 1.2
    slope = np.abs(np.gradient(image, axis=1))
    return [(whole_numbers(image), affine), ((slope / max(slope.max(), 1) * 500).astype(np.int16), affine)]


def in_a_box(array, affine):
    corner = (3, 4, 2)  # less than three quarters of the voxels are then not zero, and more than half
    box = np.zeros([size + 7 for size in array.shape], array.dtype)
    box[tuple(slice(c, c + size) for c, size in zip(corner, array.shape))] = array
    affine = affine.copy()
    affine[:3, 3] -= affine[:3, :3] @ np.array(corner)
    return box, affine


def without_zeros(image, affine, is_test):
    image = whole_numbers(image)
    return [in_a_box(image + (image == 0), affine)]


MODELS = {
    "resenc": (
        plain,
        lambda labels, affine: (labels, affine),
        {
            "dataset": {"channel_names": {"0": "MRI"}, "labels": LABELS},
            "planner": "nnUNetPlannerResEncM",
            "blocks": [1, 2, 2, 2, 2],
            "folds": ["all"],
            "epochs": 4,
            "iterations": 30,
            "balance": True,
        },
    ),
    "anisotropic": (
        two_channels,
        lambda labels, affine: every(4, labels, affine),
        {
            "dataset": {"channel_names": {"0": "T1", "1": "slope"}, "labels": LABELS},
            "folds": ["all"],
            "epochs": 4,
            "iterations": 30,
            "balance": True,
        },
    ),
    "regions": (
        without_zeros,
        in_a_box,
        {
            "dataset": {
                "channel_names": {"0": "MRI"},
                "labels": {"background": 0, "whole": [1, 2], "posterior": [2]},
                "regions_class_order": [1, 2],
            },
            "folds": [0, 1],
            "epochs": 5,
            "iterations": 50,
            "balance": True,
        },
    ),
}


def make(number, name, work):
    image, label, spec = MODELS[name]
    ids = sorted(path.name[:-7] for path in (DATA / "labelsTr").glob("hippo*.nii.gz"))
    test = ids[50]
    spec = spec | {"images": {}, "labels": {}, "test": {}, "features": FEATURES}
    for case in [*ids[:12], test]:
        scan, labels = (nib.load(DATA / folder / f"{case}.nii.gz") for folder in ("imagesTr", "labelsTr"))
        files = []
        for i, (array, affine) in enumerate(image(scan.get_fdata(dtype=np.float32), scan.affine, case == test)):
            files.append(str(work / f"{name}_{case}_{i}.nii.gz"))
            nib.save(nib.Nifti1Image(array, affine), files[-1])
        if case == test:
            spec["test"][case] = files
            continue
        spec["images"][case] = files
        spec["labels"][case] = str(work / f"{name}_{case}_labels.nii.gz")
        array, affine = label(np.asarray(labels.dataobj).astype(np.uint8), labels.affine)
        nib.save(nib.Nifti1Image(array, affine), spec["labels"][case])
    (work / f"{name}.json").write_text(json.dumps(spec))
    tool = SHARED / "tools/nnunet_reference.py"
    subprocess.run([sys.executable, tool, work / "out", str(number), name, "3d_fullres", work / f"{name}.json"], check=True)

    made, kept = work / "out" / name, HERE / "nnunet" / name
    shutil.rmtree(kept, ignore_errors=True)
    shutil.copytree(made / "imagesTs", kept / "imagesTs")
    for expected in ("expected", "expected_mirrored"):
        (kept / expected).mkdir()
        shutil.copy(made / expected / f"{test}.nii.gz", kept / expected)
        probabilities = np.load(made / expected / f"{test}.npz")["probabilities"]
        np.savez_compressed(kept / expected / f"{test}.npz", probabilities=probabilities.astype(np.float16))
    for path in (made / "model").rglob("*"):
        if path.name in ("plans.json", "dataset.json", "checkpoint_final.pth"):
            to = kept / path.relative_to(made)
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, to)
    for path in kept.rglob("checkpoint_final.pth"):
        checkpoint = torch.load(path, map_location="cpu", weights_only=False)
        for left_out in ("optimizer_state", "grad_scaler_state", "logging"):
            checkpoint[left_out] = None
        torch.save(checkpoint, path)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as work:
        for number, name in enumerate(MODELS, 11):
            if len(sys.argv) == 1 or name in sys.argv[1:]:
                make(number, name, Path(work))

# /// script
# requires-python = ">=3.11"
# dependencies = ["surface-distance==0.1", "monai==1.6.1", "torch==2.15.0", "scipy==1.17.1", "numpy==2.4.6", "nibabel==5.4.2", "safetensors"]
# ///
"""Metrics of label maps as other packages have them: writes metrics/ beside this script.

    uv run make_metrics.py      with the test data in ../../../shared or $OBELISK_SHARED

  masks.safetensors.gz  CASE.prediction and CASE.reference: label maps, u8
  scores.json           by case: spacing and tolerance in mm, and by label the scores
      elements            surface-distance's (DeepMind), with their areas: hd, hd95, assd over both surfaces, nsd
      voxels              MONAI's by its default, edge voxels: hd, hd95, assd (symmetric), nsd
      subvoxels           MONAI's surface Dice with use_subvoxels: nsd
      overlap             counted by numpy: dice, jaccard, precision, recall, volumes in ml
  tests.json            paired differences, and what scipy.stats.wilcoxon gives for them by default

"inf" stands for an infinite score and null for one that is not defined. The real cases are hippocampi of the Medical Segmentation
Decathlon (CC-BY-SA 4.0) and what nnU-Net makes of them.

surface-distance 0.1 was written for older numpy and scipy: the names below, which are gone, are given back before it is imported.
"""

import gzip
import json
import os
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from safetensors.numpy import save
from scipy import ndimage, stats

np.Inf, np.NaN = np.inf, np.nan
ndimage.filters = ndimage.morphology = ndimage

import surface_distance  # noqa: E402
from monai.metrics import (  # noqa: E402
    compute_average_surface_distance,
    compute_hausdorff_distance,
    compute_surface_dice,
)

warnings.simplefilter("ignore")
HERE = Path(__file__).resolve().parent
SHARED = Path(os.environ.get("OBELISK_SHARED", HERE.parents[2] / "shared"))
OUT = HERE / "metrics"


def number(value):
    value = float(value)
    return None if np.isnan(value) else "inf" if np.isinf(value) else value


def elements(prediction, reference, spacing, tolerance):
    d = surface_distance.compute_surface_distances(reference, prediction, spacing)
    to_prediction, to_reference = d["distances_gt_to_pred"], d["distances_pred_to_gt"]
    areas, areas_predicted = d["surfel_areas_gt"], d["surfel_areas_pred"]
    if not prediction.any() and not reference.any():
        hd = hd95 = np.nan
    else:
        hd = surface_distance.compute_robust_hausdorff(d, 100)
        hd95 = surface_distance.compute_robust_hausdorff(d, 95)
    whole = areas.sum() + areas_predicted.sum()
    assd = ((to_prediction * areas).sum() + (to_reference * areas_predicted).sum()) / whole
    nsd = surface_distance.compute_surface_dice_at_tolerance(d, tolerance)
    return {"hd": number(hd), "hd95": number(hd95), "assd": number(assd), "nsd": number(nsd)}


def monai(prediction, reference, spacing, tolerance):
    y_pred, y = (torch.from_numpy(m.astype(np.float32))[None, None] for m in (prediction, reference))
    more = {"include_background": True, "spacing": list(spacing)}
    return {
        "hd": number(compute_hausdorff_distance(y_pred, y, **more)),
        "hd95": number(compute_hausdorff_distance(y_pred, y, percentile=95, **more)),
        "assd": number(compute_average_surface_distance(y_pred, y, symmetric=True, **more)),
        "nsd": number(compute_surface_dice(y_pred, y, [tolerance], **more)),
    }, {"nsd": number(compute_surface_dice(y_pred, y, [tolerance], use_subvoxels=True, **more))}


def overlap(prediction, reference, spacing):
    a, b, both = int(prediction.sum()), int(reference.sum()), int((prediction & reference).sum())
    voxel = np.prod(spacing) / 1000
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = lambda x, y: number(np.float64(x) / np.float64(y)) if y else None
        return {
            "dice": ratio(2 * both, a + b),
            "jaccard": ratio(both, a + b - both),
            "precision": ratio(both, a),
            "recall": ratio(both, b),
            "volume": a * voxel,
            "reference_volume": b * voxel,
            "volume_error": abs(a - b) * voxel,
            "relative_volume_error": ratio(abs(a - b), b),
        }


def box(shape, *ranges):
    mask = np.zeros(shape, np.uint8)
    mask[tuple(slice(*r) for r in ranges)] = 1
    return mask


def cases():
    """Name, prediction, reference, spacing, tolerance."""
    for case in (381, 383, 385):
        reference = nib.load(SHARED / f"data/Task04_Hippocampus/labelsTr/hippocampus_{case}.nii.gz")
        prediction = nib.load(SHARED / f"reference/nnunet_hippo/expected/hippocampus_{case}.nii.gz")
        a, b = (np.asarray(i.dataobj).astype(np.uint8) for i in (prediction, reference))
        yield f"hippocampus_{case}", a, b, (1.0, 1.0, 1.0), 1.0
        yield f"hippocampus_{case}_anisotropic", a, b, (0.7, 1.3, 5.0), 1.7
        # every other slice, as a thick scan has them, and the spacing of an f32 header
        yield f"hippocampus_{case}_thick", a[:, :, ::2], b[:, :, ::2], (0.48828125, 0.48828125, 2.5), 0.6
    rng = np.random.default_rng(5)
    blobs = lambda level: (ndimage.gaussian_filter(rng.normal(size=(24, 20, 16)), 1.5) > level).astype(np.uint8)
    yield "blobs", blobs(0.02), blobs(0.03), (0.8, 1.1, 3.0), 2.0
    # in noise every kind of neighbourhood occurs
    noise = lambda p: (rng.random((12, 13, 14)) < p).astype(np.uint8)
    yield "noise", noise(0.5), noise(0.5), (0.9, 1.3, 2.1), 0.95
    yield "sparse_noise", noise(0.02), noise(0.05), (0.9, 1.3, 2.1), 3.0
    shape, spacing = (9, 10, 11), (1.0, 1.5, 2.5)
    empty, full = np.zeros(shape, np.uint8), np.ones(shape, np.uint8)
    cube = box(shape, (3, 6), (3, 7), (4, 8))
    yield "both_empty", empty, empty, spacing, 1.0
    yield "prediction_empty", empty, cube, spacing, 1.0
    yield "reference_empty", cube, empty, spacing, 1.0
    yield "identical", cube, cube, spacing, 1.0
    yield "tolerance_0", cube, box(shape, (3, 6), (3, 7), (4, 9)), spacing, 0.0
    yield "shifted_by_the_tolerance", cube, box(shape, (3, 6), (3, 7), (5, 9)), spacing, 2.5
    yield "disjoint", box(shape, (0, 2), (0, 2), (0, 2)), box(shape, (6, 9), (7, 10), (8, 11)), spacing, 1.0
    yield "single_voxels", box(shape, (2, 3), (2, 3), (2, 3)), box(shape, (5, 6), (2, 3), (6, 7)), spacing, 1.0
    yield "single_voxel_in_a_corner", box(shape, (0, 1), (0, 1), (0, 1)), cube, spacing, 3.0
    yield "planes", box(shape, (4, 5), (0, 10), (0, 11)), box(shape, (6, 7), (0, 10), (0, 11)), spacing, 2.0
    yield "thin_planes_across", box(shape, (4, 5), (2, 8), (2, 9)), box(shape, (1, 8), (5, 6), (2, 9)), spacing, 2.0
    yield "touching_the_border", box(shape, (0, 4), (0, 10), (6, 11)), box(shape, (0, 5), (0, 9), (5, 11)), spacing, 1.2
    yield "full", full, full, spacing, 1.0
    yield "full_against_a_cube", full, cube, spacing, 1.0
    hollow = full.copy()
    hollow[2:7, 2:8, 2:9] = 0
    yield "hollow_against_full", hollow, full, spacing, 1.0
    yield "diagonal_neighbours", box(shape, (3, 4), (3, 4), (3, 4)) | box(shape, (4, 5), (4, 5), (4, 5)), cube, spacing, 1.0
    yield "one_voxel_scan", np.ones((1, 1, 1), np.uint8), np.ones((1, 1, 1), np.uint8), spacing, 1.0
    yield "one_slice", cube[3:4], box(shape, (3, 4), (2, 7), (4, 9))[3:4], spacing, 1.0


def main():
    masks, scores = {}, {}
    for name, prediction, reference, spacing, tolerance in cases():
        masks[f"{name}.prediction"], masks[f"{name}.reference"] = map(np.ascontiguousarray, (prediction, reference))
        labels = {}
        for label in sorted(set(np.unique(prediction)) | set(np.unique(reference)) | {1}):
            if label == 0:
                continue
            a, b = prediction == label, reference == label
            voxels, subvoxels = monai(a, b, spacing, tolerance)
            labels[str(label)] = {
                "elements": elements(a, b, spacing, tolerance),
                "voxels": voxels,
                "subvoxels": subvoxels,
                "overlap": overlap(a, b, spacing),
            }
        scores[name] = {"spacing": spacing, "tolerance": tolerance, "labels": labels}
    OUT.mkdir(exist_ok=True)
    (OUT / "masks.safetensors.gz").write_bytes(gzip.compress(save(masks), mtime=0))
    (OUT / "scores.json").write_text(json.dumps(scores) + "\n")

    rng = np.random.default_rng(7)
    differences = [rng.normal(0.1, 1, n).tolist() for n in (1, 2, 5, 8, 20, 50, 51, 200)]
    differences += [np.round(rng.normal(0.2, 1, n), 1).tolist() for n in (6, 13, 14, 40, 60)]
    differences += [[0.0, 1.0, 2.0, -3.0], [1.0, 1.0, 1.0, 1.0], [0.0] * 5 + [1.0, 2.0, 4.0] * 4, [0.5, -0.5]]
    tests = []
    for d in differences:
        result = stats.wilcoxon(d)
        tests.append({"differences": d, "statistic": float(result.statistic), "p": float(result.pvalue)})
    (OUT / "tests.json").write_text(json.dumps(tests) + "\n")


if __name__ == "__main__":
    main()

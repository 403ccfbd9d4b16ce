# /// script
# requires-python = ">=3.11"
# dependencies = ["torch==2.15.0", "numpy==2.4.6", "safetensors==0.8.0", "nibabel==5.4.2", "dynamic-network-architectures==0.4.4"]
# ///
"""Ten training steps of obelisk-hybrid, unet, a meshnet and two of nnU-Net's in PyTorch, in float64 and in float32.

    uv run make_training.py Task04_Hippocampus [NETWORK...]

Writes, beside this script:

training_batches.safetensors   the ten batches of all networks, in order
  images [10, 2, 1, 21, 27, 20] f32, labels [10, 2, 1, 21, 27, 20] u8; class_weights [3]
training_hybrid.safetensors, training_unet.safetensors, training_meshnet.safetensors (with ELU),
training_nnunet.safetensors, training_nnunet-resenc.safetensors (the batches' first 20x24x16 voxels, with deep supervision)
  weights/NAME            initial weights and running statistics
  logits [3, 21, 27, 20]  of the first image of the first batch with the initial weights, in training mode
  and for each LOSS
  LOSS/losses_float64, LOSS/losses_float32 [10]   the loss of each step, before its update
  LOSS/gradient_norms [P] the Euclidean norm of each parameter's gradient in the first step, by sorted name
  LOSS/gradients/NAME     the first step's gradients of parameters of up to 4,096 numbers
  LOSS/final/NAME         some weights and running statistics after ten steps
  metadata `settings`: JSON with the optimiser's settings, `parameters` (the sorted names) and, for each LOSS,
  `float32_deviation` {NAME: largest absolute difference of final/NAME between the float32 and float64 runs}
  A convolution's bias before a batch norm has no effect on the loss: its gradient is rounding error, and what Adam
  makes of that differs between any two programs.

training_recipe.safetensors    ten steps of the hybrid from training_hybrid's weights with Nesterov's momentum (SGD below), gradients
                               clipped to CLIP, and moving averages of weights and running statistics with DECAY
  losses_float64, losses_float32 [10]; averages/NAME after ten steps

LOSS is `cross_entropy_dice` (mean cross-entropy + soft Dice, denominators without squares, eps 1e-5) or `hard_mining`
(a quarter of the batch's voxels, class weights count^-1/2 over all batches divided by their mean, then 0.5 for the
background) for the hybrid, `cross_entropy` (mean) for the unet and the meshnet, `deep_supervision` (cross_entropy_dice of
each decoder stage but the coarsest, weighted 2/3 and 1/3, labels by nearest-exact) for nnU-Net's. Adam: learning rate 0.002, weight decay 1e-5 added to
the gradient, betas 0.9 and 0.999, eps 1e-8. No augmentation, no dropout.

Images: the first 20 cases by name, z-scored over the whole volume, cropped around the middle of the labels' box.
"""

import json
import os
import sys
import warnings
from pathlib import Path

import nibabel
import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from make_ops import dice_scores, hard_examples, voxelwise_cross_entropy, weighted_mean
from networks import MESHNET, MeshNet, ObeliskHybrid, UNet, initialise, nnunet

HERE = Path(__file__).resolve().parent
SIZE, LABELS, STEPS, BATCH = (21, 27, 20), 3, 10, 2
# Of seeds 1 to 6 the one whose float32 losses stay nearest to float64 (within 1e-5; others drift to 1e-4 when a rounding
# error in a vanishing gradient turns one of Adam's first steps around): it shows the smallest mistakes.
SEED = 6
ADAM = dict(lr=0.002, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-5)
FINAL = {
    "hybrid": ["offset1", "offset2", "conv0.weight", "conv1.weight", "conv77U.weight", "conv77U.bias", "linear1e.weight",
               "batch2d.weight", "batch0.weight", "batch0.bias", "batch0.running_mean", "batch0.running_var",
               "batch7U.running_mean", "batch7U.running_var"],
    "unet": ["conv0.weight", "conv1.weight", "conv7U.weight", "conv77U.weight", "conv77U.bias", "batch44.weight",
             "batch0.running_mean", "batch0.running_var", "batch7U.running_mean", "batch7U.running_var"],
    "nnunet": ["encoder.stages.0.0.convs.0.conv.weight", "decoder.transpconvs.1.weight", "decoder.seg_layers.1.weight",
               "decoder.seg_layers.2.bias"],
    "nnunet-resenc": ["encoder.stem.convs.0.conv.weight", "encoder.stages.1.blocks.0.skip.1.conv.weight",
                      "decoder.seg_layers.1.weight", "decoder.seg_layers.2.bias"],
    "meshnet": ["layers.0.weight", "layers.4.weight", "layers.4.bias", "layers.9.weight", "layers.9.bias"],
}  # fmt: skip


def batches(dataset):
    images, labels = [], []
    for path in sorted((dataset / "imagesTr").glob("*.nii.gz"))[: STEPS * BATCH]:
        image = nibabel.load(path).get_fdata()
        label = np.asarray(nibabel.load(dataset / "labelsTr" / path.name).dataobj).astype(np.uint8)
        where = np.argwhere(label > 0)
        middle = (where.min(0) + where.max(0) + 1) // 2
        start = [min(max(m - s // 2, 0), n - s) for m, s, n in zip(middle, SIZE, label.shape)]
        crop = tuple(slice(a, a + s) for a, s in zip(start, SIZE))
        images.append(((image - image.mean()) / image.std())[crop].astype(np.float32))
        labels.append(label[crop])
    shape = (STEPS, BATCH, 1, *SIZE)
    return torch.tensor(np.stack(images)).reshape(shape), torch.tensor(np.stack(labels)).reshape(shape)


def cross_entropy(logits, labels, _):
    return voxelwise_cross_entropy(logits, labels).mean()


def cross_entropy_dice(logits, labels, _):
    dice = dice_scores(logits, labels.to(logits.dtype), False, 1e-5)
    return voxelwise_cross_entropy(logits, labels).mean() + 1 - dice.mean()


def deep_supervision(logits, labels, _):
    """nnU-Net's weights 1, 1/2, ... with the last one 0, over their sum."""
    *scored, _ = logits
    weights = [0.5**i for i in range(len(scored))]
    losses = []
    for own in scored:
        near = F.interpolate(labels.to(own.dtype), own.shape[2:], mode="nearest-exact").long()
        losses.append(cross_entropy_dice(own, near, None))
    return sum(w * l for w, l in zip(weights, losses)) / sum(weights)


def hard_mining(logits, labels, class_weights):
    ce = voxelwise_cross_entropy(logits, labels)
    keep, _, _ = hard_examples(ce.detach(), labels, 0.25)
    return weighted_mean(ce, labels, class_weights.to(ce.dtype), keep)


def train(network, loss_function, images, labels, class_weights):
    """Ten steps in the network's type: losses, the first step's gradients, the final state."""
    dtype = next(network.parameters()).dtype
    optimiser = torch.optim.Adam(network.parameters(), **ADAM)
    losses, gradients = [], None
    for image, label in zip(images.to(dtype), labels.long()):
        optimiser.zero_grad()
        loss = loss_function(network(image), label, class_weights)
        loss.backward()
        if gradients is None:
            gradients = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
        optimiser.step()
        losses.append(loss.item())
    return torch.tensor(losses, dtype=torch.float64), gradients, network.state_dict()


SGD = {"lr": 0.01, "momentum": 0.9, "nesterov": True, "weight_decay": 3e-5}
CLIP = 0.5
DECAY = 0.9


def train_by_recipe(network, images, labels):
    """Ten steps with Nesterov's momentum, gradients clipped, and moving averages of weights and statistics: losses, averages."""
    optimiser = torch.optim.SGD(network.parameters(), **SGD)
    dtype = next(network.parameters()).dtype
    averages = {k: v.clone() for k, v in network.state_dict().items() if v.is_floating_point()}
    losses, clipped = [], 0
    for step, (image, label) in enumerate(zip(images.to(dtype), labels.long())):
        optimiser.zero_grad()
        loss = cross_entropy_dice(network(image), label, None)
        loss.backward()
        clipped += torch.nn.utils.clip_grad_norm_(network.parameters(), CLIP) > CLIP
        optimiser.step()
        decay = min(DECAY, (1 + step) / (10 + step))
        for k, v in network.state_dict().items():
            if k in averages:
                averages[k] += (1 - decay) * (v - averages[k])
        losses.append(loss.item())
    assert 0 < clipped
    return torch.tensor(losses, dtype=torch.float64), averages


def save(name, tensors, metadata=None):
    tensors = {k: v if v.dtype == torch.uint8 else v.float() for k, v in tensors.items()}
    path = HERE / name
    save_file({k: v.contiguous() for k, v in tensors.items()}, path.with_suffix(".tmp"), metadata)
    os.replace(path.with_suffix(".tmp"), path)
    print(f"{name}: {path.stat().st_size} bytes")


def main():
    warnings.filterwarnings("ignore", message="Since version 1.3.0, affine_grid")
    torch.set_num_threads(1)
    images, labels = batches(Path(sys.argv[1]))
    count = torch.bincount(labels.flatten().long(), minlength=LABELS).double()
    class_weights = count**-0.5
    class_weights = class_weights / class_weights.mean()
    class_weights[0] = 0.5
    class_weights = class_weights.float()
    print("voxels of each label", count.tolist(), "class weights", class_weights.tolist())
    if not sys.argv[2:] or "recipe" in sys.argv[2:]:
        def hybrid(dtype):
            return initialise(ObeliskHybrid(LABELS), seed=SEED).to(dtype).train()

        exact, averages = train_by_recipe(hybrid(torch.float64), images, labels)
        single, _ = train_by_recipe(hybrid(torch.float32), images, labels)
        print("recipe", [round(x, 5) for x in exact.tolist()], (single - exact).abs().max().item())
        own = {f"averages/{k}": v for k, v in averages.items() if k in FINAL["hybrid"] or k.endswith("running_var")}
        save("training_recipe.safetensors", {"losses_float64": exact, "losses_float32": single, **own})
    if not sys.argv[2:]:
        save("training_batches.safetensors", {"images": images, "labels": labels, "class_weights": class_weights})
    steps = [[1] * 3, [2] * 3, [1, 2, 2], [2] * 3]
    stages = [(c, [3] * 3, step, n) for c, step, n in zip((4, 6, 8, 10), steps, (1, 2, 1, 2))]
    for name, make, functions in [
        ("hybrid", ObeliskHybrid, [cross_entropy_dice, hard_mining]),
        ("unet", UNet, [cross_entropy]),
        ("meshnet", lambda labels: MeshNet(labels, F.elu, MESHNET), [cross_entropy]),
        ("nnunet", lambda labels: nnunet(labels, False, stages, True), [deep_supervision]),
        ("nnunet-resenc", lambda labels: nnunet(labels, True, stages, True), [deep_supervision]),
    ]:
        if sys.argv[2:] and name not in sys.argv[2:]:
            continue
        if name.startswith("nnunet"):
            images, labels = (t[..., :20, :24, :16] for t in (images, labels))
        initial = initialise(make(LABELS), seed=SEED).state_dict()
        initial = {k: v.clone() for k, v in initial.items() if not k.endswith("num_batches_tracked")}
        named = {k for k, _ in make(LABELS).named_parameters()} | {k for k, _ in make(LABELS).named_buffers()}
        tensors = {f"weights/{k}": v for k, v in initial.items() if k in named}
        # No loss reaches the head of the coarsest stage.
        unused = {k for k in named if name.startswith("nnunet") and k.startswith("decoder.seg_layers.0.")}
        tensors = {k: v for k, v in tensors.items() if k.removeprefix("weights/") not in unused}
        parameters = sorted({k for k, _ in make(LABELS).named_parameters()} - unused)
        settings = {**ADAM, "labels": LABELS, "parameters": parameters}

        def network(dtype):
            fresh = make(LABELS)
            fresh.load_state_dict(initial, strict=False)
            return fresh.to(dtype).train()

        with torch.no_grad():
            logits = network(torch.float64)(images[0].double())
            tensors["logits"] = (logits[0] if isinstance(logits, list) else logits)[0]
        for function in functions:
            loss = function.__name__
            exact, gradients, final = train(network(torch.float64), function, images, labels, class_weights)
            single, _, final32 = train(network(torch.float32), function, images, labels, class_weights)
            tensors[f"{loss}/losses_float64"] = exact
            tensors[f"{loss}/losses_float32"] = single
            tensors[f"{loss}/gradient_norms"] = torch.stack([gradients[k].norm() for k in parameters])
            for k, g in gradients.items():
                if g.numel() <= 4096:
                    tensors[f"{loss}/gradients/{k}"] = g
            for k in FINAL[name]:
                tensors[f"{loss}/final/{k}"] = final[k]
            settings[loss] = {
                "float32_deviation": {k: (final[k] - final32[k].double()).abs().max().item() for k in FINAL[name]}
            }
            deviation = ((single - exact) / exact).abs().max().item()
            print(name, loss, [round(x, 5) for x in exact.tolist()], f"float32 differs by {deviation:.1e}")
            print("  ", {k: f"{v:.1e}" for k, v in settings[loss]["float32_deviation"].items()})
        save(f"training_{name}.safetensors", tensors, {"settings": json.dumps(settings, sort_keys=True)})


if __name__ == "__main__":
    main()

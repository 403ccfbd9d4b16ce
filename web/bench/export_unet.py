"""Exports the published all-convolutional U-Net to ONNX: export_unet.py WEIGHTS.safetensors UNET.onnx"""

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "tests" / "reference"))
import networks  # noqa: E402

weights, out = sys.argv[1:]
network = networks.TciaUNet(9)
missing, _ = network.load_state_dict(load_file(weights), strict=False)
assert all(name.endswith("num_batches_tracked") for name in missing), missing
network.eval()
image = torch.zeros(1, 1, 144, 144, 144)
torch.onnx.export(network, (image,), out, input_names=["image"], output_names=["logits"], dynamo=True, external_data=False)

# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy==2.*", "onnx==1.*", "onnxruntime==1.*", "safetensors==0.*"]
# ///
"""Runs ONNX files in onnxruntime on the processor: `run_onnx.py FOLDER`.

Of every NAME.onnx there, checks it by onnx.checker (full_check), runs NAME.image.safetensors (`image`) through it, and writes its
outputs as float32 to NAME.outputs.safetensors.
"""

import pathlib
import sys

import numpy as np
import onnx
import onnxruntime
from safetensors.numpy import load_file, save_file

for path in sorted(pathlib.Path(sys.argv[1]).glob("*.onnx")):
    onnx.checker.check_model(str(path), full_check=True)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    image = load_file(path.with_suffix(".image.safetensors"))["image"]
    outputs = session.run(None, {"image": image})
    names = [output.name for output in session.get_outputs()]
    arrays = {name: np.ascontiguousarray(o.astype(np.float32)) for name, o in zip(names, outputs)}
    save_file(arrays, path.with_suffix(".outputs.safetensors"))
    del session

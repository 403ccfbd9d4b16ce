#!/usr/bin/env bash
# Times whole segmentations of a 144³ scan in one run: this page in Chromium on SwiftShader, the program on software
# Vulkan, and onnxruntime-web's WebAssembly backend with the same U-Net exported to ONNX. Prints a table.
#
#   PYTHON=… web/bench/run.sh SCAN.nii.gz ALLCONVUNET_TCIA.safetensors
#
# PYTHON has torch, onnx, onnxscript and safetensors; the weights are the published ones under the authors' names.
# Not part of the tests: it needs PyTorch, and minutes of an idle machine.
set -euo pipefail
scan=$(realpath "$1") weights=$(realpath "$2")
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
scripts/web.sh build
cargo build --release --locked
work=$PWD/target/web-bench
mkdir -p "$work"
npm install --prefix "$work" --no-save --no-audit --no-fund --loglevel error onnxruntime-web@1.30.0
target/release/obelisk import "$weights" --arch allconvunet_tcia --output "$work/unet.safetensors" --force
"${PYTHON:-python3}" web/bench/export_unet.py "$weights" "$work/unet.onnx"
node web/bench/compare.js "$scan" "$work"

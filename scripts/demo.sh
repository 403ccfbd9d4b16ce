#!/usr/bin/env bash
# Trains a small network on the 18 sample scans, segments the 6 unseen ones, scores and draws them; then does the same
# with the weights that come with the program. Under 5 minutes after the build on 2 cores without a GPU.
# scripts/demo.sh [FOLDER]; EPOCHS=N trains for N epochs, OBELISK=PROGRAM takes a program that is built.
. "$(dirname "$0")/setup.sh"

epochs=${EPOCHS:-30}
out=${1:-demo}
if [ -e "$out" ]; then
    say "$out exists; name another folder: scripts/demo.sh FOLDER"
    exit 1
fi

obelisk=${OBELISK:-target/release/obelisk}
if [ -z "${OBELISK:-}" ]; then
    say "Building (a few minutes the first time)"
    cargo build --release --locked
fi
data=examples/data
"$obelisk" info

say "Training the hybrid OBELISK network on 18 scans for $epochs epochs"
"$obelisk" train "$data" --arch obelisk-hybrid --epochs "$epochs" --learning-rate 0.008 --out "$out/run"

say "Segmenting 6 scans that it has not seen"
"$obelisk" predict --model "$out/run/last.safetensors" --input "$data/imagesTs" \
    --output "$out/trained-here" --overlay "$out/trained-here/overlays"
say "Segmenting them with the weights that come with the program"
"$obelisk" predict --model examples/weights/hippocampus.safetensors --input "$data/imagesTs" \
    --output "$out/shipped" --overlay "$out/shipped/overlays"

say "Trained here: $epochs epochs on 18 scans, a glimpse of what the method can do"
scores=(--labels "$data/labelsTs" --dataset "$data" --metrics "dice,nsd,hd95")
"$obelisk" evaluate --predictions "$out/trained-here" "${scores[@]}"
say "Shipped: a full training on 202 other scans of the same dataset"
"$obelisk" evaluate --predictions "$out/shipped" "${scores[@]}"
say "Look at $out/run/curve.png, $out/trained-here/overlays and $out/shipped/overlays"

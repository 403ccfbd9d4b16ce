#!/bin/sh
# Compares obelisk with PyTorch on this machine, alternating, and writes the table to benches/RESULTS.md.
#
#   benches/compare.sh [--rounds 3] [--steps 2] [--only WORD] [--device cpu|cuda] [--adapter NAME] [--against PROGRAM]
#
# With --against it compares with another build of obelisk instead, and prints the table.
#
# PYTHON names a Python with the PyTorch of benches/pytorch.py (3.11 or later), OBELISK a built program; without
# OBELISK, cargo builds it. Nothing else is needed: not Rust, not the internet.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
if [ -z "${OBELISK:-}" ]; then
    cargo build --release --manifest-path "$here/../Cargo.toml"
    OBELISK="$here/../target/release/obelisk"
fi
export OBELISK
exec "${PYTHON:-python3}" "$here/compare.py" "$@"

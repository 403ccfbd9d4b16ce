#!/usr/bin/env bash
# What others get: the crate's package builds from its own tarball with tests and examples and stays under 1 MB, and a
# program outside of the project uses the library without the command line's dependencies.
. "$(dirname "$0")/setup.sh"

export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$PWD/target}"
say "Package"
cargo package --locked --allow-dirty --no-verify --quiet
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
crate="$CARGO_TARGET_DIR/package/obelisk-$version.crate"
bytes=$(wc -c <"$crate")
echo "$crate: $bytes bytes"
[ "$bytes" -lt 1000000 ] || { say "The package has $bytes bytes, 1 MB or more"; exit 1; }
unpacked=$(mktemp -d)
trap 'rm -rf "$unpacked"' EXIT
tar xzf "$crate" -C "$unpacked"
(cd "$unpacked/obelisk-$version" && cargo check --release --all-targets --locked --quiet)

say "A program outside of the project"
cp Cargo.lock tests/outside/Cargo.lock # the same dependencies; cargo drops what it does not need
dependencies=$(cargo tree --manifest-path tests/outside/Cargo.toml --edges normal --prefix none)
if grep -E '^(clap|plotters|indicatif|anyhow|dirs|tracing-subscriber|dicom-[a-z-]+|jpeg-decoder) ' <<<"$dependencies"; then
    say "A library needs none of these"
    exit 1
fi
cargo run --release --quiet --manifest-path tests/outside/Cargo.toml -- \
    examples/weights/hippocampus.safetensors examples/data/imagesTs/hippocampus_041.nii.gz

#!/usr/bin/env bash
# What others get: the crate's package builds from its own tarball with tests and examples and stays under 1 MB, and a
# program outside of the project uses the library without the command line's dependencies. With LINTS set the package is linted
# instead of type-checked, which lints the project: every file of its programs and tests is in it.
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
check=(check --release --all-targets --locked --quiet)
if [ -n "${LINTS:-}" ]; then
    missing=$(git ls-files -z --cached --others --exclude-standard 'src/*.rs' 'examples/*.rs' 'benches/*.rs' 'tests/*.rs' ':!tests/outside' |
        while IFS= read -r -d '' file; do [ -e "$unpacked/obelisk-$version/$file" ] || echo "$file"; done)
    [ -z "$missing" ] || { say "The package lacks $missing"; exit 1; }
    check[0]=clippy
    check+=(-- -D warnings)
fi
here=$PWD
(cd "$unpacked/obelisk-$version" && CLIPPY_CONF_DIR=$here cargo "${check[@]}")

say "A program outside of the project"
cp Cargo.lock tests/outside/Cargo.lock # the same dependencies; cargo drops what it does not need
dependencies=$(cargo tree --manifest-path tests/outside/Cargo.toml --edges normal --prefix none)
if grep -E '^(clap|plotters|indicatif|anyhow|dirs|tracing-subscriber|dicom-[a-z-]+|jpeg-decoder) ' <<<"$dependencies"; then
    say "A library needs none of these"
    exit 1
fi
cargo run --release --quiet --manifest-path tests/outside/Cargo.toml -- \
    examples/weights/hippocampus.safetensors examples/data/imagesTs/hippocampus_041.nii.gz

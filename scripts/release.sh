#!/usr/bin/env bash
# All that is published, in one version: `scripts/release.sh [FOLDER]` writes the crate, the npm package, the page, the Python wheel, the
# program for this machine's Linux with manual pages, completions, weights and licences, and, where podman, buildah or docker is there, an
# image; then it installs each from its archive into an empty place and segments a scan with it. `scripts/release.sh check FOLDER` does
# only the latter.
. "$(dirname "$0")/setup.sh"

here=$PWD
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target}
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
scan=$here/examples/data/imagesTs/hippocampus_041.nii.gz
reference=$here/examples/data/labelsTs
weights=$here/examples/weights/hippocampus.safetensors
program=obelisk-$version-$(uname -m)-linux
empty=$(mktemp -d)
trap 'rm -rf "$empty"' EXIT

one_version() {
    local file found
    for file in python/Cargo.toml web/package/package.json; do
        found=$(sed -n 's/^ *"\?version"\? *[=:] *"\(.*\)".*/\1/p' "$file" | head -1)
        [ "$found" = "$version" ] || { say "$file has version $found, Cargo.toml $version"; exit 1; }
    done
    grep -q "^## \[$version\]" CHANGELOG.md || say "CHANGELOG.md has no section for $version yet"
}

# The licences of what the program is made of, crate by crate, from their own packages.
licences() {
    local package name of folder
    echo "obelisk $version contains these crates. The text of each licence is as its authors publish it."
    cargo tree --locked --edges normal --prefix none --format '{p}|{l}' | sed 's/ (\*)$//' | sort -u | while IFS='|' read -r package of; do
        name=$(cut -d' ' -f1,2 <<<"$package")
        [[ $name != "obelisk "* ]] || continue
        printf '\n%s\n%s: %s\n' "$(printf '=%.0s' {1..80})" "$name" "$of"
        for folder in "${CARGO_HOME:-$HOME/.cargo}"/registry/src/*/"${name/ v/-}"; do
            find "$folder" -maxdepth 1 -type f -iregex '.*/\(licen[cs]e\|copying\|notice\|unlicense\)[^/]*' -print0 | sort -z | xargs -0 -r cat
        done
    done
}

build() {
    one_version
    say "The crate"
    cargo package --locked --allow-dirty --no-verify --quiet
    cp "$CARGO_TARGET_DIR/package/obelisk-$version.crate" "$out/"

    say "The program"
    cargo build --release --locked --quiet
    local folder=$empty/$program
    mkdir -p "$folder/bin" "$folder/share/obelisk" "$folder/share/bash-completion/completions" "$folder/share/zsh/site-functions"
    cp "$CARGO_TARGET_DIR/release/obelisk" "$folder/bin/"
    strip "$folder/bin/obelisk"
    "$folder/bin/obelisk" man "$folder/share/man/man1"
    "$folder/bin/obelisk" completions bash >"$folder/share/bash-completion/completions/obelisk"
    "$folder/bin/obelisk" completions zsh >"$folder/share/zsh/site-functions/_obelisk"
    cp examples/weights/* "$folder/share/obelisk/"
    cp README.md CHANGELOG.md SECURITY.md LICENSE-* "$folder/"
    licences >"$folder/THIRD-PARTY.txt"
    tar czf "$out/$program.tar.gz" -C "$empty" "$program"

    say "The page and its npm package"
    scripts/web.sh build
    (cd web/package && npm pack --silent --pack-destination "$out" >/dev/null)
    tar czf "$out/obelisk-page-$version.tar.gz" -C web/dist .

    say "The Python wheel"
    python3 -m venv "$empty/builder"
    "$empty/builder/bin/pip" wheel --quiet --disable-pip-version-check --no-deps --wheel-dir "$out" .

    local builder
    for builder in podman buildah docker; do
        command -v "$builder" >/dev/null || continue
        say "The image"
        "$builder" build --quiet --tag "obelisk:$version" --file recipes/cluster/kubernetes/Containerfile .
        "$builder" save "obelisk:$version" | gzip >"$out/obelisk-$version-image.tar.gz"
        break
    done
    [ -n "$(find "$out" -name '*-image.tar.gz')" ] || say "SKIPPED: the image; there is no podman, buildah or docker"
    (cd "$out" && sha256sum -- * >SHA256SUMS)
}

# The label map of an archive's segmentation, scored: both labels at least 0.8.
scored() {
    mkdir -p "$1.scored"
    cp "$1" "$1.scored/hippocampus_041.nii.gz"
    "$empty/$program/bin/obelisk" evaluate --predictions "$1.scored" --labels "$empty/reference" --json "$1.json" >/dev/null
    "$empty/python/bin/python" - "$1.json" <<'END'
import json, sys
dice = json.load(open(sys.argv[1]))["cases"][0]["dice"]
assert len(dice) == 2 and min(dice) > 0.8, dice
END
}

check() {
    (cd "$out" && sha256sum --check --quiet SHA256SUMS)
    mkdir "$empty/reference"
    cp "$reference/hippocampus_041.nii.gz" "$empty/reference/"
    cd "$empty"

    say "Installing the program"
    rm -rf "${empty:?}/$program"
    tar xzf "$out/$program.tar.gz"
    [ -s "$program/share/man/man1/obelisk.1" ] && [ -s "$program/THIRD-PARTY.txt" ]
    "$program/bin/obelisk" --version | grep -F "$version" >/dev/null
    env -i HOME="$empty" PATH=/usr/bin:/bin "$program/bin/obelisk" predict --model "$program/share/obelisk/hippocampus.safetensors" \
        --input "$scan" --output "$empty/program.nii.gz"

    say "Installing the wheel"
    python3 -m venv python
    python/bin/pip install --quiet --disable-pip-version-check "$out"/obelisk_net-"$version"-*.whl
    python/bin/python - "$weights" "$scan" "$empty/wheel.nii.gz" <<'END'
import sys, obelisk
scan, affine = obelisk.read(sys.argv[2])
obelisk.write_labels(sys.argv[3], obelisk.load(sys.argv[1]).predict(scan, affine), affine)
END

    say "Installing the crate"
    mkdir crate
    tar xzf "$out/obelisk-$version.crate" -C crate
    cargo install --quiet --locked --root "$empty/cargo" --path "crate/obelisk-$version"
    cargo/bin/obelisk predict --model "$weights" --input "$scan" --output "$empty/crate.nii.gz"

    say "Installing the npm package and the page"
    mkdir npm page
    npm install --prefix npm --silent --no-audit --no-fund "$out/obelisk-web-$version.tgz"
    tar xzf "$out/obelisk-page-$version.tar.gz" -C page
    (cd "$here/web" && node test/installed.js "$empty/npm/node_modules/obelisk-web" "$empty/page" "$weights" "$scan" "$empty/npm.nii.gz")

    if [ -e "$out/obelisk-$version-image.tar.gz" ]; then
        say "Loading the image"
        local builder
        for builder in podman docker; do
            command -v "$builder" >/dev/null || continue
            "$builder" load --quiet --input "$out/obelisk-$version-image.tar.gz"
            "$builder" run --rm "obelisk:$version" info
            break
        done
    fi

    local way
    for way in program wheel crate npm; do scored "$empty/$way.nii.gz"; done
    for way in wheel crate; do
        cmp "program.nii.gz" "$way.nii.gz" || { say "The $way's labels are others than the program's"; exit 1; }
    done
    say "Each archive installs and segments"
}

case ${1:-} in
check) out=$(realpath "${2:?scripts/release.sh check FOLDER}") ;;
*)
    out=$(realpath -m "${1:-release/$version}")
    [ ! -e "$out" ] || { say "$out exists; name another folder: scripts/release.sh FOLDER"; exit 1; }
    mkdir -p "$out"
    build
    ;;
esac
check
ls -l "$out"

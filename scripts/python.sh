#!/usr/bin/env bash
# Builds the Python package as `pip install .` does, into an environment of its own, and runs its tests there.
. "$(dirname "$0")/setup.sh"

cargo fmt --manifest-path python/Cargo.toml --check
python3 -c 'import venv, ensurepip' 2>/dev/null || install python3-venv
environment=$(mktemp -d)
trap 'rm -rf "$environment"' EXIT
python3 -m venv "$environment"
# What the program has built of the same crates serves here too.
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target}
"$environment/bin/pip" install --quiet --disable-pip-version-check '.[test]'
tests=$PWD/python/tests
cd "$environment" # the installed package, not the folder of its sources
bin/python -m pytest --quiet --rootdir "$tests" "$tests"
bin/python -m mypy --strict --cache-dir "$environment/types" "$tests"

#!/usr/bin/env bash
# Every check of the project, or those that are named: scripts/test.sh [NAME...], of lints, docs, tests, demo, ranks, recipes,
# workflows, targets, package, python, supply and page. Ends with what each took. Where all are made, the page is built and tested
# beside the others: much of either keeps one core busy only. Its engine is then one that is built quickly; the published one, and its
# size, are tested where page is named. clippy then reads the package, which has every file of the programs and tests. ranks, which builds
# the program with MPI, is made where it is named alone.
. "$(dirname "$0")/setup.sh"

# Format, clippy's and shellcheck's lints as errors.
lints() {
    cargo fmt --check
    git ls-files -z '*.sh' .ci/run | xargs -0 shellcheck --external-sources --source-path=SCRIPTDIR
    [ -n "$all" ] || cargo clippy --release --all-targets --locked -- -D warnings
}

docs() { RUSTDOCFLAGS="-D warnings" cargo doc --release --no-deps --locked --quiet; }

# Modules and tests of the suite that compute for long, or what users do.
long=(a_map_of_143_mb a_scan_of_144 a_whole_scan_fits brainchop:: command_line:: crossval:: every_network_gives_pytorchs_logits
    nnunet:: published:: ten_steps:: watched::)

# Unit, shader, gradient, parity and end-to-end tests. They leave the shaders that the page's tests compile. Most of the suite runs many
# kernels on a few voxels each: there software Vulkan leaves out LLVM's optimisations, which take longer than the kernels, and gives
# the same bits.
tests() {
    export OBELISK_SHADERS_JSON=$shaders
    local test=(cargo test --release --locked)
    "${test[@]}" --no-run
    "${test[@]}" --lib --bins --test hostile
    "${test[@]}" --doc
    "${test[@]}" --test suite -- "${long[@]}"
    GALLIVM_PERF=nopt "${test[@]}" --test suite -- "${long[@]/#/--skip=}"
}

# The README's demo with one epoch; the weights that come with the program score what the README says.
demo() {
    local folder
    folder=$(mktemp -d)
    OBELISK=target/release/obelisk EPOCHS=1 scripts/demo.sh "$folder/demo" | tee "$folder/report"
    awk '$1 == "mean" { dice = $NF } END { exit dice < 0.87 }' "$folder/report" || { say "The weights score less"; exit 1; }
    rm -r "$folder"
}

# Training on several processes, where there is an MPI or it can be installed. It leaves a program with MPI.
ranks() { scripts/mpi.sh; }

# What runs the program on clusters, by its own tools.
recipes() { scripts/recipes.sh; }

workflows() { scripts/web.sh workflows; }

targets() { scripts/targets.sh; }

page_build() { scripts/web.sh prepare; }

# The crate's package, and a program outside of the project that uses the library.
package() { LINTS=$all scripts/package.sh; }

# The Python package in an environment of its own.
python() { scripts/python.sh; }

# Advisories; licences and sources are among the tests.
supply() { scripts/supply.sh; }

# Without the scans of 144³ and training, which take minutes in a browser without a GPU: `scripts/web.sh test` has them too.
page() { QUICK=1 scripts/web.sh test; }

# Runs a check and notes its seconds, and those of its processes on all cores.
check() {
    say "$1"
    TIMEFORMAT="$1 %R %U %S"
    { time "$@" 2>&3; } 3>&2 2>>"$times"
}

all=
[ $# -gt 0 ] || all=1
shaders=$PWD/target/shaders.json
times=$(mktemp)
beside=$(mktemp)
tested=$times.tested
trap 'rm -f "$times" "$beside"' EXIT

if [[ ${*:-lints} = *lints* ]]; then
    cargo fmt --version >/dev/null 2>&1 || rustup component add rustfmt
    cargo clippy --version >/dev/null 2>&1 || rustup component add clippy
    command -v shellcheck >/dev/null || install shellcheck
fi
if [ $# -gt 0 ]; then
    for name in "$@"; do check "$name"; done
else
    cargo fmt --check
    cargo fetch --locked --quiet
    rm -f "$shaders"
    export ENGINE_PROFILE=web-tests
    set -m # a process group of its own, which can be ended as a whole
    (
        check page_build
        check workflows
        # The page's tests compare it with the program, and what they wait for is on one core.
        until [ -e "$tested" ]; do sleep 1; done
        OBELISK_SHADERS_JSON=$shaders check page
    ) >"$beside" 2>&1 &
    lane=$!
    set +m
    trap 'kill -- -$lane 2>/dev/null || true; cat "$beside"; rm -f "$times" "$beside" "$tested"' EXIT
    check tests
    check demo
    touch "$tested"
    # The page's tests come first: browsers have time limits.
    renice -n 10 $$ >/dev/null
    for name in recipes lints package python docs targets supply; do check "$name"; done
    wait "$lane"
    cat "$beside"
    : >"$beside"
fi
awk -v all="$SECONDS" '
    BEGIN { printf "\n%-12s %9s %20s\n", "check", "seconds", "of processors" }
    { printf "%-12s %9.0f %20.0f\n", $1, $2, $3 + $4 }
    END { printf "%-12s %9.0f\n", "in all", all }' "$times"
say "All checks passed"

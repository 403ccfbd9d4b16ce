#!/usr/bin/env bash
# Builds obelisk with MPI (feature `mpi`) and tests training on several ranks: scripts/mpi.sh [build|test]. Where there is no MPI it
# installs Debian's Open MPI and libclang; where those can't be had it says so, and fails only with STRICT=1.
. "$(dirname "$0")/setup.sh"

skip() {
    say "SKIPPED: training on several ranks; $*"
    [ -z "${STRICT:-}" ]
    exit
}

has_clang() { ldconfig -p | grep libclang >/dev/null || ls /usr/lib/llvm-*/lib/libclang*.so* >/dev/null 2>&1; }

if ! { command -v mpicc && command -v mpirun && has_clang; } >/dev/null; then
    (install openmpi-bin libopenmpi-dev libclang-dev procps) ||
        skip "there is no MPI (mpicc, mpirun) or no libclang, and they can't be installed"
fi
if [ "${1:-test}" = build ]; then
    cargo build --release --locked --features mpi
    say "${CARGO_TARGET_DIR:-target}/release/obelisk trains on several ranks"
else
    cargo test --release --locked --features mpi --test mpi -- --test-threads 1
fi

#!/usr/bin/env bash
# Every check of the project: format, lints as errors, unit, shader, gradient, parity and end-to-end tests, types on
# Windows and macOS, and the browser app in headless Chromium.
. "$(dirname "$0")/setup.sh"

cargo fmt --version >/dev/null 2>&1 || rustup component add rustfmt
cargo clippy --version >/dev/null 2>&1 || rustup component add clippy

say "Format"
cargo fmt --check
say "Lints"
cargo clippy --release --all-targets --locked -- -D warnings
say "Documentation"
RUSTDOCFLAGS="-D warnings" cargo doc --release --no-deps --locked --quiet
say "Tests"
cargo test --release --locked
scripts/targets.sh
# Without the scans of 144³ and training, which take minutes in a browser without a GPU: `scripts/web.sh test` has them too.
QUICK=1 scripts/web.sh test
say "All checks passed"

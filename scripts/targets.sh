#!/usr/bin/env bash
# Type-checks the program for Windows (DirectX 12) and macOS (Metal) on Linux, so that neither rots unseen. With rustup
# it uses its targets; where rustup can't fetch them, Debian's compiler builds their standard library from source.
. "$(dirname "$0")/setup.sh"

targets=(x86_64-pc-windows-msvc aarch64-apple-darwin)
# In the profile and folder of the lints, whose macros and build scripts serve here too.
check=(check --release --locked "${targets[@]/#/--target=}")

say "Type-checking for ${targets[*]}"
if rustup_has "${targets[@]}"; then
    cargo "${check[@]}"
else
    if ! [ -x /usr/bin/rustc ] || ! dpkg -s rust-web-src >/dev/null 2>&1; then
        install rustc-web cargo-web rust-web-src
    fi
    PATH=/usr/bin:$PATH RUSTC_BOOTSTRAP=1 /usr/bin/cargo "${check[@]}" --target-dir target/other \
        -Zbuild-std=std,panic_abort
fi

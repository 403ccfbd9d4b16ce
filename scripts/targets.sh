#!/usr/bin/env bash
# Type-checks the program for Windows (DirectX 12) and macOS (Metal) on Linux, so that neither rots unseen. With rustup
# it uses its targets; where rustup can't fetch them, Debian's compiler builds their standard library from source.
. "$(dirname "$0")/setup.sh"

for target in x86_64-pc-windows-msvc aarch64-apple-darwin; do
    say "Type-checking for $target"
    if command -v rustup >/dev/null && { rustup target list --installed | grep -qx "$target" ||
        timeout 120 rustup target add "$target" 2>/dev/null; }; then
        cargo check --locked --target "$target" --target-dir target/other
        continue
    fi
    [ -x /usr/bin/rustc ] && dpkg -s rust-web-src >/dev/null 2>&1 || install rustc-web cargo-web rust-web-src
    PATH=/usr/bin:$PATH RUSTC_BOOTSTRAP=1 /usr/bin/cargo check --locked --target "$target" --target-dir target/other \
        -Zbuild-std=std,panic_abort
done

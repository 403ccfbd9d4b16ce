# shellcheck shell=bash
# Sourced by the other scripts: installs what is missing (a C compiler, a Vulkan driver where there is none) and checks
# for Rust. Debian and Ubuntu are served; elsewhere it says what to install.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '\033[1m%s\033[0m\n' "$*" >&2; }

install() {
    if ! command -v apt-get >/dev/null; then
        say "Please install: $* (this script installs packages on Debian and Ubuntu only)"
        exit 1
    fi
    local root=()
    [ "$(id -u)" = 0 ] || root=(sudo)
    say "Installing $*"
    "${root[@]}" apt-get update -qq
    "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

if ! command -v cargo >/dev/null && [ -f "$HOME/.cargo/env" ]; then
    # shellcheck disable=SC1091
    . "$HOME/.cargo/env"
fi
if ! command -v cargo >/dev/null; then
    say "Rust is missing: install it from https://rustup.rs, then run this again"
    exit 1
fi
# On Windows Rust brings what it needs, or finds Visual Studio's.
[[ $(uname) = MINGW* || $(uname) = MSYS* ]] || command -v cc >/dev/null || install build-essential

if [ "$(uname)" = Linux ]; then
    # The loader, and software Vulkan where no driver is registered.
    ldconfig -p 2>/dev/null | grep libvulkan.so.1 >/dev/null || install libvulkan1
    if ! ls /usr/share/vulkan/icd.d/*.json >/dev/null 2>&1 && ! ls /etc/vulkan/icd.d/*.json >/dev/null 2>&1; then
        install mesa-vulkan-drivers
    fi
fi

# Whether rustup has the standard libraries of these targets, or can fetch them.
rustup_has() {
    command -v rustup >/dev/null || return 1
    local target
    for target in "$@"; do
        rustup target list --installed | grep -x "$target" >/dev/null ||
            timeout 120 rustup target add "$target" 2>/dev/null || return 1
    done
}

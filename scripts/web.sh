#!/usr/bin/env bash
# The browser app. `scripts/web.sh build` makes web/dist, a static site; `serve` builds and serves it on this machine;
# `test` builds it and runs the browser tests in headless Chromium; `prepare` is all of `test` before the tests; `workflows`
# checks those of GitHub. Installs what is missing. ENGINE_PROFILE=web-tests makes an engine that is larger, and built in half the time.
. "$(dirname "$0")/setup.sh"

tools=$PWD/target/web-tools
profile=${ENGINE_PROFILE:-web}

# Vite wants Node 20.19 or later; Debian's may be older, and npm has newer ones.
node_new_enough() { node -e 'const [a, b] = process.versions.node.split(".").map(Number); process.exit(a > 20 || (a === 20 && b >= 19) ? 0 : 1)' 2>/dev/null; }
export PATH=$tools/node_modules/node/bin:$PATH
command -v npm >/dev/null || install nodejs npm
if ! node_new_enough; then
    say "Installing a newer Node into target/"
    npm install --prefix "$tools" --no-save --silent node@22
    node_new_enough || { say "Please install Node 20.19 or later"; exit 1; }
fi

# With rustup its wasm32 target; where rustup can't fetch it, Debian's compiler builds the standard library from source.
compile() {
    local flags=(rustc --lib --crate-type cdylib --profile "$profile" --locked --no-default-features --features web
        --target wasm32-unknown-unknown --target-dir target/web)
    # Every browser with WebGPU has WebAssembly's vectors.
    local rustflags="-C target-feature=+simd128"
    if rustup_has wasm32-unknown-unknown; then
        RUSTFLAGS=$rustflags cargo "${flags[@]}"
        return
    fi
    if ! [ -x /usr/bin/rustc ] || ! command -v wasm-ld-22 >/dev/null || ! dpkg -s rust-web-src >/dev/null 2>&1; then
        install rustc-web cargo-web rust-web-src lld-22
    fi
    PATH=/usr/bin:$PATH RUSTC_BOOTSTRAP=1 RUSTFLAGS=$rustflags \
        CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER=wasm-ld-22 \
        /usr/bin/cargo "${flags[@]}" -Zbuild-std=std,panic_abort
}

packages() {
    if [ web/package-lock.json -nt web/node_modules/.package-lock.json ]; then
        say "Installing the page's packages"
        (cd web && npm ci --no-audit --no-fund --loglevel error)
    fi
}

build() {
    say "Compiling the engine for browsers"
    compile
    packages
    local engine=target/web/wasm32-unknown-unknown/$profile/obelisk.wasm
    local packaged=target/web/packaged
    if [ "$engine" -nt web/package/obelisk.js ] || [ "$(cat "$packaged" 2>/dev/null)" != "$profile" ]; then
        cargo run --quiet --locked --manifest-path web/bindgen/Cargo.toml --target-dir target/web-tools -- \
            "$engine" target/web/package
        if [ "$profile" = web ]; then
            web/node_modules/.bin/wasm-opt -O2 --enable-simd --enable-bulk-memory --enable-nontrapping-float-to-int \
                --enable-sign-ext --enable-mutable-globals --enable-reference-types --enable-multivalue --strip-debug \
                target/web/package/obelisk_bg.wasm -o target/web/package/obelisk_bg.wasm
        fi
        cp target/web/package/* web/package/
        echo "$profile" >"$packaged"
    fi
    (cd web && npm run --silent build)
    say "web/dist is a static site; the engine is $(gzip -9c web/package/obelisk_bg.wasm | wc -c) bytes gzipped"
}

chromium=${CHROMIUM:-/usr/bin/chromium}

browser_tests() {
    # Writes the shaders that the browser compiles, and builds the program whose labels are compared.
    if [ -z "${OBELISK_SHADERS_JSON:-}" ]; then
        export OBELISK_SHADERS_JSON=$PWD/target/shaders.json
        cargo test --release --locked --quiet --test suite -- shaders::
    fi
    say "Browser tests"
    (cd web && CHROMIUM=$chromium node --test --test-concurrency=1 test/*.test.js)
}

# actionlint, which npm has as WebAssembly.
workflows() {
    packages
    web/node_modules/.bin/node-actionlint '.github/workflows/*.yml'
}

case ${1:-build} in
build) build ;;
serve)
    build
    (cd web && npx vite preview --host 127.0.0.1)
    ;;
workflows) workflows ;;
prepare)
    [ -x "$chromium" ] || install chromium
    build
    ;;
test)
    [ -x "$chromium" ] || install chromium
    build
    browser_tests
    ;;
*)
    say "scripts/web.sh [build|serve|prepare|test|workflows]"
    exit 2
    ;;
esac

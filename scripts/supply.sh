#!/usr/bin/env bash
# Known vulnerabilities in what the program and the page are made of: cargo-deny with deny.toml, and npm's audit. Both ask databases
# on the network; where these can't be reached it says so, and fails only with STRICT=1.
. "$(dirname "$0")/setup.sh"

unchecked() {
    say "UNCHECKED: $*"
    [ -z "${STRICT:-}" ]
}

if ! cargo deny --version >/dev/null 2>&1; then
    unchecked "advisories of crates; cargo install cargo-deny --locked brings what reads them"
elif cargo deny --all-features fetch db >/dev/null 2>&1; then
    cargo deny --all-features check
else
    cargo deny --all-features check bans licenses sources
    unchecked "advisories of crates; their database (github.com/rustsec/advisory-db) can't be reached"
fi

# Of what the page's visitors get, any; of the tools that build it, too. Exceptions, with a date and a reason: none.
if ! command -v npm >/dev/null; then
    unchecked "advisories of the page's packages; there is no npm"
else
    if report=$(cd web && npm audit --package-lock-only --json 2>/dev/null); then
        say "The page's packages have no known vulnerabilities"
    elif grep '"auditReportVersion"' >/dev/null <<<"$report"; then
        (cd web && npm audit --package-lock-only)
    else
        unchecked "advisories of the page's packages; the registry does not tell them"
    fi
fi

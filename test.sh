#!/usr/bin/env bash
# Everything that has to hold, in one command. It installs what it needs below target/, stops at the first failure and says how
# long each step took.
#
#     ./test.sh           all of it
#     ./test.sh rust      the Rust part only: format, lints, docs, tests
#
# It needs cargo, Node.js 20 with npm, Python 3.11 with venv and a C compiler; on Debian .ci/run installs what is missing.
set -euo pipefail
cd "$(dirname "$0")"

target=${CARGO_TARGET_DIR:-target}
tools=$target/tools
# Warnings are errors in the documentation too.
export RUSTDOCFLAGS="-D warnings"
# A proxy is for the way out; everything under test is on this machine.
unset http_proxy https_proxy all_proxy HTTP_PROXY HTTPS_PROXY ALL_PROXY || true

step() {
    local title=$1 began=$SECONDS
    shift
    printf '\n== %s\n' "$title"
    "$@"
    printf '== %s: ok, %d s\n' "$title" $((SECONDS - began))
}

rust_tests() {
    if cargo nextest --version >/dev/null 2>&1; then
        cargo nextest run --workspace --show-progress none --status-level slow --final-status-level slow
        cargo test --workspace --doc --quiet
    else
        cargo test --workspace --quiet
    fi
}

# The proto's linter and a reader of YAML, from Python packages, so that nobody has to fetch a binary.
python_tools() {
    local stamp
    stamp=$(cksum <tools/requirements.txt)
    if [ "$(cat "$tools/stamp" 2>/dev/null)" != "$stamp" ]; then
        rm -rf "$tools/venv"
        python3 -m venv "$tools/venv"
        "$tools/venv/bin/pip" install --quiet --disable-pip-version-check -r tools/requirements.txt
        echo "$stamp" >"$tools/stamp"
    fi
}

proto_lint() {
    python_tools
    "$tools/venv/bin/buf" lint
    # Later changes must not break the clients that are out there.
    if git cat-file -e v0.1.0:proto/mcprelay/bridge/v1/bridge.proto 2>/dev/null; then
        "$tools/venv/bin/buf" breaking --against '.git#tag=v0.1.0'
    fi
}

# What macOS is built with, on this machine. Another level of debug information makes it a build beside the usual one, which
# shares all dependencies with it and stays as it is.
portable() {
    MCPRELAY_PORTABLE=1 cargo test --quiet --workspace --lib \
        --config 'profile.dev.package.mcprelay.debug="none"' platform::
}

# What came in from outside: licences, sources, versions. Its install takes some minutes, once.
supply_chain() {
    local version=0.20.2
    if [ "$("$tools/bin/cargo-deny" --version 2>/dev/null)" != "cargo-deny $version" ]; then
        CARGO_TARGET_DIR=$tools/build cargo install --quiet --locked --debug --root "$tools" "cargo-deny@$version"
        rm -rf "$tools/build"
    fi
    # It looks at the crates of every platform, of which a build has fetched only this one's.
    cargo fetch --quiet --locked
    # Warnings are exceptions and licences that nothing needs any more.
    "$tools/bin/cargo-deny" --workspace --offline check -D warnings bans licenses sources
}

# The fuzz targets' seeds, without libFuzzer: the targets follow what they test.
fuzz_seeds() {
    local said
    said=$(cargo run --quiet --manifest-path fuzz/Cargo.toml --target-dir "$target/fuzz" --example seeds 2>&1) || {
        echo "$said" >&2
        return 1
    }
    grep 'nothing found' <<<"$said"
}

packaging() {
    packaging/check.sh
    python_tools
    "$tools/venv/bin/python" packaging/check-files.py
    packaging/try-archive.sh
    if [ "$(id -u)" = 0 ]; then
        packaging/containers/try.sh
    else
        echo "not root: the images' root filesystems are not tried"
    fi
    if command -v dpkg-deb >/dev/null; then
        packaging/deb.sh --profile debug
    else
        echo "no dpkg-deb: the Debian package is not built"
    fi
}

mkdir -p "$tools"
step "format" cargo fmt --all --check
step "lints" cargo clippy --quiet --workspace --all-targets -- -D warnings
step "documentation" cargo doc --quiet --workspace --no-deps
step "build" cargo build --quiet --workspace
step "tests" rust_tests
step "portable ways" portable
if [ "${1:-all}" != rust ]; then
    step "proto" proto_lint
    step "supply chain" supply_chain
    step "commands of the docs" python3 tests/docs/run.py
    step "fuzz seeds" fuzz_seeds
    step "packaging" packaging
    step "npm packages of the programs" tests/node/programs.sh
    step "Node client" sh tests/node/run.sh
    step "real peers" sh tests/peers/run.sh
fi
printf '\nall ok, %d s\n' "$SECONDS"

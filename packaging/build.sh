#!/usr/bin/env bash
# Builds both programs for other machines, into target/dist/TARGET.
#
#     packaging/build.sh [TARGET]
#
# TARGET is a Rust target, by default this machine's. A Linux program needs glibc 2.17 (2014) and
# nothing else: it is linked by zig, which comes from PyPI into target/tools. A Mac's is built on a
# Mac. It takes some minutes.
set -euo pipefail
cd "$(dirname "$0")/.."

glibc=2.17

target=${1:-$(rustc -vV | sed -n 's/^host: //p')}
build=${CARGO_TARGET_DIR:-target}
tools=$build/tools/zig
dist=$build/dist/$target
programs=(mcprelay fake-mcpd)

fail() {
    echo "packaging/build.sh: $*" >&2
    exit 1
}

get_zig() {
    local wanted="cargo-zigbuild==0.24.1 ziglang==0.17.1"
    if [ "$(cat "$tools/stamp" 2>/dev/null)" != "$wanted" ]; then
        rm -rf "$tools"
        python3 -m venv "$tools"
        # shellcheck disable=SC2086 # two words
        "$tools/bin/pip" install --quiet --disable-pip-version-check $wanted
        echo "$wanted" >"$tools/stamp"
    fi
    PATH=$(realpath "$tools/bin"):$PATH
}

# What a program asks of the machine's C library.
check_glibc() {
    local newest
    newest=$(objdump -T "$1" | grep -oE 'GLIBC_[0-9.]+' | sort -uV | tail -1)
    [ -n "$newest" ] || fail "$1 names no version of glibc"
    [ "$(printf '%s\n' "GLIBC_$glibc" "$newest" | sort -V | tail -1)" = "GLIBC_$glibc" ] ||
        fail "$1 needs $newest, above GLIBC_$glibc"
    echo "$1: $(stat -c %s "$1") bytes, needs $newest"
}

options=(--release --locked --package mcprelay --bin mcprelay --package fake-mcpd --bin fake-mcpd)
case $target in
*-linux-gnu)
    get_zig
    cargo zigbuild "${options[@]}" --target "$target.$glibc"
    ;;
*-apple-darwin)
    cargo build "${options[@]}" --target "$target"
    ;;
*)
    fail "$target is not among the targets: *-linux-gnu and *-apple-darwin"
    ;;
esac
mkdir -p "$dist"
for program in "${programs[@]}"; do
    cp "$build/$target/release/$program" "$dist/"
    case $target in *-linux-gnu) check_glibc "$dist/$program" ;; esac
done

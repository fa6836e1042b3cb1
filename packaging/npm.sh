#!/usr/bin/env bash
# Packs @mcpctl/mcprelay and a package for each platform whose programs are there, for npm.
#
#     packaging/npm.sh [DIST]
#
# DIST holds a folder for each Rust target with both programs in it, as packaging/build.sh leaves
# them; by default target/dist. The packages are put into DIST/npm.
set -euo pipefail
cd "$(dirname "$0")/.."

dist=${1:-${CARGO_TARGET_DIR:-target}/dist}
out=$dist/npm
launchers=clients/mcprelay
licences=(LICENSE LICENSE-APACHE LICENSE-MIT)

fail() {
    echo "packaging/npm.sh: $*" >&2
    exit 1
}

version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
# A package of another version would run other programs than it says.
stated=$(grep -oE '"(version|@mcpctl/mcprelay-[a-z0-9-]+)": "[^"]*"' "$launchers/package.json" | sed 's/.*: "//; s/"$//' | sort -u)
[ "$stated" = "$version" ] || fail "$launchers/package.json and Cargo.toml are of different versions: $stated, $version"

rm -rf "$out"
mkdir -p "$out"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

pack() {
    cp "${licences[@]}" "$1/"
    npm pack --ignore-scripts --loglevel=error --pack-destination "$out" "$1" >/dev/null
}

# The package of one platform: NAME OS CPU TARGET.
platform() {
    local folder=$work/$1 libc=""
    [ "$2" = darwin ] || libc=$'\n  "libc": ["glibc"],'
    mkdir -p "$folder/bin"
    install -m 755 "$dist/$4/mcprelay" "$dist/$4/fake-mcpd" "$folder/bin/"
    cat >"$folder/package.json" <<JSON
{
  "name": "@mcpctl/mcprelay-$1",
  "version": "$version",
  "description": "mcprelay and fake-mcpd for $1; install @mcpctl/mcprelay",
  "license": "MIT OR Apache-2.0",
  "repository": { "type": "git", "url": "git+https://github.com/mcpctl/mcprelay.git" },
  "os": ["$2"],
  "cpu": ["$3"],$libc
  "preferUnplugged": true,
  "files": ["bin", "LICENSE", "LICENSE-APACHE", "LICENSE-MIT"],
  "publishConfig": { "access": "public", "provenance": true }
}
JSON
    pack "$folder"
}

[ ! -d "$dist/x86_64-unknown-linux-gnu" ] || platform linux-x64 linux x64 x86_64-unknown-linux-gnu
[ ! -d "$dist/aarch64-unknown-linux-gnu" ] || platform linux-arm64 linux arm64 aarch64-unknown-linux-gnu
[ ! -d "$dist/aarch64-apple-darwin" ] || platform darwin-arm64 darwin arm64 aarch64-apple-darwin
[ ! -d "$dist/x86_64-apple-darwin" ] || platform darwin-x64 darwin x64 x86_64-apple-darwin
cp -r "$launchers" "$work/mcprelay"
pack "$work/mcprelay"

for package in "$out"/*.tgz; do
    echo "$package: $(wc -c <"$package") bytes"
done

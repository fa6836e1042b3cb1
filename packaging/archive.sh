#!/usr/bin/env bash
# Packs what packaging/build.sh left into mcprelay-VERSION-TARGET.tar.gz, with a checksum beside it.
#
#     packaging/archive.sh [TARGET]
#
# It runs the program for its manual pages and completions, so TARGET is one that runs here; by
# default it is this machine's.
set -euo pipefail
cd "$(dirname "$0")/.."

target=${1:-$(rustc -vV | sed -n 's/^host: //p')}
dist=${CARGO_TARGET_DIR:-target}/dist
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
name=mcprelay-$version-$target

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
top=$work/$name
mkdir -p "$top/bin" "$top/man/man1" "$top/completions" "$top/service"
install -m 755 "$dist/$target/mcprelay" "$dist/$target/fake-mcpd" "$top/bin/"
"$top/bin/mcprelay" man --dir "$top/man/man1" >/dev/null
for shell in bash zsh fish; do
    "$top/bin/mcprelay" completions "$shell" >"$top/completions/mcprelay.$shell"
done
cp -r packaging/systemd "$top/service/systemd"
# For reading: `mcprelay service install` writes one with the reader's own paths.
"$top/bin/mcprelay" service print --for launchd --home /Users/you/.mcpctl >"$top/service/com.mcpctl.mcprelay.plist"
cp LICENSE LICENSE-APACHE LICENSE-MIT CHANGELOG.md "$top/"
cp proto/mcprelay/bridge/v1/bridge.proto "$top/"

# The same files give the same archive, whoever packs them; a Mac's tar has no such options.
options=()
! tar --version | grep -q GNU || options=(--sort=name --owner=0 --group=0 --numeric-owner --mtime=@0)
tar -cf - ${options[@]+"${options[@]}"} -C "$work" "$name" | gzip -9n >"$dist/$name.tar.gz"
cd "$dist"
if command -v sha256sum >/dev/null; then
    sha256sum "$name.tar.gz" >"$name.tar.gz.sha256"
else
    shasum -a 256 "$name.tar.gz" >"$name.tar.gz.sha256"
fi
echo "$dist/$name.tar.gz: $(wc -c <"$name.tar.gz") bytes"

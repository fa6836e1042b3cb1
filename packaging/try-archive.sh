#!/usr/bin/env bash
# Packs an archive of the programs of `cargo build --workspace`, unpacks it, and looks whether it is
# complete: its checksum, a manual page for every command, both programs, the property list.
#
#     packaging/try-archive.sh
set -euo pipefail
cd "$(dirname "$0")/.."

built=$(realpath -m "${CARGO_TARGET_DIR:-target}")/debug
host=$(rustc -vV | sed -n 's/^host: //p')
CARGO_TARGET_DIR=$(mktemp -d)
export CARGO_TARGET_DIR
trap 'rm -rf "$CARGO_TARGET_DIR"' EXIT

dist=$CARGO_TARGET_DIR/dist
mkdir -p "$dist/$host"
for program in mcprelay fake-mcpd; do
    strip -o "$dist/$host/$program" "$built/$program"
done
packaging/archive.sh "$host" >/dev/null
cd "$dist"
sha256sum --quiet --check ./*.sha256
first=$(sha256sum ./*.tar.gz)
(cd "$OLDPWD" && packaging/archive.sh "$host" >/dev/null)
[ "$first" = "$(sha256sum ./*.tar.gz)" ] || { echo "packed twice, the archive differs" >&2; exit 1; }
tar -xzf ./*.tar.gz
cd mcprelay-*-"$host"
bin/fake-mcpd --version
bin/mcprelay demo >/dev/null
python3 -c 'import plistlib; plistlib.load(open("service/com.mcpctl.mcprelay.plist", "rb"))'
for file in man/man1/mcprelay-run.1 completions/mcprelay.{bash,zsh,fish} LICENSE-MIT LICENSE-APACHE bridge.proto \
    service/systemd/{user,system}/mcprelay.{service,socket}; do
    [ -s "$file" ] || { echo "the archive lacks $file" >&2; exit 1; }
done
echo "the archive is complete, and the same if packed again"

#!/usr/bin/env bash
# Unpacks the archive of packaging/archive.sh into the root filesystem of the oldest Debian that its
# mirror has, which debootstrap lays out, and runs it there. It needs root, and some minutes.
#
#     packaging/old-root.sh
set -euo pipefail
cd "$(dirname "$0")/.."

# glibc 2.31. Older ones are gone from the mirror.
release=bullseye
mirror=http://deb.debian.org/debian

dist=${CARGO_TARGET_DIR:-target}/dist
root=$(realpath -m "${CARGO_TARGET_DIR:-target}/old-root")
host=$(rustc -vV | sed -n 's/^host: //p')
archives=("$dist"/mcprelay-*-"$host".tar.gz)
archive=${archives[0]}
[ -f "$archive" ] || { echo "there is no $archive: run packaging/build.sh and packaging/archive.sh" >&2; exit 1; }

if [ ! -f "$root/laid-out" ]; then
    command -v debootstrap >/dev/null || apt-get install -y -qq debootstrap >/dev/null
    rm -rf "$root"
    debootstrap --variant=minbase "$release" "$root" "$mirror" >"$root.log" || { tail "$root.log" >&2; exit 1; }
    touch "$root/laid-out"
fi
rm -rf "$root/opt/mcprelay"
mkdir -p "$root/opt/mcprelay"
tar -xzf "$archive" -C "$root/opt/mcprelay" --strip-components=1
chroot "$root" ldd --version | head -1
chroot "$root" /opt/mcprelay/bin/mcprelay --version
chroot "$root" env HOME=/root /opt/mcprelay/bin/mcprelay demo

#!/usr/bin/env bash
# Lays out the root filesystem of a container image that has one program in it and what that needs:
# the C library, the certificate authorities, one user, a folder for its files, and /tmp.
#
#     packaging/containers/rootfs.sh PROGRAM ROOT
#
# PROGRAM is the file of mcprelay or fake-mcpd. It runs as root on a Debian with ca-certificates;
# the Dockerfile runs it for each image.
set -euo pipefail

program=${1:?the file of a program}
root=${2:?the folder to lay out}
# The user that distroless images have, too: nobody's number on a usual machine.
id=65532
authorities=/etc/ssl/certs/ca-certificates.crt

[ -s "$authorities" ] || { echo "there is no $authorities: install ca-certificates" >&2; exit 1; }

mkdir -p "$root/usr/bin" "$root/etc/ssl/certs"
install -m 755 "$program" "$root/usr/bin/"
installed=$root/usr/bin/$(basename "$program")
# The libraries that it is linked with, under the names it is linked with.
ldd "$installed" | grep -oE '/[^ ]+' | while read -r library; do
    install -D "$library" "$root$library"
done
# Host names are looked up as on any Linux.
printf 'hosts: files dns\n' >"$root/etc/nsswitch.conf"
printf 'root:x:0:0::/:/sbin/nologin\nmcprelay:x:%s:%s::/var/lib/mcprelay:/sbin/nologin\n' $id $id >"$root/etc/passwd"
printf 'root:x:0:\nmcprelay:x:%s:\n' $id >"$root/etc/group"
cp "$authorities" "$root$authorities"
install -d -m 1777 "$root/tmp"
install -d -m 700 -o $id -g $id "$root/var/lib/mcprelay"

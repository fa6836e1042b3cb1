#!/usr/bin/env bash
# Lays out the images' root filesystems and runs the programs in them as the images' user, without a
# container engine: `mcprelay demo`, and `fake-mcpd` with its health check. It needs root.
#
#     packaging/containers/try.sh [FOLDER]
#
# FOLDER has the programs; by default it is target/debug, as `cargo build --workspace` leaves them.
set -euo pipefail
cd "$(dirname "$0")/../.."

programs=${1:-${CARGO_TARGET_DIR:-target}/debug}
dockerfile=packaging/containers/Dockerfile

work=$(mktemp -d)
mcpd=
trap '[ -z "$mcpd" ] || kill "$mcpd" 2>/dev/null || true; rm -rf "$work"' EXIT

fail() {
    echo "packaging/containers/try.sh: $*" >&2
    exit 1
}

# Becomes a program in an image, with what its ENV says but for the port, which is a free one here.
inside() {
    local root=$1
    shift
    exec env -i "$(sed -n 's/^ENV \(MCPRELAY_HOME=.*\)/\1/p' $dockerfile)" FAKE_MCPD_LISTEN="$listen" \
        "$(command -v chroot)" --userspec=65532:65532 "$root" "$@"
}

listen=0.0.0.0:0
for program in mcprelay fake-mcpd; do
    strip -o "$work/$program" "$programs/$program"
    packaging/containers/rootfs.sh "$work/$program" "$work/root-$program"
    echo "the image of $program: $(du -sb "$work/root-$program" | cut -f1) bytes in $(find "$work/root-$program" -type f | wc -l) files"
done
(inside "$work/root-mcprelay" /usr/bin/mcprelay demo) >"$work/said" || fail "the demo failed: $(cat "$work/said")"
tail -1 "$work/said"
(inside "$work/root-mcprelay" /usr/bin/mcprelay doctor -o json) >"$work/said" || true
grep -q '/var/lib/mcprelay' "$work/said" || fail "the home is not /var/lib/mcprelay: $(cat "$work/said")"

mkfifo "$work/ready"
inside "$work/root-fake-mcpd" /usr/bin/fake-mcpd >"$work/ready" &
mcpd=$!
read -r line <"$work/ready"
listen=0.0.0.0:${line##*:}
(inside "$work/root-fake-mcpd" /usr/bin/fake-mcpd healthcheck) || fail "it is not healthy"
kill "$mcpd"
wait "$mcpd" || fail "it does not end with 0 at a SIGTERM"
mcpd=
! (inside "$work/root-fake-mcpd" /usr/bin/fake-mcpd healthcheck) 2>/dev/null || fail "it is healthy where none runs"
echo "demo and health check pass in the images' root filesystems"

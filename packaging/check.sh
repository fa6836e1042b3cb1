#!/usr/bin/env bash
# Checks the systemd units: no warning from the verifier, and the system unit's exposure at most the limit below.
#
#     packaging/check.sh
set -euo pipefail
cd "$(dirname "$0")/systemd"

# Of 10, where 10 is no protection at all. What is left above 0 is mostly the network, which the agent lives by.
limit=2.0

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

for scope in system user; do
    mkdir "$work/$scope"
    # The verifier looks for the program, which need not be installed here.
    for unit in mcprelay.service mcprelay.socket; do
        sed 's|^ExecStart=/usr/bin/mcprelay |ExecStart=/bin/true |' "$scope/$unit" >"$work/$scope/$unit"
    done
    # An unknown key is a warning with exit status 0: whatever is said is a failure.
    XDG_RUNTIME_DIR=$work systemd-analyze "--$scope" verify --man=no --recursive-errors=no "$work/$scope/"mcprelay.* \
        >"$work/said" 2>&1 || echo "systemd-analyze verify failed" >>"$work/said"
    if [ -s "$work/said" ]; then
        echo "packaging/systemd/$scope: the units are not clean:" >&2
        cat "$work/said" >&2
        exit 1
    fi
done

verdict=$(systemd-analyze security --offline=true "$work/system/mcprelay.service" 2>&1 | grep 'Overall exposure level') || {
    echo "systemd-analyze security says nothing about the system unit" >&2
    exit 1
}
score=$(grep -oE '[0-9]+\.[0-9]+' <<<"$verdict" | head -1)
if ! awk -v score="$score" -v limit="$limit" 'BEGIN { exit !(score != "" && score + 0 <= limit + 0) }'; then
    echo "the system unit's exposure is ${score:-unknown}, above $limit: see systemd-analyze security --offline=true" >&2
    exit 1
fi
echo "units clean, exposure of the system unit $score (at most $limit)"

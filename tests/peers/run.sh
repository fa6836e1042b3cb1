#!/bin/sh
# Runs the agent against real programs: llama.cpp with a small model, the OpenAI SDK, curl, grpcurl, Python's grpcio, two
# OpenTelemetry collectors and Prometheus, and nginx, HAProxy and Caddy where they are installed (what is left out is said). Everything is installed under target/peers; the first run takes a minute longer.
#
#     tests/peers/run.sh [pytest arguments]
#
# MCPRELAY_BIN names a folder with built mcprelay and fake-mcpd; without it the workspace is built.
set -eu
cd "$(dirname "$0")/../.."
here=tests/peers
cache=${CARGO_TARGET_DIR:-target}/peers
mkdir -p "$cache"
cache=$(cd "$cache" && pwd)

# With the place, because a virtual environment that was copied elsewhere still leads to where it was.
stamp="$(cat "$here/requirements.txt" "$here/requirements-nodeps.txt" | cksum) $cache"
if [ "$(cat "$cache/stamp" 2>/dev/null)" != "$stamp" ]; then
    rm -rf "$cache/venv"
    "${PYTHON:-python3}" -m venv "$cache/venv"
    "$cache/venv/bin/pip" install --quiet --disable-pip-version-check -r "$here/requirements.txt"
    "$cache/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps -r "$here/requirements-nodeps.txt"
    echo "$stamp" >"$cache/stamp"
fi

# Debian's package of Prometheus and its promtool is unpacked and not installed.
if [ ! -x "$cache/promtool" ] || [ ! -x "$cache/prometheus" ]; then
    (
        rm -rf "$cache/deb"
        mkdir "$cache/deb"
        cd "$cache/deb"
        apt-get download prometheus
        dpkg -x prometheus_*.deb .
        mv usr/bin/promtool usr/bin/prometheus "$cache/"
    )
    rm -rf "$cache/deb"
fi

if [ -z "${MCPRELAY_BIN:-}" ]; then
    cargo build --quiet --workspace
    MCPRELAY_BIN=${CARGO_TARGET_DIR:-target}/debug
fi
MCPRELAY_BIN=$(cd "$MCPRELAY_BIN" && pwd)
PEERS_BIN=$cache
export MCPRELAY_BIN PEERS_BIN
# A proxy is for the way out; everything here is on this machine.
unset http_proxy https_proxy all_proxy HTTP_PROXY HTTPS_PROXY ALL_PROXY || true
cd "$here"
PYTHONDONTWRITEBYTECODE=1 exec "$cache/venv/bin/python" -m pytest -p no:cacheprovider -q -rs "$@"

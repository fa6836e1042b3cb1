#!/bin/sh
# Runs the Node client's own tests, then packs and installs it as a user would and runs it, a plain grpc-js client and the
# guide's examples against the real programs.
#
# MCPRELAY_BIN and FAKE_MCPD_BIN name them; by default they are those of `cargo build --workspace`.
set -eu

repo=$(cd "$(dirname "$0")/../.." && pwd)
target=${CARGO_TARGET_DIR:-$repo/target}
MCPRELAY_BIN=${MCPRELAY_BIN:-$target/debug/mcprelay}
FAKE_MCPD_BIN=${FAKE_MCPD_BIN:-$target/debug/fake-mcpd}
MCPRELAY_REPO=$repo
export MCPRELAY_BIN FAKE_MCPD_BIN MCPRELAY_REPO

for program in "$MCPRELAY_BIN" "$FAKE_MCPD_BIN"; do
    if [ ! -x "$program" ]; then
        echo "There is no program $program: run 'cargo build --workspace', or set MCPRELAY_BIN and FAKE_MCPD_BIN." >&2
        exit 1
    fi
done

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cd "$repo/clients/node"
npm ci --ignore-scripts --no-audit --no-fund --loglevel=error
npm test --loglevel=error
npm pack --ignore-scripts --loglevel=error --pack-destination "$work" >/dev/null

cd "$work"
echo '{ "private": true, "type": "module" }' >package.json
# OpenTelemetry is for the tests of traces; the client itself does not need it.
npm install --ignore-scripts --no-audit --no-fund --loglevel=error ./*.tgz \
    @opentelemetry/api@1.9.0 @opentelemetry/sdk-trace-base@2.12.0 @opentelemetry/sdk-trace-node@2.12.0
cp "$repo"/tests/node/*.mjs "$repo"/tests/node/consumer.* .
"$repo/clients/node/node_modules/.bin/tsc" --noEmit --strict --module node16 --target es2022 \
    --typeRoots "$repo/clients/node/node_modules/@types" --types node consumer.mts consumer.cts
# A bound far above what the slowest test takes, so that a hang is a failure.
node --test --test-timeout=120000

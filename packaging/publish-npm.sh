#!/usr/bin/env bash
# Publishes the npm packages: those of packaging/npm.sh, the platforms' before the one that names
# them, and the client.
#
#     packaging/publish-npm.sh [--dry-run]
#
# In CI, npm vouches for where they were built (provenance).
set -euo pipefail
cd "$(dirname "$0")/.."

packages=("${CARGO_TARGET_DIR:-target}"/dist/npm/mcpctl-mcprelay-[a-z]*.tgz
    "${CARGO_TARGET_DIR:-target}"/dist/npm/mcpctl-mcprelay-[0-9]*.tgz)
for package in "${packages[@]}"; do
    npm publish "$@" "./$package"
done
cd clients/node
npm ci
npm publish "$@"

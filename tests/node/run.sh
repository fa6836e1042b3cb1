#!/bin/sh
# Runs the Node client's own tests, then packs and installs it as a user would and runs it, a plain grpc-js client and the
# guide's examples against the real programs; compiles programs that use it; and tests it under other versions of Node.
#
# MCPRELAY_BIN and FAKE_MCPD_BIN name the programs; by default they are those of `cargo build --workspace`. What the tests
# need besides the client is kept below the target folder.
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

client=$repo/clients/node
programs=$target/npm-programs/dist/npm
platform=$(node -p 'process.platform + "-" + process.arch')
quiet="--ignore-scripts --no-audit --no-fund --loglevel=error"

# A consumer of the package, with its tools; installed once for each lock file.
work=$target/node-consumer
stamp=$(cat "$repo/tests/node/consumer/package-lock.json" "$client/package-lock.json" | cksum)
if [ "$(cat "$work/stamp" 2>/dev/null)" != "$stamp" ]; then
    rm -rf "$work"
    mkdir -p "$work"
    (cd "$client" && npm ci $quiet)
    cp "$repo/tests/node/consumer/package.json" "$repo/tests/node/consumer/package-lock.json" "$repo/tests/node/consumer/.npmrc" "$work"
    (cd "$work" && npm ci $quiet)
    echo "$stamp" >"$work/stamp"
fi
[ -d "$client/node_modules" ] || (cd "$client" && npm ci $quiet)

cd "$client"
npm run build --loglevel=error
node --test test/
rm -f "$work"/*.tgz
npm pack --ignore-scripts --loglevel=error --pack-destination "$work" >/dev/null

cd "$work"
rm -f ./*.mjs ./*.ts ./*.mts ./*.cts
# The packages with the programs, as tests/node/programs.sh packed them.
[ -d "$programs" ] || "$repo/tests/node/programs.sh"
npm install $quiet --no-save --prefer-offline ./*.tgz "$programs"/mcpctl-mcprelay-[0-9]*.tgz "$programs/mcpctl-mcprelay-$platform"-*.tgz
cp "$repo"/tests/node/*.mjs "$repo"/tests/node/consumer/*.*ts "$repo/tests/node/consumer/tsconfig.json" .

# The package as its users' tools see it: its metadata, its types, its two forms.
npx publint --strict ./*.tgz
npx publint --strict "$programs"/mcpctl-mcprelay-[0-9]*.tgz
npx attw --no-color --no-emoji --format ascii --profile node16 ./*.tgz --exclude-entrypoints ./bridge.proto
npx attw --no-color --no-emoji --format ascii --profile node16 "$programs"/mcpctl-mcprelay-[0-9]*.tgz
node node_modules/typescript/bin/tsc -p .
node node_modules/typescript-7/bin/tsc -p .
npx vitest run --reporter=dot registry.test.ts programs.test.ts

# A bound far above what the slowest test takes, so that a hang is a failure.
node --test --test-timeout=120000 ./*.test.mjs
for other in node_modules/node-*/bin/node; do
    [ -x "$other" ] || continue
    "$other" --version
    "$other" --test "$client"/test/*.test.mjs >own.log || { cat own.log; exit 1; }
    "$other" --test --test-timeout=120000 package.test.mjs >package.log || { cat package.log; exit 1; }
done

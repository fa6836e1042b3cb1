#!/usr/bin/env bash
# Packs the npm packages that carry the programs, installs them without network into an empty
# project, and tests what stands there: launchers, what is said where a program is missing, and the
# functions that start the programs.
#
# The programs are those of `cargo build --workspace`; DIST may name a folder as packaging/build.sh
# leaves it, with those of a release.
set -euo pipefail

repo=$(cd "$(dirname "$0")/../.." && pwd)
target=$(realpath -m "${CARGO_TARGET_DIR:-$repo/target}")
work=$target/npm-programs
host=$(rustc -vV | sed -n 's/^host: //p')

rm -rf "$work"
mkdir -p "$work/dist/$host" "$work/cache"
for program in mcprelay fake-mcpd; do
    if [ -n "${DIST:-}" ]; then
        cp "$DIST/$host/$program" "$work/dist/$host/"
    else
        [ -x "$target/debug/$program" ] || { echo "there is no $target/debug/$program: run cargo build --workspace" >&2; exit 1; }
        strip -o "$work/dist/$host/$program" "$target/debug/$program"
    fi
done
# Other platforms' packages are looked at, never run.
for other in x86_64-unknown-linux-gnu aarch64-unknown-linux-gnu aarch64-apple-darwin x86_64-apple-darwin; do
    [ "$other" = "$host" ] && continue
    mkdir "$work/dist/$other"
    echo "for $other" | tee "$work/dist/$other/mcprelay" >"$work/dist/$other/fake-mcpd"
done
"$repo/packaging/npm.sh" "$work/dist"

# A cache of its own, which is empty; each call of npm is offline, or has the registry that its test serves.
export npm_config_cache=$work/cache npm_config_audit=false npm_config_fund=false
export npm_config_update_notifier=false npm_config_fetch_retries=0 npm_config_loglevel=error
export MCPRELAY_PACKAGES=$work/dist/npm
cd "$repo/tests/node/programs"
node --test --test-timeout=600000 ./*.test.mjs

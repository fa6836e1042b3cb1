#!/bin/sh
# Builds every fuzz target and runs each for a few seconds (10, or the first argument) from its seeds.
set -eu

seconds=${1:-10}
cd "$(dirname "$0")"

if ! cargo fuzz --version >/dev/null 2>&1; then
    echo "cargo-fuzz is not there: run 'cargo install cargo-fuzz'" >&2
    exit 1
fi

cargo fuzz build -s none
host=$(rustc -vV | sed -n 's/^host: //p')
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

for target in sse task merge sessions; do
    mkdir -p "$work/$target" "artifacts/$target"
    set -- "$work/$target" "seeds/$target" "-max_total_time=$seconds" -print_final_stats=1 "-artifact_prefix=artifacts/$target/"
    if [ -f "$target.dict" ]; then set -- "$@" "-dict=$target.dict"; fi
    if ! "target/$host/release/$target" "$@" >"$work/log" 2>&1; then
        tail -40 "$work/log" >&2
        echo "$target failed; its input is in fuzz/artifacts/$target" >&2
        exit 1
    fi
    echo "$target: $(sed -n 's/^stat::number_of_executed_units: *//p' "$work/log") inputs in $seconds s, nothing found"
done

#!/bin/sh
# What telemetry costs a plain task, in instructions under callgrind: the calls of an agent without telemetry, which have a goal and fail
# the script if they miss it, and an agent that exports everything over HTTP or gRPC.
# usage: benches/telemetry.sh
# The kernel's work, a third of a task, is not counted. The goal of what is exported is in CPU time, which
# `mcprelay-bench run --cells plain,burst --systems agent,agent-otlp-http,agent-otlp-grpc` measures and judges.
set -eu
cd "$(dirname "$0")/.."

# The most that telemetry may cost where it is off, in percent of a task.
MOST_OFF=1
# The difference between two numbers of requests leaves out the start and the end.
FEW=400
MANY=1200
CALLERS=8

cargo build --release --quiet --bins -p mcprelay-bench -p mcprelay
bin=$(cd "${CARGO_TARGET_DIR:-target}/release" && pwd)
work=$(mktemp -d)
children=
trap 'kill $children 2>/dev/null || true; rm -rf "$work"' EXIT

# Starts one of the bench's servers and leaves its address in a file.
serve() {
    : >"$work/$1"
    "$bin/mcprelay-bench" "$1" >"$work/$1" &
    children="$children $!"
    until grep -q listening "$work/$1"; do sleep 0.1; done
    sed -i 's|.*//||' "$work/$1"
}

ask() {
    "$bin/mcprelay-bench" load --address "$mcpd" --path /api/v1/llms/bench/infer --callers "$1" --each "$2" --tokens 16
}

# The instructions of an agent from its start to its end after so many requests; $1 is off, http/protobuf or grpc.
count() {
    serve mock
    serve mcpd
    serve sink
    mcpd=$(cat "$work/mcpd")
    home=$work/home-$2-$(basename "$1")
    mkdir -m 700 "$home"
    printf '{"mcpdUrl":"http://%s","token":"bench"}' "$mcpd" >"$home/credentials"
    chmod 600 "$home/credentials"
    printf '{"llm":{"providers":[{"name":"bench","type":"openai","model":"m","url":"http://%s","publish":true,"maxInFlight":1000}]}}' \
        "$(cat "$work/mock")" >"$home/config.json"
    export OTEL_EXPORTER_OTLP_ENDPOINT="http://$(cat "$work/sink")" OTEL_EXPORTER_OTLP_PROTOCOL="$1"
    [ "$1" != off ] || unset OTEL_EXPORTER_OTLP_ENDPOINT OTEL_EXPORTER_OTLP_PROTOCOL
    valgrind --tool=callgrind --callgrind-out-file=/dev/null \
        "$bin/mcprelay" run --provide --home "$home" >/dev/null 2>"$work/log" &
    agent=$!
    children="$children $agent"
    tries=0
    until ask 1 1 | grep -q '"requests":1,"errors":0'; do
        tries=$((tries + 1))
        [ $tries -lt 100 ] || { echo "the agent is not online: $(tail -3 "$work/log")" >&2; exit 1; }
        sleep 0.2
    done
    ask "$CALLERS" $(($2 / CALLERS)) | grep -q '"errors":0'
    kill "$agent"
    wait "$agent" || true
    kill $children 2>/dev/null || true
    children=
    awk '/Collected/ { print $4 }' "$work/log"
}

per_task() {
    few=$(count "$1" "$FEW")
    many=$(count "$1" "$MANY")
    echo $(((many - few) / (MANY - FEW)))
}

calls() {
    valgrind --tool=callgrind --callgrind-out-file=/dev/null "$bin/mcprelay-bench" hot untraced "$1" 2>&1 |
        awk '/Collected/ { print $4 }'
}

off=$(per_task off)
http=$(per_task http/protobuf)
grpc=$(per_task grpc)
untraced=$((($(calls 3000) - $(calls 1000)) / 2000))
awk -v off="$off" -v http="$http" -v grpc="$grpc" -v untraced="$untraced" -v most="$MOST_OFF" '
    function line(what, extra) {
        printf "%-34s %7d instructions, %5.2f %% of a task\n", what, extra, 100 * extra / off
    }
    BEGIN {
        printf "%-34s %7d instructions\n", "a plain task without telemetry", off
        line("telemetry'\''s calls where it is off", untraced)
        line("everything exported over HTTP", http - off)
        line("everything exported over gRPC", grpc - off)
        missed = 100 * untraced / off > most
        printf "off: at most %d %%: %s\n", most, missed ? "MISSED" : "met"
        exit missed
    }'

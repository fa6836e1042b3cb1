#!/bin/sh
# What telemetry costs, in instructions under callgrind: the calls of an agent without telemetry, and an agent that traces
# every task and exports everything over HTTP or gRPC, for a plain task and for a paced stream of 128 tokens. What has a
# goal fails the script if it misses it.
# usage: benches/telemetry.sh
# The kernel's work, a third of a task, is not counted. What a plain task may cost more is a goal in CPU time, which
# `mcprelay-bench run --cells plain,burst,paced64 --systems agent,agent-otlp-http,agent-otlp-grpc` measures and judges.
set -eu
cd "$(dirname "$0")/.."

# The most that telemetry may cost where it is off, in percent of a plain task.
MOST_OFF=1
# The most that it may cost where everything is exported, in percent of a paced stream.
MOST_STREAM=3
# Two numbers of requests, whose difference leaves out the start and the end; the callers; what each asks for. Tokens come
# so far apart that every one leaves in a POST of its own, under callgrind too.
PLAIN="400 1200 8 --tokens 16"
STREAM="4 12 2 --stream --tokens 128 --delay-us 20000"

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

# ask CALLERS EACH LOAD...
ask() {
    callers=$1 each=$2
    shift 2
    "$bin/mcprelay-bench" load --address "$mcpd" --path /api/v1/llms/bench/infer --callers "$callers" --each "$each" "$@"
}

# The instructions of an agent from its start to its end: count off|http/protobuf|grpc REQUESTS CALLERS LOAD...
count() {
    protocol=$1 requests=$2 callers=$3
    shift 3
    serve mock
    serve mcpd
    serve sink
    mcpd=$(cat "$work/mcpd")
    home=$(mktemp -d "$work/home-XXXXXX")
    printf '{"mcpdUrl":"http://%s","token":"bench"}' "$mcpd" >"$home/credentials"
    chmod 600 "$home/credentials"
    printf '{"llm":{"providers":[{"name":"bench","type":"openai","model":"m","url":"http://%s","publish":true,"maxInFlight":1000}]}}' \
        "$(cat "$work/mock")" >"$home/config.json"
    unset OTEL_EXPORTER_OTLP_ENDPOINT OTEL_EXPORTER_OTLP_PROTOCOL
    [ "$protocol" = off ] ||
        export OTEL_EXPORTER_OTLP_ENDPOINT="http://$(cat "$work/sink")" OTEL_EXPORTER_OTLP_PROTOCOL="$protocol"
    valgrind --tool=callgrind --callgrind-out-file=/dev/null \
        "$bin/mcprelay" run --provide --home "$home" >/dev/null 2>"$work/log" &
    agent=$!
    children="$children $agent"
    tries=0
    until ask 1 1 --tokens 16 | grep -q '"requests":1,"errors":0'; do
        tries=$((tries + 1))
        [ $tries -lt 100 ] || { echo "the agent is not online: $(tail -3 "$work/log")" >&2; exit 1; }
        sleep 0.2
    done
    ask "$callers" $((requests / callers)) "$@" | grep -q '"errors":0'
    kill "$agent"
    wait "$agent" || true
    kill $children 2>/dev/null || true
    children=
    awk '/Collected/ { print $4 }' "$work/log"
}

# The instructions of one answer: per_answer off|http/protobuf|grpc FEW MANY CALLERS LOAD...
per_answer() {
    of=$1 few=$2 many=$3
    shift 3
    less=$(count "$of" "$few" "$@")
    more=$(count "$of" "$many" "$@")
    echo $(((more - less) / (many - few)))
}

calls() {
    valgrind --tool=callgrind --callgrind-out-file=/dev/null "$bin/mcprelay-bench" hot untraced "$1" 2>&1 |
        awk '/Collected/ { print $4 }'
}

untraced=$((($(calls 3000) - $(calls 1000)) / 2000))
# The words of each load are its arguments.
# shellcheck disable=SC2086
for load in "$PLAIN" "$STREAM"; do
    for protocol in off http/protobuf grpc; do
        per_answer "$protocol" $load
    done
done | xargs | awk -v untraced="$untraced" -v most_off="$MOST_OFF" -v most_stream="$MOST_STREAM" '
    function line(what, extra, of) {
        printf "%-34s %9d instructions, %5.2f %%\n", what, extra, 100 * extra / of
        return 100 * extra / of
    }
    function judge(what, percent, most) {
        printf "%s: at most %d %%: %s\n", what, most, percent > most ? "MISSED" : "met"
        missed = missed || percent > most
    }
    {
        printf "%-34s %9d instructions\n", "a plain task without telemetry", $1
        off = line("telemetry'\''s calls where it is off", untraced, $1)
        line("everything exported over HTTP", $2 - $1, $1)
        line("everything exported over gRPC", $3 - $1, $1)
        printf "%-34s %9d instructions\n", "a paced stream without telemetry", $4
        http = line("everything exported over HTTP", $5 - $4, $4)
        grpc = line("everything exported over gRPC", $6 - $4, $4)
        judge("off, of a plain task", off, most_off)
        judge("exported over HTTP, of a stream", http, most_stream)
        judge("exported over gRPC, of a stream", grpc, most_stream)
    }
    END { exit missed }'

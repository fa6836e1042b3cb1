"""Asserts what two collectors that are not ours get of one made-up task.

    pip install oteltap rotel
    cargo build --example one_task
    python3 tests/telemetry/collectors.py target/debug/examples/one_task

oteltap takes OTLP over HTTP, rotel over gRPC. Exits 1 with a sentence on the first thing that is wrong.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time

CALLER_TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER_SPAN = "00f067aa0ba902b7"
CONTENT = "MARKER"
PATIENCE = 20.0
INTERNAL, CLIENT, CONSUMER = 1, 3, 5


def fail(what):
    sys.exit(f"collectors.py: {what}")


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_for(what, check):
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        found = check()
        if found:
            return found
        time.sleep(0.05)
    fail(f"{what} did not happen within {PATIENCE:.0f} s")


def listening(port):
    with socket.socket() as s:
        return s.connect_ex(("127.0.0.1", port)) == 0


def run_task(program, **variables):
    clean = {k: v for k, v in os.environ.items() if not k.startswith("OTEL_")}
    result = subprocess.run([program], env=clean | variables, timeout=PATIENCE, capture_output=True, text=True)
    if result.returncode or "loss" in result.stderr:
        fail(f"the task went wrong: {result.stderr}")


def attributes(span):
    return {a["key"]: next(iter(a["value"].values())) for a in span["attributes"]}


def check_tree(spans):
    by_name = {s["name"]: s for s in spans}
    root, chat = by_name["process task"], by_name["chat parrot"]
    channel = by_name["open control channel"]
    want = {
        "process task": (CONSUMER, CALLER_SPAN),
        "queue": (INTERNAL, root["spanId"]),
        "chat parrot": (CLIENT, root["spanId"]),
        "mcprelay.bridge.v1.BridgeService/Session": (CLIENT, chat["spanId"]),
        "POST": (CLIENT, root["spanId"]),
        "open control channel": (CLIENT, ""),
    }
    got = {s["name"]: (s["kind"], s["parentSpanId"]) for s in spans}
    if got != want:
        fail(f"the tree is {got}, not {want}")
    traces = {s["traceId"] for s in spans if s is not channel}
    if traces != {CALLER_TRACE}:
        fail(f"the task's trace is {traces}, not the caller's")
    if [link["spanId"] for link in root["links"]] != [channel["spanId"]]:
        fail("the task is not linked to its channel")
    usage = [s["name"] for s in spans if "gen_ai.usage.output_tokens" in attributes(s)]
    if usage != ["chat parrot"] or attributes(chat)["gen_ai.usage.output_tokens"] != "2":
        fail(f"usage is on {usage}")
    if any(s["status"]["code"] for s in spans):
        fail("a span has a status, though nothing failed")


def over_http(program):
    port = free_port()
    command = [sys.executable, "-m", "oteltap", "--port", str(port)]
    with tempfile.TemporaryFile("w+") as out:
        tap = subprocess.Popen(command, stdout=out, env=os.environ | {"PYTHONUNBUFFERED": "1"})
        try:
            wait_for("oteltap's start", lambda: listening(port))
            run_task(program, OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{port}")
            text = wait_for("the root span's arrival", lambda: with_root(out))
        finally:
            tap.terminate()
            tap.wait()
    if CONTENT in text:
        fail("content was exported without being asked for")
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    check_tree([line for line in lines if "spanId" in line])
    if not any(line.get("name") == "gen_ai.client.operation.duration" for line in lines):
        fail("the metrics did not arrive")


def with_root(out):
    out.seek(0)
    text = out.read()
    return text if "process task" in text and "operation.duration" in text else None


def over_grpc(program):
    agent = os.path.join(sysconfig.get_paths()["purelib"], "rotel", "rotel-agent")
    grpc, http = free_port(), free_port()
    with tempfile.TemporaryDirectory() as folder:
        log = os.path.join(folder, "log")
        command = [agent, "start", "--exporter", "blackhole", "--debug-log", "traces"]
        command += ["--debug-log-verbosity", "detailed", "--otlp-grpc-endpoint", f"127.0.0.1:{grpc}"]
        command += ["--otlp-http-endpoint", f"127.0.0.1:{http}", "--pid-file", os.path.join(folder, "pid")]
        with open(log, "w") as out:
            rotel = subprocess.Popen(command, stdout=out, stderr=out)
        try:
            wait_for("rotel's start", lambda: listening(grpc))
            run_task(
                program,
                OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{grpc}",
                OTEL_EXPORTER_OTLP_PROTOCOL="grpc",
            )
            text = wait_for("the arrival of the spans", lambda: "process task" in read(log) and read(log))
        finally:
            rotel.terminate()
            rotel.wait()
    for name in ["queue", "chat parrot", "BridgeService/Session", "POST", CALLER_TRACE]:
        if name not in text:
            fail(f"rotel did not get {name}")
    if CONTENT in text:
        fail("content was exported without being asked for")


def read(path):
    with open(path) as file:
        return file.read()


def main():
    if len(sys.argv) != 2 or not shutil.which(sys.argv[1]):
        fail("give the path of the built example one_task")
    over_http(sys.argv[1])
    over_grpc(sys.argv[1])
    print("oteltap (HTTP) and rotel (gRPC) got the whole tree")


if __name__ == "__main__":
    main()

"""OpenTelemetry collectors that are not ours, and what they got."""

import gzip
import http.client
import json
import os
import socket
import sys
import sysconfig
import threading
from concurrent import futures
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import grpc
from mock_provider import Background
from processes import Process, free_port, wait_for

INTERNAL, CLIENT, CONSUMER = 1, 3, 5
CALLER_TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER_SPAN = "00f067aa0ba902b7"


def traced(mcpd, name, body, trace=CALLER_TRACE, flags="01"):
    """Status and text of an inference that is called with a span of this trace."""
    return mcpd.infer(name, body, {"traceparent": f"00-{trace}-{CALLER_SPAN}-{flags}"})


def listening(port):
    with socket.socket() as s:
        return s.connect_ex(("127.0.0.1", port)) == 0


class Oteltap(Process):
    """OTLP over HTTP. What reaches it passes a recorder that keeps every byte."""

    def __init__(self, folder):
        self.port = free_port()
        command = [sys.executable, "-m", "oteltap", "--port", self.port]
        super().__init__(command, Path(folder) / "oteltap.log", PYTHONUNBUFFERED="1")
        wait_for("oteltap's start", lambda: listening(self.port))
        self.bytes = b""
        self.recorder = Background(self.handler())

    def handler(self):
        tap = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                # As rotel sends it, whatever it is told.
                if self.headers["Content-Encoding"] == "gzip":
                    body = gzip.decompress(body)
                tap.bytes += str(self.headers).encode() + body
                onward = http.client.HTTPConnection("127.0.0.1", tap.port)
                onward.request("POST", self.path, body, {"Content-Type": self.headers["Content-Type"]})
                reply = onward.getresponse()
                self.send_response(reply.status)
                self.end_headers()
                self.wfile.write(reply.read())

        return Handler

    def __enter__(self):
        self.recorder.__enter__()
        return self

    def __exit__(self, *_):
        self.recorder.__exit__()
        self.stop()

    def variables(self, **more):
        """What makes an agent export to it, promptly."""
        prompt = {"OTEL_BSP_SCHEDULE_DELAY": "50", "OTEL_METRIC_EXPORT_INTERVAL": "200"}
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": self.recorder.url} | prompt | more

    def lines(self):
        return [json.loads(line) for line in self.log.splitlines() if line.startswith("{")]

    def spans(self):
        return [Span(line) for line in self.lines() if "spanId" in line]

    def trace(self, trace_id, spans=1):
        """The spans of one trace, once its root has come and at least so many of them."""
        self.wait_for_span("process task", trace_id)
        found = lambda: [s for s in self.spans() if s.trace == trace_id]
        wait_for(f"the arrival of {spans} spans", lambda: len(found()) >= spans)
        return found()

    def wait_for_span(self, name, trace_id):
        wanted = lambda: [s for s in self.spans() if s.name == name and s.trace == trace_id]
        return wait_for(f"the arrival of {name}", wanted)[0]


class Rotel(Process):
    """OTLP over gRPC, and over HTTP to the next collector."""

    def __init__(self, folder, onward):
        program = os.path.join(sysconfig.get_paths()["purelib"], "rotel", "rotel-agent")
        self.port = free_port()
        command = [program, "start", "--exporter", "otlp", "--otlp-exporter-endpoint", onward.recorder.url]
        command += ["--otlp-exporter-protocol", "http", "--batch-timeout", "100ms"]
        command += ["--otlp-grpc-endpoint", f"127.0.0.1:{self.port}"]
        command += ["--otlp-http-endpoint", f"127.0.0.1:{free_port()}", "--pid-file", Path(folder) / "pid"]
        super().__init__(command, Path(folder) / "rotel.log")
        wait_for("rotel's start", lambda: listening(self.port))

    def variables(self, **more):
        """What makes an agent export to it, promptly."""
        url = f"http://127.0.0.1:{self.port}"
        protocol = {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_BSP_SCHEDULE_DELAY": "50"}
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": url} | protocol | more


class GrpcCollector(grpc.GenericRpcHandler):
    """Answers each OTLP call over gRPC once `answer(over)` returns, and keeps what it was asked. `over` is set at the end."""

    def __init__(self, answer):
        self.answer, self.asked, self.over = answer, [], threading.Event()
        self.server = grpc.server(futures.ThreadPoolExecutor(4))
        self.server.add_generic_rpc_handlers((self,))
        self.url = f"http://127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"

    def service(self, _):
        return grpc.unary_unary_rpc_method_handler(self.call)

    def call(self, request, _):
        self.asked.append(request)
        self.answer(self.over)
        # An empty response says that everything was taken.
        return b""

    def __enter__(self):
        self.server.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.server.stop(grace=None).wait()


class HttpCollector(Background):
    """Answers each POST with the status that `answer(over)` returns, and keeps what it was asked. `over` is set at the end."""

    def __init__(self, answer):
        self.asked = asked = []
        self.over = over = threading.Event()

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_POST(self):
                asked.append(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(answer(over))
                self.end_headers()

        super().__init__(Handler)

    def __exit__(self, *_):
        self.over.set()
        super().__exit__()


class Span:
    """One span as oteltap prints it."""

    def __init__(self, line):
        self.name, self.kind = line["name"], line["kind"]
        self.trace, self.id, self.parent = line["traceId"], line["spanId"], line["parentSpanId"]
        self.links = [(link["traceId"], link["spanId"]) for link in line["links"]]
        self.attributes = {a["key"]: value(a["value"]) for a in line["attributes"]}
        self.events = [event["name"] for event in line["events"]]
        self.status = line["status"].get("code", 0)
        self.message = line["status"].get("message", "")
        self.began, self.ended = int(line["startTimeUnixNano"]), int(line["endTimeUnixNano"])

    def __repr__(self):
        return f"{self.name} {self.kind} {self.parent}->{self.id} {self.status} {self.attributes}"


def value(any_value):
    (kind, found), *_ = any_value.items()
    if kind == "intValue":
        return int(found)
    return [value(v) for v in found["values"]] if kind == "arrayValue" else found


def by_name(spans):
    """Each span under its name; of several POSTs the last."""
    return {s.name: s for s in spans}


def covered(root, children):
    """Which part of the root's time lies in at least one child."""
    total, until = 0, root.began
    for child in sorted(children, key=lambda s: s.began):
        total += max(0, min(child.ended, root.ended) - max(child.began, until))
        until = max(until, child.ended)
    return total / (root.ended - root.began)

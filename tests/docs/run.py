#!/usr/bin/env python3
"""Runs the commands of the documentation: every line after "$ " in a console block, and every sh block as a script.

    tests/docs/run.py [PAGE]...

Each page gets a home of its own, with the credentials of a fake-mcpd and the page's own config.json in it, and its commands run there one
after the other with the programs that were built. Each has to succeed, and where the page shows what a command prints, it has to print
that: numbers and bars may differ. What cannot run here stands in NOT_RUN, with the reason; a reason that nothing needs any more is an
error.
"""

import contextlib
import http.server
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(os.environ.get("MCPRELAY_BIN", ROOT / "target/debug")).resolve()
# The longest that a command may take on a busy machine. Nothing waits for it but what fails.
PATIENCE = 60.0
TOKEN = "T"

# What is not run, by the begin of its line after any variables, and why.
NOT_RUN = {
    "./test.sh": "this is part of it",
    "cargo install": "compiles for minutes; the step before has built the programs",
    "cargo build": "likewise",
    "cargo test": "tests are a step of their own",
    "cargo run --release -p mcprelay-bench": "measures for minutes, and wants a machine that does nothing else",
    "systemctl": "needs a running systemd",
    "mcprelay service": "needs a service manager; tests/it/service runs it with a stand-in",
    "journalctl": "needs a running systemd",
    "apt install": "packaging/deb.sh installs and purges the package itself",
    "packaging/deb.sh": "a step of its own",
    "npm install": "the package is not in the registry; the Node client's step installs it packed",
    "npx @mcpctl/mcprelay": "likewise; tests/node/programs.sh runs it",
    "npm ci": "the Node client's step",
    "npm pack": "the Node client's step",
    "../../tests/node/run.sh": "the Node client's step",
    "ollama": "not here; a stand-in answers as it would",
    "llama-server": "not here; a stand-in answers as it would",
    "vllm": "not here; a stand-in answers as it would",
    "lms": "not here; a stand-in answers as it would",
    "$EDITOR": "for people",
    "mcprelay provide --detect": "asks the servers' usual ports, where anything may be; tests/provide/detect.rs runs it",
}

# What a line becomes here, where it names what is elsewhere on the reader's machine.
HERE = [
    (r"^cargo run (--release )?-- ", "mcprelay "),
    (r"^target/release/", ""),
    # tests/node/guide.test.mjs runs the page's own program.
    (r"^node publish\.mjs", "mcprelay provide"),
]

# Lines that do not end by themselves, and what tells that each does its work.
SERVES = re.compile(r"^(\w+=\S+ )*(mcprelay (run|provide)(?! --detect)|fake-mcpd|mcprelay status --watch)\b")


class Broken(Exception):
    """What a page says is not what happens."""


# ---- a page ------------------------------------------------------------------------------------------------------------


def blocks(text):
    """The fenced blocks of a page: line number, language, lines."""
    found, begin, language, lines = [], None, "", []
    for number, line in enumerate(text.splitlines(), 1):
        fence = re.match(r"\s*```(.*)", line)
        if fence and begin is None:
            begin, language, lines = number, fence[1].strip(), []
        elif fence:
            found.append((begin, language, lines))
            begin = None
        elif begin is not None:
            lines.append(line)
    return found


def steps(lines):
    """A console block as pairs of a command and what it prints below it."""
    pairs, lines = [], list(lines)
    while lines:
        line = lines.pop(0)
        if line.startswith("$ "):
            command = line[2:]
            while command.endswith("\\"):
                command = command[:-1] + lines.pop(0).strip()
            pairs.append((command, []))
        elif pairs:
            pairs[-1][1].append(line)
        elif line.strip():
            raise Broken(f"a console block begins with {line!r} instead of a command")
    return pairs


def shape(line):
    """A line without what differs from run to run."""
    line = re.sub(r"\d+(\.\d+)?", "0", line)
    line = re.sub(r"\b0 ?(ms|µs|s)\b", "0 s", line)
    return re.sub(r"[\s█◆┊]+", " ", line).strip()


def shapes(lines):
    return [shape(line) for line in lines if line.strip()]


# ---- what is around it -------------------------------------------------------------------------------------------------


class ModelServer(http.server.BaseHTTPRequestHandler):
    """A stand-in for an Ollama and its like: it has every model that is asked for."""

    models = ()

    def log_message(self, *_):
        pass

    def answer(self, kind, body):
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        data = [{"id": model, "object": "model"} for model in self.models]
        self.answer("application/json", json.dumps({"object": "list", "data": data}).encode())

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        head = {"id": "c", "created": 1, "model": request["model"]}
        if not request.get("stream"):
            choice = {"index": 0, "message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}
            whole = head | {"object": "chat.completion", "choices": [choice]}
            return self.answer("application/json", json.dumps(whole).encode())
        events = ""
        for delta, reason in [({"content": "hel"}, None), ({"content": "lo"}, None), ({}, "stop")]:
            choices = [{"index": 0, "delta": delta, "finish_reason": reason}]
            events += f"data: {json.dumps(head | {'object': 'chat.completion.chunk', 'choices': choices})}\n\n"
        self.answer("text/event-stream", (events + "data: [DONE]\n\n").encode())


def stop(process):
    """Ends a process and whatever it has started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise Broken(f"{process.args} does not end after SIGTERM") from None


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class World:
    """The home, the servers and the processes of one page."""

    def __init__(self, page, used):
        self.page, self.used = page, used
        self.folder = Path(tempfile.mkdtemp())
        self.home = self.folder / "home"
        (self.home / ".mcpctl").mkdir(mode=0o700, parents=True)
        self.serving = {}
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("MCPRELAY_", "OTEL_", "RUST_LOG", "XDG_"))}
        path = f"{self.folder}:{BIN}:{os.environ['PATH']}"
        self.env = clean | {"HOME": str(self.home), "PATH": path, "VLLM_API_KEY": "key", "NO_COLOR": "1"}
        # The ports that pages show, and those that are free here.
        self.ports = {"9464": str(free_port())}
        self.models = self.model_server()
        self.mcpd = self.start("fake-mcpd --token T --ping-interval 1s", "an mcpd")
        self.url = self.first_line(self.mcpd).split()[-1]
        self.write("credentials", {"mcpdUrl": self.url, "token": TOKEN})

    def close(self):
        try:
            for process in [*self.serving.values(), self.mcpd]:
                stop(process)
        finally:
            self.models.shutdown()
            shutil.rmtree(self.folder, ignore_errors=True)

    def model_server(self):
        handler = type("Models", (ModelServer,), {})
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return server

    def write(self, name, value):
        path = self.home / ".mcpctl" / name
        path.write_text(json.dumps(value))
        path.chmod(0o600)

    def configure(self, text):
        """Takes an example of the page as config.json; its servers are the stand-in."""
        config = json.loads(text)
        providers = config["llm"]["providers"]
        for provider in providers:
            provider["url"] = f"http://127.0.0.1:{self.models.server_port}"
        handler = self.models.RequestHandlerClass
        handler.models = (*handler.models, *(provider.get("model") for provider in providers))
        self.write("config.json", config)
        # The file is followed within a second or two.
        if "run" in self.serving and any("provide" in process.line for process in self.serving.values()):
            for name in (provider["name"] for provider in providers if provider.get("publish") is True):
                self.until(f"{name} is listed", lambda name=name: self.lists(name))

    def lists(self, name):
        listed = subprocess.run(
            ["mcprelay", "get", "llm", name, "-o", "json"], env=self.env, capture_output=True, timeout=PATIENCE
        )
        return listed.returncode == 0 and b'"active"' in listed.stdout

    def until(self, what, check):
        end = time.monotonic() + PATIENCE
        while not check():
            if time.monotonic() > end:
                raise Broken(f"{what}: not within {PATIENCE:.0f} s\n{self.logs()}")
            time.sleep(0.05)

    def logs(self):
        return "\n".join(log.read_text(errors="replace")[-2000:] for log in sorted(self.folder.glob("*.log")))

    def start(self, line, name):
        out = self.folder / f"{len(self.serving)}-{re.sub('[^a-z]+', '-', name)}.log"
        with open(out, "wb") as log:
            process = subprocess.Popen(
                ["bash", "-c", f"exec env {line}" if "=" in line.split()[0] else f"exec {line}"],
                env=self.env, cwd=self.folder, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True,
            )
        process.line, process.log = line, out
        return process

    def first_line(self, process):
        self.until("its first line", lambda: "\n" in process.log.read_text())
        return process.log.read_text().splitlines()[0]

    # ---- commands

    def here(self, line):
        for pattern, replacement in HERE:
            line = re.sub(pattern, replacement, line)
        for shown, real in self.ports.items():
            line = line.replace(shown, real)
        return line

    def run(self, line, output):
        """Runs one command and compares what it prints; a server goes on until the page ends."""
        program = re.sub(r"^(\w+=\S+ )+", "", line)
        for begin in NOT_RUN:
            if program.startswith(begin):
                self.used.add(begin)
                return
        line = self.here(line)
        if SERVES.match(line):
            self.serve(line.removesuffix("&").strip(), output)
        else:
            said = self.done(line)
            self.compare(line, output, said)

    def done(self, line):
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", line], env=self.env, cwd=ROOT, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=PATIENCE,
        )
        if done.returncode:
            raise Broken(f"`{line}` ends with {done.returncode}:\n{done.stdout}\n{self.logs()}")
        return done.stdout

    def compare(self, line, output, said):
        shown, printed = shapes(output), shapes(said.splitlines())
        if shown and shown != printed:
            raise Broken(f"`{line}` prints\n{said}\nand the page shows\n" + "\n".join(output))

    def serve(self, line, output):
        kind = next(kind for kind in ("run", "provide", "status", "fake-mcpd") if kind in line)
        if kind in self.serving:
            stop(self.serving.pop(kind))
        process = self.serving[kind] = self.start(line, kind)
        if kind == "fake-mcpd":
            said = self.first_line(process)
            self.compare(line, output, said)
            self.ports[output[0].split(":")[-1]] = said.split(":")[-1]
            self.write("credentials", {"mcpdUrl": said.split()[-1], "token": TOKEN})
        else:
            wanted = {"run": " runs", "provide": " opted in", "status": "online"}[kind]
            self.until(f"`{line}` works", lambda: wanted in process.log.read_text())
        if process.poll() is not None:
            raise Broken(f"`{line}` ended by itself:\n{self.logs()}")

    def script(self, lines):
        """Runs a script as a whole. Its `your-provider` is a provider host with the LLM that the script calls."""
        self.write("config.json", {"llm": {"providers": [{"name": "my-laptop", "type": "echo", "publish": True}]}})
        provider = self.folder / "your-provider"
        provider.write_text(f'#!/bin/sh\nexec mcprelay provide --home "{self.home}/.mcpctl" "$@"\n')
        provider.chmod(0o755)
        script = self.folder / "script"
        script.write_text("\n".join(lines))
        self.done(f"bash {script}")


# ---- all pages -----------------------------------------------------------------------------------------------------------


def pages():
    """Every page for users; what generated pages and tools' folders say is not run."""
    found = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "fake-mcpd/README.md", ROOT / "clients/node/README.md"]
    return found + sorted((ROOT / "docs").rglob("*.md"))


def run_page(path, used):
    """Runs a page's blocks in their order; returns how many commands there were."""
    todo = [block for block in blocks(path.read_text()) if block[1] in ("console", "sh", "json")]
    if not any(language != "json" for _, language, _ in todo):
        return 0
    world, commands = World(path, used), 0
    with contextlib.closing(world):
        prepare(path, world)
        for number, language, lines in todo:
            try:
                commands += run_block(world, language, lines)
            except Broken as why:
                raise Broken(f"{path.relative_to(ROOT)}:{number}: {why}") from None
    return commands


def prepare(path, world):
    """What a page's reader has before the page begins."""
    example = {"name": "my-laptop", "type": "ollama", "model": "m", "publish": True}
    if path.name == "README.md" and path.parent == ROOT:
        return
    world.configure(json.dumps({"llm": {"providers": [example | {"name": name} for name in ("my-laptop", "llama")]}}))
    if path.name in ("troubleshooting.md", "service.md", "README.md"):
        world.serve("mcprelay run --provide", [])
        world.until("an LLM is listed", lambda: world.lists("llama"))
    elif path.name == "operating.md":
        world.serve("mcprelay provide", [])


def run_block(world, language, lines):
    text = "\n".join(lines)
    if language == "json":
        if '"providers"' in text:
            world.configure(text)
        return 0
    if language == "sh":
        world.script(lines)
        return 1
    pairs = steps(lines)
    if pairs[0][1] and world.here(pairs[0][0]).startswith("mcprelay demo"):
        # It prints commands itself.
        pairs = [(pairs[0][0], lines[1:])]
    for command, output in pairs:
        world.run(command, output)
    return len(pairs)


def main(arguments):
    for program in ("mcprelay", "fake-mcpd"):
        if not (BIN / program).exists():
            sys.exit(f"{BIN / program} is not there; `cargo build --workspace` makes it")
    began, used, commands = time.monotonic(), set(), 0
    chosen = [Path(argument).resolve() for argument in arguments] or pages()
    for path in chosen:
        try:
            commands += run_page(path, used)
        except (Broken, subprocess.TimeoutExpired) as why:
            sys.exit(str(why))
    unused = [] if arguments else sorted(set(NOT_RUN) - used)
    if unused:
        sys.exit(f"no page has these any more; take them out of NOT_RUN: {unused}")
    print(f"{commands} commands of {len(chosen)} pages, {time.monotonic() - began:.0f} s")


main(sys.argv[1:])

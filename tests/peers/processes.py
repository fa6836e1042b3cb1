"""The programs under test and their peers, as processes that end with the test."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

BIN = Path(os.environ["MCPRELAY_BIN"])
PEERS = Path(os.environ["PEERS_BIN"])
HERE = Path(__file__).parent
TOKEN = "t0ken-MARKER-credential"
# The longest that anything here may take on a busy machine. Nothing waits for it but what fails.
PATIENCE = 30.0
# The same for llama.cpp, which reads 130 MB and computes on one of the machine's cores.
MODEL_PATIENCE = 120.0


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_for(what, check, patience=PATIENCE):
    """What `check` finds, once it finds something."""
    end = time.monotonic() + patience
    while True:
        found = check()
        if found:
            return found
        if time.monotonic() > end:
            raise AssertionError(f"{what} did not happen within {patience:.0f} s")
        time.sleep(0.02)


def get(url, token=None, body=None, headers=None, timeout=PATIENCE):
    """Status and text of one call; status 0 if nobody answers."""
    headers = dict(headers or {})
    if token:
        headers["Authorization"] = f"Bearer {token}"
    data = None if body is None else json.dumps(body).encode()
    try:
        request = urllib.request.Request(url, data=data, headers=headers)
        with urllib.request.urlopen(request, timeout=timeout) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return 0, ""


class Process:
    """A program whose output is in a file."""

    def __init__(self, command, log, **variables):
        self.log_path = Path(log)
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("OTEL_", "MCPRELAY_", "RUST_LOG"))}
        with open(self.log_path, "ab") as out:
            self.child = subprocess.Popen(
                [str(part) for part in command], stdout=out, stderr=out, env=clean | variables
            )

    @property
    def log(self):
        return self.log_path.read_text(errors="replace")

    def alive(self):
        return self.child.poll() is None

    def stop(self, how=signal.SIGTERM):
        """Its exit status, after a signal; it is killed if that takes too long."""
        if self.alive():
            self.child.send_signal(how)
            self.child.send_signal(signal.SIGCONT)
        try:
            return self.child.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.child.kill()
            return self.child.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


class Mcpd(Process):
    """fake-mcpd, whose verdict must be clean at the end."""

    def __init__(self, folder, *arguments):
        self.verdict = Path(folder) / "verdict.json"
        command = [BIN / "fake-mcpd", "--token", TOKEN, "--verdict", self.verdict, *arguments]
        super().__init__(command, Path(folder) / "mcpd.log")
        line = wait_for("fake-mcpd's start", lambda: re.search(r"listening on (\S+)", self.log))
        self.url = line.group(1)

    def journal(self, kind=None):
        status, text = get(f"{self.url}/_fake/journal")
        assert status == 200, text
        return [e for e in json.loads(text)["entries"] if kind in (None, e["kind"])]

    def fault(self, spec):
        status, text = get(f"{self.url}/_fake/faults", body=spec)
        assert status < 300, text

    def llms(self):
        status, text = get(f"{self.url}/api/v1/llms", TOKEN)
        assert status == 200, text
        return {llm["name"]: llm for llm in json.loads(text)}

    def is_active(self, name):
        return self.llms().get(name, {}).get("status") == "active"

    def infer(self, name, body, headers=None):
        return get(f"{self.url}/api/v1/llms/{name}/infer", TOKEN, body, headers)

    def __exit__(self, *_):
        status = self.stop()
        assert status == 0, f"the agent broke the contract: {self.verdict.read_text()}"


class Agent(Process):
    """`mcprelay run --provide` in a home of its own."""

    def __init__(self, home, *arguments, **variables):
        self.home = Path(home)
        self.socket = self.home / "mcprelay.sock"
        command = [BIN / "mcprelay", "run", "--provide", "--home", home, *arguments]
        super().__init__(command, self.home / "agent.log", **variables)

    def tool(self, *arguments, check=True):
        """Standard output of another command of mcprelay."""
        command = [BIN / "mcprelay", *arguments, "--home", self.home]
        done = subprocess.run([str(p) for p in command], capture_output=True, text=True, timeout=PATIENCE)
        assert not check or done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
        return done.stdout

    def status(self):
        return json.loads(self.tool("status", "-o", "json"))

    def provider(self, name):
        return next(p for p in self.status()["providers"] if p["name"] == name)

    def wait_online(self):
        self.tool("status", "--wait", "online", "--timeout", "20s")


def agent(folder, mcpd, providers, *arguments, **variables):
    """An agent that is online, with a home below `folder`."""
    started = Agent(write_home(folder / "home", mcpd, providers), *arguments, **variables)
    started.wait_online()
    return started


class Llama(Process):
    """llama.cpp."""

    def __init__(self, folder, port=None, wait=True):
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        super().__init__([sys.executable, HERE / "llama_server.py", self.port], Path(folder) / "llama.log")
        if wait:
            wait_for("llama.cpp's model", lambda: self.health() == 200, MODEL_PATIENCE)

    def health(self):
        return get(f"{self.url}/health", timeout=2)[0]

    @contextlib.contextmanager
    def slowed(self):
        """Gives it only a little of the time, so that loading takes long enough to be looked at."""
        running, over = 0.01, threading.Event()

        def throttle():
            while not over.wait(running):
                self.child.send_signal(signal.SIGSTOP)
                over.wait(10 * running)
                self.child.send_signal(signal.SIGCONT)

        thread = threading.Thread(target=throttle)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def write_home(home, mcpd, providers):
    """A home with credentials and providers, as mcpctl would leave it."""
    home = Path(home)
    home.mkdir(mode=0o700, exist_ok=True)
    credentials = home / "credentials"
    credentials.write_text(json.dumps({"mcpdUrl": mcpd.url, "token": TOKEN}))
    credentials.chmod(0o600)
    write_config(home, providers)
    return home


def write_config(home, providers):
    """Replaces config.json in one step, as editors do."""
    new = Path(home) / "config.json.new"
    new.write_text(json.dumps({"llm": {"providers": providers}}))
    new.rename(Path(home) / "config.json")


def chat(prompt, **more):
    return {"messages": [{"role": "user", "content": prompt}], **more}


def smol(llama, **more):
    """The entry of the real model."""
    return {"name": "smol", "type": "llamacpp", "model": "smollm2", "url": llama.url, "publish": True, **more}


def echo(name="parrot", **more):
    """An entry of the embedded provider."""
    return {"name": name, "type": "echo", "model": "parrot", "publish": True, **more}

"""nginx, HAProxy and Caddy in front of fake-mcpd, with the configuration that the guide shows."""

import re
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import pytest
from processes import HERE, Process, free_port, wait_for

GUIDE = HERE.parents[1] / "docs/guides/behind-an-ingress.md"
# The Debian package of each.
PACKAGES = {"nginx": "nginx-light", "haproxy": "haproxy", "caddy": "caddy"}


def blocks(language):
    """The guide's blocks of code in a language."""
    found = re.findall(rf"^```{language}\n(.*?)^```$", GUIDE.read_text(), re.M | re.S)
    assert found, f"the guide shows no {language}"
    return found


def openssl(*arguments):
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


def certificates(folder):
    """An authority (ca.pem) and a certificate of it for localhost (cert.pem, key.pem, both.pem)."""
    folder.mkdir()
    names = folder / "names"
    names.write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    ca, ca_key, request = folder / "ca.pem", folder / "ca-key.pem", folder / "request.pem"
    openssl("req", "-x509", *key, "-keyout", ca_key, "-out", ca, "-days", 2, "-subj", "/CN=authority of a test")
    openssl("req", *key, "-keyout", folder / "key.pem", "-out", request, "-subj", "/CN=localhost")
    signed = ("-CA", ca, "-CAkey", ca_key, "-CAcreateserial", "-extfile", names, "-days", 2)
    openssl("x509", "-req", "-in", request, *signed, "-out", folder / "cert.pem")
    both = (folder / "cert.pem").read_text() + (folder / "key.pem").read_text()
    (folder / "both.pem").write_text(both)


class Ingress:
    """One of them. `changes` are pairs of texts: what stands in the guide, and what the case has in its place."""

    def __init__(self, kind, folder, mcpd, *changes):
        if not shutil.which(kind):
            pytest.skip(f"{kind} is not installed: apt install {PACKAGES[kind]}")
        self.kind, self.folder, self.port = kind, Path(folder) / "ingress", free_port()
        certificates(self.folder)
        self.ca, self.url = self.folder / "ca.pem", f"https://localhost:{self.port}"
        self.config = self.folder / "config"
        self.config.write_text(self.written(mcpd.url.removeprefix("http://"), changes))
        self.start()

    def written(self, backend, changes):
        text = {"nginx": self.nginx, "haproxy": self.haproxy, "caddy": self.caddy}[self.kind]()
        here = [("127.0.0.1:8080", backend), ("/etc/ssl/mcpd", str(self.folder)), ("mcpd.example.com", "localhost")]
        for before, after in [*changes, *here]:
            assert before in text or (before, after) in here, f"the guide's {self.kind} has no {before!r}"
            text = text.replace(before, after)
        return text

    # What stands around the guide's blocks: where this machine keeps things, and the port.

    def nginx(self):
        main, http = blocks("nginx")
        http = http.replace("listen 443", f"listen 127.0.0.1:{self.port}")
        temporary = "".join(
            f"    {kind}_temp_path {self.folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        here = f"user root;\ndaemon off;\npid {self.folder}/pid;\nevents {{}}\n"
        return f"{here}{main}http {{\n    access_log off;\n{temporary}{http}}}\n"

    def haproxy(self):
        return blocks("haproxy")[0].replace("bind :443", f"bind 127.0.0.1:{self.port}")

    def caddy(self):
        self.admin = f"127.0.0.1:{free_port()}"
        ports = f"{{\n    admin {self.admin}\n    https_port {self.port}\n    auto_https disable_redirects\n"
        return blocks("caddyfile")[0].replace("{\n", ports, 1)

    def start(self):
        command = {
            "nginx": ["nginx", "-e", "stderr", "-c", self.config],
            "haproxy": ["haproxy", "-W", "-f", self.config],
            "caddy": ["caddy", "run", "--adapter", "caddyfile", "--config", self.config],
        }
        state = {"HOME": str(self.folder), "XDG_DATA_HOME": str(self.folder), "XDG_CONFIG_HOME": str(self.folder)}
        self.process = Process(command[self.kind], self.folder / "log", **state)
        wait_for(f"{self.kind} to listen", self.listens)

    def listens(self):
        assert self.process.alive(), self.process.log
        with socket.socket() as s:
            return s.connect_ex(("127.0.0.1", self.port)) == 0

    def reload(self):
        """What an administrator does after a change."""
        if self.kind == "caddy":
            reload = ["caddy", "reload", "--force", "--adapter", "caddyfile", "--address", self.admin, "--config", self.config]
            subprocess.run(reload, check=True, capture_output=True)
        else:
            self.process.child.send_signal(signal.SIGHUP if self.kind == "nginx" else signal.SIGUSR2)

    def restart(self):
        """It is gone at once, with every connection, and back."""
        self.stop()
        self.start()

    def stop(self):
        """At once: Caddy would wait for the channel to end."""
        self.process.stop(signal.SIGKILL if self.kind == "caddy" else signal.SIGTERM)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

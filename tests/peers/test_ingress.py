"""Through real ingresses, as the guide sets them up and as careless people do: every token once, in order, and one end."""

import contextlib
import json
import threading
import types
import urllib.request

import pytest
from ingress import PACKAGES, Ingress
from processes import PATIENCE, TOKEN, Agent, Mcpd, chat, echo, wait_for, write_home

# What the embedded provider says, and how often it says a word.
PROMPT = " ".join(f"w{n}" for n in range(40))
ANSWER = f"You said: {PROMPT}"
PACE = 40
CALLERS = 6
# An mcpd for which a part that may have arrived is a token lost or doubled.
PLAIN = ("--no-idempotent-results",)


@contextlib.contextmanager
def behind(tmp_path, kind, *changes, mcpd=(), pace=PACE):
    """An agent that reaches fake-mcpd through an ingress."""
    with Mcpd(tmp_path, *mcpd) as server, Ingress(kind, tmp_path, server, *changes) as ingress:
        home = write_home(tmp_path / "home", ingress, [echo(tokenDelayMs=pace, maxInFlight=CALLERS)])
        quick = ("--reconnect-min", "200ms", "--reconnect-max", "1s")
        with Agent(home, "--ca-file", ingress.ca, *quick) as agent:
            agent.wait_online()
            yield types.SimpleNamespace(mcpd=server, ingress=ingress, agent=agent)


def stream(mcpd, prompt=PROMPT, begun=lambda: None):
    """The text of one stream and how often it ended; `begun` is called with its first line."""
    body = json.dumps(chat(prompt, stream=True)).encode()
    url = f"{mcpd.url}/api/v1/llms/parrot/infer"
    request = urllib.request.Request(url, data=body, headers={"Authorization": f"Bearer {TOKEN}"})
    text, ends = "", 0
    with urllib.request.urlopen(request, timeout=PATIENCE) as reply:
        for line in reply:
            begun()
            data = line.decode().removeprefix("data: ").strip()
            if data == "[DONE]":
                ends += 1
            elif data:
                chunk = json.loads(data)
                assert "error" not in chunk, chunk
                for choice in chunk["choices"]:
                    text += choice["delta"].get("content") or ""
    return text, ends


def under_load(link, trouble):
    """What callers get while something happens in the middle of their streams."""
    got, first = [None] * CALLERS, [threading.Event() for _ in range(CALLERS)]

    def call(n):
        try:
            got[n] = stream(link.mcpd, begun=first[n].set)
        except Exception as error:  # noqa: BLE001 - it is compared with what should have come
            got[n] = error
            first[n].set()

    callers = [threading.Thread(target=call, args=(n,)) for n in range(CALLERS)]
    for caller in callers:
        caller.start()
    assert all(event.wait(PATIENCE) for event in first), "every stream begins"
    trouble()
    for caller in callers:
        caller.join()
    assert got == [(ANSWER, 1)] * CALLERS


def is_well(link):
    """It is online, doctor has nothing to say, and a stream is exact."""
    wait_for("it to be online", lambda: link.agent.status()["agent"]["state"] == "online")
    wait_for("the LLM to be active", lambda: link.mcpd.is_active("parrot"))
    assert stream(link.mcpd) == (ANSWER, 1)
    link.agent.tool("doctor", "--ca-file", link.ingress.ca)


@pytest.mark.parametrize("kind", PACKAGES)
def test_as_the_guide_sets_it_up_everything_is_well(tmp_path, kind):
    with behind(tmp_path, kind, pace=5) as link:
        is_well(link)


@pytest.mark.parametrize("kind", PACKAGES)
@pytest.mark.parametrize("features", [(), PLAIN], ids=["idempotent", "not_idempotent"])
def test_a_reload_under_load_costs_nothing(tmp_path, kind, features):
    with behind(tmp_path, kind, mcpd=features) as link:
        under_load(link, link.ingress.reload)
        is_well(link)


@pytest.mark.parametrize("kind", PACKAGES)
def test_a_restart_under_load_costs_nothing(tmp_path, kind):
    with behind(tmp_path, kind) as link:
        under_load(link, link.ingress.restart)
        is_well(link)


SHORT = {
    "nginx": [("proxy_read_timeout 1h", "proxy_read_timeout 2s")],
    "haproxy": [("timeout client 1h", "timeout client 2s"), ("timeout server 1h", "timeout server 2s")],
}


@pytest.mark.parametrize("kind", SHORT)
def test_a_read_timeout_on_a_silent_channel_ends_the_channel_and_nothing_else_and_is_named(tmp_path, kind):
    silent = ("--ping-interval", "0s")
    with behind(tmp_path, kind, *SHORT[kind], mcpd=silent) as link:
        wait_for("the channel to be ended twice", lambda: len(link.mcpd.journal("channel-closed")) >= 2)
        wait_for("the status to count it", lambda: link.agent.status()["totals"]["reconnects"] >= 1)
        named = "ends the control channel after 2 s of silence"
        wait_for("the status to name it", lambda: named in link.agent.status()["agent"]["detail"])
        assert "proxy_read_timeout" in link.agent.status()["agent"]["advice"]
        wait_for("the LLM to be active", lambda: link.agent.status()["agent"]["state"] == "online")
        # The stream outlasts the timeout: the channel breaks under it, and it goes on.
        assert stream(link.mcpd, PROMPT + " " + PROMPT) == (f"{ANSWER} {PROMPT}", 1)


LIMITED = {
    "nginx": ("client_max_body_size 64m", "client_max_body_size 1m"),
    "haproxy": (
        "default_backend mcpd",
        "http-request deny deny_status 413 if { req.hdr_val(content-length) gt 1048576 }\n    default_backend mcpd",
    ),
}


@pytest.mark.parametrize("kind", LIMITED)
def test_an_answer_over_the_body_limit_is_its_callers_413_and_nobody_elses(tmp_path, kind):
    with behind(tmp_path, kind, LIMITED[kind], pace=0) as link:
        status, text = link.mcpd.infer("parrot", chat("x" * (2 << 20)))
        assert status == 413, text
        assert "localhost" not in text and "https://" not in text, text
        is_well(link)


HTTP_1 = ("ssl http2", "ssl")
BRIEF = {
    "nginx": [HTTP_1, ("keepalive_timeout 75s", "keepalive_timeout 1s")],
    "haproxy": [("alpn h2,http/1.1", "alpn http/1.1"), ("http-keep-alive 75s", "http-keep-alive 1s")],
    "caddy": [
        (
            "grace_period 30s",
            "grace_period 30s\n    servers {\n        protocols h1\n        timeouts {\n            idle 1s\n        }\n    }",
        )
    ],
}


@pytest.mark.parametrize("kind", BRIEF)
def test_a_keep_alive_of_a_second_costs_nothing(tmp_path, kind):
    with behind(tmp_path, kind, *BRIEF[kind], pace=990) as link:
        words = "a b c d e"
        assert stream(link.mcpd, words) == (f"You said: {words}", 1)


@pytest.mark.parametrize("protocol", ["http2", "http1"])
@pytest.mark.parametrize("features", [(), PLAIN], ids=["idempotent", "not_idempotent"])
def test_connections_that_end_after_so_many_requests_cost_nothing(tmp_path, protocol, features):
    few = ("keepalive_timeout 75s;", "keepalive_timeout 75s;\n    keepalive_requests 20;")
    changes = [few] if protocol == "http2" else [HTTP_1, few]
    with behind(tmp_path, "nginx", *changes, mcpd=features, pace=10) as link:
        for _ in range(2):
            under_load(link, lambda: None)
        is_well(link)


def test_as_the_guide_sets_it_up_the_thousandth_request_on_a_connection_costs_nothing(tmp_path):
    # nginx's default, which the guide leaves alone: 1,000 requests, here in one answer.
    with behind(tmp_path, "nginx", mcpd=("--no-result-stream",), pace=1) as link:
        words = " ".join(f"w{n}" for n in range(1_500))
        assert stream(link.mcpd, words) == (f"You said: {words}", 1)
        assert len(link.mcpd.journal("result")) > 1_000
        is_well(link)


UNFLUSHED = {"nginx": ("proxy_buffering off", "proxy_buffering on"), "caddy": ("flush_interval -1", "")}


@pytest.mark.parametrize("kind", UNFLUSHED)
def test_buffering_leaves_the_channel_alone(tmp_path, kind):
    with behind(tmp_path, kind, UNFLUSHED[kind], pace=5) as link:
        is_well(link)


ENCODED = {
    "nginx": (
        "keepalive_timeout 75s;",
        "keepalive_timeout 75s;\n    gzip on;\n    gzip_types *;\n    gzip_min_length 0;\n    gzip_proxied any;",
    ),
    "haproxy": (
        "backend mcpd\n",
        "backend mcpd\n    compression algo gzip\n    compression type text/event-stream application/json\n",
    ),
    "caddy": ("reverse_proxy", "encode gzip\n    reverse_proxy"),
}


@pytest.mark.parametrize("kind", ENCODED)
def test_gzip_is_for_those_who_ask_for_it(tmp_path, kind):
    with behind(tmp_path, kind, ENCODED[kind], pace=5) as link:
        is_well(link)


@pytest.mark.parametrize("kind", PACKAGES)
def test_an_answer_goes_through_as_one_upload(tmp_path, kind):
    with behind(tmp_path, kind, pace=20) as link:
        is_well(link)
        under_load(link, lambda: None)
        lines, posts = link.mcpd.journal("line"), link.mcpd.journal("result")
        assert len(lines) > 10 * (CALLERS + 1) and len(posts) == CALLERS + 1, (len(lines), len(posts))
        assert not link.agent.status()["agent"].get("detail")


@pytest.mark.parametrize("protocol", ["http2", "http1"])
def test_an_ingress_that_collects_uploads_costs_no_token_and_is_named(tmp_path, protocol):
    on = ("proxy_request_buffering off", "proxy_request_buffering on")
    changes = [on] if protocol == "http2" else [HTTP_1, on]
    with behind(tmp_path, "nginx", *changes, pace=20) as link:
        assert stream(link.mcpd) == (ANSWER, 1)
        advice = "proxy_request_buffering off"
        detail = lambda: link.agent.status()["agent"].get("advice", "")
        wait_for("the status to name the setting", lambda: advice in detail())
        assert advice in link.agent.tool("doctor", "--ca-file", link.ingress.ca)
        under_load(link, lambda: None)
        uploads = link.mcpd.journal("result-stream")
        assert not link.mcpd.journal("line") and len(uploads) <= 1, uploads

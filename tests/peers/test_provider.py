"""The provider host's life with a real server, a real file and real kills."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler

import pytest
from mock_provider import Background, MockProvider, completion
from processes import (
    BIN, MODEL_PATIENCE, TOKEN, Agent, Llama, Process, chat, echo, free_port, get, smol, wait_for, write_config, write_home,
)  # fmt: skip


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


def in_background(work):
    """Runs `work`; what it returned is in the list once it has ended."""
    found = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    return thread, found


def test_get_llm_lists_exactly_the_opted_in(stack):
    listed = json.loads(stack.agent.tool("get", "llm", "-o", "json"))
    assert {llm["name"]: llm["status"] for llm in listed} == {"smol": "active", "parrot": "active"}
    table = stack.agent.tool("get", "llm")
    assert "smol" in table and "parrot" in table and "hidden" not in table
    assert stack.agent.provider("hidden")["verdict"] == "not_opted_in"


def test_what_the_server_tells_is_in_the_status(stack):
    assert stack.agent.provider("smol")["contextTokens"] == 256


def test_infer_prints_the_models_answer(stack):
    assert stack.agent.tool("infer", "smol", "Say hi").strip()


def test_status_counts_what_happened(mcpd, home):
    write_home(home, mcpd, [echo(tokenDelayMs=50)])
    with Agent(home) as agent:
        agent.wait_online()
        assert mcpd.infer("parrot", chat("one two three"))[0] == 200
        assert mcpd.infer("parrot", chat("one two three", stream=True))[0] == 200
        assert mcpd.infer("nobody", chat("hi"))[0] == 404
        long = "word " * 200
        caller, found = in_background(lambda: mcpd.infer("parrot", chat(long, stream=True)))
        wait_for("the task", lambda: agent.status()["tasks"])
        assert agent.provider("parrot")["running"] == 1
        mcpd.fault("cancel")
        caller.join()
        wait_for("the cancel", lambda: not agent.status()["tasks"])
        totals = agent.status()["totals"]
        assert (totals["tasks"], totals["tasksOk"], totals["tasksCancelled"]) == (3, 2, 1), totals
        assert totals["chunks"] >= totals["posts"] - 3 > 0
        assert found


def test_a_killed_agent_comes_back_as_the_same_session_and_row(mcpd, home):
    write_home(home, mcpd, [echo()])
    agent = Agent(home)
    agent.wait_online()
    session, row = agent.status()["providerSessionId"], mcpd.llms()["parrot"]["id"]
    agent.child.kill()
    agent.child.wait()
    with Agent(home) as agent:
        agent.wait_online()
        assert agent.status()["providerSessionId"] == session
        assert mcpd.llms()["parrot"]["id"] == row and mcpd.is_active("parrot")
        assert mcpd.infer("parrot", chat("still there"))[0] == 200


def test_a_task_of_a_killed_agent_ends_with_an_error_at_its_return(mcpd, home):
    write_home(home, mcpd, [echo(tokenDelayMs=200)])
    agent = Agent(home)
    agent.wait_online()
    caller, found = in_background(lambda: mcpd.infer("parrot", chat("word " * 100)))
    # Killed in the middle: its successor registers at once, and mcpd takes one registration per 250 ms.
    wait_for("the task", lambda: any(task["ageMs"] > 300 for task in agent.status()["tasks"]))
    agent.child.kill()
    agent.child.wait()
    with Agent(home) as agent:
        agent.wait_online()
        caller.join()
        status, text = found[0]
        assert status >= 500 and "restarted" in text, found


def test_flipping_publish_shows_within_two_seconds(mcpd, home):
    write_home(home, mcpd, [echo(), echo("second", publish=False)])
    with Agent(home) as agent:
        agent.wait_online()
        for wanted in (True, False, True):
            write_config(home, [echo(), echo("second", publish=wanted)])
            wait_for("the change", lambda: mcpd.is_active("second") == wanted, patience=2)
            assert mcpd.is_active("parrot"), "the other one is left alone"


def test_a_broken_file_keeps_the_last_good_state_and_says_where(mcpd, home):
    write_home(home, mcpd, [echo()])
    with Agent(home) as agent:
        agent.wait_online()
        (home / "config.json").write_text('{"llm": {"providers": [\n  {"name": "parrot", ]}}')
        wait_for("the complaint", lambda: "line 2, column" in agent.log)
        assert mcpd.is_active("parrot")


def test_a_request_during_a_restart_waits_until_the_model_is_loaded(mcpd, home, tmp_path):
    port = free_port()
    first = Llama(tmp_path, port)
    write_home(home, mcpd, [smol(first)])
    with Agent(home) as agent:
        agent.wait_online()
        first.stop()
        with Llama(tmp_path, port, wait=False) as again:
            with again.slowed():
                wait_for("a loading server", lambda: again.health() == 503, MODEL_PATIENCE)
                caller, found = in_background(lambda: mcpd.infer("smol", chat("Say hi", max_tokens=3)))
                wait_for("the host to see it", lambda: agent.provider("smol")["state"] == "loading")
                assert not found and mcpd.is_active("smol"), "its caller waits, and it stays listed"
            caller.join()
        status, text = found[0]
        assert status == 200, text


def test_a_server_that_is_away_is_withdrawn_and_comes_back_by_itself(mcpd, home, tmp_path):
    port = free_port()
    first = Llama(tmp_path, port)
    write_home(home, mcpd, [smol(first)])
    with Agent(home) as agent:
        agent.wait_online()
        first.stop()
        status, text = mcpd.infer("smol", chat("hi"))
        assert status in (502, 503), text
        wait_for("the withdrawal", lambda: not mcpd.is_active("smol"))
        assert agent.provider("smol")["state"] == "unavailable"
        with Llama(tmp_path, port):
            wait_for("its return", lambda: mcpd.is_active("smol"), patience=20)
            assert mcpd.infer("smol", chat("hi", max_tokens=2))[0] == 200


def test_a_stop_lets_a_running_stream_finish(mcpd, home):
    write_home(home, mcpd, [echo(tokenDelayMs=50)])
    agent = Agent(home)
    agent.wait_online()
    caller, found = in_background(lambda: mcpd.infer("parrot", chat("word " * 20, stream=True)))
    wait_for("the task", lambda: agent.status()["tasks"])
    began = time.monotonic()
    assert agent.stop() == 0
    caller.join()
    status, text = found[0]
    assert status == 200 and text.rstrip().endswith("data: [DONE]"), text
    assert time.monotonic() - began < 10
    assert not mcpd.is_active("parrot"), "deregistered"
    assert get(f"{mcpd.url}/_fake/state")[0] == 200


def test_proxies_are_for_remote_servers_and_never_for_this_machine(mcpd, home, tmp_path):
    class Proxy(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_GET(self):
            asked.append(self.path)
            self.send_error(503)

        do_POST = do_GET

    asked = []
    with Background(Proxy) as proxy, MockProvider(lambda r, _: r.json(200, completion("hi"))) as mock:
        remote = mock.entry("remote", url="http://192.0.2.1:8000")
        write_home(home, mcpd, [mock.entry(), remote])
        variables = dict.fromkeys(["http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"], proxy.url)
        agent = Process([BIN / "mcprelay", "run", "--home", home], tmp_path / "agent.log")
        host = Process([BIN / "mcprelay", "provide", "--home", home], tmp_path / "host.log", **variables)
        with agent, host:
            wait_for("an answer of the one on this machine", lambda: mcpd.infer("mock", chat("hi"))[0] == 200)
            wait_for("the question to the other", lambda: asked)
    assert set(asked) == {"http://192.0.2.1:8000/v1/models"}


def test_what_is_not_relayed_gets_what_the_guide_says(stack):
    """docs/guides/providers.md, "Not supported"."""
    for path, body in [("embeddings", {"input": "x"}), ("responses", {"input": "x"}), ("images/generations", {})]:
        status, text = get(f"{stack.mcpd.url}/v1/{path}", TOKEN, {"model": "smol", **body})
        assert status == 404, (path, status, text)
    status, text = stack.mcpd.infer("smol", {"model": "smol", "input": "x"})
    assert status == 400 and "messages" in text, (status, text)

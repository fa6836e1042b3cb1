"""The dashboard against a real Prometheus and Grafana's own model of a dashboard."""

import json
import math
import re
import subprocess
import threading
import urllib.parse
from pathlib import Path

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard
from mock_provider import MockProvider, chunk
from processes import PEERS, Agent, Mcpd, Process, chat, echo, free_port, get, wait_for, write_home

DOCS = Path(__file__).parents[2] / "docs"
DASHBOARD = json.loads((DOCS / "grafana-dashboard.json").read_text())
PANELS = {panel["title"]: panel for panel in DASHBOARD["panels"]}
# Grafana's grid, and what a panel must not go beyond.
COLUMNS = 24
# As long as a test may wait for a rate: several scrapes, on a busy machine.
RATE = "20s"
# Seconds between two troubles: an agent whose channel is closed within 5 s of its opening, again and again, waits for a minute.
DISTURBED = 7


class Prometheus(Process):
    """A Prometheus that scrapes one page, often."""

    def __init__(self, folder, page):
        port, config = free_port(), Path(folder) / "prometheus.yml"
        job = {"job_name": "mcprelay", "static_configs": [{"targets": [page]}]}
        config.write_text(json.dumps({"global": {"scrape_interval": "500ms"}, "scrape_configs": [job]}))
        command = [PEERS / "prometheus", f"--config.file={config}", f"--storage.tsdb.path={folder}/tsdb"]
        super().__init__([*command, f"--web.listen-address=127.0.0.1:{port}"], Path(folder) / "prometheus.log")
        self.url = f"http://127.0.0.1:{port}/api/v1"
        wait_for("Prometheus's start", lambda: get(f"http://127.0.0.1:{port}/-/ready")[0] == 200)

    def call(self, path, **parameters):
        status, text = get(f"{self.url}/{path}?{urllib.parse.urlencode(parameters)}")
        reply = json.loads(text)
        assert status == 200 and reply["status"] == "success", text
        return reply["data"]

    def values(self, query):
        """The numbers that a query gives now, without those that are none."""
        found = [float(series["value"][1]) for series in self.call("query", query=query)["result"]]
        return [value for value in found if not math.isnan(value)]

    def label_values(self, query):
        """What a variable's query gives, as Grafana asks for it."""
        metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", query).groups()
        return self.call(f"label/{label}/values", **{"match[]": metric})


def queries(panel, llms):
    """A panel's queries with Grafana's variables filled in."""
    filled = [t["expr"].replace("$__rate_interval", RATE) for t in panel["targets"]]
    return [query.replace("$llm", "(" + "|".join(map(re.escape, llms)) + ")") for query in filled]


def speak(request, body):
    """Slow enough that some tasks run and some wait whenever Prometheus looks; now and then it refuses."""
    if "refuse" in body["messages"][0]["content"]:
        request.json(400, {"error": {"message": "no"}})
    else:
        counted = {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 6}}
        words = [chunk(f"{n} ") for n in range(6)]
        request.stream([*words, chunk(finish="stop"), counted, "[DONE]"], pause=0.05)


@pytest.fixture
def loaded(tmp_path):
    """A Prometheus that watches an agent with something of everything to do."""
    port, over = free_port(), threading.Event()
    quick = ["--heartbeat-interval", "500ms", "--reconnect-min", "200ms", "--reconnect-max", "200ms"]

    def ask(name, prompt):
        while not over.wait(0.02):
            mcpd.infer(name, chat(prompt, stream=True))

    def disturb():
        while not over.wait(DISTURBED):
            for fault in ("answer,call=result,status=503", "answer,call=heartbeat,status=503", "drop"):
                mcpd.fault(fault)

    with Mcpd(tmp_path) as mcpd, MockProvider(speak) as mock:
        home = write_home(tmp_path / "home", mcpd, [echo(tokenDelayMs=5), mock.entry(maxInFlight=1)])
        with Agent(home, "--metrics-listen", f"127.0.0.1:{port}", *quick) as agent:
            agent.wait_online()
            with Prometheus(tmp_path, f"127.0.0.1:{port}") as prometheus:
                callers = [("parrot", "some words"), ("mock", "hi"), ("mock", "hi"), ("mock", "refuse")]
                threads = [threading.Thread(target=ask, args=caller) for caller in callers]
                threads.append(threading.Thread(target=disturb))
                for thread in threads:
                    thread.start()
                try:
                    yield prometheus
                finally:
                    over.set()
                    for thread in threads:
                        thread.join()


def test_every_panel_shows_something_under_load(loaded):
    variable = next(v for v in DASHBOARD["templating"]["list"] if v["name"] == "llm")
    names = lambda: loaded.label_values(variable["query"]["query"])
    wait_for("both LLMs in the variable", lambda: set(names()) == {"mock", "parrot"})
    for title, panel in PANELS.items():
        for query in queries(panel, names()):
            wait_for(f"a number for {title}: {query}", lambda: any(loaded.values(query)))
        for query in queries(panel, ["mock"]):
            assert loaded.values(query), f"{title} of one LLM alone: {query}"


def test_grafanas_own_model_knows_every_field_of_the_dashboard():
    """What the model does not know is lost on the way through it."""
    register_default_plugins()
    again = json.loads(JSONEncoder(sort_keys=True).encode(Dashboard.from_json(DASHBOARD)))
    assert lost(DASHBOARD, again) == []


def lost(ours, theirs, path=""):
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return [where for key, value in ours.items() for where in lost(value, theirs.get(key), f"{path}/{key}")]
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        return [where for n, pair in enumerate(zip(ours, theirs)) for where in lost(*pair, f"{path}/{n}")]
    return [] if ours == theirs else [path]


def test_the_panels_lie_side_by_side_and_have_ids_of_their_own():
    taken = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        assert 0 <= at["x"] and at["x"] + at["w"] <= COLUMNS, panel["title"]
        cells = {(at["x"] + i, at["y"] + j) for i in range(at["w"]) for j in range(at["h"])}
        assert not cells & taken, f"{panel['title']} lies on another panel"
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    refs = [[t["refId"] for t in panel["targets"]] for panel in DASHBOARD["panels"]]
    assert all(len(set(of_panel)) == len(of_panel) for of_panel in refs)


def test_every_panel_and_variable_asks_the_prometheus_that_was_chosen_at_the_import():
    datasource, llm = DASHBOARD["templating"]["list"]
    assert (datasource["type"], datasource["name"], datasource["query"]) == ("datasource", "datasource", "prometheus")
    chosen = {"type": "prometheus", "uid": "${datasource}"}
    targets = [target for panel in DASHBOARD["panels"] for target in panel["targets"]]
    assert all(one["datasource"] == chosen for one in [llm, *DASHBOARD["panels"], *targets])


def test_the_alerts_fire_for_what_is_broken_and_not_for_an_idle_or_paused_machine(tmp_path):
    cases = (Path(__file__).parent / "alerts_test.yml").read_text()
    test = tmp_path / "test.yml"
    test.write_text(cases.replace("ALERTS", str(DOCS / "prometheus-alerts.yml")))
    checked = subprocess.run([PEERS / "promtool", "test", "rules", test], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr

"""What the export costs when a collector is in trouble, and which traces it takes at all."""

import json
import statistics
import time

import pytest
from collectors import CALLER_SPAN, GrpcCollector, HttpCollector, traced
from mock_provider import MockProvider, completion
from processes import PATIENCE, Mcpd, agent, chat, echo, free_port, wait_for

# What a slow collector takes for each export, far more than a task.
SLOW = 2.0


def hang(over):
    over.wait(PATIENCE)
    return 200


def slow(over):
    over.wait(SLOW)
    return 200


TROUBLES = {
    "down": lambda: HttpCollector(lambda _: 200),
    "refusing": lambda: HttpCollector(lambda _: 503),
    "hanging": lambda: HttpCollector(hang),
    "hanging, over gRPC": lambda: GrpcCollector(hang),
    "slow": lambda: HttpCollector(slow),
    "slow, over gRPC": lambda: GrpcCollector(slow),
}


def timed(mcpd):
    """Seconds that one inference takes."""
    began = time.monotonic()
    assert mcpd.infer("parrot", chat("hi"))[0] == 200
    return time.monotonic() - began


@pytest.fixture
def usual(tmp_path):
    """An mcpd whose agent exports nothing, to compare with."""
    folder = tmp_path / "usual"
    folder.mkdir()
    with Mcpd(folder) as mcpd, agent(folder, mcpd, [echo()]):
        yield mcpd


@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_collector_in_trouble_costs_a_task_nothing_and_the_exit_little(tmp_path, mcpd, usual, trouble):
    with TROUBLES[trouble]() as bad:
        url = f"http://127.0.0.1:{free_port()}" if trouble == "down" else bad.url
        variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_BSP_SCHEDULE_DELAY": "20"}
        variables["OTEL_EXPORTER_OTLP_PROTOCOL"] = "grpc" if "gRPC" in trouble else "http/protobuf"
        running = agent(tmp_path, mcpd, [echo()], **variables)
        if trouble != "down":
            wait_for("the first export", lambda: bad.asked)
        # In turns, so that what else the machine does meets both.
        pairs = [(timed(usual), timed(mcpd)) for _ in range(15)]
        began = time.monotonic()
        assert running.stop() == 0
        took = time.monotonic() - began
    # The fastest quarter knows least of a busy machine. A wait for the collector would be in every task.
    alone, troubled = (statistics.quantiles(times, n=4)[0] for times in zip(*pairs))
    print(f"{alone * 1000:.1f} ms, with a collector that is {trouble} {troubled * 1000:.1f} ms; exit {took:.1f} s")
    assert troubled < 2 * alone + 0.02
    assert took < 5, "3 s for the last spans, and the usual end"
    losses = running.log.count("ended with a loss")
    assert losses <= 1 if "slow" in trouble else losses == 1, "the loss is said once"


# Traces by the lower half of their ids, which is what a share goes by, and with what their callers decided.
LOW_YES, LOW_NO = ("1" * 16 + f"{1:016x}", "01"), ("2" * 16 + f"{1:016x}", "00")
HIGH_YES, HIGH_NO = ("3" * 16 + "f" * 16, "01"), ("4" * 16 + "f" * 16, "00")
CALLS = [LOW_YES, LOW_NO, HIGH_YES, HIGH_NO]


@pytest.mark.parametrize(
    ("sampler", "argument", "recorded"),
    [
        ("always_on", None, CALLS),
        ("always_off", None, []),
        ("traceidratio", "0.5", [LOW_YES, LOW_NO]),
        ("parentbased_always_on", None, [LOW_YES, HIGH_YES]),
        ("parentbased_always_off", None, [LOW_YES, HIGH_YES]),
        ("parentbased_traceidratio", "0", [LOW_YES, HIGH_YES]),
    ],
)
def test_a_sampler_decides_what_is_exported_and_the_provider_is_told(tmp_path, mcpd, tap, sampler, argument, recorded):
    variables = {"OTEL_TRACES_SAMPLER": sampler} | ({"OTEL_TRACES_SAMPLER_ARG": argument} if argument else {})
    with MockProvider(lambda r, _: r.json(200, completion("hi"))) as mock:
        with agent(tmp_path, mcpd, [mock.entry()], **tap.variables(**variables)) as running:
            for trace, flags in CALLS:
                assert traced(mcpd, "mock", chat("hi"), trace, flags)[0] == 200
        handed_on = [headers["traceparent"].split("-") for headers, _ in mock.asked]
    # The end of the agent was the end of the export, and metrics know no sampler.
    assert b"gen_ai.client.inference.duration" in tap.bytes
    wanted = [trace for trace, _ in recorded]
    assert [s.trace for s in tap.spans() if s.name == "process task"] == wanted
    assert {s.trace for s in tap.spans()} & {trace for trace, _ in CALLS} == set(wanted)
    assert [(trace, flags) for _, trace, _, flags in handed_on] == [
        (trace, "01" if trace in wanted else "00") for trace, _ in CALLS
    ]
    assert CALLER_SPAN not in [span for _, _, span, _ in handed_on]
    logged = [json.loads(line)["trace_id"] for line in running.log.splitlines() if '"task ended"' in line]
    assert logged == [trace for trace, _ in CALLS], "the log names every trace, recorded or not"


@pytest.mark.parametrize(
    ("sampler", "opened"), [("parentbased_always_on", 1), ("parentbased_always_off", 0), ("always_off", 0)]
)
def test_a_sampler_decides_also_about_traces_that_begin_in_the_agent(tmp_path, mcpd, tap, sampler, opened):
    with agent(tmp_path, mcpd, [echo()], **tap.variables(OTEL_TRACES_SAMPLER=sampler)):
        assert mcpd.infer("parrot", chat("hi"))[0] == 200
    assert [s.name for s in tap.spans()].count("open control channel") == opened


def test_a_sampler_that_is_not_one_is_a_warning_and_everything_is_exported(tmp_path, mcpd, tap):
    with agent(tmp_path, mcpd, [echo()], **tap.variables(OTEL_TRACES_SAMPLER="alwyas_off")) as running:
        assert traced(mcpd, "parrot", chat("hi"))[0] == 200
    warned = [line for line in running.log.splitlines() if "OTEL_TRACES_SAMPLER" in line]
    assert len(warned) == 1 and "parentbased_always_on is used" in warned[0], running.log
    assert [s.name for s in tap.spans()].count("process task") == 1


def test_a_disabled_sdk_exports_nothing_and_an_empty_propagator_hands_nothing_on(tmp_path, mcpd, tap):
    with MockProvider(lambda r, _: r.json(200, completion("hi"))) as mock:
        off = tap.variables(OTEL_SDK_DISABLED="true", OTEL_PROPAGATORS="none")
        with agent(tmp_path, mcpd, [mock.entry()], **off):
            assert traced(mcpd, "mock", chat("hi"))[0] == 200
        assert mock.asked[0][0]["traceparent"] is None and tap.bytes == b""

"""What one relayed inference looks like to collectors that are not ours."""

import json
import re
import subprocess

from collectors import CALLER_SPAN, CALLER_TRACE, CLIENT, CONSUMER, INTERNAL, Rotel, by_name, covered, traced
from mock_provider import MockProvider, chunk, completion
from processes import PEERS, TOKEN, agent, chat, echo, free_port, get, smol, wait_for

CALLER = f"00-{CALLER_TRACE}-{CALLER_SPAN}-01"
# Texts that must never leave, each with a mark that tells which one did.
PROMPT, ANSWER, FAILURE, KEY = "MARKER-prompt", "MARKER-answer", "MARKER-failure", "MARKER-api-key"
CAPTURE = {"OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": "true"}


def check_tree(spans, channel, task, model, provider, tokens):
    """The whole tree of a streamed inference, as telemetry.md draws it."""
    named = by_name(spans)
    root, inference, deliver = named["process task"], named[f"chat {model}"], named["deliver"]
    relay = task["traceparent"].split("-")[2]
    assert relay != CALLER_SPAN, "mcpd puts its own span into the task"
    tree = {s.name: (s.kind, s.parent) for s in spans}
    assert tree == {
        "process task": (CONSUMER, relay),
        "queue": (INTERNAL, root.id),
        f"chat {model}": (CLIENT, root.id),
        "deliver": (INTERNAL, root.id),
        "POST": (CLIENT, deliver.id),
    }
    once = [s.name for s in spans if s.name != "POST"]
    assert len(once) == len(set(once)), once
    assert {s.trace for s in spans} == {CALLER_TRACE}
    assert [s.name for s in spans if s.links] == [root.name]
    assert root.links == [(channel.trace, channel.id)] and channel.trace != CALLER_TRACE, "a link, and no parent"
    assert all((s.status, s.message) == (0, "") for s in [channel, *spans]), spans
    check_attributes(named, channel, task)
    check_inference(inference, model, provider, tokens)
    for post in (s for s in spans if s.name == "POST"):
        check_post(post, task)


def check_attributes(named, channel, task):
    """All that stands on the spans beside the inference and the POSTs: nothing more, so no usage and no error."""
    assert (channel.kind, channel.parent, channel.attributes) == (CLIENT, "", {})
    assert named["process task"].attributes == {
        "mcprelay.task.id": task["task"],
        "mcprelay.llm": task["llm"],
        "mcprelay.task.outcome": "ok",
    }
    assert named["queue"].attributes == {}
    assert named["deliver"].attributes.keys() == {
        "mcprelay.task.chunks", "mcprelay.deliver.posts", "mcprelay.deliver.longest_post"
    }  # fmt: skip


def check_inference(inference, model, provider, tokens):
    found = dict(inference.attributes)
    assert 0 < found.pop("gen_ai.response.time_to_first_chunk") < 30
    assert found.pop("gen_ai.usage.input_tokens") > 5
    assert found.pop("gen_ai.response.id").startswith("chatcmpl-")
    assert found.pop("gen_ai.response.model")
    # What the server took from its cache, a part of the prompt; and where the entry in config.json says that it is.
    assert found.pop("gen_ai.usage.cache_read.input_tokens", 0) <= inference.attributes["gen_ai.usage.input_tokens"]
    assert found.pop("server.address") == "127.0.0.1"
    assert 0 < found.pop("server.port") < 65536
    assert found == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": provider,
        "gen_ai.request.model": model,
        "gen_ai.request.max_tokens": tokens,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.stream": True,
        "gen_ai.response.finish_reasons": ["length"],
        "gen_ai.usage.output_tokens": tokens,
    }
    assert inference.events == ["first chunk"]


def check_post(post, task):
    url = post.attributes["url.full"]
    path = f"/api/v1/llms/_provider-task/{task['task']}/result"
    assert url.endswith((path, f"{path}-stream")), url
    # Only an upload has lines.
    lines = post.attributes.pop("mcprelay.deliver.lines", None)
    assert (lines is not None) == url.endswith("-stream")
    assert post.attributes == {
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "server.address": "127.0.0.1",
        "server.port": int(url.split("/")[2].split(":")[1]),
        "url.full": url,
    }


def test_one_trace_from_the_openai_sdk_through_mcpd_into_the_agents_spans(tmp_path, mcpd, tap, llama, openai_sdk):
    with agent(tmp_path, mcpd, [smol(llama)], **tap.variables()):
        stream = openai_sdk(mcpd).chat.completions.create(
            model="smol",
            messages=chat(PROMPT)["messages"],
            stream=True,
            max_tokens=12,
            temperature=0.5,
            extra_body={"ignore_eos": True},
            extra_headers={"traceparent": CALLER},
        )
        texts = [c.choices[0].delta.content for c in stream if c.choices and c.choices[0].delta.content]
        spans, channel = whole_trace(tap, mcpd)
    check_tree(spans, channel, mcpd.journal("task")[0], "smollm2", "llamacpp", tokens=12)
    delivery = by_name(spans)["deliver"].attributes
    assert delivery["mcprelay.task.chunks"] >= len(texts)
    # The first part, and the upload of all others.
    assert delivery["mcprelay.deliver.posts"] == 2


def whole_trace(tap, mcpd):
    """The spans of the caller's trace, with the first and the terminal POST of many and never one per token, and the channel's."""
    spans = tap.trace(CALLER_TRACE, spans=6)
    assert len(mcpd.journal("result") + mcpd.journal("line")) > 2
    return spans, next(s for s in tap.spans() if s.name == "open control channel")


def test_the_same_tree_reaches_a_grpc_collector(tmp_path, mcpd, tap, llama):
    """rotel takes it over gRPC and hands it on to the collector that can be asked."""
    with Rotel(tmp_path, onward=tap) as rotel:
        with agent(tmp_path, mcpd, [smol(llama)], **rotel.variables()):
            body = chat(PROMPT, stream=True, max_tokens=12, temperature=0.5, ignore_eos=True)
            assert traced(mcpd, "smol", body)[0] == 200
            spans, channel = whole_trace(tap, mcpd)
    check_tree(spans, channel, mcpd.journal("task")[0], "smollm2", "llamacpp", tokens=12)
    assert PROMPT.encode() not in tap.bytes


def test_the_provider_gets_the_span_of_the_inference_and_not_the_callers(tmp_path, mcpd, tap):
    with MockProvider(lambda r, _: r.json(200, completion("hi"))) as mock:
        with agent(tmp_path, mcpd, [mock.entry()], **tap.variables()):
            assert traced(mcpd, "mock", chat("hi"))[0] == 200
            inference = tap.wait_for_span("chat mock-model", CALLER_TRACE)
        headers, _ = mock.asked[0]
        assert headers["traceparent"] == f"00-{CALLER_TRACE}-{inference.id}-01"
        assert "gen_ai.usage.input_tokens" not in inference.attributes, "nothing is estimated"


def test_a_task_without_a_valid_parent_begins_a_trace_of_its_own(tmp_path, mcpd, tap):
    with agent(tmp_path, mcpd, [echo()], **tap.variables()):
        task = {"kind": "infer", "taskId": "alone", "llmName": "parrot", "streaming": False}
        task |= {"request": chat("hi"), "traceparent": "00-0-0-01"}
        mcpd.fault("task,json=" + json.dumps(task))
        spans = wait_for("its root", lambda: [s for s in tap.spans() if s.name == "process task"])
        assert spans[0].parent == "" and spans[0].trace.strip("0")


def speak_markers(request, body):
    """Answers, fails, or fails in the middle, each time with a text that must not leave."""
    wish = body["messages"][0]["content"]
    if "refuse" in wish:
        request.json(400, {"error": {"message": f"{FAILURE}: {wish}", "type": "invalid_request_error"}})
    elif "break" in wish:
        request.stream([chunk(ANSWER), {"error": {"message": FAILURE}}])
    elif body.get("stream"):
        request.stream([chunk(ANSWER), chunk(" two"), chunk(finish="stop"), "[DONE]"])
    else:
        request.json(200, completion(ANSWER))


WISHES = {"plain": False, "streamed": True, "refuse": False, "break": True}


def run_markers(tmp_path, mcpd, mock, **variables):
    """Runs each wish in a trace of its own, and stops the agent."""
    entry = mock.entry(apiKeyEnv="MOCK_KEY")
    with agent(tmp_path, mcpd, [entry], MOCK_KEY=KEY, **variables) as running:
        replies = [
            traced(mcpd, "mock", chat(f"{PROMPT} {wish}", stream=streaming), f"{number:032x}")
            for number, (wish, streaming) in enumerate(WISHES.items(), 1)
        ]
        assert all(FAILURE in text or ANSWER in text for _, text in replies), replies
        assert mock.asked[0][0]["Authorization"] == f"Bearer {KEY}"
    return running.log


def test_without_the_opt_in_no_byte_of_content_is_exported(tmp_path, mcpd, tap):
    with MockProvider(speak_markers) as mock:
        run_markers(tmp_path, mcpd, mock, **tap.variables())
        spans = [s for s in tap.spans() if s.name == "process task"]
        assert len(spans) == len(WISHES) and sum(s.status == 2 for s in spans) == 2, spans
        assert b"MARKER" not in tap.bytes, re.findall(rb".{30}MARKER.{10}", tap.bytes)
        assert b"gen_ai.client.inference.duration" in tap.bytes, "the metrics were among the bytes"


def test_with_the_opt_in_prompt_answer_and_error_are_recorded(tmp_path, mcpd, tap):
    with MockProvider(speak_markers) as mock:
        run_markers(tmp_path, mcpd, mock, **tap.variables(**CAPTURE))
    traces = {wish: by_name(tap.trace(f"{n:032x}")) for n, wish in enumerate(WISHES, 1)}
    for wish, spans in traces.items():
        heard = json.loads(spans["chat mock-model"].attributes["gen_ai.input.messages"])
        assert heard == [{"role": "user", "parts": [{"type": "text", "content": f"{PROMPT} {wish}"}]}]
    for wish, said in {"plain": ANSWER, "streamed": ANSWER + " two"}.items():
        message = json.loads(traces[wish]["chat mock-model"].attributes["gen_ai.output.messages"])[0]
        assert message["parts"] == [{"type": "text", "content": said}] and message["finish_reason"] == "stop"
    for wish in ("refuse", "break"):
        assert FAILURE in traces[wish]["process task"].message
    assert KEY.encode() not in tap.bytes and TOKEN.encode() not in tap.bytes


def test_the_loudest_log_shows_no_prompt_no_answer_and_no_credential(tmp_path, mcpd, tap):
    with MockProvider(speak_markers) as mock:
        log = run_markers(tmp_path, mcpd, mock, RUST_LOG="trace", **tap.variables())
    assert "task ended" in log and '"level":"DEBUG"' in log
    shown = [line for line in log.splitlines() if any(text in line for text in (PROMPT, ANSWER, KEY))]
    assert not shown, shown[:3]
    # Why a provider broke off is the owner's to know; what it said of a refused request may quote the prompt.
    ends = [json.loads(line) for line in log.splitlines() if '"task ended"' in line]
    reasons = [end["reason"] for end in ends if end["level"] == "WARN"]
    assert len(reasons) == 2 and reasons[0].startswith("status 400, invalid_request_error") and FAILURE in reasons[1]
    assert sum(FAILURE in line for line in log.splitlines()) == 1


def test_one_line_tells_a_tasks_end_with_its_trace(tmp_path, mcpd, tap):
    with agent(tmp_path, mcpd, [echo()], **tap.variables()) as running:
        assert traced(mcpd, "parrot", chat("hi"))[0] == 200
    ends = [json.loads(line) for line in running.log.splitlines() if '"task ended"' in line]
    assert [(e["level"], e["trace_id"], e["outcome"]) for e in ends] == [("INFO", CALLER_TRACE, "ok")]
    assert ends[0]["task_id"] == mcpd.journal("task")[0]["task"]


def test_the_spans_of_the_last_task_survive_sigterm(tmp_path, mcpd, tap):
    slow = {"OTEL_BSP_SCHEDULE_DELAY": "60000", "OTEL_METRIC_EXPORT_INTERVAL": "60000"}
    running = agent(tmp_path, mcpd, [echo(tokenDelayMs=30)], **tap.variables(**slow))
    caller = subprocess.Popen(
        ["curl", "-sS", "-N", "-H", f"Authorization: Bearer {TOKEN}", "-H", f"traceparent: {CALLER}"]
        + ["-d", json.dumps(chat("word " * 20, stream=True)), f"{mcpd.url}/api/v1/llms/parrot/infer"],
        stdout=subprocess.PIPE,
        text=True,
    )
    wait_for("the task", lambda: running.status()["tasks"])
    assert running.stop() == 0
    assert caller.communicate()[0].rstrip().endswith("[DONE]")
    named = by_name(tap.trace(CALLER_TRACE))
    assert {"process task", "queue", "chat parrot", "deliver", "POST"} <= named.keys()
    assert named["process task"].attributes["mcprelay.task.outcome"] == "ok"
    assert any(line.get("name") == "gen_ai.client.inference.duration" for line in tap.lines())


def test_in_a_paced_inference_the_children_explain_the_roots_duration(tmp_path, mcpd, tap):
    words = [chunk(f"word{n} ") for n in range(9)] + [chunk(finish="stop")]
    with MockProvider(lambda r, _: r.stream([*words, "[DONE]"], pause=0.045)) as mock:
        with agent(tmp_path, mcpd, [mock.entry()], **tap.variables()):
            assert traced(mcpd, "mock", chat("hi", stream=True))[0] == 200
            spans = tap.trace(CALLER_TRACE)
    root = by_name(spans)["process task"]
    assert 0.45e9 < root.ended - root.began < 2e9
    share = covered(root, [s for s in spans if s.parent == root.id])
    assert share >= 0.95, f"{share:.3f} of the root is explained by {spans}"


def test_a_post_that_a_retry_healed_is_an_error_of_its_own_only(tmp_path, mcpd, tap):
    with agent(tmp_path, mcpd, [echo()], **tap.variables()):
        mcpd.fault("answer,call=result,status=503")
        assert traced(mcpd, "parrot", chat("hi"))[0] == 200
        spans = tap.trace(CALLER_TRACE)
    posts = sorted((s for s in spans if s.name == "POST"), key=lambda s: s.began)
    assert [(p.status, p.attributes.get("error.type")) for p in posts] == [(2, "503"), (0, None)]
    assert posts[1].attributes["http.request.resend_count"] == 1
    assert all(s.status == 0 for s in spans if s.name != "POST"), spans


def test_a_caller_who_leaves_is_no_error(tmp_path, mcpd, tap):
    with agent(tmp_path, mcpd, [echo(tokenDelayMs=50)], **tap.variables()) as running:
        command = ["curl", "-sS", "-N", "-H", f"Authorization: Bearer {TOKEN}", "-H", f"traceparent: {CALLER}"]
        command += ["-d", json.dumps(chat("word " * 500, stream=True)), f"{mcpd.url}/api/v1/llms/parrot/infer"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as caller:
            wait_for("the task", lambda: running.status()["tasks"])
            caller.kill()
        spans = tap.trace(CALLER_TRACE)
    assert all(s.status == 0 and "error.type" not in s.attributes for s in spans if s.name != "POST"), spans
    root = by_name(spans)["process task"].attributes
    assert (root["mcprelay.task.outcome"], root["mcprelay.task.cancel_reason"]) == ("cancelled", "caller_gone")


def test_the_metrics_page_passes_promtool_and_no_label_carries_an_id(tmp_path, mcpd, llama):
    port = free_port()
    listen = ["--metrics-listen", f"127.0.0.1:{port}"]
    with agent(tmp_path, mcpd, [smol(llama), echo()], *listen) as running:
        for name in ("smol", "parrot"):
            assert traced(mcpd, name, chat("hi", stream=True, max_tokens=4))[0] == 200
        assert mcpd.infer("smol", chat("word " * 900))[0] == 400
        mcpd.fault("drop")
        status, page = get(f"http://127.0.0.1:{port}/metrics")
        state = running.status()
    assert status == 200
    checked = subprocess.run([PEERS / "promtool", "check", "metrics"], input=page, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    ids = [e["task"] for e in mcpd.journal("task")] + [state["providerSessionId"], CALLER_TRACE]
    ids += [s["sessionId"] + '"' for s in state["sessions"]] + [llm["id"] for llm in mcpd.llms().values()]
    assert len(ids) >= 6 and not [i for i in ids if i in page]
    labels = {label for line in page.splitlines() if not line.startswith("#") for label in re.findall(r'(\w+)="', line)}
    assert labels <= {
        "error_type", "gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model", "gen_ai_token_modality",
        "http_request_method", "http_response_status_code", "le", "mcprelay_link_state", "mcprelay_link_trouble", "mcprelay_llm", "mcprelay_provider_state",
        "mcprelay_task_outcome", "server_address", "server_port", "service_name", "service_version",
        "telemetry_sdk_language", "telemetry_sdk_name", "telemetry_sdk_version", "otel_scope_name", "otel_scope_version",
    }  # fmt: skip

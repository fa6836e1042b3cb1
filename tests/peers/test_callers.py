"""Callers that are not ours (OpenAI's SDK, curl) reach a real model through fake-mcpd and the agent."""

import json
import subprocess
import time

import openai
import pytest
from processes import TOKEN, chat, wait_for

# A prompt that the model's 256 tokens cannot hold.
TOO_LONG = "word " * 900


# A model that may end its answer when it likes makes no test: llama.cpp goes on to max_tokens, and always with the same tokens.
STEADY = {"ignore_eos": True, "temperature": 0}


def ask(stack, prompt, **more):
    messages = [{"role": "user", "content": prompt}]
    return stack.sdk.chat.completions.create(model="smol", messages=messages, extra_body=STEADY, **more)


def curl(stack, body, *arguments, path="/api/v1/llms/smol/infer"):
    command = ["curl", "-sS", "-N", "-H", f"Authorization: Bearer {TOKEN}", *arguments]
    command += ["-d", json.dumps({**STEADY, **body}), stack.mcpd.url + path]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_the_sdk_gets_a_whole_answer_with_the_models_own_usage(stack):
    answer = ask(stack, "Say hi", max_tokens=8)
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason in ("length", "stop")
    assert answer.usage.prompt_tokens > 5 and answer.usage.completion_tokens <= 8


def test_the_sdk_streams_token_by_token_and_sees_no_usage_it_did_not_ask_for(stack):
    chunks = list(ask(stack, "Count to ten", max_tokens=12, stream=True))
    texts = [c.choices[0].delta.content for c in chunks if c.choices and c.choices[0].delta.content]
    assert len(texts) > 2, chunks
    assert chunks[-1].choices[0].finish_reason in ("length", "stop")
    assert all(c.usage is None for c in chunks)


def test_the_sdk_gets_the_usage_chunk_when_it_asks_for_it(stack):
    options = {"include_usage": True}
    chunks = list(ask(stack, "Say hi", max_tokens=4, stream=True, stream_options=options))
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 4
    assert [c.usage for c in chunks[:-1]] == [None] * (len(chunks) - 1)


def test_llama_cpps_own_fields_survive(stack):
    answer = ask(stack, "Say hi", max_tokens=2)
    assert "timings" in answer.model_extra, "llama.cpp's extension to the body"


@pytest.mark.parametrize("streaming", [False, True])
def test_a_context_overflow_stays_a_400_with_llama_cpps_words(stack, streaming):
    with pytest.raises(openai.BadRequestError) as caught:
        list(ask(stack, TOO_LONG, stream=streaming))
    assert caught.value.status_code == 400
    assert caught.value.body["type"] == "exceed_context_size_error", caught.value.body


@pytest.mark.parametrize("streaming", [False, True])
def test_a_caller_who_leaves_in_the_middle_stops_the_model_at_once(stack, streaming):
    before = stack.llama.log.count("cancel task")
    with subprocess.Popen(
        ["curl", "-sS", "-N", "-H", f"Authorization: Bearer {TOKEN}", stack.mcpd.url + "/v1/chat/completions"]
        + ["-d", json.dumps(chat("Count to a thousand", model="smol", stream=streaming, ignore_eos=True))],
        stdout=subprocess.DEVNULL,
    ) as caller:
        wait_for("the task's start", lambda: stack.agent.provider("smol")["running"] == 1)
        wait_for("the model's start", lambda: "processing task" in stack.llama.log.rsplit("all slots are idle", 1)[-1])
        caller.kill()
    left = time.monotonic()
    wait_for("llama.cpp's cancel", lambda: stack.llama.log.count("cancel task") > before)
    assert time.monotonic() - left < 3, "llama.cpp looks for a lost client about once a second"
    wait_for("the slot", lambda: stack.agent.provider("smol")["running"] == 0)
    assert stack.agent.status()["recent"][0]["outcome"] == "cancelled"


def test_curl_gets_more_than_one_chunk_and_done(stack):
    reply = curl(stack, chat("Count to ten", stream=True, max_tokens=8))
    events = [line for line in reply.stdout.splitlines() if line]
    assert len(events) > 3 and events[-1] == "data: [DONE]", reply
    assert all(json.loads(e.removeprefix("data: "))["choices"] for e in events[:-1])


def test_curl_sees_the_first_chunk_long_before_the_last(stack):
    """Nothing on the way holds a stream back until it ends."""
    command = ["curl", "-sS", "-N", "-H", f"Authorization: Bearer {TOKEN}"]
    command += ["-d", json.dumps(chat("one two three four", stream=True))]
    command += [stack.mcpd.url + "/api/v1/llms/smol/infer"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as caller:
        caller.stdout.readline()
        first = time.monotonic()
        caller.stdout.read()
        assert time.monotonic() - first > 0.05


def test_curl_gets_a_whole_answer_without_stream(stack):
    reply = curl(stack, chat("Say hi", max_tokens=4), "-w", " %{http_code} %{content_type}")
    body, status, kind = reply.stdout.rsplit(" ", 2)
    assert (status, kind) == ("200", "application/json"), reply
    assert json.loads(body)["object"] == "chat.completion"


def test_an_unknown_llm_is_a_404_of_mcpd(stack):
    with pytest.raises(openai.NotFoundError):
        stack.sdk.chat.completions.create(model="nobody", messages=chat("hi")["messages"])


def test_the_sdk_lists_the_virtual_llms_as_models(stack):
    assert sorted(m.id for m in stack.sdk.models.list()) == ["parrot", "smol"]


def test_many_callers_at_once_share_the_model(stack):
    callers = [
        subprocess.Popen(
            ["curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", "-H", f"Authorization: Bearer {TOKEN}"]
            + ["-d", json.dumps(chat("Say hi", max_tokens=3)), stack.mcpd.url + "/api/v1/llms/smol/infer"],
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(8)
    ]
    assert [c.communicate(timeout=60)[0] for c in callers] == ["200"] * 8

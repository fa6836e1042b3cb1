"""Ordinary gRPC tools on the agent's socket."""

import json
import queue
import re
import subprocess
import sys
from pathlib import Path

import grpc
from google.protobuf import descriptor_pool, message_factory
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from processes import Agent, Process, chat, wait_for, write_home

SERVICES = ["grpc.health.v1.Health", "mcprelay.bridge.v1.BridgeService"]
# Both would send the socket's path, percent-encoded, as the authority, which HTTP/2 servers in Rust refuse.
AUTHORITY = ("grpc.default_authority", "localhost")


def grpcurl(stack, *arguments):
    command = [Path(sys.executable).with_name("grpcurl"), "-plaintext", "-unix", "-authority", "localhost"]
    return subprocess.run([*command, stack.agent.socket, *arguments], capture_output=True, text=True, timeout=30)


def channel(stack):
    return grpc.insecure_channel(f"unix://{stack.agent.socket}", options=[AUTHORITY])


def test_grpcurl_lists_the_services(stack):
    listed = grpcurl(stack, "list")
    assert set(SERVICES) <= set(listed.stdout.split()), listed


def test_grpcurl_sees_that_the_agent_serves(stack):
    for service in ("", SERVICES[1]):
        command = [Path(sys.executable).with_name("grpcurl"), "-plaintext", "-unix", "-authority", "localhost"]
        command += ["-d", json.dumps({"service": service}), stack.agent.socket, "grpc.health.v1.Health/Check"]
        reply = subprocess.run(command, capture_output=True, text=True, timeout=30)
        assert json.loads(reply.stdout)["status"] == "SERVING", reply


def test_grpcurl_describes_the_session(stack):
    described = grpcurl(stack, "describe", "mcprelay.bridge.v1.BridgeService.Session")
    assert "stream .mcprelay.bridge.v1.SessionRequest" in described.stdout, described


def test_a_python_client_needs_no_proto_file(stack):
    """It takes the descriptors from the agent's reflection, and publishes a provider with them."""
    with channel(stack) as open_channel:
        pool = descriptor_pool.DescriptorPool(ProtoReflectionDescriptorDatabase(open_channel))
        service = pool.FindServiceByName(SERVICES[1])
        watch = service.methods_by_name["WatchStatus"]
        request = message_factory.GetMessageClass(watch.input_type)
        reply = message_factory.GetMessageClass(watch.output_type)
        call = open_channel.unary_stream(
            f"/{SERVICES[1]}/WatchStatus", request.SerializeToString, reply.FromString
        )
        status = next(call(request(), timeout=20))
        assert {"smol", "parrot"} <= {p.provider.name for p in status.providers}, status


def test_a_python_client_serves_an_inference(stack):
    with channel(stack) as open_channel:
        pool = descriptor_pool.DescriptorPool(ProtoReflectionDescriptorDatabase(open_channel))
        session = pool.FindServiceByName(SERVICES[1]).methods_by_name["Session"]
        request = message_factory.GetMessageClass(session.input_type)
        reply = message_factory.GetMessageClass(session.output_type)
        call = open_channel.stream_stream(f"/{SERVICES[1]}/Session", request.SerializeToString, reply.FromString)
        outgoing = queue.Queue(maxsize=16)
        replies = call(iter(outgoing.get, None), timeout=60)
        outgoing.put(request(hello={"client_id": "python", "client_version": "1", "max_message_bytes": 1 << 20}))
        provider = {"name": "snake", "type": "python", "model": "m", "publish": True}
        outgoing.put(request(provider_snapshot={"generation": 1, "providers": [provider]}))
        wait_for_payload(replies, "provider_snapshot_result")
        wait_for("the row", lambda: stack.mcpd.is_active("snake"))
        caller = subprocess.Popen(
            ["curl", "-sS", "-H", "Authorization: Bearer " + stack.sdk.api_key, "-d", '{"messages":[]}']
            + [stack.mcpd.url + "/api/v1/llms/snake/infer"],
            stdout=subprocess.PIPE,
            text=True,
        )
        offer = wait_for_payload(replies, "task_offer").task_offer
        result = {"content": "hiss", "finish_reason": "stop"}
        outgoing.put(request(task_finished={"task_id": offer.task_id, "result": result}))
        body = json.loads(caller.communicate(timeout=30)[0])
        assert body["choices"][0]["message"]["content"] == "hiss", body
        outgoing.put(request(drain={"reason": "done"}))
        outgoing.put(None)
        wait_for("the withdrawal", lambda: not stack.mcpd.is_active("snake"))


def wait_for_payload(replies, wanted):
    for message in replies:
        if message.WhichOneof("payload") == wanted:
            return message
    raise AssertionError(f"the session ended without a {wanted}")


def test_the_guides_python_program_publishes_a_provider_and_answers(mcpd, tmp_path):
    guide = Path(__file__).parents[2] / "docs/guides/connecting-mcplocal.md"
    program = tmp_path / "publish.py"
    program.write_text(re.search(r"```python\n(# publish\.py\n.*?)```", guide.read_text(), re.DOTALL)[1])
    home = write_home(tmp_path / ".mcpctl", mcpd, [])
    with Agent(home), Process([sys.executable, program], tmp_path / "publish.log", HOME=str(tmp_path)):
        wait_for("the provider to be listed", lambda: mcpd.is_active("python"))
        status, text = wait_for("an answer", lambda: answered(mcpd.infer("python", chat("hello"))))
    assert json.loads(text)["choices"][0]["message"]["content"] == "HELLO", (status, text)


def answered(reply):
    return reply if reply[0] == 200 else None

"""What the tests share. llama.cpp runs once for all; an agent and its mcpd once for each file, or for a test of its own."""

import types

import openai
import pytest
from collectors import Oteltap
from processes import TOKEN, Agent, Llama, Mcpd, echo, smol, wait_for, write_home


@pytest.fixture(scope="session")
def llama(tmp_path_factory):
    with Llama(tmp_path_factory.mktemp("llama")) as server:
        yield server


@pytest.fixture(scope="module")
def stack(tmp_path_factory, llama):
    """fake-mcpd and an agent that publishes the real model and the embedded one, and not a third."""
    folder = tmp_path_factory.mktemp("stack")
    with Mcpd(folder) as mcpd:
        hidden = {"name": "hidden", "type": "echo", "model": "parrot"}
        home = write_home(folder / "home", mcpd, [smol(llama), echo(), hidden])
        with Agent(home) as agent:
            wait_for("both to be listed", lambda: mcpd.is_active("smol") and mcpd.is_active("parrot"))
            agent.wait_online()
            yield types.SimpleNamespace(mcpd=mcpd, agent=agent, llama=llama, sdk=sdk(mcpd))


@pytest.fixture
def mcpd(tmp_path):
    """A fake-mcpd for one test."""
    with Mcpd(tmp_path) as server:
        yield server


@pytest.fixture
def tap(tmp_path):
    """A collector for one test."""
    with Oteltap(tmp_path) as collector:
        yield collector


def sdk(mcpd):
    return openai.OpenAI(base_url=f"{mcpd.url}/v1", api_key=TOKEN, max_retries=0)


@pytest.fixture
def openai_sdk():
    return sdk

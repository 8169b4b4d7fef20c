"""MCP servers as tool sources, against real servers written with the `mcp` package."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio
from adapter_plays import play, task_of

from agentrl.config import RolloutConfig
from agentrl.environment import Episode
from agentrl.envs.adapters.mcp_tools import McpEpisodes, McpTools, as_text, mcp_tools
from agentrl.errors import ConfigError, EnvironmentFailure
from agentrl.records import Task
from agentrl.rollout.pool import EnvPool

SERVER = Path(__file__).parent / "mcp_server.py"
EXAMPLE = Path(__file__).parents[3] / "examples/adapters/mcp_calculator.py"
COMMAND = [sys.executable, str(SERVER), "stdio"]
REWARDS = f"{Path(__file__).parent / 'mcp_rewards.py'}:said_sum"


@contextlib.contextmanager
def tools_of(server=tuple(COMMAND), **options):
    """The tools of a server by name, and what holds them."""
    held = McpTools(server, **{"timeout_s": 60, "start_timeout_s": 60, **options})
    try:
        yield {tool.name: tool.call for tool in held.toolbox()}, held
    finally:
        held.close()


def has_ended(watched, wait_s=20.0):
    """Whether a watched process ends within a time."""
    return bool(select.select([watched], [], [], wait_s)[0])


@pytest.fixture(scope="module")
def url():
    """A real server behind streamable HTTP."""
    process = subprocess.Popen([sys.executable, str(SERVER), "http"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}/mcp"
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def test_schemas_pass_through_and_results_become_text():
    with tools_of() as (tools, held):
        schema = {tool.name: tool for tool in held.toolbox()}["add"]
        assert schema.description == "Add numbers up."
        assert schema.parameters["properties"]["terms"] == {"items": {"type": "integer"}, "title": "Terms", "type": "array"}
        assert schema.parameters["required"] == ["terms"]
        assert json.loads(tools["add"](terms=[1, 2], scale=3)) == {"total": 9, "terms": [1, 2]}
        assert tools["picture"]().startswith("[image not shown: image/png, ")
        assert len(tools["long"](size=300_000)) == 300_000


def test_structured_content_stands_in_for_text():
    def result(*content, structured=None):
        return SimpleNamespace(content=list(content), structured_content=structured)

    text, link = SimpleNamespace(type="text", text="two"), SimpleNamespace(type="resource_link", uri="file:///a")
    blob = SimpleNamespace(type="resource", resource=SimpleNamespace(uri="file:///b", blob="AA=="))
    assert as_text(result(structured={"total": 2})) == '{"total": 2}'
    assert as_text(result(text, structured={"total": 2})) == "two"
    assert as_text(result(link, blob)) == "[resource: file:///a]\n[a resource that is no text is not shown: file:///b]"
    assert as_text(result()) == ""


def test_what_a_tool_calls_an_error_can_be_read():
    with tools_of() as (tools, _):
        with pytest.raises(Exception, match="fail") as caught:
            tools["fail"]()
        assert not isinstance(caught.value, EnvironmentFailure)
        assert json.loads(tools["add"](terms=[1]))["total"] == 1


def test_episodes_share_nothing_and_stderr_stays_out():
    with tools_of() as (first, _), tools_of() as (second, _):
        assert first["note"](text="mine") == "mine"
        assert second["note"](text="other") == "other"


def test_a_shared_server_is_asked_for_by_name(tmp_path):
    with tools_of(shared=True, folder=str(tmp_path)) as (first, _), tools_of(shared=True, folder=str(tmp_path)) as (second, _):
        answers: list[str] = []
        threads = [threading.Thread(target=lambda tool=tool: answers.append(tool["note"](text="x"))) for tool in (first, second) * 4]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert max(answers, key=len) == "; ".join("x" * 8)
        with pytest.raises(EnvironmentFailure):
            first["die"]()
    with tools_of(shared=True, folder=str(tmp_path)) as (tools, _):
        assert tools["note"](text="again") == "again"
        with contextlib.suppress(EnvironmentFailure):
            tools["die"]()


@pytest.mark.parametrize(
    ("tool", "arguments", "why"),
    [
        ("hang", {}, "tool hang: it took longer than 1 s"),
        ("die", {}, "tool die: .*[Cc]onnection closed"),
        ("junk", {"lines": 20_000, "size": 9}, "10000 lines that are no JSON-RPC"),
        ("flood", {}, "a line of more than 16777216 bytes"),
        ("flood", {"stderr": True}, "took longer than 1 s"),
    ],
)
def test_a_server_that_misbehaves_makes_the_episode_unscorable(tool, arguments, why, capfd):
    with tools_of() as (tools, held):
        watched = os.pidfd_open(int(tools["pid"]().split()[0]))
        held._timeout_s = 1 if "1 s" in why else 60  # of what never answers alone: a busy machine may take longer over the rest
        with pytest.raises(EnvironmentFailure, match=why):
            tools[tool](**arguments)
        with pytest.raises(EnvironmentFailure, match="is gone"):
            tools["note"](text="too late")
        assert has_ended(watched)
        os.close(watched)
    logged = capfd.readouterr()
    assert not logged.out
    assert len(logged.err) < 100_000


def test_a_server_that_stops_reading_holds_nothing_up():
    with tools_of() as (tools, held):
        stopped = int(tools["pid"]().split()[0])
        watched = os.pidfd_open(stopped)
        os.kill(stopped, signal.SIGSTOP)
        held._timeout_s = 1
        with pytest.raises(EnvironmentFailure, match="took longer than 1 s"):
            tools["note"](text="x" * 4_000_000)
        assert has_ended(watched)
        os.close(watched)


def test_some_junk_is_passed_over():
    with tools_of() as (tools, _):
        assert tools["junk"](lines=100, size=1000) == "done"
        assert tools["note"](text="still here") == "still here"


@pytest.mark.parametrize(
    ("command", "why"),
    [
        (["/no/such/program"], "No such file"),
        ([sys.executable, "-c", "import sys; sys.exit('what a pity')"], "what a pity"),
        ([sys.executable, "-c", "import threading; threading.Event().wait()"], "longer than 1 s"),
        (["cat"], "did not start"),
    ],
)
def test_a_server_that_does_not_start_says_why(command, why):
    with pytest.raises(EnvironmentFailure, match=why):
        McpTools(command, start_timeout_s=1 if "1 s" in why else 60).toolbox()


def test_closing_ends_the_server_and_what_it_started():
    with tools_of() as (tools, held):
        server, child = map(int, tools["pid"]().split())
        watched = [os.pidfd_open(server), os.pidfd_open(child)]
        held.close()
        assert all(map(has_ended, watched))
        for descriptor in watched:
            os.close(descriptor)


def test_secrets_of_this_process_stay_here(monkeypatch):
    monkeypatch.setenv("MCP_TEST_SECRET", "hush")
    with tools_of() as (tools, _):
        assert tools["variable"](name="MCP_TEST_SECRET") == "(none)"
    with tools_of(environment={"MCP_TEST_SECRET": "passed"}) as (tools, _):
        assert tools["variable"](name="MCP_TEST_SECRET") == "passed"


def test_http(url):
    with tools_of(url, headers={"Authorization": "Bearer x"}) as (tools, held):
        assert json.loads(tools["add"](terms=[2, 3]))["total"] == 5
        with pytest.raises(Exception, match="fail"):
            tools["fail"]()
        assert {tool.name for tool in held.toolbox()} >= {"add", "hang", "picture"}
    with tools_of(url, timeout_s=1) as (tools, _), pytest.raises(EnvironmentFailure, match="took longer than 1 s"):
        tools["hang"]()
    with tools_of(url) as (tools, _):
        assert "picture" in tools


def test_http_without_a_server():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(EnvironmentFailure, match="did not start"):
        McpTools(f"http://127.0.0.1:{port}/mcp", start_timeout_s=20).toolbox()


def test_only_some_tools():
    with tools_of(only=["add"]) as (tools, _):
        assert list(tools) == ["add"]
    with pytest.raises(ConfigError, match="has no tool missing; it has: note, add"), tools_of(only=["missing"]):
        pass


@pytest.fixture
def rows(tmp_path):
    """A file of rows."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"{n}+1=?", "answer": n + 1}) + "\n" for n in range(40)))
    return str(path)


def test_rows_with_tools(rows):
    environment = mcp_tools(" ".join(COMMAND), dataset=rows, rewards=REWARDS, only="add")
    assert isinstance(environment, McpEpisodes)
    assert (len(environment.tasks("train")), len(environment.tasks("eval"))) == (38, 2)
    task = Task.from_row("rows", environment.tasks("eval")[0])
    try:
        prompt = environment.start(task)
        assert prompt == [{"role": "user", "content": "0+1=?"}]
        (add,) = environment.toolbox()
        said = json.loads(add.call(terms=[0, 1]))["total"]
    finally:
        environment.close()
    messages = [*prompt, {"role": "assistant", "content": str(said)}]
    episode = Episode(task=task, prompt=prompt, messages=messages, completion_ids=[1], ending="complete")
    score = trio.run(environment.score, episode)
    assert (score.value, dict(score.parts)) == (1.0, {"said_sum": 1.0})


@pytest.mark.parametrize(
    ("server", "options", "why"),
    [
        ("http://127.0.0.1:1/mcp", {}, "say shared=true"),
        ("", {}, "neither a command line nor a URL"),
        ("python 'unclosed", {}, "no command line"),
        ("python x.py", {"pass_env": "MCP_NO_SUCH_VARIABLE"}, "no environment variable 'MCP_NO_SUCH_VARIABLE'"),
    ],
)
def test_wrong_arguments(rows, server, options, why):
    with pytest.raises(ConfigError, match=why):
        mcp_tools(server, dataset=rows, rewards=REWARDS, **options)


def test_the_example_is_played():
    spec = f"{EXAMPLE}:Calculator"
    task = task_of(spec)
    a, b = re.findall(r"[0-9]+", task.row["prompt"][0]["content"])
    call = f'<tool_call>{{"name": "multiply", "arguments": {{"a": {a}, "b": {b}}}}}</tool_call>'
    (rollout,) = play(spec, [task], (call, f"The answer is {int(a) * int(b)}."))
    assert (rollout.score.value, rollout.reason) == (1.0, "")
    assert [message["content"] for message in rollout.messages if message["role"] == "tool"] == [str(int(a) * int(b))]


def test_rows_are_played(rows):
    spec = f"mcp:{' '.join(COMMAND)}?dataset={rows}&rewards={REWARDS}&only=add"
    call = '<tool_call>{"name": "add", "arguments": {"terms": [1, 1]}}</tool_call>'
    right, wrong = play(spec, [task_of(spec)] * 2, (call, "2"), ("3",))
    assert (right.score.value, wrong.score.value) == (1.0, 0.0)
    assert json.loads(next(message["content"] for message in right.messages if message["role"] == "tool"))["total"] == 2


@pytest.mark.parametrize("how", ["in good order", "by a kill of its guardian"])
def test_no_server_outlives_its_worker(rows, tmp_path, how):
    """Through the pool, by spec: the model's call reaches the server, and whatever ends the worker ends it, too."""
    spec = f"mcp:{' '.join(COMMAND)}?dataset={rows}&rewards={REWARDS}"
    task = Task.from_row("rows", {"prompt": "1+1=?", "answer": 2})

    async def main():
        async with EnvPool(spec, [], RolloutConfig(env_workers=1), logs=tmp_path) as pool:
            session = await pool.open(task)
            assert [tool["function"]["name"] for tool in session.opened.tools][:2] == ["note", "add"]
            answer = await session.call_tool("add", {"terms": "[1, 1]"})
            assert json.loads(answer.text)["total"] == 2
            failed = await session.call_tool("fail", {})
            assert failed.error
            watched = [os.pidfd_open(int(pid)) for pid in (await session.call_tool("pid", {})).text.split()]
            if how != "in good order":
                os.kill(pool._ready[0]._host.pid, signal.SIGKILL)
                with pytest.raises(EnvironmentFailure, match="died"):
                    await session.call_tool("hang", {})
            return watched

    watched = trio.run(main)
    assert all(map(has_ended, watched))
    for descriptor in watched:
        os.close(descriptor)

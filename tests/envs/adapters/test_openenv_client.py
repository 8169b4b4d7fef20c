"""The OpenEnv adapter against real servers, written with openenv's own server API, and behind a proxy that spoils things."""

from __future__ import annotations

import contextlib
import json
import subprocess
import threading
from pathlib import Path

import pytest
import trio
from adapter_pythons import openenv_python
from cut_proxy import CutProxy

from agentrl.config import RolloutConfig
from agentrl.environment import Episode
from agentrl.envs.adapters.openenv_client import action_schema, filled, observed, openenv_client
from agentrl.envs.adapters.openenv_socket import ActionRefused
from agentrl.errors import ConfigError, EnvironmentFailure
from agentrl.records import Task
from agentrl.rollout.pool import EnvPool

SERVER = Path(__file__).parent / "openenv_server.py"


@contextlib.contextmanager
def server_of(kind, *, slots=4):
    """A real server; gives its port."""
    process = subprocess.Popen([openenv_python(), str(SERVER), kind, str(slots)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    try:
        yield int(process.stdout.readline())
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture(scope="module")
def number():
    """A server of a game of numbers."""
    with server_of("number") as port:
        yield port


@contextlib.contextmanager
def episode_on(url, *, seed=3, start=True, **options):
    """An environment whose episode has begun."""
    environment = openenv_client(url, **{"timeout_s": 60, **options})
    try:
        if start:
            environment.start(Task.from_row("openenv", {"reset": {"seed": seed}}))
        yield environment
    finally:
        environment.close()


def local(port):
    return f"http://127.0.0.1:{port}"


def scored(environment):
    task = Task.from_row("openenv", {})
    return environment.score(Episode(task=task, prompt="", messages=[], completion_ids=[], ending="complete"))


@pytest.mark.adapters
def test_typed_actions_are_a_tool(number):
    with episode_on(local(number), start=False) as environment:
        task = Task.from_row("openenv", {"prompt": "Play.", "reset": {"seed": 13, "start": "one digit"}})
        assert environment.start(task) == [{"role": "user", "content": "Play.\n\nGuess a number, one digit."}]
        assert not environment.replies
        (act,) = environment.toolbox()
        assert (act.name, act.description) == ("act", "Guess the number, or do something else.")
        assert set(act.parameters["properties"]) == {"guess", "trick"}
        assert act.parameters["required"] == ["guess"]
        assert (act.call(guess=1), environment.turn_reward, environment.done) == ("higher", -0.1, False)
        with pytest.raises(ActionRefused, match=r"guess: .*valid integer"):
            act.call(guess="three")
        assert (act.call(guess=3), environment.turn_reward, environment.done) == ("right", 1.0, True)
        assert scored(environment).value == 0.0


@pytest.mark.adapters
def test_the_last_reward_alone(number):
    with episode_on(local(number), reward="last") as environment:
        (act,) = environment.toolbox()
        act.call(guess=1)
        act.call(guess=3)
        assert environment.turn_reward == 0.0
        assert scored(environment).value == 1.0


@pytest.mark.adapters
def test_no_reward_is_not_a_reward_of_zero(number):
    with episode_on(local(number)) as environment:
        (act,) = environment.toolbox()
        act.call(guess=1, trick="none")
        assert environment.turn_reward == 0.0
        assert scored(environment).value is None
        assert "gave no reward in 1 steps" in scored(environment).reason


@pytest.mark.adapters
def test_text_is_the_action():
    options = {"action_template": {"message": "{answer}"}, "observation": "echoed"}
    with server_of("echo") as port:
        with pytest.raises(EnvironmentFailure, match="the first observation is empty"), episode_on(local(port), **options):
            pass
        with episode_on(local(port), prompt="Say something.", **options) as environment:
            assert environment.replies
            assert environment.toolbox() == []
            assert (environment.reply("hello"), environment.turn_reward, environment.done) == ("hello", 0.5, False)
            assert (environment.reply("stop"), environment.done) == ("stop", True)


@pytest.mark.adapters
def test_an_answer_that_fits_no_action_can_be_mended(number):
    with episode_on(local(number), action_template={"guess": "{answer}"}) as environment:
        assert environment.reply("I guess three").startswith("error: guess: ")
        assert environment.reply("3") == "right"


@pytest.mark.adapters
def test_tools_of_an_mcp_environment():
    with server_of("tools") as port, episode_on(local(port), prompt="Add.", start=False) as environment:
        environment.start(Task.from_row("openenv", environment.tasks("train")[0]))
        tools = {tool.name: tool for tool in environment.toolbox()}
        assert set(tools) == {"add", "fail"}
        assert set(tools["add"].parameters["properties"]) == {"a", "b"}
        assert tools["add"].call(a=1, b=2) == "3"
        with pytest.raises(ActionRefused, match="out of order"):
            tools["fail"].call()
        with pytest.raises(ActionRefused, match="valid integer"):
            tools["add"].call(a="one", b=2)


@pytest.mark.adapters
def test_a_failure_of_the_environment_ends_the_episode(number):
    with episode_on(local(number)) as environment:
        (act,) = environment.toolbox()
        with pytest.raises(EnvironmentFailure, match="the dice fell off the table"):
            act.call(guess=3, trick="raise")
        with pytest.raises(EnvironmentFailure, match="the session is gone"):
            act.call(guess=3)


@pytest.mark.adapters
def test_a_late_answer_is_never_taken_for_the_next(number):
    with CutProxy(number) as proxy, episode_on(proxy.url, timeout_s=1) as environment:
        (act,) = environment.toolbox()
        connections = proxy.accepted
        proxy.hold()
        with pytest.raises(EnvironmentFailure, match="step took longer than 1 s"):
            act.call(guess=1)
        proxy.release()
        with pytest.raises(EnvironmentFailure, match="the session is gone: step took longer"):
            act.call(guess=3)
        assert proxy.accepted == connections


@pytest.mark.adapters
def test_a_lost_connection_is_not_replaced_behind_ones_back(number):
    with CutProxy(number) as proxy, episode_on(proxy.url) as environment:
        (act,) = environment.toolbox()
        assert act.call(guess=1) == "higher"
        connections = proxy.accepted
        proxy.cut()
        with pytest.raises(EnvironmentFailure, match="the connection was lost at step"):
            act.call(guess=3)
        assert proxy.accepted == connections
    with CutProxy(number) as proxy, episode_on(proxy.url) as environment:
        assert environment.toolbox()[0].call(guess=3) == "right"


@pytest.mark.adapters
def test_a_server_that_dies():
    with server_of("number") as port, episode_on(local(port)) as environment:
        (act,) = environment.toolbox()
        with pytest.raises(EnvironmentFailure, match="the connection was lost at step"):
            act.call(guess=3, trick="exit")


@pytest.mark.adapters
def test_slots_are_given_back_and_waited_for():
    with server_of("number", slots=1) as port:
        for seed in range(4):
            with episode_on(local(port), seed=seed) as environment:
                assert environment.toolbox()[0].call(guess=seed) == "right"
        with episode_on(local(port)) as first, episode_on(local(port), start=False, start_timeout_s=60) as second:
            threading.Timer(0.5, first.close).start()
            assert second.start(Task.from_row("openenv", {"reset": {"seed": 1}}))
        with (
            episode_on(local(port)),
            pytest.raises(EnvironmentFailure, match=r"no session in time: .*capacity"),
            episode_on(local(port), start_timeout_s=1),
        ):
            pass


@pytest.mark.adapters
def test_through_a_worker(number, tmp_path):
    async def main():
        async with EnvPool(f"openenv:{local(number)}?train_seeds=7", [], RolloutConfig(env_workers=1), logs=tmp_path) as pool:
            session = await pool.open(Task.from_row("openenv", {"reset": {"seed": 5}}))
            (tool,) = session.opened.tools
            observations = [await session.call_tool(tool["function"]["name"], arguments) for arguments in ({"guess": "9"}, {"guess": 5})]
            return [(one.text, one.reward, one.done) for one in observations]

    assert trio.run(main) == [("lower", -0.1, False), ("right", 1.0, True)]


def test_no_server():
    with CutProxy(1) as proxy:
        proxy.cut()
        with pytest.raises(EnvironmentFailure, match="no session in time"), episode_on(proxy.url, start_timeout_s=0.3):
            pass
    with pytest.raises(EnvironmentFailure, match="does not give its action schema"):
        action_schema(proxy.url)


def test_observations_as_text():
    assert observed({"text": "hi", "metadata": {"a": 1}}) == "hi"
    assert observed({"a": 1, "b": [2]}) == '{"a": 1, "b": [2]}'
    assert observed({"a": 1, "b": [2]}, "b") == "[2]"
    assert observed({"metadata": {}}) == ""
    with pytest.raises(EnvironmentFailure, match="no field 'c'; it has: a, b"):
        observed({"a": 1, "b": 2}, "c")
    with pytest.raises(EnvironmentFailure, match="tool x: gone"):
        observed({"tool_name": "x", "result": None, "error": {"error_type": "transport_error", "message": "gone"}})


def test_templates():
    assert filled({"type": "say", "parts": ["{answer}", 3]}, 'a "b"') == {"type": "say", "parts": ['a "b"', 3]}


def test_tasks(tmp_path):
    path = tmp_path / "tasks.jsonl"
    path.write_text(json.dumps({"prompt": "p", "reset": {"level": 2}}) + "\n\n")
    environment = openenv_client("http://127.0.0.1:1", tasks=str(path))
    assert environment.tasks("train") == [{"prompt": "p", "reset": {"level": 2}}]
    assert not environment.tasks("eval")
    seeded = openenv_client("http://127.0.0.1:1", train_seeds=3, eval_seeds=2)
    assert [[row["reset"]["seed"] for row in seeded.tasks(split)] for split in ("train", "eval")] == [[0, 1, 2], [3, 4]]


@pytest.mark.parametrize(
    ("url", "options", "why"),
    [
        ("echo", {}, "write the URL of a running server"),
        ("http://x", {"reward": "mean"}, "allowed: sum, last"),
        ("http://x", {"action_template": {"message": "hi"}}, "where the model's text goes"),
        ("http://x", {"token_env": "OPENENV_NO_SUCH_VARIABLE"}, "no environment variable"),
        ("http://x", {"tasks": "/no/such/file"}, "cannot read the tasks"),
    ],
)
def test_wrong_arguments(url, options, why):
    with pytest.raises(ConfigError, match=why):
        openenv_client(url, **options)

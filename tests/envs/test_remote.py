from __future__ import annotations

import math
from typing import Any

import pytest

from agentrl import registry
from agentrl.environment import Episode, ToolError
from agentrl.envs import remote as module
from agentrl.envs.remote import Remote, RemoteTasks
from agentrl.errors import ConfigError, EnvironmentFailure
from agentrl.records import Task
from agentrl.servers.env_server import protocol

TASK = Task.from_row("http://server:1", {"prompt": "hi"})
SCHEMA = {"type": "function", "function": {"name": "look", "description": "Look.", "parameters": {"type": "object", "properties": {}}}}
EPISODE = Episode(task=TASK, prompt="hi", messages=[{"role": "assistant", "content": "x"}], completion_ids=[1], ending="complete")


def opened(**fields: Any) -> protocol.Opened:
    plain = {"prompt": "hi", "tools": [SCHEMA], "max_turns": 3, "max_tokens": 7, "replies": True, "plays": False}
    return protocol.Opened(**{**plain, "timeouts": {}, "output_chars": {}, **fields})


class FakeClient:
    """A server that says what it was told to."""

    url = "http://server:1"

    def __init__(self, *answers: Any, opens: Any = None, rows: int = 300, plays: bool = False) -> None:
        self.asked: list[Any] = []
        self.closed: list[str] = []
        self.fetched: list[int] = []
        self._answers = list(answers)
        self._opens = opens or opened()
        self._rows = rows
        self._plays = plays

    def info(self) -> protocol.Info:
        counts = dict.fromkeys(("idle_s", "max_sessions", "sessions", "waiting", "opened", "idled", "failed"), 1)
        return protocol.Info(spec="fake", agentrl="1", plays=self._plays, compares=True, call_s=5.0, score_s=6.0, **counts)

    def length(self, split: str) -> int:
        return self._rows

    def rows(self, split: str, start: int, count: int) -> list[dict[str, Any]]:
        self.fetched.append(start)
        return [{"prompt": f"{split} {start + at}"} for at in range(count)]

    def open(self, session: str, task: Task) -> protocol.Opened:
        self.asked.append((0, "open"))
        if isinstance(self._opens, Exception):
            raise self._opens
        return self._opens

    def ask(self, session: str, number: int, request: Any, kind: Any, deadline_s: float) -> Any:
        self.asked.append((number, type(request).__name__, deadline_s))
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self, session: str) -> None:
        self.closed.append(session)


def seen(text="seen", **fields):
    return protocol.Observation(**{"text": text, "done": False, "error": False, "reward": 0.0, **fields})


def graded(value, parts=None, reason="", details=None):
    return protocol.Graded(value=value, parts=parts or {}, reason=reason, details=details or {})


def started(*answers, **options):
    client = FakeClient(*answers, **options)
    environment = Remote(client)
    environment.start(TASK)
    return environment, client


def test_an_episode():
    environment, client = started(seen(reward=0.5), protocol.Replied(text="go on", done=True, reward=0.25), graded(1.5, {"a": 1.5}, "fine"))
    assert (environment.max_turns, environment.max_tokens, environment.replies) == (3, 7, True)
    (tool,) = environment.toolbox()
    assert (tool.name, tool.description, tool.timeout_s) == ("look", "Look.", 20.0)
    assert tool.call() == "seen"
    assert (environment.done, environment.turn_reward) == (False, 0.5)
    assert environment.reply("x") == "go on"
    assert (environment.done, environment.turn_reward) == (True, 0.25)
    score = environment.score(EPISODE)
    assert (score.value, score.parts, score.reason) == (1.5, {"a": 1.5}, "fine")
    environment.close()
    assert client.asked == [(0, "open"), (1, "CallTool", 5.0), (2, "Answer", 5.0), (3, "Grade", 6.0)]
    assert not client.closed  # a score ends the session


def test_what_a_tool_says_about_an_error_is_the_models_to_read():
    environment, _ = started(seen("error: KeyError: 'x'", error=True))
    with pytest.raises(ToolError, match=r"^error: KeyError: 'x'$"):
        environment.toolbox()[0].call()


def test_a_tools_limits_are_the_servers():
    environment, _ = started(opens=opened(timeouts={"look": 60.0}, output_chars={"look": 1000}))
    (tool,) = environment.toolbox()
    assert tool.timeout_s == 75.0
    assert tool.max_output_chars > 1000


def test_arguments_may_be_called_anything():
    environment, client = started(seen())
    environment.toolbox()[0].call(name="x", arguments="y", self="z")
    assert client.asked[-1] == (1, "CallTool", 5.0)


@pytest.mark.parametrize("tool", [{}, {"function": "look"}, {"function": {"description": "nameless"}}, {"function": {"name": 3}}])
def test_a_tool_that_is_none(tool):
    environment, _ = started(opens=opened(tools=[tool]))
    with pytest.raises(EnvironmentFailure, match="gave a tool that is none"):
        environment.toolbox()


@pytest.mark.parametrize(
    "answer", [seen(reward=math.nan), seen(reward=math.inf), protocol.Replied(text="x", done=False, reward=-math.inf)], ids=str
)
def test_a_turn_reward_that_is_no_number_is_a_failure(answer):
    environment, _ = started(answer)
    with pytest.raises(EnvironmentFailure, match="as turn_reward; allowed: a finite number"):
        environment.toolbox()[0].call() if isinstance(answer, protocol.Observation) else environment.reply("x")


@pytest.mark.parametrize(
    "answer", [graded(math.nan), graded(math.inf), graded(1.0, {"a": math.nan}), graded(None, details={"a": math.inf})], ids=str
)
def test_a_score_that_is_no_number_is_a_failure(answer):
    environment, _ = started(answer)
    with pytest.raises(EnvironmentFailure, match="allowed: a finite number"):
        environment.score(EPISODE)


def test_an_unscorable_score_has_a_reason():
    assert started(graded(None, reason="score returned None"))[0].score(EPISODE).reason == "score returned None"
    assert started(graded(None))[0].score(EPISODE).reason == "the environment server gave no reason"


def test_a_session_is_closed_once_unless_a_score_has_ended_it():
    environment, client = started()
    environment.close()
    environment.close()
    assert len(client.closed) == 1
    failed, client = started(EnvironmentFailure("gone"))
    with pytest.raises(EnvironmentFailure, match="gone"):
        failed.score(EPISODE)
    failed.close()
    assert len(client.closed) == 1
    client = FakeClient(opens=EnvironmentFailure("it may have been opened"))
    unopened = Remote(client)
    with pytest.raises(EnvironmentFailure):
        unopened.start(TASK)
    unopened.close()
    assert len(client.closed) == 1
    client = FakeClient()
    Remote(client).close()
    assert not client.closed


def test_a_judge_is_asked():
    environment, client = started(protocol.Compared(value=0.75))
    assert environment.compares
    assert environment.compare(EPISODE, EPISODE) == 0.75
    assert client.asked[-1] == (1, "Compare", 6.0)


def test_another_kind_of_environment_than_before_is_refused():
    with pytest.raises(EnvironmentFailure, match="serves another kind of environment than when the run began"):
        started(opens=opened(plays=True))


def test_rows_are_fetched_in_blocks_and_kept():
    client = FakeClient(rows=300)
    tasks = RemoteTasks(client, "eval")
    assert len(tasks) == 300
    assert [tasks[index]["prompt"] for index in (0, 5, 299, 127, 128, -1)] == [f"eval {number}" for number in (0, 5, 299, 127, 128, 299)]
    assert client.fetched == [0, 256, 128]
    assert [row["prompt"] for row in tasks[126:130]] == [f"eval {number}" for number in range(126, 130)]
    assert client.fetched == [0, 256, 128]
    for index in (300, -301):
        with pytest.raises(IndexError):
            tasks[index]


def test_few_blocks_are_kept():
    client = FakeClient(rows=module.BLOCK * (module.MOST_CACHED + 2))
    tasks = RemoteTasks(client, "train")
    for number in range(module.MOST_CACHED + 1):
        tasks[number * module.BLOCK]
    assert len(client.fetched) == module.MOST_CACHED + 1
    tasks[module.BLOCK], tasks[0]
    assert client.fetched[module.MOST_CACHED + 1 :] == [0]


def test_a_url_is_a_spec():
    environment = registry.load("http://127.0.0.1:1?patience_s=0.5")()
    assert isinstance(environment, Remote)
    assert isinstance(registry.load("https://host/envs/one")(), Remote)
    with pytest.raises(ConfigError, match=r"does not accept its arguments {'digits': 3}: .* it takes: patience_s"):
        registry.load("http://127.0.0.1:1?digits=3")()
    for url in ("http://", "http://user:word@host:1", "http://ho st"):
        with pytest.raises(ConfigError, match="a server is http://HOST:PORT"):
            registry.load(url)()


def test_making_one_needs_no_server():
    """A worker that is started again while the server is away must not end the run."""
    environment = registry.load("http://127.0.0.1:1?patience_s=0")()
    with pytest.raises(EnvironmentFailure, match=r"the environment server http://127.0.0.1:1 does not answer: .*refused"):
        environment.start(TASK)
    environment.close()

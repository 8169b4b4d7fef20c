from __future__ import annotations

import asyncio
import json

import pytest

from agentrl import registry
from agentrl.config import RunConfig
from agentrl.environment import Episode, SingleTurn
from agentrl.errors import ConfigError
from agentrl.records import Task
from agentrl.session import environment_spec

FUNCTIONS = """
def half(completions, **columns):
    return [0.5] * len(completions)

def short(prompts, completions):
    return [int(len(first) > len(second)) for first, second in completions]

async def first(prompts, completions):
    return [0] * len(completions)

nothing = 5
"""


@pytest.fixture
def run(tmp_path):
    """Makes the run file of a dataset of so many rows; functions are named `half`, `short`, `first` or `nothing`."""
    (tmp_path / "functions.py").write_text(FUNCTIONS)

    def make(*, num_rows=2, rewards=(), judge=None):
        rows = [{"prompt": f"say {number}"} for number in range(num_rows)]
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        where = f"{tmp_path / 'functions.py'}:"
        return RunConfig(
            model="m",
            dataset=str(tmp_path / "rows.jsonl"),
            rewards=[where + name for name in rewards],
            judge=judge and where + judge,
        )

    return make


def load(config) -> SingleTurn:
    return registry.load(environment_spec(config))()


def episode(answer):
    messages = [{"role": "user", "content": "say 0"}, {"role": "assistant", "content": answer}]
    return Episode(task=Task.from_row("d", {"prompt": "say 0"}), prompt="say 0", messages=messages, completion_ids=[1], ending="complete")


@pytest.mark.parametrize(("judge", "expected"), [("short", (1.0, 0.0)), ("first", (1.0, 1.0))])
def test_a_judge_compares_and_every_score_is_0(run, judge, expected):
    environment = load(run(judge=judge))
    pairs = [("a", "long"), ("long", "a")]
    assert tuple(asyncio.run(environment.compare(episode(one), episode(other))) for one, other in pairs) == expected
    assert asyncio.run(environment.score(episode("a"))).value == 0.0


def test_rewards_and_a_judge_go_together(run):
    environment = load(run(rewards=["half", "half"], judge="short"))
    assert asyncio.run(environment.score(episode("a"))).value == 1.0
    assert asyncio.run(environment.compare(episode("a"), episode("long"))) == 1.0


def test_without_a_judge_nothing_is_compared(run):
    config = run(rewards=["half"])
    assert "judge=" not in environment_spec(config)
    with pytest.raises(NotImplementedError, match="without a judge"):
        asyncio.run(load(config).compare(episode("a"), episode("b")))


def test_every_20th_row_is_held_out(run):
    environment = load(run(num_rows=41, judge="short"))
    assert [row["prompt"] for row in environment.tasks("eval")] == ["say 0", "say 20", "say 40"]
    assert len(environment.tasks("train")) == 38
    assert len(load(run(num_rows=19, judge="short")).tasks("train")) == 19


def test_what_is_no_function_is_refused_by_its_kind(run):
    with pytest.raises(ConfigError, match=r"judge '.*functions.py:nothing' is not a function"):
        load(run(judge="nothing"))
    with pytest.raises(ConfigError, match=r"reward '.*functions.py:missing' is not a function"):
        load(run(rewards=["missing"], judge="short"))


def test_something_must_tell_good_from_bad(run):
    with pytest.raises(ConfigError, match="needs `rewards`, a `judge`, or both"):
        load(run())

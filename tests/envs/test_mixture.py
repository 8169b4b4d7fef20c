"""A mixture plays each task as its own environment would."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import trio
from rollout_fakes import FakeEngine, in_turn, make_tokenizer, thread_pool

from agentrl import runfile
from agentrl.config import RolloutConfig
from agentrl.config_engine import SamplingConfig
from agentrl.envs.mixture import MixedRows, Mixture, Part
from agentrl.errors import ConfigError
from agentrl.records import SamplingContract, Task
from agentrl.registry import load
from agentrl.rollout.episode import play_episode
from agentrl.rollout.render import Renderer
from agentrl.rollout.tree import Sampler
from agentrl.session import environment_spec

HERE = str(Path(__file__).parent / "mixed_env.py")
TOKENIZER = make_tokenizer()
DIG = '<tool_call>{"name": "dig", "arguments": {"deep": 2}}</tool_call>'
NAMES = ("Tools", "Asks", "Plays", "single")


def spec_of(*names, **weights):
    parts = [{"env": f"{HERE}:{name}", "weight": weights.get(name, 1.0)} for name in names]
    return environment_spec(runfile.from_mapping({"model": "m", "envs": parts}))


def play(spec, row, *said):
    engine = FakeEngine(in_turn(*said), TOKENIZER)
    sampler = Sampler(engine=engine, renderer=Renderer(TOKENIZER), contract=SamplingContract())

    async def main():
        async with thread_pool(spec) as pool:
            task = Task.from_row(spec, row)
            return await play_episode(
                task, 0, sampler=sampler, others={}, pool=pool, sampling=SamplingConfig(), rollout=RolloutConfig(), seed=0
            )

    return trio.run(main)


@pytest.mark.parametrize(
    ("name", "said", "value"),
    [("Tools", [DIG], 2.0), ("Asks", ["a", "b"], 4.0), ("Plays", ["it"], 2.0), ("single", ["LOUD"], 1.0)],
)
def test_an_episode_is_the_same_in_a_mixture_as_alone(name, said, value):
    mixed = spec_of(*NAMES)
    row = next(dict(row) for row in load(mixed)().tasks("train") if row["env"].endswith(f":{name}"))
    alone, together = play(row["env"], row["row"], *said), play(mixed, row, *said)
    assert alone.score.value == together.score.value == value
    assert [turn.span.ids.tolist() for turn in alone.turns] == [turn.span.ids.tolist() for turn in together.turns]
    assert [turn.reward for turn in alone.turns] == [turn.reward for turn in together.turns]
    assert alone.messages == together.messages
    assert alone.ending == together.ending
    label = f"mixed_env.py:{name}"
    assert {part.partition("/")[0] for part in together.score.parts if part != "turns"} == {label}


def test_weights_are_shares_of_the_training_tasks_and_every_row_comes():
    parts = [Part(env="a", weight=3), Part(env="b", weight=1)]
    rows = MixedRows(parts, [[{"n": number} for number in range(10)], [{"n": number} for number in range(20)]], weighted=True)
    counts = Counter(row["env"] for row in rows)
    assert counts == {"a": 60, "b": 20}
    assert len({(row["env"], row["row"]["n"]) for row in rows}) == 30


def test_evaluation_plays_every_row_once():
    rows = list(load(spec_of("Tools", "Asks", Tools=9.0))().tasks("eval"))
    assert [row["row"]["prompt"] for row in rows] == ["dig eval", "eval 0", "eval 1", "eval 2"]


def test_rows_are_drawn_lazily():
    parts = [{"env": "agentrl.envs.arithmetic:arithmetic"}, {"env": "agentrl.envs.lookup:Lookup"}]
    rows = Mixture(parts).tasks("train")
    assert len(rows) >= 40_000
    assert rows[0]["env"] != rows[len(rows) - 1]["env"]


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ([], "allowed: a list"),
        ("x", "allowed: a list"),
        ([{"weight": 1}], "allowed: a list"),
        ([{"env": "a", "share": 1}], "allowed: a list"),
        ([{"env": "a", "weight": 0}], "has the weight 0"),
        ([{"env": "a", "weight": float("nan")}], "has the weight nan"),
        ([{"env": "a"}, {"env": "a"}], "named twice"),
    ],
)
def test_bad_parts_are_refused(parts, said):
    with pytest.raises(ConfigError, match=said):
        Mixture(parts)

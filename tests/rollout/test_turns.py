"""Rewards of single turns: from the environment's code to the record and the episode's score."""

from __future__ import annotations

import re

import numpy as np
import pytest
import trio
from fakes import make_span, make_turn
from rollout_fakes import ENV, FakeEngine, in_turn, make_task, make_tokenizer, thread_pool

from agentrl.config import RolloutConfig
from agentrl.config_engine import SamplingConfig
from agentrl.errors import EnvironmentFailure
from agentrl.records import SamplingContract, Score, Turn
from agentrl.rollout.episode import play_episode
from agentrl.rollout.render import Renderer
from agentrl.rollout.tree import Sampler
from agentrl.rollout.turns import rewarded, whole_return

TOKENIZER = make_tokenizer()
RENDERER = Renderer(TOKENIZER)


def play(*texts, row=None, name="Paid", **sampling):
    async def main():
        async with thread_pool(f"{ENV}:{name}") as pool:
            return await play_episode(
                make_task(**{"prompt": [{"role": "user", "content": "hi"}], **(row or {})}),
                0,
                sampler=Sampler(engine=FakeEngine(in_turn(*texts), TOKENIZER), renderer=RENDERER, contract=SamplingContract()),
                others={},
                pool=pool,
                sampling=SamplingConfig(**sampling),
                rollout=RolloutConfig(),
                seed=0,
            )

    return trio.run(main)


def call(name, arguments):
    return f'<tool_call>{{"name": "{name}", "arguments": {arguments}}}</tool_call>'


def earn(amount, name="earn"):
    return call(name, f'{{"amount": {amount}}}')


def rewards(rollout):
    return [turn.reward for turn in rollout.turns]


def test_the_calls_of_a_turn_are_summed_and_every_turn_starts_from_nothing():
    rollout = play(earn(0.5) + earn(0.25) + call("nothing", "{}"), earn(-2), "abc", "bye")
    assert rewards(rollout) == [0.75, -2.0, 3.0, 3.0]
    assert rollout.ending == "complete"
    assert rollout.score == Score(value=2.0 + 4.75, parts={"end": 2.0, "turns": 4.75})


def test_tools_that_are_async_or_raise_can_reward_too():
    rollout = play(earn(0.5, "earn_later"), earn(-1, "earn_and_fail"), "bye")
    assert rewards(rollout) == [0.5, -1.0, 3.0]
    assert rollout.counters["tool/errors"] == 1
    assert rollout.score.value == 4.5


def test_parts_of_the_score_stay():
    rollout = play(earn(0.5), "bye", row={"score": {"form": 1.0, "content": 2.0}})
    assert rollout.score == Score(value=6.5, parts={"form": 1.0, "content": 2.0, "turns": 3.5})


def test_a_budget_that_ends_the_episode_keeps_the_rewards():
    rollout = play(earn(0.5), max_turns=2)
    assert (rollout.ending, rewards(rollout)) == ("truncated", [0.5, 0.5])
    assert rollout.score == Score(value=3.0, parts={"end": 2.0, "turns": 1.0})


def test_what_cannot_be_scored_stays_so():
    rollout = play(earn(0.5), "bye", row={"score": None})
    assert (rollout.ending, rollout.score, rewards(rollout)) == ("complete", Score.unscorable("score returned None"), [0.5, 3.0])


def test_without_rewards_the_score_is_the_environments_own():
    assert play("", "", row={"score": 1.5}, max_turns=2).score == Score(value=1.5)


@pytest.mark.parametrize(
    ("kind", "shown"), [("nan", "nan"), ("inf", "inf"), ("text", "'1' (of type str)"), ("none", "None"), ("list", "[1.0, 2.0]")]
)
def test_a_reward_that_is_no_finite_number_ends_the_episode(kind, shown):
    rollout = play(call("earn_oddly", f'{{"kind": "{kind}"}}'), "bye")
    assert (rollout.ending, rollout.score.scorable, rewards(rollout)) == ("environment_error", False, [0.0])
    assert re.search(
        rf"environment .*:Paid, tool earn_oddly: turn_reward is {re.escape(shown)}.*; allowed: a finite number$", rollout.reason
    )


def test_a_reply_is_held_to_the_same():
    rollout = play("nan")
    assert (rollout.ending, rollout.score.scorable) == ("environment_error", False)
    assert "Paid, reply: turn_reward is nan" in rollout.reason


@pytest.mark.parametrize("texts", [[earn(1e308) + earn(1e308), "bye"], [earn(1e308), earn(1e308), "bye"]])
def test_rewards_that_add_up_to_infinity_are_unscorable(texts):
    rollout = play(*texts)
    assert rollout.ending == "environment_error"
    assert "add up to inf" in rollout.reason
    assert np.isfinite(rewards(rollout)).all()


def turn(reward=0.0):
    return rewarded(make_turn(make_span(1, 1)), reward)


def test_a_turn_keeps_all_else():
    before = make_turn(make_span(1, 1))
    after = rewarded(rewarded(before, 1.5), -0.5)
    assert after == Turn(parent=-1, span=before.span, contract=before.contract, finish_reason="stop", reward=1.0)
    assert rewarded(before, 0.0) is before


def test_rewards_that_cancel_out_are_still_told():
    assert whole_return(Score(value=1.0), [turn(1.0), turn(-1.0)]) == Score(value=1.0, parts={"end": 1.0, "turns": 0.0})
    score = Score(value=1.0, parts={"a": 1.0})
    assert whole_return(score, [turn(), turn()]) is score


def test_a_part_of_the_same_name_is_refused():
    with pytest.raises(EnvironmentFailure, match=r"score gave a part 'turns'.*give it another name"):
        whole_return(Score(value=4.0, parts={"turns": 4.0}), [turn(1.0)])
    assert whole_return(Score(value=4.0, parts={"turns": 4.0}), [turn()]).value == 4.0

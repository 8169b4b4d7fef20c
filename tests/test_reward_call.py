"""Reward functions with TRL's signature, called by `SingleTurn`."""

from __future__ import annotations

import asyncio
import math

import pytest

from agentrl.environment import Episode
from agentrl.errors import EnvironmentFailure
from agentrl.records import Task
from agentrl.reward_call import required
from agentrl.single_turn import SingleTurn

MESSAGES = [{"role": "user", "content": "2+2?"}]


def score(*rewards, weights=None, prompt="2+2?", answer="four", **row):
    before = MESSAGES if prompt is MESSAGES else [{"role": "user", "content": prompt}]
    episode = Episode(
        task=Task.from_row("d", {"prompt": prompt, **row}),
        prompt=prompt,
        messages=[*before, {"role": "assistant", "content": answer}],
        completion_ids=[5, 6, 7],
        ending="complete",
    )
    return asyncio.run(SingleTurn(train=[], rewards=rewards, weights=weights).score(episode))


def giving(name, value):
    def function(**_):
        return [value]

    function.__name__ = name
    return function


def test_what_a_function_is_given():
    seen = {}

    def reward(prompts, completions, completion_ids, ground_truth, **columns):
        seen.update(columns, prompts=prompts, completions=completions, ids=completion_ids, truth=ground_truth)
        return [1.0]

    assert score(reward, ground_truth="4", task="math", completion="not this", completion_ids="nor this").value == 1.0
    assert {key: seen[key] for key in ("prompts", "completions", "ids", "truth", "task")} == {
        "prompts": ["2+2?"],
        "completions": ["four"],
        "ids": [[5, 6, 7]],
        "truth": ["4"],
        "task": ["math"],
    }
    assert set(seen) - {"prompts", "completions", "ids", "truth", "task"} == {"trainer_state", "log_extra", "log_metric"}
    assert score(reward, prompt=MESSAGES, ground_truth="4").value == 1.0
    assert (seen["prompts"], seen["completions"]) == ([MESSAGES], [[{"role": "assistant", "content": "four"}]])


def test_only_what_the_signature_takes_is_added():
    def plain(prompts, completions, completion_ids):
        return [0.25]

    def logging(completions, log_extra, log_metric, prompts=None, completion_ids=None):
        log_extra("extracted", ["four"])
        log_extra("length", [4])
        log_metric("accuracy", math.nan)
        return [0.5]

    def old_name(completions_ids, **kwargs):
        return [float(len(completions_ids[0]))]

    result = score(plain, logging, old_name)
    assert (result.value, result.parts) == (3.75, {"plain": 0.25, "logging": 0.5, "old_name": 3.0})


def test_a_reward_that_reads_the_trainers_state_fails_and_says_why():
    def curriculum(trainer_state, **kwargs):
        return [trainer_state.global_step / trainer_state.max_steps]

    with pytest.raises(EnvironmentFailure, match=r"trainer_state\.global_step: rewards run beside the trainer"):
        score(curriculum)


def test_none_leaves_a_function_out_and_all_none_is_unscorable():
    none, other = giving("math", None), giving("code", 0.5)
    result = score(none, other, weights=[2.0, 3.0])
    assert (result.value, result.parts) == (1.5, {"code": 0.5})
    assert score(none, none).reason == "reward math returned None; reward math_2 returned None"
    assert not score(none, other, weights=[1.0, 0.0]).scorable  # what would be left counts nothing
    assert score(giving("a", 1.0), other, weights=[0.0, 0.0]).value == 0.0


def test_none_of_a_required_function_is_unscorable():
    @required
    def judge(log_extra, **kwargs):
        log_extra("judge/failure", ["HTTP 503 after 4 tries"])
        return [None]

    result = score(judge, giving("form", 1.0))
    assert (result.value, result.reason) == (None, "reward judge returned None (judge/failure: HTTP 503 after 4 tries)")


def test_async_functions_wait_side_by_side():
    async def both():
        met = asyncio.Barrier(2)

        async def one(**_):
            await met.wait()
            return [1.0]

        async def other(**_):
            await met.wait()
            return [0.5]

        return score_in_loop(one, giving("sync", 0.25), other)

    async def scored():
        return await (await both())

    result = asyncio.run(asyncio.wait_for(scored(), 20))
    assert (result.value, list(result.parts)) == (1.75, ["one", "sync", "other"])


def score_in_loop(*rewards):
    episode = Episode(task=Task.from_row("d", {"prompt": "x"}), prompt="x", messages=[], completion_ids=[], ending="complete")
    return SingleTurn(train=[], rewards=rewards).score(episode)


def test_a_function_that_raises_leaves_nothing_unawaited():
    async def later(**_):
        return [1.0]

    def broken(**_):
        raise KeyError("no such column")

    with pytest.raises(KeyError, match="no such column"):
        score(later, broken)


def test_two_functions_of_one_name_are_two_parts():
    assert score(giving("f", 1.0), giving("f", 2.0), giving("g", 3.0)).parts == {"f": 1.0, "f_2": 2.0, "g": 3.0}


@pytest.mark.parametrize("weights", [[math.nan], [math.inf]])
def test_weights_are_finite(weights):
    with pytest.raises(ValueError, match="weights of rewards must be finite"):
        SingleTurn(train=[], rewards=[giving("f", 1.0)], weights=weights)

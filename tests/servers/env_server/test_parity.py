"""The same episode, with the environment in this run's own workers and behind HTTP."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import trio
from rollout_fakes import ENV, FakeEngine, in_turn, make_task, make_tokenizer, thread_pool
from server_fakes import served

from agentrl.config import RolloutConfig
from agentrl.config_engine import SamplingConfig
from agentrl.records import SamplingContract, Task
from agentrl.registry import load
from agentrl.rollout.episode import play_episode, play_group
from agentrl.rollout.render import Renderer
from agentrl.rollout.tree import Sampler, request_seed

SERVED = str(Path(__file__).parent / "served_env.py")
TOKENIZER = make_tokenizer()
RENDERER = Renderer(TOKENIZER)


def call(name, arguments="{}"):
    return f'<tool_call>{{"name": "{name}", "arguments": {arguments}}}</tool_call>'


async def played(spec, script, task, *, members=None, rollout=None, **sampling):
    engine = script if isinstance(script, FakeEngine) else FakeEngine(script if callable(script) else in_turn(*script), TOKENIZER)
    arguments = {
        "sampler": Sampler(engine=engine, renderer=RENDERER, contract=SamplingContract()),
        "others": {},
        "sampling": SamplingConfig(**sampling),
        "rollout": RolloutConfig(**(rollout or {})),
        "seed": 3,
    }
    async with thread_pool(spec, **(rollout or {})) as pool:
        with trio.fail_after(60):
            if members:
                return await play_group(task, members, pool=pool, judged=True, **arguments), engine
            return await play_episode(task, 0, pool=pool, **arguments), engine


def both(spec, script, *, task=None, served_as=None, **options):
    """The local and the remote rollout, and the engines that were asked."""
    task = task or make_task()

    async def main():
        local = await played(spec, script, task, **options)
        async with served(spec, **(served_as or {})) as url:
            return local, await played(url, script, task, **options)

    return trio.run(main)


def assert_same(local, remote):
    assert len(remote.turns) == len(local.turns)
    for ours, theirs in zip(local.turns, remote.turns, strict=True):
        assert np.array_equal(ours.span.ids, theirs.span.ids)
        assert np.array_equal(ours.span.source, theirs.span.source)
        assert np.array_equal(ours.span.logprobs, theirs.span.logprobs, equal_nan=True)
        assert (ours.reward, ours.trained, ours.finish_reason) == (theirs.reward, theirs.trained, theirs.finish_reason)
    assert remote.messages == local.messages
    assert remote.ending == local.ending
    assert replace(remote.score, reason="x") == replace(local.score, reason="x")
    assert local.score.reason in remote.score.reason
    assert local.reason in remote.reason
    counts = [{name: value for name, value in one.counters.items() if not name.startswith("time/")} for one in (local, remote)]
    assert counts[0] == counts[1]


GUESS = f"{ENV}:Guess"
CASES = {
    "tool": (GUESS, [call("look", '{"count": "3"}'), call("look") + call("look") + call("total"), "well"]),
    "error": (GUESS, [call("boom"), call("leave"), "well"]),
    "malformed": (GUESS, [call("look", '{"count": "many"}'), call("jump"), "<tool_call>{", "well"]),
    "done": (GUESS, [call("finish") + call("look"), "never"]),
    "infrastructure": (GUESS, [call("infrastructure"), "never"]),
    "surrogate": (GUESS, [call("surrogate"), "well"]),
    "async": (GUESS, [call("wait", '{"seconds": 0.01}').replace("0.01", "0"), "well"][1:]),
    **{f"score {word}": (GUESS, [word]) for word in ("nan", "inf", "none", "word", "parts", "raise", "echo", "well")},
    "replies": (f"{ENV}:Dialog", ["one", "two", "enough"]),
    "turn budget": (f"{ENV}:Dialog", ["one"]),
    "turn rewards": (f"{ENV}:Paid", [call("earn", '{"amount": 0.5}') + call("earn_later", '{"amount": 2}'), "four", "bye"]),
    "paid and failed": (f"{ENV}:Paid", [call("earn_and_fail", '{"amount": 0.125}'), "bye"]),
    "nan turn reward": (f"{ENV}:Paid", [call("earn_oddly", '{"kind": "nan"}'), "bye"]),
    "nan reply reward": (f"{ENV}:Paid", ["nan"]),
    "a reply that is none": (f"{ENV}:Odd", ["x"]),
    "dataset with a reward": (f"{ENV}:single", ["five!"]),
    "tools of their own": (f"{SERVED}:Tools", [call("dice", '{"name": 4}'), call("dice", '{"name": 1}'), call("refuse"), "well"]),
    "long output": (
        f"{SERVED}:Tools",
        [call("much", '{"count": 400}'), call("wide", '{"count": 400}'), call("wide", '{"count": 9500}'), "w"],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_an_environment_does_the_same_behind_http(name):
    spec, script = CASES[name]
    (local, ours), (remote, theirs) = both(spec, script, rollout={"max_tool_output_chars": 100}, max_turns=6)
    assert_same(local, remote)
    assert [request.seed for request in ours.requests] == [request.seed for request in theirs.requests]


@pytest.mark.parametrize(
    ("kind", "row"),
    [(f"{ENV}:Odd", {"kind": kind}) for kind in ("number", "empty", "bare")] + [(GUESS, {"prompt": "plain text"})],
)
def test_a_start_does_the_same_behind_http(kind, row):
    (local, _), (remote, _) = both(kind, ["well"], task=make_task(**row))
    assert_same(local, remote)


@pytest.mark.parametrize(("spec", "rows"), [("arithmetic?ops=mul", 3), ("countdown", 2), ("lookup", 2)])
def test_the_shipped_environments_do_the_same_behind_http(spec, rows):
    tasks = load(spec)().tasks("eval")
    for row in [tasks[index] for index in range(rows)]:
        task = Task.from_row(spec, row)
        (local, _), (remote, _) = both(spec, [call("lookup", '{"item": "pen"}'), str(row.get("answer", "\\boxed{1+1}"))], task=task)
        assert local.score.value is not None
        assert_same(local, remote)


@pytest.mark.parametrize("answers", [["long answer", "short"], ["raise", "x"], ["nan", "x"], ["none", "x"]])
def test_a_judge_prefers_the_same_behind_http(answers):
    task = make_task()
    of_seed = {request_seed(f"3\n{task.id}\n{member}", 0): answer for member, answer in enumerate(answers)}
    (local, _), (remote, _) = both(f"{ENV}:Judged", lambda request: of_seed[request.seed], task=task, members=2)
    assert remote.preferences == local.preferences
    for ours, theirs in zip(local, remote, strict=True):
        assert_same(ours, theirs)


def by_prompt(request):
    """Turns that overlap come in any order: what is answered depends on what was asked."""
    text = TOKENIZER.decode(request.ids)
    return next((answer for word, answer in {"last": "fourth", "more": "second!", "plain": "third"}.items() if word in text), "first")


@pytest.mark.parametrize("kind", ["budget", "spent", "score", "raise", "nobody"])
def test_an_environment_that_plays_does_the_same_behind_http(kind):
    (local, _), (remote, _) = both(f"{SERVED}:Duel", by_prompt, task=make_task(kind=kind), served_as={"plays": True}, max_turns=3)
    assert_same(local, remote)
    endings = {"spent": "truncated", "raise": "environment_error"}
    assert local.ending == endings.get(kind, "complete")
    assert remote.score.value == {"budget": 705.75, "spent": 7.75, "score": 6.5, "raise": None, "nobody": 1.0}[kind]


@pytest.mark.parametrize(("kind", "score"), [("overlap", 5.5), ("drop", 3.5)])
def test_turns_overlap_behind_http(kind, score):
    class Hanging(FakeEngine):
        async def generate(self, request):
            if "never" in TOKENIZER.decode(request.ids):
                await trio.sleep_forever()
            return await super().generate(request)

    served_as, engine = {"plays": True}, Hanging(by_prompt, TOKENIZER)
    (local, _), (remote, _) = both(f"{SERVED}:Duel", engine, task=make_task(kind=kind), served_as=served_as)
    assert (local.score.value, remote.score.value) == (score, score)
    assert sorted(len(turn.span) for turn in local.turns) == sorted(len(turn.span) for turn in remote.turns)


def test_a_remote_episode_that_takes_too_long_is_cancelled_on_the_server():
    """Its thread is free at once, so the worker lives on and plays the next."""

    async def main():
        async with served(f"{SERVED}:Duel", plays=True) as url, thread_pool(url, episode_timeout_s=1.0) as pool:
            options = {"pool": pool, "rollout": RolloutConfig(episode_timeout_s=1.0)}
            late = await one_of(make_task(kind="wait"), **options)
            fine = await one_of(make_task(kind="score"), **options)
            return late, fine

    async def one_of(task, **options):
        sampler = Sampler(engine=FakeEngine(by_prompt, TOKENIZER), renderer=RENDERER, contract=SamplingContract())
        return await play_episode(task, 0, sampler=sampler, others={}, sampling=SamplingConfig(), seed=3, **options)

    late, fine = trio.run(main)
    assert (late.ending, late.score.value) == ("timeout", None)
    assert fine.score.value == 6.5

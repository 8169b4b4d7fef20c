"""How episodes that an environment plays itself end: budgets, what the program raises, deadlines and cancellation."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from dataclasses import replace

import pytest
import trio
from rollout_fakes import FakeEngine, in_turn, make_task, thread_pool
from talk_plays import HI, RENDERER, SPEC, TALK, TOKENIZER, Overdue, play, sampler

from agentrl.config import RolloutConfig
from agentrl.config_engine import SamplingConfig
from agentrl.errors import SamplerUnavailable
from agentrl.llm import BudgetSpent, SamplingFailed
from agentrl.records import SamplingContract
from agentrl.rollout.episode import play_episode
from agentrl.rollout.tree import Sampler


@pytest.mark.parametrize("caught", [True, False])
def test_a_spent_number_of_calls_ends_it_as_truncated(caught):
    async def program(task, llm):
        messages = [HI]
        for _ in range(3):
            reply = await llm.chat(messages)
            messages += [reply.message, HI]
        with pytest.raises(BudgetSpent, match="max_turns=3"):
            await llm.chat(messages)
        if not caught:
            await llm.chat(messages)
        return 0.25

    rollout, _ = play(program, in_turn("a"), max_turns=3)
    assert len(rollout.turns) == 3
    assert rollout.score.value == (0.25 if caught else None)
    assert rollout.ending == ("complete" if caught else "truncated")


def test_a_spent_context_ends_it_as_truncated():
    async def program(task, llm):
        messages = [HI]
        while True:
            reply = await llm.chat(messages)
            messages += [reply.message, HI]

    rollout, engine = play(program, in_turn("aaaaaaaa"), name="Scored", context_length=90, max_turns=100)
    assert rollout.ending == "truncated"
    assert rollout.score.value > 0
    assert all(len(request.ids) + request.max_tokens <= 90 for request in engine.requests)


def test_what_the_program_raises_is_the_environments_failure():
    async def program(task, llm):
        await llm.chat([HI])
        raise KeyError("lost")

    rollout, _ = play(program, in_turn("a"))
    assert (rollout.ending, rollout.score.value) == ("environment_error", None)
    assert "episode: KeyError: 'lost'" in rollout.reason
    assert len(rollout.turns) == 1


def test_the_end_of_the_engine_ends_the_run():
    async def program(task, llm):
        await llm.chat([HI])

    with pytest.raises(SamplerUnavailable):
        play(program, in_turn(SamplerUnavailable("gone")))


def test_a_call_that_nobody_waits_for_is_cancelled():
    class Slow(FakeEngine):
        def __init__(self):
            super().__init__(in_turn("late"), TOKENIZER)
            self.asked, self.cancelled = threading.Event(), 0

        async def generate(self, request):
            if self.asked.is_set():
                return await super().generate(request)
            self.asked.set()
            try:
                await trio.sleep_forever()
            except trio.Cancelled:
                self.cancelled += 1
                raise

    engine = Slow()
    policy = Sampler(engine=engine, renderer=RENDERER, contract=SamplingContract())

    async def program(task, llm):
        call = asyncio.ensure_future(llm.chat([HI]))
        assert await asyncio.to_thread(engine.asked.wait, 60)  # a call that is dropped sooner is another test's
        call.cancel()
        await asyncio.wait([call])
        return float((await llm.chat([HI])).text == "late")

    TALK.PLAY = program

    async def main():
        async with thread_pool(f"{SPEC}:Talk") as pool:
            return await play_episode(
                make_task(), 0, sampler=policy, others={}, pool=pool, sampling=SamplingConfig(), rollout=RolloutConfig(), seed=0
            )

    rollout = trio.run(main)
    assert rollout.score.value == 1.0
    assert engine.cancelled == 1
    assert len(rollout.turns) == 1


def test_the_deadline_of_the_episode_cancels_the_program():
    ended, overdue = [], Overdue()

    async def program(task, llm):
        overdue()
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    before = TALK.Talk.closed
    rollout, _ = play(program, in_turn("a"), overdue=overdue)
    assert (rollout.ending, rollout.score.value) == ("timeout", None)
    assert ended == [True]
    assert TALK.Talk.closed == before + 2  # with the one that the worker makes first, to see whether it can be made


def test_a_request_that_the_engine_aborts_is_no_score():
    class Aborting(FakeEngine):
        async def generate(self, request):
            return replace(await super().generate(request), finish_reason="abort")

    async def program(task, llm):
        with contextlib.suppress(SamplingFailed):
            await llm.chat([HI])
        return 0.0

    engine = Aborting(in_turn("a"), TOKENIZER)
    rollout, _ = play(program, None, policy=Sampler(engine=engine, renderer=RENDERER, contract=SamplingContract()))
    assert (rollout.ending, rollout.score.value) == ("cancelled", None)
    assert "aborted" in rollout.reason


def test_a_budget_that_is_spent_in_one_of_several_tasks_ends_it_as_truncated():
    async def program(task, llm):
        async with asyncio.TaskGroup() as group:
            for number in range(4):
                group.create_task(llm.chat([{"role": "user", "content": str(number)}]))

    rollout, _ = play(program, in_turn("bye"), name="Scored", max_turns=2)
    assert (rollout.ending, rollout.reason) == ("truncated", "")
    assert rollout.score.value is not None


def test_a_mixture_of_errors_is_a_failure():
    async def program(task, llm):
        raise ExceptionGroup("both", [BudgetSpent("no"), KeyError("lost")])

    rollout, _ = play(program, in_turn("bye"), name="Scored")
    assert rollout.ending == "environment_error"


def test_a_program_that_swallows_its_cancellation_gets_no_further_turn():
    ended, overdue = threading.Event(), Overdue()

    async def program(task, llm):
        overdue()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            try:
                await llm.chat([HI])
            finally:
                ended.set()

    rollout, engine = play(program, in_turn("a"), overdue=overdue)
    assert rollout.ending == "timeout"
    assert ended.wait(60)
    assert not engine.requests


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError("mine"), GeneratorExit()])
def test_whatever_a_program_raises_ends_its_own_episode_only(error):
    async def program(task, llm):
        await llm.chat([HI])
        raise error

    rollout, _ = play(program, in_turn("a"))
    assert (rollout.ending, rollout.score.value) == ("environment_error", None)
    assert type(error).__name__ in rollout.reason


def test_nothing_is_sampled_once_the_episode_is_over():
    held, cancelled = [], []

    async def program(task, llm):
        held.append(llm)

        async def left_over():
            try:
                await llm.chat([HI])
            except asyncio.CancelledError:
                cancelled.append(True)
                raise

        held.append(asyncio.create_task(left_over()))
        await asyncio.sleep(0)

    async def score():
        await asyncio.wait([held[1]])
        with pytest.raises(SamplingFailed, match="is over"):
            await held[0].chat([HI])
        return 1.0

    class Never(FakeEngine):
        async def generate(self, request):
            await trio.sleep_forever()

    TALK.SCORE = score
    policy = Sampler(engine=Never(None), renderer=RENDERER, contract=SamplingContract())
    rollout, _ = play(program, None, name="Late", policy=policy)
    assert (rollout.score.value, rollout.reason) == (1.0, "")
    assert cancelled == [True]


def test_a_call_that_is_dropped_before_it_began_is_not_sampled():
    async def program(task, llm):
        call = asyncio.ensure_future(llm.chat([HI]))
        await asyncio.sleep(0)
        call.cancel()
        await asyncio.wait([call])
        return float((await llm.chat([HI])).number == 1)

    rollout, engine = play(program, in_turn("a"))
    assert rollout.score.value == 1.0
    assert len(rollout.turns) == len(engine.completions)


def test_the_budgets_of_an_environment_bound_an_episode_that_it_plays():
    async def program(task, llm):
        for _ in range(2):
            await llm.chat([HI], max_tokens=50)
        with pytest.raises(BudgetSpent, match="max_turns=2"):
            await llm.chat([HI])
        return 1.0

    rollout, engine = play(program, in_turn("abcdefgh"), name="Short")
    assert rollout.score.value == 1.0
    assert [request.max_tokens for request in engine.requests] == [3, 3]


class CancelAt(trio.abc.Instrument):
    """Cancels a task before it takes a step."""

    def __init__(self, step):
        self.left, self.scope, self.task = step, trio.CancelScope(), None

    def before_task_step(self, task):
        if task is self.task:
            self.left -= 1
            if not self.left:
                self.scope.cancel()


def test_an_episode_that_is_cancelled_anywhere_is_closed_and_harms_no_other():
    async def program(task, llm):
        reply = await llm.chat([HI])
        await llm.chat([HI, reply.message, HI])
        return 1.0

    TALK.PLAY = program
    TALK.Counted.made = TALK.Counted.closed = 0
    ends = []

    async def main():
        async def play_it():
            policy = sampler(in_turn("a"))
            return await play_episode(
                make_task(), 0, sampler=policy, others={}, pool=pool, sampling=SamplingConfig(), rollout=RolloutConfig(), seed=0
            )

        async with thread_pool(f"{SPEC}:Counted") as pool:
            for step in range(2, 60):
                cancelling = CancelAt(step)
                cancelling.task = trio.lowlevel.current_task()
                trio.lowlevel.add_instrument(cancelling)
                with cancelling.scope:
                    ends.append((await play_it()).score.value)
                trio.lowlevel.remove_instrument(cancelling)
                if not cancelling.scope.cancelled_caught:
                    break
                ends.append("cancelled")
            assert (await play_it()).score.value == 1.0

    trio.run(main)
    assert ends[0] == "cancelled"
    assert ends[-1] == 1.0
    assert TALK.Counted.made == TALK.Counted.closed == len(ends) + 2  # with the last, and the one that the worker tries first

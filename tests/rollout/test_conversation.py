"""Episodes that an environment plays itself: whole conversations in, the sampled tokens kept, forks where history is rewritten."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from rollout_fakes import FakeEngine, in_turn, make_task, make_tokenizer, thread_pool

from agentrl import registry
from agentrl.config import RolloutConfig, SamplingConfig
from agentrl.errors import SamplerUnavailable
from agentrl.llm import BudgetSpent, SamplingFailed
from agentrl.records import SamplingContract, Source, rows_of
from agentrl.rollout.episode import play_episode
from agentrl.rollout.render import Renderer
from agentrl.rollout.tool_formats.pythonic import LLAMA_PYTHONIC
from agentrl.rollout.tree import Sampler

SPEC = str(Path(__file__).parent / "talk_env.py")
TOKENIZER = make_tokenizer()
RENDERER = Renderer(TOKENIZER)
TALK = registry.import_module(SPEC)
HI = {"role": "user", "content": "hi"}
LOOK = {"name": "look", "parameters": {"type": "object", "properties": {"far": {"type": "integer"}}, "required": []}}


def sampler(script, name="policy", *, context_length=4096):
    engine = FakeEngine(script, TOKENIZER, context_length=context_length)
    return Sampler(engine=engine, renderer=RENDERER, contract=SamplingContract(policy=name), trained=name == "policy")


def play(program, script, *, name="Talk", others=(), context_length=4096, rollout=None, policy=None, **sampling):
    """Play one episode as `program(task, llm)` says; also the engine of the policy."""
    TALK.PLAY = program
    policy = policy or sampler(script, context_length=context_length)

    async def main():
        async with thread_pool(f"{SPEC}:{name}") as pool:
            return await play_episode(
                make_task(),
                0,
                sampler=policy,
                others={other.contract.policy: other for other in others},
                pool=pool,
                sampling=SamplingConfig(**sampling),
                rollout=rollout or RolloutConfig(),
                seed=3,
            )

    return trio.run(main), policy.engine


def sampled(turn):
    return turn.span.ids[turn.span.sampled].tolist()


def trained_tokens(rollout):
    return Counter(int(token) for row in rows_of(rollout) for token in row.ids[row.trained])


def own_tokens(rollout):
    return Counter(token for turn in rollout.own_turns for token in sampled(turn))


def test_a_conversation_that_goes_on_keeps_the_sampled_tokens():
    async def program(task, llm):
        messages = [HI]
        for said in ("more", "and more"):
            reply = await llm.chat(messages)
            messages += [reply.message, {"role": "user", "content": said}]
        reply = await llm.chat(messages)
        return {"end": float(reply.text == "he|llo")}

    rollout, engine = play(program, in_turn("hello", "hell", "he|llo"))
    assert [turn.parent for turn in rollout.turns] == [-1, 0, 1]
    for before, done, after in zip(engine.requests, engine.completions, engine.requests[1:], strict=False):
        assert after.ids[: len(before.ids) + len(done.ids)].tolist() == [*before.ids.tolist(), *done.ids.tolist()]
    assert len({request.session for request in engine.requests}) == 1
    assert len({request.seed for request in engine.requests}) == 3
    (row,) = rows_of(rollout)
    assert row.ids.tolist() == [*engine.requests[-1].ids.tolist(), *engine.completions[-1].ids.tolist()]
    assert [turn.span.source[0] for turn in rollout.turns] == [Source.PROMPT, Source.ENVIRONMENT, Source.ENVIRONMENT]
    assert (rollout.ending, rollout.score.value, rollout.score.parts) == ("complete", 1.0, {"end": 1.0})
    assert [message["content"] for message in rollout.messages] == ["hi", "hello", "more", "hell", "and more", "he|llo"]
    assert rollout.counters["turns"] == 3
    assert "rollout/forks" not in rollout.counters


def test_a_rewritten_history_forks_and_loses_nothing():
    async def program(task, llm):
        first = await llm.chat([HI])
        await llm.chat([HI, {"role": "assistant", "content": "rewritten"}, {"role": "user", "content": "so?"}])
        await llm.chat([HI, first.message, {"role": "user", "content": "go on"}])
        await llm.chat([HI, first.message, {"role": "user", "content": "or else"}])
        return 1.0

    rollout, engine = play(program, in_turn("a", "b", "c", "d"))
    assert [turn.parent for turn in rollout.turns] == [-1, -1, 0, 0]
    assert rollout.counters["rollout/forks"] == 1
    assert trained_tokens(rollout) == own_tokens(rollout)
    assert [int(row.trained.sum()) for row in rows_of(rollout)] == [2, 4, 2]  # b; a and c; d, whose start was trained before
    assert len({request.session for request in engine.requests}) == 3  # c goes on with the cache of a, b and d have their own
    assert "rewritten" in TOKENIZER.decode(rollout.turns[1].span.ids)


def test_a_call_in_openais_form_comes_back_and_is_known_again():
    async def program(task, llm):
        reply = await llm.chat([HI], tools=[LOOK])
        (call,) = reply.calls
        assert (call.name, call.arguments) == ("look", {"far": 3})
        assert json.loads(reply.message["tool_calls"][0]["function"]["arguments"]) == {"far": 3}
        # a client that drops the reasoning, copies only what it knows, and writes content as parts
        known = {"role": "assistant", "content": [{"type": "text", "text": reply.message["content"]}], "refusal": None}
        known["tool_calls"] = [{**reply.message["tool_calls"][0], "index": 0}]
        result = {"role": "tool", "tool_call_id": call.id, "name": "look", "content": "a wall"}
        await llm.chat([HI, known, result], tools=[LOOK])
        return 1.0

    said = '<think>far?</think>look <tool_call>{"name": "look", "arguments": {"far": "3"}}</tool_call>'
    rollout, _ = play(program, in_turn(said, "bye"))
    assert [turn.parent for turn in rollout.turns] == [-1, 0]
    assert "a wall" in TOKENIZER.decode(rollout.turns[1].span.ids)
    assert rollout.counters["tool/calls"] == 1


def test_a_rewritten_call_is_rendered_from_its_arguments():
    async def program(task, llm):
        function = {"name": "look", "arguments": '{"far": 7}'}
        told = {"role": "assistant", "content": None, "tool_calls": [{"id": "call00001", "type": "function", "function": function}]}
        await llm.chat([HI, told, {"role": "tool", "tool_call_id": "call00001", "content": "a door"}], tools=[LOOK])
        return 1.0

    rollout, _ = play(program, in_turn("bye"))
    assert "a door" in TOKENIZER.decode(rollout.turns[0].span.ids)
    assert rollout.score.value == 1.0


def test_a_malformed_call_stays_in_the_content_and_is_explained():
    async def program(task, llm):
        reply = await llm.chat([HI], tools=[LOOK])
        assert not reply.calls
        assert "<tool_call>" in reply.message["content"]
        return float("far" in reply.malformed[0])

    rollout, _ = play(program, in_turn('<tool_call>{"name": "look", "arguments": {"far": "x"}}</tool_call>'))
    assert rollout.score.value == 1.0
    assert rollout.counters["tool/malformed"] == 1


def test_other_policies_and_untrained_turns_are_recorded_and_not_trained():
    async def program(task, llm):
        mine = await llm.chat([HI])
        theirs = await llm.chat([HI, {"role": "user", "content": mine.text}], policy="rival")
        again = await llm.chat([HI, mine.message, {"role": "user", "content": theirs.text}], train=False)
        assert (mine.version, mine.number, again.number) == ((0, 5), 0, 2)
        return 1.0

    rival = sampler(in_turn("theirs"), "rival")
    rollout, _ = play(program, in_turn("mine", "again"), others=[rival])
    assert [(turn.contract.policy, turn.trained, turn.parent) for turn in rollout.turns] == [
        ("policy", True, -1),
        ("rival", False, -1),
        ("policy", False, 0),
    ]
    assert trained_tokens(rollout) == own_tokens(rollout) == Counter(sampled(rollout.turns[0]))
    assert rollout.num_sampled == len(sampled(rollout.turns[0]))
    assert rollout.counters["turns"] == 1
    assert rollout.counters["other_turns"] == 2


def test_the_age_of_a_rollout_is_that_of_what_is_trained():
    async def program(task, llm):
        await llm.chat([HI], policy="rival")
        return 1.0

    rollout, _ = play(program, in_turn("x"), others=[sampler(in_turn("theirs"), "rival")])
    assert rollout.oldest_step(9) == 9
    assert rollout.num_sampled == 0


def test_turn_rewards_reach_their_turns():
    async def program(task, llm):
        first = await llm.chat([HI])
        await llm.chat([HI, first.message, HI])
        llm.reward(0.5)
        llm.reward(2, reply=first)
        llm.reward(-1, reply=first)
        return 1.0

    rollout, _ = play(program, in_turn("a", "b"))
    assert [turn.reward for turn in rollout.turns] == [1.0, 0.5]
    assert rollout.score.value == 2.5
    assert rollout.score.parts == {"end": 1.0, "turns": 1.5}


def test_the_score_may_be_left_to_score_with_weights():
    async def program(task, llm):
        await llm.chat([HI])

    rollout, _ = play(program, in_turn("bye"), name="Scored")
    length = rollout.num_sampled
    assert rollout.score.parts == {"length": length, "said": 1.0}
    assert rollout.score.value == 0.5 * length + 1.0


def test_without_a_score_nothing_is_made_up():
    async def program(task, llm):
        await llm.chat([HI])

    rollout, _ = play(program, in_turn("bye"))
    assert rollout.score.value is None
    assert "defines no score" in rollout.score.reason


def test_calls_may_overlap():
    async def program(task, llm):
        replies = await asyncio.gather(*(llm.chat([{"role": "user", "content": str(number)}]) for number in range(20)))
        return float(sorted(reply.number for reply in replies) == list(range(20)))

    rollout, engine = play(program, in_turn("a"), max_turns=20)
    assert rollout.score.value == 1.0
    assert len(rollout.turns) == 20
    assert len({request.seed for request in engine.requests}) == 20
    assert len({request.session for request in engine.requests}) == 20


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


def test_a_turn_that_is_cut_says_so():
    async def program(task, llm):
        reply = await llm.chat([HI], max_tokens=3)
        return float(reply.finish_reason == "length")

    rollout, engine = play(program, in_turn("abcdefgh"), max_tokens=5)
    assert (rollout.score.value, rollout.ending) == (1.0, "truncated")
    assert engine.requests[0].max_tokens == 3


@pytest.mark.parametrize(
    ("messages", "options", "said"),
    [
        ([HI], {"policy": "nobody"}, "there is no policy 'nobody'"),
        ([HI, {"role": "assistant", "content": "me"}], {}, "must end with a message"),
        ([], {}, "must end with a message"),
        ("", {}, "the prompt is empty"),
        ([{"content": "x"}], {}, "a list of messages with a role"),
        ([HI], {"max_tokens": 0}, "max_tokens is 0"),
    ],
)
def test_a_request_that_cannot_be_played_is_refused_in_words(messages, options, said):
    async def program(task, llm):
        with pytest.raises(SamplingFailed, match=said):
            await llm.chat(messages, **options)
        return 1.0

    rollout, _ = play(program, in_turn("a"))
    assert rollout.score.value == 1.0
    assert not rollout.turns


def test_plain_text_goes_on_from_what_was_sampled():
    async def program(task, llm):
        first = await llm.chat("2+3=")
        assert first.text == "5"
        await llm.chat("2+3=" + first.text + ", 4+4=")
        await llm.chat("else")
        return 1.0

    rollout, _ = play(program, in_turn([TOKENIZER.encode("5")[0], RENDERER.stop_ids[0]], "8", "x"))
    assert [turn.parent for turn in rollout.turns] == [-1, 0, -1]
    assert trained_tokens(rollout) == own_tokens(rollout)


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
            self.asked = self.cancelled = 0

        async def generate(self, request):
            self.asked += 1
            if self.asked > 1:
                return await super().generate(request)
            try:
                await trio.sleep_forever()
            except trio.Cancelled:
                self.cancelled += 1
                raise

    engine = Slow()
    policy = Sampler(engine=engine, renderer=RENDERER, contract=SamplingContract())

    async def program(task, llm):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(llm.chat([HI]), 0.05)
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
    ended = []

    async def program(task, llm):
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    before = TALK.Talk.closed
    rollout, _ = play(program, in_turn("a"), rollout=RolloutConfig(episode_timeout_s=0.3))
    assert (rollout.ending, rollout.score.value) == ("timeout", None)
    assert ended == [True]
    assert TALK.Talk.closed == before + 2  # with the one that the worker makes first, to see whether it can be made


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.sampled_from(["go on", "rewrite", "anew", "again", "rival", "untrained"])), max_size=10))
def test_whatever_the_program_does_each_trained_token_is_trained_once(moves):
    async def program(task, llm):
        known = [[HI]]
        for at, move in moves:
            messages = known[at % len(known)]
            if move == "rewrite":
                messages = [{**message, "content": message["content"] + "!"} for message in messages]
            elif move == "anew":
                messages = [{"role": "user", "content": f"{at}"}]
            reply = await llm.chat(messages, policy="rival" if move == "rival" else "policy", train=move != "untrained")
            if move != "again":
                known.append([*messages, reply.message, {"role": "user", "content": f"more {at}"}])
        return 0.5

    words = iter(range(1000))
    rollout, engine = play(program, lambda request: f"w{next(words)}", others=[sampler(in_turn("theirs"), "rival")], max_turns=20)
    assert rollout.score.value == 0.5
    assert trained_tokens(rollout) == own_tokens(rollout)
    asked = sum(move != "rival" for _, move in moves)
    assert len(engine.requests) == asked
    for request, completion in zip(engine.requests, engine.completions, strict=True):
        whole = [*request.ids.tolist(), *completion.ids.tolist()]
        assert any(_context(rollout, index) == whole for index in range(len(rollout.turns)))


def _context(rollout, index):
    path = []
    while index >= 0:
        path.insert(0, rollout.turns[index].span.ids)
        index = rollout.turns[index].parent
    return np.concatenate(path).tolist()


def test_calls_are_read_in_the_form_that_the_template_writes_them_in():

    async def program(task, llm):
        reply = await llm.chat([HI], tools=[LOOK])
        return float([call.arguments for call in reply.calls] == [{"far": 3}])

    renderer = Renderer(TOKENIZER)
    renderer.tool_format = LLAMA_PYTHONIC
    policy = Sampler(engine=FakeEngine(in_turn("[look(far=3)]"), TOKENIZER), renderer=renderer, contract=SamplingContract())
    assert play(program, None, policy=policy)[0].score.value == 1.0


def _called(call):
    return [HI, {"role": "assistant", "content": "", "tool_calls": call}, {"role": "tool", "content": "x"}]


@pytest.mark.parametrize(
    ("messages", "tools", "said"),
    [
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}], (), "the model reads text"),
        ([{"role": "user", "content": [{"type": "text", "text": None}]}], (), "the model reads text"),
        ([{"role": "user", "content": 5}], (), "the model reads text"),
        ([{"role": "user", "content": b"hi"}], (), "the model reads text"),
        ([{"role": "user", "content": "\ud800"}], (), "cannot be sent"),
        ([{"role": "user", "content": "x", "count": 1 << 70}], (), "cannot be sent"),
        ([{"role": "user", "content": "x", 3: "y"}], (), "a list of messages"),
        (_called("look"), (), "has the tool_calls 'look'"),
        (_called(["look"]), (), "has the tool call 'look'"),
        (_called([{"id": "x", "function": {"name": None}}]), (), "has the tool call"),
        (_called([{"id": "x", "function": {"name": "look", "arguments": "[1]"}}]), (), "with the arguments '[1]'"),
        (_called([{"id": "x", "function": {"name": "look", "arguments": '{"far": 1' + "0" * 40 + "}"}}]), (), "with the arguments"),
        (_called([{"id": "x", "function": {"name": "look", "arguments": '{"far": "\\ud800"}'}}]), (), "with the arguments"),
        ([HI], ["look"], "tools are a list"),
        ("plain", [{"function": 3}], "a tool is"),
        ([HI], [{"type": "function", "function": "look"}], "a tool is"),
        ([HI], [{"type": "function", "function": {"description": "no name"}}], "a tool is called None"),
        ([HI], [{"name": "look", "parameters": "all"}], "a tool is"),
        ([HI], [{"name": "look", "parameters": {"type": "object", "properties": {"x": {"type": "nothing"}}}}], "no JSON schema"),
        ([HI], [LOOK, LOOK], "two tools are called 'look'"),
    ],
)
def test_whatever_a_program_sends_ends_no_more_than_its_own_call(messages, tools, said):
    async def program(task, llm):
        with pytest.raises(SamplingFailed, match=re.escape(said)):
            await llm.chat(messages, tools=tools)
        return float((await llm.chat([HI])).text == "a")

    rollout, _ = play(program, in_turn("a"))
    assert (rollout.score.value, rollout.reason) == (1.0, "")


def test_two_seats_that_were_told_the_same_and_said_the_same_are_kept_apart():
    async def program(task, llm):
        mine, theirs = [HI], [HI]
        for said in ("one", "two"):
            for seat, train in ((mine, True), (theirs, False)):
                reply = await llm.chat(seat, train=train)
                seat += [reply.message, {"role": "user", "content": said}]
        return 1.0

    rollout, _ = play(program, in_turn("same"))
    assert [(turn.trained, turn.parent) for turn in rollout.turns] == [(True, -1), (False, -1), (True, 0), (False, 1)]


def test_of_choices_with_equal_words_the_one_that_comes_back_goes_on():
    async def program(task, llm):
        first = await llm.chat([HI])
        second = await llm.chat([HI])
        assert (first.message["content"], second.message["content"]) == ("yes", "yes")
        await llm.chat([HI, first.message, HI])
        await llm.chat([HI, second.message, HI])
        await llm.chat([HI, {"role": "assistant", "content": "yes"}, HI])
        return 1.0

    rollout, _ = play(program, in_turn("<think>a</think>yes", "<think>b</think>yes", "x", "y", "z"))
    assert [turn.parent for turn in rollout.turns] == [-1, -1, 0, 1, 1]


def test_other_names_of_who_spoke_are_another_conversation():
    async def program(task, llm):
        reply = await llm.chat([{**HI, "name": "ann"}])
        await llm.chat([{**HI, "name": "bob"}, reply.message, HI])
        return 1.0

    rollout, _ = play(program, in_turn("a"))
    assert [turn.parent for turn in rollout.turns] == [-1, -1]


def test_score_sees_the_policys_own_conversation_from_its_own_start():
    async def program(task, llm):
        await llm.chat([{"role": "system", "content": "plan"}, HI])
        mine = await llm.chat([HI])
        await llm.chat([HI, mine.message, {"role": "user", "content": "go on"}])
        await llm.chat([HI, HI, HI], policy="rival")

    TALK.SEEN = ["a", "go on", "b"]
    rollout, _ = play(program, in_turn("plan", "a", "b"), name="Prompted", others=[sampler(in_turn("theirs"), "rival")])
    assert rollout.score.parts == {"seen": 1.0}


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
    ended = threading.Event()

    async def program(task, llm):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            try:
                await llm.chat([HI])
            finally:
                ended.set()

    rollout, engine = play(program, in_turn("a"), rollout=RolloutConfig(episode_timeout_s=0.3))
    assert rollout.ending == "timeout"
    assert ended.wait(5)
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


def test_calls_from_other_loops_and_threads_are_answered():
    async def program(task, llm):
        texts = []
        threads = [threading.Thread(target=lambda: texts.append(asyncio.run(llm.chat([HI])).text)) for _ in range(3)]
        for thread in threads:
            thread.start()
        await asyncio.to_thread(lambda: [thread.join(20) for thread in threads])
        return float(texts == ["a"] * 3)

    assert play(program, in_turn("a"))[0].score.value == 1.0


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

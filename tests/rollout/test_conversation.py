"""Episodes that an environment plays itself: whole conversations in, the sampled tokens kept, forks where history is rewritten."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from rollout_fakes import in_turn
from talk_plays import HI, RENDERER, TALK, TOKENIZER, own_tokens, play, sampled, sampler, trained_tokens

from agentrl.records import Source
from agentrl.rows import rows_of


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

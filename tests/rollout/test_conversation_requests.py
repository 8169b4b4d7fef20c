"""What a program may send in an episode that it plays itself, in which forms, and what is refused in words."""

from __future__ import annotations

import asyncio
import json
import re
import threading

import pytest
from rollout_fakes import FakeEngine, in_turn
from talk_plays import HI, LOOK, TOKENIZER, play

from agentrl.llm import SamplingFailed
from agentrl.records import SamplingContract
from agentrl.rollout.render import Renderer
from agentrl.rollout.tool_formats.pythonic import LLAMA_PYTHONIC
from agentrl.rollout.tree import Sampler


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


def test_calls_may_overlap():
    async def program(task, llm):
        replies = await asyncio.gather(*(llm.chat([{"role": "user", "content": str(number)}]) for number in range(20)))
        return float(sorted(reply.number for reply in replies) == list(range(20)))

    rollout, engine = play(program, in_turn("a"), max_turns=20)
    assert rollout.score.value == 1.0
    assert len(rollout.turns) == 20
    assert len({request.seed for request in engine.requests}) == 20
    assert len({request.session for request in engine.requests}) == 20


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


def test_calls_from_other_loops_and_threads_are_answered():
    async def program(task, llm):
        texts = []
        threads = [threading.Thread(target=lambda: texts.append(asyncio.run(llm.chat([HI])).text)) for _ in range(3)]
        for thread in threads:
            thread.start()
        await asyncio.to_thread(lambda: [thread.join(20) for thread in threads])
        return float(texts == ["a"] * 3)

    assert play(program, in_turn("a"))[0].score.value == 1.0


def test_a_turn_that_is_cut_says_so():
    async def program(task, llm):
        reply = await llm.chat([HI], max_tokens=3)
        return float(reply.finish_reason == "length")

    rollout, engine = play(program, in_turn("abcdefgh"), max_tokens=5)
    assert (rollout.score.value, rollout.ending) == (1.0, "truncated")
    assert engine.requests[0].max_tokens == 3

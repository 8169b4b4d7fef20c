"""The scripted model."""

import numpy as np
import pytest
import trio

from agentrl.engines.protocol import Request
from agentrl.env_kit.model import END, ScriptedModel
from agentrl.records import SamplingContract


def request():
    return Request(ids=np.zeros(1, dtype=np.int32), max_tokens=3, contract=SamplingContract(), seed=0, stop_ids=(END,))


@pytest.mark.parametrize("text", ["", "plain", "\u4e2d\U0001f600 \0", "x" * 100_000])
def test_what_it_says_is_never_cut_and_reads_back(text):
    model = ScriptedModel(lambda seen: text)
    completion = trio.run(model.generate, request())
    assert model.text(completion.ids) == text
    assert (completion.finish_reason, int(completion.ids[-1])) == ("stop", END)
    assert len(completion.ids) == len(completion.logprobs) == completion.versions[0].end


def test_what_is_no_unicode_reads_back_as_such():
    model = ScriptedModel(lambda seen: "\ud800")
    assert model.text(trio.run(model.generate, request()).ids) == "\ufffd" * 3


def test_the_script_sees_the_conversation_what_is_new_and_the_tools():
    seen = []
    model = ScriptedModel(lambda now: seen.append(now) or f"turn {now.number}")
    tools = [{"function": {"name": "look"}}]
    model.prompt([{"role": "system", "content": "s"}, {"role": "user", "content": "u"}], tools)
    trio.run(model.generate, request())
    model.extension([{"role": "tool", "content": "t"}], tools, last_id=END)
    trio.run(model.generate, request())
    assert [now.number for now in seen] == [0, 1]
    assert [message["content"] for message in seen[1].messages] == ["s", "u", "turn 0", "t"]
    assert [message["content"] for message in seen[1].news] == ["t"]
    assert (seen[0].question, seen[1].question, seen[1].tools) == ("u", "t", tools)


def test_a_plain_prompt_is_its_bytes():
    model = ScriptedModel(lambda seen: seen.question)
    assert bytes(model.prompt("2+3=").ids.astype(np.uint8)) == b"2+3="
    assert len(model.prompt("").ids) == 0

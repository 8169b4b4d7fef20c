"""What the scripted model says."""

from agentrl.env_kit.model import Seen
from agentrl.env_kit.scripts import TRIVIAL, by_chance, cut_off_call, echo_prompt, echo_tools, in_turn
from agentrl.rollout.toolcalls import read_calls

TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"properties": {"at": {"type": "string"}}, "required": ["at"]}}}]


def seen(*messages, number=0, tools=()):
    return Seen(number=number, messages=messages, news=messages, tools=tools)


def test_turns_come_in_order_and_then_nothing():
    say = in_turn("a", "b")
    assert [say(seen(number=number)) for number in range(3)] == ["a", "b", ""]


def test_echoes():
    asked = {"role": "user", "content": "How many?"}
    assert echo_prompt(seen(asked)) == "How many?"
    assert [call.name for call in read_calls(echo_tools(seen(asked, tools=TOOLS)), TOOLS)] == ["look"]
    assert echo_tools(seen({"role": "tool", "content": "7"}, {"role": "tool", "content": "8"}, number=1, tools=TOOLS)) == "7\n8"
    assert echo_tools(seen(asked)) == "How many?"
    assert cut_off_call(seen(tools=TOOLS)) == '<tool_call>{"name": "look", "arguments": {'


def test_chance_is_the_same_for_the_same_seed_and_uses_what_it_has_read():
    asked = {"role": "user", "content": "Where is the xylophone?"}
    texts = [by_chance(seed)(seen(asked, tools=TOOLS)) for seed in range(60)]
    assert texts == [by_chance(seed)(seen(asked, tools=TOOLS)) for seed in range(60)]
    assert any("xylophone" in text for text in texts)
    assert all(read_calls(text, TOOLS) for text in texts if "<tool_call>" in text)
    assert not any("<tool_call>" in by_chance(seed)(seen(asked, number=6, tools=TOOLS)) for seed in range(60))


def test_trivial_answers_are_text():
    assert all(isinstance(say(seen({"role": "user", "content": "x"})), str) for say in TRIVIAL.values())

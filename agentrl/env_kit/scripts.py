"""What the scripted model says: solutions, trivial answers, and play by chance. Each is a function of what the model sees."""

from __future__ import annotations

import random
import re
from typing import TYPE_CHECKING

from agentrl.env_kit.schema_values import WORDS, function_of, random_call

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from agentrl.env_kit.model import Say, Seen

HUGE_CHARS = 1_000_000
RANDOM_TURNS = 6
"""Turns with tool calls of a random episode; then it answers."""
CALL_SHARE = 0.8

_WORD = re.compile(r"[^\W_]{1,20}")


def in_turn(*texts: str) -> Say:
    """One text after the other, and then nothing."""
    return lambda seen: texts[seen.number] if seen.number < len(texts) else ""


def always(text: str) -> Say:
    """The same in every turn."""
    return lambda seen: text


def echo_prompt(seen: Seen) -> str:
    """The message that is to be answered."""
    return seen.question


def echo_tools(seen: Seen) -> str:
    """A call of every tool with arguments that fit, then what they gave back, as the answer."""
    if seen.number == 0 and seen.tools:
        stream = random.Random(0)
        return "\n".join(random_call([tool], stream, _words(seen)) for tool in seen.tools[:8])
    return "\n".join(str(message.get("content")) for message in seen.news if message.get("role") == "tool") or seen.question


def cut_off_call(seen: Seen) -> str:
    """A tool call that was never finished."""
    name = function_of(seen.tools[0])["name"] if seen.tools else "answer"
    return f'<tool_call>{{"name": "{name}", "arguments": {{'


def by_chance(seed: object) -> Say:
    """Valid calls of the tools, and texts of all kinds where there are none; the same for the same seed."""

    def say(seen: Seen) -> str:
        stream = random.Random(f"{seed}\n{seen.number}")
        words = _words(seen)
        if seen.tools and seen.number < RANDOM_TURNS and stream.random() < CALL_SHARE:
            return "\n".join(random_call(seen.tools, stream, words) for _ in range(stream.choice((1, 1, 2))))
        text = " ".join(stream.choice(words) for _ in range(stream.randint(0, 12)))
        return stream.choice((text, f"\\boxed{{{text}}}", f"<think>{text}</think>{text}", str(stream.randint(-9, 999))))

    return say


TRIVIAL: Mapping[str, Say] = {
    "nothing": always(""),
    "the prompt": echo_prompt,
    "what a tool said": echo_tools,
    "1.0": always("1.0"),
    "nan": always("nan"),
    "inf": always("inf"),
    "boxed nan": always("\\boxed{nan}"),
    "reasoning alone": always("<think>I do not know.</think>"),
    "reasoning without an end": always("<think>I do not know yet"),
    "a cut-off call": cut_off_call,
    "control characters": always("\0\x1b[2J\u202e\ufeff\U0001f600 \x07"),
    "1 MB of digits": always("9" * HUGE_CHARS),
    "1 MB of brackets": always("\\boxed{(" * (HUGE_CHARS // 8)),
}
"""Answers that take no skill."""
HUGE = ("1 MB of digits", "1 MB of brackets")
"""Those of them that are tried on one task only."""


def _words(seen: Seen) -> Sequence[str]:
    """Words that the conversation holds, where a tool may know them, and a few others."""
    text = " ".join(str(message.get("content"))[:4000] for message in seen.messages)
    return [*dict.fromkeys(_WORD.findall(text))][-64:] + list(WORDS)

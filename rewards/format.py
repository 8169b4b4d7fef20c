r"""Rewards for the form of a completion: think and answer tags, and their order.

Run file: `agentrl.rewards.format:think_format`, `agentrl.rewards.format:tags?names=plan,answer`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from agentrl.rewards.extract import completion_text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")


def think_format(*, completions: Sequence[Any], **_: Any) -> list[float | None]:
    """1 where reasoning stands between one `<think>`, which begins the completion, and a `</think>`; else 0.

    The rule of TRL's `think_format_reward`, down to what its pattern allows: nothing before `<think>`, no second `<think>` anywhere, and
    any text after the first `</think>`.
    """
    return [float(_thinks(completion_text(completion))) for completion in completions]


def _thinks(text: str) -> bool:
    return text.startswith("<think>") and "<think>" not in text[len("<think>") :] and "</think>" in text


def tags(names: str | Sequence[str] = "think,answer", *, partial: bool = False) -> Callable[..., list[float | None]]:
    """Make a reward: 1 where the completion is exactly these elements in this order, each once, with only white space around them.

    Args:
        names: of the tags; with commas in a run file.
        partial: give each tag that occurs exactly once a share of the reward, as long as all of them are in order and none overlap.
    Raises: `ValueError` for names that are none.
    """
    wanted = names.split(",") if isinstance(names, str) else list(names)
    if not wanted or not all(_NAME.fullmatch(name) for name in wanted) or len(set(wanted)) < len(wanted):
        raise ValueError(f"got names {names!r}; give different tag names of letters, digits, _ and -, such as think,answer")

    def tag_format(*, completions: Sequence[Any], **_: Any) -> list[float | None]:
        """1 for a completion of the wanted form."""
        read = _share if partial else _is_whole
        return [float(read(completion_text(completion), wanted)) for completion in completions]

    return tag_format


def _is_whole(text: str, names: Sequence[str]) -> bool:
    """Whether the text is nothing but the elements."""
    rest = text.strip()
    for name in names:
        opening, closing = f"<{name}>", f"</{name}>"
        if not rest.startswith(opening) or rest.count(opening) != 1 or rest.count(closing) != 1:
            return False
        inner, _, rest = rest.removeprefix(opening).partition(closing)
        if any(mark in inner for other in names for mark in (f"<{other}>", f"</{other}>")):
            return False
        rest = rest.lstrip()
    return not rest


def _share(text: str, names: Sequence[str]) -> float:
    """Share of the tags that open and close exactly once; 0 where they are out of order."""
    places: list[int] = []
    for name in names:
        if text.count(f"<{name}>") == text.count(f"</{name}>") == 1:
            places += [text.index(f"<{name}>"), text.index(f"</{name}>")]
    return len(places) / 2 / len(names) if places == sorted(places) else 0.0


answer_format = tags()
"""The form of DeepSeek-R1's first prompts: `<think>...</think><answer>...</answer>`."""

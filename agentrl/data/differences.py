"""Where a turn stands in a rendered conversation, told from other renderings of it: for templates that do not tell it as they run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Message = dict[str, Any]

_STAND_INS = ("\u27e6agentrl", "agentrl\u27e7")  # neither begins nor ends as the other does


def span_by_difference(
    render: Callable[[Sequence[Message], bool], str | None], messages: Sequence[Message], at: int, text: str
) -> tuple[int, int] | None:
    """The characters of an assistant's message in a rendered conversation.

    Where what came before, with the prompt that asks for the turn, begins the text, the turn starts behind it. Else two stand-ins in the
    place of the message show what stands around it: where they begin to differ and cease to.

    Args:
        render: of some messages and whether to ask for a turn; None where the template refuses them.
        messages: of the conversation.
        at: the message.
        text: of the whole conversation.

    Returns None where neither tells.
    """
    start, end = _after(render(messages[:at], True) if at else None, text), _after(render(messages[: at + 1], False), text)
    if start is None or end is None or start >= end:
        around = _around(render, messages, at, text)
        if around is None:
            return None
        start = around[0] if start is None or not around[0] <= start <= around[1] else start
        end = around[1]
    return start, end


def _around(
    render: Callable[[Sequence[Message], bool], str | None], messages: Sequence[Message], at: int, text: str
) -> tuple[int, int] | None:
    """What lies between the text that stands before a message, whatever it says, and the text that stands behind it."""
    one, other = (render([*messages[:at], {"role": "assistant", "content": words}, *messages[at + 1 :]], False) for words in _STAND_INS)
    if one is None or other is None or _STAND_INS[0] not in one or _STAND_INS[1] not in other:
        return None
    before, behind = common_length(one, other), common_length(one[::-1], other[::-1])
    fits = text.startswith(one[:before]) and text.endswith(one[len(one) - behind :]) and before + behind <= len(text)
    return (before, len(text) - behind) if fits else None


def common_length(*texts: str) -> int:
    """How many characters all of some texts begin with."""
    shortest = min(map(len, texts))
    return next((at for at in range(shortest) if len({text[at] for text in texts}) > 1), shortest)


def _after(beginning: str | None, text: str) -> int | None:
    return len(beginning) if beginning is not None and text.startswith(beginning) else None

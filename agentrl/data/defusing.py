"""Special tokens in the messages of a dataset: as text, which is what somebody said, and never as what they do to a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agentrl.rollout.render import alternatives, defused

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agentrl.rollout.template import ChatTemplate

    Message = dict[str, Any]

_ASKED, _SAID = "agentrlasked", "agentrlsaid"


class Defusing:
    """Cuts special tokens in what messages say, as the renderer of rollouts does.

    Args:
        template: of the conversations, None where there is none.
        special: the tokenizer's special tokens.
        own: those that stand around texts: of their beginning, their end, and padding; None for one that it lacks.
    """

    def __init__(self, template: ChatTemplate | None, special: Sequence[str], own: Sequence[str | None]) -> None:
        self._control = alternatives(special)
        # What the assistant says holds none of those around turns and texts. Others may be its own: marks of reasoning and of calls.
        asked = {"role": "user", "content": _ASKED}
        plain = template.tried([asked, {"role": "assistant", "content": _SAID}, asked]) if template is not None else ""
        around = {token for token in special if token in plain or token in own}
        self._turns = alternatives(around) if template is not None else None

    def defused(self, message: Message) -> Message:
        """The message, with cuts (`CUT`) inside of every special token that its author cannot have meant."""
        control, content = self._turns if message["role"] == "assistant" else self._control, message.get("content")
        if control is None or not content:
            return message
        if isinstance(content, str):
            return {**message, "content": defused(content, control)}
        return {**message, "content": [{**block, "text": defused(block["text"], control)} for block in content]}

"""A tokenizer's chat template: from messages to text, with the calls and the reasoning of messages as the template reads them."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from agentrl.errors import EnvironmentFailure
from agentrl.rollout.tool_detect import CallsOfTemplate, calls_of_template

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from transformers import PreTrainedTokenizerBase

    Message = dict[str, Any]

REASONING = ("reasoning_content", "thinking", "reasoning")
"""Names of a message's reasoning, the one that most templates read first."""


class ChatTemplate:
    """The chat template of a tokenizer, if it has one; finds out once how it writes tool calls."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._probing = True
        self.calls = CallsOfTemplate()
        """How it writes calls."""
        if tokenizer.chat_template:
            self.calls = calls_of_template(partial(self.tried, generate=False))
        self._probing = False

    def messages(self, messages: Sequence[Message]) -> list[Message]:
        """Messages as the template reads them: arguments of calls in its form, reasoning under the names in use, no nulls."""
        return [self._message(message) for message in messages]

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] = (),
        *,
        generate: bool = True,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The text of a conversation.

        Args:
            messages: at least one.
            tools: as JSON schemas.
            generate: whether to end with what asks for the assistant's next turn.
            variables: further ones that the template may read.

        Raises `EnvironmentFailure` where the template refuses these messages.
        """
        try:
            text: Any = self._tokenizer.apply_chat_template(
                list(messages) if self._probing else self.messages(messages),
                tools=[dict(tool) for tool in tools] or None,
                add_generation_prompt=generate,
                tokenize=False,
                **(variables or {}),
            )
        except Exception as error:  # a template is a program of somebody else's
            roles = ", ".join(str(message.get("role")) for message in messages)
            said = f"the model's chat template refused messages of roles {roles}: {type(error).__name__}: {error}"
            raise EnvironmentFailure(said) from None  # of this conversation: the next one may be right
        return str(text)

    def tried(self, messages: Sequence[Message], *, generate: bool = True, refused: str = "") -> str:
        """The text, or `refused` where the template refuses these messages."""
        try:
            return self.render(messages, generate=generate)
        except EnvironmentFailure:
            return refused

    def _message(self, message: Message) -> Message:
        message = {name: value for name, value in self.calls.in_its_form(message).items() if value is not None}
        reasoning = next((message[name] for name in REASONING if name in message), None)
        return message if reasoning is None else {"thinking": reasoning, **message, "reasoning_content": reasoning}

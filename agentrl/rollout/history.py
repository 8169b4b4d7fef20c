"""A conversation as a client gives it: checked, put in the form that templates read, and compared with what was answered before.

It comes from programs that nobody here has written. Whatever they give is refused in words, and ends no more than their own episode.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import msgspec

from agentrl.errors import ConfigError, EnvironmentFailure
from agentrl.rollout.arguments import decoded
from agentrl.rollout.given_schema import checked_schema
from agentrl.rollout.tool_formats.base import Malformed, carried

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Message = dict[str, Any]


def check_conversation(messages: Sequence[Any]) -> None:
    """Raise `EnvironmentFailure` for messages that say nothing, or what is no text."""
    if not messages or (isinstance(messages[-1], dict) and messages[-1].get("role") == "assistant"):
        raise EnvironmentFailure("a conversation must end with a message that the model is to answer, not with the assistant's own")
    for at, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise EnvironmentFailure(f"message {at} is {message!r:.80}; allowed: an object with role and content")
        if not isinstance(_text(message.get("content")), str | None):
            raise EnvironmentFailure(
                f"message {at} has the content {message['content']!r:.80}; the model reads text, or parts of type text"
            )
        calls = message.get("tool_calls")
        if not isinstance(calls, list | None):
            raise EnvironmentFailure(f"message {at} has the tool_calls {calls!r:.80}; allowed: a list")
        for call in calls or ():
            _check_call(at, call)


def _check_call(at: int, call: Any) -> None:
    function = call.get("function") if isinstance(call, dict) else None
    allowed = '{"id": ..., "function": {"name": ..., "arguments": ...}}, arguments an object, as such or as JSON text'
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise EnvironmentFailure(f"message {at} has the tool call {call!r:.80}; allowed: {allowed}")
    arguments = _arguments(function)
    if not isinstance(arguments, dict) or isinstance(carried(function["name"], arguments), Malformed):
        raise EnvironmentFailure(f"message {at} has a tool call with the arguments {function.get('arguments')!r:.80}; allowed: {allowed}")


def check_tools(tools: Sequence[Mapping[str, Any]]) -> None:
    """Raise `EnvironmentFailure` for what is no list of OpenAI function schemas."""
    if tools:
        _check_tools(msgspec.msgpack.encode(tools))


@lru_cache(maxsize=256)
def _check_tools(encoded: bytes) -> None:
    names = set()
    for tool in msgspec.msgpack.decode(encoded):
        function = tool.get("function", tool)
        parameters = function.get("parameters") or {} if isinstance(function, dict) else None
        if not isinstance(parameters, dict):
            raise EnvironmentFailure(f'a tool is {tool!r:.80}; allowed: {{"type": "function", "function": {{"name", "parameters"}}}}')
        try:
            checked_schema(function.get("name"), parameters)
        except (ConfigError, RecursionError) as error:
            raise EnvironmentFailure(str(error)) from None
        if function["name"] in names:
            raise EnvironmentFailure(f"two tools are called {function['name']!r}")
        names.add(function["name"])


def for_template(message: Message) -> Message:
    """A message as chat templates read it: text as text, and the arguments of calls as objects."""
    plain = {**message, "content": _text(message.get("content")) or ""}
    if message.get("tool_calls"):
        calls = message["tool_calls"]
        plain["tool_calls"] = [{**call, "function": {**call["function"], "arguments": _arguments(call["function"])}} for call in calls]
    return plain


class Digests:
    """Digests of a conversation up to each message, of what a client that keeps a history sends back unchanged.

    Args:
        policy: who is asked.
        tools: that are shown.
        messages: so far.
    """

    def __init__(self, policy: str, tools: Sequence[Any], messages: Sequence[Message]) -> None:
        self._digest = hashlib.blake2b(msgspec.msgpack.encode([policy, tools]), digest_size=16)
        self.keys = [self.added(message) for message in messages]
        """One a message."""

    def added(self, message: Message) -> bytes:
        """The digest with one more message."""
        self._digest.update(msgspec.msgpack.encode(_essence(message)))
        return self._digest.digest()


def likeness(one: Message, other: Message) -> tuple[bool, bool]:
    """Of two assistant messages that say the same: whether the ids of their calls are the same, and what was thought before."""
    ids = [[call.get("id") for call in message.get("tool_calls") or ()] for message in (one, other)]
    return ids[0] == ids[1], one.get("reasoning_content") == other.get("reasoning_content")


def _essence(message: Message) -> list[Any]:
    """Who says what: without reasoning, which clients drop, and whatever else they add; calls by name and arguments."""
    content = _text(message.get("content")) or ""
    if message["role"] != "assistant":
        return [message["role"], content, message.get("name"), message.get("tool_call_id")]
    calls = [[call["function"]["name"], _arguments(call["function"])] for call in message.get("tool_calls") or ()]
    return ["assistant", content.strip(), calls]


def _text(content: Any) -> Any:
    """Text parts as one text; other content as it is."""
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        texts = [part.get("text") for part in content]
        return "".join(texts) if all(isinstance(text, str) for text in texts) else content
    return content


def _arguments(function: Mapping[str, Any]) -> Any:
    """The arguments of a call as an object, where they are one; none at all are an empty one."""
    arguments = function.get("arguments") or {}
    return decoded(arguments) if isinstance(arguments, str) else arguments

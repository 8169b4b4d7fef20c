"""Which format a chat template writes tool calls in, found out by having it write one. No table of model names."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

from agentrl.rollout.arguments import decoded
from agentrl.rollout.tool_formats.base import Malformed, ToolCall, as_json
from agentrl.rollout.tool_formats.hermes import HERMES
from agentrl.rollout.tool_formats.known import FORMATS

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from agentrl.rollout.tool_formats.base import ToolFormat

PROBE = ToolCall(name="agentrlcalled", arguments={"agentrlkey": "agentrlvalue"})
_QUESTION, _WORDS, _ID = "agentrlquestion", "agentrlanswer", "agentrl00"  # some templates insist on ids of nine letters and digits


@dataclass(frozen=True, slots=True, kw_only=True)
class CallsOfTemplate:
    """How a chat template writes the calls of an assistant message."""

    tool_format: ToolFormat = HERMES
    recognised: bool = False
    """Whether the format was found; else it is a guess."""
    as_text: bool = False
    """Whether the template wants arguments as JSON text, and not as an object."""

    def in_its_form(self, message: dict[str, Any]) -> dict[str, Any]:
        """A message whose calls have their arguments as the template wants them: it would encode JSON text a second time."""
        calls = message.get("tool_calls")
        return {**message, "tool_calls": [self._turned(call) for call in calls]} if isinstance(calls, list) else message

    def _turned(self, call: Any) -> Any:
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict):
            return call
        arguments = function.get("arguments", {})
        if isinstance(arguments, str) != self.as_text:
            arguments = as_json(arguments) if self.as_text else decoded(arguments)
        return {**call, "function": {**function, "arguments": arguments}}


def calls_of_template(render: Callable[[list[dict[str, Any]]], str]) -> CallsOfTemplate:
    """Find out how calls are written.

    Args:
        render: renders a conversation; gives an empty text where the template refuses it.
    """
    as_text = None
    # some templates leave out the calls of a message that says something, others want its content to be text
    for arguments, content in product((PROBE.arguments, as_json(PROBE.arguments)), (_WORDS, "", None)):
        function = {"name": PROBE.name, "arguments": arguments}
        message = {"role": "assistant", "content": content, "tool_calls": [{"type": "function", "id": _ID, "function": function}]}
        written = render([{"role": "user", "content": _QUESTION}, message])
        written = written[written.rfind(_QUESTION) + len(_QUESTION) :]
        if PROBE.name not in written:
            continue
        if (found := format_of(written, [PROBE])) is not None:
            return CallsOfTemplate(tool_format=found, recognised=True, as_text=isinstance(arguments, str))
        as_text = isinstance(arguments, str) if as_text is None else as_text
    return CallsOfTemplate(as_text=bool(as_text))


def caller_of(results: Sequence[Mapping[str, Any]], tools: Collection[str]) -> list[dict[str, Any]]:
    """A conversation whose assistant has just made the calls that these tool messages answer; some templates look them up by name or id."""
    calls: list[dict[str, Any]] = [
        {
            "type": "function",
            "id": result.get("tool_call_id") or _ID,
            "function": {"name": result["name"] if result.get("name") in tools else PROBE.name, "arguments": {}},
        }
        for result in results
    ]
    return [{"role": "user", "content": _QUESTION}, {"role": "assistant", "content": "", "tool_calls": calls}]


def end_of_calls(written: str, tool_format: ToolFormat, count: int) -> int:
    """Where the calls of `caller_of` end in the rendered text; -1 where they are not found."""
    end, left = -1, count
    for opening in tool_format.opening.finditer(written, written.find(_QUESTION)):
        if opening.start() < end:
            continue
        block = tool_format.read(written, opening)
        if any(isinstance(found.call, Malformed) for found in block.found):
            break
        end, left = block.end, left - len(block.found)
        if left <= 0:
            return end
    return -1 if end < 0 or left == count else end  # a template of one call a turn writes the first of them


def format_of(written: str, calls: Sequence[ToolCall]) -> ToolFormat | None:
    """The format that reads these calls out of a text; of several the one whose own way of writing them is most of it."""
    readers = [tool_format for tool_format in FORMATS.values() if _reads(tool_format, written, calls)]
    squeezed = "".join(written.split())

    def share(tool_format: ToolFormat) -> int:
        own = "".join(tool_format.write(calls).split())
        return len(own) if own in squeezed else 0

    return max(readers, key=share, default=None)


def _reads(tool_format: ToolFormat, written: str, calls: Sequence[ToolCall]) -> bool:
    # calls without a marker are the whole answer: what the template writes behind them is no part of it
    texts = (written, written[: max(written.rfind("}"), written.rfind("]")) + 1])
    blocks = (tool_format.read(text, opening) for text in texts for opening in tool_format.opening.finditer(text))
    return any([found.call for found in block.found] == list(calls) for block in blocks)

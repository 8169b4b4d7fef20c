"""Conversations as text, with the characters that the assistant would have sampled.

Those are what follows the prompt that asks for its turn, up to and with the token that ends the turn.

Which characters those are is told by the template as it runs (`marks`), and not by looking for headers, which users and tools can write
too. Where a template writes its loop so that it cannot tell, the conversation is rendered in part and with stand-ins (`differences`).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from agentrl.data.defusing import Defusing
from agentrl.data.differences import common_length, span_by_difference
from agentrl.data.faults import RowFault, described
from agentrl.data.marks import Marked, MarkedTemplate, compiled
from agentrl.data.message_rules import says_something
from agentrl.data.openings import Opening
from agentrl.data.tokens import Draft
from agentrl.errors import ConfigError, EnvironmentFailure
from agentrl.rollout.render import CUT, Renderer
from agentrl.rollout.tool_detect import caller_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from transformers import PreTrainedTokenizerBase

    from agentrl.data.tokens import TokenWriter

    Message = dict[str, Any]
    Span = tuple[int, int]

_ASKED, _SAID = "agentrlasked", "agentrlsaid"
_TAIL = re.compile(r"\s*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """A rendered conversation."""

    draft: Draft
    notes: frozenset[str] = frozenset()
    """Keys of `encode.NOTES`."""


class Chat:
    """Renders conversations with a tokenizer's chat template.

    Args:
        tokenizer: with the template.
        writer: of the same tokenizer.
        compile_marked: makes the marked form of a template's source, or None.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        writer: TokenWriter,
        compile_marked: Callable[[str], MarkedTemplate | None] = compiled,
    ) -> None:
        self._tokenizer, self._writer, self._compile = tokenizer, writer, compile_marked
        self._renderer = Renderer(tokenizer)
        self._template = self._renderer.template
        special = [added.content for added in tokenizer.added_tokens_decoder.values() if added.special]
        self._special = tuple(dict.fromkeys(filter(None, special)))
        self._ends = tuple(dict.fromkeys(filter(None, [*map(self._text_of, self._renderer.turn_ends), tokenizer.eos_token])))
        added = [added.content for added in tokenizer.added_tokens_decoder.values()]
        self._borders = re.compile("|".join(map(re.escape, sorted({"\n", *added}, key=len, reverse=True))))
        self._marked: dict[str, MarkedTemplate | None] = {}
        self._openings: dict[tuple[str, bool, str], Opening] = {}
        self._has_template = bool(tokenizer.chat_template)
        own = [getattr(tokenizer, name) for name in ("bos_token", "eos_token", "pad_token")]
        self._defusing = Defusing(self._template if self._has_template else None, self._special, own)
        self._developer = self._has_template and _ASKED in self._template.tried([{"role": "developer", "content": _ASKED}, _asks()])
        blocks = [{"role": "user", "content": [{"type": "text", "text": _ASKED}]}]
        self._blocks = self._has_template and "'text'" not in (shown := self._template.tried(blocks)) and _ASKED in shown

    def render(
        self,
        messages: Sequence[Message],
        *,
        column: str,
        masked: bool,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
        answers_from: int | None = None,
    ) -> Conversation:
        """A conversation, and which of its characters are trained.

        Args:
            messages: all of them.
            column: of the row that they come from, for messages.
            masked: train what the assistant samples alone, and not the whole text.
            tools: as JSON schemas.
            variables: further ones of the template.
            answers_from: the first message of the completion, where there is one; the assistant's turns from there on are trained.

        Raises:
            RowFault: where the template refuses the messages, or does not show what the assistant says.
            ConfigError: where there is no template.
        """
        self._check_template()
        prepared = self._template.messages([self._readable(message) for message in messages])
        task = _Task(prepared, column, answers_from or 0, tuple(tools or ()), dict(variables or {}))
        text = self._render(task, len(prepared), generate=False)
        cuts = self._cuts(task, text)
        defusing = {"defused"} if cuts else set()
        if not masked and answers_from is None:
            for at in task.answers():
                self._check_said(task, at, text)
            return Conversation(draft=Draft(text=text, plain=False, cuts=cuts), notes=frozenset(defusing))
        spans, notes = self._spans(task, text, own_marks=answers_from is None)
        prompt = 0
        if answers_from is not None:
            asked = self._render(task, answers_from, generate=True)
            prompt = len(asked) if text.startswith(asked) and len(asked) < spans[0][1] else spans[0][0]
            notes |= set() if text.startswith(asked) else {"other_prompt"}
            spans = [(max(prompt, start), end) for start, end in spans]
        return Conversation(
            draft=Draft(text=text, prompt=prompt, spans=tuple(spans) if masked else None, cuts=cuts, plain=False),
            notes=frozenset(notes | defusing),
        )

    def _cuts(self, task: _Task, text: str) -> tuple[int, ...]:
        """Characters inside of what is said that keep it from being read as special tokens. Raises `RowFault` where there is no telling."""
        said = [self._defusing.defused(message) for message in task.messages]
        if said == task.messages:
            return ()
        shown = self._try(replace(task, messages=said), said, generate=False)
        if shown is None or shown.replace(CUT, "") != text:
            at = next(at for at, message in enumerate(said) if message != task.messages[at])
            raise RowFault(
                field=f"{task.field(at)}.content",
                expected="text without special tokens, where the chat template rewrites what is said",
                got=described(task.messages[at]["content"]),
            )
        parts = shown.split(CUT)
        return tuple(sum(map(len, parts[:count])) for count in range(1, len(parts)))

    def asked(
        self,
        messages: Sequence[Message],
        *,
        column: str,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """A prompt as a model is asked it, up to where its turn begins; arguments and errors as those of `render`."""
        self._check_template()
        prepared = self._template.messages([self._readable(message) for message in messages])
        return self._render(_Task(prepared, column, 0, tuple(tools or ()), dict(variables or {})), len(prepared), generate=True)

    def _check_template(self) -> None:
        if not self._has_template:
            raise ConfigError(
                "the rows are conversations, and the model's tokenizer has no chat template: name a file with one in "
                "data.chat_template, or use an instruction-tuned model"
            )

    def _spans(self, task: _Task, text: str, *, own_marks: bool) -> tuple[list[Span], set[str]]:
        """The characters that the assistant samples in each of its turns."""
        marked = self._marks(task)
        if marked is None or marked.text != text:
            marked = Marked(text=text, turns={}, generated=())
        elif own_marks and self._template_of(task).says_generation:
            return self._of_author(task, marked), set()
        spans, notes = [], set()
        for at in task.answers():
            span, said = self._sampled(task, marked, at)
            if span is not None:
                self._check_said(task, at, text[span[0] : span[1]])
                spans.append(span)
            notes |= said
        if not spans:
            raise RowFault(field=task.column, expected="an assistant message with something to train", got="none")
        return spans, notes

    def _of_author(self, task: _Task, marked: Marked) -> list[Span]:
        spans = [span for span in marked.generated if span[1] > span[0]]
        if not spans:
            expected = "an assistant message in the template's own `{% generation %}` blocks"
            raise RowFault(field=task.column, expected=expected, got="nothing in them, so that no token would be trained")
        return spans

    def _sampled(self, task: _Task, marked: Marked, at: int) -> tuple[Span | None, set[str]]:
        """A turn's characters, and notes; None for a turn that says nothing and is not shown."""
        text, turn = marked.text, marked.turns.get(at)
        notes: set[str] = set()
        start = None
        if turn is not None:
            opening = self._opening(task, at)
            length = opening.length(text[turn[0] : turn[1]], self._borders)
            start = None if length is None else turn[0] + length
            notes |= set() if start is None or text.startswith(opening.asking, turn[0]) else {"other_prompt"}
        if turn is None or start is None:
            found = span_by_difference(lambda messages, generate: self._try(task, messages, generate=generate), task.messages, at, text)
            if found is None and not says_something(task.messages[at]):
                return None, notes
            if found is None:
                raise RowFault(
                    field=task.field(at),
                    expected="a message whose place in the rendered conversation can be told",
                    got="one that the chat template writes elsewhere, or rewrites",
                )
            start, turn = found[0], found
        end = self._end(text, start, turn[1])
        if end is None:
            notes.add("no_end")
            end = turn[1]
        return (start, end) if end > start else None, notes

    def _end(self, text: str, start: int, end: int) -> int | None:
        """Behind the token that ends a turn: the last of the turn's own text, or one that is written with the next message."""
        own = text[start:end].rstrip()
        if own.endswith(self._special):
            return start + len(own)
        behind = _TAIL.match(text, end)
        assert behind is not None
        return next((behind.end() + len(token) for token in self._ends if text.startswith(token, behind.end())), None)

    def _check_said(self, task: _Task, at: int, sampled: str) -> None:
        """Raise `RowFault` where what the assistant says is not all in what would be trained."""
        message = task.messages[at]
        content = message.get("content")
        said = [content] if isinstance(content, str) else [block["text"] for block in content or ()]
        for words in said:
            answer = words.rpartition("</think>")[2]  # templates drop, move and rewrite the reasoning of earlier turns
            if answer.strip() and answer.strip() not in sampled and not message.get("tool_calls"):
                raise RowFault(
                    field=f"{task.field(at)}.content",
                    expected="text that the chat template shows in the assistant's turn",
                    got=f"{described(words)}, and the turn is {described(sampled)}",
                )
        for call in message.get("tool_calls") or ():
            name = call.get("function", call).get("name", "")
            if name not in sampled:
                raise RowFault(
                    field=f"{task.field(at)}.tool_calls",
                    expected="calls that the chat template shows",
                    got=f"a call of {name}, and the turn is {described(sampled)}",
                    cure="use a template with tools",
                )

    def _opening(self, task: _Task, at: int) -> Opening:
        """How the turn `at` is begun, found out with a stand-in conversation that has a message of the same role before it."""
        role = "tool" if at and task.messages[at - 1]["role"] == "tool" else "user"
        last = at == len(task.messages) - 1
        key = (role, last, json.dumps(task.variables, sort_keys=True, default=str))
        if key not in self._openings:
            self._openings[key] = self._probed(role, last, task)
        return self._openings[key]

    def _probed(self, role: str, last: bool, task: _Task) -> Opening:
        before = [_asks()]
        if role == "tool":
            result = {"role": "tool", "name": "probe", "content": _ASKED, "tool_call_id": "agentrl00"}
            before = [*caller_of([result], ()), result]
        answer = {"role": "assistant", "content": _SAID}
        probe = _Task([*before, answer, *([] if last else [_asks()])], "", 0, (), task.variables)
        plain = self._try(probe, before, generate=False)
        asked = self._try(probe, before, generate=True)
        marked = self._marks(probe)
        if plain is None or asked is None or marked is None or len(before) not in marked.turns:
            return self._probed("user", last, task) if role == "tool" else Opening(asking="\0", header="\0")
        start, end = marked.turns[len(before)]
        header, found, _ = marked.text[start:end].partition(_SAID)
        # up to where the turn would begin; behind the loop a template may write what ends a text
        asking = asked[start:] if asked.startswith(marked.text[:start]) else asked[common_length(asked, plain) :]
        return Opening(asking=asking, header=header if found else "\0")

    def _marks(self, task: _Task) -> Marked | None:
        template = self._template_of(task)
        variables = {**self._tokenizer.special_tokens_map, "documents": None, **task.variables}
        tools = [dict(tool) for tool in task.tools] or None
        messages = self._template.messages(task.messages)
        return template.render(messages, {**variables, "tools": tools, "add_generation_prompt": False}) if template else None

    def _template_of(self, task: _Task) -> Any:
        source = self._tokenizer.get_chat_template(tools=[dict(tool) for tool in task.tools] or None)
        if source not in self._marked:
            self._marked[source] = self._compile(source)
        return self._marked[source]

    def _render(self, task: _Task, count: int, *, generate: bool) -> str:
        try:
            return self._template.render(task.messages[:count], task.tools, generate=generate, variables=task.variables)
        except EnvironmentFailure as error:
            raise RowFault(
                field=task.column, expected="a conversation that the chat template takes", got=f"one that it does not: {error}"
            ) from None

    def _try(self, task: _Task, messages: Sequence[Message], *, generate: bool) -> str | None:
        try:
            return self._template.render(messages, task.tools, generate=generate, variables=task.variables)
        except EnvironmentFailure:
            return None

    def _readable(self, message: Message) -> Message:
        """A message of a role, and with content, that the template shows."""
        if message["role"] == "developer" and not self._developer:
            message = {**message, "role": "system"}
        if isinstance(message.get("content"), list | tuple) and not self._blocks:
            message = {**message, "content": "".join(block["text"] for block in message["content"])}
        return message

    def _text_of(self, token: int) -> str:
        return self._writer.text([token])


@dataclass(frozen=True, slots=True)
class _Task:
    """A conversation that is being rendered."""

    messages: list[Message]
    column: str
    answers_from: int
    tools: tuple[Mapping[str, Any], ...]
    variables: dict[str, Any]

    def answers(self) -> list[int]:
        """The assistant's messages that are trained."""
        return [at for at in range(self.answers_from, len(self.messages)) if self.messages[at]["role"] == "assistant"]

    def field(self, at: int) -> str:
        """A message's name for people."""
        return f"{self.column}[{at - self.answers_from}]"


def _asks() -> Message:
    return {"role": "user", "content": _ASKED}

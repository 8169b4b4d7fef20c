"""Where in a rendered conversation each message stands, told by the chat template as it runs, and not by looking for words.

A chat template is a Jinja program that goes through the messages in a loop and writes as it goes. Into its syntax tree two calls that write
nothing are put: one at the start of every round of a loop, with what the round is about, and one behind the loop. When such a call runs,
what has been written so far is known to the character. Loops whose output is collected first (in macros, `set` blocks and filters) are left
alone, so the text cannot change. In the same way `{% generation %}` blocks tell where they begin and end.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from jinja2 import nodes
from jinja2.exceptions import TemplateError
from jinja2.visitor import NodeTransformer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jinja2 import Environment, Template

    Message = dict[str, Any]
    Span = tuple[int, int]

_ROUND, _LOOP, _OPEN, _CLOSE = "agentrl_round", "agentrl_loop", "agentrl_open", "agentrl_close"


@dataclass(frozen=True, slots=True, kw_only=True)
class Marked:
    """A rendered conversation and the places of its messages."""

    text: str
    turns: Mapping[int, Span]
    """Message -> the characters that its round of the template's loop wrote; without those that no round wrote, or several."""
    generated: tuple[Span, ...]
    """What stands in `{% generation %}` blocks."""


class MarkedTemplate:
    """A chat template that says where its messages stand.

    Args:
        source: of the template.
        environment: what compiles it: that of transformers, with its filters, its sandbox and its `generation` tag.
    """

    def __init__(self, source: str, environment: Environment) -> None:
        marker = _Marker()
        tree = marker.visit(environment.parse(source))
        tree.set_environment(environment)
        code: Any = environment.compile(tree)
        self._template: Template = environment.template_class.from_code(environment, code, environment.make_globals(None), None)
        self.says_generation = marker.num_generation > 0
        """Whether the template's author has marked what the assistant generates."""

    def render(self, messages: Sequence[Message], variables: Mapping[str, Any]) -> Marked | None:
        """The text with its places; None where the template refuses these messages, which the plain rendering then tells."""
        track = _Track({id(message): index for index, message in enumerate(messages)})
        written: list[str] = []
        marks = {_ROUND: track.round, _LOOP: track.loop, _OPEN: track.open, _CLOSE: track.close}
        try:
            for piece in self._template.generate(messages=list(messages), **variables, **marks):
                written.append(piece)
                track.length += len(piece)
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError):
            return None
        return Marked(text="".join(written), turns=track.turns(), generated=tuple(track.generated))


def compiled(source: str) -> MarkedTemplate | None:
    """The marked form of a chat template, in transformers' own environment; None where this release of transformers lends none."""
    try:
        from transformers.utils import chat_template_utils

        environment = chat_template_utils._compile_jinja_template(source).environment
    except (ImportError, AttributeError):
        return None
    return MarkedTemplate(source, environment)


@dataclass(slots=True)
class _Track:
    """What the marks tell while a template runs."""

    numbers: Mapping[int, int]
    """Identity of a message -> its number."""
    length: int = 0
    """Characters written."""
    generated: list[Span] = field(default_factory=list)
    found: list[tuple[int, int, int]] = field(default_factory=list)
    """(message, start, end) of each round that has ended."""
    running: list[list[int]] = field(default_factory=list)
    """A loop each, the inner ones last: number and start of the message of its round, or nothing."""
    opened: list[int] = field(default_factory=list)

    def loop(self, begins: bool) -> str:
        """A loop begins or has ended."""
        if begins:
            self.running.append([])
        else:
            self._end_round()
            self.running.pop()
        return ""

    def round(self, item: Any) -> str:
        """A round of the innermost loop begins."""
        self._end_round()
        number = self.numbers.get(id(item))
        self.running[-1] = [] if number is None else [number, self.length]
        return ""

    def open(self) -> str:
        """A `{% generation %}` block begins."""
        self.opened.append(self.length)
        return ""

    def close(self) -> str:
        """It has ended."""
        self.generated.append((self.opened.pop(), self.length))
        return ""

    def turns(self) -> dict[int, Span]:
        """The messages that one round has written, and in whose round no other message was written."""
        rounds = [(number, start, end) for number, start, end in self.found if end > start]
        times: dict[int, int] = {}
        for number, _, _ in rounds:
            times[number] = times.get(number, 0) + 1
        rounds.sort(key=operator.itemgetter(1))
        borders = list(pairwise(rounds))
        mixed = {number for one, other in borders if other[1] < one[2] for number in (one[0], other[0])}
        return {number: (start, end) for number, start, end in rounds if times[number] == 1 and number not in mixed}

    def _end_round(self) -> None:
        if self.running[-1]:
            number, start = self.running[-1]
            self.found.append((number, start, self.length))
            self.running[-1] = []


class _Marker(NodeTransformer):
    """Puts the calls into a template's syntax tree."""

    def __init__(self) -> None:
        self.num_generation = 0

    def visit_For(self, node: nodes.For) -> Any:
        """Tell each round, where a loop variable has a name and the output is written as the loop runs."""
        if node.recursive or not isinstance(node.target, nodes.Name):
            return node
        self.generic_visit(node)
        node.body.insert(0, _call(node, _ROUND, nodes.Name(node.target.name, "load")))
        return [_call(node, _LOOP, nodes.Const(True)), node, _call(node, _LOOP, nodes.Const(False))]

    def visit_CallBlock(self, node: nodes.CallBlock) -> Any:
        """Tell a `generation` block; the output of any other is collected first."""
        called = node.call.node
        if not isinstance(called, nodes.ExtensionAttribute) or called.name != "_generation_support":
            return node
        self.num_generation += 1
        body = nodes.Scope(node.body).set_lineno(node.lineno)
        return [_call(node, _OPEN), self.generic_visit(body), _call(node, _CLOSE)]

    def _as_it_is(self, node: nodes.Node) -> nodes.Node:
        return node

    visit_Macro = visit_AssignBlock = visit_FilterBlock = visit_Block = _as_it_is


def _call(at: nodes.Node, name: str, *arguments: nodes.Expr) -> nodes.Output:
    call = nodes.Call(nodes.Name(name, "load"), list(arguments), [], None, None)
    output = nodes.Output([call])
    output.set_lineno(at.lineno)
    return output

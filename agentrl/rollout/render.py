"""Prompts and later turns as token ids. Only text that is new to the context is ever tokenized; sampled ids are kept as they are.

A later turn is rendered behind a stand-in conversation (user, assistant) and cut after the stand-in's end-of-turn token, so that
templates which rewrite their own past (dropping old reasoning, prefilling `<think>`) change nothing in what was sampled.

Why not the package `renderers` (0.1.12, Apache-2.0), which renders, extends and parses about thirty families written by hand: it picks
one by the exact name of a model, so a checkpoint in a folder must be told its family, and of any other template it renders the history
again, which would tokenize what was sampled. It has no Mistral, Granite, Phi, Cohere, LFM2, Seed-OSS or pythonic calls. It wants openai,
openai-harmony and tiktoken, takes 1.5 s to import, and downloads a vocabulary for gpt-oss. Its parser runs a call within reasoning that
is never closed, cuts at a `</tool_call>` inside of a string, passes on NaN and arguments that are a list or a text, and raises on deep
nesting. A turn of 990 tokens takes it 1.5 ms, and 0.6 ms here with decoding. It is synchronous, so trio was no reason. In the families
that both know, well-formed calls are read alike (`tests/rollout/tool_formats/test_against_renderers.py`).
"""

from __future__ import annotations

import re
import sys
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import trio

from agentrl.errors import ConfigError
from agentrl.rollout.template import ChatTemplate
from agentrl.rollout.tokenizer import codec, generation_eos, load_tokenizer
from agentrl.rollout.tool_detect import caller_of, end_of_calls
from agentrl.rollout.turnstile import one_by_one

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from transformers import PreTrainedTokenizerBase

    from agentrl.rollout.tool_formats.base import ToolFormat

Message = dict[str, Any]

LONG_CHARS = 20_000
"""Tokenizing more than this takes milliseconds: not on an event loop."""
CACHED_PROMPTS = 64

CUT = "\ufdd0"
"""A noncharacter: text is tokenized in pieces around it, and it is never tokenized itself."""
_QUESTION, _STAND_IN, _NEXT, _CALLED = "agentrlquestion", "agentrlanswer", "agentrlnext", "agentrlcalled"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendered:
    """Tokens to put into the context."""

    ids: np.ndarray
    """[length] int32, read-only."""
    thinking: bool
    """Whether the text ends inside an open `<think>`, which the model then closes."""


class Renderer:
    """Writes prompts and later turns for one tokenizer; finds out once how its chat template ends a turn.

    Raises `ConfigError` for a `stop` that is not one token.

    Args:
        tokenizer: of the policy.
        eos_ids: further end tokens, from the model's generation config.
        stop: texts that end a turn, each exactly one token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, eos_ids: Iterable[int] = (), stop: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._encode, self._decode = codec(tokenizer)
        self._cache: OrderedDict[bytes, Rendered] = OrderedDict()
        self._has_template = bool(tokenizer.chat_template)
        self._tool_prefix: list[Message] | None = None
        self._added = {token: added.content for token, added in tokenizer.added_tokens_decoder.items()}
        self._control = alternatives([added.content for added in tokenizer.added_tokens_decoder.values() if added.special])
        self._turn_end: int | None = None
        self._tool_end: int | None = None
        self._shows_text = True
        self._said_guess = False
        self.template = ChatTemplate(tokenizer)
        """Writes the text."""
        self.turn_ends: tuple[int, ...] = ()
        """Ids of the template's own end-of-turn tokens: in the middle of a conversation, at its end, and after calls."""
        self.keeps_prefix = True
        """Whether the template renders a conversation, reasoning included, as a prefix of its continuation, as contexts here always are."""
        self.tool_format: ToolFormat = self.template.calls.tool_format
        """How the template writes tool calls, and with that reasoning; Hermes's where it writes none that are known."""
        if self._has_template:
            self._probe()
        # what closes reasoning stands in the middle of a turn: gpt-oss ends the one as it ends the other, in the history alone
        closing = {self._encode(mark, False)[0] for _, mark in self.tool_format.thinking if mark in self._added.values()}
        ends: list[int] = [*self.turn_ends]
        ends = [*(end for end in ends if end not in closing), *eos_ids, *map(self._stop_id, stop)]
        if tokenizer.eos_token_id is not None:
            ends.append(tokenizer.eos_token_id)
        self.stop_ids: tuple[int, ...] = tuple(dict.fromkeys(ends))
        """Sampling one of these ends a turn."""

    @staticmethod
    def load(model: str, stop: Sequence[str] = ()) -> Renderer:
        """A renderer for a model's folder or Hub name. Raises `ConfigError` where it has no tokenizer."""
        return Renderer(load_tokenizer(model), eos_ids=generation_eos(model), stop=stop)

    def prompt(self, prompt: str | list[Message], tools: Sequence[Mapping[str, Any]] = ()) -> Rendered:
        """The first prompt of an episode.

        A string is tokenized as it is, with the special tokens that the tokenizer adds; messages go through the chat template.
        Raises `ConfigError` where there is no template or it ignores the tools, `EnvironmentFailure` where it refuses these messages.
        """
        key = msgspec.msgpack.encode((prompt, tools))
        known = self._cache.get(key)
        if known is None:
            known = self._cache[key] = self._first(prompt, tools)
            if len(self._cache) > CACHED_PROMPTS:
                self._cache.popitem(last=False)
        return known

    def _first(self, prompt: str | list[Message], tools: Sequence[Mapping[str, Any]]) -> Rendered:
        if isinstance(prompt, str):
            return self._rendered(self._encode(prompt, True), prompt)
        if not self._has_template:
            raise ConfigError(
                "the environment gives messages, but the model's tokenizer has no chat template; give it one (tokenizer.chat_template = "
                "..., then save_pretrained), use an instruction-tuned model, or return a plain string from the environment's start"
            )
        if not self._shows_text:
            raise ConfigError("the model's chat template does not show messages whose content is plain text; use a text model's template")
        # what a tool has said opens no turn here either, where a rewritten history is rendered as a whole
        prompt = [self._defused(message) if message["role"] == "tool" else message for message in prompt]
        text = self.template.render(prompt, tools)
        if tools and text == self.template.render(prompt, ()):
            raise ConfigError(
                f"the environment has tools ({', '.join(_names(tools))}), but the model's chat template does not show tools to the model; "
                "use a model or a template with tools"
            )
        if tools and not self.template.calls.recognised and not self._said_guess:
            self._said_guess = True
            said = f"the model's chat template writes tool calls in no known form; they are read as {self.tool_format.form}"
            print(said, file=sys.stderr, flush=True)
        return self._rendered(self._encode_defused(text), text)

    def extension(self, messages: list[Message], tools: Sequence[Mapping[str, Any]] = (), *, last_id: int, plain: bool = False) -> Rendered:
        """What follows an assistant turn in the context: the end of that turn where it is missing, then the new messages.

        Args:
            messages: one user message, or the tool messages of a turn.
            tools: as for the prompt.
            last_id: the last sampled id, which tells whether the turn has ended itself.
            plain: whether the prompt was a string; then the messages' text is appended as it is.
        """
        if plain:
            text = "".join(_plain_text(message) for message in messages)
            return self._rendered(self._encode(text, False), text)
        prefix = self._prefix(messages, tools)
        text = self.template.render([*prefix, *map(self._defused, messages)], tools)
        cut = self._cut(text, prefix)
        if cut < 0:
            raise ConfigError(
                f"the model's chat template ends no turn before a message of role {messages[0]['role']!r}; use another template"
            )
        ids = self._encode_defused(text[cut:])
        return self._rendered(ids[1:] if last_id in self.turn_ends else ids, text)

    def _cut(self, text: str, prefix: list[Message]) -> int:
        """Where the stand-in's turn ends: at its end-of-turn token, right behind its words where the template has none; or -1."""
        if self._tool_end is not None and "tool_calls" in prefix[-1]:
            end = end_of_calls(text, self.tool_format, len(prefix[-1]["tool_calls"]))
            return end if end < 0 else text.find(self._added[self._tool_end], end - len(self.tool_format.ends_turn))
        words = _answer_end(text, prefix)
        return words if self._turn_end is None else text.find(self._added[self._turn_end], words)

    def _defused(self, message: Message) -> Message:
        """A message in which no special token can be read: what a tool or user says opens no turn in anybody else's name."""
        if self._control is None:
            return message
        said = {key: message[key] for key in ("content", "name") if isinstance(message.get(key), str)}
        return {**message, **{key: defused(text, self._control) for key, text in said.items()}}

    def _encode_defused(self, text: str) -> list[int]:
        return [token for part in text.split(CUT) for token in self._encode(part, False)]

    def text(self, ids: np.ndarray) -> str:
        """The text of sampled ids without their end token; special tokens stay visible, broken UTF-8 becomes U+FFFD."""
        kept = ids[:-1] if len(ids) and int(ids[-1]) in self.stop_ids else ids
        return self._decode(kept.tolist())

    def _prefix(self, messages: list[Message], tools: Sequence[Mapping[str, Any]]) -> list[Message]:
        if messages[0]["role"] != "tool":
            return _CHAT
        if self._tool_end is not None:
            return caller_of(messages, _names(tools))
        if self._tool_prefix is None:
            raise ConfigError(
                "the environment's tools gave results, but the model's chat template cannot render a message of role 'tool'; "
                "use a model or a template with tools"
            )
        return self._tool_prefix

    def _probe(self) -> None:
        """Find the end-of-turn tokens, the stand-in that tool messages need, and whether the template extends its own prefix."""
        user = {"role": "user", "content": _NEXT}
        first = self.template.tried(_CHAT[:1], refused=_QUESTION)
        self._shows_text = _QUESTION in first
        middle = self.template.tried([*_CHAT, user])  # empty for a template of one turn: extension() says so where it is asked for more
        self._turn_end = self._end_after(middle)
        ends = (self._turn_end, self._end_after(self.template.tried(_CHAT, generate=False)))
        self.turn_ends = tuple(dict.fromkeys(end for end in ends if end is not None))
        thought = {**_CHAT[1], "content": f"<think>\n{_NEXT}\n</think>\n\n{_STAND_IN}"}
        again = self.template.tried([_CHAT[0], thought, user])
        self.keeps_prefix = middle.startswith(first + _STAND_IN) and again.startswith(first + thought["content"])
        result = {"role": "tool", "name": "probe", "content": _NEXT, "tool_call_id": _CALL_ID}
        for prefix in (_CHAT, _CHAT_WITH_CALL):
            text = self.template.tried([*prefix, result])
            if text.find(_NEXT) > self._cut(text, prefix) >= _answer_end(text, prefix) > 0:
                self._tool_prefix = prefix
                return
        self._tool_end = self._end_after_calls(result)
        if self._tool_end is not None:
            self.turn_ends = tuple(dict.fromkeys([*self.turn_ends, self._tool_end]))

    def _end_after_calls(self, result: Message) -> int | None:
        """The added token that ends a turn with calls, in templates where that is not the one which ends other turns."""
        text = self.template.tried([*caller_of([result], ()), result])
        end = end_of_calls(text, self.tool_format, 1)
        rest = text[end - len(self.tool_format.ends_turn) :].lstrip() if 0 < end < text.find(_NEXT) else ""
        return self._added_at(rest)

    def _end_after(self, text: str) -> int | None:
        """The added token that stands right behind the stand-in's answer."""
        rest = text[text.find(_STAND_IN) + len(_STAND_IN) :].lstrip() if _STAND_IN in text else ""
        return self._added_at(rest)

    def _added_at(self, text: str) -> int | None:
        ids = self._encode(text[:64], False) if text else []
        return ids[0] if ids and text.startswith(self._added.get(ids[0], "\0")) else None

    def _stop_id(self, stop: str) -> int:
        ids = self._encode(stop, False)
        if len(ids) != 1:
            raise ConfigError(f"sampling.stop: {stop!r} is {len(ids)} tokens of this tokenizer; only single tokens can end a turn")
        return ids[0]

    def _rendered(self, ids: list[int], text: str) -> Rendered:
        array = np.array(ids, dtype=np.int32)
        array.setflags(write=False)
        openings = tuple(opening for opening, _ in self.tool_format.thinking)
        return Rendered(ids=array, thinking=text[-64:].rstrip().endswith(openings))


async def off_loop(messages: Sequence[Message], render: Callable[[], Rendered]) -> Rendered:
    """Render messages on the event loop, or in a thread where there is much to tokenize."""
    if sum(len(str(message.get("content") or "")) for message in messages) <= LONG_CHARS:
        await one_by_one()
        return render()
    return await trio.to_thread.run_sync(render)


_CALL_ID = "agentrl00"  # nine letters and digits, which Mistral's templates insist on
_CHAT: list[Message] = [{"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _STAND_IN}]
_CHAT_WITH_CALL: list[Message] = [
    _CHAT[0],
    {
        "role": "assistant",
        "content": _STAND_IN,
        "tool_calls": [{"type": "function", "id": _CALL_ID, "function": {"name": _CALLED, "arguments": {}}}],
    },
]


def _answer_end(text: str, prefix: list[Message]) -> int:
    """Where the stand-in's own words end, 0 where there are none; some templates show a call in place of the content."""
    marks = (_STAND_IN, _CALLED) if prefix is _CHAT_WITH_CALL else (_STAND_IN,)
    return max((text.find(mark) + len(mark) for mark in marks if mark in text), default=0)


def defused(text: str, control: re.Pattern[str]) -> str:
    """A text with a `CUT` in each special token that can be read in it."""
    return control.sub(lambda found: found[0][0] + CUT + found[0][1:], text)


def alternatives(texts: Iterable[str]) -> re.Pattern[str] | None:
    """What finds one of these texts, the longest first; None where none is long enough to be cut."""
    long_enough = [re.escape(text) for text in sorted(texts, key=len, reverse=True) if len(text) > 1]
    return re.compile("|".join(long_enough)) if long_enough else None


def _plain_text(message: Message) -> str:
    content = str(message["content"])
    return f"\n<tool_response>\n{content}\n</tool_response>\n" if message["role"] == "tool" else content


def _names(tools: Sequence[Mapping[str, Any]]) -> list[str]:
    return [tool["function"]["name"] for tool in tools]

"""A model that says what a script says, for one episode: engine and renderer in one, with bytes as tokens and no chat template.

Nothing else is replaced: the loop of the episode, the reading of its tool calls and the worker processes are those of a run.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import trio

from agentrl.engines.protocol import Completion
from agentrl.records import SamplingContract, Version, VersionRun
from agentrl.rollout.render import Rendered
from agentrl.rollout.tool_formats.hermes import HERMES
from agentrl.rollout.tree import Sampler

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from agentrl.engines.protocol import Request
    from agentrl.llm import Message
    from agentrl.rollout.render import Renderer

END = 256
"""The token behind those of the 256 bytes; it ends a turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What the model is shown when its turn comes."""

    number: int
    """Turns that it has had in the episode."""
    messages: Sequence[Message]
    """The whole conversation."""
    news: Sequence[Message]
    """What came since its last turn."""
    tools: Sequence[Mapping[str, Any]]
    """OpenAI function schemas."""

    @property
    def question(self) -> str:
        """Text of the last message."""
        content = self.messages[-1].get("content") if self.messages else ""
        return content if isinstance(content, str) else json.dumps(content)


Say = Callable[[Seen], str]
"""What the model says next."""


async def _at_once() -> None:
    await trio.lowlevel.checkpoint()


class ScriptedModel:
    """An `Engine` and a renderer for one episode. A turn is never cut: a byte is no token, and budgets are meant for tokens.

    Args:
        say: the script.
        before: awaited before each turn.
    """

    context_length = 1 << 30
    stop_ids = (END,)
    turn_ends = (END,)
    tool_format = HERMES
    keeps_prefix = True

    def __init__(self, say: Say, before: Callable[[], Awaitable[None]] = _at_once) -> None:
        self._say = say
        self._before = before
        self._number = 0
        self._messages: list[Message] = []
        self._news: list[Message] = []
        self._tools: Sequence[Mapping[str, Any]] = ()

    def sampler(self, name: str = "policy", *, trained: bool = True) -> Sampler:
        """The model as an episode asks it."""
        return Sampler(engine=self, renderer=cast("Renderer", self), contract=SamplingContract(policy=name), trained=trained)

    def prompt(self, prompt: str | list[Message], tools: Sequence[Mapping[str, Any]] = ()) -> Rendered:
        """Take in the beginning of a conversation."""
        self._news = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        self._messages, self._tools = list(self._news), tools
        return _rendered(prompt if isinstance(prompt, str) else _written(self._news))

    def extension(
        self, messages: list[Message], tools: Sequence[Mapping[str, Any]] = (), *, last_id: int = -1, plain: bool = False
    ) -> Rendered:
        """Take in what comes next."""
        self._news, self._tools = list(messages), tools or self._tools
        self._messages += messages
        return _rendered(_written(messages))

    def text(self, ids: np.ndarray) -> str:
        """The text of a turn."""
        kept = ids[:-1] if len(ids) and int(ids[-1]) == END else ids
        return kept.astype(np.uint8).tobytes().decode("utf-8", "replace")

    async def generate(self, request: Request) -> Completion:
        """Say the next thing."""
        seen = Seen(number=self._number, messages=tuple(self._messages), news=tuple(self._news), tools=self._tools)
        self._number += 1
        await self._before()
        text = self._say(seen)
        self._messages.append({"role": "assistant", "content": text})
        ids = np.append(_bytes(text), np.int32(END)).astype(np.int32)
        return Completion(
            ids=ids,
            logprobs=np.zeros(len(ids), dtype=np.float32),
            versions=(VersionRun(version=Version(), start=0, end=len(ids)),),
            finish_reason="stop",
        )

    async def aclose(self) -> None:
        """Nothing is held."""


def _bytes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-8", "surrogatepass"), dtype=np.uint8).astype(np.int32)


def _rendered(text: str) -> Rendered:
    ids = _bytes(text)
    ids.setflags(write=False)
    return Rendered(ids=ids, thinking=False)


def _written(messages: Sequence[Message]) -> str:
    return "".join(f"\n{message.get('role')}: {message.get('content')}" for message in messages)

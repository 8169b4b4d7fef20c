"""The model as an environment sees it inside its worker: each call is a message to the rollout process, which holds the tokens."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from agentrl.environment import finite
from agentrl.errors import EnvironmentFailure
from agentrl.llm import POLICY, BudgetSpent, Call, Message, Reply, SamplingFailed
from agentrl.rollout.messages import Drop, Response, Sample, Sampled

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence


class HostedLLM:
    """An `agentrl.llm.LLM` for one episode. `run` plays it; `answered` and `cancel` may be called from another thread.

    Args:
        session: of the episode.
        send: sends to the rollout process.
    """

    def __init__(self, session: int, send: Callable[[Response], None]) -> None:
        self.rewards: dict[int, float] = {}
        """Of single turns, by number."""
        self._session = session
        self._send = send
        self._waiting: dict[int, asyncio.Future[Sampled]] = {}
        self._numbers = itertools.count()
        self._newest: int | None = None
        self._task: asyncio.Task[Any] | None = None
        self._cancelled = self._over = False

    async def run(self, play: Callable[[HostedLLM], Awaitable[Any]]) -> Any:
        """Play the episode on this event loop; what it returns. Calls that are then still open are cancelled, and no further ones made."""
        self._task = asyncio.current_task()
        if self._cancelled:
            raise asyncio.CancelledError
        try:
            return await play(self)
        finally:
            self._over = True
            for answer in list(self._waiting.values()):
                _on_loop(answer.get_loop(), answer.cancel)

    async def chat(
        self,
        messages: str | Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        policy: str = POLICY,
        max_tokens: int | None = None,
        train: bool = True,
    ) -> Reply:
        """Sample the next assistant turn; see `agentrl.llm.LLM`."""
        if self._cancelled:  # also for a program that went on where it was cancelled
            raise asyncio.CancelledError
        if self._over:
            raise SamplingFailed("the episode is over: its function has returned")
        number = next(self._numbers)
        request = Sample(
            session=self._session,
            number=number,
            prompt=_checked_messages(messages),
            tools=_checked_tools(tools),
            policy=str(policy),
            max_tokens=_checked_budget(max_tokens),
            train=bool(train),
        )
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        self._send(request)
        try:
            sampled = await answer
        except asyncio.CancelledError:
            self._send(Drop(session=self._session, number=number))
            raise
        finally:
            self._waiting.pop(number, None)
        if sampled.spent:
            raise BudgetSpent(sampled.spent)
        if sampled.refused:
            raise SamplingFailed(sampled.refused)
        self._newest = number
        return _reply(sampled)

    def reward(self, value: float, *, reply: Reply | None = None) -> None:
        """Add a reward to one turn; see `agentrl.llm.LLM`."""
        number = self._newest if reply is None else reply.number
        if number is None:
            raise EnvironmentFailure("llm.reward was called before the model has said anything")
        reward = finite("llm.reward got", value, "a finite number")
        self.rewards[number] = self.rewards.get(number, 0.0) + reward

    def answered(self, sampled: Sampled) -> None:
        """Hand over the answer to a call."""
        answer = self._waiting.get(sampled.number)
        if answer is not None:
            _on_loop(answer.get_loop(), partial(_resolve, answer, sampled))

    def cancel(self) -> None:
        """Cancel the episode, whatever it waits for."""
        self._cancelled = True
        if self._task is not None:
            _on_loop(self._task.get_loop(), self._task.cancel)


def _resolve(answer: asyncio.Future[Sampled], sampled: Sampled) -> None:
    if not answer.done():
        answer.set_result(sampled)


def _on_loop(loop: asyncio.AbstractEventLoop, action: Callable[[], Any]) -> None:
    """Do something on a loop of another thread, unless it is closed: the episode is over then."""
    with contextlib.suppress(RuntimeError):  # asking first whether it is closed would be a race
        loop.call_soon_threadsafe(action)


def _reply(sampled: Sampled) -> Reply:
    return Reply(
        message=sampled.message,
        text=sampled.text,
        calls=tuple(Call(**call) for call in sampled.calls),
        malformed=tuple(sampled.malformed),
        finish_reason="length" if sampled.finish_reason == "length" else "stop",
        number=sampled.number,
        version=sampled.version,
        usage=sampled.usage,
    )


def _checked_messages(messages: Any) -> str | list[Message]:
    if isinstance(messages, str):
        return messages
    found = list(messages)
    for message in found:
        if not _is_object(message) or not isinstance(message.get("role"), str):
            raise SamplingFailed(f"a conversation is a list of messages with a role and content, got {repr(message)[:80]}")
    return found


def _checked_tools(tools: Any) -> list[dict[str, Any]]:
    found = [dict(tool) if isinstance(tool, Mapping) else tool for tool in tools]
    if not all(map(_is_object, found)):
        raise SamplingFailed(f"tools are a list of OpenAI function schemas, got {repr(found)[:80]}")
    return found


def _is_object(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str) for key in value)


def _checked_budget(max_tokens: Any) -> int | None:
    if max_tokens is None or (isinstance(max_tokens, int) and max_tokens >= 1):
        return max_tokens
    raise SamplingFailed(f"max_tokens is {max_tokens!r:.80}; allowed: an integer of at least 1, or None")

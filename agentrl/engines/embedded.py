"""The embedded engine's client for rollouts, under trio; and, from modules of their own, how it is started and the learner's client.

Rollout processes import this module, so it must not load torch.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import trio

from agentrl import wire
from agentrl.engines.embedded_process import EngineProcess, start_engine
from agentrl.engines.embedded_publisher import EmbeddedPublisher
from agentrl.engines.messages import Abort, Completed, Failure, FromEngine, Generate, Hello, checked_hello
from agentrl.errors import SamplerUnavailable

if TYPE_CHECKING:
    from pathlib import Path

    from agentrl.engines.protocol import Completion, Request

__all__ = ["EmbeddedEngine", "EmbeddedPublisher", "EngineProcess", "start_engine"]


class EmbeddedEngine:
    """The engine as rollout processes see it; many calls may be in flight.

    Whoever waits for an answer and finds nobody reading the socket reads it, for all: so there is no task in the background.
    """

    def __init__(self, channel: wire.Channel[Any], hello: Hello, timeout_s: float) -> None:
        self.context_length = hello.context_length
        self.vocab_size = hello.vocab_size
        self.dtype = hello.dtype
        """The `dtype` of every contract that the engine accepts."""
        self._channel = channel
        self._timeout_s = timeout_s
        self._next = 1
        self._reading = False
        self._broken = ""
        self._waiting: dict[int, trio.Event] = {}
        self._answers: dict[int, Completed | Failure] = {}

    @staticmethod
    async def connect(path: str | Path, *, timeout_s: float) -> EmbeddedEngine:
        """Connect and wait until the model is loaded. Every later `generate` has the same deadline.

        Raises `SamplerUnavailable` where the engine ends or is silent for `timeout_s` seconds.
        """
        try:
            with trio.fail_after(timeout_s):
                stream = await trio.open_unix_socket(str(path))
                channel: wire.Channel[Any] = wire.Channel(stream, FromEngine)
                try:
                    hello = checked_hello(await channel.receive())
                except BaseException:
                    await trio.aclose_forcefully(stream)
                    raise
        except trio.TooSlowError:
            raise SamplerUnavailable(f"the embedded engine did not load its model within {timeout_s:g} s; raise engine.timeout_s") from None
        except OSError as error:
            raise SamplerUnavailable(f"the embedded engine does not listen at {path}: {error}") from error
        return EmbeddedEngine(channel, hello, timeout_s)

    async def generate(self, request: Request) -> Completion:
        """Sample one completion; see `Engine`. Also raises `SamplerUnavailable` where the engine refuses the request, saying why."""
        number, self._next = self._next, self._next + 1
        self._waiting[number] = trio.Event()
        answer = None
        try:
            with trio.move_on_after(self._timeout_s):
                await self._send(Generate(id=number, request=request))
                answer = await self._answer(number)
        finally:
            del self._waiting[number]
            self._answers.pop(number, None)
            if answer is None and not self._broken:
                with contextlib.suppress(SamplerUnavailable):
                    await self._send(Abort(id=number))
        if answer is None:
            raise SamplerUnavailable(f"the embedded engine did not finish a request within {self._timeout_s:g} s; raise engine.timeout_s")
        if isinstance(answer, Failure):
            raise SamplerUnavailable(answer.message)
        return answer.completion

    async def aclose(self) -> None:
        """Drop the connection; requests in flight are aborted."""
        self._break("the connection to the embedded engine was closed")
        await self._channel.aclose()

    async def _send(self, message: object) -> None:
        try:
            await self._channel.send(message)
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
            self._break("the embedded engine has ended")
            raise SamplerUnavailable(self._broken) from None

    async def _answer(self, number: int) -> Completed | Failure:
        """Wait until the answer is there. One waiter at a time reads; when it leaves, it hands over to another."""
        try:
            while number not in self._answers:
                if self._broken:
                    raise SamplerUnavailable(self._broken)
                if self._reading:
                    await self._waiting[number].wait()
                    self._waiting[number] = trio.Event()
                else:
                    await self._read()
            return self._answers[number]
        finally:
            if not self._reading:
                other = next((key for key in self._waiting if key != number and key not in self._answers), None)
                if other is not None:
                    self._waiting[other].set()

    async def _read(self) -> None:
        self._reading = True
        try:
            self._dispatch(await self._channel.receive())
        except (wire.FrameError, trio.ClosedResourceError) as error:
            self._break(f"the connection to the embedded engine is broken: {error}")
        finally:
            self._reading = False

    def _dispatch(self, message: Any) -> None:
        if message is None:
            self._break("the embedded engine has ended; its log says why")
        elif isinstance(message, Failure) and message.id == 0:
            self._break(message.message)
        elif isinstance(message, Completed | Failure) and message.id in self._waiting:
            self._answers[message.id] = message
            self._waiting[message.id].set()

    def _break(self, why: str) -> None:
        self._broken = self._broken or why
        for event in self._waiting.values():
            event.set()

"""A rollout process: `python -m agentrl.rollout.worker FD`. One nursery a group, under trio; nothing here blocks the event loop.

It plays the groups that arrive on its socket and sends each back when it is finished. It ends when the socket does.
"""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import sys
import traceback
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from agentrl import wire
from agentrl.config import RunConfig
from agentrl.dispatch import Beat, Cancel, Failed, Play, Played, Ready, Serving, Setup, Suspect, ToRollout
from agentrl.errors import AgentRLError
from agentrl.lifeline import die_with_parent
from agentrl.records import Group
from agentrl.rollout.episode import play_group
from agentrl.rollout.others import others_of
from agentrl.rollout.teaching import Tutor, tutor_of
from agentrl.rollout.tree import Sampler

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from agentrl.engines.protocol import Engine
    from agentrl.engines.vllm import VllmEngine
    from agentrl.rollout.pool import EnvPool
    from agentrl.rollout.render import Renderer

BEAT_S = 1.0
SUSPICIONS = 16
"""Complaints about vLLM servers that wait to be sent; more are dropped."""


class Worker:
    """The groups in flight of one process."""

    def __init__(
        self,
        channel: wire.Channel[Any],
        config: RunConfig,
        engine: Engine,
        renderer: Renderer,
        pool: EnvPool,
        on_serving: Callable[[Serving], None] = lambda serving: None,
        *,
        others: Mapping[str, Sampler] | None = None,
        tutor: Tutor | None = None,
    ) -> None:
        self._on_serving = on_serving
        self._channel = channel
        self._config = config
        self._engine = engine
        self._renderer = renderer
        self._pool = pool
        self._others = others or {}
        self._tutor = None if tutor is None else replace(tutor, context_length=engine.context_length)
        self._scopes: dict[int, trio.CancelScope] = {}
        self._episodes = 0

    async def serve(self) -> None:
        """Play what arrives until the socket closes. Raises what no group can survive."""
        await self._channel.send(Ready(context_length=self._engine.context_length))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._beat)
            while (message := await self._channel.receive()) is not None:
                if isinstance(message, Play):
                    nursery.start_soon(self._play, message)
                elif isinstance(message, Serving):
                    self._on_serving(message)
                elif isinstance(message, Cancel) and message.index in self._scopes:
                    self._scopes[message.index].cancel()
            nursery.cancel_scope.cancel()

    async def _play(self, play: Play) -> None:
        with trio.CancelScope() as scope:
            self._scopes[play.index] = scope
            self._episodes += play.group_size
            try:
                played = await play_group(
                    play.task,
                    play.group_size,
                    sampler=Sampler(engine=self._engine, renderer=self._renderer, contract=play.contract),
                    others=self._others,
                    pool=self._pool,
                    sampling=self._config.sampling,
                    rollout=self._config.rollout,
                    seed=play.seed,
                    rival=play.rival,
                    judged=play.judged,
                    tutor=self._tutor,
                )
                group = Group(
                    index=play.index,
                    task=play.task,
                    rollouts=tuple(played),
                    dispatched=play.dispatched,
                    preferences=played.preferences,
                )
                await self._channel.send(Played(group=group))
            finally:
                self._episodes -= play.group_size
                del self._scopes[play.index]

    async def _beat(self) -> None:
        while True:
            asked = trio.current_time() + BEAT_S
            await trio.sleep_until(asked)
            await self._channel.send(Beat(loop_lag_s=trio.current_time() - asked, episodes=self._episodes))


async def _serve(sock: socket.socket) -> None:
    from agentrl.engines.embedded import EmbeddedEngine
    from agentrl.rollout.pool import EnvPool
    from agentrl.rollout.render import Renderer

    channel: wire.Channel[Any] = wire.Channel(trio.SocketStream(trio.socket.from_stdlib_socket(sock)), ToRollout)
    setup = await channel.receive()
    if not isinstance(setup, Setup):
        raise AgentRLError(f"the first message must be Setup, got {type(setup).__name__}")
    try:
        config = RunConfig.model_validate(setup.config)
        renderer = await trio.to_thread.run_sync(Renderer.load, setup.tokenizer, config.sampling.stop)
        async with (
            EnvPool(setup.environment, config.imports, config.rollout, logs=Path(setup.log_folder)) as pool,
            others_of(setup, config) as others,
            tutor_of(setup.teaching, renderer) as tutor,
        ):
            spare_the_loop()
            if config.engine.kind == "vllm":
                async with _vllm(channel, config) as engine:
                    await Worker(channel, config, engine, renderer, pool, engine.update, others=others, tutor=tutor).serve()
            else:
                embedded = await EmbeddedEngine.connect(setup.engine_socket, timeout_s=config.engine.timeout_s)
                await Worker(channel, config, embedded, renderer, pool, others=others, tutor=tutor).serve()
    except* AgentRLError as group:
        error = _first(group)
        await channel.send(Failed(kind=type(error).__name__, message=str(error)))
        raise


@asynccontextmanager
async def _vllm(channel: wire.Channel[Any], config: RunConfig) -> AsyncIterator[VllmEngine]:
    """The vLLM servers that the supervisor names; it also hears from here of what goes wrong with them."""
    from agentrl.engines.vllm import VllmEngine

    send, receive = trio.open_memory_channel[Suspect](SUSPICIONS)

    def suspect(url: str, why: str) -> None:
        with contextlib.suppress(trio.WouldBlock):  # more of the same tell nothing new
            send.send_nowait(Suspect(url=url, why=why))

    async def tell() -> None:
        async for suspicion in receive:
            await channel.send(suspicion)

    engine = config.engine
    key = os.environ.get(engine.api_key_env, "")
    first = await channel.receive()
    if not isinstance(first, Serving):
        raise AgentRLError(f"the message after Setup must be Serving, got {type(first).__name__}")
    async with trio.open_nursery() as nursery:
        async with VllmEngine.open(
            timeout_s=engine.timeout_s,
            on_suspect=suspect,
            max_requests=engine.max_requests and max(1, engine.max_requests // config.rollout.processes),
            vocab_size=first.vocab_size,
            api_key=key,
        ) as opened:
            nursery.start_soon(tell)
            opened.update(first)
            yield opened
        nursery.cancel_scope.cancel()


def spare_the_loop() -> None:
    """Have Python's cyclic garbage collector run rarely, and never over what was imported.

    A collection of all that a thousand episodes hold stands in the event loop's way for a third of a second (measured, 1,000 episodes).
    """
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def main() -> None:
    """Entry point of the process."""
    die_with_parent()
    sock = socket.socket(fileno=int(sys.argv[1]))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        trio.run(_serve, sock)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)  # threads that an environment left behind must not keep the process alive
    os._exit(0)


if __name__ == "__main__":
    main()

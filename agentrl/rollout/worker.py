"""A rollout process: `python -m agentrl.rollout.worker FD`. One nursery a group, under trio; nothing here blocks the event loop.

It plays the groups that arrive on its socket and sends each back when it is finished. It ends when the socket does.
"""

from __future__ import annotations

import os
import socket
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from agentrl import wire
from agentrl.config import RunConfig
from agentrl.dispatch import Beat, Cancel, Failed, Play, Played, Ready, Setup, ToRollout
from agentrl.errors import AgentRLError
from agentrl.lifeline import die_with_parent
from agentrl.records import Group
from agentrl.rollout.episode import play_group

if TYPE_CHECKING:
    from agentrl.engines.protocol import Engine
    from agentrl.rollout.pool import EnvPool
    from agentrl.rollout.render import Renderer

BEAT_S = 1.0


class Worker:
    """The groups in flight of one process."""

    def __init__(self, channel: wire.Channel[Any], config: RunConfig, engine: Engine, renderer: Renderer, pool: EnvPool) -> None:
        self._channel = channel
        self._config = config
        self._engine = engine
        self._renderer = renderer
        self._pool = pool
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
                elif isinstance(message, Cancel) and message.index in self._scopes:
                    self._scopes[message.index].cancel()
            nursery.cancel_scope.cancel()

    async def _play(self, play: Play) -> None:
        with trio.CancelScope() as scope:
            self._scopes[play.index] = scope
            self._episodes += play.group_size
            try:
                rollouts = await play_group(
                    play.task,
                    play.group_size,
                    engine=self._engine,
                    renderer=self._renderer,
                    pool=self._pool,
                    sampling=self._config.sampling,
                    rollout=self._config.rollout,
                    seed=play.seed,
                    contract=play.contract,
                )
                group = Group(index=play.index, task=play.task, rollouts=rollouts, dispatched=play.dispatched)
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
        async with EnvPool(setup.environment, config.imports, config.rollout, logs=Path(setup.log_folder)) as pool:
            engine = await EmbeddedEngine.connect(setup.engine_socket, timeout_s=config.engine.timeout_s)
            await Worker(channel, config, engine, renderer, pool).serve()
    except* AgentRLError as group:
        error = _first(group)
        await channel.send(Failed(kind=type(error).__name__, message=str(error)))
        raise


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

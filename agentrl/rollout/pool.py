"""The environment workers of a rollout process: placed, watched, replaced. Deadlines are owned here, on this side of the process border."""

from __future__ import annotations

import itertools
import os
from contextlib import ExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import trio

from agentrl.environment import SCRATCH
from agentrl.errors import WorkerDied
from agentrl.rollout.envsession import EnvSession, Timeouts, alone
from agentrl.rollout.envworker import EnvironmentTimeout, EnvWorker, SetupDied
from agentrl.rollout.hostprocess import LocalHost
from agentrl.rollout.messages import Setup
from agentrl.rollout.turnstile import one_by_one
from agentrl.scratch import ScratchFolder

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path
    from types import TracebackType

    from agentrl.config import RolloutConfig
    from agentrl.records import Task
    from agentrl.rollout.hostprocess import Launch

__all__ = ["EnvPool", "EnvSession", "EnvironmentTimeout", "Timeouts", "alone"]

MOST_SETUP_DEATHS = 3
"""A worker that dies so often in a row before it is ready ends the pool."""
MOST_BACKOFF_S = 5.0


class EnvPool:
    """Several environment workers: `async with EnvPool(spec, imports, config) as pool: session = await pool.open(task)`.

    Entering waits for the first worker. Raises `ConfigError` where the environment does not import or cannot be made, `WorkerDied` where
    workers keep dying before they are ready. On leaving, environments get `Timeouts.close_s` to close; then every process is killed.

    Args:
        spec: the environment, as `agentrl.registry.load` takes it.
        imports: modules or files that each worker imports first.
        config: `env_workers` and the deadlines.
        timeouts: instead of those of `config`.
        logs: folder for what user code prints; by default a temporary one.
        launch: starts the process of a slot; by default a `LocalHost`.
    """

    def __init__(
        self,
        spec: str,
        imports: Sequence[str],
        config: RolloutConfig,
        *,
        timeouts: Timeouts | None = None,
        logs: Path | None = None,
        launch: Launch | None = None,
    ) -> None:
        self._setup = Setup(imports=list(imports), spec=spec, max_output_chars=config.max_tool_output_chars)
        self._size = config.env_workers
        self._timeouts = timeouts or Timeouts.of(config)
        self._logs = logs
        self._launch = launch or self._launch_local
        self._scratch: Path | None = None
        self._sessions = itertools.count(1)
        self._ready: list[EnvWorker] = []
        self._alive: set[EnvWorker] = set()
        self._changed = trio.Event()
        self._slots: list[trio.CancelScope] = []
        self._context: AbstractAsyncContextManager[None] | None = None
        self._nursery: trio.Nursery | None = None

    async def __aenter__(self) -> EnvPool:
        self._context = self._running()
        await self._context.__aenter__()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> bool | None:
        assert self._context is not None
        return await self._context.__aexit__(kind, error, trace)

    async def open(self, task: Task) -> EnvSession:
        """Start an episode in the least loaded worker. Raises `EnvironmentTimeout` or `EnvironmentFailure`; then nothing is left open."""
        await one_by_one()
        worker = await self._least_loaded()
        session = EnvSession(worker, next(self._sessions), self._timeouts)
        worker.admit(session._number)
        try:  # no wait before this: a worker that has not been told of an episode never says that it has closed it
            await session.start(task)
        except BaseException:
            session.close()
            raise
        return session

    async def _least_loaded(self) -> EnvWorker:
        while not (ready := [worker for worker in self._ready if not worker.retired.is_set()]):
            with trio.move_on_after(self._timeouts.setup_s) as scope:
                await self._changed.wait()
            if scope.cancelled_caught:
                raise EnvironmentTimeout(f"no environment worker became ready within {self._timeouts.setup_s:g} s")
        return min(ready, key=lambda worker: worker.load)

    @asynccontextmanager
    async def _running(self) -> AsyncIterator[None]:
        with ExitStack() as stack:
            if self._launch == self._launch_local:
                self._scratch = stack.enter_context(ScratchFolder("agentrl-env-"))
                self._logs = self._logs or self._scratch
            try:
                async with trio.open_nursery() as self._nursery:
                    for slot in range(self._size):
                        self._nursery.start_soon(self._keep_worker, slot)
                    while not self._ready:
                        await self._changed.wait()
                    try:
                        yield
                    finally:
                        await self._settle()
            except BaseExceptionGroup as group:
                raise alone(group) from None

    async def _settle(self) -> None:
        """Let environments close, for a while; then end every worker."""
        assert self._nursery is not None
        for scope in self._slots:
            scope.cancel()
        for worker in self._alive:
            worker.close_all()
        with trio.CancelScope(shield=True), trio.move_on_after(self._timeouts.close_s):
            while self._alive:
                await self._changed.wait()
        self._nursery.cancel_scope.cancel()

    async def _keep_worker(self, slot: int) -> None:
        """Keep one worker ready: start it, wait until it retires, start the next."""
        with trio.CancelScope() as scope:
            self._slots.append(scope)
            deaths = barren = 0
            while True:
                worker = self._start_worker(slot)
                try:
                    await worker.set_up(self._setup, self._timeouts.setup_s)
                except SetupDied as error:
                    deaths += 1
                    if deaths >= MOST_SETUP_DEATHS:
                        raise WorkerDied(f"an environment worker died {deaths} times in a row before it was ready; {error}") from None
                else:
                    deaths = 0
                    await self._offer(worker)
                    # a worker that never finished an episode may be killed by each one: do not spin
                    barren = 0 if worker.served else barren + 1
                finally:
                    worker.retire("the run is over")
                if deaths or barren > 1:
                    await trio.sleep(min(0.1 * 2 ** (deaths + barren), MOST_BACKOFF_S))

    def _start_worker(self, slot: int) -> EnvWorker:
        assert self._nursery is not None
        timeouts = self._timeouts
        worker = EnvWorker(self._launch(slot), grace_s=timeouts.grace_s, close_s=timeouts.close_s)
        self._alive.add(worker)
        self._nursery.start_soon(self._run_worker, worker)
        return worker

    async def _run_worker(self, worker: EnvWorker) -> None:
        try:
            await worker.run()
        finally:
            self._alive.discard(worker)
            self._notify()

    async def _offer(self, worker: EnvWorker) -> None:
        self._ready.append(worker)
        self._notify()
        try:
            await worker.retired.wait()
        finally:
            self._ready.remove(worker)

    def _notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def _launch_local(self, slot: int) -> LocalHost:
        assert self._logs is not None
        log = self._logs / f"env-{os.getpid()}-{slot}.log"
        return LocalHost(f"environment worker {slot}", log, environment={SCRATCH: str(self._scratch)})

"""The environment workers of a rollout process: placed, watched, replaced. Deadlines are owned here, on this side of the process border."""

from __future__ import annotations

import itertools
import os
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import trio

from agentrl.errors import AgentRLError, EnvironmentFailure, WorkerDied
from agentrl.rollout.envworker import EnvironmentTimeout, EnvWorker, SetupDied
from agentrl.rollout.hostprocess import LocalHost
from agentrl.rollout.messages import Answer, CallTool, Compare, Compared, Grade, Graded, Observation, Open, Opened, Replied, Setup
from agentrl.scratch import ScratchFolder

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path
    from types import TracebackType

    from agentrl.config import RolloutConfig
    from agentrl.environment import Episode
    from agentrl.records import Score, Task
    from agentrl.rollout.hostprocess import Launch
    from agentrl.rollout.messages import Request, Response

__all__ = ["EnvPool", "EnvSession", "EnvironmentTimeout", "Timeouts", "alone"]

T = TypeVar("T")

MOST_SETUP_DEATHS = 3
"""A worker that dies so often in a row before it is ready ends the pool."""
MOST_BACKOFF_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """Wall clock of each kind of wait, in seconds."""

    setup_s: float = 120.0
    """Importing the environment."""
    call_s: float = 30.0
    """Starting an episode, one tool call, one reply."""
    score_s: float = 30.0
    close_s: float = 5.0
    """Closing one environment."""
    grace_s: float = 30.0
    """What is left to the other episodes of a worker once a call in it has missed its deadline."""

    @staticmethod
    def of(config: RolloutConfig) -> Timeouts:
        """The deadlines of a run."""
        call_s, score_s = config.tool_timeout_s, config.score_timeout_s
        return Timeouts(call_s=call_s, score_s=score_s, grace_s=max(call_s, score_s))


class EnvSession:
    """An episode in a worker. Every method raises `EnvironmentTimeout` past its deadline and `EnvironmentFailure` for all else."""

    def __init__(self, worker: EnvWorker, number: int, timeouts: Timeouts) -> None:
        self._worker = worker
        self._number = number
        self._timeouts = timeouts
        self._busy_until = 0.0
        self._graded = False
        self.opened = Opened(call=0, prompt="", tools=[], max_turns=None, max_tokens=None, replies=False)
        """The prompt, the tools, and how many turns the environment allows."""

    async def start(self, task: Task) -> None:
        """Make the environment and start it."""
        call = self._worker.next_number()
        answer = await self._ask(call, Open(call=call, session=self._number, task=task), self._timeouts.call_s, "starting the environment")
        self.opened = _expected(answer, Opened)

    async def call_tool(self, name: str, arguments: dict[str, Any]) -> Observation:
        """Call a tool; what the tool itself raises comes back as an observation with `error` set."""
        call = self._worker.next_number()
        request = CallTool(call=call, session=self._number, name=name, arguments=arguments)
        return _expected(await self._ask(call, request, self._timeouts.call_s, f"tool {name}"), Observation)

    async def reply(self, text: str) -> Replied:
        """What the user says after an assistant turn without tool calls."""
        call = self._worker.next_number()
        request = Answer(call=call, session=self._number, text=text)
        return _expected(await self._ask(call, request, self._timeouts.call_s, "reply"), Replied)

    async def score(self, episode: Episode) -> Score:
        """Score the episode; nothing more can be asked after that."""
        call = self._worker.next_number()
        request = Grade(
            call=call,
            session=self._number,
            messages=episode.messages,
            completion_ids=episode.completion_ids,
            ending=episode.ending,
        )
        self._graded = True
        return _expected(await self._ask(call, request, self._timeouts.score_s, "score"), Graded).score

    async def compare(self, first: Episode, second: Episode) -> float | None:
        """The probability that the first of two finished episodes is better; None where the judge cannot tell."""
        call = self._worker.next_number()
        request = Compare(call=call, session=self._number, first=first, second=second)
        return _expected(await self._ask(call, request, self._timeouts.score_s, "compare"), Compared).value

    def close(self) -> None:
        """Have the environment closed. Does not wait, so it also works while being cancelled; closing twice does nothing."""
        self._worker.close(self._number, busy_until=self._busy_until, ends_itself=self._graded)

    async def _ask(self, call: int, request: Request, timeout_s: float, what: str) -> Response:
        self._busy_until = trio.current_time() + timeout_s
        answer = await self._worker.ask(self._number, call, request, timeout_s, what)
        self._busy_until = 0.0
        return answer


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
        worker = await self._least_loaded()
        session = EnvSession(worker, next(self._sessions), self._timeouts)
        worker.admit(session._number)
        try:
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
                self._logs = self._logs or stack.enter_context(ScratchFolder("agentrl-env-"))
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
        return LocalHost(f"environment worker {slot}", self._logs / f"env-{os.getpid()}-{slot}.log")


def alone(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error that a nursery wrapped: its only one, or the first of several that are all agentrl's own; else the group."""
    errors = group.exceptions
    if len(errors) == 1 or all(isinstance(error, AgentRLError) for error in errors):
        return errors[0]
    return group


def _expected(answer: Response, kind: type[T]) -> T:
    if not isinstance(answer, kind):
        raise EnvironmentFailure(f"a worker answered {type(answer).__name__} where {kind.__name__} was expected")
    return answer

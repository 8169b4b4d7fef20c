"""One episode in an environment worker, as the rollout process sees it: every wait with its deadline."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import trio

from agentrl.errors import AgentRLError, EnvironmentFailure
from agentrl.rollout.messages import (
    Answer,
    CallTool,
    Compare,
    Compared,
    Drop,
    Finished,
    Grade,
    Graded,
    Observation,
    Open,
    Opened,
    Play,
    Replied,
    Sample,
    Sampled,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from agentrl.config import RolloutConfig
    from agentrl.environment import Episode
    from agentrl.records import Score, Task
    from agentrl.rollout.envworker import EnvWorker
    from agentrl.rollout.messages import Request, Response

T = TypeVar("T")


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
        timeout_s = self.opened.timeouts.get(name, self._timeouts.call_s)
        return _expected(await self._ask(call, request, timeout_s, f"tool {name}"), Observation)

    async def reply(self, text: str) -> Replied:
        """What the user says after an assistant turn without tool calls."""
        call = self._worker.next_number()
        request = Answer(call=call, session=self._number, text=text)
        return _expected(await self._ask(call, request, self._timeouts.call_s, "reply"), Replied)

    async def play(self, answer: Callable[[Sample], Awaitable[Sampled]]) -> Finished:
        """Have the environment play its episode; without a deadline, so give it one by cancelling.

        Args:
            answer: samples a turn that it asks for; several may be asked for at once.
        Raises: `EnvironmentFailure`, and what `answer` raises.
        """
        scopes: dict[int, trio.CancelScope] = {}

        async def serve(sample: Sample) -> None:
            with scopes[sample.number]:
                self._worker.post(await answer(sample))
            del scopes[sample.number]

        def ask(message: Sample | Drop) -> None:
            if isinstance(message, Sample):
                scopes[message.number] = trio.CancelScope()  # now: it may be dropped before it has begun
                nursery.start_soon(serve, message)
            elif message.number in scopes:
                scopes[message.number].cancel()

        call = self._worker.next_number()
        try:
            async with trio.open_nursery() as nursery:
                self._worker.askers[self._number] = ask
                request = Play(call=call, session=self._number)
                try:
                    finished = _expected(await self._worker.ask(self._number, call, request, math.inf, "episode"), Finished)
                finally:  # before the nursery ends: it takes nothing more, and the worker may still ask
                    del self._worker.askers[self._number]
                nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            raise alone(group) from None
        return finished

    async def score(self, episode: Episode) -> Score:
        """Score the episode; nothing more can be asked after that."""
        call = self._worker.next_number()
        request = Grade(
            call=call,
            session=self._number,
            messages=episode.messages,
            completion_ids=episode.completion_ids,
            ending=episode.ending,
            prompt=episode.prompt if self.opened.plays else None,
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

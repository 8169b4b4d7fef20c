"""A worker process for an environment, and episodes of a scripted model in it."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from agentrl.config import RolloutConfig
from agentrl.config_engine import SamplingConfig
from agentrl.env_kit.footprint import Footprint, footprint
from agentrl.env_kit.model import ScriptedModel
from agentrl.env_kit.watch import Watch, WatchedPool
from agentrl.rollout.episode import play_episode
from agentrl.rollout.hostprocess import LocalHost
from agentrl.rollout.pool import EnvPool, Timeouts

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path
    from types import TracebackType

    from agentrl.env_kit.model import Say
    from agentrl.records import Rollout, Task
    from agentrl.rollout.hostprocess import Launch

MOST_TURNS = 32
MOST_TOKENS = 1 << 20
CLOSE_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """An episode that was played to its end."""

    what: str
    """What the model said in it."""
    rollout: Rollout

    @property
    def signature(self) -> tuple[object, ...]:
        """What must come out the same each time: the score, its parts, the rewards of turns and the ending."""
        rollout = self.rollout
        rewards = tuple(turn.reward for turn in rollout.turns)
        return rollout.score.value, tuple(sorted(rollout.score.parts.items())), rewards, rollout.ending

    @property
    def outcome(self) -> str:
        """The same in words."""
        rollout = self.rollout
        if rollout.score.value is None:
            return f"unscorable ({rollout.reason or rollout.score.reason})"
        parts = f" {dict(rollout.score.parts)}" if rollout.score.parts else ""
        return f"{rollout.score.value:g}{parts}, {rollout.ending}"


class Stage:
    """One worker process: `async with Stage(...) as stage: played = await stage.play(task, say, "nothing")`.

    Args:
        spec: the environment.
        imports: modules or files to import first.
        timeout_s: of each start, tool call, reply and score.
        policies: names of further policies that the environment may ask; all say the same.
        folder: empty; for its TMPDIR and its log.
        launch: starts the worker; by default a process, which alone can be measured.
    """

    def __init__(
        self,
        spec: str,
        imports: Sequence[str],
        *,
        timeout_s: float,
        policies: Sequence[str] = (),
        folder: Path,
        launch: Launch | None = None,
    ) -> None:
        self.played: list[Played] = []
        """Every episode that ended, in order."""
        self.seconds: defaultdict[str, list[float]] = defaultdict(list)
        """How long each kind of wait took."""
        self.temporary = folder / "t"
        self.log = folder / "log"
        self.temporary.mkdir(parents=True)
        self._policies = policies
        self._rollout = RolloutConfig(
            env_workers=1, tool_timeout_s=timeout_s, score_timeout_s=timeout_s, episode_timeout_s=max(2 * timeout_s, 60.0)
        )
        timeouts = Timeouts(call_s=timeout_s, score_s=timeout_s, close_s=CLOSE_S, grace_s=timeout_s)
        self.pool = EnvPool(spec, imports, self._rollout, timeouts=timeouts, launch=launch or self._launch)
        self._hosts: list[LocalHost] = []

    async def __aenter__(self) -> Stage:
        await self.pool.__aenter__()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> bool | None:
        return await self.pool.__aexit__(kind, error, trace)

    @property
    def worker(self) -> int:
        """Process id of the guardian of the newest worker; another one after a worker was lost."""
        return self._hosts[-1].pid

    def footprint(self) -> Footprint:
        """What the worker holds now."""
        return footprint(self.worker, self.temporary)

    async def play(
        self,
        task: Task,
        say: Say,
        what: str,
        *,
        before: Callable[[], Awaitable[None]] | None = None,
        watch: Watch | None = None,
        max_turns: int = MOST_TURNS,
    ) -> Played | None:
        """Play an episode; None where it was cancelled.

        Args:
            task: what to play.
            say: the model.
            what: the model says, for messages.
            before: awaited before each turn of the model.
            watch: of its waits; by default a new one.
            max_turns: of the model.
        """
        watch = timed = watch or Watch()

        async def passing() -> None:
            await timed.passing("the model", before or trio.lowlevel.checkpoint)

        played: Played | None = None
        with watch.scope:
            rollout = await play_episode(
                task,
                0,
                sampler=ScriptedModel(say, passing).sampler(),
                others={name: ScriptedModel(say, passing).sampler(name, trained=False) for name in self._policies},
                pool=WatchedPool(self.pool, watch).as_pool(),
                sampling=SamplingConfig(max_turns=max_turns, max_tokens=MOST_TOKENS),
                rollout=self._rollout,
                seed=0,
            )
            played = Played(what=what, rollout=rollout)
            self.played.append(played)
        for name, seconds in watch.calls:
            self.seconds[name].append(seconds)
        return played

    def _launch(self, slot: int) -> LocalHost:
        self._hosts.append(LocalHost(f"environment worker {slot}", self.log, environment={"TMPDIR": str(self.temporary)}))
        return self._hosts[-1]

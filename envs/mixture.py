"""Several environments in one run, each with a share of the tasks."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from agentrl.environment import Environment, Episode, FunctionTool, Split, as_score, tool_methods
from agentrl.envs.lazy_rows import LazyRows
from agentrl.errors import ConfigError, EnvironmentFailure
from agentrl.llm import LLM, Message
from agentrl.records import Score, Task
from agentrl.registry import load, register

MOST_ROWS = 1 << 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One of the environments."""

    env: str
    """Its spec."""
    weight: float = 1.0
    """Its share of the training tasks, in proportion to the others'."""


class MixedRows(LazyRows):
    """Rows of several environments by their weights. One pass holds every row at least once; the rows of small ones come again.

    Args:
        parts: the environments.
        rows: of each.
        weighted: False holds every row exactly once.
    """

    def __init__(self, parts: Sequence[Part], rows: Sequence[Sequence[Mapping[str, Any]]], *, weighted: bool) -> None:
        self._parts, self._rows = parts, rows
        self._counts = [len(one) for one in rows]
        if weighted and all(self._counts):
            total = math.fsum(part.weight for part in parts)
            length = max(count * total / part.weight for count, part in zip(self._counts, parts, strict=True))
            self._counts = [max(count, round(length * part.weight / total)) for count, part in zip(self._counts, parts, strict=True)]

    def __len__(self) -> int:
        return min(sum(self._counts), MOST_ROWS)

    def row(self, index: int) -> Mapping[str, Any]:
        """A row with the environment that it belongs to."""
        at = index
        for part, rows, count in zip(self._parts, self._rows, self._counts, strict=True):
            if at < count:
                return {"env": part.env, "row": dict(rows[at % len(rows)])}
            at -= count
        raise IndexError(index)


@register("mixture")
class Mixture(Environment):
    """Plays each task in the environment that it came from. `envs` in a run file is short for it.

    A task's row holds `env` and the `row` of that environment. The parts of a score are named after the environment, so that
    `rewards/<environment>/mean` is the reward there.
    """

    def __init__(self, parts: Sequence[Mapping[str, Any]] = ()) -> None:
        self._parts = _checked(parts)
        self._inner: Environment | None = None
        self._task: Task | None = None
        self._part = self._parts[0]

    def tasks(self, split: Split) -> MixedRows:
        """Training tasks by the weights; of evaluation tasks, every one once."""
        inner = [load(part.env)() for part in self._parts]
        rows = [_sequence(part.env, one.tasks(split)) for part, one in zip(self._parts, inner, strict=True)]
        self.notices = tuple(notice for one in inner for notice in one.notices)
        return MixedRows(self._parts, rows, weighted=split == "train")

    def prepare(self, task: Task) -> None:
        """Make the environment that the task came from."""
        spec, row = task.row["env"], task.row["row"]
        known = {part.env: part for part in self._parts}
        if spec not in known:
            raise EnvironmentFailure(f"the task came from {spec!r}, which is not in this mixture: {', '.join(known)}")
        self._part = known[spec]
        self._task = Task.from_row(spec, row)
        self._inner = load(spec)()
        self._inner.prepare(self._task)
        self._take_limits()

    def _take_limits(self) -> None:
        own: Any = self
        own.system, own.max_turns, own.max_tokens = self.inner.system, self.inner.max_turns, self.inner.max_tokens

    @property
    def inner(self) -> Environment:
        """The environment of this episode."""
        if self._inner is None:
            raise EnvironmentFailure("the mixture has been given no task")
        return self._inner

    @property
    def plays(self) -> bool:
        """What the environment of this episode does."""
        return self._inner is not None and self._inner.plays

    @property
    def replies(self) -> bool:
        """What the environment of this episode does."""
        return self._inner is not None and self._inner.replies

    @property
    def compares(self) -> bool:
        """Whether every one of them can."""
        return all(load(part.env)().compares for part in self._parts)

    @property
    def done(self) -> bool:  # type: ignore[override]
        """Whether the environment of this episode has ended it."""
        return self._inner is not None and self._inner.done

    @property
    def turn_reward(self) -> float:
        """What the environment of this episode gave for the turn."""
        return self._inner.turn_reward if self._inner is not None else 0.0

    @turn_reward.setter
    def turn_reward(self, value: float) -> None:
        self.inner.turn_reward = value

    def start(self, task: Task) -> str | list[Message]:
        """Start the environment of this episode, and take over its limits."""
        assert self._task is not None
        inner = self.inner
        prompt = inner.start(self._task)
        self._take_limits()  # again: it may have set them for its task
        return prompt

    def toolbox(self) -> Sequence[Any | FunctionTool]:
        """The tools of the environment of this episode."""
        return [*(getattr(self.inner, name) for name in tool_methods(self.inner)), *self.inner.toolbox()]

    def reply(self, answer: str) -> Any:
        """Ask the environment of this episode."""
        return self.inner.reply(answer)

    async def episode(self, task: Task, llm: LLM) -> Any:
        """Have the environment of this episode play it."""
        assert self._task is not None
        value = await self.inner.episode(self._task, llm)
        return None if value is None else self._named(as_score("episode", value, self.inner.part_weights))

    async def score(self, episode: Episode) -> Score:
        """Have the environment of this episode score it."""
        assert self._task is not None
        value: Any = self.inner.score(replace(episode, task=self._task))
        if inspect.isawaitable(value):
            value = await value
        return self._named(as_score("score", value, self.inner.part_weights))

    async def compare(self, first: Episode, second: Episode) -> Any:
        """Have the environment of this episode compare them."""
        assert self._task is not None
        value: Any = self.inner.compare(replace(first, task=self._task), replace(second, task=self._task))
        return await value if inspect.isawaitable(value) else value

    def golden(self, task: Task) -> Sequence[str] | None:
        """What the environment of the task knows."""
        return load(task.row["env"])().golden(Task.from_row(task.row["env"], task.row["row"]))

    def close(self) -> Any:
        """Close the environment of this episode."""
        return self._inner.close() if self._inner is not None else None

    def _named(self, score: Score) -> Score:
        if score.value is None:
            return score
        short = [part.env.partition("?")[0].rpartition("/")[2] for part in self._parts]
        name = short[self._parts.index(self._part)]
        if short.count(name) > 1:  # one environment with several arguments
            name = self._part.env
        parts = {name: score.value, **{f"{name}/{part}": value for part, value in score.parts.items()}}
        return replace(score, parts=parts)


def _sequence(spec: str, rows: Any) -> Sequence[Mapping[str, Any]]:
    if not hasattr(rows, "__len__") or not hasattr(rows, "__getitem__"):
        raise ConfigError(f"environment {spec!r} gives its tasks as a stream; a mixture needs a list, or another sequence")
    found: Sequence[Mapping[str, Any]] = rows
    return found


def _checked(parts: Any) -> list[Part]:
    allowed = "a list of {env: SPEC, weight: NUMBER}, with weights above 0"
    if not isinstance(parts, Sequence) or isinstance(parts, str) or not parts:
        raise ConfigError(f"mixture: parts is {parts!r:.80}; allowed: {allowed}")
    found = []
    for part in parts:
        if not isinstance(part, Mapping) or not isinstance(part.get("env"), str) or set(part) - {"env", "weight"}:
            raise ConfigError(f"mixture: got {part!r:.80}; allowed: {allowed}")
        weight = part.get("weight", 1.0)
        if not isinstance(weight, int | float) or isinstance(weight, bool) or not 0 < weight < math.inf:
            raise ConfigError(f"mixture: {part['env']} has the weight {weight!r:.80}; allowed: {allowed}")
        found.append(Part(env=part["env"], weight=float(weight)))
    if len({part.env for part in found}) < len(found):
        named = ", ".join(part.env for part in found)
        raise ConfigError(f"mixture: an environment is named twice; name each once, with its weight: {named}")
    return found

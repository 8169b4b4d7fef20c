"""How an environment is written: a class whose methods are tools, or a dataset with reward functions.

An instance plays one episode and is then thrown away: there is no `reset`. It lives in a killable worker process, so it may block,
compute and keep state as it likes. `docs` of the runtime around it: `agentrl.rollout`.
"""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from agentrl.errors import EnvironmentFailure
from agentrl.records import Ending, Score, Task

Split = Literal["train", "eval"]
Message = dict[str, Any]
"""`role` (system, user, assistant, tool), `content`, and for tools `tool_calls` or `name`."""

RewardFunction = Callable[..., "Sequence[float | None] | Awaitable[Sequence[float | None]]"]
"""`f(prompts, completions, completion_ids, **columns) -> list[float | None]`, sync or async; None is unscorable."""

JudgeFunction = Callable[..., "Sequence[int] | Awaitable[Sequence[int]]"]
"""`f(prompts, completions) -> list[int]`, sync or async, as the pairwise judges of TRL: `completions` holds a pair a prompt, in the
prompt's own form (text, or messages); 0 says that the pair's first is better, 1 the second, -1 that it cannot tell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    """A finished episode, as an environment or a reward sees it."""

    task: Task
    prompt: str | list[Message]
    """What the episode started from, in the form in which the environment gave it."""
    messages: list[Message]
    """The whole conversation; for a plain-text prompt, one `user` and one `assistant` message."""
    completion_ids: list[int]
    """Sampled ids of all turns."""
    ending: Ending

    @property
    def answer(self) -> str:
        """Text of the last assistant turn, empty where there was none."""
        for message in reversed(self.messages):
            if message["role"] == "assistant":
                return str(message.get("content") or "")
        return ""

    @property
    def completion(self) -> str | list[Message]:
        """What came after the prompt, in the prompt's own form (TRL's convention for reward functions)."""
        if isinstance(self.prompt, str):
            return self.answer
        return self.messages[len(self.prompt) :]


class Environment:
    """Base class: give tasks, start an episode, offer tools, score the end.

    Every public method that a subclass adds is a tool: its type hints and Google-style docstring become the schema that the model
    sees. Set `self.done = True` in a tool to end the episode. Sync and async methods both work.

    Example: `examples/custom_env.py`.
    """

    system: ClassVar[str] = ""
    """Text of the system message; none where empty."""
    max_turns: ClassVar[int | None] = None
    """Most calls of the engine in one episode, where the environment wants fewer than `sampling.max_turns`."""
    max_tokens: int | None = None
    """Most tokens of one turn, where the environment wants fewer than `sampling.max_tokens`; `start` may set it for its task."""
    done: bool = False
    """Set by a tool or `reply` to end the episode after the current turn."""
    turn_reward: float = 0.0
    """Set by a tool or `reply` to reward the current turn alone; read and set back to 0 after each. The rewards of an episode's turns are
    added to its score."""

    def tasks(self, split: Split) -> Iterable[Mapping[str, Any]]:
        """The rows to solve, JSON-serializable; `eval` rows must not occur in `train`. A `Sequence` is indexed lazily."""
        raise NotImplementedError(f"{type(self).__name__} must define tasks(split): the rows to train and to evaluate on")

    def start(self, task: Task) -> str | list[Message]:
        """The prompt: messages for the chat template, or a string that is tokenized as it is. By default the row's `prompt`."""
        if "prompt" not in task.row:
            raise EnvironmentFailure(f"{type(self).__name__}: task {task.id} has no `prompt` column and start(task) is not defined")
        prompt = task.row["prompt"]
        return prompt if isinstance(prompt, str) else [dict(message) for message in prompt]

    def reply(self, answer: str) -> str | None:
        """What the user says after an assistant turn without tool calls; None (the default) ends the episode."""
        return None

    def score(self, episode: Episode) -> Score | float | Mapping[str, float] | Awaitable[Any] | None:
        """The reward: a number, named parts (their sum counts), a `Score`, or None for unscorable."""
        raise NotImplementedError(f"{type(self).__name__} must define score(episode)")

    def compare(self, first: Episode, second: Episode) -> float | Awaitable[Any] | None:
        """The probability, in [0, 1], that the first of two episodes of one task is the better answer; None where one cannot tell.

        For objectives that learn from preferences; called on an instance of its own, after `start`. Where the policy plays against a
        rival the policy's episode is always the first: a judge with a taste for one place must swap places itself.
        """
        raise NotImplementedError(f"{type(self).__name__} must define compare(first, second): which of two episodes is better")

    def close(self) -> None:
        """Free what the episode held; called once, also after a failure."""


RESERVED = frozenset({"tasks", "start", "reply", "score", "compare", "close"})
"""Public methods of an environment that are not tools."""


def tool_methods(environment: Environment) -> dict[str, Callable[..., Any]]:
    """The tools of an environment by name: public methods that a subclass added."""
    names = [name for name, _ in inspect.getmembers(type(environment), inspect.isfunction)]
    return {name: getattr(environment, name) for name in names if not name.startswith("_") and name not in RESERVED}


@dataclass
class SingleTurn(Environment):
    """One prompt, one completion, one or more reward functions, or a judge that compares completions.

    Example: `SingleTurn(train=[{"prompt": "2+3=", "answer": "5"}], eval=[...], rewards=[exact_answer])`.
    """

    train: Sequence[Mapping[str, Any]]
    rewards: Sequence[RewardFunction] = ()
    """May be none where there is a judge; every score is then 0."""
    eval: Sequence[Mapping[str, Any]] = ()
    weights: Sequence[float] | None = None
    """One a reward; all 1 by default."""
    judge: JudgeFunction | None = None
    max_turns: ClassVar[int | None] = 1
    max_tokens: int | None = field(default=None, init=False)
    done: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        if not self.rewards and self.judge is None:
            raise ValueError("SingleTurn needs at least one reward function, or a judge")
        if self.weights is not None and len(self.weights) != len(self.rewards):
            raise ValueError(f"got {len(self.weights)} weights for {len(self.rewards)} rewards; give one weight a reward")

    def tasks(self, split: Split) -> Sequence[Mapping[str, Any]]:
        """The rows of a split."""
        return self.train if split == "train" else self.eval

    async def score(self, episode: Episode) -> Score:
        """Call each reward function with lists of one, as TRL does with a batch."""
        parts: dict[str, float] = {}
        total = 0.0
        weights = self.weights or [1.0] * len(self.rewards)
        for function, weight in zip(self.rewards, weights, strict=True):
            name = getattr(function, "__name__", type(function).__name__)
            columns = {key: [value] for key, value in episode.task.row.items() if key != "prompt"}
            values = function(
                prompts=[episode.prompt], completions=[episode.completion], completion_ids=[episode.completion_ids], **columns
            )
            if inspect.isawaitable(values):
                values = await values
            value = _one_value(name, values)
            if value is None:
                return Score.unscorable(f"reward {name} returned None")
            parts[name] = value
            total += weight * value
        return Score(value=total, parts=parts)

    async def compare(self, first: Episode, second: Episode) -> float | None:
        """Call the judge with lists of one pair."""
        if self.judge is None:
            raise NotImplementedError("SingleTurn was made without a judge; give it judge=f(prompts, completions) -> list of 0, 1 or -1")
        name = getattr(self.judge, "__name__", type(self.judge).__name__)
        verdicts = self.judge(prompts=[first.prompt], completions=[[first.completion, second.completion]])
        if inspect.isawaitable(verdicts):
            verdicts = await verdicts
        return _probability(name, verdicts)


def _probability(name: str, verdicts: Any) -> float | None:
    """That the first is better, of a judge's verdict on one pair."""
    count, allowed = _length(verdicts), "a list with 0 (the first is better), 1 (the second) or -1 (it cannot tell) a pair"
    if count != 1:
        raise EnvironmentFailure(f"judge {name} got 1 pair and returned {_amount(count, verdicts)}; allowed: {allowed}")
    verdict = verdicts[0]
    try:
        # no booleans or floats: True and 1.0 would most likely mean that the first is better
        known = {0: 1.0, 1: 0.0, -1: None}[-2 if isinstance(verdict, bool) else operator.index(verdict)]
    except (TypeError, KeyError):
        raise EnvironmentFailure(f"judge {name} returned {_shown(verdict)}; allowed: {allowed}") from None
    return known


def _one_value(name: str, values: Any) -> float | None:
    count = _length(values)
    if count != 1:
        raise EnvironmentFailure(
            f"reward {name} got 1 completion and returned {_amount(count, values)}; "
            "it must return a list with one number (or None) a completion"
        )
    value = values[0]
    return None if value is None else finite(f"reward {name} returned", value, "a finite number a completion, or None where it cannot tell")


def _length(values: Any) -> int:
    """Length of a sequence that users returned; -1 for what is none."""
    sequence = hasattr(values, "__getitem__") and not isinstance(values, str | bytes | Mapping)
    try:
        return len(values) if sequence else -1
    except TypeError:  # an array of no dimension
        return -1


def _amount(count: int, values: Any) -> str:
    return f"{count} values" if count >= 0 else _shown(values)


def as_score(name: str, value: Any) -> Score:
    """Turn what `score` returned into a `Score`; raises `EnvironmentFailure` for NaN, infinities and other types.

    Args:
        name: of what returned it, for messages.
        value: what it returned.
    """
    allowed = "a finite number, a mapping of them, a Score, or None where the episode cannot be scored"
    if value is None:
        return Score.unscorable(f"{name} returned None")
    if isinstance(value, Score):
        return value
    if isinstance(value, Mapping):
        parts = {str(key): finite(f"{name} returned", part, allowed) for key, part in value.items()}
        return Score(value=math.fsum(parts.values()), parts=parts)
    return Score(value=finite(f"{name} returned", value, allowed))


def as_preference(name: str, value: Any) -> float | None:
    """Turn what `compare` returned into a probability, or None; raises `EnvironmentFailure` for anything else."""
    if value is None:
        return None
    allowed = "a number from 0 (the second episode is better) to 1 (the first is), or None where it cannot tell"
    preference = finite(f"{name} returned", value, allowed)
    if not 0 <= preference <= 1:
        raise EnvironmentFailure(f"{name} returned {_shown(value)}; allowed: {allowed}")
    return preference


def finite(said: str, value: Any, allowed: str) -> float:
    """The value as a float; text is no number, even where it could be read as one. Raises `EnvironmentFailure`.

    Args:
        said: start of the message: `score returned`, `turn_reward is`.
        value: of any type.
        allowed: end of the message.
    """
    try:
        number = math.nan if isinstance(value, str | bytes) else float(value)
    except (TypeError, ValueError, RuntimeError):  # the last is torch's, for a tensor of several elements
        number = math.nan
    if not math.isfinite(number):
        raise EnvironmentFailure(f"{said} {_shown(value)}; allowed: {allowed}")
    return number


def _shown(value: Any) -> str:
    text = repr(value)
    return text if isinstance(value, float) else f"{text if len(text) <= 80 else text[:77] + '...'} (of type {type(value).__name__})"

"""How an environment is written: a class whose methods are tools, or a dataset with reward functions.

An instance plays one episode and is then thrown away: there is no `reset`. It lives in a killable worker process, so it may block,
compute and keep state as it likes. `docs` of the runtime around it: `agentrl.rollout`. For the smallest and the largest control there are
datasets with reward functions (`agentrl.single_turn`), and environments that call the model themselves (`Environment.episode`,
`agentrl.llm`).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar

from agentrl.errors import EnvironmentFailure
from agentrl.llm import LLM, Message
from agentrl.records import Ending, Score, Task

F = TypeVar("F", bound=Callable[..., Any])

Split = Literal["train", "eval"]


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


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionTool:
    """A tool whose schema is given, for those that are found at run time (`Environment.toolbox`) and have no Python signature."""

    name: str
    description: str
    parameters: Mapping[str, Any]
    """JSON schema of an object: the arguments by name."""
    call: Callable[..., Any]
    """Called with the arguments as keywords, held against the schema; may be async."""
    timeout_s: float | None = None
    """Wall clock of one call; by default `rollout.tool_timeout_s`."""
    max_output_chars: int | None = None
    """A longer result is cut; by default at `rollout.max_tool_output_chars`."""


class ToolError(Exception):
    """What a tool that failed says to the model, as it is; any other exception is shown with its type. Counted as an error of the tool."""


def tool_limits(*, timeout_s: float | None = None, max_output_chars: int | None = None) -> Callable[[F], F]:
    """Give a tool method limits of its own, which may be wider than the run's.

    Args:
        timeout_s: wall clock of one call; by default `rollout.tool_timeout_s`.
        max_output_chars: a longer result is cut; by default at `rollout.max_tool_output_chars`.
    """

    def mark(method: F) -> F:
        limits: Any = method
        limits.agentrl_limits = {"timeout_s": timeout_s, "max_output_chars": max_output_chars}
        return method

    return mark


SCRATCH = "AGENTRL_SCRATCH"
"""Environment variable of a worker: a folder that is gone when the workers are, even where they were killed. For `tempfile`'s `dir`."""


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
    notices: Sequence[str] = ()
    """What the user is to be told of the tasks when a run starts, such as rows that were left out; read after `tasks`."""
    part_weights: Mapping[str, float] = {}
    """Weights of the parts of a score that `score` gives as a mapping; 1 for those that are not named here."""

    def tasks(self, split: Split) -> Iterable[Mapping[str, Any]]:
        """The rows to solve, JSON-serializable; `eval` rows must not occur in `train`. A `Sequence` is indexed lazily."""
        raise NotImplementedError(f"{type(self).__name__} must define tasks(split): the rows to train and to evaluate on")

    def prepare(self, task: Task) -> None:
        """Called first in every episode, before `plays` and `replies` are read: for environments that differ from task to task."""

    def start(self, task: Task) -> str | list[Message]:
        """The prompt: messages for the chat template, or a string that is tokenized as it is. By default the row's `prompt`."""
        if "prompt" not in task.row:
            raise EnvironmentFailure(f"{type(self).__name__}: task {task.id} has no `prompt` column and start(task) is not defined")
        prompt = task.row["prompt"]
        return prompt if isinstance(prompt, str) else [dict(message) for message in prompt]

    def toolbox(self) -> Sequence[Callable[..., Any] | FunctionTool]:
        """Further tools of this episode, beside the public methods; asked once, after `start`."""
        return ()

    def reply(self, answer: str) -> str | None:
        """What the user says after an assistant turn without tool calls; None (the default) ends the episode."""
        return None

    async def episode(self, task: Task, llm: LLM) -> Score | float | Mapping[str, float] | None:
        """Play the whole episode with full control, in place of `start`, the tools and `reply`: call the model as often as it takes.

        Returns the reward as `score` does; None leaves it to `score`, which then sees the conversation that was called last. Runs under
        asyncio; a cancelled episode is cancelled here. `agentrl.llm.BudgetSpent`, where it is not caught, ends the episode as truncated.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define episode(task, llm)")

    def score(self, episode: Episode) -> Score | float | Mapping[str, float] | Awaitable[Any] | None:
        """The reward: a number, named parts (their sum counts, by `part_weights`), a `Score`, or None for unscorable."""
        raise NotImplementedError(f"{type(self).__name__} must define score(episode)")

    def golden(self, task: Task) -> Sequence[str] | None:
        """Assistant turns that solve the task, tool calls written as the model writes them; None where no solution is known.

        Only `agentrl env test` asks, to see that a right answer scores as one. `score` must not need it.
        """
        return None

    @property
    def plays(self) -> bool:
        """Whether this environment plays its episodes itself."""
        return type(self).episode is not Environment.episode

    @property
    def replies(self) -> bool:
        """Whether this environment has something to say to a turn without tool calls."""
        return type(self).reply is not Environment.reply

    @property
    def compares(self) -> bool:
        """Whether this environment says which of two episodes is better."""
        return type(self).compare is not Environment.compare

    def compare(self, first: Episode, second: Episode) -> float | Awaitable[Any] | None:
        """The probability, in [0, 1], that the first of two episodes of one task is the better answer; None where one cannot tell.

        For objectives that learn from preferences; called on an instance of its own, after `start`. Where the policy plays against a
        rival the policy's episode is always the first: a judge with a taste for one place must swap places itself.
        """
        raise NotImplementedError(f"{type(self).__name__} must define compare(first, second): which of two episodes is better")

    def close(self) -> None:
        """Free what the episode held; called once, also after a failure."""


RESERVED = frozenset({"tasks", "prepare", "start", "toolbox", "reply", "episode", "score", "golden", "compare", "close"})
"""Public methods of an environment that are not tools."""


def tool_methods(environment: Environment) -> dict[str, Callable[..., Any]]:
    """The tools of an environment by name: public methods that a subclass added."""
    names = [name for name, _ in inspect.getmembers(type(environment), inspect.isfunction)]
    return {name: getattr(environment, name) for name in names if not name.startswith("_") and name not in RESERVED}


@dataclass
class EpisodeFunction(Environment):
    """An async function that is the whole episode: `async def play(task, llm) -> score`.

    Example: `EpisodeFunction(play=duel, train=[{"seed": 1}, {"seed": 2}])`.
    """

    play: Callable[[Task, LLM], Awaitable[Any]]
    """Returns what `Environment.score` may return."""
    train: Sequence[Mapping[str, Any]]
    eval: Sequence[Mapping[str, Any]] = ()

    def tasks(self, split: Split) -> Sequence[Mapping[str, Any]]:
        """The rows of a split."""
        return self.train if split == "train" else self.eval

    async def episode(self, task: Task, llm: LLM) -> Any:
        """Call the function."""
        return await self.play(task, llm)


def as_score(name: str, value: Any, weights: Mapping[str, float] | None = None) -> Score:
    """Turn what `score` returned into a `Score`; raises `EnvironmentFailure` for NaN, infinities and other types.

    Args:
        name: of what returned it, for messages.
        value: what it returned.
        weights: of named parts; 1 for those without.
    """
    allowed = "a finite number, a mapping of them, a Score, or None where the episode cannot be scored"
    if value is None:
        return Score.unscorable(f"{name} returned None")
    if isinstance(value, Score):
        return value
    if isinstance(value, Mapping):
        parts = {str(key): finite(f"{name} returned", part, allowed) for key, part in value.items()}
        total = math.fsum((weights or {}).get(key, 1.0) * part for key, part in parts.items())
        return Score(value=finite(f"the weighted sum of what {name} returned is", total, "a finite number"), parts=parts)
    return Score(value=finite(f"{name} returned", value, allowed))


def as_preference(name: str, value: Any) -> float | None:
    """Turn what `compare` returned into a probability, or None; raises `EnvironmentFailure` for anything else."""
    if value is None:
        return None
    allowed = "a number from 0 (the second episode is better) to 1 (the first is), or None where it cannot tell"
    preference = finite(f"{name} returned", value, allowed)
    if not 0 <= preference <= 1:
        raise EnvironmentFailure(f"{name} returned {shown(value)}; allowed: {allowed}")
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
        raise EnvironmentFailure(f"{said} {shown(value)}; allowed: {allowed}")
    return number


def shown(value: Any) -> str:
    """What users gave instead of what is allowed, for messages."""
    text = repr(value)
    return text if isinstance(value, float) else f"{text if len(text) <= 80 else text[:77] + '...'} (of type {type(value).__name__})"

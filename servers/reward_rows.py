"""What a reward model is asked and what it answers; no torch here."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from agentrl.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Aggregate = Literal["min", "mean", "last", "product"]
AGGREGATES: tuple[Aggregate, ...] = ("min", "mean", "last", "product")
Kind = Literal["auto", "outcome", "process"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardOptions:
    """Which reward model, and how it is run."""

    model: str
    """Folder or Hub name of a sequence classifier, or of a token classifier that judges steps."""
    kind: Kind = "auto"
    """`outcome` scores whole answers, `process` scores steps; `auto` reads it off the model's architecture."""
    device: str = "auto"
    """`cpu`, `cuda`, `cuda:1`, or `auto`: CUDA where there is one."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """`auto` is bfloat16 on CUDA and float32 on a CPU."""
    max_length: int | None = None
    """Tokens of a row; by default what model and tokenizer allow. A longer row is refused, never cut."""
    tokens_per_batch: int = 16384
    """Most tokens of one forward, padding included; a longer row goes alone."""
    label: int | None = None
    """Whose logit is the reward, for a sequence classifier with several labels; for steps, the label of a right one (by default 1)."""
    split: str = "\n\n"
    """What stands between two steps of a completion."""
    separator: str = "\n"
    """What the model was trained to see behind each step; its last token carries the step's score."""
    aggregate: Aggregate = "min"
    """What becomes of the scores of the steps: one reward."""

    def __post_init__(self) -> None:
        if self.aggregate not in AGGREGATES:
            raise ConfigError(f"aggregate is {self.aggregate!r}; allowed: {', '.join(AGGREGATES)}")
        if self.kind not in ("auto", "outcome", "process"):
            raise ConfigError(f"kind is {self.kind!r}; allowed: auto, outcome, process")
        if self.dtype not in ("auto", "float32", "bfloat16"):
            raise ConfigError(f"dtype is {self.dtype!r}; allowed: auto, float32, bfloat16")
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise ConfigError(f"device is {self.device!r}; allowed: auto, cpu, cuda, cuda:N")
        if not self.split or not self.separator:
            raise ConfigError("split and separator may not be empty: a step ends where one stands")
        if self.tokens_per_batch < 1 or (self.max_length is not None and self.max_length < 1):
            raise ConfigError("tokens_per_batch and max_length are numbers of tokens, at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardRow:
    """A prompt and what was answered, both as text or both as messages."""

    prompt: str | list[dict[str, Any]]
    completion: str | list[dict[str, Any]]
    steps: tuple[str, ...] | None = None
    """The completion's steps, where they are known; otherwise it is split."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowScore:
    """The reward of a row, or why there is none."""

    value: float | None
    steps: tuple[float, ...] = ()
    """Of each step, from 0 to 1; empty for a model of outcomes."""
    reason: str = ""

    @staticmethod
    def failed(reason: str) -> RowScore:
        """No reward."""
        return RowScore(value=None, reason=reason)


def aggregated(steps: Sequence[float], how: Aggregate) -> float:
    """One number of several; of at least one."""
    match how:
        case "min":
            return min(steps)
        case "mean":
            return math.fsum(steps) / len(steps)
        case "last":
            return steps[-1]
        case "product":
            return math.prod(steps)


def rows_of_request(body: Any, most_rows: int) -> list[RewardRow]:
    """The rows of a request's body; raises `ValueError` saying what is wrong.

    It has `prompts` and `completions`, or `prompts` and `steps` (a list of texts a prompt), or `messages` (a conversation a row, of which
    the last message is the answer).
    """
    if not isinstance(body, dict) or not set(body) <= {"prompts", "completions", "steps", "messages"}:
        raise ValueError("the body is a JSON object with `prompts` and `completions` or `steps`, or with `messages`")
    if "messages" in body:
        if len(body) > 1:
            raise ValueError("`messages` are whole conversations: leave out prompts, completions and steps")
        columns = [_column(body, "messages", most_rows)]
        return [_of_messages(index, messages) for index, (messages,) in enumerate(zip(*columns, strict=True))]
    names = [name for name in ("prompts", "completions", "steps") if name in body]
    if len(names) != 2 or names[0] != "prompts":
        raise ValueError("give `prompts` with `completions`, or with `steps`")
    prompts, answers = (_column(body, name, most_rows) for name in names)
    if len(prompts) != len(answers):
        raise ValueError(f"got {len(prompts)} prompts and {len(answers)} {names[1]}; give one of them a prompt")
    make = _of_completion if names[1] == "completions" else _of_steps
    return [make(index, prompt, answer) for index, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))]


def _column(body: Mapping[str, Any], name: str, most_rows: int) -> list[Any]:
    column = body[name]
    if not isinstance(column, list) or not 1 <= len(column) <= most_rows:
        raise ValueError(f"`{name}` is a list of 1 to {most_rows} rows")
    return column


def _of_messages(index: int, messages: Any) -> RewardRow:
    if not _are_messages(messages) or not messages:
        raise ValueError(f"messages[{index}] is no list of messages with `role` and `content`")
    return RewardRow(prompt=messages[:-1], completion=messages[-1:])


def _of_completion(index: int, prompt: Any, completion: Any) -> RewardRow:
    both = (prompt, completion)
    if not all(isinstance(part, str) for part in both) and not all(map(_are_messages, both)):
        raise ValueError(f"row {index}: prompt and completion are both texts, or both lists of messages with `role` and `content`")
    return RewardRow(prompt=prompt, completion=completion)


def _of_steps(index: int, prompt: Any, steps: Any) -> RewardRow:
    if not (isinstance(prompt, str) or _are_messages(prompt)):
        raise ValueError(f"row {index}: the prompt is a text, or a list of messages with `role` and `content`")
    if not isinstance(steps, list) or not steps or not all(isinstance(step, str) for step in steps):
        raise ValueError(f"row {index}: its steps are a list of texts, at least one")
    return RewardRow(prompt=prompt, completion="", steps=tuple(steps))


def _are_messages(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(message, dict) and isinstance(message.get("role"), str) and isinstance(message.get("content"), str | list | None)
        for message in value
    )

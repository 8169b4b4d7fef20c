"""How reward functions are called: with TRL's keywords, each with lists of one row.

TRL leaves a None out of a row's sum, as its functions say None where they do not apply to a row. Where None means that a function failed,
no other reward may stand in for it: those are marked by `required`.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from agentrl.errors import EnvironmentFailure
from agentrl.records import Score

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

F = TypeVar("F", bound="Callable[..., Any]")

NOT_COLUMNS = frozenset({"prompt", "completion", "completion_ids"})
"""Columns of a row that TRL gives to no reward function."""
MOST_NOTES_CHARS = 400


def required(function: F) -> F:
    """Mark a reward function whose None says that it failed: the whole score is then unscorable, whatever the other rewards say."""
    marked: Any = function
    marked.agentrl_required = True
    return function


class TrainerState:
    """Stands where TRL gives its `trainer_state`. A reward is computed beside the trainer and does not know its step: reading fails."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise EnvironmentFailure(
            f"it read trainer_state.{name}: rewards run beside the trainer, up to max_staleness steps ahead of it, and have no state of "
            "it; keep what must change in the course of a run out of the reward"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What one reward function said of one row."""

    name: str
    value: float | None
    required: bool
    notes: Sequence[str] = field(default_factory=list)
    """Texts that it gave to `log_extra`."""
    details: Mapping[str, float] = field(default_factory=dict)
    """Numbers that it gave to `log_extra` and `log_metric`."""

    def unscorable(self) -> str:
        """Why there is no number, with what the function had to say."""
        said = "; ".join(self.notes)[:MOST_NOTES_CHARS]
        return f"reward {self.name} returned None" + (f" ({said})" if said else "")


async def ask_all(
    functions: Sequence[Callable[..., Any]], given: Mapping[str, Any], row: Mapping[str, Any], read: Callable[[str, Any], float | None]
) -> list[Verdict]:
    """Call each reward function for one row; those that are async wait side by side, as under TRL.

    Args:
        functions: of TRL's signature.
        given: `prompts`, `completions` and `completion_ids`, lists of one.
        row: of the dataset; its columns become keywords.
        read: checks what a function returned, by its name in messages; raises `EnvironmentFailure`.
    """
    columns = {key: [value] for key, value in row.items() if key not in NOT_COLUMNS}
    names = list(_distinct(map(name_of, functions)))
    notes: list[list[str]] = [[] for _ in functions]
    details: list[dict[str, float]] = [{} for _ in functions]
    values: list[Any] = []
    try:
        for function, texts, numbers in zip(functions, notes, details, strict=True):
            values.append(function(**{**columns, **given, **_extras(function, given, texts, numbers)}))
    except BaseException:
        for value in filter(inspect.iscoroutine, values):
            value.close()  # of a function before the one that raised; nobody will await it
        raise
    waiting = [index for index, value in enumerate(values) if inspect.isawaitable(value)]
    if waiting:  # all others need no event loop
        for index, value in zip(waiting, await asyncio.gather(*(values[index] for index in waiting)), strict=True):
            values[index] = value
    return [
        Verdict(name=name, value=read(name, value), required=getattr(function, "agentrl_required", False), notes=texts, details=numbers)
        for function, name, value, texts, numbers in zip(functions, names, values, notes, details, strict=True)
    ]


def weighted(verdicts: Sequence[Verdict], weights: Sequence[float]) -> Score:
    """The weighted sum; unscorable where a required function failed, or none that counts has a number."""
    failed = [verdict for verdict in verdicts if verdict.value is None and verdict.required]
    counting = [verdict for verdict, weight in zip(verdicts, weights, strict=True) if weight] or list(verdicts)
    if not failed and counting and all(verdict.value is None for verdict in counting):
        failed = counting
    if failed:
        return Score.unscorable("; ".join(verdict.unscorable() for verdict in failed))
    parts = {verdict.name: verdict.value for verdict in verdicts if verdict.value is not None}
    total = sum(weight * verdict.value for verdict, weight in zip(verdicts, weights, strict=True) if verdict.value is not None)
    details = {name: number for verdict in verdicts for name, number in verdict.details.items()}
    return Score(value=float(total), parts=parts, details=details)


def name_of(function: Any) -> str:
    """What messages and parts of scores call a function."""
    return str(getattr(function, "__name__", type(function).__name__))


def _distinct(names: Iterable[str]) -> Iterable[str]:
    """Names of parts: a second `length` is `length_2`."""
    seen: dict[str, int] = {}
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        yield name if seen[name] == 1 else f"{name}_{seen[name]}"


def _extras(function: Callable[..., Any], given: Mapping[str, Any], notes: list[str], details: dict[str, float]) -> dict[str, Any]:
    """What TRL adds to the columns, where the function takes it; what it logs is kept as notes and details."""

    def log_extra(column: str, values: Sequence[Any]) -> None:
        notes.extend(f"{column}: {value}" for value in values if isinstance(value, str) and value)
        for value in values:
            log_metric(column, value)

    def log_metric(name: str, value: Any) -> None:
        with contextlib.suppress(TypeError, ValueError):  # what is no number is no metric
            number = math.nan if isinstance(value, str | bytes) else float(value)
            if math.isfinite(number):
                details[str(name)] = number

    offered = {"trainer_state": TrainerState(), "log_extra": log_extra, "log_metric": log_metric}
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # some built-in types have none
        return offered
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    extras = {name: value for name, value in offered.items() if takes_all or name in parameters}
    if "completions_ids" in parameters:  # the name in older pages of TRL's documentation
        extras["completions_ids"] = given["completion_ids"]
    return extras

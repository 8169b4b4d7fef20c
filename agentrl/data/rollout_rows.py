"""Rollouts of an earlier run as rows of token ids, exactly as they were sampled: nothing is decoded and encoded again.

    rollouts:runs/first                     of each group the rollouts with its highest score, where scores differ (best-of-n)
    rollouts:runs/first?min_reward=1        all rollouts with at least this score (rejection sampling)
    rollouts:runs/first?truncated=drop      without those that were cut off
    runs/first                              the same as with the word in front

A rollout whose conversation was forked is several rows; each sampled token is trained in one of them.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from agentrl.errors import ConfigError
from agentrl.imitation import imitated
from agentrl.rollout_log import read_groups
from agentrl.rows import rows_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from agentrl.records import Group
    from agentrl.rows import Row

PREFIX = "rollouts:"
KEYS = ("min_reward", "truncated")


class RolloutRows:
    """The trained rows of some rollouts, of the schema `tokenized`."""

    def __init__(self, rows: Sequence[tuple[str, Row]], notice: str) -> None:
        self._rows = rows
        self.notices: Sequence[str] = (notice,)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self._rows[index][1]
        return {"input_ids": row.ids.tolist(), "completion_mask": row.trained.astype(int).tolist()}

    def where(self, index: int) -> str:
        """The folder, and which rollout of which task."""
        return self._rows[index][0]


def is_run(spec: str) -> bool:
    """Whether a dataset is meant to be a run's rollouts: it says so, or names the folder of one."""
    return spec.startswith(PREFIX) or (Path(spec.partition("?")[0]).expanduser() / "rollouts").is_dir()


def open_rollouts(spec: str) -> RolloutRows:
    """The rows of `rollouts:FOLDER?min_reward=1`, or of the folder without the word in front.

    Raises `ConfigError` for a folder without rollouts, or with none that is good enough.
    """
    path, _, query = spec.removeprefix(PREFIX).partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    unknown = sorted(set(options) - set(KEYS))
    if unknown:
        raise ConfigError(f"dataset {spec!r}: `{unknown[0]}` is not known; behind a run's folder stand min_reward=NUMBER, truncated=drop")
    if options.get("truncated", "keep") not in ("keep", "drop"):
        raise ConfigError(f"dataset {spec!r}: truncated is {options['truncated']!r}; it must be keep or drop")
    least, folder = _number(spec, options.get("min_reward")), Path(path).expanduser()
    if not (folder / "rollouts").is_dir():
        what = "which has no rollouts/" if folder.is_dir() else "and there is no such folder"
        raise ConfigError(f"dataset {spec!r} is the run {path}, {what}: give the folder of an earlier run, as `agentrl train` printed it")
    groups = list(read_groups(folder / "rollouts"))
    rows = [row for group in groups for row in _rows(group, path, least, without_truncated=options.get("truncated") == "drop")]
    if not rows:
        raise ConfigError(_nothing(spec, groups, least))
    chosen = "the best of each group in which scores differ" if least is None else f"those with a score of at least {least:g}"
    return RolloutRows(rows, f"{path}: {len(rows)} rows of rollouts of {len(groups)} groups, {chosen}")


def _number(spec: str, text: str | None) -> float | None:
    if text is None:
        return None
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ConfigError(f"dataset {spec!r}: min_reward is {text!r}; it must be a number")
    return number


def _rows(group: Group, path: str, least: float | None, *, without_truncated: bool) -> Iterator[tuple[str, Row]]:
    for rollout in imitated(group, least, without_truncated=without_truncated):
        for row in rows_of(rollout):
            if row.trained[1:].any():
                yield f"{path}, task {rollout.task.id}, member {rollout.member}", row


def _nothing(spec: str, groups: Sequence[Group], least: float | None) -> str:
    scores = [score for group in groups for score in group.scores if score is not None]
    start = f"dataset {spec!r} holds {len(groups)} finished group{'' if len(groups) == 1 else 's'}"
    if not scores:
        return f"{start} with no rollout that could be scored: give a run that has played some"
    if least is None:
        said = f"in none of them do scores differ; the highest is {max(scores):g}"
        return f"{start}, and {said}: say which rollouts are good with ?min_reward=NUMBER"
    return f"{start} with a highest score of {max(scores):g}, and no rollout that was not left out reaches min_reward={least:g}: lower it"

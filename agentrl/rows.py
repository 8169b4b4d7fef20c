"""Rollouts as the learner sees them: rows of tokens, one a leaf of an episode's tree."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agentrl.records import Rollout, TokenSpan, Turn


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One root-to-leaf path of a rollout, as the learner sees it. A sampled token shared by forks is trained in one row only."""

    ids: np.ndarray
    """[length] int32."""
    trained: np.ndarray
    """[length] bool: sampled in a turn that may be trained, and not in an earlier row of the same rollout."""
    sampler_logprobs: np.ndarray
    """[length] float32; NaN where not sampled."""
    version_steps: np.ndarray
    """[length] int32: step of the weights that sampled; -1 where not sampled."""
    turn: np.ndarray
    """[length] int32: index of the turn that holds the token."""
    prompt_length: int = 0
    """Tokens before the first that was sampled, by whomever."""
    columns: dict[str, np.ndarray] = field(default_factory=dict)
    """Those of the trained turns' spans, [length] or [length, k] each; NaN, or -1 of whole numbers, where a turn has none."""


def rows_of(rollout: Rollout) -> tuple[Row, ...]:
    """Cut a rollout's tree into rows, one a leaf; every sampled token that may be trained is trained in exactly one of them."""
    turns = rollout.turns
    parents = {turn.parent for turn in turns}
    leaves = [index for index in range(len(turns)) if index not in parents]
    seen: set[int] = set()
    rows: list[Row] = []
    for leaf in leaves:
        path: list[int] = []
        at = leaf
        while at >= 0:
            path.append(at)
            at = turns[at].parent
        path.reverse()
        rows.append(_row_of_path(turns, path, seen))
        seen.update(path)
    return tuple(rows)


def _row_of_path(turns: Sequence[Turn], path: Sequence[int], seen: set[int]) -> Row:
    spans = [turns[index].span for index in path]
    steps = [np.full(len(span), -1, dtype=np.int32) for span in spans]
    for span, column in zip(spans, steps, strict=True):
        for run in span.versions:
            column[run.start : run.end] = run.version.step
    return Row(
        ids=np.concatenate([span.ids for span in spans]),
        trained=np.concatenate([turns[index].span.sampled & (turns[index].trained and index not in seen) for index in path]),
        sampler_logprobs=np.concatenate([span.logprobs for span in spans]),
        version_steps=np.concatenate(steps),
        turn=np.concatenate([np.full(len(span), index, dtype=np.int32) for index, span in zip(path, spans, strict=True)]),
        prompt_length=int(spans[0].sampled.argmax()) if spans[0].sampled.any() else len(spans[0]),
        columns={name: _column(spans, name) for name in dict.fromkeys(name for span in spans for name in span.columns)},
    )


def _column(spans: Sequence[TokenSpan], name: str) -> np.ndarray:
    like = next(span.columns[name] for span in spans if name in span.columns)
    nothing = -1 if np.issubdtype(like.dtype, np.integer) else np.nan
    return np.concatenate([span.columns.get(name, np.full((len(span), *like.shape[1:]), nothing, dtype=like.dtype)) for span in spans])

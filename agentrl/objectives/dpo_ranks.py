"""Pairs for DPO's losses, and for those that sort the whole step, what each pair is compared with."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from agentrl.objectives.paired import rows_as_pairs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agentrl.objectives.dpo import DPOConfig
    from agentrl.objectives.signals import Credit, GroupSignals, MemberSignals

RANKED = frozenset({"aot", "aot_unpaired"})
"""Losses that sort the whole step."""


def token_weights(lengths: tuple[int, int], alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """1 for as many tokens as the shorter text of a pair has, alpha for those that the longer one has more (arXiv:2409.06411)."""
    shared = min(lengths)
    first, second = (np.where(np.arange(length) < shared, 1.0, alpha) for length in lengths)
    return first, second


def ranked_pairs(groups: Sequence[GroupSignals], config: DPOConfig) -> list[Credit]:
    """The pairs of the step, and for losses that sort, what each is compared with.

    The learner's scores of the step's start are sorted, over all of the step: the optimizer has not moved the policy since.
    """
    given = rows_as_pairs(groups, config)
    if not RANKED & set(config.losses):
        return given
    whole = [index for index, group in enumerate(groups) if all(_has_tokens(member) for member in group.members[:2])]
    start, reference = np.zeros((len(whole), 2)), np.zeros((len(whole), 2))
    for place, index in enumerate(whole):
        chosen, rejected = groups[index].members[:2]
        start[place], reference[place] = _sums(chosen, rejected, config)
    ratios = start - reference
    differences, expected = start[:, 0] - start[:, 1], reference[:, 0] - reference[:, 1]
    found = {
        "matched": np.stack([_of_same_rank(differences, expected, by=expected)] * 2, 1),
        "partner": np.stack([_of_same_rank(ratios[:, 0], ratios[:, 1]), _of_same_rank(ratios[:, 1], ratios[:, 0])], 1),
    }
    for place, index in enumerate(whole):
        filled = {name: np.full(len(groups[index].rewards), np.nan) for name in found}
        for name, values in found.items():
            filled[name][:2] = values[place]
        given[index] = replace(given[index], parts=filled)
    return given


def _has_tokens(member: MemberSignals) -> bool:
    return member.start_logprobs is not None and len(member.start_logprobs) > 0


def _sums(chosen: MemberSignals, rejected: MemberSignals, config: DPOConfig) -> tuple[list[float], list[float]]:
    """Log p of both as the step begins, and under the reference."""
    found: tuple[list[float], list[float]] = ([], [])
    assert chosen.start_logprobs is not None
    assert rejected.start_logprobs is not None
    weights = token_weights((len(chosen.start_logprobs), len(rejected.start_logprobs)), config.ld_alpha)
    for member, weight in zip((chosen, rejected), weights, strict=True):
        assert member.start_logprobs is not None
        found[0].append(float((weight * member.start_logprobs).sum()))
        found[1].append(0.0 if member.reference_logprobs is None else float((weight * member.reference_logprobs).sum()))
    return found


def _of_same_rank(values: np.ndarray, others: np.ndarray, *, by: np.ndarray | None = None) -> np.ndarray:
    """For each value, which of the others has its rank; ties go by `by`."""
    found = np.empty_like(others)
    found[np.lexsort((values if by is None else by, values))] = np.sort(others)
    return found

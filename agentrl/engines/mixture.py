"""The geometric mixture of two models, token by token: p(token) is proportional to policy(token)^(1-s) x reference(token)^s.

In logits it is a weighted mean: log p = log_softmax(((1-s) x policy + s x reference) / temperature). So it is formed before temperature,
truncation and softmax, and what samples from one model's logits samples from it (Nash-MD: Munos et al. 2023, arXiv:2312.00886).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Logits after which tokens are sampled."""

    logits: torch.Tensor
    """[rows, vocabulary] float32."""
    slots: np.ndarray
    """[rows] the slot that each is for."""


def mixed(policy: Rows | None, reference: Rows | None, shares: np.ndarray) -> Rows:
    """The logits to sample from, one row a slot; the policy's are overwritten.

    Args:
        policy: of the slots with a share below 1; None where there are none.
        reference: of the slots with a share above 0; None where there are none.
        shares: [slots] float64, the reference's share of each slot of the engine.
    """
    if reference is None:
        assert policy is not None, "a step without requests"
        return policy
    if policy is None:
        return reference
    row_of = np.full(len(shares), -1)
    row_of[policy.slots] = np.arange(len(policy.slots))
    rows = row_of[reference.slots]
    both = np.flatnonzero(rows >= 0)
    if len(both):
        _blend(policy.logits, reference.logits, rows[both], both, shares[reference.slots[both]])
    alone = np.flatnonzero(rows < 0)  # a share of 1: not one number of the policy's may enter
    if not len(alone):
        return policy
    return Rows(
        logits=torch.cat([policy.logits, reference.logits[_index(alone, reference.logits)]]),
        slots=np.concatenate([policy.slots, reference.slots[alone]]),
    )


def _blend(policy: torch.Tensor, reference: torch.Tensor, rows: np.ndarray, reference_rows: np.ndarray, shares: np.ndarray) -> None:
    """Overwrite the policy's `rows` with their mixtures; `shares` [rows] lie between 0 and 1."""
    at = _index(rows, policy)
    own = policy[at].mul_(_column(1 - shares, policy))
    policy[at] = own.addcmul_(reference[_index(reference_rows, reference)], _column(shares, policy))


def _column(values: np.ndarray, like: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.float32)[:, None]).to(like.device)


def _index(rows: Sequence[int] | np.ndarray, like: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(np.asarray(rows, dtype=np.int64)).to(like.device)

"""Other values in the place of trained parameters, for as long as a context lasts: an average of them, or what they began as."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import torch

from agentrl.learner import ranks

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from agentrl.learner.model import Policy


def trained_parameters(policy: Policy) -> dict[str, torch.nn.Parameter]:
    """What is trained of the model itself, by name; a value head is not part of it. Shards where the ranks hold shards."""
    return {name: parameter for name, parameter in policy.model.named_parameters() if parameter.requires_grad}


@torch.no_grad()
def copied(policy: Policy, dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
    """The trained parameters as they are now, in at least this type."""
    return {
        name: one.detach().to(one.dtype if dtype is None else torch.promote_types(one.dtype, dtype), copy=True)
        for name, one in trained_parameters(policy).items()
    }


@contextlib.contextmanager
def standing_in(policy: Policy, values: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Compute with other values; the parameters come back bit for bit. Not between a forward pass and its backward pass."""
    kept = copied(policy)
    try:
        _put(policy, values)
        yield
    finally:
        _put(policy, kept)


@torch.no_grad()
def _put(policy: Policy, values: Mapping[str, torch.Tensor]) -> None:
    ranks.reshard(policy)  # whole parameters that a forward pass left at the root are not those that are written here
    for name, parameter in trained_parameters(policy).items():
        parameter.copy_(values[name])

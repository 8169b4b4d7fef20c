"""Hidden states with the head that makes distributions of them, a tile of the vocabulary at a time, and the gradients of such tiles.

No [positions, vocabulary] matrix: logits exist for one tile at a time, forward and backward, as in `agentrl.learner.logprobs`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from agentrl.learner.logprobs import Head, logits_of, token_logprobs

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, slots=True, kw_only=True)
class Projection:
    """Hidden states of some positions, and the head that makes distributions of them."""

    hidden: torch.Tensor
    """[positions, size]; the products are computed in its type."""
    weight: torch.Tensor
    """[vocabulary, size], of the same type."""
    bias: torch.Tensor | None
    """[vocabulary] or None."""
    head: Head
    """Its temperature is that of the divergence."""

    def first(self, words: int) -> Projection:
        """The distribution over the first words of the vocabulary alone: where a head is padded, what is beyond means nothing."""
        if words == len(self.weight):
            return self
        return replace(self, weight=self.weight[:words], bias=None if self.bias is None else self.bias[:words])

    @property
    def tiles(self) -> Iterator[slice]:
        """Slices of the vocabulary whose logits fit the memory that a tile may take."""
        return self.head.tiles(len(self.hidden), len(self.weight))

    def normalizer(self) -> torch.Tensor:
        """[positions, 1] log of the sum of exp(logits), in float32 or better."""
        total = self.hidden.new_full((len(self.hidden), 1), -torch.inf, dtype=torch.promote_types(self.hidden.dtype, torch.float32))
        for tile in self.tiles:
            total = torch.logaddexp(total, self.logits(tile).logsumexp(1, keepdim=True))
        return total

    def token_logprobs(self, targets: torch.Tensor) -> torch.Tensor:
        """[positions] log-probs of the targets, in nats."""
        return token_logprobs(self.hidden, self.weight, self.bias, targets, self.head).logprobs

    def logits(self, tile: slice) -> torch.Tensor:
        """[positions, width] after the temperature, in float32 or better."""
        return self._raw(tile).div_(self.head.temperature)

    def with_slope(self, tile: slice) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The same, and the slope of the soft cap there."""
        raw = self._raw(tile)
        slope = None if self.head.softcap is None else (raw / self.head.softcap).square_().neg_().add_(1.0)
        return raw.div_(self.head.temperature), slope

    def _raw(self, tile: slice) -> torch.Tensor:
        return logits_of(self.hidden, self.weight[tile], None if self.bias is None else self.bias[tile], self.head)


class Gradients:
    """Adds the tiles' gradients up to those of hidden states, weight and bias."""

    def __init__(self, student: Projection, needed: tuple[bool, ...]) -> None:
        self._student = student
        hidden, weight, bias = student.hidden, student.weight, student.bias
        self._hidden = torch.zeros_like(hidden) if needed[0] else None
        self._weight = torch.empty_like(weight, memory_format=torch.contiguous_format) if needed[1] else None
        self._bias = torch.empty_like(bias) if bias is not None and needed[2] else None

    def add(self, tile: slice, delta: torch.Tensor, slope: torch.Tensor | None) -> None:
        """Take the gradient in one tile's capped logits, and the slope of the cap."""
        if slope is not None:
            delta.mul_(slope)
        own = delta.to(self._student.hidden.dtype)
        if self._hidden is not None:
            self._hidden.addmm_(own, self._student.weight[tile])
        if self._weight is not None:
            torch.mm(own.t(), self._student.hidden, out=self._weight[tile])
        if self._bias is not None:
            torch.sum(own, 0, out=self._bias[tile])

    @property
    def taken(self) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """Of hidden, weight and bias."""
        return self._hidden, self._weight, self._bias

"""NEFTune: uniform noise on the embeddings of training passes (Jain et al. 2023, arXiv:2310.05914, algorithm 1).

A row of L tokens of width d gets noise between -alpha / sqrt(L d) and alpha / sqrt(L d) on every number. It is drawn from the run's seed,
the step and the row's own tokens, and so is the same however a step is cut, packed, ordered and shared out over ranks; two equal rows of
one step get equal noise. Scoring, references and evaluation have none.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from agentrl.learner.transfer import on_device

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from agentrl.learner.packing import Pack
    from agentrl.learner.samples import Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """What draws the noise of one optimizer step."""

    alpha: float
    seed: tuple[int, ...]
    """Of the step."""
    width: int
    """Of an embedding."""

    def of_row(self, row: np.ndarray) -> np.ndarray:
        """[length, width] float32 for the inputs of a row; its text is one token longer, the last that is predicted."""
        digest = hashlib.blake2b(np.ascontiguousarray(row, dtype=np.int32).tobytes(), digest_size=16).digest()
        draw = np.random.default_rng((*self.seed, int.from_bytes(digest, "little")))
        bound = self.alpha / math.sqrt((len(row) + 1) * self.width)
        return (draw.random((len(row), self.width), dtype=np.float32) * 2.0 - 1.0) * np.float32(bound)

    def of_pack(self, samples: Sequence[Sample], packed: Pack) -> torch.Tensor:
        """[tokens, width] for the tokens of a pack, whose rows share no token."""
        noise = np.zeros((len(packed.ids), self.width), dtype=np.float32)
        rows = [row for sample in samples for row in sample.rows]
        for row, places in zip(rows, packed.places, strict=True):
            noise[places] = self.of_row(row)
        return on_device(noise, packed.ids.device)

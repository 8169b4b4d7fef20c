"""Made-up examples of a dataset, for tests of the learner and of offline runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from agentrl.examples import Example, Text

if TYPE_CHECKING:
    from collections.abc import Sequence

VOCABULARY = 48


def text(draw: np.random.Generator, prompt: int, completion: int, start: np.ndarray | None = None) -> Text:
    """A prompt, drawn or given, and a completion, which is trained."""
    head = draw.integers(3, VOCABULARY, prompt) if start is None else start
    ids = np.concatenate([head, draw.integers(3, VOCABULARY, completion)]).astype(np.int32)
    return Text(ids=ids, trained=np.arange(len(ids)) >= max(1, len(head)), prompt_length=len(head))


def supervised(count: int, seed: int = 0) -> list[Example]:
    """Ragged rows of 2 to 20 prompt tokens and 1 to 20 completion tokens."""
    draw = np.random.default_rng(seed)
    return [
        Example(where=f"row {row}", texts=(text(draw, int(draw.integers(2, 20)), int(draw.integers(1, 20))),), rewards=(0.0,))
        for row in range(count)
    ]


def preferences(count: int, seed: int = 0, *, texts: int = 2, parts: Sequence[str] = ()) -> list[Example]:
    """Pairs with a common prompt, or triples with a gold text."""
    draw = np.random.default_rng(seed)
    rows = []
    for row in range(count):
        prompt = draw.integers(3, VOCABULARY, int(draw.integers(2, 12)))
        found = tuple(text(draw, 0, int(draw.integers(1, 14)), prompt) for _ in range(texts))
        rewards = (1.0, 0.0, 0.0)[:texts]
        rows.append(Example(where=f"row {row}", texts=found, rewards=rewards, parts={name: float(draw.normal()) for name in parts}))
    return rows


def unpaired(count: int, seed: int = 0) -> list[Example]:
    """Labelled rows, good and bad in turn."""
    rows = supervised(count, seed)
    return [Example(where=row.where, texts=row.texts, rewards=(float(index % 2),)) for index, row in enumerate(rows)]


class Rows(list[Example]):
    """Examples as `prepare` gives them."""

    counts: dict[str, float] = {"data/rows": 0.0}  # noqa: RUF012
    fingerprint = "made up"

    def order(self, seed: int | None, epoch: int) -> np.ndarray:
        """Each once."""
        return np.arange(len(self)) if seed is None else np.random.default_rng([seed, epoch]).permutation(len(self))

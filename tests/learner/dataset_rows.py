"""Made-up rows of a dataset, tokenized, for the learner's tests and for scripts that run on two ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from learner_fakes import VOCABULARY

from agentrl.examples import Example, Text

if TYPE_CHECKING:
    from agentrl.examples import DataKind


def text(ids: np.ndarray, prompt: int, labels: np.ndarray | None = None) -> Text:
    """A text whose completion is trained."""
    return Text(ids=ids.astype(np.int32), trained=np.arange(len(ids)) >= prompt, prompt_length=prompt, labels=labels)


def completed(draw: np.random.Generator, prompt: np.ndarray, longest: int = 9) -> Text:
    """The prompt and some tokens behind it."""
    more = draw.integers(3, VOCABULARY, int(draw.integers(1, longest + 1)))
    return text(np.concatenate([prompt, more]), len(prompt))


def in_steps(draw: np.random.Generator, prompt: np.ndarray) -> Text:
    """Some steps behind a prompt, each with a label at its end."""
    lengths = draw.integers(1, 5, int(draw.integers(1, 5)))
    ids = np.concatenate([prompt, draw.integers(3, VOCABULARY, int(lengths.sum()))])
    labels = np.full(len(ids), np.nan, dtype=np.float32)
    labels[len(prompt) + np.cumsum(lengths) - 1] = draw.integers(0, 2, len(lengths))
    return text(ids, len(prompt), labels)


def make_examples(kind: DataKind, seed: int = 0, *, rows: int = 7, texts: int = 2) -> list[Example]:
    """Ragged rows with prompts of their own; every other pair with a margin, and with a gold text where there are three."""
    draw = np.random.default_rng(seed)
    result = []
    for index in range(rows):
        prompt, where = draw.integers(3, VOCABULARY, int(draw.integers(2, 8))), f"rows.jsonl, line {index + 1}"
        if kind == "preference":
            parts = {"margin": float(draw.uniform(0, 1))} if index % 2 else {}
            found = tuple(completed(draw, prompt) for _ in range(texts))
            result.append(Example(where=where, texts=found, rewards=(1.0, 0.0, 0.0)[:texts], parts=parts))
        elif kind == "stepwise":
            result.append(Example(where=where, texts=(in_steps(draw, prompt),), rewards=(0.0,)))
        else:
            reward = float(draw.integers(0, 2)) if kind == "unpaired" else 0.0
            result.append(Example(where=where, texts=(completed(draw, prompt),), rewards=(reward,)))
    return result


def joined(examples: list[Example], size: int) -> list[Example]:
    """The same texts, `size` of them to an example, as packed sequences."""
    groups = [examples[start : start + size] for start in range(0, len(examples), size)]
    return [
        Example(where=group[0].where, texts=tuple(one.texts[0] for one in group), rewards=(0.0,) * len(group), joined=True)
        for group in groups
    ]

"""Weights for bad texts of a dataset, by how much likelier their prompts are among the good ones (BCO's density ratio).

A row's prompt is seen as the mean of the last hidden states of its tokens under the reference. A logistic regression, fitted before
training, tells good rows' prompts from bad ones', of which it is given the same weight; of its chance p, p / (1 - p) is the ratio of the
two densities. Weights are kept in the run folder, so that a resumed run goes on with the same ones.

Source: Jung et al. 2024, arXiv:2404.04656.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from agentrl.errors import CheckpointError, ConfigError
from agentrl.offline_batches import Changed
from agentrl.rollout_log import replace_file

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from agentrl.examples import Example
    from agentrl.learner import Learner
    from agentrl.objectives import DensityRatio
    from agentrl.offline_batches import Examples

    Embed = Callable[[Sequence[np.ndarray]], np.ndarray]
    """Ids of prompts -> [prompts, size]."""

CHUNK = 256
"""Prompts embedded at once."""
MAX_ITERATIONS = 1000
"""Of L-BFGS; a problem of a thousand rows takes some tens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Classifier:
    """A logistic regression of good against bad prompts."""

    weights: np.ndarray
    """[size]."""
    bias: float

    def ratios(self, embeddings: np.ndarray, least: float, most: float) -> np.ndarray:
        """[rows] density among good prompts / density among bad ones, within these bounds."""
        logits = embeddings.astype(np.float64) @ self.weights + self.bias
        return np.asarray(np.exp(np.clip(logits, np.log(least), np.log(most))))


def fitted(embeddings: np.ndarray, good: np.ndarray) -> Classifier:
    """The classifier with the least |w|^2 / 2 + sum of log losses, in which good and bad rows weigh alike, whatever their number.

    Args:
        embeddings: [rows, size].
        good: [rows] bool, with both of them.
    """
    import torch
    from torch.nn.functional import softplus

    inputs = torch.from_numpy(np.asarray(embeddings, dtype=np.float64))
    signs = torch.from_numpy(np.where(good, 1.0, -1.0))
    shares = torch.from_numpy(np.where(good, len(good) / (2 * good.sum()), len(good) / (2 * (~good).sum())))
    given = torch.zeros(inputs.shape[1] + 1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [given], max_iter=MAX_ITERATIONS, tolerance_grad=1e-9, tolerance_change=1e-14, history_size=50, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        logits = inputs @ given[:-1] + given[-1]
        loss = given[:-1].square().sum() / 2 + (shares * softplus(-signs * logits)).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    found = given.detach().numpy()
    return Classifier(weights=found[:-1].copy(), bias=float(found[-1]))


def weighed(weights: np.ndarray, index: int, example: Example) -> Example:
    """An example with its own weight times that of its place in `weights`, [examples]."""
    own = example.parts.get("weight", 1.0)
    return replace(example, parts={**example.parts, "weight": own * float(weights[index])})


def weigh(splits: Mapping[str, Examples], ratio: DensityRatio, learner: Learner, folder: Path, *, seed: int) -> dict[str, Examples]:
    """The rows of all splits with their weights, read from disk where they were computed for these very rows before; a collective.

    Args:
        splits: `train`, on which the classifier is fitted, and others.
        ratio: bounds and rows.
        learner: before its first step.
        folder: where weights are kept.
        seed: of the rows that the classifier is fitted on.

    Raises `ConfigError` where the training rows are all good or all bad, `CheckpointError` where the disk refuses.
    """
    read = {name: _read(folder, name, rows) for name, rows in splits.items()}
    known = {name: weights for name, weights in read.items() if weights is not None}
    missing = [name for name in splits if name not in known]
    learner.accelerator.wait_for_everyone()  # all have looked before one of them writes
    if missing:
        classifier = _fitted_on(splits["train"], ratio, learner.embeddings_of, seed)
        for name in missing:
            known[name] = _weights(splits[name], ratio, classifier, learner.embeddings_of)
            if learner.accelerator.is_main_process:
                _keep(folder, name, splits[name], known[name])
    return {name: Changed(rows, partial(weighed, known[name])) for name, rows in splits.items()}


def _fitted_on(rows: Examples, ratio: DensityRatio, embed: Embed, seed: int) -> Classifier:
    """The classifier of a draw of the rows, at most `ratio.rows` of each label."""
    good = np.array([rows[index].rewards[0] > 0.5 for index in range(len(rows))])
    if good.all() or not good.any():
        kind = "good" if good.all() else "bad"
        raise ConfigError(
            f"objective.density_ratio tells prompts of good rows from those of bad ones, and all {len(good)} rows of the dataset are "
            f"{kind}: remove it, or give rows of both labels"
        )
    draw = np.random.default_rng([seed, 0])
    places = np.concatenate([draw.permutation(np.flatnonzero(kind))[: ratio.rows] for kind in (good, ~good)])
    return fitted(embed([_prompt(rows[place]) for place in places.tolist()]), good[places])


def _weights(rows: Examples, ratio: DensityRatio, classifier: Classifier, embed: Embed) -> np.ndarray:
    """[rows] float64: 1 for good ones."""
    found = np.ones(len(rows))
    bad = [index for index in range(len(rows)) if rows[index].rewards[0] <= 0.5]
    for start in range(0, len(bad), CHUNK):
        chunk = bad[start : start + CHUNK]
        found[chunk] = classifier.ratios(embed([_prompt(rows[index]) for index in chunk]), ratio.least, ratio.most)
    return found


def _prompt(example: Example) -> np.ndarray:
    """Its tokens; the first token of a text that has no prompt."""
    text = example.texts[0]
    return text.ids[: max(1, text.prompt_length)]


def _read(folder: Path, name: str, rows: Examples) -> np.ndarray | None:
    """The weights of these very rows, or None where there are none."""
    try:
        said = json.loads((folder / f"{name}-weights.json").read_text())
    except (OSError, ValueError):
        return None
    fits = said["fingerprint"] == rows.fingerprint and len(said["weights"]) == len(rows)
    return np.array(said["weights"], dtype=np.float64) if fits else None


def _keep(folder: Path, name: str, rows: Examples, weights: np.ndarray) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(folder / f"{name}-weights.json", json.dumps({"fingerprint": rows.fingerprint, "weights": weights.tolist()}).encode())
    except OSError as error:
        raise CheckpointError(f"cannot keep the weights of rows in {folder}: {error}; free some space") from error

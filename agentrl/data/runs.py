"""The rows that a run file names: its dataset, or several with their shares, less those held out; and the rows to evaluate on."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import numpy as np

from agentrl.data.mixtures import Mixture
from agentrl.data.rows import SelectedRows
from agentrl.data.sources import open_rows
from agentrl.data.splits import hold_out
from agentrl.errors import ConfigError

if TYPE_CHECKING:
    from agentrl.config import RunConfig

Split = Literal["train", "eval"]


def datasets_of_run(config: RunConfig, split: Split) -> Mixture:
    """The datasets to train on, or to evaluate on. Raises `ConfigError` where the run file names none."""
    if split == "eval" and config.eval_dataset is not None:
        return Mixture(parts=(open_rows(config.eval_dataset, split="eval"),))
    if split == "eval" and not config.data.eval_rows:
        raise ConfigError("there is nothing to evaluate on: name an eval_dataset, or hold rows out with data.eval_rows")
    whole = _trained(config)
    if config.eval_dataset is not None or not config.data.eval_rows:
        return whole
    train, held = hold_out(whole.rows, config.data.eval_rows, config.seed)
    chosen = _of_parts(whole, train if split == "train" else held)
    return chosen if split == "train" else Mixture(parts=tuple(part for part in chosen.parts if len(part)))


def _trained(config: RunConfig) -> Mixture:
    if config.datasets:
        parts = tuple(open_rows(one.dataset) for one in config.datasets)
        return Mixture(parts=parts, weights=tuple(one.weight for one in config.datasets))
    if config.dataset is None:
        raise ConfigError("there is nothing to train on: set `dataset`, or `datasets` with their weights")
    return Mixture(parts=(open_rows(config.dataset),))


def _of_parts(mixture: Mixture, numbers: np.ndarray) -> Mixture:
    """Some rows of a mixture, by their numbers over all of its parts."""
    borders = np.cumsum([0, *mixture.lengths])
    inner = [numbers[(numbers >= low) & (numbers < high)] - low for low, high in pairwise(borders)]
    parts = tuple(SelectedRows(part, index.tolist()) for part, index in zip(mixture.parts, inner, strict=True))
    return Mixture(parts=parts, weights=mixture.weights)

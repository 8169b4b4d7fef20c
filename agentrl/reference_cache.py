"""Log-probs of a dataset under the reference, computed once and kept on disk, so that no reference is held while a run trains.

`reference/` of a run folder holds, for the training rows and for those of the evaluation, one float32 a trained token, text after text and
example after example. It is for the rows of one fingerprint; a resumed run reads it again where they are the same.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from agentrl.errors import CheckpointError, ConfigError
from agentrl.offline_batches import Changed
from agentrl.rollout_log import replace_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from agentrl.examples import Example
    from agentrl.learner import Learner
    from agentrl.offline_batches import Examples

CHUNK = 256
"""Examples scored at once."""


def is_kept(folder: Path, name: str, examples: Examples) -> bool:
    """Whether the log-probs of these very rows are on disk, whole."""
    try:
        said = json.loads((folder / f"{name}.json").read_text())
    except (OSError, ValueError):
        return False
    return bool(said["fingerprint"] == examples.fingerprint and said["examples"] == len(examples))


def compute(folder: Path, name: str, examples: Examples, learner: Learner, tell: Callable[[int], None]) -> None:
    """Score all rows under the reference and keep the log-probs; a collective, of which the main process writes.

    Args:
        folder: where they go.
        name: of the split.
        examples: to be scored.
        learner: whose reference scores them.
        tell: told how many are done.

    Raises `CheckpointError` where the disk refuses, `LearnerDiverged` where a log-prob is not finite.
    """
    parts: list[np.ndarray] = []
    ends: list[int] = []
    for start in range(0, len(examples), CHUNK):
        chunk = [examples[index] for index in range(start, min(start + CHUNK, len(examples)))]
        for text in learner.reference_of(chunk):
            parts.append(text)
            ends.append((ends[-1] if ends else 0) + len(text))
        tell(start + len(chunk))
    if not learner.accelerator.is_main_process:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / f"{name}-logprobs.npy", np.concatenate(parts).astype(np.float32))
        np.save(folder / f"{name}-ends.npy", np.array(ends, dtype=np.int64))
    except OSError as error:
        raise CheckpointError(f"cannot keep the reference's log-probs in {folder}: {error}; free some space") from error
    said = {"fingerprint": examples.fingerprint, "examples": len(examples)}
    replace_file(folder / f"{name}.json", json.dumps(said).encode())


def read(folder: Path, name: str, examples: Examples) -> Changed:
    """The rows with what `compute` kept; the log-probs stay on disk. Raises `ConfigError` where the files do not fit together."""
    try:
        values, ends = np.load(folder / f"{name}-logprobs.npy", mmap_mode="r"), np.load(folder / f"{name}-ends.npy")
    except (OSError, ValueError) as error:
        raise ConfigError(f"the reference's log-probs in {folder} do not read back: {error}; remove that folder") from error
    if len(ends) == 0 or len(values) != ends[-1]:
        raise ConfigError(f"the reference's log-probs in {folder} are torn; remove that folder, and they are computed again")
    starts = np.concatenate([[0], ends])
    first_text = np.concatenate([[0], np.cumsum([len(examples[index].texts) for index in range(len(examples))])])

    def scored(index: int, example: Example) -> Example:
        texts = range(int(first_text[index]), int(first_text[index]) + len(example.texts))
        return replace(example, reference_logprobs=tuple(np.array(values[starts[text] : starts[text + 1]]) for text in texts))

    return Changed(examples, scored)

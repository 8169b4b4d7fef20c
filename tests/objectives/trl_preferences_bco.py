"""Compute what TRL 1.13, the last to have it, gives for BCO, and scikit-learn's classifier for its density ratios.

    python tests/objectives/trl_preferences_bco.py tests/objectives/trl_preferences.json

Run by a Python that has TRL 1.13 and scikit-learn, after `trl_preferences.py`, whose entries stay as they are.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import sklearn
import torch
from datasets import Dataset
from sklearn.linear_model import LogisticRegression
from trl import __version__ as trl_version
from trl.experimental.bco import BCOConfig, BCOTrainer
from trl_stubs import (
    LENGTHS,
    TableNetwork,
    float64,
    make_inputs,
    make_model,
    make_tokenizer,
    mask,
    padded,
    plain_options,
    ragged,
    with_prompt,
    write,
)

CASES = [{"beta": 1.0}, {"beta": 0.1}, {"beta": 1.0, "weighed": True}]
SIZE = 3
"""Of an embedding."""


def make_embeddings(count: int, seed: int) -> list[list[float]]:
    """Of prompts; those of even places lie a little higher in the first direction."""
    draw = random.Random(seed)
    return [[draw.gauss(0.8 if row % 2 == 0 and place == 0 else 0.0, 1.0) for place in range(SIZE)] for row in range(count)]


def bco_of(case: dict[str, object], inputs: dict[str, list], labels: list[bool], folder: str) -> dict[str, object]:
    """Two calls of `get_batch_loss_metrics`: the running mean takes in a batch before its loss; the second has another delta."""
    trainer = BCOTrainer(
        model=make_model(),
        ref_model=make_model(),
        args=BCOConfig(**plain_options(folder), max_length=16, beta=case["beta"], remove_unused_columns=False),
        train_dataset=Dataset.from_dict({"prompt": ["a b"] * 8, "completion": ["c d"] * 8, "label": labels}),
        processing_class=make_tokenizer(),
    )
    network = TableNetwork(inputs["logits"], inputs["ids"])
    ids, kept = with_prompt(padded(inputs["ids"])), with_prompt(mask(), torch.zeros(1, dtype=torch.long))
    batch = {
        "completion_input_ids": ids,
        "completion_attention_mask": with_prompt(mask(), torch.ones(1, dtype=torch.long)),
        "completion_labels": ids.masked_fill(kept == 0, -100),
        "label": labels,
        "reference_logps": (padded(inputs["reference"]) * mask()).sum(1),
    }
    embeddings = make_embeddings(len(LENGTHS), 5)
    if case.get("weighed"):
        chosen, rejected = ([row for row, label in zip(embeddings, labels, strict=True) if label is kind] for kind in (True, False))
        trainer.embedding_func = trainer.embedding_tokenizer = SimpleNamespace(pad_token_id=-100)
        trainer.clf = fitted()[0]
        trainer._get_prompt_embeddings = lambda _: (torch.tensor(chosen), torch.tensor(rejected))
    losses = []
    for _ in range(2):
        loss, metrics = trainer.get_batch_loss_metrics(lambda ids, **options: network(ids), batch)
        (gradient,) = torch.autograd.grad(loss, network.leaf)
        losses.append({"loss": loss.item(), "gradient": ragged(gradient), "metrics": {name: float(one) for name, one in metrics.items()}})
        # Another batch in between, so that the mean moves.
        with torch.no_grad():
            trainer.running.update(torch.tensor([0.5, -0.25, 1.0]))
    return {"case": case, "steps": losses, "embeddings": embeddings}


def fitted() -> tuple[LogisticRegression, list[list[float]], list[bool]]:
    """The classifier as TRL fits it, on few embeddings of which more are good."""
    embeddings = make_embeddings(40, 9)
    labels = [row % 2 == 0 or row % 5 == 0 for row in range(40)]
    return (
        LogisticRegression(class_weight="balanced", tol=1e-12, max_iter=1000).fit(np.array(embeddings), np.array(labels)),
        embeddings,
        labels,
    )


def main(path: Path) -> None:
    stored, inputs = json.loads(path.read_text()), make_inputs()
    with tempfile.TemporaryDirectory() as folder, float64():
        found = [bco_of(case, inputs, stored["labels"], folder) for case in CASES]
    removed = [{"kind": "bco", "trainer": "trl.experimental.bco.BCOTrainer", "trl": trl_version, **entry} for entry in found]
    classifier, embeddings, labels = fitted()
    density = {
        "scikit_learn": sklearn.__version__,
        "embeddings": embeddings,
        "labels": labels,
        "weights": classifier.coef_[0].tolist(),
        "bias": float(classifier.intercept_[0]),
        "probabilities": classifier.predict_proba(np.array(make_embeddings(len(LENGTHS), 5)))[:, 1].tolist(),
    }
    write(path, stored | {"removed": removed, "density": density})


if __name__ == "__main__":
    main(Path(sys.argv[1]))

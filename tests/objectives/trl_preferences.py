"""Compute what TRL 1.16 gives for the objectives over pairs and labelled texts; run by a Python that has it.

    python tests/objectives/trl_preferences.py tests/objectives/trl_preferences.json

Inputs are those of `trl_stubs.py`, and so is the way: trainers are built as a user would build them, the network is a table of logits, and
the loss and its metrics are TRL's own lines. Rollouts 2k and 2k + 1 are the chosen and the rejected text of a pair; where there are three
texts a row, 3k to 3k + 2. BCO left TRL with 1.14: `trl_preferences_bco.py` makes its entries, which are kept here as they are.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import torch
from datasets import Dataset
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer
from trl import __version__ as trl_version
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer
from trl.experimental.tpo import TPOConfig, TPOTrainer
from trl_stubs import (
    LENGTHS,
    PROMPT,
    VOCABULARY,
    TableNetwork,
    float64,
    make_inputs,
    make_model,
    make_tokenizer,
    mask,
    padded,
    plain_options,
    ragged,
    reference_of,
    with_prompt,
    write,
)

CHOSEN, REJECTED = list(range(0, len(LENGTHS), 2)), list(range(1, len(LENGTHS), 2))
TRIPLES = [[0, 3], [1, 4], [2, 5]]
LABELS = [True, False, False, True, True, True, False, True]
WEIGHED = {"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]}

DPO_CASES = [
    {"loss_type": "sigmoid", "beta": 0.1},
    {"loss_type": "sigmoid", "beta": 1.0},
    {"loss_type": "hinge", "beta": 0.5},
    {"loss_type": "ipo", "beta": 0.5},
    {"loss_type": "exo_pair", "beta": 1.0, "label_smoothing": 0.001},
    {"loss_type": "exo_pair", "beta": 1.0, "label_smoothing": 0.2},
    {"loss_type": "nca_pair", "beta": 1.0},
    {"loss_type": "bco_pair", "beta": 1.0},
    {"loss_type": "robust", "beta": 1.0},
    {"loss_type": "robust", "beta": 1.0, "label_smoothing": 0.2},
    {"loss_type": "sppo_hard", "beta": 0.5},
    {"loss_type": "aot", "beta": 1.0},
    {"loss_type": "aot", "beta": 1.0, "label_smoothing": 0.1},
    {"loss_type": "aot_unpaired", "beta": 1.0},
    {"loss_type": "aot_unpaired", "beta": 1.0, "label_smoothing": 0.1},
    {"loss_type": "apo_zero", "beta": 1.0},
    {"loss_type": "apo_down", "beta": 1.0},
    {"loss_type": "discopop", "beta": 0.1},
    {"loss_type": "discopop", "beta": 1.0, "discopop_tau": 0.5},
    {"loss_type": "sigmoid_norm", "beta": 2.0},
    {"beta": 0.5, **WEIGHED},
    {"loss_type": ["sigmoid", "sft"], "beta": 0.5},
    {"loss_type": "sigmoid", "beta": 1.0, "f_divergence_type": "forward_kl"},
    {"loss_type": "sigmoid", "beta": 1.0, "f_divergence_type": "js_divergence"},
    {"loss_type": "sigmoid_norm", "beta": 1.0, "f_divergence_type": "js_divergence"},
    {"loss_type": "ipo", "beta": 1.0, "f_divergence_type": "forward_kl"},
    {"loss_type": "sigmoid", "beta": 1.0, "f_divergence_type": "alpha_divergence"},
    {"loss_type": "hinge", "beta": 0.5, "f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.2},
    {"loss_type": "sigmoid", "beta": 1.0, "ld_alpha": 0.4},
    {"loss_type": "aot", "beta": 1.0, "ld_alpha": 0.4},
    {"loss_type": "sigmoid", "beta": 1.0, "use_weighting": True},
    {"loss_type": ["sigmoid", "apo_zero"], "loss_weights": [1.0, 0.5], "beta": 1.0, "use_weighting": True},
]
KTO_CASES = [
    {"loss_type": "kto", "beta": 1.0},
    {"loss_type": "kto", "beta": 1.0, "reference_shift": -0.4},
    {"loss_type": "kto", "beta": 0.1, "desirable_weight": 1.5, "undesirable_weight": 0.75},
    {"loss_type": "apo_zero_unpaired", "beta": 1.0},
]
CPO_CASES = [
    {"loss_type": "sigmoid", "beta": 0.1},
    {"loss_type": "sigmoid", "beta": 0.5, "label_smoothing": 0.1, "cpo_alpha": 0.3},
    {"loss_type": "hinge", "beta": 0.2},
    {"loss_type": "ipo", "beta": 0.5},
    {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 0.5, "cpo_alpha": 0.0},
    {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 1.0, "cpo_alpha": 0.0, "label_smoothing": 0.1},
    {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 1.0, "cpo_alpha": 0.7},
    {"loss_type": "alphapo", "beta": 2.0, "simpo_gamma": 1.0, "cpo_alpha": 0.0, "alpha": 0.25},
    {"loss_type": "alphapo", "beta": 2.0, "simpo_gamma": 0.5, "cpo_alpha": 0.0, "alpha": -0.5},
]
ORPO_CASES = [{"beta": 0.1}, {"beta": 1.0}]
TPO_CASES = [
    {"loss_type": "sigmoid", "beta": 0.1},
    {"loss_type": "sigmoid", "beta": 1.0, "label_smoothing": 0.1, "tpo_alpha": 0.3},
    {"loss_type": "sigmoid", "beta": 1.0, "tpo_alpha": 0.0},
    {"loss_type": "hinge", "beta": 0.1},
    {"loss_type": "ipo", "beta": 0.5},
    {"loss_type": "tpo-l", "beta": 1.0, "tpo_l_gamma": 0.5},
]


class LabelledTable(TableNetwork):
    """The table as a model whose head gives what losses need of the labelled tokens, 0 for all others."""

    def __call__(self, input_ids: torch.Tensor, labels: torch.Tensor | None = None, **options: object) -> SimpleNamespace:
        found = super().__call__(input_ids)
        if labels is None:
            return found
        counted = labels != -100
        scores = torch.cat([found.logits[:, :1], found.logits[:, :-1]], 1)  # what predicts each token
        return SimpleNamespace(
            log_probs=found.log_probs * counted,
            entropy=found.entropy * counted,
            mean_logits=scores.detach().mean(-1) * counted,
            is_top1=(scores.argmax(-1) == input_ids) & counted,
            log_sum_sq_probs=(2 * scores.log_softmax(-1)).logsumexp(-1) * counted,
        )


def network_of(tables: list[list[list[float]]], ids: list[list[int]]) -> LabelledTable:
    return LabelledTable(tables, ids)


def frozen(inputs: dict[str, list], shift: float = 0.0) -> LabelledTable:
    """The reference, its log-probs of the texts' tokens moved by this."""
    moved = [[value + shift for value in row] for row in inputs["reference"]]
    tables = reference_of(inputs | {"reference": moved}).leaf.detach().tolist()
    return network_of([table[:length] for table, length in zip(tables, LENGTHS, strict=True)], inputs["ids"])


def batch_of(inputs: dict[str, list], rows: list[int], prefix: str = "") -> dict[str, torch.Tensor]:
    """Prompt and completion of some rows, with masks as TRL's collators give them."""
    ids, kept = padded(inputs["ids"])[rows], mask()[rows]
    ones, zeros = torch.ones(1, dtype=torch.long), torch.zeros(1, dtype=torch.long)
    return {
        f"{prefix}input_ids": with_prompt(ids),
        f"{prefix}attention_mask": with_prompt(kept, ones),
        f"{prefix}completion_mask": with_prompt(kept, zeros),
    }


def found_of(loss: torch.Tensor, network: TableNetwork, metrics: dict[str, float]) -> dict[str, object]:
    (gradient,) = torch.autograd.grad(loss, network.leaf)
    return {"loss": loss.item(), "gradient": ragged(gradient), "metrics": metrics}


def last_metrics(trainer: object) -> dict[str, float]:
    """The means of the one call, without counts of a run."""
    return {name: values[-1] for name, values in trainer._metrics["train"].items() if name != "num_tokens"}


def dpo_of(case: dict[str, object], inputs: dict[str, list], folder: str) -> dict[str, object]:
    """`_compute_loss`; the alpha-divergence has a table of clamps without float64 in TRL, and is computed in float32."""
    trainer = DPOTrainer(
        model=make_model(),
        ref_model=make_model(),
        args=DPOConfig(**plain_options(folder), **case),
        train_dataset=Dataset.from_dict({"prompt": ["a b"] * 4, "chosen": ["c d"] * 4, "rejected": ["d e"] * 4}),
        processing_class=make_tokenizer(),
    )
    trainer.ref_model = frozen(inputs)
    network = network_of(inputs["logits"], inputs["ids"])
    single = case.get("f_divergence_type") == "alpha_divergence"
    if single:
        for one in (network, trainer.ref_model):
            one.leaf = one.leaf.detach().float().requires_grad_()
    trainer.model.train()
    loss = trainer._compute_loss(network, batch_of(inputs, CHOSEN + REJECTED), False)
    return found_of(loss, network, last_metrics(trainer)) | ({"single": True} if single else {})


def kto_of(case: dict[str, object], inputs: dict[str, list], folder: str) -> dict[str, object]:
    """`_compute_loss`; mismatched completions are those of the row before, as TRL rotates a batch."""
    options = {key: value for key, value in case.items() if key != "reference_shift"}
    trainer = KTOTrainer(
        model=make_model(),
        ref_model=make_model(),
        args=KTOConfig(**plain_options(folder), **options),
        train_dataset=Dataset.from_dict({"prompt": ["a b"] * 8, "completion": ["c d"] * 8, "label": LABELS}),
        processing_class=make_tokenizer(),
    )
    trainer.ref_model = frozen(inputs, float(case.get("reference_shift", 0.0)))
    network = network_of(inputs["logits"], inputs["ids"])
    rows = list(range(len(LENGTHS)))
    batch = batch_of(inputs, rows) | batch_of(inputs, [*rows[-1:], *rows[:-1]], "KL_") | {"label": torch.tensor(LABELS)}
    trainer.model.train()
    return found_of(trainer._compute_loss(network, batch, False), network, last_metrics(trainer))


def answers_of(inputs: dict[str, list]) -> dict[str, torch.Tensor]:
    """The batch of CPO's and ORPO's collator."""
    result = {}
    for name, rows in (("chosen", CHOSEN), ("rejected", REJECTED)):
        batch = batch_of(inputs, rows, f"{name}_")
        kept = batch.pop(f"{name}_completion_mask")
        result |= batch | {f"{name}_labels": batch[f"{name}_input_ids"].masked_fill(kept == 0, -100)}
    return result


def compared_of(kinds: tuple[type, type], case: dict[str, object], inputs: dict[str, list], folder: str) -> dict[str, object]:
    """`get_batch_loss_metrics` of CPO or ORPO."""
    config, trainer_class = kinds
    trainer = trainer_class(
        model=make_model(),
        args=config(**plain_options(folder), max_length=16, **case),
        train_dataset=Dataset.from_dict({"prompt": ["a b"] * 4, "chosen": ["c d"] * 4, "rejected": ["d e"] * 4}),
        processing_class=make_tokenizer(),
    )
    network = network_of(inputs["logits"], inputs["ids"])
    loss, metrics = trainer.get_batch_loss_metrics(lambda ids, **options: network(ids), answers_of(inputs))
    return found_of(loss, network, {name: float(value) for name, value in metrics.items()})


def tpo_of(case: dict[str, object], inputs: dict[str, list], folder: str) -> dict[str, object]:
    """`_compute_loss` of two rows of three texts, or two where the gold one does not count."""
    columns = {"prompt": ["a b"] * 4, "chosen": ["c d"] * 4, "rejected": ["d e"] * 4, "reference": ["c e"] * 4}
    trainer = TPOTrainer(
        model=make_model(),
        args=TPOConfig(**plain_options(folder), **case),
        train_dataset=Dataset.from_dict(columns),
        processing_class=make_tokenizer(),
    )
    network = network_of(inputs["logits"], inputs["ids"])
    kept = TRIPLES if case.get("tpo_alpha") != 0.0 else TRIPLES[:2]
    trainer.model.train()
    batch = batch_of(inputs, [row for rows in kept for row in rows])
    counted = batch["completion_mask"].bool()

    def masked(input_ids: torch.Tensor, **options: object) -> SimpleNamespace:
        return SimpleNamespace(logits=network(input_ids).logits)

    assert counted.any()
    return found_of(trainer._compute_loss(masked, batch, False), network, last_metrics(trainer))


def entries(inputs: dict[str, list], folder: str) -> list[dict[str, object]]:
    makers = [
        ("dpo", "trl.DPOTrainer", DPO_CASES, dpo_of),
        ("kto", "trl.KTOTrainer", KTO_CASES, kto_of),
        ("cpo", "trl.experimental.cpo.CPOTrainer", CPO_CASES, lambda *given: compared_of((CPOConfig, CPOTrainer), *given)),
        ("orpo", "trl.experimental.orpo.ORPOTrainer", ORPO_CASES, lambda *given: compared_of((ORPOConfig, ORPOTrainer), *given)),
        ("tpo", "trl.experimental.tpo.TPOTrainer", TPO_CASES, tpo_of),
    ]
    found = []
    with float64():
        for kind, trainer, cases, make in makers:
            found += [{"kind": kind, "trainer": trainer, "trl": trl_version, "case": case, **make(case, inputs, folder)} for case in cases]
    return found


def main(path: Path) -> None:
    assert len(PROMPT) == 2
    assert VOCABULARY == 7
    stored = json.loads(path.read_text()) if path.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        result = {"trl": trl_version, "labels": LABELS, "preferences": entries(make_inputs(), folder)}
    write(path, result | {key: stored[key] for key in ("removed", "density") if key in stored})


if __name__ == "__main__":
    main(Path(sys.argv[1]))

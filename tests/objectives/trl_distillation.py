"""Compute what TRL gives for distillation; run by a Python that has TRL 1.16, and then by one that has 1.12.

    python tests/objectives/trl_distillation.py tests/objectives/trl_distillation.json

Each run replaces what its release has: TRL 1.16 `gkd`, `distillation`, `top_k` and `iw_opd`, TRL 1.12 `minillm`, which is gone since.
Inputs are those of `trl_stubs.py` and so is the way: trainers are built as a user would build them, both networks are tables, and
divergences, advantages, weights and reductions are TRL's own lines.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import torch
from datasets import Dataset
from trl import __version__ as trl_version
from trl_stubs import (
    GROUP,
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
    with_prompt,
    write,
)

GKD_CASES = [{"beta": beta, "temperature": 1.0} for beta in (0.0, 0.3, 0.5, 1.0)] + [{"beta": 0.5, "temperature": 0.9}]
DISTILLATION_CASES = [{"beta": beta, "temperature": 1.0} for beta in (0.0, 0.5, 1.0)] + [{"beta": 0.3, "temperature": 0.7}]
TOP_K_CASES = [{"beta": 0.0, "top_k": k, "temperature": t} for k, t in ((1, 1.0), (3, 1.0), (3, 0.7))]
IW_OPD_CASES = [{"iw_opd_gamma": 0.5}, {"iw_opd_gamma": 0.0}, {"iw_opd_gamma": 2.0, "cached": True}]
"""`cached`: the rollout's log-probs are the sampler's, and not the student's own."""
MINILLM_CASES = [
    {"gamma": 0.0, "length_normalization": True, "single_step_decomposition": True},
    {"gamma": 1.0, "length_normalization": True, "single_step_decomposition": True},
    {"gamma": 0.5, "length_normalization": True, "single_step_decomposition": False},
    {"gamma": 1.0, "length_normalization": False, "single_step_decomposition": False},
]
BLANK = len(PROMPT)


class Network(TableNetwork):
    """A table that is asked to change its mode."""

    def eval(self) -> Network:
        return self


def teacher_logits() -> list[list[list[float]]]:
    draw = random.Random(13)
    return [[[draw.gauss(0, 1.2) for _ in range(VOCABULARY)] for _ in range(length)] for length in LENGTHS]


def entry(case: dict[str, object], loss: torch.Tensor, network: Network, **more: object) -> dict[str, object]:
    (gradient,) = torch.autograd.grad(loss, network.leaf)
    return {"case": case, "loss": loss.item(), "gradient": ragged(gradient), **more}


def given(inputs: dict[str, list]) -> tuple[Network, Network, dict[str, torch.Tensor]]:
    """Student, teacher, and a batch of both networks' completions behind one prompt."""
    ids = padded(inputs["ids"])
    counted = with_prompt(mask(), torch.zeros(BLANK, dtype=torch.int64))
    batch = {"input_ids": with_prompt(ids), "attention_mask": with_prompt(mask(), torch.ones(BLANK, dtype=torch.int64))}
    batch |= {"labels": batch["input_ids"].masked_fill(counted == 0, -100), "prompts": with_prompt(ids[:, :0])}
    return Network(inputs["logits"], inputs["ids"]), Network(inputs["teacher"], inputs["ids"]), batch


def gkd(case: dict[str, object], inputs: dict[str, list], folder: str) -> dict[str, object]:
    """`compute_loss`, which takes the temperature for sampling alone."""
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    rows = Dataset.from_dict({"messages": [[{"role": "user", "content": "a b"}, {"role": "assistant", "content": "c"}]] * 2})
    args = GKDConfig(**plain_options(folder), **case)
    trainer = GKDTrainer(model=folder, teacher_model=folder, args=args, train_dataset=rows, processing_class=make_tokenizer())
    student, trainer.teacher_model, batch = given(inputs)
    with float64():
        return entry(case, trainer.compute_loss(student, batch, num_items_in_batch=mask().sum()), student)


def distillation(case: dict[str, object], inputs: dict[str, list]) -> dict[str, object]:
    """The loss of DistillationTrainer out of hidden states: those are the logits here, and the heads are identities."""
    from trl.trainer.distillation_trainer import _chunked_divergence_loss

    student, teacher, _ = given(inputs)
    with float64():
        head = torch.eye(VOCABULARY)
        temperature, beta = float(case["temperature"]), float(case["beta"])
        loss, _, _ = _chunked_divergence_loss(
            student.leaf, teacher.leaf.detach(), head, head, mask(), beta, num_items_in_batch=mask().sum(), temperature=temperature
        )
        return entry(case, loss, student)


def top_k(case: dict[str, object], inputs: dict[str, list]) -> dict[str, object]:
    from trl.experimental.iw_opd import IWOPDTrainer

    student, teacher, batch = given(inputs)
    with float64():
        loss = IWOPDTrainer.generalized_jsd_loss(
            student.leaf, teacher.leaf.detach(), labels=batch["labels"][:, BLANK:], num_items_in_batch=mask().sum(), **case
        )
        return entry(case, loss, student)


def iw_opd(case: dict[str, object], inputs: dict[str, list]) -> dict[str, object]:
    """`_compute_iw_opd_loss` and its metrics, on a bare trainer: all that it reads is set here."""
    from trl.experimental.iw_opd import IWOPDConfig, IWOPDTrainer

    student, teacher, batch = given(inputs)
    trainer = IWOPDTrainer.__new__(IWOPDTrainer)
    trainer.temperature, trainer.iw_opd_gamma = 1.0, case["iw_opd_gamma"]
    trainer.iw_opd_epsilon = IWOPDConfig.iw_opd_epsilon
    trainer.model = SimpleNamespace(training=True)
    names = ("mean_advantage", "mean_abs_advantage", "mean_weight", "min_weight", "max_weight")
    trainer._metrics = {"train": {f"iw_opd/{name}": [] for name in names}}
    with float64():
        ids = padded(inputs["ids"])
        chosen = teacher.leaf.detach().log_softmax(-1).gather(-1, ids[..., None]).squeeze(-1)
        cached = padded(inputs["sampler"]) if case.get("cached") else None
        loss = trainer._compute_iw_opd_loss(
            student.leaf, ids, batch["labels"][:, BLANK:], chosen, rollout_logprobs=cached, num_items_in_batch=mask().sum()
        )
        metrics = {name: values[0] for name, values in trainer._metrics["train"].items()}
        return entry(case, loss, student, metrics=metrics)


def minillm(case: dict[str, object], inputs: dict[str, list], folder: str) -> dict[str, object]:
    """The advantages of `_compute_advantage`, of each completion alone, and the loss of `_single_step_decomposition_loss`."""
    from trl.experimental.minillm import MiniLLMConfig, MiniLLMTrainer

    args = MiniLLMConfig(num_generations=GROUP, **plain_options(folder), **case)
    rows = Dataset.from_dict({"prompt": ["a b"] * 4})
    trainer = MiniLLMTrainer(model=folder, teacher_model=folder, args=args, train_dataset=rows, processing_class=make_tokenizer())
    student, teacher, _ = given(inputs)
    with float64():
        own, other = student.leaf.log_softmax(-1), teacher.leaf.detach().log_softmax(-1)
        advantages = []
        for row, ids in enumerate(inputs["ids"]):
            picked = [one[row : row + 1, range(len(ids)), ids].detach() for one in (own, other)]
            advantages.append(trainer._compute_advantage(*picked, mask=torch.ones(1, len(ids)))[0].tolist())
        loss = trainer._single_step_decomposition_loss(own, other, mask=mask().bool())
        return entry(case, loss, student, advantages=advantages)


def main(path: Path) -> None:
    stored = json.loads(path.read_text()) if path.exists() else {}
    inputs = make_inputs() | {"teacher": teacher_logits()}
    with tempfile.TemporaryDirectory() as folder:
        make_model().save_pretrained(folder)
        make_tokenizer().save_pretrained(folder)
        if trl_version.startswith("1.12"):
            found = {"minillm": [minillm(case, inputs, folder) for case in MINILLM_CASES]}
        else:
            found = {
                "trl": trl_version,
                "inputs": inputs,
                "gkd": [gkd(case, inputs, folder) for case in GKD_CASES],
                "distillation": [distillation(case, inputs) for case in DISTILLATION_CASES],
                "top_k": [top_k(case, inputs) for case in TOP_K_CASES],
                "iw_opd": [iw_opd(case, inputs) for case in IW_OPD_CASES],
            }
    write(path, stored | found)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

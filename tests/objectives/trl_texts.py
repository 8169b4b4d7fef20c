"""Compute what TRL gives for supervised losses and reward models; run by a Python that has TRL 1.16, and then by one that has 1.12.

    python tests/objectives/trl_texts.py tests/objectives/trl_texts.json

Each run replaces what its release has: TRL 1.16 `sft` and `reward`, TRL 1.12 `prm`, which left with 1.14. Inputs are those of
`trl_stubs.py`, and so is the way: trainers are built as a user would build them, the network is a table, and the loss and its metrics are
TRL's own lines. Texts 2k and 2k + 1 are the chosen and the rejected one of a pair.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification
from transformers.loss.loss_utils import ForTokenClassification
from trl import __version__ as trl_version
from trl_stubs import (
    LENGTHS,
    PROMPT,
    TableNetwork,
    float64,
    make_inputs,
    make_model,
    make_tokenizer,
    mask,
    padded,
    plain_options,
    with_prompt,
    write,
)

SFT_CASES = [{"loss_type": "nll"}, {"loss_type": "dft"}, {"loss_type": "nll", "label_smoothing_factor": 0.1}]
REWARD_CASES = [{}, {"margin": True}, {"center_rewards_coefficient": 0.01}, {"center_rewards_coefficient": 0.5, "margin": True}]
SCORES = [0.3, -1.2, 2.0, 1.1, -0.4, 0.9, 0.05, 0.05]
MARGINS = [0.0, 0.5, 1.5, 0.2]
STEPS = [[[0.4, -0.3], [1.2, 0.1], [-0.7, 0.6]], [[0.2, 1.5]], [[-1.0, -0.2], [0.9, 0.8]]]
"""Logits at the ends of the steps of three texts."""
LABELS = [[1, 1, 0], [0], [1, 0]]


class Outputs(dict[str, torch.Tensor]):
    """A model's outputs, by name and as attributes."""

    def __getattr__(self, name: str) -> torch.Tensor:
        return self[name]


def supervised(case: dict[str, object], inputs: dict[str, list], folder: str) -> dict[str, object]:
    from trl import SFTConfig, SFTTrainer

    make_model().save_pretrained(folder)
    args = SFTConfig(**plain_options(folder), **case)
    rows = Dataset.from_dict({"prompt": ["a b"] * 2, "completion": ["c d"] * 2})
    trainer = SFTTrainer(model=folder, args=args, train_dataset=rows, processing_class=make_tokenizer())
    table, ids = TableNetwork(inputs["logits"], inputs["ids"]), padded(inputs["ids"])
    counted = with_prompt(mask(), torch.zeros(len(PROMPT), dtype=torch.int64))

    def network(**options: object) -> Outputs:
        out = table(input_ids=options["input_ids"])
        best = out.logits.argmax(-1).roll(1, 1)
        right = (best == options["input_ids"]) & (counted == 1)
        return Outputs(
            log_probs=out.log_probs * counted, entropy=out.entropy * counted, is_top1=right, label_mask=counted, logits=out.logits
        )

    batch = {"input_ids": with_prompt(ids), "attention_mask": with_prompt(mask(), torch.ones(len(PROMPT), dtype=torch.int64))}
    batch["labels"] = batch["input_ids"].masked_fill(counted == 0, -100)
    with float64():
        loss = trainer.compute_loss(network, batch)
        loss.backward()
    metrics = {name: values[-1] for mode in ("train", "eval") for name, values in trainer._metrics[mode].items()}
    gradient = [rows[:length].tolist() for rows, length in zip(table.leaf.grad, LENGTHS, strict=True)]
    return {"case": case, "loss": loss.item(), "gradient": gradient, "metrics": metrics}


def reward(case: dict[str, object], folder: str) -> dict[str, object]:
    from trl import RewardConfig, RewardTrainer

    make_model().save_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, pad_token_id=0)
    options = {name: value for name, value in case.items() if name != "margin"}
    args = RewardConfig(**plain_options(folder), **options)
    rows = Dataset.from_dict({"chosen": ["a b c"] * 2, "rejected": ["a b d"] * 2})
    trainer = RewardTrainer(model=model, args=args, train_dataset=rows, processing_class=make_tokenizer())
    leaf = torch.tensor([*SCORES[0::2], *SCORES[1::2]], dtype=torch.float64, requires_grad=True)
    batch = {"input_ids": torch.zeros(len(SCORES), 2), "attention_mask": torch.ones(len(SCORES), 2)}
    if case.get("margin"):
        batch["margin"] = torch.tensor(MARGINS, dtype=torch.float64)
    with float64():
        loss = trainer.compute_loss(lambda **inputs: SimpleNamespace(logits=leaf[:, None]), batch)
        loss.backward()
    metrics = {name: values[-1] for mode in ("train", "eval") for name, values in trainer._metrics[mode].items()}
    gradient = torch.stack(leaf.grad.chunk(2), 1).reshape(-1).tolist()
    return {"case": case, "loss": loss.item(), "gradient": gradient, "metrics": metrics}


def process_reward(*, last: bool, folder: str) -> dict[str, object]:
    """Its labels are TRL's own too: a row for each text, whose steps are words."""
    from trl.experimental.prm import PRMConfig, PRMTrainer

    make_model().save_pretrained(folder)
    model = AutoModelForTokenClassification.from_pretrained(folder, num_labels=2, pad_token_id=0)
    words = [["c", "d e", "a"], ["c d"], ["e", "a b"]]
    rows = Dataset.from_dict({"prompt": ["a b"] * 3, "completions": words, "labels": [[bool(one) for one in row] for row in LABELS]})
    args = PRMConfig(**plain_options(folder), train_on_last_step_only=last, step_separator=" b")
    tokenizer = make_tokenizer()
    tokenizer.padding_side = "right"
    trainer = PRMTrainer(model=model, args=args, train_dataset=rows, processing_class=tokenizer)
    batch = trainer.data_collator([trainer.train_dataset[place] for place in range(3)])
    ends = [[place for place, word in enumerate(row.tolist()) if word == 3 and place > 1] for row in batch["input_ids"]]
    ends[2].remove(ends[2][-2])  # the word b within its second step
    leaf = torch.tensor([step for row in STEPS for step in row], dtype=torch.float64, requires_grad=True)
    logits = torch.zeros(*batch["input_ids"].shape, 2, dtype=torch.float64)
    logits = logits.index_put(tuple(torch.tensor([(row, end) for row, found in enumerate(ends) for end in found]).T), leaf)

    def network(**inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": ForTokenClassification(logits, inputs["labels"], model.config), "logits": logits}

    with float64():
        loss = trainer.compute_loss(network, dict(batch))
        loss.backward()
    return {"case": {"train_on_last_step_only": last}, "loss": loss.item(), "gradient": leaf.grad.tolist()}


def main(target: str) -> None:
    path = Path(target)
    result = json.loads(path.read_text()) if path.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        if trl_version.startswith("1.12."):
            result["trl_prm"] = trl_version
            result["prm"] = [process_reward(last=last, folder=folder) for last in (False, True)]
        else:
            inputs = make_inputs()
            result = {"trl": trl_version, "inputs": {"ids": inputs["ids"], "logits": inputs["logits"]}} | {
                key: value for key, value in result.items() if "prm" in key
            }
            result["pairs"] = {"scores": SCORES, "margins": MARGINS}
            result["steps"] = {"logits": STEPS, "labels": LABELS}
            result["sft"] = [supervised(case, inputs, folder) for case in SFT_CASES]
            result["reward"] = [reward(case, folder) for case in REWARD_CASES]
    write(path, result)


if __name__ == "__main__":
    main(sys.argv[1])
